"""Prints the results of a sweep: verdict, ranking, effects of parameters, Pareto front."""

from collections.abc import Sequence
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from replay.reports.figures import format_change, format_judged, format_limit, format_metric, format_value
from replay.reports.fitting import fitted, without_columns
from replay.reports.sweep_effects import effects_section, verdict_section
from replay.reports.tables import section, table_of
from replay.support.names import printable
from replay.sweeps.analysis import front_table, pareto, per_source, ranking
from replay.sweeps.results import Results
from replay.sweeps.ties import Tie, ties
from replay.sweeps.verdict import WITHIN, judge

ROWS_SHOWN = 12


def print_sweep(
    console: Console,
    results: Results,
    objectives: Sequence[str],
    *,
    rows: int = ROWS_SHOWN,
    full: bool = False,
    within: float = WITHIN,
) -> None:
    """Prints the results, best first by the first objective; Δ is the difference to the default.

    Configurations that are equal in all objectives share a row, unless `full`. `within` is the largest relative
    difference that does not matter.
    """
    console.print(_headline(results))
    if not results.done.height:
        _print_problems(console, results)
        return
    verdict = judge(results, objectives, within=within)
    if verdict.spreads:
        console.print(verdict_section(results, verdict))
    found = ties(results, objectives, merged=not full)
    shown = found if full else found[:rows]
    shown += [each for each in found[len(shown) :] if each.is_default]
    matters = any(each.matters for each in verdict.of(objectives[0]))
    title = "Best first" if matters else f"All within {format_limit(within)}, lowest first"
    ranked = fitted(console, lambda gap: _ranking(results, objectives, shown, gap))
    ranked = without_columns(console, ranked, "equal", "Δ")
    console.print(section(f"{title}, by {objectives[0]}; Δ: difference to the default", ranked))
    if any(column.header == "equal" for column in ranked.columns):
        console.print("  equal: number of configurations with the results of the row (--full shows each)")
    if hidden := sum(len(each.rows) for each in found) - sum(len(each.rows) for each in shown):
        console.print(f"  and {hidden} more (--full shows all)")
    for metric in objectives:
        if effects := effects_section(console, results, metric, verdict):
            console.print(effects)
    if len(objectives) > 1 and verdict.matters:
        front = fitted(console, lambda gap: _front(results, objectives, found, gap))
        console.print(section(f"Pareto front: {', '.join(objectives)}", front))
    _print_problems(console, results)


def _headline(results: Results) -> Text:
    frame = results.frame
    configurations = frame.filter(pl.col("status") != "skipped")["configuration"].n_unique()
    sources = frame["source"].drop_nulls().unique().to_list()
    seeds = frame["seed"].drop_nulls().n_unique()
    over = printable(str(sources[0])) if len(sources) == 1 else f"{len(sources)} traces"
    over += f", {seeds} seeds each" if seeds > 1 else ""
    counted = {status: results.count(status) for status in ("done", "stopped", "failed", "missing")}
    runs = ", ".join(f"{count:,} {status}" for status, count in counted.items() if count)
    headline = Text(f"{results.description}\n" if results.description else "", style="bold")
    return Text.assemble(headline, f"{configurations:,} configurations over {over}: {runs}")


def _shown(results: Results, objectives: Sequence[str]) -> list[str]:
    """Returns the parameters in which configurations differ."""
    frame = results.done
    names = [name for name in results.parameters if frame[name].n_unique() > 1]
    return [name for name in names if name not in objectives] or list(results.parameters[:1])


def _ranking(results: Results, objectives: Sequence[str], found: Sequence[Tie], gap: str) -> Table:
    """Returns the ranking with differences to the default. Its columns are the objectives of one trace; for several
    traces, the first objective of each trace."""
    parameters = _shown(results, objectives)
    columns = _columns_of_objectives if results.has_one_source else _columns_of_sources
    figures = columns(results, objectives, gap)
    has_equal = any(len(tie.rows) > 1 for tie in found)
    headings = [*parameters, *(heading for heading, _ in figures), *["equal"] * has_equal]
    table = table_of("", *headings, left=len(parameters) + 1)
    table.columns[0].justify = "right"
    for tie in found:
        about = f"default{gap}{tie.rank}" if tie.is_default else str(tie.rank)
        cells = [cell[tie.configuration] for _, cell in figures]
        cells += [_count(tie, parameters)] * has_equal
        style = "bold" if tie.is_default else None
        table.add_row(about, *_values(results, tie, parameters, gap), *cells, style=style)
    return table


