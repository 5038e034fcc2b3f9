"""Writes a trace to a Parquet file, for all commands that do so."""

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from replay.commands.compilation import report_compilation
from replay.support.names import printable, say

if TYPE_CHECKING:
    from replay.trace import Trace


def save_trace(
    trace: "Trace", name: str, output: Path, *, force: bool, doing: str, remark: Callable[[], str] = str
) -> None:
    """Writes a trace to `output` and prints its size and the next command. Errors call the trace `name`.

    `doing` is the label of the progress bar. `remark` is called at the end; its text is printed on a line of its own.
    """
    from replay.sources.parquet import write_trace
    from replay.support.progress import progress_bar
    from replay.support.units import format_size, format_time
    from replay.trace.validation import validated

    trace = validated(trace, name)
    with report_compilation(), progress_bar(doing, trace.events_total) as progress:
        rows = write_trace(trace, output, force=force, progress=progress)
    end = trace.validator
    say(
        f"{rows:,} events over {format_time(end.span_ns)}, "
        f"{end.live_blocks:,} blocks ({format_size(end.live_bytes)}) live at the end; "
        f"{printable(str(output))} takes {format_size(output.stat().st_size)}"
    )
    if text := remark():
        say(text)
    say(f"next: replay run {printable(quote(str(output)))}")
