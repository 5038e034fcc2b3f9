"""Faults at random moments of a command: signals, a full disk, failing system calls. Seeds reproduce them.

A command runs in a forked child, whose parent has imported everything, so that a fault costs little. Its moments are
the audit events of CPython about files: `open`, `os.rename`, `os.link`, … At the n-th of them that concerns the
command's folder, the child sends itself a signal, or the call fails. A full disk is a limit of the size of files.

    python tests/faults.py [SEEDS [COMMAND …]]      prints how many of each fault were tried, and the exit codes
"""

import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from replay.__main__ import COMMANDS as LOADED

EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
ERRORS = {"no space": 28, "read-only": 30, "input/output": 5}
FAULTS = (*SIGNALS, *ERRORS, "full disk")
_NOTHING: Mapping[str, bytes] = {}


class Command(NamedTuple):
    """A command, in a folder with a trace `in.parquet` and a log `in.csv`, and the outputs that it makes."""

    words: tuple[str, ...]
    outputs: tuple[str, ...]


COMMANDS = {
    "generate": Command(("generate", "w.yaml", "-o", "out.parquet", "--force"), ("out.parquet",)),
    "import": Command(("import", "in.csv", "-o", "out.parquet", "--force"), ("out.parquet",)),
    "run": Command(("run", "in.parquet", "-a", "bump", "--no-reference", "--out", "results", "--force"), ("results",)),
    "addresses": Command(
        ("run", "in.parquet", "-a", "bump", "--no-reference", "--addresses", "out.parquet", "--force"), ("out.parquet",)
    ),
    "baseline": Command(("baseline", "in.parquet", "-a", "bump", "--baseline", "b.json", "--force"), ("b.json",)),
    "check": Command(
        ("check", "in.parquet", "-a", "bump", "-t", "resident_bytes_peak<=1GiB", "--history", "h.parquet"),
        ("h.parquet",),
    ),
    "cut": Command(("trace", "cut", "in.parquet", "-o", "out.parquet", "--to", "1us", "--force"), ("out.parquet",)),
}
WORKLOAD = """
duration: 10 ms
streams: {a: {arrivals: {kind: fixed, rate: 100000/s}, size: 64, lifetime: 1 ms}}
"""
LOG = "time_ns,op,block,size\n" + "".join(f"{row},malloc,{row},{row % 600}\n" for row in range(1000))


@dataclass
class Ended:
    """How a command ended: exit code or negative signal, its standard error, and its events about files."""

    code: int
    errors: str
    moments: int


def preload() -> None:
    """Imports what the commands need, so that their children need not. Starts no thread, which a fork would lose."""
    for name in (*(module.partition(":")[0] for module, _ in LOADED.values()), "run_plan"):
        import_module(f"replay.commands.{name}")
    for name in ("replay.jit._numba", "replay.simulation.run", "polars", "pyarrow.csv", "pyarrow.parquet"):
        import_module(name)


def prepare(folder: Path) -> None:
    """Makes the inputs of COMMANDS."""
    (folder / "w.yaml").write_text(WORKLOAD)
    (folder / "in.csv").write_text(LOG)
    assert in_child(folder, ("import", "in.csv", "-o", "in.parquet")).code == 0


def in_child(folder: Path, words: tuple[str, ...], inject: Callable[[int], None] | None = None, size: int = 0) -> Ended:
    """Runs a command in a forked child. `inject` is called with the number of each event; `size` limits files."""
    errors, moments = folder.parent / "errors", folder.parent / "moments"
    errors.write_bytes(b"")
    moments.write_bytes(b"")
    child = os.fork()
    if child == 0:
        try:
            _run(folder, words, errors, moments, inject, size)
        finally:
            os._exit(70)  # never back into the parent's code
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), errors.read_text(errors="replace"), len(moments.read_bytes()))


def _run(
    folder: Path, words: tuple[str, ...], errors: Path, moments: Path, inject: Callable[[int], None] | None, size: int
) -> None:
    """The child: runs the command and ends the process with its exit code."""
    from replay.__main__ import main

    signal.alarm(0)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    counter = os.open(moments, os.O_WRONLY | os.O_APPEND)
    inside = os.fspath(folder)
    count = 0

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event not in EVENTS or not _concerns(arguments[0], inside):
            return
        os.write(counter, b".")
        count += 1
        if inject:
            inject(count)

    sys.addaudithook(audit)
    if size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sys.argv = ["replay", *words]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _concerns(path: object, folder: str) -> bool:
    """Whether a path is in the folder; the child's current folder is the same."""
    if isinstance(path, (str, bytes, os.PathLike)):
        name = os.fsdecode(path)
        return not name.startswith("/") or name.startswith(folder)
    return False


