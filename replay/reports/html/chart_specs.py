"""Parts of Vega-Lite specifications that charts of a report share: axes, colours, units."""

from collections.abc import Sequence
from typing import Any

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
"""An identifier; nothing is loaded from there."""
CHARTS = ("timeline", "classes", "lifetimes", "arenas")
"""The charts of a report about a run; its image files have these names."""
WIDTH, HEIGHT = 820, 300
"""Of a plot in an image file; in the page, the width follows the window."""
SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))
TIMES = (("s", 10**9), ("ms", 10**6), ("µs", 10**3), ("ns", 1))


def unit_of(units: Sequence[tuple[str, int]], highest: float) -> tuple[str, int]:
    """Returns the name and size of the unit for values up to `highest`."""
    return next((each for each in units if highest >= each[1]), units[-1])


def rounded(value: float) -> float:
    """Returns a value with five significant digits, which keeps pages small."""
    return float(f"{float(value):.5g}")


def quantity(field: str, title: str | None, *, ticks: int = 5, **encoding: Any) -> Spec:
    """Returns the encoding of a field on the vertical axis, with its unit above the axis."""
    above = {"titleAngle": 0, "titleAlign": "right", "titleAnchor": "end", "titleY": -8}
    axis = {"title": title, **above, "tickCount": ticks}
    return {"field": field, "type": "quantitative", "axis": axis, **encoding}


def heading(title: str, **axis: Any) -> Spec:
    """Returns the vertical axis of a strip, with its title above the plot."""
    place = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "start", "titleX": 0, "titleY": -6}
    return {"title": title, **place, "titleBaseline": "bottom", **axis}


def coloured(field: str, colours: dict[str, str], orient: str | None) -> Spec:
    """Returns the encoding of a nominal field as colours, with a legend at one side or none."""
    scale = {"domain": [*colours], "range": [*colours.values()]}
    legend = {"title": None, "orient": orient, "offset": 6} if orient else None
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend}


def tooltips(**titles: str) -> list[Spec]:
    """Returns the encoding of fields as a tooltip."""
    return [{"field": field, "title": title} for field, title in titles.items()]
