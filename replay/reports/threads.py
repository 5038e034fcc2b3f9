"""The times of an object program's threads: a table, and the same for JSON."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from replay.reports.tables import table_of
from replay.support.units import format_time
from replay.trace.metadata import ThreadTimes

_SHOWN = 8
_KINDS = ("running_ns", "allocating_ns", "collecting_ns", "waiting_ns", "blocked_ns")
TITLE = "Threads: time"


def thread_table(times: Sequence[ThreadTimes]) -> Table:
    """Returns a table of how threads spent their time, and of the total. Of many, those that ran longest have a row."""
    headings = ("running", "allocating", "collecting", "waiting\nfor the GIL", "blocked")
    table = table_of("", *(each if "\n" in each else f"\n{each}" for each in headings))
    shown = sorted(sorted(times, key=_busy_ns, reverse=True)[:_SHOWN])
    for each in shown:
        table.add_row(Text(f"{each.thread} {each.function}"), *(format_time(getattr(each, kind)) for kind in _KINDS))
    if len(times) > len(shown):
        others = [each for each in times if each not in shown]
        table.add_row(f"{len(others):,} others", *map(format_time, _sums(others).values()))
    table.add_row("total", *map(format_time, _sums(times).values()), style="bold")
    return table


def threads_as_json(times: Sequence[ThreadTimes]) -> dict[str, Any]:
    """Returns the times of all threads, and their sums."""
    return {"each": [each._asdict() for each in times], "total": _sums(times)}


def _busy_ns(times: ThreadTimes) -> int:
    return times.running_ns + times.allocating_ns + times.collecting_ns


def _sums(times: Sequence[ThreadTimes]) -> dict[str, int]:
    return {kind: sum(getattr(each, kind) for each in times) for kind in _KINDS}
