"""`replay import`: any trace into Parquet."""

from pathlib import Path
from typing import Annotated

import typer

from replay.commands.trace_file import save_trace


def import_trace(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A trace in any format, or a workload.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The Parquet file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")] = False,
) -> None:
    """Turns a trace of any known format into Parquet, checked and with its blocks numbered.

    Example: replay import trace.csv -o trace.parquet
    """
    from replay.sources import open_source

    save_trace(open_source(file), file, output, force=force, doing="importing")
