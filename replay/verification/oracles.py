"""Finds the real allocators of this machine: every libpython whose pymalloc the harness can run.

The search order is as follows; each file is used once:

    $REPLAY_LIBPYTHON_PATH                      libraries or folders of them, separated by colons
    the running interpreter's library folder
    the versions of pyenv                       in $PYENV_ROOT or its default folder
    /usr/lib/<triplet>, /usr/local/lib
    interpreters/* in the cache folder          unpacked packages, which run with their own dynamic loader
"""

import os
import platform
import re
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from replay.allocators import pymalloc
from replay.config import load_config
from replay.jit.kernel_cache import cache_root
from replay.support.errors import ReplayError
from replay.support.home import home_folder
from replay.verification.harness import HarnessError, Library, build, probe

PRESETS = ("2.7", *(f"3.{minor}" for minor in range(6, 16)))
"""Versions of CPython with a 64-bit preset. There is one 32-bit preset, for 3.11."""

_FIRST_IN_INTERPRETER = (3, 12)
"""From this version on, pymalloc's state is part of an interpreter."""
_DRAINED_OVERRIDES = ("pymalloc.radix_tree=false",)
"""Draining allocates the nodes of the arena tree, so that none is allocated during the trace."""
_MACHINES = {("x86_64", 64): 62, ("x86_64", 32): 3, ("i686", 32): 3, ("aarch64", 64): 183}
"""ELF machine numbers of code that this machine can run, by machine and word size."""
_FILE = re.compile(r"libpython(?P<major>\d)\.(?P<minor>\d+)(?P<abi>[a-z]*)\.so(\.[\d.]+)?")


@dataclass(frozen=True)
class Oracle:
    """A real pymalloc, and the configuration that must be equal to it."""

    name: str
    """A name like `cpython-3.11.7` or `cpython-3.11.2-32bit`."""
    version: str
    preset: str
    overrides: tuple[str, ...]
    """Overrides for the differences between this build and its preset."""
    alignment: int
    """Alignment of blocks in bytes, measured in the library."""
    pool_bytes: int
    library: Library


@dataclass(frozen=True)
class Absence:
    """A library that cannot be used, or a version that is not installed, with the reason."""

    name: str
    reason: str


def find_oracles() -> list[Oracle]:
    """Returns all available oracles, sorted by version."""
    return survey()[0]


def survey() -> tuple[list[Oracle], list[Absence]]:
    """Returns the available oracles, sorted by version, and those that are not available with the reasons."""
    oracles: list[Oracle] = []
    absences: list[Absence] = []
    for path in _libraries():
        try:
            oracles.append(_examine(path))
        except HarnessError as error:
            absences.append(Absence(str(path), str(error)))
    oracles.sort(key=lambda oracle: ([int(part) for part in oracle.version.split(".")], oracle.library.bits))
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        absences.append(Absence(sys.executable, "built without a shared library, so nothing can load it"))
    at_hand = {oracle.preset for oracle in oracles}
    for preset in [*(f"cpython-{version}" for version in PRESETS), "cpython-3.11-32bit"]:
        if preset not in at_hand:
            absences.append(Absence(preset, _how_to_get(preset)))
    return oracles, absences


def unavailable(what: str, choice: str, absences: Iterable[Absence], listing: str) -> ReplayError:
    """Returns the error for a choice without a real allocator. `listing`: the command that lists them."""
    reason = next((absence.reason for absence in absences if choice in absence.name), f"see `{listing}`")
    return ReplayError(f"no real {what} is available for {choice!r}: {reason}")


def choose_oracles(choice: str) -> list[Oracle]:
    """Returns the oracles of a preset, of a version such as `3.11` or `3.11.7`, or `all`."""
    oracles, absences = survey()
    if choice == "all":
        chosen = oracles
    else:
        chosen = [oracle for oracle in oracles if choice in (oracle.preset, oracle.name, oracle.version)]
        chosen = chosen or [oracle for oracle in oracles if f"cpython-{choice}" in (oracle.preset, oracle.name)]
    if not chosen:
        raise unavailable("allocator", choice, absences, "replay verify --list")
    return chosen


