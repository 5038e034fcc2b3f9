"""Records tests while they run, and blocks of tests with the fixture."""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from replay.pytest_plugin import FIXTURE
from replay.pytest_plugin.worker_process import Companion, is_recording
from replay.support.errors import ReplayError

if TYPE_CHECKING:
    from types import TracebackType

    from replay.analysis.metrics import Summary
    from replay.pytest_plugin.session import Session


class RecordedTest:
    """Replaces `runtest` of one test: records and judges it."""

    def __init__(self, session: "Session", item: pytest.Item, layers: list[dict[str, Any]]) -> None:
        self._session, self._item, self._layers = session, item, layers
        self._runtest = item.runtest

    def __call__(self) -> None:
        if reason := self._session.obstacle:
            self._run_unrecorded(reason)
            return
        path = self._session.temporary_trace()
        try:
            number = self._session.number_of(self._layers)
            companion = self._session.companion
            companion.start_recording(path, self._item.nodeid)
        except ReplayError as mistake:
            pytest.fail(f"replay: {self._item.nodeid} cannot be recorded: {mistake}", pytrace=False)
        try:
            self._runtest()
        except BaseException:
            with suppress(ReplayError):  # the test's own exception is reported
                companion.drop_recording()
            raise
        try:
            companion.end_recording()
            if not companion.is_mine:  # the test forked, and this is the child
                return
            if getattr(self._item, "_excinfo", None):  # a failure of unittest, which is stored and not raised
                return
            verdict = companion.ask("verdict", settings=number, name=self._item.nodeid, trace=path)
        except ReplayError as mistake:
            pytest.fail(f"replay: {self._item.nodeid}: {mistake}", pytrace=False)
        self._report(verdict)

    def _run_unrecorded(self, reason: str) -> None:
        __tracebackhide__ = True
        self._session.outcomes[self._item.nodeid] = {"state": "not recorded", "reason": reason}
        warnings.warn(pytest.PytestWarning(f"replay: not recorded, so not judged: {reason}"), stacklevel=1)
        self._runtest()

    def _report(self, verdict: dict[str, Any]) -> None:
        """Stores the verdict, and fails the test if a rule failed or the baseline does not have the test."""
        self._session.outcomes[self._item.nodeid] = verdict
        properties = {"verdict": verdict["state"], "requested_bytes_peak": verdict["requested"], **verdict["figures"]}
        self._item.user_properties += [(f"replay.{name}", value) for name, value in properties.items()]
        if verdict["state"] == "failed":
            head = f"replay: {self._item.nodeid} is outside its memory limits, on {verdict['allocator']}:"
            pytest.fail("\n  ".join([head, *verdict["findings"], *verdict["causes"]]), pytrace=False)
        if verdict["state"] == "new":
            pytest.fail(f"replay: {self._item.nodeid} is not in the baseline; --replay-update adds it", pytrace=False)


class SizeClass(NamedTuple):
    """The requests of a recorded block in one domain and size class."""

    domain: str
    size: int
    """The largest size of the class: multiples of 16 up to 1,024 bytes, powers of two above."""
    blocks: int
    bytes: int
    leaked_blocks: int
    leaked_bytes: int


