"""The checks of `replay doctor`: each looks at one thing that replay needs on this machine.

What can be tried is tried: a small simulation and a small recording say more than a list of requirements.
"""

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from replay.support.home import home_folder

OK, MISSING, FAILED = "ok", "missing", "failed"
"""States of a check. MISSING is an extra that simulating and recording do not need."""
_LIBRARIES = ("numpy", "numba", "llvmlite", "polars", "pyarrow", "pydantic", "simpy", "yaml", "typer", "rich")
_DISTRIBUTIONS = {"yaml": "pyyaml"}
_EXTRAS = {
    "memray": ("memray", "read captures that another version of memray wrote"),
    "optuna": ("search", "sweep with --search"),
    "distributed": ("cluster", "sweep on a Dask cluster"),
    "fsspec": ("cluster", "read traces by URL"),
    "altair": ("charts", "draw charts of sweeps in notebooks"),
    "pytest": ("", "record and judge tests"),
}
"""By module of an optional library: the extra that installs it, and what it is for."""
_PYTHON = re.compile(r"python3\.\d+")
_TRIAL_PROGRAM = "kept = [str(number) * 9 for number in range(1000)]"
_TRIAL_SECONDS = 120


class Check(NamedTuple):
    """The result of a check."""

    group: str
    name: str
    state: str
    found: str
    """What there is, in a few words."""
    advice: str = ""
    """What to do if the state is not OK."""


def all_checks() -> Iterator[Check]:
    """Yields the results of all checks, group by group. The checks run while they are yielded."""
    yield from _versions()
    yield from _simulating()
    yield from _recording()
    yield from _verifying()
    yield from _extras()


def _versions() -> Iterator[Check]:
    from replay.support.version import identity

    yield Check("versions", "replay", OK, f"{identity()} in {Path(__file__).parents[1]}")
    python = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    yield Check("versions", "Python", OK, python)
    libc = " ".join(platform.libc_ver())
    yield Check("versions", "system", OK, f"{platform.system()} {platform.release()}, {platform.machine()}, {libc}")
    for name in _LIBRARIES:
        yield _library(name)


def _library(name: str) -> Check:
    """Imports a library that replay needs."""
    try:
        importlib.import_module(name)
        return Check("versions", name, OK, version(_DISTRIBUTIONS.get(name, name)))
    except (ImportError, OSError) as error:  # OSError: a shared library of it cannot be loaded
        return Check("versions", name, FAILED, str(error).partition("\n")[0], f"pip install --force-reinstall {name}")


def _simulating() -> Iterator[Check]:
    from replay.jit.kernel_cache import cache_root

    yield Check("simulating", "kernels", OK, kernel_source())
    folder = cache_root()
    if reason := _why_not_writable(folder):
        advice = "set REPLAY_CACHE_DIR to a writable folder, or every run compiles its kernels again"
        yield Check("simulating", "cache", FAILED, f"{folder}: {reason}", advice)
    else:
        yield Check("simulating", "cache", OK, f"{folder}: {_folder_size(folder)}")
    yield _tried("simulating", "trial", _simulate, "reinstall replay, or report this with the message")


def kernel_source() -> str:
    """Returns where the machine code of kernels comes from."""
    from replay.jit.shipped import class_in_use

    if found := class_in_use():
        return f"machine code of this package, for {found}; numba {version('numba')} for everything else"
    return f"numba {version('numba')} compiles each at its first call"


