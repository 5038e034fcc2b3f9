"""Draws two metrics: a point for each configuration, the Pareto front as steps."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from replay.reports.chart_parts import (
    BEST,
    DEFAULT,
    LABEL_WIDTH,
    OTHER,
    TEXT,
    TITLE_WIDTH,
    WIDTH,
    differences_matter,
    import_altair,
    unit_of,
)
from replay.reports.figures import format_limit, format_value
from replay.reports.sweep_effects import NOTHING_MATTERS, overall_spread
from replay.sweeps.analysis import front_table, pareto
from replay.sweeps.results import Results
from replay.sweeps.space import ALLOCATOR

_TICKS = 10
"""A range of at most this many counts has a tick for each count and none between counts."""
_LABELLED_POINTS = 6
"""A Pareto front with more points has no labels, because they would overlap."""


def draw_pareto(results: Results, objectives: Sequence[str], within: float) -> Any:
    """Returns the chart. The points of the front and the default have their parameters as labels."""
    altair = import_altair()
    across, up = objectives[:2]
    rows = _points(results, across, up, within)
    base = altair.Chart(rows).encode(
        x=altair.X("across:Q", **_span(results, across, within)),
        y=altair.Y("up:Q", **_span(results, up, within, minExtent=LABEL_WIDTH - 2 * TITLE_WIDTH)),
        tooltip=["parameters", "across", "up"],
    )
    line = (
        base.transform_filter("datum.front")
        .mark_line(interpolate="step-after", color=BEST, opacity=0.5)
        .encode(order="across:Q")
    )
    points = base.mark_circle(size=80, opacity=0.9).encode(
        color=altair.Color(
            "kind:N", title=None, legend=altair.Legend(orient="top"),
            scale=altair.Scale(domain=["Pareto front", "default", "dominated"], range=[BEST, DEFAULT, OTHER]),
        )
    )  # fmt: skip
    labels = [
        base.transform_filter(f"datum.label && datum.right == {side}")
        .mark_text(align=align, dx=distance, dy=-9, fontSize=11, color=TEXT)
        .encode(text="label:N")
        for side, align, distance in (("false", "left", 4), ("true", "right", -4))
    ]
    note = "points further to the lower left are better"
    if not any(differences_matter(results, metric, within) for metric in (across, up)):
        note = f"all configurations are within {format_limit(within)}: {NOTHING_MATTERS}"
    return altair.layer(line, points, *labels).properties(
        title={"text": f"{up} against {across}", "subtitle": note}, width=WIDTH, height=360
    )


def _points(results: Results, across: str, up: str, within: float) -> pl.DataFrame:
    """Returns a row for each configuration: position, kind, whether it is on the front, parameters and label.

    `right`: whether the point is in the right half of the chart.
    """
    table = front_table(results, [across, up])
    best = pareto(results, [across, up])["configuration"].to_list()
    is_best = pl.col("configuration").is_in(best)
    kind = (
        pl.when(pl.col("default")).then(pl.lit("default"))
        .when(is_best).then(pl.lit("Pareto front"))
        .otherwise(pl.lit("dominated"))
    )  # fmt: skip
    varied = [name for name in results.parameters if table[name].n_unique() > 1] or list(results.parameters)
    names = [
        ", ".join(f"{name}={format_value(value)}" if name != ALLOCATOR else str(value) for name, value in row.items())
        for row in table.select(varied).iter_rows(named=True)
    ]
    place = [
        (pl.col(metric) / unit_of(results, metric)[0]).alias(axis) for metric, axis in ((across, "across"), (up, "up"))
    ]
    rows = table.select(*place, kind.alias("kind"), is_best.alias("front"), pl.Series("parameters", names)).sort(
        pl.col("kind") != "dominated", pl.col("kind") == "default", maintain_order=True
    )
    left = 0 if _starts_at_zero(results, across, within) else pl.col("across").min()
    is_right = pl.col("across") > (left + pl.col("across").max()) / 2
    return rows.with_columns(_label(rows).alias("label"), is_right.alias("right"))


def _label(rows: pl.DataFrame) -> pl.Expr:
    """Returns labels: the parameters of the default and of one configuration for each point of the front; else null."""
    place = ["across", "up"]
    shown = (pl.col("kind") != "dominated") & pl.struct(place).is_last_distinct()
    if rows.filter("front").select(place).unique().height > _LABELLED_POINTS:
        shown = pl.col("kind") == "default"
    prefix = pl.when(pl.col("kind") == "default").then(pl.lit("default: ")).otherwise(pl.lit(""))
    others = pl.len().over(place) - 1
    suffix = pl.when(others > 0).then(pl.format(" (and {} equal)", others)).otherwise(pl.lit(""))
    return pl.when(shown).then(prefix + pl.col("parameters") + suffix)


def _span(results: Results, metric: str, within: float, **of_axis: Any) -> dict[str, Any]:
    """Returns scale, title and axis of a metric. The axis starts at zero unless that hides a difference that matters.

    `of_axis`: more properties of the axis.
    """
    altair = import_altair()
    divisor, title = unit_of(results, metric)
    from_zero = _starts_at_zero(results, metric, within)
    notes = [f"spread {overall_spread(results, metric)}"]
    notes += [] if from_zero else ["the axis does not start at 0"]
    notes += [] if differences_matter(results, metric, within) else [NOTHING_MATTERS]
    judged = [value / divisor for value in front_table(results, [metric])[metric]]
    low, high = 0 if from_zero else min(judged), max(judged)
    if title == metric and all(value.is_integer() for value in map(float, judged)) and high - low <= _TICKS:
        of_axis = {**of_axis, "values": list(range(int(low), int(high) + 1)), "format": ",d"}
    return {
        "title": [title, "; ".join(notes)],
        "scale": altair.Scale(zero=from_zero, nice=True),
        "axis": altair.Axis(grid=True, titlePadding=8, labelFlush=False, **of_axis),
    }


def _starts_at_zero(results: Results, metric: str, within: float) -> bool:
    judged = front_table(results, [metric])[metric].to_list()
    return not differences_matter(results, metric, within) or max(judged) >= 2 * min(judged)
