"""Options that several commands have."""

from typing import Annotated

import typer

Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="SOURCE", help="Traces or YAML workloads: paths, URLs, or names of bundled workloads."),
]
Allocators = Annotated[
    list[str] | None,
    typer.Option("-a", "--allocator", metavar="PRESET,…", help="Presets or YAML files; patterns like 'cpython-*'."),
]
Fixed = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key, e.g. pymalloc.alignment=8.")
]
TrimEvery = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Call malloc_trim(0) at this interval of the trace's time, e.g. 60s."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
