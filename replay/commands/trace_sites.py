"""The call sites of a trace that request the most memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.support.names import printable

if TYPE_CHECKING:
    from rich.table import Table

    from replay.trace import Events, Site

SHOWN = 10


@dataclass(frozen=True)
class SiteCount:
    """The requests of one call site; the field names are the keys of `replay trace info --json`."""

    function: str
    file: str
    line: int
    calls: int
    """Allocations and reallocs."""
    bytes: int
    """Sum of their sizes."""


class SiteCounts:
    """Counts the calls and bytes of each call site, batch by batch."""

    def __init__(self) -> None:
        import numpy as np

        self.calls, self.bytes = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def add(self, events: "Events", sites: int) -> None:
        """Counts a batch. `sites` is the number of sites in the metadata after this batch."""
        import numpy as np

        from replay.jit.arrays import extend
        from replay.trace.block_ops import requests

        if events.site is None:
            return
        rows = requests(events.op) & (events.site < sites)
        self.calls, self.bytes = extend(self.calls, sites), extend(self.bytes, sites)
        self.calls += np.bincount(events.site[rows], minlength=sites)
        np.add.at(self.bytes, events.site[rows], events.size[rows])

    def most(self, sites: "Sequence[Site]", *, by_bytes: bool) -> list[SiteCount]:
        """Returns the sites with the most bytes, or the most calls, in falling order."""
        import numpy as np

        first, second = (self.bytes, self.calls) if by_bytes else (self.calls, self.bytes)
        order = np.lexsort((np.arange(first.shape[0]), -second, -first))[:SHOWN].tolist()
        return [
            SiteCount(sites[at].function, sites[at].file, sites[at].line, int(self.calls[at]), int(self.bytes[at]))
            for at in order
            if self.calls[at]
        ]


def site_table(title: str, counts: Sequence[SiteCount], calls: int, size_bytes: int) -> "Table":
    """Returns a table with the share of each site in all calls that have a site, and in their bytes."""
    from rich.table import Table

    from replay.support.units import format_size

    table = Table(box=None, header_style="bold")
    table.add_column(title, min_width=16, overflow="fold")
    for name in ("calls", "share", "bytes", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for count in counts:
        shares = f"{count.calls / calls:.1%}", f"{count.bytes / size_bytes:.1%}" if size_bytes else ""
        where = printable(f"{count.function} ({count.file}:{count.line})")
        table.add_row(where, f"{count.calls:,}", shares[0], format_size(count.bytes), shares[1])
    return table
