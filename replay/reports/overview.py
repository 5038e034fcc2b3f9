"""The short report of a run: what was simulated, live against resident memory, and what keeps the difference.

Resident memory at one moment is taken apart without rest: requested bytes that are live, what rounding and headers add
to them, and what is free but not released.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl
from rich.text import Text

from replay.analysis.metrics import Summary
from replay.config import StackConfig
from replay.reports.tables import LABEL_WIDTH, labelled, percent
from replay.support.names import printable
from replay.support.units import format_size, format_time
from replay.trace import Provenance

_TIME_SHARE = 0.01
"""Below this part of the trace's duration the time in the allocator is not worth a line."""


def overview(
    source: str, settings: Sequence[str], stack: StackConfig, summary: Summary, arenas: pl.DataFrame
) -> Iterator[Text]:
    """The lines of the report, wrapped. `settings` are those that were changed in the stack, `arenas` those at end."""
    changed = f" with {', '.join(settings)}" if settings else ""
    headline = f"{printable(source)} on {stack.name}{changed} ({', '.join(_models(stack))})"
    yield Text(headline, style="bold")
    processes = f" of {len(summary.processes):,} processes" if summary.processes else ""
    made = _made(Provenance.from_texts(summary.trace))
    yield Text(f"{summary.events:,} events{processes} in {format_time(summary.duration_ns)}{made}")
    yield Text("")
    yield from _memory(summary)
    yield Text("")
    for label, text in _facts(summary, arenas):
        yield labelled(label, text)


def _models(stack: StackConfig) -> Iterator[str]:
    """The models of the roles that are in use, with their versions."""
    for model in reversed(stack.models):
        yield " ".join(filter(None, (model, getattr(stack.section(model), "version", ""))))


def _made(origin: Provenance) -> str:
    """How the trace was made."""
    if origin.interpreter is not None:
        return f", recorded with {printable(origin.interpreter)}"
    if origin.workload is not None:
        return f", generated with seed {origin.seed or 0}"
    return ""


def _memory(summary: Summary) -> Iterator[Text]:
    """Resident memory at peak and at end by what it is used for."""
    moments = [
        (requested, block - requested, resident - block, resident)
        for requested, block, resident in (
            (summary.requested_bytes_at_peak, summary.block_bytes_at_peak, summary.resident_bytes_at_peak),
            (summary.requested_bytes_end, summary.block_bytes_end, summary.resident_bytes_end),
        )
    ]
    yield Text(f"{'':<{LABEL_WIDTH}}{'at peak':>10}{'':7}{'at end':>12}", style="dim")
    rows = [
        ("live", "requested, not yet freed"),
        ("rounding", "size classes and headers"),
        ("retained", "free, but not released"),
        ("resident", f"in RSS; peak at {format_time(summary.peak_time_ns)}"),
    ]
    for index, (label, note) in enumerate(rows):
        cells = "".join(
            f"{format_size(parts[index]):>{width}}{_share(parts, index)}"
            for width, parts in zip((10, 12), moments, strict=True)
        )
        yield Text.assemble(
            (f"{label:<{LABEL_WIDTH}}", "bold" if label == "resident" else ""), cells, (f"   {note}", "dim")
        )


def _share(parts: tuple[int, ...], index: int) -> str:
    """The part of resident memory, in the width of a column; nothing for resident memory itself."""
    resident = parts[-1]
    return f"{100 * parts[index] / resident:>5.0f} %" if resident and index < len(parts) - 1 else f"{'':7}"


def _facts(summary: Summary, arenas: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """Labels and sentences."""
    if summary.resident_bytes_peak > summary.resident_bytes_at_peak:
        yield (
            "highest",
            f"{format_size(summary.resident_bytes_peak)} resident within one call, e.g. a realloc that copies",
        )
    for label, kind, whole in (("fragmentation", "internal", "allocated"), ("", "external", "mapped")):
        peak, end = (percent(getattr(summary, f"{kind}_fragmentation{when}")) for when in ("", "_end"))
        yield label, f"{kind} {peak} at peak, {end} at end (of {whole} bytes)"
    if summary.small_model:
        live = f"{summary.arenas_live:,} live at end"
        yield "arenas", f"{summary.arenas_mapped:,} mapped, {summary.arenas_unmapped:,} released, {live}"
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
    parts = [f"{arenas.height - used.height:,} empty"] if used.height < arenas.height else []
    if used.height:
        arena = used.row(0, named=True)
        parts.append(
            f"emptiest{' in use' * bool(parts)} {percent(arena['occupancy'])} full, pinned by {blocks_of(arena)}"
        )
    return "; ".join(parts)


def blocks_of(arena: Mapping[str, Any]) -> str:
    """The number of live blocks in an arena, in words."""
    return f"{arena['blocks']:,} block{'s' * (arena['blocks'] != 1)}"


def _largest(summary: Summary) -> str:
    """The process with the most resident memory at the peak of all."""
    largest = max(summary.processes, key=lambda each: each.at_peak_of_all["resident_bytes"])
    size_bytes = largest.at_peak_of_all["resident_bytes"]
    share = size_bytes / summary.resident_bytes_at_peak if summary.resident_bytes_at_peak else 0.0
    return f"{printable(largest.name)}, {format_size(size_bytes)} at peak ({percent(share)})"
