"""The Python types of a trace whose objects request the most memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.support.names import printable

if TYPE_CHECKING:
    from rich.table import Table

    from replay.trace import Events, ObjectType

SHOWN = 10


@dataclass(frozen=True)
class TypeCount:
    """The requests of the objects of one type; the field names are the keys of `replay trace info --json`."""

    type: str
    calls: int
    """Allocations and reallocs of the object's own block."""
    bytes: int
    """Sum of their sizes."""
    collected: int
    """Objects that the cyclic garbage collector freed."""
    live: int
    """Objects that were live when the program ended."""


class TypeCounts:
    """Counts the calls and bytes of each type, batch by batch. Equal types count together."""

    def __init__(self) -> None:
        from replay.trace.typed import TypedRequests

        self._requests = TypedRequests()

    def add(self, events: "Events", types: int) -> None:
        """Counts a batch. `types` is the number of types in the metadata."""
        self._requests.feed(events, types)

    @property
    def collections(self) -> dict[int, int]:
        """The number of collections, by generation."""
        return self._requests.collections

    def all(self, types: "Sequence[ObjectType]") -> list[TypeCount]:
        """Returns the counts of all types with a name, those with the most bytes first."""
        totals: dict[str, list[int]] = {}
        for type_, row in zip(types, self._requests.counts.tolist(), strict=False):
            total = totals.setdefault(str(type_), [0] * len(row))
            totals[str(type_)] = [sum(pair) for pair in zip(total, row, strict=True)]
        counts = [TypeCount(name, *total) for name, total in totals.items() if name and total[0]]
        return sorted(counts, key=lambda count: (-count.bytes, -count.calls, count.type))


def type_table(title: str, counts: Sequence[TypeCount], calls: int, size_bytes: int) -> "Table":
    """Returns a table with the share of each type in all calls for objects of known types, and in their bytes."""
    from rich.table import Table

    from replay.support.units import format_size

    table = Table(box=None, header_style="bold")
    table.add_column(title, min_width=16, overflow="fold")
    for name in ("calls", "share", "bytes", "share", "collected", "live"):
        table.add_column(name, justify="right", no_wrap=True)
    for count in counts:
        shares = f"{count.calls / calls:.1%}", f"{count.bytes / size_bytes:.1%}" if size_bytes else ""
        numbers = f"{count.collected:,}", f"{count.live:,}"
        table.add_row(
            printable(count.type), f"{count.calls:,}", shares[0], format_size(count.bytes), shares[1], *numbers
        )
    return table
