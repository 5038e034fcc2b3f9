"""`replay generate`: writes the trace of a workload."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands import options
from replay.commands.paths import refuse_input_as_output
from replay.commands.trace_file import save_trace

if TYPE_CHECKING:
    from replay.trace import Trace


def generate(
    workload: Annotated[str, typer.Argument(metavar="WORKLOAD", help="YAML file, or name of a bundled workload.")],
    output: options.Output,
    seed: options.Seed = None,
    force: options.Force = False,
) -> None:
    """Write the trace of a workload to a Parquet file.

    Example: replay generate web-service -o trace.parquet
    """
    from replay.sources.yaml import SUFFIXES, open_trace
    from replay.support.bundled_files import find_workload
    from replay.support.errors import WorkloadError

    path = Path(workload)
    if path.suffix.lower() not in SUFFIXES and not path.exists():
        path = find_workload(workload)
        if path.suffix not in SUFFIXES:
            raise WorkloadError(f"{workload}: is a recording, which is a trace already: {path}")
    refuse_input_as_output(path, output, "-o")
    trace = open_trace(path, seed)
    save_trace(trace, workload, output, force=force, doing="generating", remark=lambda: _threads(trace))


def _threads(trace: "Trace") -> str:
    """Returns the table of the threads of an object program; empty for other traces."""
    times = trace.metadata.thread_times
    if not times:
        return ""
    from replay.reports.console import PlainConsole
    from replay.reports.tables import WIDTH, section
    from replay.reports.threads import TITLE, thread_table

    console = PlainConsole(width=WIDTH)
    with console.capture() as written:
        console.print(section(TITLE, thread_table(times)))
    return written.get().rstrip("\n").lstrip("\n")
