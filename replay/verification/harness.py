"""Builds the C harness on demand and runs traces with it on a real libpython.

`harness.c` documents its command line and its files; the record types here mirror its structs.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from replay.jit.kernel_cache import cache_root
from replay.support.errors import ReplayError, TraceError
from replay.trace import Trace

SOURCE = Path(__file__).with_name("harness.c")
HEADER = SOURCE.with_name("address_space.h")
EVENT = np.dtype([("op", "u1"), ("domain", "u1"), ("thread", "<u2"), ("block", "<u4"), ("size", "<u8")])
ALIGNMENT_BIT = 56
"""In `size`, from there on: of a memalign, the binary logarithm of its alignment."""
ARENA_EVENT = np.dtype([("row", "<i8"), ("kind", "<i8"), ("address", "<i8"), ("bytes", "<i8")])
_HEADER = np.dtype([(name, "<u8") for name in ("rows", "base", "play_ns", "arena_events", "drained_blocks")])

_FLAGS = ("-O2", "-rdynamic")
_PROBE_SECONDS = 30
_PLAY_SECONDS = 30
_EVENTS_A_SECOND = 200_000
"""Far slower than any allocator here; a run that needs longer hangs."""


class HarnessError(ReplayError):
    """The real allocator cannot be run."""


@dataclass(frozen=True)
class Library:
    """A libpython and what it takes to run it."""

    path: Path
    bits: int
    needs_init: bool
    """pymalloc's state is part of an interpreter (3.12 on), so Python has to be initialised."""
    home: Path | None = None
    """Where its standard library is, as PYTHONHOME wants it."""
    loader: tuple[str, ...] = ()
    """The dynamic loader and its options, for a library with a C library of its own."""


@dataclass(frozen=True)
class Played:
    """What the real allocator did. Rows are those of the trace, from 0."""

    base: int
    """The end of the first mapping of the run: the model's `linux.mmap_base`."""
    play_ns: int
    drained_blocks: int
    addresses: np.ndarray
    """int64 an event; 0 where no address was returned. Empty after a timed run."""
    owners: np.ndarray
    """uint8 an event: 1 pymalloc, 0 libc. Empty after a timed run."""
    arena_events: np.ndarray
    """`ARENA_EVENT`s in the order in which they happened; kind 1 mapped, 0 unmapped."""


@cache
def build(bits: int) -> Path:
    """The harness for libraries of that word size."""
    return compile_program(SOURCE, (*_FLAGS, "-m32") if bits == 32 else _FLAGS, f"harness-{bits}", "-ldl")


def compile_program(source: Path, flags: Sequence[str], name: str, *libraries: str) -> Path:
    """Compiles a program unless the same one was compiled before; returns its path."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise HarnessError("no C compiler found to build the harness with; install gcc or name one in CC")
    release = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [source.read_text(), HEADER.read_text(), compiler, release, *flags]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    program = cache_root() / "harness" / f"{name}-{digest[:20]}"
    if program.exists():
        return program
    unfinished = program.with_name(f"{program.name}.{os.getpid()}")
    try:
        program.parent.mkdir(parents=True, exist_ok=True)
        command = [compiler, *flags, str(source), "-o", str(unfinished), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise HarnessError(f"the harness cannot be built in {program.parent}: {error.strerror}") from error
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        hint = "; 32-bit needs the package gcc-multilib" if "-m32" in flags else ""
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HarnessError(f"{compiler} cannot build {source.name}: {last}{hint}")
    unfinished.rename(program)
    return program


def probe(library: Library) -> tuple[int, str]:
    """The alignment of its blocks, in bytes, and its version from Py_GetVersion."""
    answer = _run(library, ["probe", str(library.path), str(int(library.needs_init))], _PROBE_SECONDS)
    alignment, _, version = answer.partition("\n")
    return int(alignment), " ".join(version.split())


def play(trace: Trace, library: Library, *, pool_bytes: int, place: int, timed: bool = False) -> Played:
    """Plays a trace through a real libpython.

    `pool_bytes` is the size of its pools; `place` fixes the base modulo 16 GiB (2 MiB for 32-bit, and for a library
    that needs to be initialised). A timed play measures the bare calls and keeps no addresses.
    """
    with tempfile.TemporaryDirectory(prefix="replay-verify-") as folder:
        events, result = Path(folder) / "events", Path(folder) / "result"
        rows = write_events(trace, events)
        drained_pool_bytes = pool_bytes if library.needs_init else 0
        arguments = [str(events), str(result), str(drained_pool_bytes), str(place), "time" if timed else "addresses"]
        _run(library, ["play", str(library.path), *arguments], _PLAY_SECONDS + rows / _EVENTS_A_SECOND)
        return _read_result(result, rows, 0 if timed else rows)


def write_events(trace: Trace, path: Path) -> int:
    """Writes the trace as the harness reads it; returns the number of rows."""
    rows = 0
    with path.open("wb") as file:
        for batch in trace.batches():
            records = np.zeros(batch.rows, EVENT)
            for name in ("op", "domain", "thread", "block", "size"):
                records[name] = getattr(batch, name)
            if batch.alignment is not None:
                aligned = batch.memalign_rows
                shifts = np.log2(batch.alignment[aligned]).astype(np.uint64)
                records["size"][aligned] |= shifts << np.uint64(ALIGNMENT_BIT)
            records.tofile(file)
            rows += batch.rows
    if not rows:
        raise TraceError("there are no events to verify")
    return rows


def _read_result(path: Path, rows: int, kept: int) -> Played:
    """The first `kept` of the addresses, and everything else."""
    header = np.fromfile(path, _HEADER, 1)[0]
    owners_at = _HEADER.itemsize + 8 * rows
    logged_at = owners_at + (rows + 7) // 8 * 8
    return Played(
        base=int(header["base"]),
        play_ns=int(header["play_ns"]),
        drained_blocks=int(header["drained_blocks"]),
        addresses=np.fromfile(path, "<i8", kept, offset=_HEADER.itemsize),
        owners=np.fromfile(path, "u1", kept, offset=owners_at),
        arena_events=np.fromfile(path, ARENA_EVENT, int(header["arena_events"]), offset=logged_at),
    )


def _run(library: Library, arguments: Sequence[str], seconds: float) -> str:
    """Standard output of the harness."""
    command = [*library.loader, str(build(library.bits)), *arguments]
    return run_program(command, _environment(library), seconds, str(library.path))


def run_program(command: Sequence[str], environment: Mapping[str, str], seconds: float, name: str) -> str:
    """Standard output; a HarnessError says what went wrong with what is called `name`."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise HarnessError(f"{name} did not finish within {seconds:.0f} s") from error
    except OSError as error:
        raise HarnessError(f"{command[0]} cannot be started: {error.strerror}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a message"])[-1]
        if done.returncode < 0:
            last = f"killed by {signal.Signals(-done.returncode).name}, {last}"
        raise HarnessError(f"{name} cannot be played: {last}")
    return done.stdout


def _environment(library: Library) -> Mapping[str, str]:
    """Nothing that would tune libc or Python, and no writing into the installation."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    fixed = {"LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}
    return kept | fixed | ({"PYTHONHOME": str(library.home)} if library.home else {})
