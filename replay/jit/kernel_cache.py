"""The folders of the kernel cache on disk. Old code never runs after an edit.

numba's own cache checks only the file of an entry and would run old code after an edit of a leaf. Here, the folder of
an entry is named by a digest of its source file, of all imported files, and of the models in use. An edit of any of
them changes the folder.
"""

import atexit
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from replay.support.digests import digest_files
from replay.support.home import home_folder

_PACKAGE = Path(__file__).parents[1]
_COMPILER = Path(__file__).parent
_IMPORT = re.compile(rf"^ *(?:from|import) {_PACKAGE.name}(?:\.([\w.]+)| import (\w+))", re.MULTILINE)
_FOLDERS_KEPT = 32
_SECONDS_KEPT = 24 * 3600
_not_cached: dict[Path, str] = {}
"""Temporary folders for machine code, with the intended folder and the reason why it cannot be used."""


def cache_root() -> Path:
    """Returns the folder for files that can be created again: kernels, harnesses of `verify`, fetched interpreters."""
    if chosen := os.environ.get("REPLAY_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache"
    return Path(base) / "alloc-replay"


@cache
def cache_folder(sources: tuple[str, ...]) -> Path:
    """Returns the folder for machine code of these source files and of all that they import of this package."""
    files = sources_of(*sources)
    digest = digest_files(((path.name, path) for path in files), of_more=f"numba {version('numba')}")
    folder = cache_root() / "kernels" / digest[:20]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        _drop_stale(folder.parent)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        # Without a folder, numba would write its cache beside the sources and miss edits of other files.
        temporary = Path(tempfile.mkdtemp(prefix="replay-kernels-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        _not_cached[temporary] = f"{folder.parent}: {error.strerror}"
        return temporary


def sources_of(*sources: str) -> list[Path]:
    """Returns the files that decide about the machine code of entries in these source files."""
    return sorted(_with_imported(map(Path, sources)))


def why_not_cached(path: str | Path) -> str:
    """Returns the intended folder of machine code and why it cannot be used; empty for a path in the cache."""
    return next((reason for folder, reason in _not_cached.items() if Path(path).is_relative_to(folder)), "")


def _with_imported(sources: Iterable[Path]) -> set[Path]:
    """Returns the files and, transitively, the files of this package that they import.

    An import of a package includes all its files, because models and formats are discovered, not imported by name.
    """
    found: set[Path] = set()
    waiting = [*chain.from_iterable(map(_with_package, sources)), *_COMPILER.rglob("*.py")]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += _imported(path)
    return found


def _with_package(path: Path) -> Iterable[Path]:
    """Returns all files of the package that a file outside of this one belongs to; the file alone if it has none."""
    top = next((each for each in reversed(path.parents) if (each / "__init__.py").exists()), None)
    return [path] if top is None or _PACKAGE in path.parents else top.rglob("*.py")


@cache
def _imported(path: Path) -> list[Path]:
    """Returns the files of this package that the file imports directly."""
    found: list[Path] = []
    for module, member in _IMPORT.findall(path.read_text("utf-8")):
        target = _PACKAGE.joinpath(*(module or member).split("."))
        found += target.rglob("*.py") if target.is_dir() else [target.with_suffix(".py")]
    return [each for each in found if each.is_file()]


def _drop_stale(kernels: Path) -> None:
    """Removes all but the newest folders. Keeps folders that another process may be writing."""
    times = {}
    for path in kernels.iterdir():
        with suppress(FileNotFoundError):  # another process removes stale folders too
            times[path] = path.stat().st_mtime
    for path in sorted(times, key=times.__getitem__, reverse=True)[_FOLDERS_KEPT:]:
        if times[path] < time.time() - _SECONDS_KEPT:
            shutil.rmtree(path, ignore_errors=True)
