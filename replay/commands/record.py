"""`replay record`: runs a program and records every call of its allocators."""

import re
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from replay.commands import record_options as options
from replay.commands.compilation import report_compilation
from replay.support.errors import OutputError, ReplayError
from replay.support.names import printable, say

if TYPE_CHECKING:
    from replay.recorder.detach import Options
    from replay.recorder.writer import Written

SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""Arguments after the name of the program belong to the program."""


def record(
    program: options.Program = None,
    output: options.Output = Path("trace.parquet"),
    clean: options.Clean = False,
    addresses: options.Addresses = True,
    sites: options.Sites = False,
    sites_every: options.SitesEvery = None,
    types: options.Types = False,
    follow_fork: options.FollowFork = False,
    python: options.Python = None,
    force: options.Force = False,
    rescue: options.Rescue = None,
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
        wanted: Options = {
            "addresses": addresses,
            "sites_every": _bytes_a_site(sites, sites_every),
            "types": types,
            "force": force,
        }
        _record(program, output, wanted, clean=clean, follow_fork=follow_fork, python=python)


def _bytes_a_site(sites: bool, sites_every: str | None) -> int:
    """Returns the average number of bytes between recorded call sites: 1 for every call, 0 for no call."""
    if sites_every is None:
        return int(sites)
    if sites:
        raise ReplayError("--sites and --sites-every exclude each other: --sites records every call")
    from replay.support.units import parse_size

    try:
        size_bytes = parse_size(sites_every)
    except ValueError as error:
        raise ReplayError(f"--sites-every: {error}") from None
    if size_bytes < 1:
        raise ReplayError("--sites-every: must be at least 1 B; write it like 64KiB")
    return size_bytes


def _record(
    program: list[str], output: Path, options: "Options", *, clean: bool, follow_fork: bool, python: str | None
) -> None:
    from replay.recorder.interpreter import other_interpreter, this_interpreter
    from replay.recorder.tap import POOL_BYTES, SHARED_BYTES

    _check(program)
    with_sites, with_types = options["sites_every"] > 0, options["types"]
    if python is None:
        interpreter = this_interpreter(clean, with_sites, with_types)
    else:
        interpreter = other_interpreter(python, clean, with_sites, with_types)
    from replay.recorder.signals import blocked_signals

    earlier = _child_files(output) if follow_fork else {}
    with blocked_signals() as blocked, report_compilation():  # before the imports below, which start threads
        from replay.recorder.detach import make_memory_file
        from replay.recorder.launch import Child, Follow
        from replay.recorder.ring import Ring
        from replay.recorder.writer import Writer

        file = make_memory_file(SHARED_BYTES)
        ring = Ring(file, options["sites_every"], with_types, interpreter.version)
        writer = Writer(
            ring, output, [interpreter.path, *program], addresses=options["addresses"], force=options["force"],
            interpreter=interpreter.description,
        )  # fmt: skip
        follow = Follow(str(output.absolute()), options, interpreter.description) if follow_fork else None
        try:
            child = Child(
                program, file, blocked, POOL_BYTES if clean else 0, follow, interpreter.path, with_sites, with_types
            )
        except BaseException:  # e.g. a signal that was blocked until now
            writer.discard()
            raise
        writer.run(child.has_ended)
        written = writer.finish()
    if not ring.program:
        say("replay: the program ended before it could be recorded", err=True)
    _print_result(written, output, _changed_files(output, earlier) if follow_fork else [])
    child.exit_like_program()


def _child_files(output: Path) -> dict[Path, tuple[int, int]]:
    """Returns inode and modification time of the recordings of forked children beside `output`, complete or not."""
    name = re.compile(rf"{re.escape(output.stem)}\.\d+{re.escape(output.suffix)}(\.part)?")
    found = {}
    for path in output.absolute().parent.iterdir():
        if name.fullmatch(path.name):
            with suppress(FileNotFoundError):  # a partial file that was renamed because it is complete
                found[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def _changed_files(output: Path, earlier: dict[Path, tuple[int, int]]) -> list[str]:
    """Returns the recordings of children that began since `earlier`, named like `output`. Some may still be written."""
    parts, complete = _child_files(output), _child_files(output)  # twice: a partial file may be renamed in between
    names = {path.name.removesuffix(".part") for path, file in (parts | complete).items() if earlier.get(path) != file}
    return [str(output.with_name(name)) for name in sorted(names)]


def _check(program: list[str]) -> None:
    """Raises ReplayError for a command line that Python would reject, before anything is written."""
    first = program[0]
    if first in ("-m", "-c"):
        if len(program) == 1:
            raise ReplayError(f"{first} needs {'a module' if first == '-m' else 'code'} after it")
    elif first.startswith("-"):
        raise ReplayError(f"unknown option {first}; `replay record --help` lists the options")
    elif not Path(first).exists():
        raise ReplayError(f"{first}: the script does not exist")


def _print_result(written: "Written", output: Path, children: list[str]) -> None:
    from replay.support.units import format_size, format_time

    lines = [
        f"{written.rows:,} events over {format_time(written.span_ns)}, "
        f"{written.live_blocks:,} blocks live at the end, {written.foreign_frees:,} older ones freed; "
        f"{output} takes {format_size(written.file_bytes)}",
        *([f"forked children: {', '.join(map(quote, children))}"] if children else []),
        f"next: replay run {quote(str(output))}",
    ]
    if written.trouble:
        lines.insert(0, f"replay: {written.trouble}; all events until then are saved")
    say("\n".join(lines), err=True)


def _rescue(path: Path, *, force: bool) -> None:
    from replay.recorder.growing_file import rescue
    from replay.recorder.part import interrupted_part
    from replay.support.atomic_files import exists_already, new_target, publish

    path = path.with_suffix("") if path.suffix == ".part" else path  # people name the file that they see
    target = new_target(path, force=force)
    part, file = interrupted_part(target, name=path)
    with file:
        rows = rescue(file, part)
        try:
            publish(part, target, force=force)
        except FileExistsError:
            raise OutputError(exists_already(path)) from None
    say(f"{rows:,} events saved; {printable(str(path))} is complete\nnext: replay run {printable(quote(str(path)))}")
