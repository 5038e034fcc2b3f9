"""The result of a simulation: all counters. `replay.analysis` computes figures and frames from it."""

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from replay.allocators import TALLY, TIMED
from replay.config import StackConfig
from replay.jit.arrays import concatenated, record
from replay.trace import Metadata

MEANS = ("requested_bytes", *TIMED)
"""Levels with an exact mean over time."""


GC_LOOK = record("time_ns", "value", "frees", "requested_bytes", thread=np.uint32, op=np.uint8)
"""A start or end of a garbage collection: `value` is the `size` of its event; the counters before it."""


@dataclass(frozen=True)
class RunResult:
    """All counters of a run. Times are in nanoseconds since the trace's first event.

    Records of counters have the fields of `replay.allocators.layout_of`.

    The end is the end of the trace. If the trace has marks TEARDOWN_MARK, the end is the last of these marks.
    """

    config: StackConfig
    metadata: Metadata
    events: int
    duration_ns: int
    sample_times_ns: np.ndarray
    samples: np.ndarray
    requested_changes: np.ndarray
    """At each sample, the total of `replay.trace.requested.RequestedChanges`."""
    end: np.record
    at_peak: np.record
    """The counters right after the event that first took resident memory to its highest."""
    at_peak_time_ns: int
    """0 where no page was ever resident."""
    classes: np.ndarray
    """Blocks ever allocated and live ones, by domain, role and size class (`replay.simulation.loop`)."""
    observed: dict[str, np.ndarray]
    """What the model of the small role shows of its state at the end."""
    phases: tuple[tuple[str, int, np.record], ...]
    """Name, time and counters at each mark."""
    collections: np.ndarray
    """Rows of GC_LOOK at the starts and ends of garbage collections; none of a trace of several processes."""
    wall_ns: int
    processes: tuple["RunResult", ...] = ()
    """Of a trace of several: what each counted, with a sample at its end only. All above is then of the sums."""
    shares: np.ndarray = field(default_factory=lambda: np.zeros(0, TALLY))
    """By process the counters at the moment of `at_peak`, to which they add up."""
    teardown: tuple[int, np.record] | None = None
    """Time and counters after the last event, where the end is before CPython's finalisation."""

    def mean(self, level: str) -> int:
        """Returns the mean of one of MEANS from the first event to the end, in whole bytes."""
        value = int(self.end[level])
        if not self.duration_ns:
            return value
        low, high = (int(words[-1]) for words in self.changes(level))
        changes = high << 64 | low & (1 << 64) - 1
        return round(Fraction(int(self.sample_times_ns[-1]) * value - changes, self.duration_ns))

    def changes(self, level: str) -> tuple[np.ndarray, np.ndarray]:
        """The sum of all changes of one of MEANS until each sample, each multiplied by its time: the low and the high
        words of 128-bit integers."""
        if level in TIMED:
            return self.samples[f"{level}_timed"], self.samples[f"{level}_timed_high"]
        return self.requested_changes["low"], self.requested_changes["high"]


def looks_since(begin_ns: int, end_ns: int, looks: list[np.ndarray]) -> np.ndarray:
    """Returns the rows of GC_LOOK until the end, with times since the first event."""
    found = concatenated([np.zeros(0, GC_LOOK), *looks])
    found = found[found["time_ns"] <= end_ns]
    found["time_ns"] -= begin_ns
    return found


def phases_since(begin_ns: int, phases: list[tuple[str, int, np.record]]) -> tuple[tuple[str, int, np.record], ...]:
    """Returns the phases with times since the first event."""
    return tuple((name, time_ns - begin_ns, counters) for name, time_ns, counters in phases)


def peak_time_ns(at_peak: np.record, time_ns: int, begin_ns: int) -> int:
    """Returns the time of the peak since the first event; 0 if no page was ever resident."""
    return time_ns - begin_ns if at_peak.resident_bytes_peak else 0
