"""Which phase is in force at an event: that of the latest mark, but for marks that are calls of malloc_trim."""

import numpy as np

from replay.errors import ReplayError
from replay.naming import nearest
from replay.trace import TRIM_MARK, Events, Op, Trace

NO_PHASE = -1


class Phases:
    """Follows the marks of one trace, batch by batch."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.current = NO_PHASE
        """In force after the rows so far."""

    def in_force(self, events: Events) -> np.ndarray:
        """For each row the index of the phase (int64), `NO_PHASE` before the first; a mark is in its own phase."""
        marks = np.flatnonzero(events.op == Op.MARK)
        if TRIM_MARK in self._trace.metadata.phases:
            marks = marks[events.size[marks] != self._trace.metadata.phases.index(TRIM_MARK)]
        phases = np.concatenate([[self.current], events.size[marks]])
        self.current = int(phases[-1])
        result: np.ndarray = phases[np.searchsorted(marks, np.arange(events.rows), side="right")]
        return result

    def index(self, name: str) -> int:
        """The phase of that name, or another number than any phase has while it was not met."""
        phases = self._trace.metadata.phases
        return phases.index(name) if name in phases and name != TRIM_MARK else NO_PHASE - 1

    def refuse(self, name: str) -> ReplayError:
        """What to say of a phase that never came."""
        known = [phase for phase in self._trace.metadata.phases if phase != TRIM_MARK]
        return ReplayError(f"no phase is called {name!r}; {nearest(name, known)}")
