"""Where plan, engine and journal meet: `sweep(plan)` does all runs and returns the results."""

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


def _unheard(done: int, expected: int) -> None:
    """Nobody wants to know."""


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
    progress: Progress = _unheard,
) -> Results:
    """Runs a plan: a Plan, one as a mapping, or the name of a sweep's file or of a bundled sweep.

    `trials`: search for the best instead of trying all. `out`: a folder for the results, where each outcome is kept as
    it comes; `resume` goes on with what is there. `strict`: a combination that cannot be run is an error.
    """
    if isinstance(plan, str):
        plan = load_plan(plan)
    elif not isinstance(plan, Plan):
        plan = make_plan(plan)
    inputs = find_inputs(plan.sources, plan.seeds)
    folder = None if out is None else Path(out)
    resolver = Resolver(plan, [what.recorded for what in inputs])
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
                Search(runs, trials, strict=strict).go()
        finally:
            results = runs.results()
            if folder is not None:
                write_results(results, folder, csv=csv)
    return results
