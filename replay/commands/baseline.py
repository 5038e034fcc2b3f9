"""`replay baseline`: what cases come to now, written down to be compared with later."""

from typing import Annotated

import typer

from replay.commands import gate_options as options
from replay.support.names import say


def baseline(
    sources: options.Sources = None,
    allocators: options.Allocators = None,
    fixed: options.Fixed = None,
    env: options.Env = None,
    seed: options.Seed = None,
    suite: options.SuiteFile = None,
    output: options.BaselineFile = None,
    record: options.Record = False,
    recordings: options.Recordings = 3,
    name: options.Name = None,
    keep: Annotated[
        str | None, typer.Option(metavar="TRACE", help="With --record: keep a recording, for `replay check --against`.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace cases that the baseline has already.")] = False,
) -> None:
    """Write down what traces, workloads or programs cost now; `replay check` compares with it.

    Example: replay baseline web-service batch-parse -a cpython-3.12

    Example: replay baseline --record -- job.py --small
    """
    chosen = options.choose(
        sources, allocators=allocators, fixed=fixed, env=env, seed=seed, suite_file=suite, baseline_file=output,
        record=record, recordings=recordings, name=name, more={"against": keep},
    )  # fmt: skip
    options.take(chosen, force=force)
    say("next: commit it, and run `replay check`")
