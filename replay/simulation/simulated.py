"""The interface of what a walk through a trace simulates: one process (`Simulator`), or several (`Host`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from replay.simulation.clock import Slice
from replay.simulation.result import RunResult
from replay.trace import Events

if TYPE_CHECKING:
    from replay.simulation.simulator import Simulator


class Simulated(Protocol):
    """The state of one process or of several. Counters, levels and peaks are those of the sums."""

    at_peak_time_ns: int

    @property
    def marks_end_slices(self) -> bool:
        """Whether a slice ends at each mark; otherwise the loop copies the counters there."""

    @property
    def owner(self) -> np.ndarray | None:
        """The process of each row of the batch; None if there is only one."""

    @property
    def tally(self) -> np.record:
        """The counters."""

    @property
    def at_peak(self) -> np.ndarray:
        """One record: the counters right after the event that first took resident memory to its peak."""

    @property
    def classes(self) -> np.ndarray:
        """Blocks ever allocated and live ones, by domain, role and size class."""

    @property
    def simulators(self) -> Sequence["Simulator"]:
        """The simulator of each process."""

    def enter(self, events: Events) -> Events:
        """Begins a batch; returns the events that the clock passes through."""

    def simulate(self, part: Slice) -> np.ndarray:
        """Simulates a slice; returns a copy of the counters for each of its ticks."""

    def counters(self) -> np.ndarray:
        """Returns a copy of the counters: one record."""

    def observe(self) -> dict[str, np.ndarray]:
        """Returns the views of the models of the small role."""

    def trim(self, row: int, time_ns: int, thread: int | None = None) -> None:
        """Calls malloc_trim(0) before `row` of the trace, in the process of this thread or in all."""

    def end_thread(self, thread: int, row: int, time_ns: int) -> None:
        """Ends a thread of the trace before `row`."""

    def let_time_pass(self, row: int, time_ns: int) -> None:
        """Advances the models to this time, before `row` of the trace."""

    def note_phase(self, name: str, time_ns: int, thread: int) -> None:
        """Begins a phase of the process of this thread."""

    def complete(self, result: RunResult, begin_ns: int, requested: np.ndarray) -> RunResult:
        """Returns the result with those of the single processes; `requested` has their sums of `RequestedChanges`."""
