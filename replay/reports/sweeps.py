"""A sweep's results as text: the ranking, which parameter matters, and what cannot be had together."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import polars as pl
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from replay.analysis.metrics import metric_names
from replay.reports.tables import section, table_of
from replay.support.units import format_size, format_time
from replay.sweeps.analysis import LEVELS_SHOWN, front_table, main_effects, pareto, per_source, ranking
from replay.sweeps.results import Results

ROWS_SHOWN = 12
_FACTOR = 10
"""From this ratio to the default on, a factor reads better than a percentage."""


def print_sweep(
    console: Console, results: Results, objectives: Sequence[str], *, rows: int = ROWS_SHOWN, full: bool = False
) -> None:
    """Prints the results, best first by the first objective; Δ is the difference to the default.

    Of configurations that are equal in all objectives only the one with the fewest settings is shown, unless `full`.
    """
    console.print(_headline(results))
    if not results.done.height:
        _print_troubles(console, results)
        return
    ranks = ranking(results, objectives[0]).with_row_index("rank", offset=1)
    entries = _entries(results, objectives, ranks, merged=not full)
    shown = entries if full else entries[:rows]
    shown += [entry for entry in entries[len(shown) :] if entry.row["default"]]
    ranked = _fitted(console, lambda gap: _ranking(results, objectives, shown, gap))
    console.print(section(f"Best first, by {objectives[0]}; Δ: difference to the default", ranked))
    if hidden := ranks.height - sum(1 + entry.equal for entry in shown):
        console.print(f"  and {hidden} more (--full shows all)")
    for metric in objectives:
        effects = main_effects(results, metric)
        if effects["parameter"].n_unique() > 1:
            console.print(
                section(f"What matters for {metric}: mean over everything else", _effects(results, effects, metric))
            )
    if len(objectives) > 1:
        title = f"Pareto front: {', '.join(objectives)}"
        console.print(section(title, _fitted(console, lambda gap: _front(results, objectives))))
    _print_troubles(console, results)


_INDENT = 2
_HEADING_MIN = 6


def _fitted(console: Console, build: Callable[[str], Table]) -> Table:
    """Where the table is too wide: headings over several lines, and then figures too, one below the other.

    `build` makes the table, with so much between the figures of a cell.
    """
    table = build(" ")
    if _is_too_wide(console, table):
        _fold_headings(table)
    if _is_too_wide(console, table):
        table = build("\n")
        table.padding = (0, 1, 0, 0)
        _fold_headings(table)
    return table


def _fold_headings(table: Table) -> None:
    for column in table.columns:
        lines = [line for cell in column.cells for line in str(cell).split("\n")]
        column.header = _folded(str(column.header), max([_HEADING_MIN, *map(cell_len, lines)]))


def _is_too_wide(console: Console, table: Table) -> bool:
    return console.measure(table, options=console.options.update(width=1000)).maximum + _INDENT > console.width


def _folded(heading: str, width: int) -> str:
    """Broken behind dots and underscores."""
    lines = [""]
    for part in re.findall(r"[^._/ ]*[._/ ]?", heading):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _headline(results: Results) -> Text:
    frame = results.frame
    configurations = frame.filter(pl.col("status") != "skipped")["configuration"].n_unique()
    traces = frame["source"].drop_nulls().n_unique()
    seeds = frame["seed"].drop_nulls().n_unique()
    over = f"{traces} trace{'s' * (traces != 1)}" + (f", {seeds} seeds each" if seeds > 1 else "")
    counted = {status: results.count(status) for status in ("done", "stopped", "failed", "missing")}
    runs = ", ".join(f"{count:,} {status}" for status, count in counted.items() if count)
    return Text.assemble(
        (results.description or "Sweep", "bold"), f"\n{configurations:,} configurations over {over}: {runs}"
    )


def _shown(results: Results, objectives: Sequence[str]) -> list[str]:
    """The parameters that tell one configuration from another."""
    frame = results.done
    names = [name for name in results.parameters if frame[name].n_unique() > 1]
    return [name for name in names if name not in objectives] or list(results.parameters[:1])


class Entry(NamedTuple):
    """A row of the ranking, and how many other configurations are equal to it in all objectives."""

    row: dict[str, Any]
    equal: int


def _entries(results: Results, objectives: Sequence[str], ranks: pl.DataFrame, *, merged: bool) -> list[Entry]:
    """The ranking. `merged`: of equal configurations the default, else the one with the fewest settings."""
    rows = ranks.rows(named=True)
    if not merged:
        return [Entry(row, 0) for row in rows]
    values = results.done.sort("source", "seed").group_by("configuration").agg(*map(pl.col, objectives))
    keys = {row["configuration"]: tuple(tuple(row[name]) for name in objectives) for row in values.rows(named=True)}
    groups: dict[tuple[tuple[float, ...], ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(keys[row["configuration"]], []).append(row)
    entries = []
    for equals in groups.values():
        simplest = min(equals, key=lambda row: (not row["default"], _settings(results, row)))
        entries.append(Entry({**simplest, "rank": equals[0]["rank"]}, len(equals) - 1))
    return entries


def _settings(results: Results, row: dict[str, Any]) -> int:
    """How many parameters are set; those that are not set are null."""
    return sum(row[name] is not None for name in results.parameters)


def _ranking(results: Results, objectives: Sequence[str], entries: Sequence[Entry], gap: str) -> Table:
    """Over one trace each objective's value; over several, the first's for each trace; and always the change."""
    parameters = _shown(results, objectives)
    columns = _columns_of_objectives if results.has_one_source else _columns_of_sources
    figures = columns(results, objectives, gap)
    has_equals = any(entry.equal for entry in entries)
    headings = [*parameters, *(heading for heading, _ in figures), *["equal"] * has_equals]
    table = table_of("", *headings, left=len(parameters) + 1)
    table.columns[0].justify = "right"
    for row, equal in entries:
        rank = str(row["rank"])
        about = [f"default{gap}{rank}" if row["default"] else rank]
        about += [format_value(row[name]) for name in parameters]
        cells = [cell[row["configuration"]] for _, cell in figures]
        cells += [f"+{equal}" if equal else ""] * has_equals
        table.add_row(*about, *cells, style="bold" if row["default"] else None)
    return table


Column = tuple[str, dict[int, str]]
"""A heading, and what stands below it by configuration."""


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


def _effects(results: Results, effects: pl.DataFrame, metric: str) -> Table:
    table = table_of("parameter", "explains", "", left=1)
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for (name, share), group in effects.group_by("parameter", "share", maintain_order=True):
        ordered = group.sort("mean", maintain_order=True).rows(named=True)
        told = [f"{format_value(row['value'])}: {format_judged(results, metric, row['mean'])}" for row in ordered]
        if len(told) > LEVELS_SHOWN:
            told[LEVELS_SHOWN - 2 : -1] = ["…"]
        table.add_row(str(name), f"{100 * float(str(share)):.0f} %", ", ".join(told))
    return table


def _front(results: Results, objectives: Sequence[str]) -> Table:
    front = pareto(results, objectives)
    distinct = front.group_by(objectives, maintain_order=True).agg(pl.all().first(), pl.len().alias("equal"))
    parameters = _shown(results, objectives)
    has_equals = bool((distinct["equal"] > 1).any())
    table = table_of("", *parameters, *objectives, *["equal"] * has_equals, left=len(parameters) + 1)
    for row in distinct.head(ROWS_SHOWN).iter_rows(named=True):
        cells = ["default" if row["default"] else "", *(format_value(row[name]) for name in parameters)]
        cells += [format_judged(results, metric, row[metric]) for metric in objectives]
        equal = f"+{row['equal'] - 1}" if row["equal"] > 1 else ""
        table.add_row(*cells, *[equal] * has_equals)
    beaten = len(front_table(results, objectives)) - len(front)
    hidden = max(0, len(distinct) - ROWS_SHOWN)
    table.caption = f"and {hidden} more; " * bool(hidden) + f"each of the other {beaten} is worse than one of these"
    table.caption_justify = "left"
    return table


def _print_troubles(console: Console, results: Results) -> None:
    """What was skipped and what failed, each reason once."""
    for status in ("skipped", "failed"):
        frame = results.frame.filter(pl.col("status") == status)
        if frame.height:
            told = frame.group_by("error", maintain_order=True).len()
            body = "\n".join(f"{count} × {error}" for error, count in told.head(5).iter_rows())
            more = f"\nand {told.height - 5} other reasons" if told.height > 5 else ""
            console.print(section(f"{status.capitalize()}: {frame.height}", Text(body + more)))


def format_value(value: Any) -> str:
    """A parameter's value: whole KiB as such."""
    if value is None:
        return "default"
    if isinstance(value, str) and " to " in value:  # a quarter of many values
        return " to ".join(format_value(each) for each in value.split(" to "))
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1024 and value % 1024 == 0:
        return format_size(value).replace(".00", "").replace(".0 ", " ")
    return str(value)


def format_metric(metric: str, value: float) -> str:
    """A metric's value in the unit that its name tells."""
    assert metric in metric_names()
    if "_bytes" in metric:
        return format_size(round(value))
    if "_ns" in metric:
        return format_time(value)
    if metric == "blowup" or "fragmentation" in metric:
        return f"{value:.3f}"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def format_judged(results: Results, metric: str, value: float) -> str:
    """What configurations are judged by: the metric over one trace, the mean ratio to the default over several."""
    return format_metric(metric, value) if results.has_one_source else f"{value:.3f} ×"


def _change(metric: str, row: dict[str, Any], default: float | None) -> str:
    """The difference to the default: a percentage, a large one a factor, or the value itself where the default is 0."""
    ratio, mean = row["ratio"], row["mean"]
    if ratio is None:
        return "-"
    if default == 0 and mean:
        return f"+{format_metric(metric, mean)}"
    if ratio >= _FACTOR:
        return f"{ratio:,.0f} ×"
    return "=" if ratio == 1 else f"{100 * (ratio - 1):+.1f} %"
