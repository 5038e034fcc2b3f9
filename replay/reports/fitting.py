"""Tables that are too wide for the console: headings over several lines, figures one below the other, fewer columns."""

import re
from collections.abc import Callable

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table

_INDENT = 2
_HEADING_MIN = 6


def fitted(console: Console, build: Callable[[str], Table]) -> Table:
    """The table, with headings folded and then with a line for each figure of a cell if it is too wide.

    `build` makes the table with the given separator between the figures of a cell.
    """
    table = build(" ")
    if _is_too_wide(console, table):
        _fold_headings(table)
    if _is_too_wide(console, table):
        table = build("\n")
        table.padding = (0, 1, 0, 0)
        _fold_headings(table)
    return table


def without_columns(console: Console, table: Table, *headings: str) -> Table:
    """The same table; while it is too wide, the columns of these headings are removed, in this order.

    The headings are those in one line.
    """
    for heading in headings:
        if _is_too_wide(console, table):
            table.columns = [column for column in table.columns if _unfolded(column.header) != heading]
            for index, column in enumerate(table.columns):
                column._index = index  # rich looks the column up by it
    return table


def _unfolded(heading: RenderableType) -> str:
    return " ".join(str(heading).split())


def _fold_headings(table: Table) -> None:
    for column in table.columns:
        lines = [line for cell in column.cells for line in str(cell).split("\n")]
        column.header = _folded(str(column.header), max([_HEADING_MIN, *map(cell_len, lines)]))


def _is_too_wide(console: Console, table: Table) -> bool:
    return console.measure(table, options=console.options.update(width=1000)).maximum + _INDENT > console.width


def _folded(heading: str, width: int) -> str:
    """The heading, broken after dots and underscores."""
    lines = [""]
    for part in re.findall(r"[^._/ ]*[._/ ]?", heading):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
