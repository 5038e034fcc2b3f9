"""Parts of text reports: sections, tables of numbers, lines with a label and a text."""

import re
from textwrap import wrap

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 80
"""Columns of a report; fits an ordinary terminal and a log."""
LABEL_WIDTH = 16
_NO_BREAK = "\N{NO-BREAK SPACE}"
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:[KMGTP]iB|B|s|ms|µs|ns|%)(?!\w))")
"""The space between a figure and its unit, at which a line must not wrap."""


def section(title: str, body: RenderableType) -> Group:
    """Returns an empty line, a title and the indented body."""
    return Group("", Text(title, style="bold"), Padding(body, (0, 0, 0, 2), expand=False))


def table_of(*headings: str, left: int = 1) -> Table:
    """Returns a table with `left` columns of text, followed by columns of numbers."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0), show_header=any(headings))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right", no_wrap=True)
    return table


def let_notes_wrap(table: Table) -> None:
    """Makes the last column a text column that wraps. Changes `table`."""
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False


def labelled(label: str, text: str, width: int = WIDTH) -> Text:
    """Returns the label with the text to its right, wrapped to a total of `width` columns."""
    kept_together = _BEFORE_UNIT.sub(_NO_BREAK, text)
    lines = wrap(kept_together, max(width - LABEL_WIDTH, 1), break_long_words=False, break_on_hyphens=False)
    lines = [line.replace(_NO_BREAK, " ") for line in lines]
    return Text.assemble((f"{label:<{LABEL_WIDTH}}", "dim"), f"\n{'':<{LABEL_WIDTH}}".join(lines))


def percent(share: float) -> str:
    """Returns a share as a percentage: `12.5 %`."""
    return f"{100 * share:.1f} %"
