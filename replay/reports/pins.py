"""Text and JSON of `replay pins`."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from replay.analysis.pin_report import AgeClass, PinReport
from replay.analysis.pins import Pins
from replay.reports.tables import labelled, section, table_of
from replay.support.names import printable
from replay.support.units import format_size, format_time

SHOWN = 8
_SHOWN_OF_OTHERS = 5
_SHARING = 3
"""Rows that are shown even if their groups pin memory only together with others."""


_LIBRARY = re.compile(r"\((?:[^()]*/site-packages/|[^()]*/lib/python\d\.\d+/)")


def short_name(name: str) -> str:
    """Returns the name of a group with the path of a call site as seen from this folder, or from the library's."""
    return printable(_LIBRARY.sub("(", name.replace(f"({Path.cwd()}/", "(")))


def pins_json(report: PinReport) -> dict[str, Any]:
    """Returns the report as JSON: `by_…` are lists of groups, `cover` is that of call sites."""
    found = asdict(report)
    for name in ("by_site", "by_type", "by_size_class", "by_thread", "by_phase", "by_domain"):
        found[name] = [group._asdict() for group in getattr(report, name).groups]
    if not report.has_sites:
        found["by_site"] = []
    if not report.has_types:
        found["by_type"] = []
    best = report.by_site if report.has_sites else report.by_size_class
    found["cover"] = [cover._asdict() for cover in best.cover]
    found["cover_is_exact"] = best.is_exact
    found["heap_ends"] = [end._asdict() for end in report.heap_ends]
    return found


def print_pins(
    console: Console,
    source: str,
    stack: str,
    at: str,
    report: PinReport,
    *,
    settings: Sequence[str] = (),
    full: bool,
) -> None:
    """Prints who pins memory. `settings`: the changed settings of the stack."""
    moment = {"end": "at the end", "peak": "at the peak"}.get(at, f"at {at}")
    changed = f" with {', '.join(settings)}" if settings else ""
    title = printable(f"{source} on {stack}{changed}, {moment} ({format_time(report.at_ns)})")
    console.print(f"{title}\n", soft_wrap=True)
    for label, text in _sentences(report, stack):
        console.print(labelled(label, text), soft_wrap=True)
    if report.by_size_class.groups:
        _print_groups(console, report, full)
    if report.ages:
        console.print(section("Live blocks by age", _ages(report.ages)))


def _print_groups(console: Console, report: PinReport, full: bool) -> None:
    if report.has_sites:
        console.print(section("Pinned by call site", _groups(report.by_site, None if full else SHOWN)))
        if report.by_site.cover:
            console.print(section(_cover_title(report.by_site), _cover(report.by_site)))
    shown = None if full else _SHOWN_OF_OTHERS
    if report.has_types:
        console.print(section("Pinned by type", _groups(report.by_type, shown)))
    console.print(section("Pinned by size class", _groups(report.by_size_class, shown)))
    if full or not report.has_sites:
        console.print(section("Pinned by phase of the allocation", _groups(report.by_phase, shown)))
        console.print(section("Pinned by thread", _groups(report.by_thread, shown)))
        console.print(section("Pinned by domain", _groups(report.by_domain, shown)))


def _sentences(report: PinReport, stack: str) -> list[tuple[str, str]]:
    size = format_size
    found = [
        (
            "resident",
            f"{size(report.resident_bytes)}: {size(report.requested_bytes)} live,"
            f" {size(report.retained_bytes)} retained",
        ),
        ("pinned", _pinned(report, stack)),
    ]
    if report.trimmable_bytes:
        found.append(("malloc_trim", f"would release {size(report.trimmable_bytes)} now"))
    found += [
        (
            "end of a heap",
            f"{end.blocks:,} {'block' if end.blocks == 1 else 'blocks'}: {short_name(end.name)};"
            f" without {'it' if end.blocks == 1 else 'them'}, {size(end.released_bytes)} would be released",
        )
        for end in sorted(report.heap_ends, key=lambda end: -end.released_bytes)[:3]
        if report.has_sites and end.released_bytes
    ]
    if report.never_freed_share is not None:
        found.append(("never freed", f"{report.never_freed_share:.1%} of the live bytes, until the end of the program"))
    if report.without:
        found.append(("without", ", ".join(map(short_name, report.without.sites))))
        found.append(("predicted", f"{size(report.without.released_bytes)} released"))
        found.append(
            (
                "simulated",
                f"{size(report.without.simulated_bytes)} less resident memory at this moment, in a run without the"
                " allocations of these call sites",
            )
        )
    return found


def _pinned(report: PinReport, stack: str) -> str:
    if not report.ages:
        return "nothing: no block is live at this moment"
    if not report.by_size_class.groups:
        return f"nothing: {stack} has no arena and no end of a heap that a live block keeps from being released"
    return f"{format_size(report.releasable_bytes)} would be released if the blocks below were gone"


def _groups(pins: Pins, shown: int | None) -> Table:
    table = table_of("", "pinned", "with others", "blocks", "spans", "oldest")
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    table.columns[0].min_width = 16
    rows = pins.groups
    if shown:
        pinning = sum(group.pinned_bytes > 0 for group in rows)
        rows = rows[: max(min(pinning, shown), _SHARING)]
    for group in rows:
        table.add_row(
            short_name(group.name),
            format_size(group.pinned_bytes),
            format_size(group.shared_bytes),
            f"{group.blocks:,}",
            f"{group.spans:,}",
            format_time(group.oldest_ns),
        )
    if left := len(pins.groups) - len(rows):
        table.add_row(f"and {left:,} more: --full", "", "", "", "", "")
    return table


def _cover_title(pins: Pins) -> str:
    how = "the best sets" if pins.is_exact else "each set adds one to the set before"
    return f"Call sites that release most together ({how})"


def _cover(pins: Pins) -> Table:
    table = table_of("", "released", "call sites", left=1)
    table.columns[2].justify, table.columns[2].no_wrap, table.columns[2].overflow = "left", False, "fold"
    for cover in pins.cover:
        names = "\n".join(map(short_name, cover.groups))
        table.add_row(str(len(cover.groups)), format_size(cover.released_bytes), names)
    return table


def _ages(ages: list[AgeClass]) -> Table:
    table = table_of("", "blocks", "bytes")
    for age in ages:
        above = f"from {format_time(age.least_ns)}" if age.least_ns else "from 0"
        text = f"{above} to {format_time(age.below_ns)}" if age.below_ns else above
        table.add_row(text, f"{age.blocks:,}", format_size(age.block_bytes))
    return table
