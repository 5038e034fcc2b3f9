"""`replay trace`: shows the contents of a trace. The commands of `trace_edit` belong to the same group."""

import json
from collections.abc import Iterable, Iterator
from itertools import repeat
from shlex import join, quote
from textwrap import indent
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands.compilation import report_compilation
from replay.commands.moments import OptionalAt, parse_moment
from replay.commands.options import AsJson, File
from replay.commands.run_plan import source_in_errors
from replay.commands.trace_contents import read_contents
from replay.commands.trace_edit import cut, filter_, merge, scale
from replay.support.errors import ReplayError
from replay.support.names import printable, say

if TYPE_CHECKING:
    import numpy as np

    from replay.trace import Metadata, Trace

app = typer.Typer(
    help="Inspect and edit traces.",
    epilog="Example: replay trace info trace.parquet",
    no_args_is_help=True,
    add_completion=False,
)
for edit, name in ((cut, "cut"), (filter_, "filter"), (merge, "merge"), (scale, "scale")):
    app.command(name)(edit)


@app.command(epilog="Example: replay trace info trace.parquet --live --at peak")
def info(
    file: File,
    full: Annotated[
        bool, typer.Option("--full", help="Print all counts: origin, ops, domains, sizes, call sites, types.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Show who is live at a moment: by call site, type, size, thread and domain.")
    ] = False,
    at: OptionalAt = None,
    as_json: AsJson = False,
) -> None:
    """Summarise a trace: events, live memory, sizes, phases, call sites and types that request the most memory."""
    from replay.sources import open_source

    if live:
        _show_live(file, at or "end", full, as_json)
        return
    if at:
        raise ReplayError(f"--at {at} requires --live")
    with report_compilation():
        contents = read_contents(open_source(file), file)
    if as_json:
        say(json.dumps(contents.as_json(), indent=2))
        return
    from replay.commands.trace_tables import all_tables, short_lines, short_tables
    from replay.reports.console import PlainConsole

    console = PlainConsole()
    for line in short_lines(contents, file):
        console.print(line, soft_wrap=True)
    for table in all_tables(contents) if full else short_tables(contents):
        console.print()
        console.print(table)
    say(f"\nnext: replay run {printable(quote(file))}")


def _show_live(file: str, at: str, full: bool, as_json: bool) -> None:
    """Prints who is live at a moment."""
    from replay.analysis.live import find_live
    from replay.sources import open_source

    trace = open_source(file)
    moment = parse_moment(at, trace.metadata.phases)
    with report_compilation(), source_in_errors(file):
        live = find_live(trace, moment)
    if as_json:
        from replay.reports.live import live_json

        say(json.dumps(live_json(live), indent=2))
        return
    from replay.reports.console import PlainConsole
    from replay.reports.live import live_tables, live_title

    console = PlainConsole()
    console.print(f"{printable(file)}, {printable(live_title(live, at))}", soft_wrap=True)
    for table in live_tables(live, full=full):
        console.print(table)
    say(f"\nnext: {printable(join(['replay', 'pins', file, *(['--at', at] if at != 'end' else [])]))}")


@app.command(epilog="Example: replay trace head trace.parquet -n 5")
def head(
    file: File,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="Number of rows.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the first rows of a trace."""
    from replay.sources import open_source

    trace = open_source(file)
    with report_compilation():
        pieces = _first_rows(trace, rows)
        if as_json:
            _print_json(pieces)
        else:
            _print_table(pieces, trace.metadata)


Row = dict[str, int | str | None]
_ROWS_AT_ONCE = 1000
"""Rows that `head` formats in one piece; the first piece decides the widths of the columns."""
_LEFT = ("process", "op", "domain", "site", "type")


def _first_rows(trace: "Trace", rows: int) -> Iterator[list[Row]]:
    """Yields lists of the first rows, as dictionaries by column name; ops and domains as names, times since the first
    event."""
    from replay.trace import COLUMNS, OPTIONAL, Domain, Op
    from replay.trace.processes import processes_of

    first = begin_ns = 0
    processes = processes_of(trace)
    ops, domains = ({member.value: member.name.lower() for member in enum} for enum in (Op, Domain))
    for events in trace.batches():
        if not first and events.rows:
            begin_ns = int(events.time_ns[0])
        for start in range(0, min(rows - first, events.rows), _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, rows - first))
            owners = processes.owners(events.thread[part]).tolist() if processes.table else None
            columns: dict[str, Iterable[int | str | None]] = {
                "row": list(range(first + start, first + start + len(events.op[part]))),
                "time_ns": (events.time_ns[part] - begin_ns).tolist(),
                **({"process": [processes.table[owner].name for owner in owners]} if owners is not None else {}),
                "thread": events.thread[part].tolist(),
                "op": [ops[op] for op in events.op[part].tolist()],
                "domain": [domains[domain] for domain in events.domain[part].tolist()],
                "block": events.block[part].tolist(),
                "size": events.size[part].tolist(),
                **{name: _without(COLUMNS[name].null, getattr(events, name), part) for name in OPTIONAL},
            }
            yield [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]
        first += events.rows
        if first >= rows:
            return


def _without(nothing: int | None, column: "np.ndarray | None", part: slice) -> Iterable[int | None]:
    """Returns the values of an optional column, None for rows without a value."""
    if column is None:
        return repeat(None)
    return [None if value == nothing else value for value in column[part].tolist()]


def _print_json(pieces: Iterator[list[Row]]) -> None:
    """Prints one JSON array with the indentation of `json.dumps`."""
    between = "[\n"
    for piece in pieces:
        say(between + indent(",\n".join(json.dumps(row, indent=2) for row in piece), "  "), end="")
        between = ",\n"
    say("[]" if between == "[\n" else "\n]")


def _print_table(pieces: Iterator[list[Row]], metadata: "Metadata") -> None:
    names: list[str] = []
    widths: list[int] = []
    for piece in pieces:
        whole = len(piece) < _ROWS_AT_ONCE
        new = not names
        if new:
            names = [name for name in piece[0] if not whole or any(row[name] is not None for row in piece)]
        lines = [[_cell(name, row[name], metadata) for name in names] for row in piece]
        if new:
            widths = [max(map(len, cells)) for cells in zip(names, *lines, strict=True)]
            typer.secho(_line(names, names, widths), bold=True)
        say("\n".join(_line(names, cells, widths) for cells in lines))
    if not names:
        typer.secho("row", bold=True)


def _line(names: list[str], cells: list[str], widths: list[int]) -> str:
    padded = (
        cell.ljust(width) if name in _LEFT else cell.rjust(width)
        for name, cell, width in zip(names, cells, widths, strict=True)
    )
    return "  ".join(padded).rstrip()


def _cell(name: str, value: int | str | None, metadata: "Metadata") -> str:
    if value is None:
        return ""
    if name == "address":
        return f"{value:#x}"
    if name == "site" and isinstance(value, int) and value < len(metadata.sites):
        site = metadata.sites[value]
        return printable(f"{site.function} ({site.file}:{site.line})")
    if name == "type" and isinstance(value, int) and value < len(metadata.types):
        return printable(str(metadata.types[value])) or "no type"
    return printable(value) if isinstance(value, str) else str(value)
