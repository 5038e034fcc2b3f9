"""`replay record`: runs a program and writes down every call of its allocators."""

import re
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands.compilation import told_compilation
from replay.support.errors import OutputError, ReplayError
from replay.support.names import printable, say

if TYPE_CHECKING:
    from replay.recorder.detach import Wishes
    from replay.recorder.writer import Written

SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""What follows the program's name is the program's."""


def record(
    program: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-m MODULE | -c CODE | SCRIPT] [ARGS]…",
            help="Program to record, written as after `python`.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Parquet file to write.")] = Path(
        "trace.parquet"
    ),
    clean: Annotated[
        bool, typer.Option("--clean", help="Fill the free pools of pymalloc first, which makes addresses predictable.")
    ] = False,
    addresses: Annotated[
        bool,
        typer.Option("--addresses/--no-addresses", help="Record the address of every block, which takes more space."),
    ] = True,
    sites: Annotated[
        bool, typer.Option("--sites", help="Record the call site of every call: function, file and line.")
    ] = False,
    sites_every: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes between sampled call sites, e.g. 64KiB. Costs less than --sites."),
    ] = None,
    follow_fork: Annotated[
        bool,
        typer.Option("--follow-fork", help="Record forked children too, each to a file with its process ID."),
    ] = False,
    python: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Interpreter for the program; it does not need replay. Default: this Python."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE if it exists.")] = False,
    rescue: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Interrupted recording to recover; no program is run.")
    ] = None,
) -> None:
    """Record the allocations, arenas, garbage collections and phases of a Python program.

    Options of replay come before the program. The exit code is the program's.

    Example: replay record -o trace.parquet script.py --its-option

    Example: replay record -o trace.parquet -m json.tool data.json

    Example: replay record --sites script.py; replay trace info trace.parquet

    Example: replay record --python /opt/python3.13/bin/python3 script.py

    Example: replay record --rescue trace.parquet
    """
    if rescue is not None:
        _rescue(rescue, force=force)
    elif not program:
        raise ReplayError("nothing to record; name a script, -m and a module, or -c and code")
    else:
        if python is not None and follow_fork:
            raise ReplayError(
                "--follow-fork goes without --python: a child's writer is run by the program's interpreter"
            )
        wishes: Wishes = {"addresses": addresses, "sites_every": _bytes_a_site(sites, sites_every), "force": force}
        _record(program, output, wishes, clean=clean, follow_fork=follow_fork, python=python)


def _bytes_a_site(sites: bool, sites_every: str | None) -> int:
    """1 for the site of every call, 0 for none, else of one call in so many bytes."""
    if sites_every is None:
        return int(sites)
    if sites:
        raise ReplayError("--sites is of every call, --sites-every of some; leave out one of them")
    from replay.support.units import parse_size

    try:
        size_bytes = parse_size(sites_every)
    except ValueError as error:
        raise ReplayError(f"--sites-every: {error}") from None
    if size_bytes < 1:
        raise ReplayError("--sites-every: one call in 0 B is none; write it like 64KiB")
    return size_bytes


def _record(
    program: list[str], output: Path, wishes: "Wishes", *, clean: bool, follow_fork: bool, python: str | None
) -> None:
    from replay.recorder.interpreter import other_interpreter, this_interpreter
    from replay.recorder.tap import POOL_BYTES, SHARED_BYTES

    _check(program)
    with_sites = wishes["sites_every"] > 0
    if python is None:
        interpreter = this_interpreter(clean, with_sites)
    else:
        interpreter = other_interpreter(python, clean, with_sites)
    from replay.recorder.signals import held_signals

    earlier = _child_files(output) if follow_fork else {}
    with held_signals() as mask, told_compilation():  # before the imports below, which start threads
        from replay.recorder.detach import make_memory_file
        from replay.recorder.launch import Child, Follow
        from replay.recorder.ring import Ring
        from replay.recorder.writer import Writer

        file = make_memory_file(SHARED_BYTES)
        ring = Ring(file, wishes["sites_every"], interpreter.version)
        command, said = [interpreter.path, *program], interpreter.description
        writer = Writer(ring, output, command, addresses=wishes["addresses"], force=wishes["force"], interpreter=said)
        follow = Follow(str(output.absolute()), wishes) if follow_fork else None
        try:
            child = Child(program, file, mask, POOL_BYTES if clean else 0, follow, interpreter.path, with_sites)
        except BaseException:  # such as a signal that was held back
            writer.discard()
            raise
        writer.run(child.over)
        written = writer.finish()
    if not ring.program:
        say("replay: the program ended before it could be recorded", err=True)
    _tell(written, output, _changed_files(output, earlier) if follow_fork else [])
    child.end_alike()


def _child_files(output: Path) -> dict[Path, tuple[int, int]]:
    """The recordings of forked children beside `output`, complete or not, and what tells them from later ones."""
    name = re.compile(rf"{re.escape(output.stem)}\.\d+{re.escape(output.suffix)}(\.part)?")
    found = {}
    for path in output.absolute().parent.iterdir():
        if name.fullmatch(path.name):
            with suppress(FileNotFoundError):  # a part that has become complete meanwhile
                found[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def _changed_files(output: Path, earlier: dict[Path, tuple[int, int]]) -> list[str]:
    """As the command line names them: the recordings of children that were begun since; each is complete soon."""
    parts, complete = _child_files(output), _child_files(output)  # twice, for a part may get its name in between
    names = {path.name.removesuffix(".part") for path, file in (parts | complete).items() if earlier.get(path) != file}
    return [str(output.with_name(name)) for name in sorted(names)]


def _check(program: list[str]) -> None:
    """Reports what Python would find wrong with the command line, before anything is written."""
    first = program[0]
    if first in ("-m", "-c"):
        if len(program) == 1:
            raise ReplayError(f"{first} needs {'a module' if first == '-m' else 'code'} behind it")
    elif first.startswith("-"):
        raise ReplayError(f"there is no option {first}; `replay record --help` lists them")
    elif not Path(first).exists():
        raise ReplayError(f"{first}: there is no such script")


def _tell(written: "Written", output: Path, children: list[str]) -> None:
    from replay.support.units import format_size, format_time

    told = [
        f"{written.rows:,} events over {format_time(written.span_ns)}, "
        f"{written.live_blocks:,} blocks live at the end, {written.foreign_frees:,} older ones freed; "
        f"{output} takes {format_size(written.file_bytes)}",
        *([f"forked children: {', '.join(map(quote, children))}"] if children else []),
        f"next: replay run {quote(str(output))}",
    ]
    if written.trouble:
        told.insert(0, f"replay: {written.trouble}; what was saved until then is whole")
    say("\n".join(told), err=True)


def _rescue(path: Path, *, force: bool) -> None:
    from replay.recorder.growing_file import rescue
    from replay.recorder.part import cut_off_part
    from replay.support.atomic_files import exists_already, new_target, publish

    target = new_target(path, force=force)
    part, file = cut_off_part(target, name=path)
    with file:
        rows = rescue(file, part)
        try:
            publish(part, target, force=force)
        except FileExistsError:
            raise OutputError(exists_already(path)) from None
    say(f"{rows:,} events saved; {printable(str(path))} is whole\nnext: replay run {printable(quote(str(path)))}")
