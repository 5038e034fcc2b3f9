"""`replay import`: any trace into Parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from replay.trace import Events, Metadata, Trace


def import_trace(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A trace in any format, or a workload.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The Parquet file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")] = False,
) -> None:
    """Turns a trace of any known format into Parquet, checked and with its blocks numbered.

    Example: replay import trace.csv -o trace.parquet
    """
    from replay.progress import progress_bar
    from replay.sources import open_source
    from replay.sources.parquet import write_trace
    from replay.units import format_size, format_time

    counted = _Counted(open_source(file), file)
    with progress_bar("importing", counted.events_total) as progress:
        rows = write_trace(counted, output, force=force, progress=progress)
    end = counted.validator
    typer.echo(
        f"{rows:,} events over {format_time(end.last_ns)}, "
        f"{end.live_blocks:,} blocks ({format_size(end.live_bytes)}) live at the end; "
        f"{output} takes {format_size(output.stat().st_size)}"
    )
    typer.echo(f"next: replay run {output}")


class _Counted:
    """A trace that is counted while it is read."""

    def __init__(self, trace: "Trace", file: str) -> None:
        from replay.validation import Validator

        self._trace = trace
        self.validator = Validator(file)
        self.duration_ns = trace.duration_ns
        self.events_total = trace.events_total

    @property
    def metadata(self) -> "Metadata":
        return self._trace.metadata

    def batches(self) -> Iterator["Events"]:
        for events in self._trace.batches():
            self.validator.check(events)
            yield events
