"""The chart of memory over time, with phases, garbage collections and system calls."""

import numpy as np

from replay.allocators import SYSCALLS
from replay.analysis import frames
from replay.analysis.metrics import Summary
from replay.reports.html.chart_specs import (
    HEIGHT,
    SCHEMA,
    SIZES,
    TIMES,
    WIDTH,
    Spec,
    coloured,
    heading,
    quantity,
    rounded,
    tooltips,
    unit_of,
)
from replay.simulation.result import RunResult
from replay.support.names import printable
from replay.support.units import format_size, format_time
from replay.trace import TEARDOWN_MARK

_LEVELS = {
    "resident": ("resident_bytes", "#d55e00", 2.5),
    "mapped": ("mapped_bytes", "#8a8f98", 1.2),
    "arenas": ("arena_bytes", "#cc79a7", 1.2),
    "pools": ("pool_bytes", "#b8860b", 1.2),
    "allocated": ("block_bytes", "#3f9fcf", 1.2),
    "live": ("requested_bytes", "#0072b2", 2.5),
}
"""Lines: level, colour, width."""
_FLOOR = "floor"
_MEASURED = "measured peak"
_STYLES = {name: style for name, (_, *style) in _LEVELS.items()} | {
    _FLOOR: ["#009e73", 1.2],
    _MEASURED: ["#7a5fc0", 1.2],
}
_LABEL_GAP = 15
"""Pixels between the labels of lines."""
_BUCKETS = 96
_PHASES_NAMED, _PHASES_MARKED = 12, 200
_COLLECTIONS_SHOWN = 2000
_CALL_COLOURS = {
    "mmap": "#0072b2", "munmap": "#e69f00", "mremap": "#cc79a7", "brk": "#009e73", "madvise": "#d55e00",
    "mprotect": "#8a8f98",
}  # fmt: skip
_TIME = {"field": "t", "type": "quantitative"}


def timeline(result: RunResult, summary: Summary, floor: RunResult) -> Spec | None:
    """Returns the chart; None if the trace takes no memory. `floor` is the run with `ideal`."""
    if not summary.resident_bytes_peak:
        return None
    unit, unit_bytes = unit_of(SIZES, summary.mapped_bytes_peak)
    time_unit, unit_ns = unit_of(TIMES, result.duration_ns)
    levels = {name: result.samples[field] / unit_bytes for name, (field, _, _) in _LEVELS.items()}
    levels = {name: values for name, values in levels.items() if values.any()}
    floor_bytes = np.interp(result.sample_times_ns, floor.sample_times_ns, floor.samples["resident_bytes"])
    levels[_FLOOR] = floor_bytes / unit_bytes
    times = (result.sample_times_ns / unit_ns).tolist()
    rows = [
        {"t": rounded(time), **{name: rounded(values[at]) for name, values in levels.items()}}
        for at, time in enumerate(times)
    ]
    measured = _measured(result, unit_bytes)
    domain = [0, max(float(values.max()) for values in (*levels.values(), *measured.values())) * 1.08]
    axis = {"title": None, "labels": False, "ticks": False, "grid": False}
    x = {**_TIME, "scale": {"domain": [0, rounded(result.duration_ns / unit_ns)], "nice": False}, "axis": axis}
    layers = [
        *_phases(result, unit_ns),
        *_lines(levels, x, domain, unit),
        *_peak(summary, unit_bytes, unit_ns),
        *_rules(measured),
        *_labels(levels | measured, unit_bytes, domain),
        _hover(levels, x, unit, time_unit),
    ]
    memory = {"width": WIDTH, "height": HEIGHT, "data": {"values": rows}, "layer": layers}
    views = [memory, *_collections(result, unit_ns, x), _calls(result, unit_ns, time_unit, x)]
    scales = {"scale": {"x": "shared", "color": "independent"}}
    return {"$schema": SCHEMA, "vconcat": views, "spacing": 6, "resolve": scales}


def phases_of(result: RunResult) -> list[tuple[str, int, np.record]]:
    """Returns the phases of the program: not the mark at which the interpreter is finalized."""
    return [phase for phase in result.phases if phase[0] != TEARDOWN_MARK]


