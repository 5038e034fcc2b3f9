"""A test that is recorded while it runs, and blocks that a test records itself."""

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
    """Stands in for `runtest` of one test."""

    def __init__(self, session: "Session", item: pytest.Item, layers: list[dict[str, Any]]) -> None:
        self._session, self._item, self._layers = session, item, layers
        self._runtest = item.runtest

    def __call__(self) -> None:
        if reason := self._session.obstacle:
            self._go_unrecorded(reason)
            return
        path = self._session.passing_trace()
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
            verdict = companion.ask("verdict", wish=number, name=self._item.nodeid, trace=path)
        except ReplayError as mistake:
            pytest.fail(f"replay: {self._item.nodeid}: {mistake}", pytrace=False)
        self._report(verdict)

    def _go_unrecorded(self, reason: str) -> None:
        __tracebackhide__ = True
        self._session.outcomes[self._item.nodeid] = {"state": "not recorded", "reason": reason}
        warnings.warn(pytest.PytestWarning(f"replay: not recorded, so not judged: {reason}"), stacklevel=1)
        self._runtest()

    def _report(self, verdict: dict[str, Any]) -> None:
        """Keeps what the test came to, and fails it where it must."""
        self._session.outcomes[self._item.nodeid] = verdict
        told = {"verdict": verdict["state"], "requested_bytes_peak": verdict["requested"], **verdict["figures"]}
        self._item.user_properties += [(f"replay.{name}", value) for name, value in told.items()]
        if verdict["state"] == "failed":
            head = f"replay: {self._item.nodeid} is not within what it may take, on {verdict['allocator']}:"
            pytest.fail("\n  ".join([head, *verdict["findings"], *verdict["causes"]]), pytrace=False)
        if verdict["state"] == "new":
            advice = "--replay-update takes it in"
            pytest.fail(f"replay: {self._item.nodeid} has no baseline yet; {advice}", pytrace=False)


class SizeClass(NamedTuple):
    """The requests of a block of a test in one domain and size class."""

    domain: str
    size: int
    """The largest of the class: multiples of 16 up to 1,024 bytes, powers of two above."""
    blocks: int
    bytes: int
    leaked_blocks: int
    leaked_bytes: int


class Seen:
    """What a recorded block came to, once it is left."""

    def __init__(self, recorder: "Allocations", trace: Path, layers: list[dict[str, Any]]) -> None:
        self.trace = trace
        """The recording: a trace that `replay run` and all others read."""
        self._recorder, self._layers = recorder, layers
        self._answer: dict[str, Any] | None = None

    def __enter__(self) -> "Seen":
        self._number, self._companion = self._recorder.begin(self.trace, self._layers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: "TracebackType | None"
    ) -> None:
        if kind is not None:
            self._companion.drop_recording()
            return
        self._companion.end_recording()
        if self._companion.is_mine:  # not in a forked child, whose answer its parent might read
            self._answer = self._companion.ask("look", wish=self._number, trace=str(self.trace))

    @property
    def _told(self) -> dict[str, Any]:
        if self._answer is None:
            raise ReplayError("nothing is known of this block: it is not left yet, or was left by an exception")
        return self._answer

    @property
    def metrics(self) -> dict[str, int | float]:
        """All of docs/metrics.md that an allocator can change, and `leaked_blocks` and `leaked_bytes`."""
        return dict(self._told["figures"])

    @property
    def peak(self) -> int:
        """The peak of requested bytes."""
        return int(self._told["summary"]["requested_bytes_peak"])

    @property
    def resident_peak(self) -> int:
        """Bytes."""
        return int(self._told["figures"]["resident_bytes_peak"])

    @property
    def arenas(self) -> int:
        """pymalloc's, at the end of the block."""
        return int(self._told["figures"]["arenas_live"])

    @property
    def arenas_peak(self) -> int:
        """The most at one moment."""
        return int(self._told["figures"]["arenas_peak"])

    @property
    def leaked_blocks(self) -> int:
        """Blocks of memory allocated in the block and still live at its end, after a garbage collection."""
        return int(self._told["figures"]["leaked_blocks"])

    @property
    def leaked_bytes(self) -> int:
        """The same in requested bytes."""
        return int(self._told["figures"]["leaked_bytes"])

    def by_size_class(self) -> list[SizeClass]:
        """The requests in the block, the most bytes first."""
        return sorted((SizeClass(*each) for each in self._told["classes"]), key=lambda each: -each.bytes)

    @property
    def summary(self) -> "Summary":
        """All in one; imports the rest of replay into this process."""
        from replay.analysis.metrics import Summary

        return Summary.model_validate(self._told["summary"])

    def __repr__(self) -> str:
        if self._answer is None:
            return "<a block that is not recorded yet>"
        return (
            f"<peak {self.peak:,} bytes, resident {self.resident_peak:,}, arenas {self.arenas} of {self.arenas_peak}, "
            f"leaked {self.leaked_blocks:,} blocks of {self.leaked_bytes:,} bytes>"
        )


class Allocations:
    """The fixture: called, it records the block that follows; a test may do so again and again."""

    def __init__(self, session: "Session", test: str, folders: pytest.TempPathFactory) -> None:
        self._session, self._test, self._folders = session, test, folders
        self._folder: Path | None = None
        self._blocks = 0

    def __call__(self, *, allocator: str | None = None, set: Any = None, env: Any = None) -> Seen:
        """A block to record, simulated on `allocator` with keys `set` and `env` as in a marker."""
        given = {"allocator": allocator, "set": set, "env": env}
        if self._folder is None:
            self._folder = self._folders.mktemp("replay", numbered=True)
        self._blocks += 1
        layer = {name: value for name, value in given.items() if value is not None}
        return Seen(self, self._folder / f"block-{self._blocks}.parquet", [layer] if layer else [])

    def begin(self, trace: Path, layers: list[dict[str, Any]]) -> tuple[int, Companion]:
        """Records from here on."""
        if reason := self._session.obstacle:
            if is_recording():
                raise ReplayError(
                    f"this is being recorded already, as a whole test or as a block around this one; {FIXTURE}() "
                    "records one block at a time, and no test that is recorded itself"
                )
            pytest.skip(f"replay: {reason}")
        number = self._session.number_of(layers)
        companion = self._session.companion
        companion.start_recording(str(trace), self._test)
        return number, companion
