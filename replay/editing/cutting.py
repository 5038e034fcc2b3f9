"""A piece of a trace: from one time to another, or one phase, or where both overlap.

What was born earlier and lives at the piece's start is brought to life there, in the order of birth, as mallocs of the
size it has by then; or it is left out, with all that happens to it later. The phase in force there is marked again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from replay.editing import EditedTrace, KeyedEvents, edited, keyed, rows_of
from replay.editing.living import Living
from replay.editing.phases import NO_PHASE, Phases
from replay.editing.selecting import Selection
from replay.errors import ReplayError
from replay.limits import MAX_SPAN
from replay.trace import NO_SITE, Events, Op, Trace


@dataclass(frozen=True)
class Piece:
    """Which part of a trace; times count from its first event."""

    from_ns: int = 0
    to_ns: int = MAX_SPAN
    """No longer part of it."""
    phase: str | None = None
    """From its first mark to the next mark of another phase."""
    earlier: bool = True
    """Whether what was born before the piece is brought to life at its start."""


def cut(trace: Trace, piece: Piece, words: str) -> EditedTrace:
    """A piece of a trace, with the times that the events had."""
    return EditedTrace(lambda: _cut(trace, piece), lambda: edited(trace.metadata, words))


def _cut(trace: Trace, piece: Piece) -> Iterator[KeyedEvents]:
    window, living, selection = _Window(trace, piece), Living(), Selection()
    started = False
    for events in trace.batches():
        start, end = window.within(events)
        if not started:
            living.follow(rows_of(events, slice(0, start)))
        if start < end and not started:
            started = True
            opening = living if piece.earlier else Living()
            yield keyed(_opening(opening, events, start, window.phase_before))
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


def _opening(living: Living, events: Events, row: int, phase: int) -> Events:
    """Lives begin anew, and so does the phase, where the piece begins without its mark."""
    time_ns = int(events.time_ns[row])
    opening = living.events(Op.MALLOC, time_ns, sites=events.site is not None)
    if phase == NO_PHASE:
        return opening
    mark = rows_of(events, slice(row, row + 1))._replace(
        op=np.array([int(Op.MARK)], np.uint8),
        domain=np.zeros(1, np.uint8),
        block=np.zeros(1, np.uint32),
        size=np.array([phase], np.int64),
        address=None,
        site=None if events.site is None else np.array([NO_SITE], np.uint32),
    )
    columns = zip(Events._fields, opening, mark, strict=True)
    return Events(**{name: np.concatenate([a, b]) for name, a, b in columns if a is not None and b is not None})


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
        self.phase_before = NO_PHASE
        """In force where the piece begins, unless it begins with the mark of a phase."""

    def within(self, events: Events) -> tuple[int, int]:
        """The rows of the piece in these events: from, up to."""
        if not events.rows:
            return 0, 0
        if self._begin_ns is None:
            self._begin_ns = int(events.time_ns[0])
        times = [self._begin_ns + self._piece.from_ns, self._begin_ns + self._piece.to_ns]
        start, end = (int(row) for row in np.searchsorted(events.time_ns, times))
        self.over = end < events.rows
        before = self.phases.current
        in_force = self.phases.in_force(events)
        if self._piece.phase is not None:
            start, end = self._within_phase(in_force, start, end)
        begins = start < end and events.op[start] == Op.MARK and events.size[start] == in_force[start]
        if start < end and not begins:
            self.phase_before = int(in_force[start - 1]) if start else before
        return start, end

    def _within_phase(self, in_force: np.ndarray, start: int, end: int) -> tuple[int, int]:
        assert self._piece.phase is not None
        wanted = in_force == self.phases.index(self._piece.phase)
        first = 0 if self.met else int(wanted.argmax()) if wanted.any() else wanted.shape[0]
        self.met = self.met or bool(wanted.any())
        rest = ~wanted[first:]
        last = first + int(rest.argmax()) if rest.any() else wanted.shape[0]
        self.over = self.over or (self.met and last < wanted.shape[0])
        return max(start, first), min(end, last)
