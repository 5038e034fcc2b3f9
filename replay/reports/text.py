"""Prints the results of a run: the overview and, if requested, all tables."""

from collections.abc import Iterator, Sequence

import polars as pl
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from replay.analysis import frames, metrics
from replay.analysis.forks import ForkedMemory
from replay.analysis.live import Live
from replay.analysis.metrics import Summary
from replay.reports.claims import claims, sentences
from replay.reports.fitting import without_columns
from replay.reports.forks import TITLE as FORKS_TITLE
from replay.reports.forks import forks_table
from replay.reports.live import SHOWN, live_table
from replay.reports.overview import blocks_of, overview
from replay.reports.tables import WIDTH, labelled, let_notes_wrap, percent, section, table_of
from replay.reports.threads import TITLE, thread_table
from replay.simulation.loop import EXACT_CLASSES, class_limit
from replay.simulation.result import RunResult
from replay.support.names import printable
from replay.support.units import format_size, format_time

_CLASSES_SHOWN = 12
_PROCESSES_SHOWN = 16
_BESIDE_BARS = 44
"""Columns beside the bars: indentation, names, sizes and shares."""
_LARGEST_KNOWN = class_limit(EXACT_CLASSES - 1)


def print_report(
    console: Console,
    source: str,
    result: RunResult,
    summary: Summary,
    *,
    settings: Sequence[str] = (),
    live: Live | None = None,
    forks: Sequence[ForkedMemory] = (),
    full: bool = False,
) -> None:
    """Prints the overview, who is live at the peak, the memory of forked children, the times of threads, and the
    claims; with `full`, also all tables.

    `settings`: the changed settings of the stack.
    """
    arenas = frames.arenas(result)
    width = min(console.width, WIDTH)
    for line in overview(source, settings, result, summary, arenas, console.width):
        console.print(line, soft_wrap=True)
    if live and live.by_site:
        title = "Live at the peak of resident memory, by call site"
        console.print(section(title, live_table(live.by_site, live.bytes, SHOWN)), width=width)
    if forks:
        console.print(section(FORKS_TITLE, forks_table(forks)), width=width)
    if times := result.metadata.thread_times:
        console.print(section(TITLE, thread_table(times)), width=width)
    for table in _tables(console, result, summary, arenas) if full else ():
        console.print(table, width=width)
    console.print()
    for sentence in sentences(claims(result.metadata, result.config, summary)):
        label, _, text = sentence.partition(": ")
        console.print(labelled(label.lower(), text, width), soft_wrap=True)


def _tables(console: Console, result: RunResult, summary: Summary, arenas: pl.DataFrame) -> Iterator[Group]:
    yield section("Memory by layer", _levels(summary))
    yield section(_where_title(summary), _where(summary, min(console.width, WIDTH) - _BESIDE_BARS))
    if summary.processes:
        yield section("Processes, by resident memory at the peak of all", _processes(console, summary))
    if summary.small_model:
        yield section("Arenas and pools", _arenas(summary, arenas))
    yield section("Calls and simulated time", _system_calls(summary))
    if summary.counters:
        yield section("Counters of the models", _counters(summary))
    if summary.block_bytes_peak > summary.requested_bytes_peak:
        classes = _size_classes(console, summary, frames.size_classes(result), frames.pools(result))
        yield section("Size classes, by waste at end", classes)
    if len(sums := frames.collections_by_generation(result)):
        yield section("Garbage collections", _collections(sums, summary.duration_ns, frames.visits_label(result)))
    if result.phases:
        yield section("Memory at the start of each phase", _phases(console, result))


def _levels(summary: Summary) -> Table:
    """Returns a table of each layer and of the reference allocators, at peak and at end."""
    table = table_of("", "peak", "end", "")
    let_notes_wrap(table)

    def add(name: str, level: str, note: str = "") -> None:
        peak, end = (getattr(summary, f"{level}_{when}") for when in ("peak", "end"))
        table.add_row(name, format_size(peak), format_size(end), Text(note, style="dim"))

    add("requested", "requested_bytes", "live blocks, as requested")
    add("allocated", "block_bytes", "live blocks, rounded up, with headers")
    if summary.small_model:
        add("pools", "pool_bytes", "pools with a live block")
        add("arenas", "arena_bytes")
    add("libc's heap", "heap_bytes", "brk and large blocks")
    add("mapped", "mapped_bytes")
    add("resident", "resident_bytes", f"{summary.blowup:.2f} times the requested peak")
    for bound, note in (
        (summary.floor, "resident with no waste at all"),
        (summary.ceiling, "resident if nothing was ever reused"),
    ):
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
    return f"Mapped memory at the peak of resident memory, {moment} after the first event"


