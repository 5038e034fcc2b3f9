"""Snapshots: the state of the models at chosen moments, passed to a sink while the simulation continues.

A snapshot has the changes since the one before it, of the same process. `SpanTable` applies them, so that a reader has
all spans of any moment while only changes are stored.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from replay.allocators import SPAN, SpanChanges, TopRule, differing, linux, shown_fields
from replay.jit.arrays import concatenated
from replay.simulation.clock import Call, Slice, calls_every
from replay.simulation.live_blocks import Allocations, LiveBlocks
from replay.simulation.result import RunResult
from replay.simulation.simulator import Simulator
from replay.support.errors import ReplayError
from replay.support.names import nearest
from replay.trace import Metadata

PEAK, END = "peak", "end"

Moments = int | Sequence[int | str]
"""An interval in nanoseconds; or moments: nanoseconds since the trace's first event, PEAK (of resident memory), END,
and names of phases, each of whose marks is a moment."""


class Changes(NamedTuple):
    """How the memory of a process changed between two snapshots."""

    gone: np.ndarray
    """Addresses of spans that no longer exist."""
    spans: np.ndarray
    """Rows of SPAN that are new, or that replace the span at their address; their `resident_bytes` are 0."""
    toggled_pages: np.ndarray
    """Addresses of pages that became resident or ceased to be."""


@dataclass(frozen=True)
class Snapshot:
    """The state of one process at one moment, as changes since its previous snapshot, or since it began."""

    label: str
    """PEAK, END or the phase that begins; empty for a time."""
    time_ns: int
    """Since the trace's first event."""
    rows: int
    """Rows of the trace that were simulated before."""
    process: int
    """The process's number; 0 unless the trace has several."""
    counters: np.record
    """Levels and counters of this process: the fields of `RunResult.samples` that its timeline has."""
    page_bytes: int
    changes: Changes
    spans: Callable[[], np.ndarray]
    """Returns all rows of SPAN, by rising address; to be called before the sink returns."""
    blocks: Callable[[], np.ndarray]
    """Returns the live blocks: rows of LIVE_BLOCK, by rising address; to be called before the sink returns. It needs
    `with_blocks` of the run."""
    live_blocks: Callable[..., LiveBlocks]
    """Returns columns of the live blocks, by rising number; the arguments are names of fields, and none means all."""
    types: Callable[[], np.ndarray]
    """Returns the type of each of these, or nothing if events have no types. A type is NO_TYPE until the run reaches
    the free of the block, or the end of the program. Only the latest array is filled in."""
    resident_pages: Callable[[], np.ndarray]
    """Returns the addresses of the resident pages, in rising order; to be called before the sink returns."""
    kept_arenas: int
    """Number of arenas without live blocks that the small role does not release."""
    top_rule: Callable[[int], TopRule]
    """Returns when libc releases the free end of the heap in a region; to be called before the sink returns."""
    trimmable_bytes: Callable[[], int]
    """Returns the resident bytes that malloc_trim(0) would release; to be called before the sink returns."""


Sink = Callable[[Snapshot], None]


