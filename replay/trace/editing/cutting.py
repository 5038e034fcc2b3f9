"""Cuts a piece out of a trace: a time range, a phase, or the intersection of both.

The piece starts with a malloc of each block that is live at its start, with its size at that moment, in the order of
allocation; or all events of these blocks are dropped. Marks of the phases at that moment follow, one for each process.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from replay.support.errors import ReplayError
from replay.support.limits import MAX_SPAN
from replay.trace import Events, Op, Trace, joined
from replay.trace.editing import EditedTrace, KeyedEvents, edited, keyed
from replay.trace.editing.live_blocks import LiveBlocks
from replay.trace.editing.phases import NO_PHASE, Phases
from replay.trace.editing.selecting import Selection


@dataclass(frozen=True)
class Piece:
    """The part of a trace to keep. Times count from the first event of the trace."""

    from_ns: int = 0
    to_ns: int = MAX_SPAN
    """End of the piece, exclusive."""
    phase: str | None = None
    """Name of a phase: from its first mark to the next mark of another phase in the same process."""
    earlier: bool = True
    """Whether blocks that are live at the start of the piece are allocated there; else they are dropped."""


def cut(trace: Trace, piece: Piece, command: str) -> EditedTrace:
    """Returns a piece of a trace. Times of events do not change."""
    return EditedTrace(lambda: _cut(trace, piece), lambda: edited(trace.metadata, command))


def _cut(trace: Trace, piece: Piece) -> Iterator[KeyedEvents]:
    window, live_blocks, selection = _Window(trace, piece), LiveBlocks(trace), Selection()
    started = False
    for events in trace.batches():
        start, end = window.within(events)
        if not started:
            live_blocks.follow(events.where(slice(0, start)))
        if start < end and not started:
            started = True
            earlier = live_blocks if piece.earlier else LiveBlocks(trace)
            yield keyed(_opening(earlier, events, start, window.phases_before))
        if start < end:
            inside = events.where(slice(start, end))
            if not piece.earlier:
                inside = inside.where(selection.keep(inside, np.ones(inside.rows, bool)))
            yield keyed(inside)
        if window.over:
            break
    if not started:
        if piece.phase is not None and not window.has_begun:
            raise window.phases.unknown_phase(piece.phase)
        raise ReplayError("this piece of the trace has no events; `replay trace info` shows the duration of the trace")


def _opening(live_blocks: LiveBlocks, events: Events, row: int, phases: dict[int, int]) -> Events:
    """Returns the events before the first row of the piece: allocations of live blocks, and a mark for each of the
    `phases`, which are by thread."""
    time_ns = int(events.time_ns[row])
    allocations = live_blocks.events(Op.MALLOC, time_ns)
    count = len(phases)
    marks = Events(
        time_ns=np.full(count, time_ns, np.int64),
        thread=np.array([*phases], np.uint32),
        op=np.full(count, int(Op.MARK), np.uint8),
        domain=np.zeros(count, np.uint8),
        block=np.zeros(count, np.uint32),
        size=np.array([*phases.values()], np.int64),
    )
    return joined([allocations, marks, events.where(slice(0, 0))])  # the last one adds optional columns


class _Window:
    """Finds the rows of a piece, batch by batch."""

    def __init__(self, trace: Trace, piece: Piece) -> None:
        self._piece = piece
        self._begin_ns: int | None = None
        self.phases = Phases(trace)
        self.has_begun = piece.phase is None
        """Whether the phase of the piece has begun."""
        self.over = False
        """Whether all rows of the piece were found."""
        self.phases_before: dict[int, int] = {}
        """The phase of each process before the first row of the piece, by a thread of the process. A process whose mark
        is the first row of the piece is left out."""
        self._threads = [process.threads for process in trace.metadata.processes]
        self._owner = -1
        """The process whose phase the piece is; -1 before the phase has begun."""

    def within(self, events: Events) -> tuple[int, int]:
        """Returns the rows of these events that are in the piece: the first one, and the end (exclusive)."""
        if not events.rows:
            return 0, 0
        if self._begin_ns is None:
            self._begin_ns = int(events.time_ns[0])
        times = [self._begin_ns + self._piece.from_ns, self._begin_ns + self._piece.to_ns]
        start, end = (int(row) for row in np.searchsorted(events.time_ns, times))
        self.over = end < events.rows
        before = self.phases.current.copy()
        in_force, owner = self.phases.in_force(events), self.phases.owners(events)
        if self._piece.phase is not None:
            start, end = self._within_phase(in_force, owner, start, end)
        if start < end:
            self._note_phases(events, in_force, owner, start, before)
        return start, end

    def _note_phases(
        self, events: Events, in_force: np.ndarray, owner: np.ndarray, start: int, before: np.ndarray
    ) -> None:
        starts_with_mark = events.op[start] == Op.MARK and events.size[start] == in_force[start]
        before[owner[:start]] = in_force[:start]  # of several rows of a process, the last one is stored
        self.phases_before = {}
        for process, phase in enumerate(before.tolist()):
            if phase != NO_PHASE and not (starts_with_mark and process == owner[start]):
                thread = events.thread[start] if process == owner[start] else self._threads[process][0]
                self.phases_before[int(thread)] = phase

    def _within_phase(self, in_force: np.ndarray, owner: np.ndarray, start: int, end: int) -> tuple[int, int]:
        assert self._piece.phase is not None
        in_phase = in_force == self.phases.index(self._piece.phase)
        first = 0 if self.has_begun else int(in_phase.argmax()) if in_phase.any() else in_phase.shape[0]
        if in_phase.any() and not self.has_begun:
            self.has_begun, self._owner = True, int(owner[first])
        after = ~in_phase[first:] & (owner[first:] == self._owner)
        phase_end = first + int(after.argmax()) if after.any() else in_phase.shape[0]
        self.over = self.over or (self.has_begun and phase_end < in_phase.shape[0])
        return max(start, first), min(end, phase_end)
