"""The interface of a trace, and a trace in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from replay.trace.events import Events
from replay.trace.metadata import Metadata
from replay.trace.requested import RequestedChanges


class Trace(Protocol):
    """A trace that can be read once or many times."""

    @property
    def metadata(self) -> Metadata: ...

    @property
    def duration_ns(self) -> int | None:
        """Time of the last event, if known before it is read."""

    @property
    def events_total(self) -> int | None:
        """Number of rows, if known before they are read."""

    def batches(self) -> Iterator[Events]:
        """The events in batches of any size; each call starts at the first."""


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

    def requested_changes(self, rows: int) -> int:
        """The total of `RequestedChanges` over the first so many rows; computed once, however many runs ask."""
        known: dict[int, int] = self.__dict__.setdefault("_requested_changes", {})
        if rows not in known:
            first = next((int(batch.time_ns[0]) for batch in self.events if batch.rows), 0)
            changes, left = RequestedChanges(first), rows
            for batch in self.events:
                changes.feed(batch, 0, min(batch.rows, left))
                left -= min(batch.rows, left)
            (known[rows],) = changes.totals()
        return known[rows]
