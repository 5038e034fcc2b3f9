"""The recorded tests of a run, and their results."""

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
"""The verdict of a test, as JSON values: `state`, `allocator`, `findings`, `causes`, `figures`, `requested` and
`measured`. A test that was not recorded has only `state` and `reason`."""


class Session:
    """The plugin's state in a process that runs or collects tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.outcomes: dict[str, Outcome] = {}
        """By test; the last outcome of a test that ran several times."""
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
            raise pytest.UsageError(f"{self.file}: the baseline does not exist; --replay-update writes it")
        if self.traces and not self.updates and not Path(self.traces).is_dir():
            raise pytest.UsageError(f"{self.traces}: the folder does not exist; --replay-update writes it")

    def _path(self, path: str | None) -> str | None:
        """Returns a path of the command line, which is relative to the folder where pytest was started."""
        return str(self.config.invocation_params.dir / path) if path else None

    @property
    def obstacle(self) -> str | None:
        """Why this process cannot record tests; None if it can."""
        return obstacle() if sys.platform == "linux" else "recording needs 64-bit Linux on x86-64"

    @property
    def companion(self) -> Companion:
        """The worker process of this process. A forked child gets a worker of its own."""
        if self._companion is None or not self._companion.is_mine:
            self._numbers.clear()
            options: dict[str, object] = {
                "baseline": self.file, "updates": self.updates, "traces": self.traces, "for_all": self.for_all,
            }  # fmt: skip
            self._companion = Companion(str(self.config.rootpath), options)
        return self._companion

    def choose(self, items: list[pytest.Item]) -> list[tuple[pytest.Item, list[dict[str, Any]]]]:
        """Returns the tests to record, each with its layers. Raises UsageError for an invalid marker."""
        chosen = [(item, layers) for item in items if (layers := _layers(item)) is not None]
        if chosen and self.obstacle is None:
            self._register(chosen)
        return chosen

    def _register(self, chosen: list[tuple[pytest.Item, list[dict[str, Any]]]]) -> None:
        """Sends the settings of the tests to the worker; raises UsageError with the tests that have invalid ones."""
        items_by_key: dict[str, pytest.Item] = {}
        for item, layers in chosen:
            items_by_key.setdefault(_key(item, layers), item)
        keys = [key for key in items_by_key if key not in self._numbers]
        try:
            answer = self.companion.ask("register", settings=[json.loads(key) for key in keys])
        except ReplayError as mistake:
            raise pytest.UsageError(str(mistake)) from None
        mistakes = {int(index): text for index, text in answer["mistakes"].items()}
        if mistakes:
            raise pytest.UsageError(
                "\n".join(
                    f"{items_by_key[keys[index]].nodeid}: @pytest.mark.{MARK}: {text}"
                    for index, text in mistakes.items()
                )
            )
        self._numbers.update(zip(keys, answer["numbers"], strict=True))

    def number_of(self, layers: list[dict[str, Any]]) -> int:
        """Returns the number under which the worker stores the settings of these layers."""
        key = json.dumps(layers)
        companion = self.companion
        if key not in self._numbers:
            answer = companion.ask("register", settings=[layers])
            for mistake in answer["mistakes"].values():
                raise ReplayError(mistake)
            self._numbers[key] = answer["numbers"][0]
        return self._numbers[key]

    def temporary_trace(self) -> str:
        """Returns the path of a recording until it is judged."""
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="pytest-replay-")
        return f"{self._folder}/test.parquet"

    def finish(self, run: pytest.Session) -> None:
        """Called after all tests: a worker of pytest-xdist sends its outcomes, the main process writes the baseline."""
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
            counts = self.companion.ask("update_baseline", measured=measured)
        except ReplayError as mistake:
            self.notes.append(f"the baseline was not written: {mistake}")
            run.exitstatus = pytest.ExitCode.USAGE_ERROR
            return
        counts_text = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        self.notes.append(f"{self.file}: {counts_text}")


def _layers(item: pytest.Item) -> list[dict[str, Any]] | None:
    """Returns the arguments of a test's markers, the nearest last; None if the test is not to be recorded."""
    markers = list(item.iter_markers(MARK))
    for marker in markers:
        if marker.args:
            raise pytest.UsageError(
                f"{item.nodeid}: @pytest.mark.{MARK}: write arguments with their names, like max_blowup=1.4"
            )
    records_blocks = FIXTURE in getattr(item, "fixturenames", ())
    if markers and records_blocks and markers[0].kwargs.get("enabled", True):
        raise pytest.UsageError(
            f"{item.nodeid}: @pytest.mark.{MARK}: the test records blocks with the fixture {FIXTURE}, "
            "so it cannot be recorded as a whole; use one of the two"
        )
    if records_blocks or (markers and markers[0].kwargs.get("enabled", True) is False):
        return None
    return [dict(marker.kwargs) for marker in reversed(markers)]


def _key(item: pytest.Item, layers: list[dict[str, Any]]) -> str:
    try:
        return json.dumps(layers)
    except (TypeError, ValueError):
        raise pytest.UsageError(
            f"{item.nodeid}: @pytest.mark.{MARK}: arguments must be strings, numbers, lists or dictionaries"
        ) from None
