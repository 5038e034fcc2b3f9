"""Where plan, engine and journal meet: `sweep(plan)` does all runs and returns the results."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from replay.sweeps import journal as journals
from replay.sweeps.configurations import Configuration, Resolver, Skipped, configurations
from replay.sweeps.journal import Journal
from replay.sweeps.outcomes import Front, Outcome, Task, make_task
from replay.sweeps.plan import Plan, load_plan, make_plan
from replay.sweeps.results import Results, collect, write_results
from replay.sweeps.search import Search
from replay.sweeps.threads import Threads
from replay.sweeps.traces import Input, find_inputs


class Engine(Protocol):
    """Something that does tasks: threads here, or a cluster."""

    def keep(self, inputs: Sequence[Input]) -> None:
        """These traces will be wanted again and again: not only by the next tasks."""

    def outcomes(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """An outcome for each task, in any order, as they come."""


Progress = Callable[[int, int], None]
"""Hears how many runs are done, and how many there will be as far as is known."""


class Sweep:
    """A plan under way: what was tried so far, and the outcomes that are known."""

    def __init__(
        self, resolver: Resolver, inputs: list[Input], engine: Engine, journal: Journal, progress: Progress
    ) -> None:
        self.plan, self.inputs, self.resolver = resolver.plan, inputs, resolver
        self.tried: list[Configuration | Skipped] = []
        self._engine, self._journal, self._progress = engine, journal, progress
        self._done = 0

    def do(self, wanted: Iterable[Configuration | Skipped], front: Front = (), expected: int | None = None) -> None:
        """Does the runs of these that are not known yet. `expected`: how many runs there will be in all."""
        wanted = list(wanted)
        self.tried += wanted
        # Trace after trace, so that only few are in memory at a time.
        tasks = {
            task.key: task
            for what in self.inputs
            for each in wanted
            if isinstance(each, Configuration)
            for task in [make_task(what, each.stack, each.key, self.plan.trim_every, front)]
        }
        known = self._journal.outcomes
        left = [task for key, task in tasks.items() if key not in known or not _serves(known[key], front)]
        self._done += len(tasks) - len(left)
        expected = expected or self._done + len(left)
        self._progress(self._done, expected)
        if not left:
            return
        with closing(self._engine.outcomes(left)) as outcomes:  # whatever happens here, runs under way end
            for outcome in outcomes:
                self._journal.add(outcome)
                self._done += 1
                self._progress(self._done, expected)

    def keep_traces(self) -> None:
        """More than one call of `do` will want them."""
        self._engine.keep(self.inputs)

    def outcome(self, each: Configuration, what: Input) -> Outcome | None:
        return self._journal.outcomes.get(make_task(what, each.stack, each.key, self.plan.trim_every).key)

    def results(self) -> Results:
        return collect(self.plan, self.tried, self.inputs, self._journal.outcomes)


def _serves(outcome: Outcome, front: Front) -> bool:
    """Whether a known outcome will do: one that was ended early only where it still would be."""
    return outcome.status != "stopped" or any(
        all(name in outcome.metrics and outcome.metrics[name] >= value for name, value in known.items())
        for known in front
    )


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
        run = Sweep(resolver, inputs, engine or Threads(), journal, progress)
        try:
            if trials is None:
                run.do(wanted)
            else:
                Search(run, trials, strict=strict).go()
        finally:
            results = run.results()
            if folder is not None:
                write_results(results, folder, csv=csv)
    return results
