"""`replay trace cut`, `filter`, `merge` and `scale`: make a trace from other traces."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands.options import File, Force, Output, time_option
from replay.commands.trace_file import save_trace
from replay.support.errors import ReplayError
from replay.support.names import say

if TYPE_CHECKING:
    from fractions import Fraction

    from replay.trace import Trace

_TIME = "TIME"


def cut(
    file: File,
    output: Output,
    from_: Annotated[
        str, typer.Option("--from", metavar=_TIME, help="Start of the piece, since the first event.")
    ] = "0",
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar=_TIME, help="End of the piece (exclusive), since the first event. Default: the trace's end."
        ),
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Phase to keep, from its first mark to the next mark of another phase."),
    ] = None,
    without_earlier: Annotated[
        bool,
        typer.Option("--without-earlier", help="Leave out blocks allocated before the piece, and all their events."),
    ] = False,
    force: Force = False,
) -> None:
    """Cut a piece out of a trace by time, by phase, or by both.

    The piece starts with a malloc for each block that is live at its start. Their order is that of the original
    allocations, and their sizes are those at the start. --without-earlier leaves these blocks out.

    Example: replay trace cut trace.parquet -o piece.parquet --from 2s --to 2500ms
    """
    from replay.support.limits import MAX_SPAN
    from replay.trace.editing.cutting import Piece
    from replay.trace.editing.cutting import cut as cut_trace

    piece = Piece(
        time_option("--from", from_), MAX_SPAN if to is None else time_option("--to", to), phase, not without_earlier
    )
    if piece.from_ns >= piece.to_ns:
        raise ReplayError(f"--from {from_} is not before --to {to}")
    options = {"--from": None if from_ == "0" else from_, "--to": to, "--phase": phase}
    words = _words("cut", [file], options, {"--without-earlier": without_earlier})
    _save(cut_trace(_open(file), piece, words), output, force)


def filter_(
    file: File,
    output: Output,
    thread: Annotated[int | None, typer.Option(min=0, help="Thread that allocates the block.")] = None,
    domain: Annotated[str | None, typer.Option(help="Domain of the block: raw, mem, obj or libc.")] = None,
    min_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Smallest requested size at allocation, e.g. 1KiB.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest requested size at allocation, e.g. 1KiB.")
    ] = None,
    phase: Annotated[str | None, typer.Option(metavar="NAME", help="Phase in which the block is allocated.")] = None,
    process: Annotated[
        str | None, typer.Option(metavar="NAME", help="Process to keep; the output is then a trace of one process.")
    ] = None,
    force: Force = False,
) -> None:
    """Keep the blocks whose allocation meets all conditions, with all their events.

    Marks and garbage collections are always kept. If no block meets the conditions, the output has no blocks, and a
    message says so.

    Example: replay trace filter trace.parquet -o large.parquet --domain obj --min-size "1 KiB"

    Example: replay trace filter service.parquet -o worker.parquet --process worker
    """
    from replay.support.limits import MAX_SIZE
    from replay.support.names import nearest
    from replay.trace import Domain
    from replay.trace.editing.selecting import Conditions, FilteredTrace

    names = {known.name.lower(): known for known in Domain}
    if domain is not None and domain not in names:
        raise ReplayError(f"--domain: unknown domain {domain!r}; {nearest(domain, names)}")
    conditions = Conditions(
        thread,
        None if domain is None else names[domain],
        0 if min_size is None else _size(min_size, "--min-size"),
        MAX_SIZE if max_size is None else _size(max_size, "--max-size"),
        phase,
        process,
    )
    if conditions.min_size > conditions.max_size:
        raise ReplayError(f"--min-size {min_size} exceeds --max-size {max_size}")
    options = {"--thread": thread, "--domain": domain, "--min-size": min_size, "--max-size": max_size, "--phase": phase}
    options["--process"] = process
    kept = FilteredTrace(_open(file), conditions, _words("filter", [file], options))
    _save(kept, output, force)
    if not kept.blocks_kept:
        say(f"no block meets the conditions; {output} has only marks and garbage collections", err=True)


def merge(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Traces in any supported format, or workloads.")],
    output: Output,
    offset: Annotated[
        list[str] | None,
        typer.Option(metavar=_TIME, help="Start time of a FILE. Repeatable, in the order of the FILEs. Default: 0."),
    ] = None,
    processes: Annotated[
        bool, typer.Option("--processes", help="Make each FILE a process of its own, named after the file.")
    ] = False,
    force: Force = False,
) -> None:
    """Merge traces into one, interleaved by time.

    The result is one process with the threads of all traces, or several processes with --processes. Threads, blocks
    and phases stay separate. The name of a phase gets the name of its file as a prefix.

    Example: replay trace merge a.parquet b.parquet -o both.parquet --offset 0 --offset 10ms

    Example: replay trace merge web.parquet worker.parquet -o service.parquet --processes
    """
    from replay.trace.editing.merging import Part, merged

    offsets = [time_option("--offset", each) for each in offset or []]
    if len(offsets) > len(files):
        raise ReplayError(f"--offset: {len(offsets)} start times for {len(files)} traces; write one for each trace")
    offsets += [0] * (len(files) - len(offsets))
    parts = [
        Part(_open(file), name, offset_ns) for file, name, offset_ns in zip(files, _stems(files), offsets, strict=True)
    ]
    options = {"--offset": " --offset ".join(offset or []) or None}
    words = _words("merge", files, options, {"--processes": processes})
    _save(merged(parts, words, as_processes=processes), output, force)


def scale(
    file: File,
    output: Output,
    repeat: Annotated[int, typer.Option(min=1, help="Number of repetitions, one after the other.")] = 1,
    keep_live: Annotated[
        bool, typer.Option("--keep-live", help="Do not free the blocks that are live at the end of a repetition.")
    ] = False,
    copies: Annotated[
        int, typer.Option(min=1, help="Number of parallel copies, with threads of their own in one process.")
    ] = 1,
    processes: Annotated[bool, typer.Option("--processes", help="Make each copy a process of its own.")] = False,
    shift: Annotated[
        str | None,
        typer.Option(metavar=_TIME, help="Time between the starts of two copies. Default: duration / copies."),
    ] = None,
    time_factor: Annotated[
        str, typer.Option(metavar="NUMBER", help="Factor for all times since the first event.")
    ] = "1",
    force: Force = False,
) -> None:
    """Lengthen a trace, or increase its load, by repetitions, copies and a time factor.

    The time factor applies first, then copies, then repetitions. Blocks that are live at the end of a repetition are
    freed before the next one, in the order of their allocation. --keep-live keeps them.

    Example: replay trace scale trace.parquet -o long.parquet --repeat 10 --time-factor 0.5

    Example: replay trace scale worker.parquet -o workers.parquet --copies 8 --processes
    """
    from replay.trace.editing import span_ns
    from replay.trace.editing.scaling import copied, repeated, stretched

    factor = _factor(time_factor)
    options = {
        "--repeat": repeat if repeat > 1 else None,
        "--copies": copies if copies > 1 else None,
        "--shift": shift,
        "--time-factor": time_factor if factor != 1 else None,
    }
    words = _words("scale", [file], options, {"--keep-live": keep_live, "--processes": processes})

    def opened() -> "Trace":
        return stretched(_open(file), factor, "") if factor != 1 else _open(file)

    trace = opened()
    if copies > 1 or processes:
        shift_ns = span_ns(trace) // copies if shift is None else time_option("--shift", shift)
        trace = copied([opened() for _ in range(copies)], shift_ns, "", as_processes=processes)
    _save(repeated(trace, repeat, words, keep_live=keep_live), output, force)


def _open(file: str) -> "Trace":
    from replay.sources import open_source
    from replay.trace.validation import validated

    return validated(open_source(file), file)


def _save(trace: "Trace", output: Path, force: bool) -> None:
    save_trace(trace, output.name, output, force=force, doing="writing")


def _words(
    command: str, files: list[str], options: Mapping[str, str | int | None], flags: Mapping[str, bool] | None = None
) -> str:
    """Returns the command line of an edit; file names have no folders."""
    names = [Path(file).name for file in files]
    given = [f"{name} {value}" for name, value in options.items() if value is not None]
    return " ".join([command, *names, *given, *(name for name, is_set in (flags or {}).items() if is_set)])


def _stems(files: list[str]) -> list[str]:
    """Returns a unique name for each trace: the name of its file, with a number if an earlier trace has it."""
    stems = [Path(file).stem for file in files]
    return [
        f"{stem} {stems[:index].count(stem) + 1}" if stem in stems[:index] else stem for index, stem in enumerate(stems)
    ]


def _factor(text: str) -> "Fraction":
    """Returns a time factor. Checks the exponent first, because a large power of ten would take long to compute."""
    from fractions import Fraction

    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if number.is_nan():
        raise ReplayError(f"--time-factor: {text!r} is not a number; write it like 0.5")
    if not Decimal("1e-9") <= number <= Decimal("1e9"):
        raise ReplayError(f"--time-factor: {text} is not between 0.000000001 and 1000000000")
    return Fraction(number)


def _size(text: str, option: str) -> int:
    from replay.support.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise ReplayError(f"{option}: {error}") from None
