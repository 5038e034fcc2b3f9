"""Options of `replay verify` that no other command has."""

from typing import Annotated

import typer

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="Trace or YAML workload to compare. Default: built-in cases. A recording made with --clean is "
        "compared with its own addresses, unless -a names a real allocator.",
    ),
]
Allocator = Annotated[
    str, typer.Option("--allocator", "-a", metavar="PRESET", help="Preset, version such as 3.11, or all.")
]
Events = Annotated[int, typer.Option(min=1, help="Number of events in each built-in case.")]
Seed = Annotated[int, typer.Option(help="Seed of the built-in cases.")]
Libc = Annotated[
    bool,
    typer.Option("--libc", help="Verify the C library's malloc; -a is then a version of it, e.g. 2.36 or musl-1.2.5."),
]
Objects = Annotated[
    bool,
    typer.Option(
        "--objects",
        help="Verify the model of Python objects: SOURCE is an object program, by default all bundled ones.",
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME=VALUE",
        help="With --libc: environment variable for the real glibc and its model, e.g. MALLOC_TOP_PAD_=0.",
    ),
]
Resident = Annotated[
    bool, typer.Option("--resident", help="With --libc: compare resident memory too, at ten points of each trace.")
]
Sweep = Annotated[
    str | None,
    typer.Option(
        metavar="SWEEP", help="Sweep whose ranking is compared with real allocators: YAML file, name, or folder."
    ),
]
ListOracles = Annotated[bool, typer.Option("--list", help="List the real allocators on this machine and exit.")]
