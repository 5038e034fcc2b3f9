"""One self-contained HTML page about a run: answers, figures, charts, the heap map, tables.

The page needs no network: a policy in it forbids every request. Without JavaScript, answers and tables are there.
"""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any

from replay import __version__
from replay.analysis.heap_history import HeapMap, RegionKind
from replay.analysis.pins import Pins
from replay.analysis.remedies import Remedy
from replay.analysis.report_data import ReportData
from replay.reports.claims import claims, sentences
from replay.reports.findings import findings, sites_advice
from replay.reports.html.chart_specs import Spec
from replay.reports.html.charts import lifetime_name
from replay.reports.html.map_payload import as_json, map_payload
from replay.reports.html.timeline import phases_of
from replay.reports.pins import short_name
from replay.reports.tables import percent
from replay.support.names import printable
from replay.support.units import format_size, format_time
from replay.trace import Provenance
from replay.trace.provenance_text import how_made

_POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
_ROWS = 20
_ARENAS_LISTED = 200
_PHASES_LISTED = 50


def write_page(
    data: ReportData, charts: dict[str, Spec], *, source: str, settings: Sequence[str], command: str, library: str
) -> str:
    """Returns the page.

    `settings`: the changed settings of the stack; `command`: what makes the page again; `library`: JavaScript that
    defines `vegaEmbed`.
    """
    processes = [process.name for process in data.result.metadata.processes]
    meta, payload = map_payload(data.heap, [short_name(name) for name in data.sites], data.site_codes, processes)
    title = f"Memory of {printable(source)}"
    body = "\n".join(
        [
            _header(title, data, settings),
            _answers(data),
            _cards(data),
            _timeline(data),
            _map(data, meta),
            *_pins(data),
            *_remedies(data),
            _details(data, charts),
            _origin(data, command),
        ]
    )
    elements = [_data_element("charts", as_json(charts)), _data_element("map-meta", as_json(meta))]
    elements += [f'<script type="text/plain" id="{name}">{text}</script>' for name, text in payload.items()]
    scripts = [library.replace("</script", "<\\/script"), _file("page.js")]
    scripts += [_file("heap_map.js")] if meta["cells"] else []
    tail = "\n".join([*elements, *(f"<script>{each}</script>" for each in scripts)])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="replay {__version__}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_file("page.css")}</style>
</head>
<body>
{body}
{tail}
</body>
</html>
"""


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _data_element(name: str, text: str) -> str:
    return f'<script type="application/json" id="{name}">{text}</script>'


def _header(title: str, data: ReportData, settings: Sequence[str]) -> str:
    stack, summary = data.result.config, data.summary
    changed = f" with {', '.join(settings)}" if settings else ""
    models = ", ".join(stack.title(model) for model in reversed(stack.models))
    made = how_made(Provenance.from_texts(summary.trace))
    events = f"{summary.events:,} events in {format_time(summary.duration_ns)}{made}"
    return f"""<header>
<div><h1>{escape(title)}</h1>
<p class="soft">{escape(f"Simulated with {stack.name}{changed} ({models}). {events}.")}</p></div>
<button id="theme" aria-label="Switch between light and dark">Light / dark</button>
</header>
<main>"""


def _answers(data: ReportData) -> str:
    found = findings(data.result, data.summary, data.pins, data.remedies)
    rows = "".join(f"<dt>{escape(each.question)}</dt><dd>{escape(each.answer)}</dd>\n" for each in found)
    return f'<dl class="answers">\n{rows}</dl>'


def _cards(data: ReportData) -> str:
    summary = data.summary
    cards = [
        ("peak, resident", format_size(summary.resident_bytes_at_peak)),
        ("mean over time", format_size(summary.resident_bytes_mean)),
        ("at end", format_size(summary.resident_bytes_end)),
        ("of this live", format_size(summary.requested_bytes_end)),
        ("retained", format_size(summary.retained_bytes_end)),
    ]
    if data.pins is not None:
        cards.append(("pinned", format_size(data.pins.releasable_bytes)))
    if summary.small_model:
        cards.append(("arenas at end", f"{summary.arenas_live:,}"))
    cards.append(("system calls", f"{sum(summary.syscalls.values()):,}"))
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for name, value in cards)
    return f'<ul class="cards">{items}</ul>'


def _timeline(data: ReportData) -> str:
    if not data.summary.resident_bytes_peak:
        return "<h2>Memory over time</h2><p>The trace takes no memory.</p>"
    floor = format_size(data.summary.floor.resident_bytes_peak) if data.summary.floor else ""
    ceiling = data.summary.ceiling
    bounds = f"<b>floor</b>: live bytes in whole pages, {floor} at its peak. "
    if ceiling:
        bounds += f"Without any free, memory would reach {format_size(ceiling.resident_bytes_peak)} (ceiling)."
    legend = (
        "<b>resident</b>: in memory. <b>mapped</b>: address space. <b>live</b>: requested and not yet freed. "
        f"<b>allocated</b>: with rounding and headers. {bounds}"
    )
    rows = [(printable(name), time_ns, tally) for name, time_ns, tally in phases_of(data.result)[:_PHASES_LISTED]] + [
        ("(end)", data.result.duration_ns, data.result.end)
    ]
    table = _table(
        ["phase", "start", "live", "allocated", "mapped", "resident"],
        (
            [name, format_time(at), *(format_size(int(tally[level])) for level in
             ("requested_bytes", "block_bytes", "mapped_bytes", "resident_bytes"))]
            for name, at, tally in rows
        ),
    )  # fmt: skip
    return f"""<h2>Memory over time</h2>