def _where(summary: Summary, bar_width: int) -> Table:
    """Returns a table of mapped memory by layer, with bars of up to `bar_width` columns. The layers add up."""
    mapped = summary.mapped_bytes_at_peak
    layers = [("live", summary.requested_bytes_at_peak), ("rounding, headers", summary.rounding_bytes_at_peak)]
    if summary.small_model:
        layers.append(("free in pools", summary.free_in_pools_bytes_at_peak))
        layers.append(("free pools", summary.free_pools_bytes_at_peak))
    layers.append(("free in libc", summary.free_in_libc_bytes_at_peak))
    table = table_of("", "", "", "")
    let_notes_wrap(table)
    for name, size_bytes in layers:
        share = size_bytes / mapped if mapped else 0.0
        table.add_row(name, format_size(size_bytes), percent(share), Text("█" * round(bar_width * share), style="cyan"))
    note = f"{format_size(summary.not_resident_bytes_at_peak)} of it not resident"
    table.add_row("mapped", format_size(mapped), "", Text(note, style="dim"))
    return table


def _processes(console: Console, summary: Summary) -> Group:
    """Returns a table of the processes, the largest first: share in the peak of all together, and own peaks."""
    table = table_of(
        "", "at peak\nof all", "share", "own peak:\nrequested", "\nmapped", "\nresident", "at end:\nresident"
    )
    whole = summary.resident_bytes_at_peak
    by_size = sorted(summary.processes, key=lambda each: each.at_peak_of_all["resident_bytes"], reverse=True)
    for each in by_size[:_PROCESSES_SHOWN]:
        then = each.at_peak_of_all["resident_bytes"]
        own = (each.requested_bytes_peak, each.mapped_bytes_peak, each.resident_bytes_peak, each.resident_bytes_end)
        table.add_row(
            Text(printable(each.name)),
            format_size(then),
            percent(then / whole if whole else 0.0),
            *map(format_size, own),
        )
    others = by_size[_PROCESSES_SHOWN:]
    if others:
        then = sum(each.at_peak_of_all["resident_bytes"] for each in others)
        end = format_size(sum(each.resident_bytes_end for each in others))
        table.add_row(
            f"{len(others)} others", format_size(then), percent(then / whole if whole else 0.0), "", "", "", end
        )
    own_peaks = format_size(sum(each.resident_bytes_peak for each in summary.processes))
    together = format_size(summary.resident_bytes_peak)
    note = f"sum of the own peaks: {own_peaks} resident; peak of all together: {together}"
    return Group(without_columns(console, table, "own peak: requested", "mapped"), Text(note, style="dim"))


def _arenas(summary: Summary, arenas: pl.DataFrame) -> Group:
    lines = [
        f"arenas  {summary.arenas_mapped:,} mapped, {summary.arenas_unmapped:,} released; "
        f"{summary.arenas_peak:,} at peak, {summary.arenas_live:,} at end",
        f"pools   {summary.pools_full:,} full, {summary.pools_used:,} partly used, {summary.pools_free:,} free at end",
    ]
    if arenas.height:
        least, middle, most = (arenas["occupancy"].quantile(part, "linear") or 0.0 for part in (0, 0.5, 1))
        spread = f"{percent(least)} lowest, {percent(middle)} median, {percent(most)} highest"
        lines.append(f"in use  {spread if arenas.height > 1 else percent(least)} of an arena, at end")
        emptiest = arenas.sort("occupancy", "address").row(0, named=True)
        if emptiest["blocks"]:
            process = f" of {printable(emptiest['process'])}" if "process" in emptiest else ""
            lines.append(f"pinned  the emptiest, at {emptiest['address']:#x}{process}, by {blocks_of(emptiest)}")
    return Group(*lines)


def _system_calls(summary: Summary) -> Table:
    table = table_of("", "calls", "bytes", "simulated time")
    for name, calls in (
        ("allocations", summary.mallocs + summary.callocs + summary.memaligns),
        ("reallocations", summary.reallocs),
        ("frees", summary.frees),
    ):
        table.add_row(name, f"{calls:,}", "", "")
    times = summary.simulated_ns
    calls = summary.mallocs + summary.callocs + summary.memaligns + summary.reallocs + summary.frees
    table.add_row("all allocator calls", f"{calls:,}", "", format_time(times.calls))
    if summary.small_model:
        table.add_row("pools set up", f"{summary.pools_made:,}", "", format_time(times.pools))
    for kind, calls in summary.syscalls.items():
        if calls:
            table.add_row(kind, f"{calls:,}", format_size(summary.syscall_bytes[kind]), "")
    table.add_row("all system calls", f"{sum(summary.syscalls.values()):,}", "", format_time(times.syscalls))
    table.add_row("page faults", f"{summary.page_faults:,}", "", format_time(times.page_faults))
    return table


