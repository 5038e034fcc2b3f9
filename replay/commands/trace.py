"""`replay trace`: what is in a trace; and the group to which the edits of `trace_edit` belong."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import repeat
from shlex import quote
from textwrap import indent
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands.compilation import told_compilation
from replay.commands.trace_edit import cut, filter_, merge, scale
from replay.commands.trace_sites import SiteCount, SiteCounts
from replay.naming import printable, say

if TYPE_CHECKING:
    import numpy as np

    from replay.trace import Events, Metadata, Trace

app = typer.Typer(help="Look into a trace, and make others of it.", no_args_is_help=True, add_completion=False)
for edit, name in ((cut, "cut"), (filter_, "filter"), (merge, "merge"), (scale, "scale")):
    app.command(name)(edit)

File = Annotated[str, typer.Argument(metavar="FILE", help="A trace in any format, or a workload.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs to read.")]


@dataclass
class ProcessCount:
    """One of several processes."""

    name: str
    threads: int
    events: int
    memory: dict[str, int]


@dataclass
class Contents:
    """What a trace holds; the field names are those of `replay trace info --json`."""

    events: int = 0
    duration_ns: int = 0
    """From the first event to the last."""
    threads: int = 0
    events_by_op: dict[str, int] = field(default_factory=dict)
    events_by_domain: dict[str, int] = field(default_factory=dict)
    """Of mallocs, callocs, reallocs and frees."""
    requests_by_size: dict[int, int] = field(default_factory=dict)
    """Mallocs, callocs and reallocs by the largest size of the class: 0, 16, 32 … 512, then powers of two."""
    live_blocks: int = 0
    live_bytes: int = 0
    live_blocks_peak: int = 0
    live_bytes_peak: int = 0
    phases: tuple[str, ...] = ()
    sites: int = 0
    calls_with_site: int = 0
    """Of mallocs, callocs and reallocs."""
    bytes_with_site: int = 0
    """Sum of their sizes."""
    sites_by_bytes: list[SiteCount] = field(default_factory=list)
    """The call sites that asked for most."""
    sites_by_calls: list[SiteCount] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)
    process: dict[str, int] = field(default_factory=dict)
    """Of all processes together."""
    processes: list[ProcessCount] = field(default_factory=list)
    """Where the trace is of several."""
    digest: str = ""


@app.command(epilog="Example: replay trace info trace.parquet")
def info(
    file: File,
    full: Annotated[
        bool, typer.Option("--full", help="Print all counts: origin, ops, domains, sizes, call sites.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a trace holds: events, live memory, sizes, phases, and the call sites that request most."""
    from replay.sources import open_source

    with told_compilation():
        contents = _read_contents(open_source(file), file)
    if as_json:
        say(json.dumps(asdict(contents), indent=2))
        return
    from replay.commands.trace_tables import all_tables, short_lines, short_tables
    from replay.reports.console import PlainConsole

    console = PlainConsole()
    for line in short_lines(contents, file):
        console.print(line, soft_wrap=True)
    for table in all_tables(contents) if full else short_tables(contents):
        console.print()
        console.print(table)
    say(f"\nnext: replay run {quote(file)}")


