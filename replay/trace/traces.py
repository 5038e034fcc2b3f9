"""The interface of a trace, and a trace in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from replay.trace.events import Events
from replay.trace.metadata import Metadata
from replay.trace.requested import RequestedChanges


class Trace(Protocol):
    """A trace that can be read once or many times."""

    @property
    def metadata(self) -> Metadata: ...

    @property
    def duration_ns(self) -> int | None:
        """Time of the last event, or None if it is unknown before all events are read."""

    @property
    def events_total(self) -> int | None:
        """Number of rows, or None if it is unknown before they are read."""

    def batches(self) -> Iterator[Events]:
        """Yields the events in batches of any size. Each call starts at the first event."""


@dataclass(frozen=True)
class MemoryTrace:
    """A whole trace in memory, for tests, benchmarks and sweeps."""

    events: list[Events]
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def duration_ns(self) -> int | None:
        return next((int(batch.time_ns[-1]) for batch in reversed(self.events) if batch.rows), 0)

    @property
    def events_total(self) -> int | None:
        return sum(batch.rows for batch in self.events)

    def batches(self) -> Iterator[Events]:
        return iter(self.events)

    def requested_changes(self, times_ns: np.ndarray, rows: int) -> np.ndarray:
        """Returns the total of `RequestedChanges` after all events up to each of the ascending times, and one more
        after the first `rows` events.

        Results are cached, because many runs of a sweep need the same.
        """
        cache: dict[tuple[bytes, int], np.ndarray] = self.__dict__.setdefault("_requested_changes", {})
        key = times_ns.tobytes(), rows
        if key not in cache:
            cache[key] = self._find_requested_changes(times_ns, rows)
        return cache[key]

    def _find_requested_changes(self, times_ns: np.ndarray, rows: int) -> np.ndarray:
        batches = [batch for batch in self.events if batch.rows]
        changes = RequestedChanges(int(batches[0].time_ns[0]) if batches else 0)
        totals: list[np.ndarray] = []
        for batch in batches:
            end, due = min(batch.rows, rows), times_ns[times_ns < batch.time_ns[-1]]
            stops = np.minimum(np.append(np.searchsorted(batch.time_ns, due, side="right"), end), end)
            totals.append(changes.feed(batch, 0, stops)[:-1])
            times_ns, rows = times_ns[len(due) :], rows - end
        return np.concatenate([*totals, np.repeat(changes.total, len(times_ns) + 1)])
