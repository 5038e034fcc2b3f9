"""A sweep's results as pictures: main effects, a heat map of two parameters, and what cannot be had together.

One page, complete in itself, that needs no network; and each picture as PNG.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from replay.reports.sweeps import format_judged, format_value
from replay.support.atomic_files import new_file, new_target
from replay.support.errors import ReplayError
from replay.sweeps.analysis import front_table, level, main_effects, pareto, sort_by_size, without_added_default
from replay.sweeps.journal import CHARTS
from replay.sweeps.results import Results

if TYPE_CHECKING:
    import altair

PAGE = "sweep.html"
_WIDTH = 640
_BEST, _OTHER, _DEFAULT = "#1b6ca8", "#9aa5b1", "#d1495b"
_PIXELS_A_POINT = 2.0


def write_charts(
    folder: Path, results: Results, objectives: Sequence[str], *, heat: Sequence[str] = (), force: bool = False
) -> list[Path]:
    """Writes the page and the pictures into `folder`, and tells which. `heat`: two parameters for the heat map."""
    altair = import_altair()
    for name in CHARTS:
        new_target(folder / name, force=force)
    charts = draw(results, objectives, heat=heat)
    if not charts:
        raise ReplayError("there is nothing to draw: no run is done")
    page = altair.vconcat(*charts.values(), spacing=48).resolve_scale(color="independent")
    page = _styled(page, results.description)
    written = []
    for name, chart, options in [
        (PAGE, page, {"format": "html", "inline": True}),
        *(
            (f"{name}.png", _styled(chart, ""), {"format": "png", "scale_factor": _PIXELS_A_POINT})
            for name, chart in charts.items()
        ),
    ]:
        with new_file(folder / name, force=True) as temporary:
            chart.save(str(temporary), **options)
        written.append(folder / name)
    return written


def draw(results: Results, objectives: Sequence[str], *, heat: Sequence[str] = ()) -> "dict[str, altair.Chart]":
    """The charts by name: those that the results have enough for."""
    if not results.done.height:
        return {}
    charts = {"effects": _effects(results, objectives[0])}
    effects = main_effects(results, objectives[0])
    axes = list(heat) or effects["parameter"].unique(maintain_order=True).to_list()[:2]
    for name in axes:
        if name not in results.parameters:
            raise ReplayError(f"--heat: the sweep has no parameter {name!r}; it has {', '.join(results.parameters)}")
    if len(axes) == 2:
        charts["heatmap"] = _heat_map(results, objectives[0], axes)
    if len(objectives) > 1:
        charts["pareto"] = _pareto(results, objectives)
    return {name: chart for name, chart in charts.items() if chart is not None}


def refuse_missing() -> None:
    """Says what charts need, before anything long is begun."""
    import_altair()


def import_altair() -> Any:
    """Altair, and what it makes pages and pictures with."""
    try:
        import altair
        import vl_convert  # noqa: F401 - what altair makes pages and pictures with
    except ImportError:
        raise ReplayError("charts need Altair; pip install 'alloc-replay[charts]'") from None
    return altair


def _styled(chart: Any, title: str) -> Any:
    chart = chart.properties(title=title) if title else chart
    return (
        chart.configure_view(stroke=None)
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", grid=False, labelLimit=220)
        .configure_title(fontSize=15, anchor="start", offset=12)
        .configure_header(labelFontSize=13, titleFontSize=12)
    )


def _unit(results: Results, metric: str) -> tuple[float, str]:
    """What a figure is divided by on an axis, and the axis' title."""
    if not results.has_one_source:
        return 1.0, f"{metric}, times the default's"
    for part, unit, size in (("_bytes", "MiB", 2**20), ("_ns", "ms", 10**6)):
        if part in metric:
            return float(size), f"{metric}, {unit}"
    return 1.0, metric


def _effects(results: Results, metric: str) -> Any:
    """A dot for each value, at the mean over everything else; a line from the lowest to the highest of a parameter."""
    altair = import_altair()
    effects = main_effects(results, metric)
    if not effects.height:
        return None
    divisor, title = _unit(results, metric)
    rows = effects.with_columns(
        label=pl.struct("parameter", "value").map_elements(
            lambda row: f"{row['parameter']} = {format_value(row['value'])}", return_dtype=pl.String
        ),
        told=pl.col("mean").map_elements(lambda mean: format_judged(results, metric, mean), return_dtype=pl.String),
        at=pl.col("mean") / divisor,
        low=pl.col("mean").min() / divisor,
        group=pl.format("{} explains {} %", "parameter", (100 * pl.col("share")).round(0).cast(pl.Int64)),
    )
    groups = rows["group"].unique(maintain_order=True).to_list()
    base = altair.Chart(rows).encode(
        y=altair.Y("label:N", sort=rows["label"].to_list(), title=None),
        color=altair.Color("group:N", sort=groups, title=None, scale=altair.Scale(scheme="tableau10"),
                           legend=altair.Legend(orient="top", columns=2, labelLimit=320)),
        tooltip=["label", "told", "configurations"],
    )  # fmt: skip
    across = altair.X(
        "at:Q", title=f"mean {title}", scale=altair.Scale(zero=False, nice=True), axis=altair.Axis(grid=True)
    )
    lines = base.mark_rule(strokeWidth=3, opacity=0.35).encode(x=altair.X("low:Q"), x2="at:Q")
    dots = base.mark_circle(size=110, opacity=1).encode(x=across)
    texts = base.mark_text(align="left", dx=9, fontSize=11).encode(x=across, text="told:N", color=altair.value("#333"))
    return altair.layer(lines, dots, texts).properties(
        title=f"What matters for {metric}", width=_WIDTH, height=altair.Step(22)
    )


