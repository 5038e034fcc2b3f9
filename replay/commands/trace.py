"""`replay trace`: what is in a trace; and the group to which the edits of `trace_edit` belong."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands.compilation import told_compilation
from replay.commands.trace_edit import cut, filter_, merge, scale
from replay.commands.trace_sites import SiteCount, SiteCounts, site_table
from replay.support.names import printable

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from replay.trace import Events, Metadata, Trace

app = typer.Typer(help="Look into a trace, and make others of it.", no_args_is_help=True, add_completion=False)
for edit, name in ((cut, "cut"), (filter_, "filter"), (merge, "merge"), (scale, "scale")):
    app.command(name)(edit)

_ROW_WIDTH = 1000
"""A row is a line, however narrow the screen is: call sites are long."""
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
def info(file: File, as_json: AsJson = False) -> None:
    """Count the events of a trace by op, domain and size, say what is live, and which call sites allocate most."""
    from replay.sources import open_source

    with told_compilation():
        contents = _read_contents(open_source(file), file)
    if as_json:
        typer.echo(json.dumps(asdict(contents), indent=2))
        return
    from rich.console import Console

    console = Console(markup=False)
    for table in _tables(contents, file):
        console.print(table)


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
        shown = list(_first_rows(trace, rows))
    if as_json:
        typer.echo(json.dumps(shown, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    names = [name for name in shown[0] if any(row[name] is not None for row in shown)] if shown else ["row"]
    table = Table(box=None, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in ("process", "op", "domain", "site") else "right")
    for row in shown:
        table.add_row(*(_cell(name, row[name], trace.metadata) for name in names))
    Console(markup=False, width=_ROW_WIDTH).print(table)


def _read_contents(trace: "Trace", file: str) -> Contents:
    """Reads the trace once, batch by batch."""
    import numpy as np

    from replay.support.progress import progress_bar
    from replay.trace import Digest, Domain, Op
    from replay.trace.processes import processes_of
    from replay.trace.validation import validated

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


def _tables(contents: Contents, file: str) -> Iterator["Table"]:
    from rich.table import Table

    from replay.support.units import format_size, format_time

    facts = Table(title=file, box=None, show_header=False, title_style="bold", title_justify="left")
    facts.add_row("events", f"{contents.events:,} in {format_time(contents.duration_ns)}, {contents.threads} threads")
    facts.add_row("live at the end", f"{contents.live_blocks:,} blocks, {format_size(contents.live_bytes)}")
    facts.add_row("live at the peak", f"{contents.live_blocks_peak:,} blocks, {format_size(contents.live_bytes_peak)}")
    facts.add_row("phases", ", ".join(map(printable, contents.phases)) or "none")
    calls = sum(contents.requests_by_size.values())
    known = f", of {contents.calls_with_site:,} of {calls:,} calls" if contents.sites else ""
    facts.add_row("call sites", f"{contents.sites:,}{known}")
    for name, value in contents.origin.items():
        facts.add_row(printable(f"origin: {name}"), printable(value))
    for name, size_bytes in contents.process.items():
        if size_bytes:
            facts.add_row(name.removesuffix("_bytes").replace("_", " "), format_size(size_bytes))
    facts.add_row("digest", contents.digest[:16])
    yield facts
    if contents.processes:
        yield _process_table(contents.processes)
    yield _counts("op", contents.events_by_op)
    yield _counts("domain", contents.events_by_domain)
    sizes = {
        f"up to {format_size(limit_bytes)}" if limit_bytes else "0 B": count
        for limit_bytes, count in contents.requests_by_size.items()
    }
    yield _counts("requested size", sizes)
    if contents.calls_with_site:
        of_all = contents.calls_with_site, contents.bytes_with_site
        yield site_table("call sites by bytes", contents.sites_by_bytes, *of_all)
        yield site_table("call sites by calls", contents.sites_by_calls, *of_all)


def _process_table(processes: list[ProcessCount]) -> "Table":
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("process", min_width=16)
    for heading in ("events", "share", "threads"):
        table.add_column(heading, justify="right")
    total = sum(process.events for process in processes)
    for process in processes:
        share = process.events / total if total else 0.0
        table.add_row(printable(process.name), f"{process.events:,}", f"{share:.1%}", f"{process.threads:,}")
    return table


def _counts(what: str, counts: dict[str, int]) -> "Table":
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column(what, min_width=16)
    table.add_column("events", justify="right")
    table.add_column("share", justify="right")
    total = sum(counts.values())
    for name, count in counts.items():
        if count:
            table.add_row(name, f"{count:,}", f"{count / total:.1%}")
    return table


Row = dict[str, int | str | None]


def _first_rows(trace: "Trace", rows: int) -> Iterator[Row]:
    """The first rows by column name, ops and domains by theirs."""
    from replay.trace import OPTIONAL, Domain, Op
    from replay.trace.processes import processes_of

    row = 0
    processes = processes_of(trace)
    for events in trace.batches():
        owners = processes.owners(events.thread).tolist()
        for index in range(min(rows - row, events.rows)):
            yield {
                "row": row,
                "time_ns": int(events.time_ns[index]),
                **({"process": processes.table[owners[index]].name} if processes.table else {}),
                "thread": int(events.thread[index]),
                "op": Op(events.op[index]).name.lower(),
                "domain": Domain(events.domain[index]).name.lower(),
                "block": int(events.block[index]),
                "size": int(events.size[index]),
                **{name: _optional_value(events, name, index) for name in OPTIONAL},
            }
            row += 1
        if row == rows:
            return


def _optional_value(events: "Events", name: str, index: int) -> int | None:
    from replay.trace import COLUMNS

    column = getattr(events, name)
    return None if column is None or column[index] == COLUMNS[name].null else int(column[index])


def _cell(name: str, value: int | str | None, metadata: "Metadata") -> str:
    if value is None:
        return ""
    if name == "address":
        return f"{value:#x}"
    if name == "site" and isinstance(value, int) and value < len(metadata.sites):
        site = metadata.sites[value]
        return printable(f"{site.function} ({site.file}:{site.line})")
    return str(value)
