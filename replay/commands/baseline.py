"""`replay baseline`: measures cases and stores their figures for later comparisons."""

from typing import Annotated

import typer

from replay.commands import gate_options as options
from replay.commands.options import Env, Fixed, Seed
from replay.support.names import say


def baseline(
    sources: options.Sources = None,
    allocators: options.Allocators = None,
    fixed: Fixed = None,
    env: Env = None,
    seed: Seed = None,
    suite: options.SuiteFile = None,
    output: options.BaselineFile = None,
    record: options.Record = False,
    recordings: options.Recordings = 3,
    name: options.Name = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="TRACE", help="With --record: file for one recording, for `replay check --against`."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing cases of the baseline.")] = False,
) -> None:
    """Measure traces, workloads or programs, and store the results for `replay check`.

    Example: replay baseline web-service batch-parse -a cpython-3.12

    Example: replay baseline --record -- job.py --small
    """
    chosen = options.choose(
        sources, allocators=allocators, fixed=fixed, env=env, seed=seed, suite_file=suite, baseline_file=output,
        record=record, recordings=recordings, name=name, more={"against": keep},
    )  # fmt: skip
    options.measure_into_baseline(chosen, force=force)
    say("next: commit it, and run `replay check`")
