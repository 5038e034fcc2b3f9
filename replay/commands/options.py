"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from replay.support.errors import ReplayError

File = Annotated[str, typer.Argument(metavar="FILE", help="Trace in any supported format, or a workload.")]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Trace, YAML workload, or name of a bundled workload.")]
Allocator = Annotated[
    str | None,
    typer.Option(
        "-a",
        "--allocator",
        metavar="PRESET",
        help="Preset or YAML file. Default: the interpreter of the trace, else the running Python.",
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="SOURCE", help="Traces or YAML workloads: paths, URLs, or names of bundled workloads."),
]
Allocators = Annotated[
    list[str] | None,
    typer.Option(
        "-a",
        "--allocator",
        metavar="PRESET,…",
        help="Presets, YAML files, or patterns such as 'cpython-*'. Default: as recorded, else this Python's.",
    ),
]
Fixed = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Configuration key and its value, e.g. pymalloc.alignment=8. Repeatable."
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env", metavar="NAME=VALUE", help="Environment variable of glibc, e.g. MALLOC_TOP_PAD_=0. Repeatable."
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the workload. Default: the workload's own.")]
Sample = Annotated[
    str | None, typer.Option(metavar="TIME", help="Sampling interval, e.g. 10ms. Default: about 1,000 samples.")
]
TrimEvery = Annotated[
    str | None, typer.Option(metavar="TIME", help="Interval between calls of malloc_trim(0), e.g. 60s. Default: none.")
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Parquet file to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def time_option(option: str, text: str) -> int:
    """Returns the nanoseconds of an option's value; a ReplayError with the option's name if it is not a time."""
    from replay.support.units import parse_time_with_unit

    try:
        return parse_time_with_unit(text)
    except ValueError as error:
        raise ReplayError(f"{option}: {error}") from None
