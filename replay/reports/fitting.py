"""Makes tables narrower for a console: headings of several lines, figures one below the other, fewer columns."""

import re
from collections.abc import Callable

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table

_INDENT = 2
_HEADING_MIN = 6


def fitted(console: Console, build: Callable[[str], Table]) -> Table:
    """Returns the table. If it is too wide, headings get several lines, then each figure of a cell a line of its own.

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
    """Returns the same table. While it is too wide, removes the columns with these headings, in this order.

    The headings are written without line breaks.
    """
    for heading in headings:
        if _is_too_wide(console, table):
            table.columns = [column for column in table.columns if _unfolded(column.header) != heading]
            for index, column in enumerate(table.columns):
                column._index = index  # rich finds the cells of the column by this index
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
    """Returns the heading with line breaks after dots and underscores."""
    lines = [""]
    for part in re.findall(r"[^._/ ]*[._/ ]?", heading):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
