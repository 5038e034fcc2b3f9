"""Options of `replay sweep` that no other command has."""

from pathlib import Path
from typing import Annotated

import typer

from replay.commands.lists import split_list
from replay.commands.paths import parse_folder

PlanName = Annotated[
    str | None,
    typer.Option(
        "--plan", metavar="SWEEP", help="YAML file of a sweep, or name of a bundled sweep (--list). Default: none."
    ),
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="KEY=V,…",
        help="Configuration key and its values, or a range with a step: 64..512:+64, 64KiB..4MiB:*2. Repeatable.",
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME=V,…",
        help="Environment variable of glibc and its values; `default` leaves it unset. Repeatable.",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="Condition that configurations must meet, e.g. 'small_threshold <= pool_size/8'. Repeatable.",
    ),
]
Random = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Number of random points to simulate. Default: the whole grid.")
]
Latin = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Number of points of a Latin hypercube to simulate. Default: the whole grid."
    ),
]
ChooseSeed = Annotated[
    int | None, typer.Option("--choose-seed", min=0, help="Seed of --random, --latin and --optimise. Default: 0.")
]
Seeds = Annotated[
    str | None, typer.Option(metavar="N,… or N..M", help="Seeds for each workload. Default: the workload's own.")
]
By = Annotated[
    list[str] | None,
    typer.Option(
        "--by",
        metavar="METRIC,…",
        callback=split_list,
        help="Metrics to rank by; several also show a Pareto front. Default: the plan's, else resident_bytes_peak.",
    ),
]
Optimise = Annotated[
    list[str] | None,
    typer.Option(
        "--optimise",
        metavar="METRIC,…",
        callback=split_list,
        help="Metrics to minimise by a search. Default: no search; all configurations are simulated.",
    ),
]
Trials = Annotated[
    int | None, typer.Option(min=1, help="Number of configurations that --optimise tries; it requires this option.")
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Number of threads. Default: one for each processor.")]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Address of a Dask scheduler, or local:4 for four processes. Default: threads.",
    ),
]
ClusterTimeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.1, help="Maximum wait for the scheduler of --cluster.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        parser=parse_folder,
        help="Folder for the results; each run is saved when it ends. Default: none.",
    ),
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
Force = Annotated[bool, typer.Option("--force", help="Overwrite a sweep in the folder of --out.")]
ListPlans = Annotated[bool, typer.Option("--list", help="List the bundled sweeps and exit.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `replay sweep --out` wrote.")]
ForceCharts = Annotated[bool, typer.Option("--force", help="Overwrite existing charts in the folder.")]
