"""The tables of docs/*.md that are made from declarations in the code; `docs/refresh.py` writes them into the pages.

A table is found by its first line. `tests/test_documented_tables.py` compares the pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import groupby

from pages import ROOT

from replay.allocators import bundled_names, counters_of
from replay.analysis.metrics import Summary
from replay.trace import COLUMNS, OPTIONAL

_POLARS = {"int64": "Int64", "uint8": "UInt8", "uint32": "UInt32", "uint64": "UInt64"}


def _columns() -> Iterator[str]:
    for name, column in COLUMNS.items():
        kind = _POLARS[column.file_type] + (", optional" if name in OPTIONAL else "")
        yield f"| `{name}` | {kind} | {column.meaning} | {column.written_by} |"


def _summary() -> Iterator[str]:
    for meaning, fields in groupby(Summary.model_fields.items(), key=lambda field: field[1].description):
        yield f"| {', '.join(f'`{name}`' for name, _ in fields)} | {meaning} |"


def _counters() -> Iterator[str]:
    for name in bundled_names():
        for counter in counters_of(name):
            yield f"| `{name}.{counter.name}` | {counter.kind} | {counter.meaning} |"


TABLES: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "| column | type | meaning | written by |": ("trace-format.md", _columns),
    "| name in the summary | |": ("metrics.md", _summary),
    "| counter | kind | |": ("metrics.md", _counters),
}
"""By first line the page, and the rows."""


def with_tables(name: str, text: str) -> str:
    """The text of a page with its tables as they are declared now."""
    for head, (page, rows) in TABLES.items():
        if page == name:
            table = re.compile(re.escape(head) + r"\n(\|[-|]+\n)(\|.*\n)+")
            assert len(table.findall(text)) == 1, f"{name} has no table {head}"
            lines = "".join(f"{row}\n" for row in rows())
            text = table.sub(lambda found: f"{head}\n{found[1]}{lines}", text)  # noqa: B023
    return text


PAGES = [ROOT / "docs" / name for name in {page: None for page, _ in TABLES.values()}]
