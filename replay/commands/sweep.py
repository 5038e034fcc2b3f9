"""`replay sweep`: simulates many configurations and ranks them; `replay sweep show` prints the results again."""

from shlex import join
from typing import Any

import typer
from typer.core import TyperGroup

from replay.commands import sweep_options as options
from replay.commands.notes import print_notes
from replay.commands.options import Allocators, AsJson, Fixed, Sources, TrimEvery
from replay.commands.rerecording import replacement_notes, requests_notes
from replay.commands.sweep_arguments import PlanArguments
from replay.commands.sweep_execution import Execution
from replay.commands.sweep_report import list_plans, make_report
from replay.support.names import printable, say

FAILED = 2


class _SweepByDefault(TyperGroup):
    """`replay sweep SOURCE` means `replay sweep run SOURCE`, unless SOURCE is the name of a command."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(context, args)


app = typer.Typer(cls=_SweepByDefault, add_completion=False)


@app.command("run")
def sweep(
    sources: Sources = None,
    plan: options.PlanName = None,
    allocators: Allocators = None,
    grid: options.Grid = None,
    env: options.Env = None,
    fixed: Fixed = None,
    where: options.Where = None,
    random: options.Random = None,
    latin: options.Latin = None,
    choose_seed: options.ChooseSeed = None,
    seeds: options.Seeds = None,
    by: options.By = None,
    optimise: options.Optimise = None,
    trials: options.Trials = None,
    trim_every: TrimEvery = None,
    jobs: options.Jobs = None,
    cluster: options.ClusterAddress = None,
    cluster_timeout: options.ClusterTimeout = 30.0,
    out: options.Out = None,
    csv: options.Csv = False,
    charts: options.Charts = False,
    heat: options.Heat = None,
    resume: options.Resume = False,
    force: options.Force = False,
    strict: options.Strict = False,
    rows: options.Rows = 12,
    full: options.Full = False,
    within: options.Within = "1%",
    as_json: AsJson = False,
    list_: options.ListPlans = False,
) -> None:
    """Simulate traces with many allocator stacks, rank the stacks, and show which settings matter.

    `replay sweep show DIR` prints the results of --out again. For a source named `show`, use
    `replay sweep run show`.

    Example: replay sweep web-service -a cpython-3.8,cpython-3.12 --env MALLOC_ARENA_MAX=default,1,2 --by syscalls

    Example: replay sweep trace.parquet --plan every-cpython --out versions

    Example: replay sweep web-service --grid pymalloc.arena_size=64KiB..4MiB:*2 --grid glibc.top_pad=0..4MiB
    --optimise resident_bytes_peak --optimise syscalls --trials 100
    """
    if list_:
        list_plans(as_json=as_json)
        return
    execution = Execution(
        jobs=jobs, cluster=cluster, cluster_timeout_s=cluster_timeout, trials=trials, out=out, csv=csv, resume=resume,
        force=force, strict=strict,
    )  # fmt: skip
    execution.refuse_contradictions(charts=charts, by=by, optimise=optimise)
    report = make_report(rows=rows, full=full, within=within, as_json=as_json, charts=charts, heat=heat)
    plan_ = PlanArguments(
        plan=plan, sources=sources, seeds=seeds, fixed=fixed, allocators=allocators, grid=grid, env=env, random=random,
        latin=latin, choose_seed=choose_seed, where=where, by=by, optimise=optimise, trim_every=trim_every,
    ).to_plan()  # fmt: skip
    results = execution.run(plan_)
    print_notes([*results.notes, *replacement_notes(plan_), *requests_notes(results)])
    report.show(results, plan_.objectives)
    if out is not None:
        report.draw(out, results, plan_.objectives, force=True)
        if not as_json:
            other = "resident_bytes_end" if "resident_bytes_end" not in plan_.objectives else "mapped_bytes_peak"
            following = ["replay", "sweep", "show", str(out), "--by", other]
            say(f"\nwritten: {printable(str(out))}\nnext: {printable(join(following))}")
    if failed := results.count("failed"):
        say(f"replay: {failed} of {results.frame.height} runs failed", err=True)
        raise typer.Exit(FAILED)


@app.command()
def show(
    folder: options.Folder,
    by: options.By = None,
    rows: options.Rows = 12,
    full: options.Full = False,
    within: options.Within = "1%",
    charts: options.Charts = False,
    heat: options.Heat = None,
    force: options.ForceCharts = False,
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
