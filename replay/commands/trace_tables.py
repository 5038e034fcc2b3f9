"""The text of `replay trace info`: a summary and, with --full, all counts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from replay.commands.trace_sites import site_table
from replay.commands.trace_types import type_table
from replay.reports.tables import labelled, percent
from replay.support.names import printable
from replay.support.units import format_count, format_size, format_time
from replay.trace.provenance_text import how_made

if TYPE_CHECKING:
    from replay.commands.trace_contents import Contents, ProcessCount

_QUANTILES = ((0.5, "half"), (0.9, "90 %"))
_SHOWN = 5
"""In the summary."""


def short_lines(contents: "Contents", file: str) -> Iterator[Text]:
    """Yields the summary of a trace in a few lines."""
    yield Text(printable(file), style="bold")
    events = f"{contents.events:,} events in {format_time(contents.duration_ns)}"
    yield Text(f"{events}{how_made(contents.origin)}\n")
    for label, text in _facts(contents):
        yield labelled(label, text)


def _facts(contents: "Contents") -> Iterator[tuple[str, str]]:
    yield (
        "live at peak",
        f"{format_size(contents.live_bytes_peak)}; at most {format_count(contents.live_blocks_peak, 'block')}",
    )
    yield "live at end", f"{format_size(contents.live_bytes)}; {format_count(contents.live_blocks, 'block')}"
    if contents.live_bytes_after_teardown is not None:
        blocks = format_count(contents.live_blocks_after_teardown or 0, "block")
        after = f"{format_size(contents.live_bytes_after_teardown)}; {blocks}"
        yield "", f"{after} after the interpreter's teardown"
    yield "calls", _listed(contents.events_by_op, ("malloc", "calloc", "memalign", "realloc", "free")) or "none"
    total = sum(contents.events_by_domain.values())
    domains = sorted(contents.events_by_domain.items(), key=lambda item: -item[1])
    yield "domains", ", ".join(f"{name} {percent(count / total)}" for name, count in domains if count) or "none"
    yield "sizes", _sizes(contents.requests_by_size) or "none"
    yield "threads", f"{contents.threads:,}"
    if contents.processes:
        yield "processes", ", ".join(printable(each.name) for each in contents.processes)
    yield "phases", ", ".join(map(printable, contents.phases)) or "none"
    calls = sum(contents.requests_by_size.values())
    if contents.sites and calls:
        yield "call sites", f"{contents.sites:,}, known for {percent(contents.calls_with_site / calls)} of the calls"
    else:
        is_recording = contents.origin.interpreter is not None
        yield "call sites", "none; `replay record --sites` records them" if is_recording else "none"
    if contents.types and calls:
        yield "types", f"{contents.types:,}, known for {percent(contents.calls_with_type / calls)} of the calls"
        by_generation = ", ".join(f"{count:,} of generation {number}" for number, count in contents.collections.items())
        freed = format_count(contents.collected, "object")
        yield "collections", f"{by_generation}; they freed {freed}" if by_generation else "none"
    if contents.origin.edited is not None:
        yield "edited", printable(contents.origin.edited)


def _listed(counts: dict[str, int], names: tuple[str, ...]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in names if counts[name])


def _sizes(requests_by_size: dict[int, int]) -> str:
    """Returns the size classes of the median and of the 90th percentile of all requests, and the largest class."""
    total, seen, parts = sum(requests_by_size.values()), 0, []
    waiting = list(_QUANTILES)
    for limit_bytes, count in requests_by_size.items():
        seen += count
        while waiting and seen >= waiting[0][0] * total:
            parts.append(f"{waiting.pop(0)[1]} up to {format_size(limit_bytes)}")
    return ", ".join([*parts, f"largest up to {format_size(max(requests_by_size))}"]) if total else ""


def short_tables(contents: "Contents") -> Iterator[Table]:
    """Yields tables of the call sites, and of the types, that request the most memory."""
    if contents.calls_with_site:
        of_all = contents.calls_with_site, contents.bytes_with_site
        yield site_table("call sites by bytes", contents.sites_by_bytes[:_SHOWN], *of_all)
    if contents.calls_with_type:
        of_all = contents.calls_with_type, contents.bytes_with_type
        yield type_table("types by bytes", contents.types_by_bytes[:_SHOWN], *of_all)


def all_tables(contents: "Contents") -> Iterator[Table]:
    """Yields the tables of --full: origin, processes, counts by op, domain and size, call sites, types."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, value in contents.origin.texts().items():
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
    if contents.calls_with_type:
        of_all = contents.calls_with_type, contents.bytes_with_type
        yield type_table("types by bytes", contents.types_by_bytes, *of_all)
        yield type_table("types by calls", contents.types_by_calls, *of_all)


def _process_table(processes: "list[ProcessCount]") -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("process", min_width=16)
    for heading in ("events", "share", "threads"):
        table.add_column(heading, justify="right")
    total = sum(process.events for process in processes)
    for process in processes:
        share = process.events / total if total else 0.0
        table.add_row(printable(process.name), f"{process.events:,}", f"{share:.1%}", f"{process.threads:,}")
    return table


def _counts(heading: str, counts: dict[str, int]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(heading, min_width=16)
    table.add_column("events", justify="right")
    table.add_column("share", justify="right")
    total = sum(counts.values())
    for name, count in counts.items():
        if count:
            table.add_row(name, f"{count:,}", f"{count / total:.1%}")
    return table