def _values(results: Results, tie: Tie, parameters: Sequence[str], gap: str) -> list[str]:
    """Returns a cell for each parameter: its value, several values if all combinations are equal, or `any`."""
    cells = []
    for name, values in zip(parameters, tie.values(parameters), strict=True):
        is_any = len(values) > 1 and len(values) == results.done[name].n_unique()
        cells.append("any" if is_any else f",{gap}".join(map(format_value, values)))
    return cells


def _count(tie: Tie, parameters: Sequence[str]) -> str:
    """Returns the number of configurations in the row; `1 of 9` if the cells show only the first of them."""
    count = len(tie.rows)
    if count == 1:
        return ""
    return f"{count}" if any(len(values) > 1 for values in tie.values(parameters)) else f"1 of {count}"


Column = tuple[str, dict[int, str]]
"""A heading, and the cells by number of the configuration."""


def _columns_of_objectives(results: Results, objectives: Sequence[str], gap: str) -> list[Column]:
    columns: list[Column] = []
    for metric in objectives:
        rows = ranking(results, metric).rows(named=True)
        default = next((row["mean"] for row in rows if row["default"]), None)
        columns.append((metric, {row["configuration"]: _with_interval(metric, row, gap) for row in rows}))
        columns.append(("Δ", {row["configuration"]: _change(metric, row, default) for row in rows}))
    return columns


def _with_interval(metric: str, row: dict[str, Any], gap: str) -> str:
    value = format_metric(metric, row["mean"])
    return value if row["interval"] is None else f"{value}{gap}± {format_metric(metric, row['interval'])}"


def _columns_of_sources(results: Results, objectives: Sequence[str], gap: str) -> list[Column]:
    columns: list[Column] = []
    for (source,), group in per_source(results, objectives[0]).group_by("source", maintain_order=True):
        rows = group.rows(named=True)
        default = next((row["mean"] for row in rows if row["default"]), None)
        cells = {
            row[
                "configuration"
            ]: f"{_with_interval(objectives[0], row, gap)}{gap}({_change(objectives[0], row, default)})"
            for row in rows
        }
        columns.append((str(source), cells))
    for metric in objectives:
        rows = ranking(results, metric).rows(named=True)
        columns.append((f"Δ {metric}", {row["configuration"]: _change(metric, row, None) for row in rows}))
    return columns


def _change(metric: str, row: dict[str, Any], default: float | None) -> str:
    return format_change(metric, row["ratio"], row["mean"], default)


def _front(results: Results, objectives: Sequence[str], found: Sequence[Tie], gap: str) -> Table:
    front = {row["configuration"]: row for row in pareto(results, objectives).iter_rows(named=True)}
    best = [tie for tie in found if tie.configuration in front]
    parameters = _shown(results, objectives)
    has_equal = any(len(tie.rows) > 1 for tie in best)
    table = table_of("", *parameters, *objectives, *["equal"] * has_equal, left=len(parameters) + 1)
    for tie in best[:ROWS_SHOWN]:
        judged = front[tie.configuration]
        cells = ["default" if tie.is_default else "", *_values(results, tie, parameters, gap)]
        cells += [format_judged(results, metric, judged[metric]) for metric in objectives]
        table.add_row(*cells, *[_count(tie, parameters)] * has_equal)
    dominated = len(front_table(results, objectives)) - len(front)
    hidden = max(0, len(best) - ROWS_SHOWN)
    others = "1 other configuration is" if dominated == 1 else f"{dominated} other configurations are"
    table.caption = f"and {hidden} more; " * bool(hidden) + f"{others} dominated"
    table.caption_justify = "left"
    return table


def _print_problems(console: Console, results: Results) -> None:
    """Prints the numbers of skipped and failed runs, and each reason once."""
    for status in ("skipped", "failed"):
        frame = results.frame.filter(pl.col("status") == status)
        if frame.height:
            reasons = frame.group_by("error", maintain_order=True).len()
            body = "\n".join(f"{count} × {error}" for error, count in reasons.head(5).iter_rows())
            more = f"\nand {reasons.height - 5} other reasons" if reasons.height > 5 else ""
            console.print(section(f"{status.capitalize()}: {frame.height}", Text(body + more)))
