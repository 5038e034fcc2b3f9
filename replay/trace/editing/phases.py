"""The current phase at each event: that of the latest mark of its process. Marks of malloc_trim are ignored."""

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
        """By process, the phase after the rows so far."""

    def owners(self, events: Events) -> np.ndarray:
        """Returns the number of each row's process."""
        return self._processes.owners(events.thread)

    def in_force(self, events: Events) -> np.ndarray:
        """Returns the index of each row's phase (int64), `NO_PHASE` before the first mark. A mark is in its own
        phase."""
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
        """Returns the index of a phase, or a number that no row has while its name is unknown. Names may be added while
        the trace is read."""
        phases = self._trace.metadata.phases
        return phases.index(name) if name in phases and name != TRIM_MARK else NO_PHASE - 1

    def unknown_phase(self, name: str) -> ReplayError:
        """Returns the error for a phase that the trace does not have."""
        known = [phase for phase in self._trace.metadata.phases if phase != TRIM_MARK]
        return ReplayError(f"unknown phase {name!r}; {nearest(name, known)}")
