"""`replay baseline`: measures cases and stores their figures for later comparisons."""

from pathlib import Path
from shlex import join
from typing import Annotated

import typer

from replay.commands import gate_options as options
from replay.commands.options import Env, Fixed, Seed
from replay.support.errors import ReplayError
from replay.support.names import printable, say


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
        typer.Option(
            metavar="TRACE",
            help="With --record: file for the recording with the median peak; `replay check` then shows causes.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing cases of the baseline.")] = False,
) -> None:
    """Measure traces, workloads or programs, and store the results for `replay check`.

    Example: replay baseline web-service batch-parse -a cpython-3.12

    Example: replay baseline --record -- job.py --small
    """
    if keep is not None and not record:
        raise ReplayError("--keep requires --record; other cases keep their sources")
    chosen = options.choose(
        sources, allocators=allocators, fixed=fixed, env=env, seed=seed, suite_file=suite, baseline_file=output,
        record=record, recordings=recordings, name=name, more={"against": keep},
    )  # fmt: skip
    options.measure_into_baseline(chosen, force=force)
    say(f"next: {printable(join(['replay', 'check', *_file_options(suite, output)]))}")


def _file_options(suite: Path | None, baseline: Path | None) -> list[str]:
    files = {"--suite": suite, "--baseline": baseline}
    return [word for option, file in files.items() if file is not None for word in (option, str(file))]