def _lines(levels: dict[str, np.ndarray], x: Spec, domain: list[float], unit: str) -> list[Spec]:
    found: list[Spec] = []
    for name in levels:
        colour, width = _STYLES[name]
        encoding = {"x": x, "y": quantity(name, unit, ticks=6, scale={"domain": domain, "nice": False})}
        shape = {"clip": True, "color": colour, "interpolate": "step-after"}
        if name == "live":
            found.append({"mark": {"type": "area", "opacity": 0.12, **shape}, "encoding": encoding})
        dash = {"strokeDash": [4, 3]} if name == _FLOOR else {}
        found.append({"mark": {"type": "line", "strokeWidth": width, **dash, **shape}, "encoding": encoding})
    # Bound scales are shared by all views and layers, so one layer declares the selection.
    found[0]["params"] = [{"name": "zoom", "select": {"type": "interval", "encodings": ["x"]}, "bind": "scales"}]
    return found


def _measured(result: RunResult, unit_bytes: int) -> dict[str, np.ndarray]:
    """Returns the growth of the recorded process to its peak, if the recording has it."""
    resident = result.metadata.runtime.resident if result.metadata.runtime else None
    if resident is None or resident.peak_bytes <= resident.start_bytes:
        return {}
    return {_MEASURED: np.array([(resident.peak_bytes - resident.start_bytes) / unit_bytes])}


def _rules(levels: dict[str, np.ndarray]) -> list[Spec]:
    """Returns a dashed line across the plot for each value."""
    return [
        {
            "data": {"values": [{"y": rounded(values[0])}]},
            "mark": {"type": "rule", "color": _STYLES[name][0], "strokeDash": [6, 4]},
            "encoding": {"y": {"field": "y", "type": "quantitative"}},
        }
        for name, values in levels.items()
    ]


def _labels(levels: dict[str, np.ndarray], unit_bytes: int, domain: list[float]) -> list[Spec]:
    """Returns the names of the lines at their right ends, moved apart where they would overlap."""
    ends = sorted((float(values[-1]), name) for name, values in levels.items())
    gap, places = domain[1] * _LABEL_GAP / HEIGHT, list[float]()
    for value, _ in ends:
        places.append(max(value, places[-1] + gap) if places else value)
    limit = domain[1]
    for at in reversed(range(len(places))):
        places[at] = min(places[at], limit)
        limit = places[at] - gap
    found = []
    for (value, name), place in zip(ends, places, strict=True):
        text = f"{name} {format_size(round(value * unit_bytes))}"
        weight = 600 if name in ("resident", "live") else 400
        mark = {
            "type": "text",
            "clip": False,
            "align": "left",
            "dx": 6,
            "color": _STYLES[name][0],
            "fontWeight": weight,
        }
        encoding = {
            "x": {"value": "width"},
            "y": {"field": "y", "type": "quantitative", "scale": {"domain": domain}},
            "text": {"field": "text"},
        }
        found.append({"data": {"values": [{"y": place, "text": text}]}, "mark": mark, "encoding": encoding})
    return found


def _peak(summary: Summary, unit_bytes: int, unit_ns: int) -> list[Spec]:
    row = {
        "t": rounded(summary.peak_time_ns / unit_ns),
        "y": rounded(summary.resident_bytes_at_peak / unit_bytes),
        "text": f"peak {format_size(summary.resident_bytes_at_peak)}",
    }
    data = {"values": [row]}
    place = {"x": _TIME, "y": {"field": "y", "type": "quantitative"}}
    look = {"clip": True, "color": _STYLES["resident"][0]}
    side = "right" if summary.peak_time_ns > summary.duration_ns * 0.8 else "left"
    dot = {"type": "point", "filled": True, "size": 45, "opacity": 1, **look}
    text = {"type": "text", "dy": -14, "align": side, "fontWeight": 600, **look}
    return [
        {"data": data, "mark": dot, "encoding": place},
        {"data": data, "mark": text, "encoding": {**place, "text": {"field": "text"}}},
    ]


