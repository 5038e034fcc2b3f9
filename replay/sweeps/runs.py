"""A plan under way: the runs that were tried, the outcomes that are known, and the engine that does the rest."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Protocol

from replay.sweeps.configurations import Configuration, Resolver, Skipped
from replay.sweeps.journal import Journal
from replay.sweeps.outcomes import Front, Outcome, Task, make_task
from replay.sweeps.results import Results, collect
from replay.sweeps.traces import Input


class Engine(Protocol):
    """Something that does tasks: threads here, or a cluster."""

    def keep(self, inputs: Sequence[Input]) -> None:
        """These traces will be wanted again and again: not only by the next tasks."""

    def outcomes(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """An outcome for each task, in any order, as they come."""


Progress = Callable[[int, int], None]
"""Hears how many runs are done, and how many there will be as far as is known."""


class Runs:
    """A plan under way: what was tried so far, and the outcomes that are known."""

    def __init__(
        self, resolver: Resolver, inputs: list[Input], engine: Engine, journal: Journal, progress: Progress
    ) -> None:
        self.plan, self.inputs, self.resolver = resolver.plan, inputs, resolver
        self.tried: list[Configuration | Skipped] = []
        self._engine, self._journal, self._progress = engine, journal, progress
        self._done = 0

    def do(
        self, configurations: Iterable[Configuration | Skipped], front: Front = (), expected: int | None = None
    ) -> None:
        """Does the runs of these that are not known yet. `expected`: how many runs there will be in all."""
        configurations = list(configurations)
        self.tried += configurations
        # Trace after trace, so that only few are in memory at a time.
        tasks = {
            task.key: task
            for trace in self.inputs
            for each in configurations
            if isinstance(each, Configuration)
            for task in [make_task(trace, each.stack, each.key, self.plan.trim_every, front)]
        }
        known = self._journal.outcomes
        missing = [task for key, task in tasks.items() if key not in known or not _is_reusable(known[key], front)]
        self._done += len(tasks) - len(missing)
        expected = expected or self._done + len(missing)
        self._progress(self._done, expected)
        if not missing:
            return
        with closing(self._engine.outcomes(missing)) as outcomes:  # whatever happens here, runs under way end
            for outcome in outcomes:
                self._journal.add(outcome)
                self._done += 1
                self._progress(self._done, expected)

    def keep_traces(self) -> None:
        """More than one call of `do` will want them."""
        self._engine.keep(self.inputs)

    def outcome(self, each: Configuration, trace: Input) -> Outcome | None:
        return self._journal.outcomes.get(make_task(trace, each.stack, each.key, self.plan.trim_every).key)

    def results(self) -> Results:
        return collect(self.plan, self.tried, self.inputs, self._journal.outcomes)


def _is_reusable(outcome: Outcome, front: Front) -> bool:
    """Whether a known outcome will do: one that was ended early only where it still would be."""
    return outcome.status != "stopped" or any(
        all(name in outcome.metrics and outcome.metrics[name] >= value for name, value in known.items())
        for known in front
    )