def _heat_map(results: Results, metric: str, axes: Sequence[str]) -> Any:
    """The mean over everything else for each pair of values; of many numbers, for each pair of quarters."""
    altair = import_altair()
    across, down = axes
    table = without_added_default(front_table(results, [metric]), axes)
    order: dict[str, list[str]] = {}
    for name in axes:
        table = sort_by_size(table, name)
        table = table.with_columns(level(table[name]).alias(name))
        order[name] = [format_value(value) for value in table[name].unique(maintain_order=True)]
    means = table.group_by(across, down, maintain_order=True).agg(pl.col(metric).mean().alias("mean"))
    cells = means.select(
        pl.col(across).map_elements(format_value, return_dtype=pl.String).alias("across"),
        pl.col(down).map_elements(format_value, return_dtype=pl.String).alias("down"),
        "mean",
        pl.col("mean")
        .map_elements(lambda mean: format_judged(results, metric, mean), return_dtype=pl.String)
        .alias("told"),
    )
    middle = (float(cells["mean"].min()) + float(cells["mean"].max())) / 2  # type: ignore[arg-type]
    base = altair.Chart(cells).encode(
        x=altair.X("across:O", title=across, sort=order[across], axis=altair.Axis(labelAngle=0)),
        y=altair.Y("down:O", title=down, sort=order[down]),
        tooltip=["across", "down", "told"],
    )
    squares = base.mark_rect().encode(color=altair.Color("mean:Q", scale=altair.Scale(scheme="blues"), legend=None))
    texts = base.mark_text(fontSize=11).encode(
        text="told:N", color=altair.condition(f"datum.mean > {middle}", altair.value("white"), altair.value("#222"))
    )
    return altair.layer(squares, texts).properties(
        title=f"{metric} by {across} and {down}", width=min(_WIDTH, 110 * len(order[across])), height=altair.Step(34)
    )


def _pareto(results: Results, objectives: Sequence[str]) -> Any:
    altair = import_altair()
    across, up = objectives[:2]
    table = front_table(results, objectives)
    best = pareto(results, [across, up])["configuration"].to_list()
    kind = (
        pl.when(pl.col("default")).then(pl.lit("default"))
        .when(pl.col("configuration").is_in(best)).then(pl.lit("not beaten"))
        .otherwise(pl.lit("beaten by another"))
    )  # fmt: skip
    shown = pl.concat_str(
        [pl.format(f"{name}={{}}", pl.col(name).cast(pl.String).fill_null("default")) for name in results.parameters],
        separator="  ",
    )
    (divisor, title), (divisor_up, title_up) = _unit(results, across), _unit(results, up)
    rows = table.select(
        (pl.col(across) / divisor).alias("across"), (pl.col(up) / divisor_up).alias("up"), kind.alias("kind"),
        shown.alias("told"), "configuration",
    ).sort(pl.col("kind") != "beaten by another", pl.col("kind") == "default")  # fmt: skip
    scale, axis = altair.Scale(zero=False, nice=True), altair.Axis(grid=True)
    base = altair.Chart(rows).encode(
        x=altair.X("across:Q", axis=axis, scale=scale, title=title),
        y=altair.Y("up:Q", axis=axis, scale=scale, title=title_up),
        tooltip=["told", "across", "up"],
    )
    line = (
        base.transform_filter(altair.FieldOneOfPredicate("configuration", best))
        .mark_line(interpolate="step-after", color=_BEST, opacity=0.5)
        .encode(order="across:Q")
    )
    points = base.mark_circle(size=80, opacity=0.9).encode(
        color=altair.Color(
            "kind:N", title=None, legend=altair.Legend(orient="top"),
            scale=altair.Scale(domain=["not beaten", "default", "beaten by another"], range=[_BEST, _DEFAULT, _OTHER]),
        )
    )  # fmt: skip
    return altair.layer(line, points).properties(title=f"{across} against {up}", width=_WIDTH, height=360)