@app.command(epilog="Example: replay trace head trace.parquet -n 5")
def head(
    file: File,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many rows.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the first rows of a trace."""
    from replay.sources import open_source

    trace = open_source(file)
    with told_compilation():
        pieces = _first_rows(trace, rows)
        if as_json:
            _print_json(pieces)
        else:
            _print_table(pieces, trace.metadata)


def _read_contents(trace: "Trace", file: str) -> Contents:
    """Reads the trace once, batch by batch."""
    import numpy as np

    from replay.processes import processes_of
    from replay.progress import progress_bar
    from replay.trace import Digest, Domain, Op
    from replay.validation import validated

    by_op, by_domain, by_class = np.zeros(256, int), np.zeros(256, int), np.zeros(128, int)
    threads: set[int] = set()
    processes = processes_of(trace)
    by_process = np.zeros(max(1, len(processes.table)), int)
    trace, digest, sites = validated(trace, file), Digest(), SiteCounts()
    with progress_bar("reading", trace.events_total) as progress:
        for events in trace.batches():
            digest.update(events)
            by_op += np.bincount(events.op, minlength=256)
            by_domain += np.bincount(events.domain[events.op <= Op.FREE], minlength=256)
            by_class += np.bincount(_size_classes(events.size[events.op <= Op.REALLOC]), minlength=128)
            threads |= _threads(events)
            by_process += np.bincount(processes.owners(events.thread), minlength=by_process.shape[0])
            sites.add(events, len(trace.metadata.sites))
            progress(trace.validator.rows)
    metadata, validator = trace.metadata, trace.validator
    return Contents(
        events=validator.rows,
        duration_ns=validator.span_ns,
        threads=len(threads),
        events_by_op={op.name.lower(): int(by_op[op]) for op in Op},
        events_by_domain={domain.name.lower(): int(by_domain[domain]) for domain in Domain},
        requests_by_size={_class_bytes(index): int(by_class[index]) for index in np.flatnonzero(by_class).tolist()},
        live_blocks=validator.live_blocks,
        live_bytes=validator.live_bytes,
        live_blocks_peak=validator.blocks_peak,
        live_bytes_peak=validator.bytes_peak,
        phases=metadata.phases,
        sites=len(metadata.sites),
        calls_with_site=int(sites.calls.sum()),
        bytes_with_site=int(sites.bytes.sum()),
        sites_by_bytes=sites.most(metadata.sites, by_bytes=True),
        sites_by_calls=sites.most(metadata.sites, by_bytes=False),
        origin=metadata.origin,
        process=asdict(metadata.memory),
        processes=[
            ProcessCount(process.name, len(process.threads), int(events), asdict(process.memory))
            for process, events in zip(metadata.processes, by_process, strict=False)
        ],
        digest=digest.hexdigest(metadata.processes),
    )


def _threads(events: "Events") -> set[int]:
    import numpy as np

    changes = np.flatnonzero(events.thread[1:] != events.thread[:-1]) + 1
    return set(np.unique(events.thread[changes]).tolist()) | set(events.thread[:1].tolist())


def _size_classes(size: "np.ndarray") -> "np.ndarray":
    """0 for none, 1 to 32 for steps of 16 bytes up to 512, then one more for every power of two."""
    import numpy as np

    bit_length = np.frexp((size - 1).astype(np.float64))[1]
    return np.where(size <= 512, (size + 15) >> 4, 32 - 9 + bit_length)


def _class_bytes(index: int) -> int:
    return 16 * index if index <= 32 else 512 << (index - 32)


Row = dict[str, int | str | None]
_ROWS_AT_ONCE = 1000
"""Of `head`; where there are more, the columns are as wide as the first of them need."""
_LEFT = ("process", "op", "domain", "site")


def _first_rows(trace: "Trace", rows: int) -> Iterator[list[Row]]:
    """The first rows by column name, some at a time; ops and domains by theirs, times since the first event."""
    from replay.processes import processes_of
    from replay.trace import NO_SITE, Domain, Op

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
                "address": _without(0, events.address, part),
                "site": _without(NO_SITE, events.site, part),
            }
            yield [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]
        first += events.rows
        if first >= rows:
            return


def _without(nothing: int, column: "np.ndarray | None", part: slice) -> Iterable[int | None]:
    """The values of an optional column, None where it has none."""
    if column is None:
        return repeat(None)
    return [None if value == nothing else value for value in column[part].tolist()]


def _print_json(pieces: Iterator[list[Row]]) -> None:
    """One JSON array, as `json.dumps` would indent it."""
    between = "[\n"
    for piece in pieces:
        typer.echo(between + indent(",\n".join(json.dumps(row, indent=2) for row in piece), "  "), nl=False)
        between = ",\n"
    typer.echo("[]" if between == "[\n" else "\n]")


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
    return printable(value) if isinstance(value, str) else str(value)
