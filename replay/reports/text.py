"""A run's results as text for people: plain tables that read the same on a terminal and in a log."""

from collections.abc import Iterator

import polars as pl
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from replay import metrics
from replay.engine import Recording
from replay.metrics import Summary
from replay.naming import printable
from replay.player import EXACT_CLASSES, class_limit
from replay.reports.claims import claims, sentences
from replay.units import format_size, format_time

WIDTH = 96
"""Columns of the report, at most: what fits a log beside its time stamps."""
_CLASSES_SHOWN = 12
_PROCESSES_SHOWN = 16
_LARGEST_KNOWN = class_limit(EXACT_CLASSES - 1)


def print_report(console: Console, source: str, recording: Recording, summary: Summary) -> None:
    """Prints `summary`, and the tables of the recording that it sums up."""
    parts = [
        _headline(source, summary),
        section("Memory by layer", _levels(summary)),
        section(_where_title(summary), _where(summary)),
    ]
    if summary.processes:
        parts.append(section("Processes, by what was resident at that peak of all", _processes(summary)))
    if summary.pymalloc_model:
        parts.append(section("Arenas and pools", _arenas(summary, metrics.arenas(recording))))
    parts.append(section("Calls and simulated time", _system_calls(summary)))
    if summary.block_bytes_peak > summary.requested_bytes_peak:
        classes = _size_classes(summary, metrics.size_classes(recording), metrics.pools(recording))
        parts.append(section("Size classes, by what they waste at the end", classes))
    if recording.phases:
        parts.append(section("What was there when each phase began", _phases(recording)))
    claimed = claims(recording.metadata, recording.config, summary)
    parts.append(section("How far to trust this", Text("\n".join(sentences(claimed)))))
    for part in parts:
        console.print(part, width=min(console.width, WIDTH))


def section(title: str, body: RenderableType) -> Group:
    return Group("", Text(title, style="bold"), Padding(body, (0, 0, 0, 2), expand=False))


