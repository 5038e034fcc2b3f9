"""Compiles the C harness when it is needed, and runs traces with it on a real libpython.

`harness.c` documents its command line and its files. The record types here have the layout of its structs.
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
_HEADER = np.dtype([(name, "<u8") for name in ("rows", "base", "run_ns", "arena_events", "drained_blocks", "cpu_ns")])

_FLAGS = ("-O2", "-rdynamic")
_PROBE_SECONDS = 30
_RUN_SECONDS = 30
_EVENTS_A_SECOND = 200_000
"""Lower limit of the speed, for timeouts: every allocator is much faster."""


class HarnessError(ReplayError):
    """The real allocator cannot be run."""


@dataclass(frozen=True)
class Library:
    """A libpython and the settings to run it."""

    path: Path
    bits: int
    needs_init: bool
    """Whether pymalloc's state is part of an interpreter (3.12 on), so that Python has to be initialised."""
    home: Path | None = None
    """The folder of its standard library, for PYTHONHOME."""
    loader: tuple[str, ...] = ()
    """The dynamic loader and its options, if the library has its own C library."""


@dataclass(frozen=True)
class RealRun:
    """The result of a run with the real allocator. Rows are those of the trace, from 0."""

    base: int
    """The end of the first mapping of the run: the model's `linux.mmap_base`."""
    run_ns: int
    cpu_ns: int
    """Time of the processor in the run; unlike `run_ns`, it does not grow while other programs run."""
    drained_blocks: int
    addresses: np.ndarray
    """An int64 for each event; 0 if it returned no address. Empty after a timed run."""
    owners: np.ndarray
    """A uint8 for each event: 1 pymalloc, 0 libc. Empty after a timed run."""
    arena_events: np.ndarray
    """`ARENA_EVENT`s in order; kind 1 mapped, 0 unmapped."""


@cache
def build(bits: int) -> Path:
    """Returns the compiled harness for libraries with this word size."""
    return compile_program(SOURCE, (*_FLAGS, "-m32") if bits == 32 else _FLAGS, f"harness-{bits}", "-ldl")


def compile_program(source: Path, flags: Sequence[str], name: str, *libraries: str) -> Path:
    """Compiles a program, unless the same one was compiled before. Returns its path."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise HarnessError("the harness needs a C compiler; install gcc or name a compiler in CC")
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
    """Returns the alignment of a library's blocks in bytes, and its version from Py_GetVersion."""
    answer = _run(library, ["probe", str(library.path), str(int(library.needs_init))], _PROBE_SECONDS)
    alignment, _, version = answer.partition("\n")
    return int(alignment), " ".join(version.split())


def run_trace(trace: Trace, library: Library, *, pool_bytes: int, place: int, timed: bool = False) -> RealRun:
    """Runs a trace with a real libpython.

    `pool_bytes`: the size of its pools. `place`: the base modulo 16 GiB (2 MiB for 32-bit, and for a library that needs
    to be initialised). `timed`: measures only the calls and returns no addresses.
    """
    with tempfile.TemporaryDirectory(prefix="replay-verify-") as folder:
        events, result = Path(folder) / "events", Path(folder) / "result"
        rows = write_events(trace, events)
        drained_pool_bytes = pool_bytes if library.needs_init else 0
        arguments = [str(events), str(result), str(drained_pool_bytes), str(place), "time" if timed else "addresses"]
        _run(library, ["run", str(library.path), *arguments], _RUN_SECONDS + rows / _EVENTS_A_SECOND)
        return _read_result(result, rows, 0 if timed else rows)


def write_events(trace: Trace, path: Path) -> int:
    """Writes the trace for the harness; returns the number of rows."""
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
        raise TraceError("has no events to verify")
    return rows


def _read_result(path: Path, rows: int, kept: int) -> RealRun:
    """Reads the result of the harness, with the first `kept` addresses."""
    header = np.fromfile(path, _HEADER, 1)[0]
    owners_at = _HEADER.itemsize + 8 * rows
    logged_at = owners_at + (rows + 7) // 8 * 8
    return RealRun(
        base=int(header["base"]),
        run_ns=int(header["run_ns"]),
        cpu_ns=int(header["cpu_ns"]),
        drained_blocks=int(header["drained_blocks"]),
        addresses=np.fromfile(path, "<i8", kept, offset=_HEADER.itemsize),
        owners=np.fromfile(path, "u1", kept, offset=owners_at),
        arena_events=np.fromfile(path, ARENA_EVENT, int(header["arena_events"]), offset=logged_at),
    )


def _run(library: Library, arguments: Sequence[str], seconds: float) -> str:
    """Runs the harness and returns its standard output."""
    command = [*library.loader, str(build(library.bits)), *arguments]
    return run_program(command, library_environment(library), seconds, str(library.path))


def run_program(command: Sequence[str], environment: Mapping[str, str], seconds: float, name: str) -> str:
    """Runs a program and returns its standard output. Raises HarnessError, which calls it `name`, if it fails."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise HarnessError(f"{name} did not finish within {seconds:.0f} s") from error
    except OSError as error:
        raise HarnessError(f"{command[0]} cannot be started: {error.strerror}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if done.returncode < 0:
            last = f"killed by {signal.Signals(-done.returncode).name}, {last}"
        raise HarnessError(f"{name} failed: {last}")
    return done.stdout


def library_environment(library: Library) -> Mapping[str, str]:
    """Returns an environment without settings of libc or Python, in which Python writes no bytecode."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    fixed = {"LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}
    return kept | fixed | ({"PYTHONHOME": str(library.home)} if library.home else {})
