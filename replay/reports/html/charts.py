"""The charts of a report as Vega-Lite specifications, for the page and for image files."""

from typing import Any

import polars as pl

from replay.analysis import frames
from replay.analysis.heap_history import HeapMap, RegionKind
from replay.analysis.report_data import ReportData
from replay.reports.html.chart_specs import (
    SCHEMA,
    SIZES,
    TIMES,
    WIDTH,
    Spec,
    coloured,
    quantity,
    rounded,
    tooltips,
    unit_of,
)
from replay.reports.html.timeline import timeline
from replay.simulation.result import RunResult
from replay.support.units import format_size, format_time

_CLASSES_SHOWN = 16
_ARENAS_SHOWN = 250
_BLUE, _ORANGE, _RED = "#0072b2", "#e69f00", "#d55e00"


def charts_of(data: ReportData) -> dict[str, Spec]:
    """Returns the charts by name, without those that have nothing to show."""
    charts = {
        "timeline": timeline(data.result, data.summary, data.floor),
        "classes": _size_classes(data.result),
        "lifetimes": _lifetimes(data.lifetimes),
        "arenas": _arena_spans(data.heap, data.result.duration_ns),
    }
    return {name: spec for name, spec in charts.items() if spec}


def _size_classes(result: RunResult) -> Spec | None:
    """Returns a chart of the bytes at end by size class: requested, and lost to rounding."""
    found = frames.size_classes(result).group_by("block_size").agg(
        pl.sum("live_blocks", "live_requested_bytes", "live_waste_bytes")
    )  # fmt: skip
    found = found.filter(pl.col("live_blocks") > 0).sort("live_requested_bytes", descending=True).head(_CLASSES_SHOWN)
    if not found.height:
        return None
    unit, unit_bytes = unit_of(SIZES, max(found["live_requested_bytes"]))
    ordered = found.sort("block_size").rows(named=True)
    rows = [
        {
            "size": format_size(row["block_size"]),
            "part": name,
            "bytes": rounded(row[field] / unit_bytes),
            "blocks": row["live_blocks"],
        }
        for row in ordered
        for name, field in (("requested", "live_requested_bytes"), ("rounding", "live_waste_bytes"))
        if row[field]
    ]
    sizes = [format_size(row["block_size"]) for row in ordered]
    axis = {"title": "largest block of the size class", "labelAngle": -40}
    encoding = {
        "x": {"field": "size", "type": "ordinal", "sort": sizes, "axis": axis},
        "y": quantity("bytes", unit, stack=True),
        "color": coloured("part", {"requested": _BLUE, "rounding": _ORANGE}, "top"),
        "order": {"field": "part"},
        "tooltip": tooltips(size="largest block", part="part", bytes=unit, blocks="live blocks"),
    }
    return _chart(420, 200, rows, mark="bar", encoding=encoding)


def _chart(width: int, height: int | Spec, rows: list[Spec], **rest: Any) -> Spec:
    return {"$schema": SCHEMA, "width": width, "height": height, "data": {"values": rows}, **rest}


def lifetime_name(row: dict[str, Any]) -> str:
    """Returns a row of `block_lifetimes` as text: `1 ms to 10 ms`."""
    if row["least_ns"] is None:
        return "never freed"
    least = format_time(row["least_ns"]).replace(".00", "")
    if row["below_ns"] is None:
        return f"≥ {least}"
    below = format_time(row["below_ns"]).replace(".00", "")
    return f"{least} to {below}" if row["least_ns"] else f"< {below}"


def _lifetimes(lifetimes: pl.DataFrame) -> Spec | None:
    """Returns a chart of the blocks of the trace by lifetime."""
    if not lifetimes.height:
        return None
    total = lifetimes["blocks"].sum()
    rows = [
        {
            "lifetime": lifetime_name(row),
            "blocks": row["blocks"],
            "bytes": format_size(row["requested_bytes"]),
            "share": f"{100 * row['blocks'] / total:.1f} %",
            "kind": "never freed" if row["least_ns"] is None else "freed",
        }
        for row in lifetimes.rows(named=True)
    ]
    axis = {"title": None, "ticks": False, "domain": False}
    y = {"field": "lifetime", "type": "ordinal", "sort": [row["lifetime"] for row in rows], "axis": axis}
    x = {"field": "blocks", "type": "quantitative"}
    bars = {
        "x": {**x, "axis": {"title": "blocks", "tickCount": 4, "format": "~s"}},
        "color": coloured("kind", {"freed": _BLUE, "never freed": _RED}, None),
        "tooltip": tooltips(lifetime="lifetime", blocks="blocks", bytes="requested"),
    }
    texts = {"mark": {"type": "text", "align": "left", "dx": 4}, "encoding": {"x": x, "text": {"field": "share"}}}
    layers = [{"mark": "bar", "encoding": bars}, texts]
    return _chart(380, {"step": 22}, rows, encoding={"y": y}, layer=layers)


def _arena_spans(heap: HeapMap, duration_ns: int) -> Spec | None:
    """Returns a chart with a line for each arena, from the moment it is first seen to the last."""
    arenas = [region for region in heap.regions if region.kind is RegionKind.ARENA]
    if len(arenas) < 2 or not duration_ns:
        return None
    arenas.sort(key=lambda region: (region.first, region.address))
    time_unit, unit_ns = unit_of(TIMES, duration_ns)
    times = [rounded(frame.time_ns / unit_ns) for frame in heap.frames]
    last = len(times) - 1
    rows = [
        {
            "arena": rank,
            "from": times[region.first],
            "to": times[min(region.last + 1, last)],
            "address": hex(region.address),
            "end": "mapped at end" if region.last == last else "released",
        }
        for rank, region in enumerate(arenas[:: -(-len(arenas) // _ARENAS_SHOWN)], 1)
    ]
    scale = {"domain": [0, rounded(duration_ns / unit_ns)], "nice": False}
    encoding = {
        "x": {"field": "from", "type": "quantitative", "scale": scale, "axis": {"title": f"time, {time_unit}"}},
        "x2": {"field": "to"},
        "y": {"field": "arena", "type": "ordinal", "axis": None, "scale": {"padding": 0.2}},
        "color": coloured("end", {"mapped at end": _RED, "released": _BLUE}, "top"),
        "tooltip": tooltips(address="arena", **{"from": "first seen", "to": "last seen", "end": "state"}),
    }
    return _chart(WIDTH, max(60, min(320, 8 * len(rows))), rows, mark="bar", encoding=encoding)