def _counters(summary: Summary) -> Table:
    """Returns a row for each counter of the models: levels have values at three moments, other counters at end."""
    table = table_of("", "peak", "at peak", "end", "")
    let_notes_wrap(table)
    for name in summary.counters:
        if name.endswith(("_peak", "_at_peak")):
            continue
        counter = metrics.own_counter(name)
        assert counter is not None
        stem = name.removesuffix("_end")
        values = [summary.counters.get(moment) for moment in (f"{stem}_peak", f"{stem}_at_peak", name)]
        is_size = counter.unit == "bytes"
        cells = ["" if value is None else format_size(value) if is_size else f"{value:,}" for value in values]
        table.add_row(stem, *cells, Text(counter.meaning, style="dim"))
    return table


def _size_classes(console: Console, summary: Summary, classes: pl.DataFrame, pools: pl.DataFrame) -> Group:
    """Returns the classes with the most waste over all domains, the others in one row, and the totals."""
    headings = ["block", "layer", "blocks", "waste", "live\nblocks", "live\nbytes", "live\nwaste"]
    table = table_of(*headings, *(["pools"] if pools.height else []), left=2)
    sums = pl.col([name for name in classes.columns if name.endswith(("blocks", "_bytes"))]).sum()
    known = classes.filter(pl.col("waste_bytes").is_not_null())
    merged = (
        known.group_by("role", "block_size")
        .agg(sums)
        .sort("live_waste_bytes", "waste_bytes", "role", "block_size", descending=[True, True, False, False])
    )
    models = {"small": summary.small_model, "libc": summary.libc_model}
    pools_by_size = {row["block_size"]: row["pools_used"] + row["pools_full"] for row in pools.iter_rows(named=True)}
    for row in merged.head(_CLASSES_SHOWN).iter_rows(named=True):
        own = pools_by_size.get(row["block_size"], 0) if row["role"] == "small" else 0
        cells = _class_cells(row, row["live_waste_bytes"])
        table.add_row(format_size(row["block_size"]), models[row["role"]], *cells, *([f"{own:,}"] if own else []))
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
    note = "blocks, waste: of all blocks ever allocated (a realloc allocates one); other columns: at end"
    return Group(without_columns(console, table, "pools", "waste", "layer"), Text(note, style="dim"))


def _class_cells(row: dict[str, int], live_waste_bytes: int) -> Iterator[str]:
    """Yields the cells of a row. `block_bytes` 0: unknown."""
    yield f"{row['blocks']:,}"
    yield percent(row["waste_bytes"] / row["block_bytes"]) if row["block_bytes"] else ""
    yield f"{row['live_blocks']:,}"
    yield format_size(row["live_requested_bytes"])
    yield format_size(live_waste_bytes)


def _collections(sums: pl.DataFrame, duration_ns: int, visits: str | None) -> Table:
    """Returns a row for each generation, or one for all where they are unknown. `visits`: whether they are exact."""
    visited = "(estimate)\nvisited" if visits == "estimate" else "objects\nvisited"
    headings = ("generation", "number", visited, "found", "blocks\nfreed", "bytes", "time", "share")
    table = table_of(*(each if "\n" in each else f"\n{each}" for each in headings))
    for row in sums.rows(named=True):
        known = row["generation"] is not None
        table.add_row(
            str(row["generation"]) if known else "all",
            f"{row['collections']:,}",
            f"{row['visited_objects']:,}" if visits else "",
            f"{row['found_objects']:,}" if known else "",
            f"{row['freed_blocks']:,}",
            format_size(row["freed_bytes"]),
            format_time(row["duration_ns"]),
            percent(row["duration_ns"] / duration_ns) if duration_ns else "",
        )
    return table


def _phases(console: Console, result: RunResult) -> Table:
    table = table_of("phase", "start", "requested", "allocated", "mapped", "resident", "arenas")
    levels = ("requested_bytes", "block_bytes", "mapped_bytes", "resident_bytes")
    end = ("(end)", int(result.sample_times_ns[-1]), result.end)
    after = ("(after teardown)", *result.teardown) if result.teardown else end
    for phase, time_ns, tally in (*result.phases, after):
        sizes = (format_size(int(tally[level])) for level in levels)
        table.add_row(printable(phase), format_time(time_ns), *sizes, f"{int(tally['arenas']):,}")
    return without_columns(console, table, "allocated", "arenas", "start")