def _how_to_get(preset: str) -> str:
    if preset.endswith("32bit"):
        return "on Debian: dpkg --add-architecture i386, then install gcc-multilib and libpython3.11:i386"
    if preset in ("cpython-3.13", "cpython-3.14", "cpython-3.15"):
        return "on Debian, .ci/fetch-interpreters of the sources downloads it; or name one in REPLAY_LIBPYTHON_PATH"
    return "build it with --enable-shared and name its libpython in REPLAY_LIBPYTHON_PATH"


def _libraries() -> Iterator[Path]:
    """Yields files that look like a libpython, with symbolic links resolved, each once."""
    folders = [Path(part) for part in os.environ.get("REPLAY_LIBPYTHON_PATH", "").split(os.pathsep) if part]
    folders.append(Path(sysconfig.get_config_var("LIBDIR") or "/nonexistent"))
    pyenv = home_folder() / ".pyenv"
    for root in {Path(os.environ.get("PYENV_ROOT") or pyenv).expanduser(), pyenv}:
        folders += sorted(root.glob("versions/*/lib"))
    folders += [*sorted(Path("/usr/lib").glob("*-linux-gnu*")), Path("/usr/local/lib")]
    folders += sorted((cache_root() / "interpreters").glob("*/usr/lib/*-linux-gnu*"))
    seen: set[Path] = set()
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted([*folder.glob("libpython*"), *folder.glob("libpypy*")]):
            real = path.resolve()
            if real not in seen and (_FILE.fullmatch(real.name) or real.name.startswith("libpypy")):
                seen.add(real)
                yield real


def _examine(path: Path) -> Oracle:
    """Runs a library once and returns its oracle. Raises HarnessError with the reason if it cannot be used."""
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise HarnessError("PyPy has no pymalloc")
    if "t" in match["abi"]:
        raise HarnessError("a free-threaded build: it uses mimalloc, which has no model")
    if "d" in match["abi"]:
        raise HarnessError("a debug build: its debug hooks change every size")
    release = (int(match["major"]), int(match["minor"]))
    bits = _bits(path)
    preset = f"cpython-{release[0]}.{release[1]}" + ("-32bit" if bits == 32 else "")
    if preset not in {*(f"cpython-{version}" for version in PRESETS), "cpython-3.11-32bit"}:
        raise HarnessError(f"the preset {preset}, to compare it with, does not exist")
    needs_init = release >= _FIRST_IN_INTERPRETER
    home = _home(path, release)
    if needs_init and home is None:
        raise HarnessError("its standard library is missing, so it cannot be initialised")
    library = Library(path, bits, needs_init, home, _loader(path))
    alignment, version_text = probe(library)
    geometry = load_config(preset).small
    assert isinstance(geometry, pymalloc.Config)
    version = re.split(r"[^\d.]", version_text)[0]
    name = f"cpython-{version}" + ("-32bit" if bits == 32 else "")
    overrides: tuple[str, ...] = _DRAINED_OVERRIDES if needs_init else ()
    if alignment != geometry.alignment:
        overrides += (f"pymalloc.alignment={alignment}",)
    return Oracle(name, version, preset, overrides, alignment, geometry.pool_size, library)


def _bits(path: Path) -> int:
    """Returns the word size of an ELF file that this machine can run."""
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        raise HarnessError("not a library of this system (no ELF file)")
    bits = 64 if head[4] == 2 else 32
    (machine,) = struct.unpack_from("<H", head, 18)
    if _MACHINES.get((platform.machine(), bits)) != machine:
        raise HarnessError("a library for another kind of machine")
    build(bits)
    return bits


def _home(path: Path, release: tuple[int, int]) -> Path | None:
    """Returns the nearest parent folder with lib/pythonX.Y; None without any."""
    stdlib = f"lib/python{release[0]}.{release[1]}/os.py"
    return next((folder for folder in path.parents if (folder / stdlib).is_file()), None)


def _loader(path: Path) -> tuple[str, ...]:
    """Returns the dynamic loader of a library in the cache folder, with options to search libraries only there."""
    if (cache_root() / "interpreters").resolve() not in path.parents:
        return ()
    loader = next(iter(sorted(path.parent.glob("ld-linux-*.so.*"))), None)
    if loader is None:
        raise HarnessError("the C library that it was built for is missing; download it again")
    return (str(loader), "--library-path", str(path.parent))