<p class="soft">Drag to move, scroll to zoom, double-click to reset.</p>
<figure class="panel"><div data-chart="timeline" role="img" aria-label="Memory over time; the table has values"></div>
<figcaption>{legend}</figcaption></figure>
<details><summary>Values at phases and at the end</summary><div class="scroll">{table}</div></details>"""


def _map(data: ReportData, meta: dict[str, Any]) -> str:
    if not meta["cells"]:
        return "<h2>Heap map</h2><p>Nothing was mapped.</p>"
    labels = {"peak": "Peak", "end": "End"}
    buttons = "".join(
        f'<button data-frame="{number}">{labels[frame["label"]]}</button>'
        for number, frame in enumerate(meta["frames"])
        if frame["label"] in labels
    )
    modes = [("occupancy", "share of live bytes"), ("size_class", "size class")]
    if meta["has_origins"]:
        modes.append(("age", "age of the oldest block"))
    if meta["sites"]:
        modes.append(("site", "call site"))
    options = "".join(f'<option value="{name}">{text}</option>' for name, text in modes)
    return f"""<h2>Heap map</h2>
<p class="soft">Each row is memory that is mapped as a whole. A live block in an arena keeps the whole arena; few live
bytes in many arenas are fragmentation. Keys: arrows, space, + and -, comma and full stop for moments.</p>
<div class="panel">
<div class="controls">
<button id="map-play">Play</button>
<input id="map-slider" type="range" min="0" value="0" aria-label="Moment of the run">
<output id="map-time"></output>{buttons}
</div>
<div class="controls">
<label>Colour <select id="map-mode">{options}</select></label>
<label{"" if meta["sites"] else " hidden"}>Find call site <input id="map-search" type="search" size="18"></label>
<output id="map-found" class="soft"></output>
<button id="map-larger" aria-label="Zoom in">+</button><button id="map-smaller" aria-label="Zoom out">−</button>
</div>
<div id="map-legend"></div>
<div id="map-view" tabindex="0" role="application" aria-label="Heap map" aria-describedby="map-info">
<canvas id="map-canvas"></canvas><canvas id="map-overlay"></canvas></div>
<div id="map-info" aria-live="polite"></div>
<div id="map-blocks" class="scroll"></div>
</div>
<details><summary>Regions at the end</summary><div class="scroll">{_regions(data.heap)}</div></details>"""


def _regions(heap: HeapMap) -> str:
    """Returns a table of what each region holds at the end, emptiest first."""
    cells, first, rows = heap.at(len(heap.frames) - 1), 0, []
    for region in heap.regions:
        own = cells[first : first + region.cells]
        first += region.cells
        mapped, live = int(own["mapped_bytes"].sum(dtype="i8")), int(own["live_bytes"].sum(dtype="i8"))
        if mapped:
            rows.append((live / mapped, region, mapped, live, own))
    rows.sort(key=lambda row: row[0])
    table = _table(
        ["region", "mapped", "resident", "live", "share", "live blocks", "cells in use"],
        (
            [
                f"{RegionKind(region.kind).name.lower()} {hex(region.address)}", format_size(mapped),
                format_size(int(own["resident_bytes"].sum(dtype="i8"))), format_size(live), percent(share),
                f"{int(own['blocks'].sum(dtype='i8')):,}", f"{int((own['live_bytes'] > 0).sum()):,}",
            ]
            for share, region, mapped, live, own in rows[:_ARENAS_LISTED]
        ),
    )  # fmt: skip
    more = len(rows) - _ARENAS_LISTED
    return table + (f"<p>and {more:,} more</p>" if more > 0 else "")


def _pins(data: ReportData) -> Iterator[str]:
    pins = data.pins
    if pins is None or not pins.resident_bytes:
        return
    yield "<h2>What pins memory at the end</h2>"
    yield (
        "<p class='soft'>A live block pins memory that the allocator could release without it: its whole arena, or the "
        "end of a heap before it. <b>pinned</b>: released if the blocks of this row are gone; <b>shared</b>: released "
        "only together with those of other rows.</p>"
    )
    shown = [("call site", pins.by_site, pins.has_sites), ("type", pins.by_type, pins.has_types),
             ("size class", pins.by_size_class, True)]  # fmt: skip
    for name, found, is_known in shown:
        if is_known and found.groups:
            yield f'<div class="panel scroll" style="margin-top:12px">{_pin_table(name, found)}</div>'
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
    return _table([name, "", "pinned", "shared", "blocks", "regions", "oldest"], rows)


class _Html(str):
    """Text that is HTML already."""


def _bar(pinned: float, shared: float) -> str:
    bars = f'<i style="width:{100 * pinned:.1f}%"></i><i class="shared" style="width:{100 * shared:.1f}%"></i>'
    return _Html(f'<td class="bar"><span>{bars}</span></td>')


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in headings)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _cell(text: str) -> str:
    return text if isinstance(text, _Html) else f"<td>{escape(text)}</td>"


def _remedies(data: ReportData) -> Iterator[str]:
    if not data.remedies:
        return
    yield "<h2>What other settings would do</h2>"
    yield "<p class='soft'>The same trace, simulated with each setting. Requests of the program stay the same.</p>"
    summary = data.summary
    now = Remedy(
        "as in this report", (), summary.resident_bytes_mean, summary.resident_bytes_end, summary.resident_bytes_peak
    )
    rows = (
        [
            each.name,
            *(
                f"{format_size(value)}{_change(value, before)}"
                for value, before in (
                    (each.resident_bytes_mean, summary.resident_bytes_mean),
                    (each.resident_bytes_end, summary.resident_bytes_end),
                    (each.resident_bytes_peak, summary.resident_bytes_peak),
                )
            ),
        ]
        for each in [now, *data.remedies]
    )
    yield f'<div class="panel scroll">{_table(["setting", "mean, resident", "at end", "peak"], rows)}</div>'


def _change(value: int, before: int) -> str:
    return f" ({100 * (value / before - 1):+.0f} %)" if before and value != before else ""


def _details(data: ReportData, charts: dict[str, Spec]) -> str:
    parts = []
    if "classes" in charts:
        parts.append(("Size classes at the end", "classes", "Live bytes of the 16 largest size classes."))
    if "lifetimes" in charts:
        parts.append(
            ("Lifetimes of blocks", "lifetimes", "All blocks of the trace by the time between allocation and free.")
        )
    figures = "".join(
        f'<figure class="panel"><h3>{title}</h3><div data-chart="{name}" role="img" aria-label="{title}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
        for title, name, text in parts
    )
    found = f'<h2>Blocks</h2><div class="pair">{figures}</div>' if figures else ""
    if "arenas" in charts:
        found += (
            '<h2>Arenas over time</h2><figure class="panel"><div data-chart="arenas" role="img" '
            'aria-label="Life spans of arenas"></div><figcaption>One line for each arena, from the moment of the heap '
            "map at which it is first mapped to the last.</figcaption></figure>"
        )
    if data.lifetimes.height:
        table = _table(
            ["lifetime", "blocks", "requested"],
            (
                [lifetime_name(row), f"{row['blocks']:,}", format_size(row["requested_bytes"])]
                for row in data.lifetimes.rows(named=True)
            ),
        )
        found += f"<details><summary>Lifetimes as a table</summary>{table}</details>"
    calls = data.summary.syscalls
    table = _table(
        ["system call", "calls", "bytes"],
        ([kind, f"{calls[kind]:,}", format_size(data.summary.syscall_bytes[kind])] for kind in calls if calls[kind]),
    )
    return found + f"<details><summary>System calls</summary>{table}</details>"


def _origin(data: ReportData, command: str) -> str:
    stack = data.result.config
    settings = [
        (f"{section}.{key}", str(value))
        for section, values in sorted(stack.effective_settings().items())
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    ]
    table = _table(["setting", "value"], ([name.rstrip("."), printable(value)] for name, value in settings))
    claimed = "".join(
        f"<li>{escape(each)}</li>" for each in sentences(claims(data.result.metadata, stack, data.summary))
    )
    return f"""<h2>How exact, and how made</h2>
<ul>{claimed}</ul>
<p>This command makes the page again:</p>
<pre>{escape(command)}</pre>
<details><summary>Configuration of the stack</summary><div class="scroll">{table}</div></details>
</main>"""
