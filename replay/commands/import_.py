"""`replay import`: converts a trace to Parquet."""

from typing import Annotated

import typer

from replay.commands import options
from replay.commands.paths import refuse_input_as_output
from replay.commands.trace_file import save_trace
from replay.sources import bundled_names


def import_trace(
    file: options.File,
    output: options.Output,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"Format of FILE: {', '.join(bundled_names())}, or one that an installed package adds. "
            "Default: by its content.",
        ),
    ] = None,
    lenient: Annotated[
        bool,
        typer.Option("--lenient", help="Skip and count unknown lines and columns; accept a truncated capture."),
    ] = False,
    force: options.Force = False,
) -> None:
    """Convert a trace in any supported format to Parquet.

    Events are validated, and blocks are numbered.

    Example: replay import trace.csv -o trace.parquet
    """
    from replay.sources import open_source
    from replay.trace.provenance_text import limits

    refuse_input_as_output(file, output, "-o")
    trace = open_source(file, format_name, lenient=lenient)
    save_trace(trace, file, output, force=force, doing="importing", remark=lambda: limits(trace.metadata.origin))
