"""Text of who is live at a moment: `replay trace info --live`, and one table of `replay run`."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from replay.analysis.live import Live, LiveGroup
from replay.reports.pins import short_name
from replay.reports.tables import percent, section, table_of
from replay.support.units import format_count, format_size, format_time

SHOWN = 5


def live_json(live: Live) -> dict[str, Any]:
    """Returns who is live as JSON; `docs/trace-format.md` explains the keys."""
    return {
        name: [group._asdict() for group in value] if isinstance(value, list) else value
        for name, value in vars(live).items()
    }


def live_title(live: Live, at: str) -> str:
    """Returns what is live, in one line."""
    moment = {"end": "at the end", "peak": "at the peak"}.get(at, f"at {at}")
    return f"live {moment} ({format_time(live.at_ns)}): {format_size(live.bytes)}; {format_count(live.blocks, 'block')}"


def live_tables(live: Live, *, full: bool) -> Iterator[Group]:
    """Yields a table for each way to group the live blocks; with `full`, all rows."""
    shown = None if full else SHOWN
    for name, groups in (
        ("call site", live.by_site),
        ("type", live.by_type),
        ("size class", live.by_size_class),
        ("thread", live.by_thread),
        ("domain", live.by_domain),
    ):
        if groups:
            yield section(f"Live by {name}", live_table(groups, live.bytes, shown, more=": --full"))


def live_table(groups: Sequence[LiveGroup], total_bytes: int, shown: int | None, more: str = "") -> Table:
    """Returns a table of the first `shown` groups, with their shares of all live bytes. `more`: how to see the rest."""
    table = table_of("", "blocks", "bytes", "share")
    table.columns[0].no_wrap, table.columns[0].overflow, table.columns[0].min_width = False, "fold", 16
    for group in groups[:shown]:
        share = percent(group.bytes / total_bytes) if total_bytes else ""
        table.add_row(short_name(group.name), f"{group.blocks:,}", format_size(group.bytes), share)
    if shown is not None and (left := groups[shown:]):
        rest = sum(group.bytes for group in left)
        share = percent(rest / total_bytes) if total_bytes else ""
        blocks = sum(group.blocks for group in left)
        table.add_row(f"and {len(left):,} more{more}", f"{blocks:,}", format_size(rest), share)
    return table
