"""What all text reports are made of: sections, tables of numbers, lines of a label and a text."""

from textwrap import wrap

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 80
"""Columns of a report, at most: a terminal as it opens, and a log."""
LABEL_WIDTH = 16


def section(title: str, body: RenderableType) -> Group:
    """A title and the indented body, below an empty line."""
    return Group("", Text(title, style="bold"), Padding(body, (0, 0, 0, 2), expand=False))


def table_of(*headings: str, left: int = 1) -> Table:
    """Columns of numbers behind `left` columns of words."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0), show_header=any(headings))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right", no_wrap=True)
    return table


def let_notes_wrap(table: Table) -> None:
    """Makes the last column one of words."""
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False


def labelled(label: str, text: str) -> Text:
    """The label, and beside it the text, which wraps at WIDTH."""
    lines = wrap(text, WIDTH - LABEL_WIDTH, break_long_words=False, break_on_hyphens=False)
    return Text.assemble((f"{label:<{LABEL_WIDTH}}", "dim"), f"\n{'':<{LABEL_WIDTH}}".join(lines))


def percent(share: float) -> str:
    """`12.5 %`."""
    return f"{100 * share:.1f} %"
