"""`replay sweep`: simulates many configurations and ranks them; `replay sweep show` prints the results again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from replay.commands.compilation import told_compilation
from replay.commands.lists import split_list
from replay.commands.notes import tell_notes
from replay.commands.options import Allocators, AsJson, Fixed, Sources, TrimEvery
from replay.commands.paths import parse_folder
from replay.commands.rerecording import replacement_notes, requests_notes
from replay.commands.sweep_arguments import PlanArguments
from replay.commands.sweep_report import list_plans, make_report
from replay.support.errors import ReplayError
from replay.support.names import printable, say

if TYPE_CHECKING:
    from replay.sweeps.runs import Engine

FAILED = 2


class _SweepByDefault(TyperGroup):
    """`replay sweep SOURCE` means `replay sweep run SOURCE`, unless SOURCE is the name of a command."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(context, args)


app = typer.Typer(cls=_SweepByDefault, add_completion=False)

PlanName = Annotated[
    str | None, typer.Option("--plan", metavar="SWEEP", help="YAML file of a sweep, or name of a bundled sweep.")
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="KEY=V,…",
        help="Configuration key and its values, or a range: 64..512:+64, 64KiB..4MiB:*2. Repeatable.",
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME=V,…", help="Environment variable of glibc and its values; `default` is unset."),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="Condition for configurations, e.g. 'small_threshold <= pool_size/8'. Repeatable.",
    ),
]
Random = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Number of random points to simulate. Default: the whole grid.")
]
Latin = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Number of points of a Latin hypercube to simulate.")
]
ChooseSeed = Annotated[
    int | None, typer.Option("--choose-seed", min=0, help="Seed of --random, --latin and --optimise. Default: 0.")
]
Seeds = Annotated[str | None, typer.Option(metavar="N,… or N..M", help="Seeds for each workload. Default: its own.")]
By = Annotated[
    list[str] | None,
    typer.Option(
        "--by", metavar="METRIC,…", callback=split_list, help="Metrics to rank by; with several, also a Pareto front."
    ),
]
Optimise = Annotated[
    list[str] | None,
    typer.Option(
        "--optimise",
        metavar="METRIC,…",
        callback=split_list,
        help="Metrics to minimise by a search, instead of trying all configurations.",
    ),
]
Trials = Annotated[int | None, typer.Option(min=1, help="With --optimise: number of configurations to try.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Number of threads. Default: one for each processor.")]
ClusterAddress = Annotated[
    str | None,
    typer.Option("--cluster", metavar="ADDRESS", help="Address of a Dask scheduler, or local:4 for four processes."),
]
ClusterTimeout = Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Maximum wait for the scheduler.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", parser=parse_folder, help="Folder for the results; each run is saved when it ends."),
]
Csv = Annotated[bool, typer.Option("--csv", help="With --out: also write results.csv.")]
Charts = Annotated[bool, typer.Option("--charts", help="Write sweep.html and PNG charts to the folder of results.")]
Heat = Annotated[
    str | None,
    typer.Option(
        metavar="KEY,KEY", help="With --charts: parameters of the heat map. Default: those with the largest effect."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted sweep in the folder of --out.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail on an impossible combination instead of skipping it.")]
Rows = Annotated[int, typer.Option("--rows", min=1, help="Maximum number of rows in the ranking.")]
Full = Annotated[bool, typer.Option("--full", help="Print a row for each configuration, even if results are equal.")]
Within = Annotated[
    str, typer.Option("--within", metavar="PERCENT", help="Largest difference that does not matter, e.g. 0.5%.")
]


@app.command("run")
def sweep(
    sources: Sources = None,
    plan: PlanName = None,
    allocators: Allocators = None,
    grid: Grid = None,
    env: Env = None,
    fixed: Fixed = None,
    where: Where = None,
    random: Random = None,
    latin: Latin = None,
    choose_seed: ChooseSeed = None,
    seeds: Seeds = None,
    by: By = None,
    optimise: Optimise = None,
    trials: Trials = None,
    trim_every: TrimEvery = None,
    jobs: Jobs = None,
    cluster: ClusterAddress = None,
    cluster_timeout: ClusterTimeout = 30.0,
    out: Out = None,
    csv: Csv = False,
    charts: Charts = False,
    heat: Heat = None,
    resume: Resume = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a sweep in the folder of --out.")] = False,
    strict: Strict = False,
    rows: Rows = 12,
    full: Full = False,
    within: Within = "1%",
    as_json: AsJson = False,
    list_: Annotated[bool, typer.Option("--list", help="List the bundled sweeps and exit.")] = False,
) -> None:
    """Simulate traces with many allocator stacks, rank the stacks, and show which settings matter.

    `replay sweep show DIR` prints the results of --out again. For a source named `show`, use
    `replay sweep run show`.

    Example: replay sweep web-service -a cpython-3.8,cpython-3.12 --env MALLOC_ARENA_MAX=default,1,2 --by syscalls

    Example: replay sweep trace.parquet --plan every-cpython --out versions

    Example: replay sweep web-service --grid pymalloc.arena_size=64KiB..4MiB:*2 --grid glibc.top_pad=0..4MiB
    --optimise resident_bytes_peak --optimise syscalls --trials 100
    """
    from replay.support.progress import progress_bar
    from replay.sweeps.sweep import sweep as run_sweep

    if list_:
        list_plans(as_json=as_json)
        return
    if (csv or charts or resume) and out is None:
        raise ReplayError(f"--{'csv' if csv else 'charts' if charts else 'resume'} requires --out DIR")
    if optimise and by:
        raise ReplayError("--optimise and --by exclude each other: --optimise ranks by its own metrics")
    if (trials is None) != (not optimise):
        raise ReplayError("--optimise METRIC and --trials N require each other")
    report = make_report(rows=rows, full=full, within=within, as_json=as_json, charts=charts, heat=heat)
    wanted = PlanArguments(
        plan=plan, sources=sources, seeds=seeds, fixed=fixed, allocators=allocators, grid=grid, env=env, random=random,
        latin=latin, choose_seed=choose_seed, where=where, by=by, optimise=optimise, trim_every=trim_every,
    ).to_plan()  # fmt: skip
    with (
        _interruption_explained(out),
        _engine(jobs, cluster, cluster_timeout) as engine,
        told_compilation(),
        progress_bar("sweeping") as progress,
    ):
        results = run_sweep(
            wanted, trials=trials, out=out, csv=csv, resume=resume, force=force, strict=strict,
            engine=engine, progress=progress,
        )  # fmt: skip
    tell_notes([*results.notes, *replacement_notes(wanted), *requests_notes(results)])
    report.show(results, wanted.objectives)
    if out is not None:
        report.draw(out, results, wanted.objectives, force=True)
        if not as_json:
            say(f"\nwritten: {printable(str(out))}\nnext: replay sweep show {printable(quote(str(out)))}")
    if failed := results.count("failed"):
        say(f"replay: {failed} of {results.frame.height} runs failed", err=True)
        raise typer.Exit(FAILED)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `replay sweep --out` wrote.")],
    by: By = None,
    rows: Rows = 12,
    full: Full = False,
    within: Within = "1%",
    charts: Charts = False,
    heat: Heat = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing charts in the folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the results of a sweep again, ranked by the same or other metrics.

    Example: replay sweep show results --by syscalls --by resident_bytes_peak --charts
    """
    from replay.sweeps.results import read_results

    report = make_report(rows=rows, full=full, within=within, as_json=as_json, charts=charts, heat=heat)
    results = read_results(folder)
    objectives = by or list(results.objectives)
    report.show(results, objectives)
    report.draw(folder, results, objectives, force=force)


@contextmanager
def _interruption_explained(out: Path | None) -> Iterator[None]:
    """After Ctrl-C, says on standard error whether the sweep can be continued."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"finished runs are saved in {out}; add --resume to the same command to continue"
        say(f"interrupted; {kept if out is not None else 'nothing is saved without --out DIR'}", err=True)
        raise


@contextmanager
def _engine(jobs: int | None, cluster: str | None, timeout_s: float) -> "Iterator[Engine]":
    if cluster is None:
        from replay.sweeps.threads import Threads

        yield Threads(jobs)
        return
    if jobs is not None:
        raise ReplayError("--jobs and --cluster exclude each other: a cluster has its own workers")
    from replay.sweeps.cluster import Cluster

    with Cluster(cluster, timeout_s=timeout_s) as engine:
        yield engine