def _why_not_writable(folder: Path) -> str:
    """Returns why no files can be written in a folder, which is made if it is missing; empty if they can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _folder_size(folder: Path) -> str:
    """Returns number and size of the files in a folder. Other processes may remove some meanwhile."""
    from replay.support.units import format_size

    sizes = []
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(Path(parent, name).lstat().st_size)
            except FileNotFoundError:
                continue
    return f"{len(sizes):,} files, {format_size(sum(sizes))}"


def _tried(group: str, name: str, attempt: Callable[[], str], advice: str) -> Check:
    """Returns the check of an attempt, which returns what it found. Any error is a failure with its message."""
    from replay.support.errors import explain_failure

    try:
        return Check(group, name, OK, attempt())
    except Exception as error:
        return Check(group, name, FAILED, explain_failure(error) or f"{type(error).__name__}: {error}", advice)


def _simulate() -> str:
    """Simulates a small workload with the default stack; returns what was done."""
    from replay.config import default_preset, load_config
    from replay.simulation.run import run
    from replay.sources import open_source

    trace = open_source("startup-static")
    stack = load_config(default_preset(trace.metadata))
    result = run(trace, stack, check=True)
    return f"{result.events:,} events on {stack.name}, all invariants hold"


def _recording() -> Iterator[Check]:
    from replay.recorder.tap import obstacle

    if reason := obstacle():
        yield Check("recording", "this Python", FAILED, reason, "record on 64-bit Linux with CPython 3.11 or newer")
    else:
        refused = [text for text in (obstacle(clean=True), obstacle(sites=True), obstacle(types=True)) if text]
        able = "" if refused else ", with --clean, --sites and --types"
        yield Check("recording", "this Python", OK, "; ".join([f"supported{able}", *refused]))
        advice = "allow memfd_create and executable shared memory (seccomp, SELinux, limits of memory and processes)"
        yield _tried("recording", "trial", _record, advice)
    for path in _interpreters():
        yield _interpreter(path)


def _record() -> str:
    """Records a small program in a separate process; returns what was recorded."""
    from replay.recorder.tap import SHARED_BYTES
    from replay.sources import open_source
    from replay.support.errors import ReplayError
    from replay.support.units import format_size

    with tempfile.TemporaryDirectory(prefix="replay-doctor-") as folder:
        path = Path(folder) / "trace.parquet"
        command = [sys.executable, "-m", "replay", "record", "-o", str(path), "-c", _TRIAL_PROGRAM]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TRIAL_SECONDS, check=False)
        if done.returncode or not path.exists():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode} without a message"]
            raise ReplayError(lines[-1].removeprefix("replay: "))
        rows = sum(events.rows for events in open_source(path).batches())
    return f"{rows:,} events of a small program; a recording takes {format_size(SHARED_BYTES)} of shared memory"


def _interpreters() -> list[str]:
    """Returns the other interpreters that `replay record --python` could use: in PATH, and the versions of pyenv."""
    folders = [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    root = Path(os.environ.get("PYENV_ROOT") or home_folder() / ".pyenv")
    folders += sorted(root.glob("versions/*/bin"))
    found: dict[Path, str] = {}
    for folder in folders:
        for path in sorted(folder.glob("python3.*")):
            if _PYTHON.fullmatch(path.name) and os.access(path, os.X_OK) and "shims" not in path.parts:
                found.setdefault(path.resolve(), str(path))
    found.pop(Path(sys.executable).resolve(), None)
    return list(found.values())


def _interpreter(path: str) -> Check:
    """Asks another interpreter whether it can be recorded."""
    from replay.recorder.interpreter import other_interpreter
    from replay.support.errors import ReplayError

    try:
        interpreter = other_interpreter(path, clean=False, sites=False, types=False)
    except ReplayError as error:
        reason = str(error).removeprefix(f"--python: {path} is ")
        return Check("recording", path, MISSING, reason, "record with another interpreter: --python PATH")
    return Check("recording", path, OK, f"{interpreter.description}: record --python {path}")


def _verifying() -> Iterator[Check]:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        yield Check("verifying", "compiler", MISSING, "no C compiler", "install gcc, or name a compiler in CC")
        return
    yield Check("verifying", "compiler", OK, compiler)
    strace = shutil.which("strace")
    advice = "install strace to compare system calls with `verify --libc`"
    yield Check("verifying", "strace", OK if strace else MISSING, strace or "not installed", advice)
    yield from _real_allocators()


def _real_allocators() -> Iterator[Check]:
    """Yields the real allocators that models can be compared with."""
    from replay.verification.libc_oracles import survey_libcs
    from replay.verification.object_oracles import find_object_oracles
    from replay.verification.oracles import survey

    pythons, absent = survey()
    libcs, absent_libcs = survey_libcs()
    for name, found, missing, listing in (
        ("pymalloc", [each.version for each in pythons], absent, "replay verify --list"),
        ("glibc", [each.version for each in libcs], absent_libcs, "replay verify --libc --list"),
        ("objects", list(find_object_oracles()), [], "replay verify --list"),
    ):
        more = f"; {len(missing)} not available" if missing else ""
        advice = f"`{listing}` shows how to get them"
        yield Check("verifying", name, OK if found else MISSING, (", ".join(found) or "none") + more, advice)


def _extras() -> Iterator[Check]:
    for name, (extra, use) in _EXTRAS.items():
        advice = f"pip install '{_distribution(extra)}' to {use}" if extra else f"pip install {name} to {use}"
        try:
            yield Check("optional", name, OK, version(name))
        except PackageNotFoundError:
            yield Check("optional", name, MISSING, "not installed", advice)


def _distribution(extra: str) -> str:
    """Returns what pip installs for an extra of this package."""
    try:
        declared = requires("alloc-replay") or []
    except PackageNotFoundError:  # a checkout in PYTHONPATH
        declared = []
    assert not declared or any(f'extra == "{extra}"' in each.replace("'", '"') for each in declared), extra
    return f"alloc-replay[{extra}]"
