"""Which phase is in force at an event: that of the latest mark, but for marks that are calls of malloc_trim.

Each process of a trace is in phases of its own.
"""

import numpy as np

from replay.support.errors import ReplayError
from replay.support.names import nearest
from replay.trace import TRIM_MARK, Events, Op, Trace
from replay.trace.processes import processes_of

NO_PHASE = -1


class Phases:
    """Follows the marks of one trace, batch by batch."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._processes = processes_of(trace)
        self.current = np.full(max(1, len(self._processes.table)), NO_PHASE)
        """By process: in force after the rows so far."""

    def owners(self, events: Events) -> np.ndarray:
        """For each row the number of its process."""
        return self._processes.owners(events.thread)

    def in_force(self, events: Events) -> np.ndarray:
        """For each row the index of the phase (int64), `NO_PHASE` before the first; a mark is in its own phase."""
        is_mark = events.op == Op.MARK
        if TRIM_MARK in self._trace.metadata.phases:
            is_mark &= events.size != self._trace.metadata.phases.index(TRIM_MARK)
        owner, result = self.owners(events), np.empty(events.rows, np.int64)
        for process in range(self.current.shape[0]):
            rows = np.flatnonzero(owner == process)
            marks = rows[is_mark[rows]]
            phases = np.concatenate([self.current[process : process + 1], events.size[marks]])
            self.current[process] = phases[-1]
            result[rows] = phases[np.searchsorted(marks, rows, side="right")]
        return result

    def index(self, name: str) -> int:
        """The phase of that name, or another number than any phase has while it was not met."""
        phases = self._trace.metadata.phases
        return phases.index(name) if name in phases and name != TRIM_MARK else NO_PHASE - 1

    def refuse(self, name: str) -> ReplayError:
        """What to say of a phase that never came."""
        known = [phase for phase in self._trace.metadata.phases if phase != TRIM_MARK]
        return ReplayError(f"no phase is called {name!r}; {nearest(name, known)}")
