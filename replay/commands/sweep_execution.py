"""The options with which `replay sweep` executes a plan: threads or a cluster, all points or a search, a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replay.commands.compilation import report_compilation
from replay.support.errors import ReplayError
from replay.support.names import say

if TYPE_CHECKING:
    from replay.sweeps.plan import Plan
    from replay.sweeps.results import Results
    from replay.sweeps.runs import Engine


@dataclass(frozen=True)
class Execution:
    """The options of a sweep besides its plan."""

    jobs: int | None
    cluster: str | None
    cluster_timeout_s: float
    trials: int | None
    out: Path | None
    csv: bool
    resume: bool
    force: bool
    strict: bool

    def refuse_contradictions(self, *, charts: bool, by: list[str] | None, optimise: list[str] | None) -> None:
        """Raises a ReplayError for options that require or exclude each other."""
        if (self.csv or charts or self.resume) and self.out is None:
            raise ReplayError(f"--{'csv' if self.csv else 'charts' if charts else 'resume'} requires --out DIR")
        if optimise and by:
            raise ReplayError("--optimise and --by exclude each other: --optimise ranks by its own metrics")
        if (self.trials is None) != (not optimise):
            raise ReplayError("--optimise METRIC and --trials N require each other")

    def run(self, plan: "Plan") -> "Results":
        """Simulates the plan's points and shows the progress."""
        from replay.support.progress import progress_bar
        from replay.sweeps.sweep import sweep

        with (
            _interruption_explained(self.out),
            self._engine() as engine,
            report_compilation(),
            progress_bar("sweeping") as progress,
        ):
            return sweep(
                plan, trials=self.trials, out=self.out, csv=self.csv, resume=self.resume, force=self.force,
                strict=self.strict, engine=engine, progress=progress,
            )  # fmt: skip

    @contextmanager
    def _engine(self) -> "Iterator[Engine]":
        if self.cluster is None:
            from replay.sweeps.threads import Threads

            yield Threads(self.jobs)
            return
        if self.jobs is not None:
            raise ReplayError("--jobs and --cluster exclude each other: a cluster has its own workers")
        from replay.sweeps.cluster import Cluster

        with Cluster(self.cluster, timeout_s=self.cluster_timeout_s) as engine:
            yield engine


@contextmanager
def _interruption_explained(out: Path | None) -> Iterator[None]:
    """Prints on standard error after Ctrl-C whether the sweep can be continued."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"finished runs are saved in {out}; add --resume to the same command to continue"
        say(f"interrupted; {kept if out is not None else 'nothing is saved without --out DIR'}", err=True)
        raise
