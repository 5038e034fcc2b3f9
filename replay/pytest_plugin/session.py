"""The tests of a run that are recorded, and what came of them."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from replay.pytest_plugin import FIXTURE, MARK
from replay.pytest_plugin.worker_process import Companion, obstacle
from replay.support.errors import ReplayError

Outcome = dict[str, Any]
"""A recorded test as workers report it: `state` and `allocator`, `findings` and `causes`, `figures`, `requested` and
`measured`; or that its `state` is not recorded, and the `reason`."""


class Session:
    """One for each process of a run that has to do with recordings."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.outcomes: dict[str, Outcome] = {}
        """By test; of one that was run again, the last."""
        self.notes: list[str] = []
        """Sentences for the end of the run."""
        option = config.getoption
        self.file: str | None = self._path(option("replay_baseline"))
        self.updates: bool = option("replay_update")
        self.traces: str | None = self._path(option("replay_traces"))
        self.for_all: dict[str, Any] = {
            "limits": config.getini("replay_limits"),
            "tolerances": config.getini("replay_tolerances"),
            "allocator": config.getini("replay_allocator") or None,
        }
        self._companion: Companion | None = None
        self._numbers: dict[str, int] = {}
        self._folder: str | None = None
        if self.file and not self.updates and not Path(self.file).exists():
            raise pytest.UsageError(f"{self.file}: there is no baseline; --replay-update writes one")
        if self.traces and not self.updates and not Path(self.traces).is_dir():
            raise pytest.UsageError(f"{self.traces}: there is no such folder; with --replay-update it is filled")

    def _path(self, given: str | None) -> str | None:
        """Said on the command line, so relative to where that was typed."""
        return str(self.config.invocation_params.dir / given) if given else None

    @property
    def obstacle(self) -> str | None:
        """Why nothing can be recorded here."""
        return obstacle() if sys.platform == "linux" else "recording needs 64-bit Linux on x86-64"

    @property
    def companion(self) -> Companion:
        """The process beside this one; a fork gets its own."""
        if self._companion is None or not self._companion.is_mine:
            self._numbers.clear()
            options: dict[str, object] = {
                "baseline": self.file, "updates": self.updates, "traces": self.traces, "for_all": self.for_all,
            }  # fmt: skip
            self._companion = Companion(str(self.config.rootpath), options)
        return self._companion

    def choose(self, items: list[pytest.Item]) -> list[tuple[pytest.Item, list[dict[str, Any]]]]:
        """The tests to record, each with what its markers say; a wrong marker ends the run before it begins."""
        wishes = [(item, layers) for item in items if (layers := _layers(item)) is not None]
        if wishes and self.obstacle is None:
            self._settle(wishes)
        return wishes

    def _settle(self, wishes: list[tuple[pytest.Item, list[dict[str, Any]]]]) -> None:
        """Tells the process beside what is wished for, and who wished for what cannot be."""
        wishers: dict[str, pytest.Item] = {}
        for item, layers in wishes:
            wishers.setdefault(_key(item, layers), item)
        keys = [key for key in wishers if key not in self._numbers]
        try:
            answer = self.companion.ask("settle", wishes=[json.loads(key) for key in keys])
        except ReplayError as mistake:
            raise pytest.UsageError(str(mistake)) from None
        mistakes = {int(place): text for place, text in answer["mistakes"].items()}
        if mistakes:
            raise pytest.UsageError(
                "\n".join(
                    f"{wishers[keys[place]].nodeid}: @pytest.mark.{MARK}: {text}" for place, text in mistakes.items()
                )
            )
        self._numbers.update(zip(keys, answer["numbers"], strict=True))

    def number_of(self, layers: list[dict[str, Any]]) -> int:
        """By which the process beside knows a wish."""
        key = json.dumps(layers)
        companion = self.companion
        if key not in self._numbers:
            answer = companion.ask("settle", wishes=[layers])
            for mistake in answer["mistakes"].values():
                raise ReplayError(mistake)
            self._numbers[key] = answer["numbers"][0]
        return self._numbers[key]

    def passing_trace(self) -> str:
        """Where a recording is until it is judged."""
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="pytest-replay-")
        return f"{self._folder}/test.parquet"

    def finish(self, run: pytest.Session) -> None:
        """All tests were run: a worker hands over what they came to, and who has it of all writes the baseline."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput[MARK] = self.outcomes
        elif self.updates:
            self._write_baseline(run)

        elif self.file and not self.outcomes:
            self.notes.append(f"no test was recorded, so none was compared with {self.file}")

    def _write_baseline(self, run: pytest.Session) -> None:
        measured = {test: each["measured"] for test, each in self.outcomes.items() if each["state"] == "passed"}
        if not measured:
            self.notes.append(f"no recorded test passed, so nothing was written to {self.file}")
            return
        try:
            counts = self.companion.ask("take_in", measured=measured)
        except ReplayError as mistake:
            self.notes.append(f"the baseline is not written: {mistake}")
            run.exitstatus = pytest.ExitCode.USAGE_ERROR
            return
        told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        self.notes.append(f"{self.file}: {told}")


def _layers(item: pytest.Item) -> list[dict[str, Any]] | None:
    """What the markers of a test say, the nearest last; None where it is not to be recorded."""
    markers = list(item.iter_markers(MARK))
    for marker in markers:
        if marker.args:
            raise pytest.UsageError(
                f"{item.nodeid}: @pytest.mark.{MARK}: write arguments with their names, like max_blowup=1.4"
            )
    records_blocks = FIXTURE in getattr(item, "fixturenames", ())
    if markers and records_blocks and markers[0].kwargs.get("enabled", True):
        raise pytest.UsageError(
            f"{item.nodeid}: @pytest.mark.{MARK}: the test records blocks by the fixture {FIXTURE}, "
            "so it cannot be recorded as a whole; take one of the two"
        )
    if records_blocks or (markers and markers[0].kwargs.get("enabled", True) is False):
        return None
    return [dict(marker.kwargs) for marker in reversed(markers)]


def _key(item: pytest.Item, layers: list[dict[str, Any]]) -> str:
    try:
        return json.dumps(layers)
    except (TypeError, ValueError):
        raise pytest.UsageError(
            f"{item.nodeid}: @pytest.mark.{MARK}: arguments are text, numbers, lists and dictionaries"
        ) from None