def inject_fault(fault: str, moment: int) -> Callable[[int], None] | None:
    """Returns what to call at each event: it does nothing but at this moment."""

    def at(number: int) -> None:
        if number == moment and fault in SIGNALS:
            os.kill(os.getpid(), SIGNALS[fault])
        elif number == moment:
            raise OSError(ERRORS[fault], os.strerror(ERRORS[fault]))

    return None if fault == "full disk" else at


def content(folder: Path, output: str) -> dict[str, bytes]:
    """Returns the files of an output by their names; empty if it does not exist."""
    path = folder / output
    if path.is_dir():
        return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}
    return {output: path.read_bytes()} if path.exists() else {}


class Faults:
    """Tries faults in one command, each in a copy of the same folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.command, self._folder = COMMANDS[name], folder
        self._pristine = folder / "pristine"
        self._pristine.mkdir()
        prepare(self._pristine)
        self._in_copy()  # compiles the kernels, which would add moments
        done = self._in_copy()
        assert done.code == 0, done.errors
        self._moments = done.moments
        self._complete = self._outputs()

    def _in_copy(
        self, inject: Callable[[int], None] | None = None, size: int = 0, earlier: Mapping[str, bytes] = _NOTHING
    ) -> Ended:
        """Runs the command in a new copy of the folder, in which these outputs exist already."""
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self._pristine, copy)
        for name, each in earlier.items():
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_bytes(each)
        return in_child(copy, self.command.words, inject, size)

    def _outputs(self) -> dict[str, bytes]:
        copy = self._folder / "copy"
        return {name: each for output in self.command.outputs for name, each in content(copy, output).items()}

    def attempt(self, fault: str, seed: int) -> int:
        """Tries a fault at the moment of a seed; returns the exit code. Raises AssertionError if anything is wrong."""
        random_ = random.Random(f"{fault} {seed}")
        moment = random_.randrange(1, self._moments + 1)
        size = random_.randrange(1, 6000) if fault == "full disk" else 0
        earlier = self._complete if seed % 2 else _NOTHING
        done = self._in_copy(inject_fault(fault, moment), size, earlier)
        where = f"{' '.join(self.command.words)}: {fault}, seed {seed}, moment {moment}, {size} bytes: {done}"
        wanted = {"kill": {-9}, "terminate": {143, 0}, "interrupt": {130, 0}}.get(fault, {0, 2})
        assert done.code in (wanted if done.moments >= moment or size else {0}), where
        assert "Traceback" not in done.errors, where
        assert "Exception ignored" not in done.errors, where
        found = self._outputs()
        if found or earlier or done.code == 0:
            assert self._is_complete(found), f"{where}: has {sorted(found)}"
        if fault != "kill":
            left = [path.name for path in (self._folder / "copy").rglob("*.part")]
            assert not left, f"{where}, {left} left"
        if fault == "kill" or seed % 10 == 0:
            again = in_child(self._folder / "copy", self.command.words)
            assert again.code == 0, f"{where}; again: {again}"
        return done.code

    def _is_complete(self, found: dict[str, bytes]) -> bool:
        return _comparable(found) == _comparable(self._complete)


def _comparable(files: dict[str, bytes]) -> dict[str, object]:
    """Returns the content of files without what differs in every run: times."""
    import io
    import json

    import pyarrow.parquet as pq

    found: dict[str, object] = {}
    for name, each in files.items():
        if name == "h.parquet":
            found[name] = pq.read_metadata(io.BytesIO(each)).num_rows > 0  # starts no thread, which a fork would lose
        elif name.endswith("summary.json"):
            found[name] = sorted(json.loads(each))
        else:
            found[name] = each
    return found


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main(seeds: int, commands: Sequence[str]) -> None:
    """Tries each fault in these commands, prints how often each exit code occurred. Exits with 1 if any is wrong."""
    preload()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        for command in commands:
            faults = Faults(command, _new(Path(name) / command))
            for fault in FAULTS:
                codes: Counter[int] = Counter()
                for seed in range(seeds):
                    try:
                        codes[faults.attempt(fault, seed)] += 1
                    except AssertionError as error:
                        wrong += 1
                        print(f"WRONG {error}", file=sys.stderr, flush=True)
                print(f"{command:<10} {fault:<13} {seeds} tried: {dict(codes)}", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50, sys.argv[2:] or list(COMMANDS))
