"""Text about the spread of a sweep's results and the effect of each parameter."""

from collections.abc import Iterator, Sequence

import polars as pl
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from replay.reports.figures import format_judged, format_limit, format_metric, format_pair, format_share, format_value
from replay.reports.fitting import fitted, without_columns
from replay.reports.tables import let_notes_wrap, section, table_of
from replay.sweeps.analysis import LEVELS_SHOWN, main_effects, ranking
from replay.sweeps.results import Results
from replay.sweeps.verdict import Spread, Verdict, parameter_effects, relative_difference

NOTHING_MATTERS = "nothing varied here matters"


def verdict_section(results: Results, verdict: Verdict) -> RenderableType:
    """Returns the verdict as a sentence and a table with a row for each metric and trace."""
    several = not results.has_one_source
    table = table_of("metric", *["trace"] * several, "lowest", "highest", "spread", "", "", left=1 + several)
    table.columns[-1].justify = "left"
    for each in verdict.spreads:
        ends = format_pair(each.metric, each.lowest, each.highest)
        spread = [format_metric(each.metric, each.spread), format_share(each.relative_spread)]
        words = "" if each.matters else Text(_sentence(each), style="bold")
        table.add_row(each.metric, *[each.source] * several, *ends, *spread, words)
    limit = f"differences within {format_limit(verdict.within)} do not matter (--within)"
    if verdict.matters:
        return section(f"Spread between the configurations; {limit}", table)
    return section(f"{NOTHING_MATTERS.capitalize()}; {limit}", table)


def _sentence(spread: Spread) -> str:
    return NOTHING_MATTERS if spread.spread else f"{spread.configurations} configurations are equal"


def effects_section(console: Console, results: Results, metric: str, verdict: Verdict) -> RenderableType | None:
    """Returns the effect of each parameter on a metric; None if fewer than two parameters were varied."""
    effects = parameter_effects(results, metric, within=verdict.within)
    if effects.height < 2:
        return None
    title = f"Effect of each parameter on {metric}; spread of all configurations: {overall_spread(results, metric)}"
    if not any(each.matters for each in verdict.of(metric)):
        limit = format_limit(verdict.within)
        return section(title, Text(f"Parameters are not ranked: all configurations are within {limit}."))
    shown: list[RenderableType] = []
    if effects["matters"].any():
        large = effects.filter("matters")
        table = fitted(console, lambda gap: _effects_table(results, metric, large, gap))
        shown.append(without_columns(console, table, "share of variance"))
    if small := ", ".join(_small_effects(effects.filter(~pl.col("matters")))):
        shown.append(Text(f"Mean effect within {format_limit(verdict.within)}: {small}"))
    return section(title, _stacked(shown))


def _stacked(shown: Sequence[RenderableType]) -> Table:
    grid = Table.grid()
    for each in shown:
        grid.add_row(each)
    return grid


def overall_spread(results: Results, metric: str) -> str:
    """Returns the spread: `452 KiB (19.8 %)`; for several traces the spread of the mean ratios: `19.8 %`."""
    judged = ranking(results, metric)[results.judged_by].drop_nulls().to_list()
    relative = format_share(relative_difference(min(judged), max(judged)))
    return f"{format_metric(metric, max(judged) - min(judged))} ({relative})" if results.has_one_source else relative


def _effects_table(results: Results, metric: str, effects: pl.DataFrame, gap: str) -> Table:
    absolute = results.has_one_source
    table = table_of("parameter", "effect", *[""] * absolute, "share of variance", "mean by value", left=1)
    let_notes_wrap(table)
    means = main_effects(results, metric)
    for row in effects.iter_rows(named=True):
        values = means.filter(pl.col("parameter") == row["parameter"]).sort("mean", maintain_order=True)
        cells = [
            f"{format_value(each['value'])}: {format_judged(results, metric, each['mean'])}"
            for each in values.iter_rows(named=True)
        ]
        if len(cells) > LEVELS_SHOWN:
            cells[LEVELS_SHOWN - 2 : -1] = ["…"]
        effect = [format_metric(metric, row["effect"])] * absolute
        share = f"{100 * row['share']:.0f} %"
        table.add_row(row["parameter"], *effect, format_share(row["relative_effect"]), share, f",{gap}".join(cells))
    return table


def _small_effects(effects: pl.DataFrame) -> Iterator[str]:
    for row in effects.iter_rows(named=True):
        largest = row["relative_effect_max"]
        combined = f"; up to {format_share(largest)} for some values of the others" * (
            largest is None or format_share(largest) != format_share(row["relative_effect"])
        )
        yield f"{row['parameter']} ({format_share(row['relative_effect'])}{combined})"
