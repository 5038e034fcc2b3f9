"""The state of a running sweep: tried configurations, known outcomes, and the engine for the missing runs."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Protocol

from replay.sweeps.configurations import Configuration, Resolver, Skipped
from replay.sweeps.journal import Journal
from replay.sweeps.outcomes import Front, Outcome, Task, make_task
from replay.sweeps.results import Results, collect
from replay.sweeps.traces import Input


class Engine(Protocol):
    """Does tasks: threads of this process, or a cluster."""

    def keep(self, inputs: Sequence[Input]) -> None:
        """Announces that later calls of `outcomes` also need these traces."""

    def outcomes(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """Yields an outcome for each task, in the order of completion."""


Progress = Callable[[int, int], None]
"""Called with the number of completed runs and the expected total."""


class Runs:
    """The runs of a sweep: configurations that were tried so far, and known outcomes."""

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
        """Does the runs of these configurations that have no outcome yet. `expected`: total number of runs."""
        configurations = list(configurations)
        self.tried += configurations
        # One trace after the other, so that only a few are in memory at a time.
        tasks = {
            task.key: task
            for trace in self.inputs
            for each in configurations
            if isinstance(each, Configuration)
            for task in [make_task(trace, each, front)]
        }
        known = self._journal.outcomes
        missing = [task for key, task in tasks.items() if key not in known or not _is_reusable(known[key], front)]
        self._done += len(tasks) - len(missing)
        expected = expected or self._done + len(missing)
        self._progress(self._done, expected)
        if not missing:
            return
        with closing(self._engine.outcomes(missing)) as outcomes:  # ends running tasks also after an exception
            for outcome in outcomes:
                self._journal.add(outcome)
                self._done += 1
                self._progress(self._done, expected)

    def keep_traces(self) -> None:
        """Announces that several calls of `do` need the traces."""
        self._engine.keep(self.inputs)

    def outcome(self, each: Configuration, trace: Input) -> Outcome | None:
        return self._journal.outcomes.get(make_task(trace, each).key)

    def results(self) -> Results:
        return collect(self.plan, self.tried, self.inputs, self._journal.outcomes)


def _is_reusable(outcome: Outcome, front: Front) -> bool:
    """Whether a known outcome can be used. A run that was ended early must still be dominated by `front`."""
    return outcome.status != "stopped" or any(
        all(name in outcome.metrics and outcome.metrics[name] >= value for name, value in known.items())
        for known in front
    )