def _phases(result: RunResult, unit_ns: int) -> list[Spec]:
    """Returns a line at each start of a phase, with its name if there is room."""
    starts = [(name, time_ns) for name, time_ns, _ in phases_of(result)]
    if not 0 < len(starts) <= _PHASES_MARKED:
        return []
    rows, named_ns = [], -result.duration_ns
    for name, time_ns in starts:
        has_room = time_ns - named_ns > result.duration_ns / _PHASES_NAMED
        named_ns = time_ns if has_room else named_ns
        rows.append({"t": rounded(time_ns / unit_ns), "text": printable(name) if has_room else ""})
    rule = {"type": "rule", "clip": True, "color": "#9aa0a8", "strokeDash": [2, 3]}
    place = {"align": "left", "baseline": "bottom", "dx": 2, "dy": -3, "fontSize": 11, "limit": 120}
    name_encoding = {"x": _TIME, "y": {"value": 0}, "text": {"field": "text"}}
    return [
        {"data": {"values": rows}, "mark": rule, "encoding": {"x": _TIME}},
        {"data": {"values": rows}, "mark": {"type": "text", "clip": False, **place}, "encoding": name_encoding},
    ]


def _hover(levels: dict[str, np.ndarray], x: Spec, unit: str, time_unit: str) -> Spec:
    shown = [{"field": "t", "title": f"time, {time_unit}", "format": ".4~g"}]
    shown += [{"field": name, "title": f"{name}, {unit}", "format": ".4~g"} for name in levels]
    select = {"type": "point", "fields": ["t"], "on": "pointerover", "nearest": True, "clear": "pointerout"}
    visible = {"condition": {"param": "hover", "empty": False, "value": 0.8}, "value": 0}
    return {
        "params": [{"name": "hover", "select": select}],
        "mark": {"type": "rule", "clip": True, "color": "#888888"},
        "encoding": {"x": x, "tooltip": shown, "opacity": visible},
    }


def _collections(result: RunResult, unit_ns: int, x: Spec) -> list[Spec]:
    """Returns a strip with a mark for each garbage collection, the longest ones of many; none if there are none."""
    found = frames.collections(result)
    if not found.height:
        return []
    if found.height > _COLLECTIONS_SHOWN:
        found = found.sort("duration_ns", descending=True).head(_COLLECTIONS_SHOWN)
    rows = [
        {
            "t": rounded(row["time_ns"] / unit_ns),
            "generation": "all" if row["generation"] is None else str(row["generation"]),
            "freed": format_size(row["freed_bytes"]),
            "took": format_time(row["duration_ns"]),
        }
        for row in found.rows(named=True)
    ]
    axis = heading("collections, by generation", domain=False, ticks=False)
    encoding = {
        "x": x,
        "y": {"field": "generation", "type": "nominal", "axis": axis},
        "tooltip": tooltips(generation="generation", freed="freed", took="took"),
    }
    mark = {"type": "tick", "clip": True, "thickness": 1.5, "color": "#7a5fc0"}
    return [{"width": WIDTH, "height": {"step": 13}, "data": {"values": rows}, "mark": mark, "encoding": encoding}]


def _calls(result: RunResult, unit_ns: int, time_unit: str, x: Spec) -> Spec:
    """Returns a strip with the system calls in each of some equal parts of the run."""
    edges = np.linspace(0, result.duration_ns, _BUCKETS + 1)
    places = np.searchsorted(result.sample_times_ns, edges, side="right") - 1
    rows = []
    for kind in SYSCALLS:
        totals = np.where(places >= 0, result.samples[kind][np.maximum(places, 0)].astype(np.int64), 0)
        totals[0] = 0
        for at in np.flatnonzero(np.diff(totals)).tolist():
            begin, end = (rounded(edge / unit_ns) for edge in edges[at : at + 2].tolist())
            rows.append({"t": begin, "end": end, "kind": kind, "calls": int(totals[at + 1] - totals[at])})
    colours = {kind: _CALL_COLOURS[kind] for kind in SYSCALLS if any(row["kind"] == kind for row in rows)}
    encoding = {
        "x": {**x, "bin": "binned", "axis": {"title": f"time, {time_unit}", "tickCount": 10, "grid": False}},
        "x2": {"field": "end"},
        "y": {
            "field": "calls", "type": "quantitative", "stack": True,
            "axis": heading("system calls", tickCount=3, format="d"),
        },
        "color": coloured("kind", colours, "right"),
        "tooltip": tooltips(kind="system call", calls="calls", t=f"from, {time_unit}"),
    }  # fmt: skip
    mark = {"type": "bar", "clip": True}
    return {"width": WIDTH, "height": 70, "data": {"values": rows}, "mark": mark, "encoding": encoding}
