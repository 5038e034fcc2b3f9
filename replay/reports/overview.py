"""The short report of a run: trace, stack, and resident memory split into live and retained bytes.

The parts by layer, minus the mapped pages of these layers that are not resident, add up to the retained bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
from rich.text import Text

from replay.allocators import constants_of
from replay.analysis.metrics import Summary, requested_peak_ns
from replay.reports.memory_chart import memory_chart
from replay.reports.tables import LABEL_WIDTH, WIDTH, labelled, percent
from replay.simulation.result import RunResult
from replay.support.names import printable
from replay.support.units import format_count, format_size, format_time
from replay.trace import Provenance
from replay.trace.provenance_text import how_made

_TIME_SHARE = 0.01
"""The report has the time in the allocator if it is at least this share of the trace's duration."""

_LIVE_PEAK_DIFFERENCE = 0.1
"""A line explains the difference between live bytes at the resident peak and the live peak if it is at least this
share of the live peak. Below a tenth, the line `ideal` and the column `at peak` show about the same value."""
_ABOUT = 0.01
"""The live peak has an approximate time if the samples around it are at most this share of the duration apart."""


def overview(
    source: str,
    settings: Sequence[str],
    result: RunResult,
    summary: Summary,
    arenas: pl.DataFrame,
    console_width: int = WIDTH,
) -> Iterator[Text]:
    """Yields the lines of the report. The headline is not wrapped, and the chart is as wide as the console.

    `settings`: the changed settings of the stack; `arenas`: the frame of the arenas at end.
    """
    stack, width = result.config, min(console_width, WIDTH)
    changed = f" with {', '.join(settings)}" if settings else ""
    models = ", ".join(stack.title(model) for model in reversed(stack.models))
    headline = f"{printable(source)} on {stack.name}{changed} ({models})"
    yield Text(headline, style="bold")
    processes = f" of {len(summary.processes):,} processes" if summary.processes else ""
    made = how_made(Provenance.from_texts(summary.trace))
    yield Text(f"{summary.events:,} events{processes} in {format_time(summary.duration_ns)}{made}")
    yield Text("")
    yield from _memory(summary, width)
    if width < WIDTH:
        yield Text(f"peak at {format_time(summary.peak_time_ns)}", style="dim")
    yield Text("")
    if chart := list(memory_chart(result, console_width)):
        yield from (*chart, Text(""))
    for label, text in (*_peaks(result, summary), *_facts(summary, arenas)):
        yield labelled(label, text, width)


def _memory(summary: Summary, width: int) -> Iterator[Text]:
    """Yields a table of live, retained and resident bytes at peak and at end; retained bytes also by layer.

    Rows have notes only if the longest note fits into `width`.
    """
    rows = [
        ("live", "requested_bytes", "requested, not yet freed"),
        ("retained", "retained_bytes", "resident, but not live"),
        ("  rounding", "rounding_bytes", "size classes and headers"),
        ("  in pools", "free_in_pools_bytes", "free blocks, pool headers"),
        ("  in arenas", "free_pools_bytes", "free pools"),
        ("  in libc", "free_in_libc_bytes", constants_of(summary.libc_model).FREE_MEMORY),
        ("  not resident", "not_resident_bytes", "of these, not in memory"),
        ("resident", "resident_bytes", f"in memory; peak {format_time(summary.peak_time_ns)}"),
    ]
    resident = _at_both_moments(summary, "resident_bytes")
    yield Text(f"{'':<{LABEL_WIDTH}}{'at peak':>10}{'':7}{'at end':>12}", style="dim")
    for label, level, note in rows:
        sizes = _at_both_moments(summary, level)
        is_part = label.startswith(" ")
        if is_part and not any(sizes):
            continue
        has_share = not is_part and level != "resident_bytes"
        sign = -1 if level == "not_resident_bytes" else 1
        cells = "".join(
            f"{format_size(sign * size):>{width}}{_share(size, whole) if has_share else '':7}"
            for width, size, whole in zip((11, 12), sizes, resident, strict=True)
        )
        style = "bold" if level == "resident_bytes" else "dim" if is_part else ""
        line = Text.assemble((f"{label:<{LABEL_WIDTH - 1}}", style), cells)
        yield line.append(f"   {note}", "dim") if width >= WIDTH else line


def _at_both_moments(summary: Summary, level: str) -> tuple[int, int]:
    return getattr(summary, f"{level}_at_peak"), getattr(summary, f"{level}_end")


def _share(size_bytes: int, resident_bytes: int) -> str:
    """Returns the share of resident memory, as wide as a column; 0 and 100 % only if it is exactly that."""
    if not resident_bytes:
        return f"{'':7}"
    percentage = f"{100 * size_bytes / resident_bytes:.0f}"
    if percentage == "0" and size_bytes:
        percentage = "<1"
    if percentage == "100" and size_bytes < resident_bytes:
        percentage = ">99"
    return f"{percentage:>5} %"


