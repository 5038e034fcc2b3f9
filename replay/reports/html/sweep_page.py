"""The page about a sweep: the verdict, the charts, and the ranking as a table."""

from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from replay.reports.figures import format_change, format_judged, format_limit, format_pair, format_share, format_value
from replay.reports.html.chart_specs import Spec
from replay.reports.html.document import answers, details, document, figure, table
from replay.reports.sweep_effects import NOTHING_MATTERS
from replay.support.names import printable
from replay.sweeps.analysis import ranking
from replay.sweeps.results import Results
from replay.sweeps.verdict import judge, parameter_effects

_ROWS = 100
_SHOWN_AT_ONCE = 15


def write_sweep_page(
    results: Results, objectives: Sequence[str], charts: Mapping[str, Spec], *, title: str, within: float, library: str
) -> str:
    """Returns the page. `within`: a share up to which differences do not matter; `library`: JavaScript that defines
    `vegaEmbed`."""
    configurations = results.done["configuration"].n_unique()
    runs = results.done.height
    body = [
        answers(_findings(results, objectives, within)),
        *(_ranking(results, metric) for metric in objectives[:1]),
        *(_figure(name, spec) for name, spec in charts.items()),
        *(details(f"Ranking by {metric}", _ranking_table(results, metric, _ROWS)) for metric in objectives),
    ]
    subtitle = f"{configurations:,} configurations, {runs:,} runs."
    return document(f"replay sweep: {title}", subtitle, body, charts, library)


def _figure(name: str, spec: Spec) -> str:
    title = spec.get("title", "")
    text = title if isinstance(title, str) else title.get("text", name)
    return figure(name, printable(str(text)), attributes=" data-fixed")


def _findings(results: Results, objectives: Sequence[str], within: float) -> Iterator[tuple[str, str]]:
    verdict = judge(results, objectives, within=within)
    for metric in objectives:
        rows = ranking(results, metric).rows(named=True)
        best, default = rows[0], next((row for row in rows if row["default"]), None)
        if not any(each.matters for each in verdict.of(metric)):
            yield metric, f"All configurations are within {format_limit(within)}: {NOTHING_MATTERS}."
            continue
        named = ", ".join(f"{name} {format_value(best[name])}" for name in _varied(results))
        judged = results.judged_by
        subject = f"The default, {named}," if best["default"] else named
        text = f"{subject} is best: {format_judged(results, metric, best[judged])}"
        if default is not None and not best["default"]:
            change = format_change(metric, best["ratio"], best["mean"], default["mean"])
            text += f", {change} against the default" if change != "=" else ""
        spreads = verdict.of(metric)
        if len(spreads) == 1:
            low, high = format_pair(metric, spreads[0].lowest, spreads[0].highest)
            text += f". Configurations span {low} to {high}"
        yield metric, f"{text}. {_effects(results, metric, within)}".strip()


def _effects(results: Results, metric: str, within: float) -> str:
    effects = parameter_effects(results, metric, within=within)
    large = [row for row in effects.rows(named=True) if row["matters"]]
    if effects.height < 2 or not large:
        return ""
    named = ", ".join(f"{row['parameter']} ({format_share(row['relative_effect'])})" for row in large)
    return f"Parameters that matter, with the effect of each: {named}."


def _varied(results: Results) -> list[str]:
    return [name for name in results.parameters if results.done[name].n_unique() > 1] or list(results.parameters[:1])


def _ranking(results: Results, metric: str) -> str:
    shown = _ranking_table(results, metric, _SHOWN_AT_ONCE)
    return f'<h2>Best first, by {printable(metric)}</h2><div class="panel">{shown}</div>'


def _ranking_table(results: Results, metric: str, limit: int) -> str:
    ranked = ranking(results, metric)
    rows = ranked.head(limit).rows(named=True)
    if not any(row["default"] for row in rows):
        rows += ranked.filter(pl.col("default")).rows(named=True)
    default = next((row for row in rows if row["default"]), None)
    names = _varied(results)
    cells = (
        [
            *(format_value(row[name]) for name in names),
            format_judged(results, metric, row[results.judged_by]),
            "default" if row["default"] else format_change(
                metric, row["ratio"], row["mean"], default["mean"] if default else None
            ),
        ]
        for row in rows
    )  # fmt: skip
    bold = next((number for number, row in enumerate(rows) if row["default"]), None)
    more = max(0, ranked.height - limit)
    note = f"<p class='soft'>and {more:,} more; replay sweep show --full lists all</p>" if more else ""
    return table([*names, metric, "difference"], cells, bold=bold) + note