def table_of(*headings: str, left: int = 1) -> Table:
    """Columns of numbers behind `left` columns of words."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0), show_header=any(headings))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right", no_wrap=True)
    return table


def _let_notes_wrap(table: Table) -> None:
    """The last column holds words."""
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _headline(source: str, summary: Summary) -> Text:
    made = summary.mallocs + summary.callocs
    of = f"of {len(summary.processes):,} processes " if summary.processes else ""
    return Text.assemble(
        (f"{source} on {summary.allocator}", "bold"),
        f"\n{summary.events:,} events {of}in {format_time(summary.duration_ns)} of its time: "
        f"{made:,} blocks made, {summary.reallocs:,} reallocated, {summary.frees:,} freed",
    )


def _levels(summary: Summary) -> Table:
    """Peak and end of each layer, and the reference allocators beside."""
    table = table_of("", "peak", "end", "")
    _let_notes_wrap(table)

    def add(name: str, level: str, note: str = "") -> None:
        peak, end = (getattr(summary, f"{level}_{when}") for when in ("peak", "end"))
        table.add_row(name, format_size(peak), format_size(end), Text(note, style="dim"))

    add("asked for", "requested_bytes", "live, as the program asked")
    add("in blocks", "block_bytes", "rounded up, with libc's headers")
    if summary.pymalloc_model:
        add("in pools", "pool_bytes", "pools with a live block")
        add("in arenas", "arena_bytes")
    add("libc's heap", "heap_bytes", "brk and large blocks")
    add("mapped", "mapped_bytes")
    add("resident", "resident_bytes", f"{summary.blowup:.2f} times the peak of what was asked for")
    for bound, note in ((summary.floor, "resident, wasting nothing"), (summary.ceiling, "resident, never freeing")):
        if bound:
            peak, end = format_size(bound.resident_bytes_peak), format_size(bound.resident_bytes_end)
            table.add_row(bound.allocator, peak, end, Text(note, style="dim"), style="dim")
    if summary.static_bytes or summary.stack_bytes:
        peak = format_size(summary.process_bytes_peak)
        note = f"mapped, static {format_size(summary.static_bytes)}, stacks {format_size(summary.stack_bytes)}"
        table.add_row("all processes" if summary.processes else "whole process", peak, "", Text(note, style="dim"))
    return table


def _where_title(summary: Summary) -> str:
    moment = format_time(summary.peak_time_ns)
    return f"Where the mapped memory was, at the peak of resident memory ({moment})"


def _where(summary: Summary) -> Group:
    """Mapped memory, taken apart without rest."""
    block, small_block = summary.block_bytes_at_peak, summary.small_block_bytes_at_peak
    mapped = summary.mapped_bytes_at_peak
    requested = summary.requested_bytes_at_peak
    parts = [("asked for", requested), ("rounding, headers", block - requested)]
    if summary.pymalloc_model:
        parts.append(("free in pools", summary.pool_bytes_at_peak - small_block))
        parts.append(("pools not in use", summary.arena_bytes_at_peak - summary.pool_bytes_at_peak))
    parts.append(("free in libc", mapped - summary.arena_bytes_at_peak - (block - small_block)))
    table = table_of("", "", "", "")
    _let_notes_wrap(table)
    for name, size_bytes in parts:
        share = size_bytes / mapped if mapped else 0.0
        table.add_row(name, format_size(size_bytes), _percent(share), Text("█" * round(40 * share), style="cyan"))
    untouched = mapped - summary.resident_bytes_at_peak
    table.add_row("mapped", format_size(mapped), "", Text(f"{format_size(untouched)} of it not resident", style="dim"))
    internal, external = _percent(summary.internal_fragmentation), _percent(summary.external_fragmentation)
    ends = _percent(summary.internal_fragmentation_end), _percent(summary.external_fragmentation_end)
    return Group(
        table,
        f"internal fragmentation {internal:>7} of the blocks, {ends[0]:>7} at the end",
        f"external fragmentation {external:>7} of what is mapped, {ends[1]:>7} at the end",
    )


def _processes(summary: Summary) -> Group:
    """What the largest had of the peak of all, and what each came to by itself."""
    table = table_of("", "at peak\nof all", "share", "own peak:\nasked for", "\nmapped", "\nresident", "end:\nresident")
    whole = summary.resident_bytes_at_peak
    by_size = sorted(summary.processes, key=lambda each: each.at_peak_of_all["resident_bytes"], reverse=True)
    for each in by_size[:_PROCESSES_SHOWN]:
        then = each.at_peak_of_all["resident_bytes"]
        own = (each.requested_bytes_peak, each.mapped_bytes_peak, each.resident_bytes_peak, each.resident_bytes_end)
        table.add_row(
            Text(printable(each.name)),
            format_size(then),
            _percent(then / whole if whole else 0.0),
            *map(format_size, own),
        )
    others = by_size[_PROCESSES_SHOWN:]
    if others:
        then = sum(each.at_peak_of_all["resident_bytes"] for each in others)
        end = format_size(sum(each.resident_bytes_end for each in others))
        table.add_row(
            f"{len(others)} others", format_size(then), _percent(then / whole if whole else 0.0), "", "", "", end
        )
    own_peaks = format_size(sum(each.resident_bytes_peak for each in summary.processes))
    together = format_size(summary.resident_bytes_peak)
    note = f"own peaks come to {own_peaks} resident; together they never had more than {together}"
    return Group(table, Text(note, style="dim"))


def _arenas(summary: Summary, arenas: pl.DataFrame) -> Group:
    lines = [
        f"arenas  {summary.arenas_mapped:,} mapped, {summary.arenas_unmapped:,} given back; "
        f"{summary.arenas_peak:,} at the most, {summary.arenas_live:,} left at the end",
        f"pools   {summary.pools_full:,} full, {summary.pools_used:,} partly used, "
        f"{summary.pools_free:,} free at the end",
    ]
    if arenas.height:
        least, middle, most = (arenas["occupancy"].quantile(part, "linear") or 0.0 for part in (0, 0.5, 1))
        spread = f"{_percent(least)} least, {_percent(middle)} median, {_percent(most)} most"
        lines.append(f"in use  of the arenas left: {spread if arenas.height > 1 else _percent(least)}")
        emptiest = arenas.sort("occupancy", "address").row(0, named=True)
        blocks = "1 block keeps" if emptiest["blocks"] == 1 else f"{emptiest['blocks']:,} blocks keep"
        if emptiest["blocks"]:
            of = f" of {emptiest['process']}" if "process" in emptiest else ""
            lines.append(f"        {blocks} the emptiest, at {emptiest['address']:#x}{of}, from going back")
    return Group(*lines)


def _system_calls(summary: Summary) -> Group:
    table = table_of("", "calls", "bytes", "simulated time")
    for kind, calls in summary.syscalls.items():
        if calls:
            table.add_row(kind, f"{calls:,}", format_size(summary.syscall_bytes[kind]), "")
    times = summary.simulated_ns
    table.add_row("all system calls", f"{sum(summary.syscalls.values()):,}", "", format_time(times.syscalls))
    table.add_row("page faults", f"{summary.page_faults:,}", "", format_time(times.page_faults))
    calls = summary.mallocs + summary.callocs + summary.reallocs + summary.frees
    table.add_row("allocator calls", f"{calls:,}", "", format_time(times.calls))
    if summary.pymalloc_model:
        table.add_row("pools set up", f"{summary.pools_made:,}", "", format_time(times.pools))
    return Group(table)


def _size_classes(summary: Summary, classes: pl.DataFrame, pools: pl.DataFrame) -> Group:
    """The classes that waste most, all domains together; the others in one row; the totals."""
    headings = ["block", "layer", "blocks", "waste", "live\nblocks", "live\nbytes", "live\nwaste"]
    table = table_of(*headings, *(["pools"] if pools.height else []), left=2)
    sums = pl.col([name for name in classes.columns if name.endswith(("blocks", "_bytes"))]).sum()
    known = classes.filter(pl.col("waste_bytes").is_not_null())
    merged = (
        known.group_by("role", "block_size")
        .agg(sums)
        .sort("live_waste_bytes", "waste_bytes", "role", "block_size", descending=[True, True, False, False])
    )
    pools_by_size = {row["block_size"]: row["pools_used"] + row["pools_full"] for row in pools.iter_rows(named=True)}
    for row in merged.head(_CLASSES_SHOWN).iter_rows(named=True):
        own = pools_by_size.get(row["block_size"], 0) if row["role"] == "pymalloc" else 0
        cells = _class_cells(row, row["live_waste_bytes"])
        table.add_row(format_size(row["block_size"]), row["role"], *cells, *([f"{own:,}"] if own else []))
    others = merged.slice(_CLASSES_SHOWN)
    if others.height:
        row = others.select(sums).row(0, named=True)
        table.add_row(f"{others.height} others", "", *_class_cells(row, row["live_waste_bytes"]))
    large = classes.filter(pl.col("waste_bytes").is_null())
    waste_end_bytes = summary.block_bytes_end - summary.requested_bytes_end
    if large.height:
        rest_bytes = waste_end_bytes - int(known["live_waste_bytes"].sum())
        cells = _class_cells({**large.select(sums).row(0, named=True), "block_bytes": 0}, rest_bytes)
        table.add_row(f"over {_LARGEST_KNOWN:,} B", "", *cells)
    total = {**classes.select(sums).row(0, named=True), "block_bytes": 0}
    all_pools = sum(pools_by_size.values())
    cells = _class_cells(total, waste_end_bytes)
    table.add_row("all", "", *cells, *([f"{all_pools:,}"] if all_pools else []), style="bold")
    note = "blocks and waste: of all that were ever made, a realloc making a new one; the rest: at the end"
    return Group(table, Text(note, style="dim"))


def _class_cells(row: dict[str, int], live_waste_bytes: int) -> Iterator[str]:
    """`block_bytes` of 0 stands for unknown."""
    yield f"{row['blocks']:,}"
    yield _percent(row["waste_bytes"] / row["block_bytes"]) if row["block_bytes"] else ""
    yield f"{row['live_blocks']:,}"
    yield format_size(row["live_requested_bytes"])
    yield format_size(live_waste_bytes)


def _phases(recording: Recording) -> Table:
    table = table_of("phase", "began at", "asked for", "blocks", "mapped", "resident", "arenas")
    levels = ("requested_bytes", "block_bytes", "mapped_bytes", "resident_bytes")
    end = ("(end)", int(recording.sample_times_ns[-1]), recording.end)
    after = ("(after teardown)", *recording.teardown) if recording.teardown else end
    for phase, time_ns, tally in (*recording.phases, after):
        sizes = (format_size(int(tally[level])) for level in levels)
        table.add_row(printable(phase), format_time(time_ns), *sizes, f"{int(tally['arenas']):,}")
    return table
