"""`sweep(plan)` does all runs of a plan and returns the results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replay.sweeps import journal as journals
from replay.sweeps.configurations import Resolver, configurations
from replay.sweeps.journal import Journal
from replay.sweeps.plan import Plan, load_plan, make_plan
from replay.sweeps.results import Results, write_results
from replay.sweeps.runs import Engine, Progress, Runs
from replay.sweeps.search import Search
from replay.sweeps.threads import Threads
from replay.sweeps.traces import find_inputs


def _ignore_progress(done: int, expected: int) -> None:
    """Ignores the progress."""


def sweep(
    plan: Plan | Mapping[str, Any] | str,
    *,
    trials: int | None = None,
    out: Path | str | None = None,
    csv: bool = False,
    resume: bool = False,
    force: bool = False,
    strict: bool = False,
    engine: Engine | None = None,
    progress: Progress = _ignore_progress,
) -> Results:
    """Runs a plan and returns the results. The plan is a Plan, a mapping with its keys, a file, or a bundled sweep.

    `trials`: search for the best configurations instead of trying all. `out`: a folder for the results; each outcome is
    saved there when its run ends, and `resume` continues with them. `strict`: an impossible combination is an error.
    """
    if isinstance(plan, str):
        plan = load_plan(plan)
    elif not isinstance(plan, Plan):
        plan = make_plan(plan)
    inputs = find_inputs(plan.sources, plan.seeds)
    folder = None if out is None else Path(out)
    resolver = Resolver(plan, [trace.recorded for trace in inputs])
    wanted = configurations(resolver, strict=strict) if trials is None else []
    if trials is not None:
        Search.check(plan)
    if folder is not None:
        journals.begin(folder, journals.describe(plan, inputs), resume=resume, force=force)
    with Journal(folder) as journal:
        runs = Runs(resolver, inputs, engine or Threads(), journal, progress)
        try:
            if trials is None:
                runs.do(wanted)
            else:
                Search(runs, trials, strict=strict).run()
        finally:
            results = runs.results()
            if folder is not None:
                write_results(results, folder, csv=csv)
    return results
