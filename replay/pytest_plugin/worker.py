"""Runs beside the tests: writes, simulates and judges their recordings. `worker_process` starts it and sends requests.

Requests and answers are lines of JSON, one answer a request; `record` is answered a second time once it is over.
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
from replay.pytest_plugin.arguments import Wish, parse_wish
from replay.pytest_plugin.judging import UPDATE, Judge, trace_name
from replay.pytest_plugin.measuring import look
from replay.recorder.detached import leave_terminal
from replay.recorder.ring import Ring
from replay.recorder.writer import Writer
from replay.sources import open_source
from replay.support.atomic_files import new_file
from replay.support.errors import ReplayError

RETAKE = f"remove it, and take the present figures of all tests by {UPDATE}"


def main() -> None:
    """Answers until the tests are over or their process has ended."""
    request = json.loads(sys.argv[-1])
    leave_terminal()
    os.chdir(request["folder"])
    Beside(request).serve()


class Beside:
    def __init__(self, request: dict[str, Any]) -> None:
        self._ring_file, self._sites_every = request["ring"], request["sites_every"]
        self._program = os.pidfd_open(request["program"])
        self._requests = request["requests"]
        self._answers = os.fdopen(request["answers"], "w")
        self._baseline, self._updates = request["baseline"], request["updates"]
        self._traces = Path(request["traces"]) if request["traces"] else None
        self._for_all: dict[str, Any] = request["for_all"]
        self._wishes: list[Wish] = []
        self._judge: Judge | None = None
        self._asked = 0

    def serve(self) -> None:
        for line in self._lines():
            request = json.loads(line)
            self._asked = request.pop("number")
            try:
                answer = getattr(self, f"_{request.pop('do')}")(**request)
            except (ReplayError, OSError) as error:
                answer = {"error": str(error)}
            except Exception:  # of any kind: the tests' process reports it
                answer = {"bug": traceback.format_exc()}
            self._say(answer)

    def _say(self, content: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):
            self._answers.write(json.dumps({"number": self._asked, **content}) + "\n")
            self._answers.flush()

    def _lines(self) -> Iterator[bytes]:
        """Requests as they come. A forked child can hold the pipe open, so the process itself is watched too."""
        rest = b""
        while True:
            ready = select.select([self._requests, self._program], [], [])[0]
            piece = os.read(self._requests, 1 << 16) if self._requests in ready else b""
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines

    def _settle(self, wishes: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """Takes what tests wish for, each as the layers of its markers; tells what is wrong with each, by its place.

        What is wrong with options of all tests is told of no test.
        """
        parse_wish(self._for_all, [])
        if self._judge is None:
            self._judge = self._make_judge()
        mistakes, numbers = {}, []
        for place, layers in enumerate(wishes):
            try:
                self._wishes.append(parse_wish(self._for_all, layers))
                numbers.append(len(self._wishes) - 1)
            except ReplayError as mistake:
                mistakes[str(place)] = str(mistake)
        return {"mistakes": mistakes, "numbers": numbers}

    def _make_judge(self) -> Judge:
        path = Path(self._baseline) if self._baseline else None
        if path is None or (self._updates and not path.exists()):
            return Judge(None, None)
        baseline = read_baseline(path, RETAKE)
        return Judge(None, None) if self._updates else Judge(baseline, self._traces)

    def _record(self, path: str, command: list[str], apart: list[int]) -> dict[str, Any]:
        ring = Ring(self._ring_file, self._sites_every)
        writer = Writer(ring, Path(path), command, addresses=False, force=True, apart=apart)
        self._say({"writer": os.getpid()})
        writer.run(lambda: ring.ended or bool(select.select([self._program], [], [], 0)[0]))
        return asdict(writer.finish())

    def _look(self, wish: int, trace: str) -> dict[str, Any]:
        """What a recorded block came to."""
        recording = open_source(trace)
        return look(recording, self._wishes[wish].stack(recording.metadata)).as_json()

    def _verdict(self, wish: int, name: str, trace: str) -> dict[str, Any]:
        """A recorded test, judged; its recording goes, or is kept beside the baseline that it goes into."""
        assert self._judge is not None
        try:
            verdict = self._judge.verdict(name, Path(trace), self._wishes[wish])
            if self._updates and self._traces and verdict["state"] == "passed":
                self._traces.mkdir(parents=True, exist_ok=True)
                with new_file(self._traces / trace_name(name), force=True) as temporary:
                    shutil.copyfile(trace, temporary)
            return verdict
        finally:
            Path(trace).unlink()

    def _take_in(self, measured: dict[str, Any]) -> dict[str, Any]:
        """Writes the baseline with these tests in it, and keeps those of others; returns how many were new."""
        assert self._baseline is not None
        path = Path(self._baseline)
        before = read_baseline(path, RETAKE) if path.exists() else Baseline()
        cases = {name: Measured.model_validate(each) for name, each in measured.items()}
        write_baseline(path, before.with_cases(cases), force=True)
        now = read_baseline(path)  # figures as they are written
        new = len(cases.keys() - before.cases.keys())
        same = sum(before.cases.get(name) == now.cases[name] for name in cases)
        return {"new": new, "changed": len(cases) - new - same, "same": same}
