"""`replay sweep`: many configurations over traces, and which is best; `replay sweep show` reads the results again."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from replay.commands.compilation import told_compilation
from replay.commands.lists import split_list
from replay.commands.notes import tell_notes
from replay.commands.paths import parse_folder
from replay.commands.rerecording import requests_note
from replay.support.errors import ConfigError, ReplayError
from replay.support.names import say

if TYPE_CHECKING:
    from replay.sweeps.plan import Plan
    from replay.sweeps.results import Results
    from replay.sweeps.runs import Engine

FAILED = 2
SEEDS_MAX = 10_000
WIDTH = 160
"""Off a terminal: what nearly every table fits into."""
_RANGE = re.compile(r"(?P<first>[^.].*?)\.\.(?P<last>.+?)(:(?P<how>[+*])(?P<by>.+))?")


class _SweepByDefault(TyperGroup):
    """`replay sweep SOURCE` is `replay sweep run SOURCE`: only `show` is a word of its own."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(context, args)


app = typer.Typer(cls=_SweepByDefault, add_completion=False)

Rows = Annotated[int, typer.Option("--rows", min=1, help="Rows of the ranking.")]
Full = Annotated[
    bool, typer.Option("--full", help="Rank all configurations, also those that are equal in all metrics.")
]
By = Annotated[
    list[str] | None,
    typer.Option(
        "--by",
        metavar="METRIC,…",
        callback=split_list,
        help="Rank by these metrics, and by each pair against the other.",
    ),
]
Heat = Annotated[
    str | None, typer.Option("--heat", metavar="KEY,KEY", help="With charts: the two parameters of the heat map.")
]


