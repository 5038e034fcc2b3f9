"""The page about one run: answers, figures, charts, the heap map, tables.

Without JavaScript, answers and tables are there.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from replay.analysis.heap_history import HeapMap, RegionKind
from replay.analysis.pins import Pins
from replay.analysis.remedies import Remedy
from replay.analysis.report_data import ReportData
from replay.reports.claims import claims, sentences
from replay.reports.findings import findings, sites_advice
from replay.reports.html.chart_specs import Spec
from replay.reports.html.charts import lifetime_name
from replay.reports.html.document import Html, answers, cards, data_element, details, document, figure, table
from replay.reports.html.map_payload import map_payload
from replay.reports.html.timeline import phases_of
from replay.reports.pins import short_name
from replay.reports.tables import percent
from replay.support.names import printable
from replay.support.units import format_size, format_time
from replay.trace import Provenance
from replay.trace.provenance_text import how_made

_ROWS = 20
_REGIONS_LISTED = 200
_PHASES_LISTED = 50


def write_page(
    data: ReportData, charts: dict[str, Spec], *, source: str, settings: Sequence[str], command: str, library: str
) -> str:
    """Returns the page.

    `settings`: the changed settings of the stack; `command`: what makes the page again; `library`: JavaScript that
    defines `vegaEmbed`.
    """
    processes = [process.name for process in data.result.metadata.processes]
    meta, payload = map_payload(
        data.heap,
        [short_name(name) for name in data.sites],
        [printable(name) for name in data.types],
        data.site_codes,
        processes,
    )
    body = [
        answers(findings(data.result, data.summary, data.pins, data.remedies)),
        cards(_cards(data)),
        *_timeline(data, charts),
        *_map(data, meta),
        *_pins(data),
        *_remedies(data),
        *_blocks(data, charts),
        *_origin(data, command),
    ]
    elements = {"map-meta": data_element("map-meta", meta)}
    elements |= {name: f'<script type="text/plain" id="{name}">{text}</script>' for name, text in payload.items()}
    has_map = bool(meta["cells"])
    return document(
        f"Memory of {printable(source)}", _subtitle(data, settings), body, charts, library,
        data=elements if has_map else {}, scripts=["heap_map.js"] if has_map else [],
    )  # fmt: skip


def _subtitle(data: ReportData, settings: Sequence[str]) -> str:
    stack, summary = data.result.config, data.summary
    changed = f" with {', '.join(settings)}" if settings else ""
    models = ", ".join(stack.title(model) for model in reversed(stack.models))
    made = how_made(Provenance.from_texts(summary.trace))
    events = f"{summary.events:,} events in {format_time(summary.duration_ns)}{made}"
    return f"Simulated with {stack.name}{changed} ({models}). {events}."


def _cards(data: ReportData) -> Iterator[tuple[str, str]]:
    summary = data.summary
    yield "peak, resident", format_size(summary.resident_bytes_at_peak)
    yield "mean over time", format_size(summary.resident_bytes_mean)
    yield "at end", format_size(summary.resident_bytes_end)
    yield "of this live", format_size(summary.requested_bytes_end)
    yield "retained", format_size(summary.retained_bytes_end)
    if data.pins is not None:
        yield "pinned", format_size(data.pins.releasable_bytes)
    if summary.small_model:
        yield "arenas at end", f"{summary.arenas_live:,}"
    yield "system calls", f"{sum(summary.syscalls.values()):,}"


def _timeline(data: ReportData, charts: dict[str, Spec]) -> Iterator[str]:
    yield "<h2>Memory over time</h2>"
    if "timeline" not in charts:
        yield "<p>The trace takes no memory.</p>"
        return
    floor, ceiling = data.summary.floor, data.summary.ceiling
    bounds = (
        [f"<b>floor</b>: live bytes in whole pages, {format_size(floor.resident_bytes_peak)} at most."] if floor else []
    )
    if ceiling:
        bounds.append(f"Without any free, memory would reach {format_size(ceiling.resident_bytes_peak)} (ceiling).")
    caption = (
        "<b>resident</b>: in memory. <b>mapped</b>: address space. <b>live</b>: requested and not yet freed. "
        f"<b>allocated</b>: with rounding and headers. {' '.join(bounds)}"
    )
    yield '<p class="soft">Drag to move, scroll to zoom, double-click to reset.</p>'
    yield figure("timeline", "Memory over time; the table below has values", caption)
    rows = [*phases_of(data.result)[:_PHASES_LISTED], ("(end)", data.result.duration_ns, data.result.end)]
    levels = ("requested_bytes", "block_bytes", "mapped_bytes", "resident_bytes")
    yield details(
        "Values at phases and at the end",
        table(
            ["phase", "start", "live", "allocated", "mapped", "resident"],
            (
                [printable(name), format_time(at), *(format_size(int(tally[level])) for level in levels)]
                for name, at, tally in rows
            ),
        ),
    )


def _map(data: ReportData, meta: dict[str, Any]) -> Iterator[str]:
    yield "<h2>Heap map</h2>"
    if not meta["cells"]:
        yield "<p>Nothing was mapped.</p>"
        return
    labels = {"peak": "Peak", "end": "End"}
    buttons = "".join(
        f'<button data-frame="{number}">{labels[frame["label"]]}</button>'
        for number, frame in enumerate(meta["frames"])
        if frame["label"] in labels
    )
    modes = {"occupancy": "share of live bytes", "size_class": "size class"}
    modes |= {"age": "age of the oldest block"} if meta["has_origins"] else {}
    modes |= {"site": "call site"} if meta["sites"] else {}
    modes |= {"type": "Python type"} if meta["types"] else {}
    options = "".join(f'<option value="{name}">{text}</option>' for name, text in modes.items())
    hidden = "" if meta["sites"] or meta["types"] else " hidden"
    yield f"""<p class="soft">Each row is memory that is mapped as a whole. A live block in an arena keeps the whole
