"""Charts of a sweep: effects of parameters, a heat map of two parameters, the Pareto front of two metrics.

The output is one HTML page that needs no network, and a PNG file for each chart.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from replay.reports.chart_parts import (
    BEST,
    IN_DARK,
    LABEL_WIDTH,
    ON_PALE,
    ON_STRONG,
    OTHER,
    RAMP,
    SUBTITLE,
    TEXT,
    TITLE_WIDTH,
    WIDTH,
    differences_matter,
    import_altair,
    unit_of,
)
from replay.reports.figures import format_judged, format_limit, format_share, format_value
from replay.reports.html.sweep_page import write_sweep_page
from replay.reports.html.vega import begin_bundling
from replay.reports.pareto_chart import draw_pareto
from replay.reports.sweep_effects import NOTHING_MATTERS, overall_spread
from replay.support.atomic_files import new_file, new_target
from replay.support.errors import ReplayError
from replay.support.names import printable
from replay.sweeps.analysis import front_table, level, main_effects, sort_by_size, without_added_default
from replay.sweeps.journal import CHARTS
from replay.sweeps.results import Results
from replay.sweeps.verdict import WITHIN, parameter_effects, relative_difference

if TYPE_CHECKING:
    import altair

PAGE = "sweep.html"
_PIXELS_A_POINT = 2.0
_SOURCES_NAMED = 4
_WHITE_FROM = 0.68
"""The position in the colour ramp from which text for strong colours has more contrast."""
_SHADES = 10
"""The colours of a heat map span at least this multiple of the difference that does not matter."""


def write_charts(
    folder: Path,
    results: Results,
    objectives: Sequence[str],
    *,
    heat: Sequence[str] = (),
    within: float = WITHIN,
    force: bool = False,
) -> list[Path]:
    """Writes the page and the PNG files into `folder`, and returns their paths.

    `heat`: two parameters for the heat map. `within`: a share up to which differences do not matter.
    """
    for name in CHARTS:
        new_target(folder / name, force=force)
    charts = draw(results, objectives, heat=heat, within=within)
    if not charts:
        raise ReplayError("no charts: the sweep has no results that can be compared")
    title, written = _page_title(results), []
    with new_file(folder / PAGE, force=True) as temporary:
        specs = {name: _spec(chart) for name, chart in charts.items()}
        page = write_sweep_page(
            results, objectives, specs, title=title, within=within, library=begin_bundling().result()
        )
        temporary.write_text(page, encoding="utf-8")
    written.append(folder / PAGE)
    for name, chart in charts.items():
        with new_file(folder / f"{name}.png", force=True) as temporary:
            _styled(chart).save(str(temporary), format="png", scale_factor=_PIXELS_A_POINT)
        written.append(folder / f"{name}.png")
    return written


def draw(
    results: Results, objectives: Sequence[str], *, heat: Sequence[str] = (), within: float = WITHIN
) -> "dict[str, altair.Chart]":
    """Returns the charts by name, without those that need more parameters or metrics than the results have."""
    if not all(front_table(results, [metric]).height for metric in objectives):
        return {}
    charts = {"effects": _effects(results, objectives[0], within)}
    effects = main_effects(results, objectives[0])
    axes = list(heat) or effects["parameter"].unique(maintain_order=True).to_list()[:2]
    for name in axes:
        if name not in results.parameters:
            raise ReplayError(
                f"--heat: the sweep has no parameter {name!r}; its parameters are {', '.join(results.parameters)}"
            )
    if len(axes) == 2:
        charts["heatmap"] = _heat_map(results, objectives[0], axes, within)
    if len(objectives) > 1:
        charts["pareto"] = draw_pareto(results, objectives, within)
    return {name: chart for name, chart in charts.items() if chart is not None}


def refuse_missing() -> None:
    """Raises ReplayError if a package is missing, before a sweep starts."""
    import_altair()


def _page_title(results: Results) -> str:
    """Returns the sweep's description and its traces."""
    sources = results.frame["source"].drop_nulls().unique(maintain_order=True).to_list()
    of = printable(", ".join(map(str, sources)) if len(sources) <= _SOURCES_NAMED else f"{len(sources)} traces")
    return f"{results.description} Traces: {of}" if results.description else of


def _spec(chart: Any) -> dict[str, Any]:
    """Returns a chart for a page, with its colours for the dark theme."""
    spec: dict[str, Any] = json.loads(_styled(chart).to_json())
    return {**spec, "usermeta": {"dark": IN_DARK}}


def _styled(chart: Any) -> Any:
    return (
        chart.configure_view(stroke=None)
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", grid=False, labelLimit=220)
        .configure_title(fontSize=15, subtitleFontSize=12, subtitleColor=SUBTITLE, anchor="start", offset=12)
        .configure_header(labelFontSize=13, titleFontSize=12)
    )


