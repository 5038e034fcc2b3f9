"""Options of `replay record` that no other command has."""

from pathlib import Path
from typing import Annotated

import typer

Program = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-m MODULE | -c CODE | SCRIPT] [ARGS]…",
        help="Program to record, written as after `python`.",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Parquet file to write.")]
Clean = Annotated[
    bool, typer.Option("--clean", help="Fill the free pools of pymalloc first, which makes addresses predictable.")
]
Addresses = Annotated[
    bool,
    typer.Option("--addresses/--no-addresses", help="Record the address of every block, which takes more space."),
]
Sites = Annotated[bool, typer.Option("--sites", help="Record the call site of every call: function, file and line.")]
SitesEvery = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Bytes between sampled call sites, e.g. 64KiB. Costs less than --sites."),
]
Types = Annotated[
    bool, typer.Option("--types", help="Record the Python type of every object, and what the collector freed.")
]
FollowFork = Annotated[
    bool,
    typer.Option("--follow-fork", help="Record forked children too, each to a file with its process ID."),
]
Python = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Interpreter for the program; it does not need replay. Default: this Python."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite FILE if it exists.")]
Rescue = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Interrupted recording to recover; no program is run.")
]
