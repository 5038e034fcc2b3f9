"""A piece of a trace: from one time to another, or one phase, or where both overlap.

What was born earlier and lives at the piece's start is brought to life there, in the order of birth, as mallocs of the
size it has by then; or it is left out, with all that happens to it later. The phase in force there is marked again, in
each process.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from replay.support.errors import ReplayError
from replay.support.limits import MAX_SPAN
from replay.trace import Events, Op, Trace, joined
from replay.trace.editing import EditedTrace, KeyedEvents, edited, keyed, rows_of
from replay.trace.editing.live_blocks import Living
from replay.trace.editing.phases import NO_PHASE, Phases
from replay.trace.editing.selecting import Selection


@dataclass(frozen=True)
class Piece:
    """Which part of a trace; times count from its first event."""

    from_ns: int = 0
    to_ns: int = MAX_SPAN
    """No longer part of it."""
    phase: str | None = None
    """From its first mark to the next mark of another phase, in the same process."""
    earlier: bool = True
    """Whether what was born before the piece is brought to life at its start."""


def cut(trace: Trace, piece: Piece, words: str) -> EditedTrace:
    """A piece of a trace, with the times that the events had."""
    return EditedTrace(lambda: _cut(trace, piece), lambda: edited(trace.metadata, words))


def _cut(trace: Trace, piece: Piece) -> Iterator[KeyedEvents]:
    window, living, selection = _Window(trace, piece), Living(trace), Selection()
    started = False
    for events in trace.batches():
        start, end = window.within(events)
        if not started:
            living.follow(rows_of(events, slice(0, start)))
        if start < end and not started:
            started = True
            opening = living if piece.earlier else Living(trace)
            yield keyed(_opening(opening, events, start, window.phases_before))
        if start < end:
            inside = rows_of(events, slice(start, end))
            if not piece.earlier:
                inside = rows_of(inside, selection.keep(inside, np.ones(inside.rows, bool)))
            yield keyed(inside)
        if window.over:
            break
    if not started:
        if piece.phase is not None and not window.met:
            raise window.phases.refuse(piece.phase)
        raise ReplayError("no event lies in that piece of the trace; `replay trace info` says how long it is")


def _opening(living: Living, events: Events, row: int, phases: dict[int, int]) -> Events:
    """Lives begin anew, and so do the phases, by thread, where the piece begins without their marks."""
    time_ns = int(events.time_ns[row])
    opening = living.events(Op.MALLOC, time_ns)
    count = len(phases)
    marks = Events(
        time_ns=np.full(count, time_ns, np.int64),
        thread=np.array([*phases], np.uint32),
        op=np.full(count, int(Op.MARK), np.uint8),
        domain=np.zeros(count, np.uint8),
        block=np.zeros(count, np.uint32),
        size=np.array([*phases.values()], np.int64),
    )
    return joined([opening, marks, events.where(slice(0, 0))])  # the last for its optional columns


class _Window:
    """Finds the rows of a piece, batch by batch."""

    def __init__(self, trace: Trace, piece: Piece) -> None:
        self._piece = piece
        self._begin_ns: int | None = None
        self.phases = Phases(trace)
        self.met = piece.phase is None
        """Whether the phase has begun."""
        self.over = False
        """Whether no later row can be in the piece."""
        self.phases_before: dict[int, int] = {}
        """In force where the piece begins, by a thread of each process, unless it begins with the mark of a phase."""
        self._threads = [process.threads for process in trace.metadata.processes]
        self._owner = -1
        """The process whose phase the piece is."""

    def within(self, events: Events) -> tuple[int, int]:
        """The rows of the piece in these events: from, up to."""
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
        begins = events.op[start] == Op.MARK and events.size[start] == in_force[start]
        before[owner[:start]] = in_force[:start]  # of several the last one stays
        self.phases_before = {}
        for process, phase in enumerate(before.tolist()):
            if phase != NO_PHASE and not (begins and process == owner[start]):
                thread = events.thread[start] if process == owner[start] else self._threads[process][0]
                self.phases_before[int(thread)] = phase

    def _within_phase(self, in_force: np.ndarray, owner: np.ndarray, start: int, end: int) -> tuple[int, int]:
        assert self._piece.phase is not None
        wanted = in_force == self.phases.index(self._piece.phase)
        first = 0 if self.met else int(wanted.argmax()) if wanted.any() else wanted.shape[0]
        if wanted.any() and not self.met:
            self.met, self._owner = True, int(owner[first])
        rest = ~wanted[first:] & (owner[first:] == self._owner)
        last = first + int(rest.argmax()) if rest.any() else wanted.shape[0]
        self.over = self.over or (self.met and last < wanted.shape[0])
        return max(start, first), min(end, last)