class RecordedBlock:
    """A block of a test that is recorded; has the results after the end of the block."""

    def __init__(self, recorder: "Allocations", trace: Path, layers: list[dict[str, Any]]) -> None:
        self.trace = trace
        """The recording: a trace that `replay run` and other commands read."""
        self._recorder, self._layers = recorder, layers
        self._answer: dict[str, Any] | None = None

    def __enter__(self) -> "RecordedBlock":
        self._number, self._companion = self._recorder.begin(self.trace, self._layers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: "TracebackType | None"
    ) -> None:
        if kind is not None:
            self._companion.drop_recording()
            return
        self._companion.end_recording()
        if self._companion.is_mine:  # not in a forked child: its parent could read the answer
            self._answer = self._companion.ask("measure", settings=self._number, trace=str(self.trace))

    @property
    def _results(self) -> dict[str, Any]:
        if self._answer is None:
            raise ReplayError("this block has no results: it has not ended yet, or an exception ended it")
        return self._answer

    @property
    def metrics(self) -> dict[str, int | float]:
        """The metrics of docs/metrics.md that depend on the allocator, and `leaked_blocks` and `leaked_bytes`."""
        return dict(self._results["figures"])

    @property
    def peak(self) -> int:
        """Peak of requested bytes."""
        return int(self._results["summary"]["requested_bytes_peak"])

    @property
    def resident_peak(self) -> int:
        """Peak of resident bytes."""
        return int(self._results["figures"]["resident_bytes_peak"])

    @property
    def arenas(self) -> int:
        """Number of pymalloc's arenas at the end of the block."""
        return int(self._results["figures"]["arenas_live"])

    @property
    def arenas_peak(self) -> int:
        """Peak of the number of pymalloc's arenas."""
        return int(self._results["figures"]["arenas_peak"])

    @property
    def leaked_blocks(self) -> int:
        """Number of memory blocks that were allocated in the block and are live at its end, after a collection."""
        return int(self._results["figures"]["leaked_blocks"])

    @property
    def leaked_bytes(self) -> int:
        """Requested bytes of the leaked blocks."""
        return int(self._results["figures"]["leaked_bytes"])

    def by_size_class(self) -> list[SizeClass]:
        """Returns the requests in the block by size class, the class with the most bytes first."""
        return sorted((SizeClass(*each) for each in self._results["classes"]), key=lambda each: -each.bytes)

    def pinned_bytes(self, site: str) -> int:
        """Returns the resident bytes that are released if all blocks of these call sites are gone, at the end of the
        block. `site` is a part of `function (file:line)`."""
        assert self._results, "raises ReplayError if there are none"
        if is_recording():
            raise ReplayError("pinned_bytes() simulates the recording again; call it after all recorded blocks")
        answer = self._companion.ask("pinned", settings=self._number, trace=str(self.trace), site=site)
        return int(answer["pinned_bytes"])

    @property
    def summary(self) -> "Summary":
        """The summary of the simulation. Imports the rest of replay into this process."""
        from replay.analysis.metrics import Summary

        return Summary.model_validate(self._results["summary"])

    def __repr__(self) -> str:
        if self._answer is None:
            return "<a block that is not recorded yet>"
        return (
            f"<peak {self.peak:,} bytes, resident {self.resident_peak:,}, arenas {self.arenas} of {self.arenas_peak}, "
            f"leaked {self.leaked_blocks:,} blocks of {self.leaked_bytes:,} bytes>"
        )


class Allocations:
    """The fixture: each call returns a context manager that records a block."""

    def __init__(self, session: "Session", test: str, folders: pytest.TempPathFactory) -> None:
        self._session, self._test, self._folders = session, test, folders
        self._folder: Path | None = None
        self._blocks = 0

    def __call__(self, *, allocator: str | None = None, set: Any = None, env: Any = None) -> RecordedBlock:
        """Returns a block to record. `allocator`, `set` and `env` are as in a marker."""
        options = {"allocator": allocator, "set": set, "env": env}
        if self._folder is None:
            self._folder = self._folders.mktemp("replay", numbered=True)
        self._blocks += 1
        layer = {name: value for name, value in options.items() if value is not None}
        return RecordedBlock(self, self._folder / f"block-{self._blocks}.parquet", [layer] if layer else [])

    def begin(self, trace: Path, layers: list[dict[str, Any]]) -> tuple[int, Companion]:
        """Starts recording; returns the number of the settings, and the worker process."""
        if reason := self._session.obstacle:
            if is_recording():
                raise ReplayError(
                    f"the whole test or a block around this one is already being recorded; {FIXTURE}() "
                    "records one block at a time, and not in a test that is recorded itself"
                )
            pytest.skip(f"replay: {reason}")
        number = self._session.number_of(layers)
        companion = self._session.companion
        companion.start_recording(str(trace), self._test)
        return number, companion
