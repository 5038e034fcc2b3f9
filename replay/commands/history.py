"""`replay history`: a metric over the commits that were checked, and the commits that changed its level."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands.lists import split_list
from replay.commands.options import AsJson
from replay.support.errors import ReplayError
from replay.support.names import say

if TYPE_CHECKING:
    import polars as pl

    from replay.gates.history import Step

DEFAULT_METRIC = "resident_bytes_peak"
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 20
"""Number of checks in the line chart of a row."""


def history(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet file that `replay check --history` wrote.")],
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", metavar="METRIC,…", callback=split_list, help=f"Metrics to show. Default: {DEFAULT_METRIC}."
        ),
    ] = None,
    case: Annotated[str | None, typer.Option("--case", help="Case to show. Default: all.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Number of latest changes to list.")] = 10,
    chart: Annotated[
        Path | None, typer.Option("--chart", metavar="FILE", help="Chart of the metrics over commits, .html or .png.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing chart.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show metrics over commits, and the commits at which their level changed.

    Example: replay history history.parquet --metric resident_bytes_peak --case web
    """
    import polars as pl

    from replay.analysis.metrics import check_metric
    from replay.gates.history import find_steps, read_history
    from replay.support.names import nearest

    wanted = [check_metric(metric) for metric in metrics or [DEFAULT_METRIC]]
    frame = read_history(path)
    if case is not None:
        names = frame["case"].unique().sort().to_list()
        if case not in names:
            raise ReplayError(f"--case {case}: is not in this history; {nearest(case, names)}")
        frame = frame.filter(pl.col("case") == case)
    found = find_steps(frame, wanted)
    if as_json:
        columns = ["commit", "date", "case", "state", *wanted]
        document = {"rows": frame.select(columns).to_dicts(), "steps": [step.__dict__ for step in found]}
        say(json.dumps(document, indent=2, default=str))
    else:
        _print(frame, wanted, found, rows)
    if chart is not None:
        from replay.reports.history_chart import write_chart

        write_chart(chart, frame, wanted, found, force=force)
        say(f"drawn: {chart}", err=True)


def _print(frame: "pl.DataFrame", metrics: list[str], found: "list[Step]", rows: int) -> None:
    from replay.reports.console import PlainConsole
    from replay.reports.figures import format_metric
    from replay.reports.tables import table_of

    table = table_of("case", "metric", "course", "first", "last", "checks", left=3)
    for (case,), group in frame.group_by("case", maintain_order=True):
        for metric in metrics:
            values = group[metric].drop_nulls().to_list()
            if values:
                ends = (format_metric(metric, values[0]), format_metric(metric, values[-1]))
                table.add_row(str(case), metric, _spark(values[-_WIDTH:]), *ends, str(len(values)))
    console = PlainConsole()
    console.print(table)
    if not found:
        say("\nno step: each metric stayed at its level")
    for step in found[-rows:]:
        before, after = format_metric(step.metric, step.before), format_metric(step.metric, step.after)
        say(f"{step.date:%Y-%m-%d} {step.commit[:12]}  {step.case}: {step.metric} {before} -> {after}")


def _spark(values: list[float]) -> str:
    low, high = min(values), max(values)
    if low == high:
        return _BARS[3] * len(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)
