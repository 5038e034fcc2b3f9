"""The private memory of forked children: a table, and the same for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from replay.analysis.forks import ForkedMemory
from replay.reports.tables import table_of
from replay.support.names import printable
from replay.support.units import format_size

TITLE = "Forked children: private dirty memory (estimate)"
_SHOWN = 8


def forks_table(forks: Sequence[ForkedMemory]) -> Table:
    """Returns a row for each child, with those first that write to most memory."""
    table = table_of("", "\nprivate", "with all\nreferences", "by collections\nonly", "\ncollections")
    for each in sorted(forks, key=lambda each: -each.private_dirty_bytes)[:_SHOWN]:
        sizes = (each.private_dirty_bytes, each.private_dirty_bytes_high, each.collections_bytes)
        name = f"{each.fork}, process {each.process}"
        table.add_row(Text(printable(name)), *map(format_size, sizes), f"{each.collections:,}")
    if len(forks) > _SHOWN:
        table.add_row(f"{len(forks) - _SHOWN:,} others")
    return table


def forks_json(forks: Sequence[ForkedMemory]) -> list[dict[str, Any]]:
    """Returns an object for each child, in the order of the forks."""
    return [asdict(each) for each in forks]
