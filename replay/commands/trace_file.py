"""A trace of any kind written to a Parquet file: what the commands that write one share."""

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from replay.commands.compilation import told_compilation
from replay.support.names import printable, say

if TYPE_CHECKING:
    from replay.trace import Trace


def save_trace(
    trace: "Trace", name: str, output: Path, *, force: bool, doing: str, remark: Callable[[], str] = str
) -> None:
    """Writes the trace that errors call `name`, says what was written, and what can be done with it.

    `doing` stands beside the progress bar; `remark`, asked for when all is written, on a line of its own.
    """
    from replay.sources.parquet import write_trace
    from replay.support.progress import progress_bar
    from replay.support.units import format_size, format_time
    from replay.trace.validation import validated

    trace = validated(trace, name)
    with told_compilation(), progress_bar(doing, trace.events_total) as progress:
        rows = write_trace(trace, output, force=force, progress=progress)
    end = trace.validator
    say(
        f"{rows:,} events over {format_time(end.span_ns)}, "
        f"{end.live_blocks:,} blocks ({format_size(end.live_bytes)}) live at the end; "
        f"{printable(str(output))} takes {format_size(output.stat().st_size)}"
    )
    if told := remark():
        say(told)
    say(f"next: replay run {printable(quote(str(output)))}")
