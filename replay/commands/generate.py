"""`replay generate`: a workload written out as a trace."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from replay.generator.processes import WorkloadTrace
    from replay.trace import Events, Metadata


def generate(
    workload: Annotated[str, typer.Argument(metavar="WORKLOAD", help="A YAML file, or a bundled workload's name.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The Parquet file to write.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Takes the place of the file's seed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")] = False,
) -> None:
    """Write the trace that a workload describes.

    Example: replay generate web-service -o trace.parquet
    """
    from replay.progress import progress_bar
    from replay.resources import find_workload
    from replay.sources.parquet import write_trace
    from replay.sources.yaml import SUFFIXES, open_trace
    from replay.units import format_size, format_time

    path = Path(workload)
    if path.suffix.lower() not in SUFFIXES and not path.exists():
        path = find_workload(workload)
    trace = _Counted(open_trace(path, seed))
    with progress_bar("generating", None) as progress:
        rows = write_trace(trace, output, force=force, progress=progress)
    end = trace.validator
    typer.echo(
        f"{rows:,} events over {format_time(trace.duration_ns)}, "
        f"{end.live_blocks:,} blocks ({format_size(end.live_bytes)}) live at the end; "
        f"{output} takes {format_size(output.stat().st_size)}"
    )
    typer.echo(f"next: replay run {output}")


class _Counted:
    """A workload's trace, counted and checked while it is generated."""

    events_total = None

    def __init__(self, trace: "WorkloadTrace") -> None:
        from replay.validation import Validator

        self._trace = trace
        self.validator = Validator(trace.name, trace.metadata)
        self.duration_ns = trace.duration_ns

    @property
    def metadata(self) -> "Metadata":
        return self._trace.metadata

    def batches(self) -> Iterator["Events"]:
        for events in self._trace.batches():
            self.validator.check(events)
            yield events
