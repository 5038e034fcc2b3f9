"""The worker process: writes, simulates and judges recordings of tests. `worker_process` starts it and sends requests.

Requests and answers are lines of JSON, with one answer to each request. `record` has a second answer at its end.
"""

import json
import os
import select
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replay.gates.baselines import Baseline, Measured, read_baseline, write_baseline
from replay.pytest_plugin.arguments import Settings, parse_settings
from replay.pytest_plugin.judging import UPDATE, Judge, trace_name
from replay.pytest_plugin.measuring import measure_pins, measure_recording
from replay.recorder.detached import leave_terminal
from replay.recorder.ring import Ring
from replay.recorder.writer import Writer
from replay.sources import open_source
from replay.support.atomic_files import new_file
from replay.support.errors import ReplayError

BASELINE_ADVICE = f"remove it, and store new figures of all tests with {UPDATE}"


def main() -> None:
    """Answers requests until the process under test closes the pipe or ends."""
    request = json.loads(sys.argv[-1])
    leave_terminal()
    os.chdir(request["folder"])
    Worker(request).serve()


class Worker:
    def __init__(self, request: dict[str, Any]) -> None:
        self._ring_file, self._sites_every = request["ring"], request["sites_every"]
        self._program = os.pidfd_open(request["program"])
        self._requests = request["requests"]
        self._answers = os.fdopen(request["answers"], "w")
        self._baseline, self._updates = request["baseline"], request["updates"]
        self._traces = Path(request["traces"]) if request["traces"] else None
        self._for_all: dict[str, Any] = request["for_all"]
        self._settings: list[Settings] = []
        self._judge: Judge | None = None
        self._request_number = 0

    def serve(self) -> None:
        for line in self._lines():
            request = json.loads(line)
            self._request_number = request.pop("number")
            try:
                answer = getattr(self, f"_{request.pop('do')}")(**request)
            except (ReplayError, OSError) as error:
                answer = {"error": str(error)}
            except Exception:  # a mistake of replay, which the process under test reports
                answer = {"bug": traceback.format_exc()}
            self._send(answer)

    def _send(self, content: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):
            self._answers.write(json.dumps({"number": self._request_number, **content}) + "\n")
            self._answers.flush()

    def _lines(self) -> Iterator[bytes]:
        """Yields requests. Also watches the process under test, because a forked child can keep the pipe open."""
        incomplete = b""
        while True:
            ready = select.select([self._requests, self._program], [], [])[0]
            piece = os.read(self._requests, 1 << 16) if self._requests in ready else b""
            if not piece:
                return
            *lines, incomplete = (incomplete + piece).split(b"\n")
            yield from lines

    def _register(self, settings: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """Stores settings of tests, each as a list of layers. Returns their numbers, and mistakes by index.

        A mistake in the options for all tests is an error of the whole request.
        """
        parse_settings(self._for_all, [])
        if self._judge is None:
            self._judge = self._make_judge()
        mistakes, numbers = {}, []
        for index, layers in enumerate(settings):
            try:
                self._settings.append(parse_settings(self._for_all, layers))
                numbers.append(len(self._settings) - 1)
            except ReplayError as mistake:
                mistakes[str(index)] = str(mistake)
        return {"mistakes": mistakes, "numbers": numbers}

    def _make_judge(self) -> Judge:
        path = Path(self._baseline) if self._baseline else None
        if path is None or (self._updates and not path.exists()):
            return Judge(None, None)
        baseline = read_baseline(path, BASELINE_ADVICE)
        return Judge(None, None) if self._updates else Judge(baseline, self._traces)

    def _record(self, path: str, command: list[str], excluded: list[int]) -> dict[str, Any]:
        ring = Ring(self._ring_file, self._sites_every)
        writer = Writer(ring, Path(path), command, addresses=False, force=True, excluded=excluded)
        self._send({"writer": os.getpid()})
        writer.run(lambda: ring.ended or bool(select.select([self._program], [], [], 0)[0]))
        return asdict(writer.finish())

    def _measure(self, settings: int, trace: str) -> dict[str, Any]:
        """Returns the measurements of a recorded block."""
        recording = open_source(trace)
        return measure_recording(recording, self._settings[settings].stack(recording.metadata)).as_json()

    def _pinned(self, settings: int, trace: str, site: str) -> dict[str, Any]:
        """Returns the bytes that call sites pin at the end of a recorded block."""
        recording = open_source(trace)
        found = measure_pins(recording, self._settings[settings].stack(recording.metadata), [site])
        return {"pinned_bytes": found[site][0]}

    def _verdict(self, settings: int, name: str, trace: str) -> dict[str, Any]:
        """Judges a recorded test. Removes the recording; copies it first if its figures go into the baseline."""
        assert self._judge is not None
        try:
            verdict = self._judge.verdict(name, Path(trace), self._settings[settings])
            if self._updates and self._traces and verdict["state"] == "passed":
                self._traces.mkdir(parents=True, exist_ok=True)
                with new_file(self._traces / trace_name(name), force=True) as temporary:
                    shutil.copyfile(trace, temporary)
            return verdict
        finally:
            Path(trace).unlink()

    def _update_baseline(self, measured: dict[str, Any]) -> dict[str, Any]:
        """Writes the figures of these tests into the baseline; returns how many were new, changed and the same."""
        assert self._baseline is not None
        path = Path(self._baseline)
        before = read_baseline(path, BASELINE_ADVICE) if path.exists() else Baseline()
        cases = {name: Measured.model_validate(each) for name, each in measured.items()}
        write_baseline(path, before.with_cases(cases), force=True)
        now = read_baseline(path)  # with figures rounded as in the file
        new = len(cases.keys() - before.cases.keys())
        same = sum(before.cases.get(name) == now.cases[name] for name in cases)
        return {"new": new, "changed": len(cases) - new - same, "same": same}