@app.command("run")
def sweep(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help="Traces, workloads, their URLs, bundled ones' names."),
    ] = None,
    plan_name: Annotated[
        str | None, typer.Option("--plan", metavar="SWEEP", help="A sweep's YAML file, or a bundled one's name.")
    ] = None,
    allocators: Annotated[
        list[str] | None,
        typer.Option(
            "-a", "--allocator", metavar="PRESET,…", help="Presets or files; patterns such as 'cpython-*' too."
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V,…", help="Vary a key: values, or a range 64..512:+64 or 64KiB..4MiB:*2."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=V,…", help="Vary a variable that glibc reads; `default` leaves it unset."),
    ] = None,
    fixed: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key in all configurations.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="CONDITION", help="Skip what is against it: 'small_threshold <= pool_size/8'."),
    ] = None,
    random: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="N points at random, not the whole grid.")
    ] = None,
    latin: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="N points by latin hypercube, not the whole grid.")
    ] = None,
    choose_seed: Annotated[
        int | None, typer.Option("--choose-seed", min=0, help="Seed of --random, --latin and --optimise.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,… or N..M", help="Run each workload with each of these seeds.")
    ] = None,
    by: By = None,
    optimise: Annotated[
        list[str] | None,
        typer.Option(
            "--optimise",
            metavar="METRIC,…",
            callback=split_list,
            help="Search for the lowest values of these metrics instead of trying all configurations.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="With --optimise: how many configurations to try.")] = None,
    trim_every: Annotated[
        str | None, typer.Option(metavar="TIME", help="Call malloc_trim(0) so often in the trace's time, like 60s.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Threads; one a processor if not said.")] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, or local:4 for four processes here.")
    ] = None,
    cluster_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How long to wait for the scheduler.")
    ] = 30.0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", parser=parse_folder, help="Keep every run in this folder as it comes, and results.parquet."
        ),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="With --out: write results.csv too.")] = False,
    charts: Annotated[bool, typer.Option("--charts", help="With --out: draw sweep.html and PNGs.")] = False,
    heat: Heat = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in the folder of --out: do only what is not there.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a sweep that the folder holds.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="An impossible combination is an error, not skipped.")
    ] = False,
    rows: Rows = 12,
    full: Full = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the bundled sweeps, and stop.")] = False,
) -> None:
    """Play traces through many allocator stacks, and say which is best and which setting matters.

    `replay sweep show DIR` shows the results of --out again; a source of the name `show` is meant by
    `replay sweep run show`.

    Example: replay sweep web-service -a cpython-3.8,cpython-3.12 --env MALLOC_ARENA_MAX=default,1,2 --by syscalls

    Example: replay sweep trace.parquet --plan every-cpython --out versions

    Example: replay sweep web-service --grid pymalloc.arena_size=64KiB..4MiB:*2 --grid glibc.top_pad=0..4MiB
    --optimise resident_bytes_peak --optimise syscalls --trials 100
    """
    from replay.support.progress import progress_bar
    from replay.sweeps.sweep import sweep as run_sweep

    if list_:
        _list_plans(as_json)
        return
    if (csv or charts or resume) and out is None:
        raise ReplayError(f"--{'csv' if csv else 'charts' if charts else 'resume'} goes with --out DIR")
    if optimise and by:
        raise ReplayError("--optimise ranks by its metrics already; leave out --by")
    if (trials is None) != (not optimise):
        raise ReplayError("--optimise METRIC and --trials N go together")
    if charts:
        from replay.reports.charts import refuse_missing

        refuse_missing()
        _axes(heat)
    elif heat is not None:
        raise ReplayError("--heat goes with --charts")
    plan = _plan(
        plan_name,
        {
            "sources": sources,
            "seeds": _seeds(seeds),
            "fixed": _assignments("--set", fixed),
            "vary": _vary(allocators, grid, env),
            "choose": _choose(random, latin, choose_seed),
            "constraints": where,
            "objectives": optimise or by,
            "trim_every": trim_every,
        },
        searches=bool(optimise),
    )
    try:
        with (
            _engine(jobs, cluster, cluster_timeout) as engine,
            told_compilation(),
            progress_bar("sweeping") as progress,
        ):
            results = run_sweep(
                plan, trials=trials, out=out, csv=csv, resume=resume, force=force, strict=strict,
                engine=engine, progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        kept = f"what is done is kept: the same command with --resume goes on ({out})"
        say(f"interrupted; {kept if out is not None else 'nothing is kept without --out DIR'}", err=True)
        raise
    tell_notes([*results.notes, *_replacements(plan), *_requests_notes(results)])
    _show(results, plan.objectives, rows, full, as_json)
    if charts:
        assert out is not None
        _draw(out, results, plan.objectives, heat, force=True)
    if out is not None and not as_json:
        say(f"\nwritten: {out}\nnext: replay sweep show {quote(str(out))}")
    if failed := results.count("failed"):
        say(f"replay: {failed} of {results.frame.height} runs failed", err=True)
        raise typer.Exit(FAILED)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What --out of a sweep wrote.")],
    by: By = None,
    rows: Rows = 12,
    full: Full = False,
    charts: Annotated[bool, typer.Option("--charts", help="Draw sweep.html and PNGs into the folder.")] = False,
    heat: Heat = None,
    force: Annotated[bool, typer.Option("--force", help="Draw over charts that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the results of a sweep again, by the same metrics or by others.

    Example: replay sweep show results --by syscalls --by resident_bytes_peak --charts
    """
    from replay.sweeps.results import read_results

    if heat is not None and not charts:
        raise ReplayError("--heat goes with --charts")
    results = read_results(folder)
    objectives = by or list(results.objectives)
    _show(results, objectives, rows, full, as_json)
    if charts:
        _draw(folder, results, objectives, heat, force=force)


def _replacements(plan: "Plan") -> list[str]:
    """What stands in for what the traces were recorded on, where the sweep names no allocator itself."""
    from replay.config import default_preset, differences, load_config
    from replay.sources import open_source
    from replay.sweeps.space import ALLOCATOR
    from replay.sweeps.traces import fetch

    if ALLOCATOR in plan.vary or ALLOCATOR in plan.fixed:
        return []
    recordings = [open_source(fetch(source)).metadata for source in plan.sources]
    stack = load_config(default_preset(*recordings))
    return [str(each) for recording in recordings for each in differences(recording, stack)]


def _plan(name: str | None, said: dict[str, Any], *, searches: bool) -> "Plan":
    """The file's plan, or an empty one, with what the command line says in its place or beside it."""
    from replay.sweeps.plan import Plan, load_plan, make_plan

    plan = load_plan(name) if name else Plan()
    data = plan.model_dump(by_alias=True, exclude_unset=True)
    for key, other in (("fixed", "vary"), ("vary", "fixed")):
        kept = {each: value for each, value in data.get(key, {}).items() if each not in said[other]}
        data[key] = {**kept, **said[key]}
    data["constraints"] = [*data.get("constraints", []), *(said["constraints"] or [])]
    chosen = said["choose"]
    if searches:
        if "kind" in chosen:
            raise ConfigError("--optimise chooses its points itself; leave out --random and --latin")
        data["choose"] = {key: value for key, value in data.get("choose", {}).items() if key == "seed"}
    data["choose"] = {**data.get("choose", {}), **chosen}
    data |= {key: said[key] for key in ("sources", "seeds", "objectives", "trim_every") if said[key]}
    if not data["vary"] and not data.get("configurations"):
        raise ConfigError("the grid is empty: vary something by --grid, --env, -a or --plan")
    return make_plan(data)


def _vary(allocators: list[str] | None, grid: list[str] | None, env: list[str] | None) -> dict[str, Any]:
    vary: dict[str, Any] = {}
    if allocators:
        vary["allocator"] = [name for text in allocators for name in text.split(",") if name]
        if not vary["allocator"]:
            raise ConfigError("-a: no preset is named")
    for option, assignments in (("--grid", grid), ("--env", env)):
        for name, text in _split(option, assignments):
            if ("." in name) != (option == "--grid"):
                kind = "a configuration's key, like pymalloc.alignment" if option == "--grid" else "a variable of glibc"
                raise ConfigError(f"{option} {name}: is not {kind}")
            if name in vary:
                raise ConfigError(f"{option} {name}: is given twice")
            vary[name] = _values(f"{option} {name}={text}", text)
    return vary


def _split(option: str, assignments: list[str] | None) -> Iterator[tuple[str, str]]:
    for assignment in assignments or ():
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            example = "MALLOC_ARENA_MAX=1,2" if option == "--env" else "pymalloc.alignment=8,16"
            raise ConfigError(f"{option} {assignment}: write it like {example}")
        yield name.strip(), text


def _assignments(option: str, assignments: list[str] | None) -> dict[str, Any]:
    fixed = {}
    for name, text in _split(option, assignments):
        values = _values(f"{option} {name}={text}", text)
        if not isinstance(values, list) or len(values) != 1:
            raise ConfigError(f"{option} {name}={text}: is for one value; --grid is for several")
        fixed[name] = values[0]
    return fixed


def _values(said: str, text: str) -> Any:
    """A list of YAML's values, or a range."""
    from replay.support.yaml_documents import parse_yaml

    match = _RANGE.fullmatch(text.strip())
    if match and "," not in text:
        parts: dict[str, Any] = {"from": _scalar(match["first"]), "to": _scalar(match["last"])}
        if match["how"]:
            parts["step" if match["how"] == "+" else "factor"] = _scalar(match["by"])
        return parts
    try:
        values = parse_yaml(f"[{text}]")
    except ValueError as mistake:
        raise ConfigError(f"{said}: is not a list of values such as 8,16: {mistake}") from None
    if not values:
        raise ConfigError(f"{said}: has no values: the grid would be empty")
    return values


def _scalar(text: str) -> Any:
    from replay.support.yaml_documents import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError:
        return text


def _choose(random: int | None, latin: int | None, seed: int | None) -> dict[str, Any]:
    if random and latin:
        raise ConfigError("--random and --latin: choose one")
    kind = "random" if random else "latin" if latin else "grid"
    chosen = {"kind": kind, "runs": random or latin} if kind != "grid" else {}
    return chosen | ({"seed": seed} if seed is not None else {})


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    first, dots, last = text.partition("..")
    try:
        if dots and int(last) - int(first) >= SEEDS_MAX:
            raise ConfigError(f"--seeds {text}: are more than {SEEDS_MAX:,}")
        seeds = list(range(int(first), int(last) + 1)) if dots else [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"--seeds {text}: write it like 0,1,2 or 0..9")
    return seeds


@contextmanager
def _engine(jobs: int | None, cluster: str | None, timeout_s: float) -> "Iterator[Engine]":
    if cluster is None:
        from replay.sweeps.threads import Threads

        yield Threads(jobs)
        return
    if jobs is not None:
        raise ReplayError("--jobs is for threads here; a cluster has the workers that it has")
    from replay.sweeps.cluster import Cluster

    with Cluster(cluster, timeout_s=timeout_s) as engine:
        yield engine


def _requests_notes(results: "Results") -> Iterator[str]:
    """A note for each recording that stacks of another CPython were run on."""
    from replay.sources import open_source
    from replay.sweeps.traces import fetch

    done = results.done.unique(["source", "stack"], maintain_order=True)
    for (source,), rows in done.group_by("source", maintain_order=True):
        names = [json.loads(stack)["name"] for stack in rows["stack"]]
        if note := requests_note(str(source), open_source(fetch(str(source))).metadata.origin, names):
            yield note


def _show(results: "Results", objectives: Sequence[str], rows: int, full: bool, as_json: bool) -> None:
    from replay.analysis.metrics import check_metric

    for metric in objectives:
        check_metric(metric)
    if as_json:
        say(json.dumps(_as_json(results, objectives), indent=2, allow_nan=False))
        return
    from replay.reports.console import PlainConsole
    from replay.reports.sweeps import print_sweep

    width = None if sys.stdout.isatty() else WIDTH
    print_sweep(PlainConsole(width=width), results, objectives, rows=rows, full=full)


def _as_json(results: "Results", objectives: Sequence[str]) -> dict[str, Any]:
    from replay.sweeps.analysis import main_effects, pareto, ranking

    analysed = bool(results.done.height)
    return {
        "runs": results.frame.drop("stack").to_dicts(),
        "ranking": {metric: ranking(results, metric).to_dicts() if analysed else [] for metric in objectives},
        "main_effects": {metric: main_effects(results, metric).to_dicts() if analysed else [] for metric in objectives},
        "pareto": pareto(results, objectives).to_dicts() if analysed and len(objectives) > 1 else [],
    }


def _draw(folder: Path, results: "Results", objectives: Sequence[str], heat: str | None, *, force: bool) -> None:
    from replay.reports.charts import write_charts

    written = write_charts(folder, results, objectives, heat=_axes(heat), force=force)
    say(f"\ndrawn: {', '.join(map(str, written))}", err=True)


def _axes(heat: str | None) -> list[str]:
    axes = [name.strip() for name in heat.split(",")] if heat is not None else []
    if len(axes) not in (0, 2) or len(set(axes)) < len(axes):
        raise ReplayError(f"--heat {heat}: name two parameters, like pymalloc.alignment,pymalloc.arena_size")
    return axes


def _list_plans(as_json: bool) -> None:
    from rich.table import Table

    from replay.reports.console import PlainConsole
    from replay.support.bundled_files import sweep_names
    from replay.sweeps.plan import load_plan

    plans = {name: load_plan(name).description for name in sweep_names()}
    if as_json:
        say(json.dumps([{"name": name, "description": text} for name, text in plans.items()], indent=2))
        return
    table = Table("sweep", "what it asks", box=None, header_style="bold")
    for name, text in plans.items():
        table.add_row(name, text)
    PlainConsole().print(table)
    say("\nnext: replay sweep web-service --plan every-cpython")
