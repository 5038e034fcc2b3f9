"""`replay verify --sweep`: compares the ranking of a sweep with the ranking by real allocators."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import typer

from replay.commands.compilation import report_compilation
from replay.support.errors import ReplayError
from replay.support.names import say


def verify_sweep(name: str, source: str | None, allocator: str | None, *, as_json: bool) -> None:
    """Runs the configurations of a sweep with real allocators, and compares the order with the simulated one.

    `name` is a file, a folder or a bundled sweep. `source` and `allocator` replace those of the sweep.
    """
    from replay.sweeps.configurations import ALLOCATOR
    from replay.sweeps.journal import read_about
    from replay.sweeps.plan import Plan, load_plan, make_plan
    from replay.verification.rankings import verify_ranking

    plan = Plan.model_validate(read_about(Path(name))["plan"]) if Path(name).is_dir() else load_plan(name)
    if source is not None:
        plan = plan.model_copy(update={"sources": [source]})
    if allocator is not None:
        plan = make_plan(plan.model_dump() | {"fixed": {**plan.fixed, ALLOCATOR: allocator}})
    with report_compilation():
        verdict = verify_ranking(plan)
    if not verdict.rankings:
        reasons = "; ".join(verdict.left_out)
        raise ReplayError(f"--sweep {name}: no configuration can be compared with a real allocator: {reasons}")
    if as_json:
        say(json.dumps({"same": verdict.same, **asdict(verdict)}, indent=2))
        raise typer.Exit(0 if verdict.same else 1)
    from rich import box
    from rich.table import Table

    from replay.reports.console import PlainConsole

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("trace", "real", "metric"):
        table.add_column(heading, no_wrap=True)
    for heading in ("of", "ranks", "ranked alike", "equal"):
        table.add_column(heading, justify="right", no_wrap=True)
    for ranking in verdict.rankings:
        count = len(ranking.real)
        alike = sum(model == real for model, real in zip(ranking.model, ranking.real, strict=True))
        table.add_row(
            ranking.source, ranking.kind, ranking.metric, str(count), str(max(ranking.real)), str(alike),
            str(ranking.figures_equal),
        )  # fmt: skip
    PlainConsole(width=None if sys.stdout.isatty() else 100).print(table)
    for each in verdict.compared:
        if each.model != each.real:
            say(f"{each.source}, {each.parameters}: {each.model} in the sweep, {each.real} by {each.real_allocator}")
    for reason, count in verdict.left_out.items():
        say(f"left out: {count} × {reason}")
    raise typer.Exit(0 if verdict.same else 1)
