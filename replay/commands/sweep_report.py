"""Shows the results of a sweep: on standard output, and as charts in a folder."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replay.support.errors import ReplayError
from replay.support.names import say

if TYPE_CHECKING:
    from replay.sweeps.results import Results

WIDTH = 160
"""Columns of the output if it is not a terminal; nearly every table fits."""


@dataclass(frozen=True)
class Report:
    """The options of the output."""

    rows: int
    full: bool
    within: float
    as_json: bool
    charts: bool
    heat: Sequence[str]
    """The two parameters of the heat map; empty for those with the largest effect."""

    def show(self, results: "Results", objectives: Sequence[str]) -> None:
        """Prints the results as text or JSON."""
        from replay.analysis.metrics import check_metric

        for metric in objectives:
            check_metric(metric)
        if self.as_json:
            from replay.reports.sweep_json import sweep_as_json

            document = sweep_as_json(results, objectives, within=self.within)
            say(json.dumps(document, indent=2, allow_nan=False))
            return
        from replay.reports.console import PlainConsole
        from replay.reports.sweeps import print_sweep

        console = PlainConsole(width=None if sys.stdout.isatty() else WIDTH)
        print_sweep(console, results, objectives, rows=self.rows, full=self.full, within=self.within)

    def draw(self, folder: Path, results: "Results", objectives: Sequence[str], *, force: bool) -> None:
        """Writes the charts into the folder if --charts is set."""
        if not self.charts:
            return
        from replay.reports.charts import write_charts

        written = write_charts(folder, results, objectives, heat=self.heat, within=self.within, force=force)
        say(f"\nwritten: {', '.join(map(str, written))}", err=True)


def make_report(*, rows: int, full: bool, within: str, as_json: bool, charts: bool, heat: str | None) -> Report:
    """Returns the report of the options; raises ReplayError if they contradict each other or a package is missing."""
    if heat is not None and not charts:
        raise ReplayError("--heat requires --charts")
    if charts:
        from replay.reports.charts import refuse_missing

        refuse_missing()
    return Report(rows, full, _parse_within(within), as_json, charts, _parse_heat(heat))


def _parse_within(text: str) -> float:
    from replay.support.units import parse_percentage

    try:
        return parse_percentage(text)
    except ValueError as mistake:
        raise ReplayError(f"--within: {mistake}") from None


def _parse_heat(text: str | None) -> list[str]:
    axes = [name.strip() for name in text.split(",")] if text is not None else []
    if len(axes) not in (0, 2) or len(set(axes)) < len(axes):
        raise ReplayError(f"--heat {text}: name two parameters, like pymalloc.alignment,pymalloc.arena_size")
    return axes


def list_plans(*, as_json: bool) -> None:
    """Prints the bundled sweeps and their descriptions."""
    from rich.table import Table

    from replay.reports.console import PlainConsole
    from replay.support.bundled_files import sweep_names
    from replay.sweeps.plan import load_plan

    plans = {name: load_plan(name).description for name in sweep_names()}
    if as_json:
        say(json.dumps([{"name": name, "description": text} for name, text in plans.items()], indent=2))
        return
    table = Table("sweep", "description", box=None, header_style="bold")
    for name, text in plans.items():
        table.add_row(name, text)
    PlainConsole().print(table)
    say("\nnext: replay sweep web-service --plan every-cpython")