def _title(results: Results, text: str, metric: str, within: float) -> dict[str, Any]:
    """Returns a chart's title and subtitle: the spread of all configurations, and whether it matters."""
    spread = overall_spread(results, metric)
    note = f"all configurations are within {format_limit(within)}: {NOTHING_MATTERS}; spread {spread}"
    if differences_matter(results, metric, within):
        note = f"spread of all configurations: {spread}"
    return {"text": text, "subtitle": note}


def _effects(results: Results, metric: str, within: float) -> Any:
    """Returns a bar chart for each parameter: a bar for each value, with the mean over all other parameters."""
    altair = import_altair()
    effects = parameter_effects(results, metric, within=within)
    if not effects.height:
        return None
    means = main_effects(results, metric)
    divisor, title = unit_of(results, metric)
    scale = altair.Scale(domain=[0, float(means["mean"].max() or 1) / divisor], nice=False)  # type: ignore[arg-type]
    charts = []
    for number, effect in enumerate(effects.iter_rows(named=True), start=1):
        values = means.filter(pl.col("parameter") == effect["parameter"])
        lowest = min(values["mean"])
        rows = pl.DataFrame(
            {
                "label": [format_value(value) for value in values["value"]],
                "text": [_bar_text(results, metric, mean, lowest) for mean in values["mean"]],
                "at": values["mean"] / divisor,
                "configurations": values["configurations"],
            }
        )
        is_last = number == effects.height
        axis = altair.Axis(title=f"mean {title}" if is_last else None, labels=is_last, ticks=is_last)
        base = altair.Chart(rows).encode(
            y=altair.Y("label:N", sort=rows["label"].to_list(), title=None, axis=altair.Axis(minExtent=LABEL_WIDTH)),
            x=altair.X("at:Q", scale=scale, axis=axis),
            tooltip=["label", "text", "configurations"],
        )
        bars = base.mark_bar(color=BEST if effect["matters"] else OTHER, height=14)
        texts = base.mark_text(align="left", dx=5, fontSize=11, color=TEXT).encode(text="text:N")
        charts.append(
            altair.layer(bars, texts).properties(
                title=altair.TitleParams(
                    _effect_title(effect, within, is_only=effects.height == 1),
                    fontSize=12,
                    fontWeight="normal",
                    offset=4,
                ),
                width=WIDTH,
                height=altair.Step(20),
            )
        )
    return altair.vconcat(*charts, spacing=14).properties(
        title=_title(results, f"Effect of each parameter on {metric}", metric, within)
    )


def _bar_text(results: Results, metric: str, mean: float, lowest: float) -> str:
    difference = f"  (+{format_share(relative_difference(lowest, mean))})" if mean > lowest > 0 else ""
    return f"{format_judged(results, metric, mean)}{difference}"


def _effect_title(effect: dict[str, Any], within: float, *, is_only: bool) -> str:
    share = format_share(effect["relative_effect"])
    if not effect["matters"]:
        return f"{effect['parameter']}: effect {share}, within {format_limit(within)}"
    variance = "" if is_only else f", {100 * effect['share']:.0f} % of the variance"
    return f"{effect['parameter']}: effect {share}{variance}"


def _heat_map(results: Results, metric: str, axes: Sequence[str], within: float) -> Any:
    """Returns the means over all other parameters for each pair of values; values in quarters if there are many."""
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
        .alias("text"),
    )
    lowest, highest = min(cells["mean"]), max(cells["mean"])
    darkest = max(highest, lowest * (1 + _SHADES * within))
    base = altair.Chart(cells).encode(
        x=altair.X("across:O", title=across, sort=order[across], axis=altair.Axis(labelAngle=0)),
        y=altair.Y("down:O", title=down, sort=order[down], axis=altair.Axis(minExtent=LABEL_WIDTH - TITLE_WIDTH)),
        tooltip=["across", "down", "text"],
    )
    color = altair.Color("mean:Q", scale=altair.Scale(range=[*RAMP], domain=[lowest, darkest], zero=False), legend=None)
    texts = base.mark_text(fontSize=11).encode(
        text="text:N",
        color=altair.condition(
            f"datum.mean > {lowest + _WHITE_FROM * (darkest - lowest)}", altair.value(ON_STRONG), altair.value(ON_PALE)
        ),
    )
    pale, strong = (format_judged(results, metric, end) for end in (lowest, darkest))
    ends = f"colours: from {pale} (pale) to {strong} (strong)"
    title = _title(results, f"{metric} by {across} and {down}", metric, within)
    return altair.layer(base.mark_rect().encode(color=color), texts).properties(
        title={**title, "subtitle": [title["subtitle"], ends]},
        width=min(WIDTH, 110 * len(order[across])),
        height=altair.Step(34),
    )