def _peaks(result: RunResult, summary: Summary) -> Iterator[tuple[str, str]]:
    """Yields labels and sentences about peaks at other moments than the resident peak."""
    if summary.resident_bytes_peak > summary.resident_bytes_at_peak:
        yield (
            "highest",
            f"{format_size(summary.resident_bytes_peak)} resident within one call, e.g. a realloc that copies",
        )
    live, live_peak = summary.requested_bytes_at_peak, summary.requested_bytes_peak
    if live_peak - live >= _LIVE_PEAK_DIFFERENCE * live_peak > 0:
        begin_ns, end_ns = requested_peak_ns(result)
        is_close = end_ns - begin_ns <= _ABOUT * summary.duration_ns
        when = f"at about {format_time(end_ns)}" if is_close else f"by {format_time(end_ns)}"
        yield (
            "live peak",
            f"{format_size(live_peak)} {when}; at the resident peak ({format_time(summary.peak_time_ns)}), only "
            f"{format_size(live)} is live and {format_size(summary.retained_bytes_at_peak)} is retained, "
            "because freed memory stayed resident",
        )


def _facts(summary: Summary, arenas: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """Yields labels and sentences."""
    means = (format_size(size_bytes) for size_bytes in (summary.resident_bytes_mean, summary.requested_bytes_mean))
    yield "mean over time", "{} resident, {} live".format(*means)
    for label, kind, whole in (("fragmentation", "internal", "allocated"), ("", "external", "mapped")):
        peak, end = (percent(getattr(summary, f"{kind}_fragmentation{when}")) for when in ("", "_end"))
        yield label, f"{kind} {peak} at peak, {end} at end (of {whole} bytes)"
    if summary.small_model:
        at_end = f"{summary.arenas_live:,} at end"
        yield "arenas", f"{summary.arenas_mapped:,} mapped, {summary.arenas_unmapped:,} released, {at_end}"
        if arenas.height:
            yield "", _emptiest(arenas)
    calls = sorted(((count, kind) for kind, count in summary.syscalls.items() if count), reverse=True)
    kinds = f" ({', '.join(f'{count:,} {kind}' for count, kind in calls)})" if calls else ""
    yield "system calls", f"{sum(summary.syscalls.values()):,}{kinds}, {summary.page_faults:,} page faults"
    times = summary.simulated_ns
    spent_ns = times.calls + times.pools + times.syscalls + times.page_faults
    if summary.duration_ns and spent_ns >= _TIME_SHARE * summary.duration_ns:
        share = percent(spent_ns / summary.duration_ns)
        yield (
            "allocator time",
            f"{format_time(spent_ns)} simulated, {share} of the trace's {format_time(summary.duration_ns)}",
        )
    if summary.floor and summary.floor.resident_bytes_peak:
        ratio = summary.resident_bytes_peak / summary.floor.resident_bytes_peak
        floor = format_size(summary.floor.resident_bytes_peak)
        yield "ideal", f"{floor} at peak without waste; this run takes {ratio:.2f} times that"
    if summary.static_bytes or summary.stack_bytes:
        static, stacks = format_size(summary.static_bytes), format_size(summary.stack_bytes)
        whole = format_size(summary.process_bytes_peak)
        yield "address space", f"{whole} at peak, of which static {static}, stacks {stacks}"
    if summary.processes:
        yield "largest process", _largest(summary)


def _emptiest(arenas: pl.DataFrame) -> str:
    used = arenas.filter(pl.col("blocks") > 0).sort("occupancy", "address")
    found = [f"{arenas.height - used.height:,} empty"] if used.height < arenas.height else []
    if used.height:
        arena = used.row(0, named=True)
        found.append(
            f"emptiest{' in use' * bool(found)} {percent(arena['occupancy'])} full, pinned by {blocks_of(arena)}"
        )
    return "; ".join(found)


def blocks_of(arena: Mapping[str, Any]) -> str:
    """Returns the number of live blocks in an arena with its unit, e.g. `3 blocks`."""
    return format_count(arena["blocks"], "block")


def _largest(summary: Summary) -> str:
    """Returns the process with the most resident memory at the peak of all processes together."""
    largest = max(summary.processes, key=lambda each: each.at_peak_of_all["resident_bytes"])
    size_bytes = largest.at_peak_of_all["resident_bytes"]
    share = size_bytes / summary.resident_bytes_at_peak if summary.resident_bytes_at_peak else 0.0
    return f"{printable(largest.name)}, {format_size(size_bytes)} at peak ({percent(share)})"