arena; few live bytes in many arenas are fragmentation. Keys: arrows, space, + and -, comma and full stop.</p>
<div class="panel">
<div class="controls">
<button id="map-play">Play</button>
<input id="map-slider" type="range" min="0" value="0" aria-label="Moment of the run">
<output id="map-time"></output>{buttons}
</div>
<div class="controls">
<label>Colour <select id="map-mode">{options}</select></label>
<label{hidden}>Find <input id="map-search" type="search" size="18" placeholder="call site or type"></label>
<output id="map-found" class="soft"></output>
<button id="map-larger" aria-label="Zoom in">+</button><button id="map-smaller" aria-label="Zoom out">−</button>
</div>
<div id="map-legend"></div>
<div id="map-view" tabindex="0" role="application" aria-label="Heap map" aria-describedby="map-info">
<canvas id="map-canvas"></canvas><canvas id="map-overlay"></canvas></div>
<div id="map-info" aria-live="polite"></div>
<div id="map-blocks" class="scroll"></div>
</div>"""
    yield details("Regions at the end", _regions(data.heap))


def _regions(heap: HeapMap) -> str:
    """Returns a table of what each region holds at the end, emptiest first."""
    cells, first, rows = heap.at(len(heap.frames) - 1), 0, []
    for region in heap.regions:
        own = cells[first : first + region.cells]
        first += region.cells
        mapped, resident, live, blocks = (
            int(own[name].sum(dtype="i8")) for name in ("mapped_bytes", "resident_bytes", "live_bytes", "blocks")
        )
        if mapped:
            name = f"{RegionKind(region.kind).name.lower()} {region.address:#x}"
            used = int((own["live_bytes"] > 0).sum())
            sizes = map(format_size, (mapped, resident, live))
            rows.append((live / mapped, [name, *sizes, percent(live / mapped), f"{blocks:,}", f"{used:,}"]))
    rows.sort(key=lambda row: row[0])
    headings = ["region", "mapped", "resident", "live", "share", "live blocks", "cells in use"]
    shown = table(headings, (row for _, row in rows[:_REGIONS_LISTED]))
    more = len(rows) - _REGIONS_LISTED
    return shown + (f"<p>and {more:,} more</p>" if more > 0 else "")


def _pins(data: ReportData) -> Iterator[str]:
    pins = data.pins
    if pins is None or not pins.resident_bytes:
        return
    yield "<h2>What pins memory at the end</h2>"
    yield (
        '<p class="soft">A live block pins memory that the allocator could release without it: its whole arena, or the '
        "end of a heap before it. <b>pinned</b>: released if the blocks of this row are gone. <b>shared</b>: released "
        "only together with those of other rows.</p>"
    )
    shown = {
        "call site": pins.by_site if pins.has_sites else None,
        "type": pins.by_type if pins.has_types else None,
        "size class": pins.by_size_class,
    }
    for name, found in shown.items():
        if found and found.groups:
            yield f'<div class="panel">{_pin_table(name, found)}</div>'
    if advice := sites_advice(data.result, pins):
        yield f"<p>{escape(advice)}</p>"


def _pin_table(name: str, pins: Pins) -> str:
    groups = [group for group in pins.groups if group.pinned_bytes or group.shared_bytes][:_ROWS]
    highest = max((group.pinned_bytes + group.shared_bytes for group in groups), default=1)
    rows = (
        [
            short_name(group.name), _bar(group.pinned_bytes / highest, group.shared_bytes / highest),
            format_size(group.pinned_bytes), format_size(group.shared_bytes),
            f"{group.blocks:,}", f"{group.spans:,}", format_time(group.oldest_ns),
        ]
        for group in groups
    )  # fmt: skip
    return table([name, "", "pinned", "shared", "blocks", "regions", "oldest"], rows)


def _bar(pinned: float, shared: float) -> str:
    bars = f'<i style="width:{100 * pinned:.1f}%"></i><i class="shared" style="width:{100 * shared:.1f}%"></i>'
    return Html(f'<td class="bar"><span>{bars}</span></td>')


def _remedies(data: ReportData) -> Iterator[str]:
    if not data.remedies:
        return
    summary = data.summary
    before = summary.resident_bytes_mean, summary.resident_bytes_end, summary.resident_bytes_peak
    rows = (
        [
            each.name,
            *(
                f"{format_size(value)}{_change(value, base)}"
                for value, base in zip(
                    (each.resident_bytes_mean, each.resident_bytes_end, each.resident_bytes_peak), before, strict=True
                )
            ),
        ]
        for each in [Remedy("as in this report", (), *before), *data.remedies]
    )
    yield "<h2>What other settings would do</h2>"
    yield '<p class="soft">The same trace, simulated with each setting. Requests of the program stay the same.</p>'
    yield f'<div class="panel">{table(["setting", "mean, resident", "at end", "peak"], rows, bold=0)}</div>'


def _change(value: int, before: int) -> str:
    return f" ({100 * (value / before - 1):+.0f} %)" if before and value != before else ""


def _blocks(data: ReportData, charts: dict[str, Spec]) -> Iterator[str]:
    texts = {
        "classes": ("Size classes at the end", "Live bytes of the 16 largest size classes."),
        "lifetimes": ("Lifetimes", "All blocks of the trace, by the time between allocation and free."),
    }
    if shown := [figure(name, title, text, title=title) for name, (title, text) in texts.items() if name in charts]:
        yield f'<h2>Blocks</h2><div class="pair">{"".join(shown)}</div>'
    if "arenas" in charts:
        yield "<h2>Arenas over time</h2>"
        yield figure("arenas", "Life spans of arenas", "A line for each arena, between moments of the heap map.")
    if data.lifetimes.height:
        rows = (
            [lifetime_name(row), f"{row['blocks']:,}", format_size(row["requested_bytes"])]
            for row in data.lifetimes.rows(named=True)
        )
        yield details("Lifetimes as a table", table(["lifetime", "blocks", "requested"], rows))
    calls, sizes = data.summary.syscalls, data.summary.syscall_bytes
    made = ([kind, f"{calls[kind]:,}", format_size(sizes[kind])] for kind in calls if calls[kind])
    yield details("System calls", table(["system call", "calls", "bytes"], made))


def _origin(data: ReportData, command: str) -> Iterator[str]:
    stack = data.result.config
    settings = (
        [f"{section}.{key}" if key else section, printable(str(value))]
        for section, values in sorted(stack.effective_settings().items())
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    )
    claimed = sentences(claims(data.result.metadata, stack, data.summary))
    yield "<h2>How exact, and how made</h2>"
    yield f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in claimed)}</ul>"
    yield f"<p>This command makes the page again:</p>\n<pre>{escape(command)}</pre>"
    yield details("Configuration of the stack", table(["setting", "value"], settings))