class SpanTracker:
    """Finds how the spans of one simulated process changed from snapshot to snapshot."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}
        self._marks: list[np.ndarray] = []

    def changes(self, simulator: Simulator) -> Changes:
        """Returns the changes since the last call, and remembers the present for the next one."""
        if simulator.has_all_spans:
            found = [self._of_model(simulator, model, state) for model, state in simulator.models()]
        else:
            spans = simulator.spans()
            spans["resident_bytes"] = 0
            found = [self._compared("", spans)]
        self._marks, toggled = linux.toggled_pages(simulator.stack.linux, self._marks)  # type: ignore[arg-type]
        return Changes(
            np.concatenate([each.gone for each in found]), concatenated([each.rows for each in found]), toggled
        )

    def _of_model(self, simulator: Simulator, model: ModuleType, state: Any) -> SpanChanges:
        name = model.__name__
        if not hasattr(model, "span_changes"):
            return self._compared(name, model.spans(state, simulator.stack))
        found: SpanChanges = model.span_changes(state, simulator.stack, self._seen.get(name))
        self._seen[name] = found.seen
        return found

    def _compared(self, name: str, spans: np.ndarray) -> SpanChanges:
        found = differing(self._seen.get(name, np.zeros(0, SPAN)), spans)
        self._seen[name] = found.seen
        return found


class SpanTable:
    """All spans of one process at the moment of the snapshot that was applied last."""

    def __init__(self) -> None:
        self._rows = np.zeros(0, SPAN)
        self._pages = np.zeros(0, np.int64)

    def apply(self, changes: Changes) -> None:
        """Applies the changes of the next snapshot."""
        rows, new = self._rows, changes.spans[np.argsort(changes.spans["address"])]
        kept = np.ones(len(rows), bool)
        old = np.concatenate([changes.gone, new["address"]])
        places = np.searchsorted(rows["address"], old)
        kept[places[np.append(rows["address"], -1)[places] == old]] = False
        rows = rows[kept]
        self._rows = np.insert(rows, np.searchsorted(rows["address"], new["address"]), new)
        self._pages = np.setxor1d(self._pages, changes.toggled_pages, assume_unique=True)

    def spans(self, page_bytes: int) -> np.ndarray:
        """Rows of SPAN, by rising address."""
        spans = self._rows.copy()
        ends = spans["address"] + spans["bytes"]
        spans["resident_bytes"] = linux.resident_bytes(self._pages, page_bytes, spans["address"], ends)
        return spans


def _shown(counters: np.ndarray) -> np.ndarray:
    """Returns a copy of the counters without the fields that only the simulator uses."""
    names = shown_fields(counters.dtype)
    shown = np.recarray(counters.shape, [(name, counters.dtype[name]) for name in names])
    for name in names:
        shown[name] = counters[name]
    return shown


def joined(changes: Sequence[Changes]) -> Changes:
    """Returns the changes of several consecutive snapshots as those of one."""
    spans = concatenated([rows for each in changes for rows in (_without_bytes(each.gone), each.spans)])
    _, places = np.unique(spans["address"][::-1], return_index=True)
    latest = spans[::-1][places]
    is_gone = latest["bytes"] == 0
    pages, times = np.unique(np.concatenate([each.toggled_pages for each in changes]), return_counts=True)
    return Changes(latest["address"][is_gone], latest[~is_gone], pages[times % 2 == 1])


def _without_bytes(addresses: np.ndarray) -> np.ndarray:
    """Returns rows of SPAN with 0 bytes, for spans that no longer exist."""
    rows = np.zeros(len(addresses), SPAN)
    rows["address"] = addresses
    return rows


class Snapshots:
    """The moments of the snapshots of one run, and the sink that gets them."""

    def __init__(self, moments: Moments, sink: Sink | None, metadata: Metadata, *, with_blocks: bool = False) -> None:
        _check(moments, sink, metadata.phases)
        self._allocations = Allocations() if with_blocks else None
        listed = () if isinstance(moments, int) else moments
        self._sink, self._begin_ns = sink, 0
        self._every_ns = moments if isinstance(moments, int) else None
        self._times_ns = sorted(each for each in listed if not isinstance(each, str))
        names = {each for each in listed if isinstance(each, str)}
        self._wants_peak, self._wants_end = PEAK in names, END in names
        self.phases = frozenset(names - {PEAK, END})
        self._met: set[str] = set()
        """Labels of snapshots that were taken."""
        self._trackers: dict[int, SpanTracker] = {}
        self._simulators: Sequence[Simulator] = ()

    @property
    def needs_first_run(self) -> bool:
        """Whether a moment is known only after another run: the peak."""
        return self._wants_peak

    def intervals(self) -> dict[str, int]:
        """Returns the intervals by their name, for `refuse_too_many`."""
        return {"a snapshot": self._every_ns} if self._every_ns else {}

    def calls(
        self, begin_ns: int, simulators: Sequence[Simulator], first_run: RunResult | None
    ) -> list[Iterable[Call]]:
        """Returns the calls for snapshots without a mark. `first_run` has the moments that need another run."""
        self._begin_ns, self._simulators = begin_ns, simulators
        if self._allocations and len(simulators) > 1:
            raise ReplayError("live blocks are not supported for a trace of several processes")
        found: list[Iterable[Call]] = [[self._call(begin_ns + each) for each in self._times_ns]]
        if self._every_ns:
            found.append(calls_every(begin_ns, self._every_ns, self._taking(""), also_at_end=True))
        if first_run and self._wants_peak:
            row = int(first_run.at_peak.row) + 1 if first_run.at_peak.resident_bytes_peak else 0
            found.append([self._call(begin_ns + first_run.at_peak_time_ns, PEAK, row)])
        return found

    def follow(self, part: Slice) -> None:
        """Remembers the allocations of a slice, if snapshots have blocks."""
        if self._allocations:
            self._allocations.feed(part)

    def _live_blocks(self, simulator: Simulator, *fields: str) -> LiveBlocks:
        if self._allocations is None:
            raise ReplayError("a snapshot has blocks only with `with_blocks=True`")
        return simulator.live_blocks(self._allocations.table, fields)

    def _records(self, simulator: Simulator) -> np.ndarray:
        return self._live_blocks(simulator).records()

    def _types(self, simulator: Simulator) -> np.ndarray:
        if self._allocations is None or not self._allocations.has_types:
            return np.zeros(0, np.uint32)
        return self._allocations.types(self._live_blocks(simulator, "block").block)

    def end_at(self, row: int, time_ns: int) -> None:
        """Takes the snapshot at the end if one is wanted, at a mark of the end. Of several marks, the last counts."""
        if self._wants_end:
            self.take(END, row, time_ns)

    def take(self, label: str, row: int, time_ns: int) -> None:
        """Passes a snapshot of each process to the sink, before `row` of the trace.

        Of several processes, models that see time are shown as after their latest event: to wake them now would change
        the moments at which levels are added up.
        """
        assert self._sink is not None
        self._met.add(label)
        if len(self._simulators) == 1:
            self._simulators[0].reach(row, time_ns)
        for process, simulator in enumerate(self._simulators):
            tracker = self._trackers.setdefault(process, SpanTracker())
            self._sink(
                Snapshot(
                    label=label,
                    time_ns=time_ns - self._begin_ns,
                    rows=row,
                    process=process,
                    counters=_shown(simulator.counters())[0],
                    page_bytes=simulator.page_bytes,
                    changes=tracker.changes(simulator),
                    spans=simulator.spans,
                    blocks=partial(self._records, simulator),
                    live_blocks=partial(self._live_blocks, simulator),
                    types=partial(self._types, simulator),
                    resident_pages=simulator.resident_pages,
                    kept_arenas=simulator.kept_arenas(),
                    top_rule=simulator.top_rule,
                    trimmable_bytes=simulator.trimmable_bytes,
                )
            )

    def finish(self, rows: int, time_ns: int, missed: Call | None) -> None:
        """Takes the snapshot at the end. Raises ReplayError if a moment is after the end, or if a phase never began."""
        if self._wants_end and END not in self._met:
            self.take(END, rows, time_ns)
        if missed and self._times_ns and self._times_ns[-1] > time_ns - self._begin_ns:
            late_ns, end_ns = self._times_ns[-1], time_ns - self._begin_ns
            raise ReplayError(f"no snapshot at {late_ns} ns: the trace ends {end_ns} ns after its first event")
        if unmet := sorted(self.phases - self._met):
            raise ReplayError(f"no snapshot at {unmet[0]!r}: the trace has no mark of such a phase")

    def _call(self, time_ns: int, label: str = "", row: int | None = None) -> Call:
        return Call(time_ns, self._taking(label), row, also_at_end=True)

    def _taking(self, label: str) -> Callable[[int, int], None]:
        return lambda row, time_ns: self.take(label, row, time_ns)


def _check(moments: Moments, sink: Sink | None, phases: tuple[str, ...]) -> None:
    """Raises ReplayError for invalid moments."""
    if isinstance(moments, str):
        raise ReplayError(f"the moments of snapshots are a list, such as [{moments!r}]")
    if isinstance(moments, int):
        if moments <= 0:
            raise ReplayError(f"the interval between snapshots must be at least 1 ns, not {moments}")
    else:
        if early := [each for each in moments if not isinstance(each, str) and each < 0]:
            raise ReplayError(f"no snapshot at {min(early)} ns: the trace begins at 0 ns")
        names = [each for each in moments if isinstance(each, str) and each not in (PEAK, END, *phases)]
        if names and phases:  # some formats learn the names of phases only while they are read
            known = [PEAK, END, *phases]
            raise ReplayError(f"no snapshot at {names[0]!r}: the trace has no such phase; {nearest(names[0], known)}")
    if moments and sink is None:
        raise ReplayError("snapshots need a sink that takes them")
