"""Where machine code is kept on disk, so that old code is never run after an edit.

numba's own cache looks at the file of an entry alone and would go on running old code after an edit in a leaf. Here the
folder of an entry is named by a digest of its source file, of all that the file imports and of the models in use; an
edit of any of them opens a new folder.
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
from pathlib import Path

from replay.support.digests import digest_files

_PACKAGE = Path(__file__).parents[1]
_COMPILER = Path(__file__).parent
_IMPORT = re.compile(rf"^ *(?:from|import) ({_PACKAGE.name}\.[\w.]+)", re.MULTILINE)
_FOLDERS_KEPT = 32
_SECONDS_KEPT = 24 * 3600
_not_kept: dict[Path, str] = {}
"""Temporary folders for machine code: where it should be kept, and why it cannot be."""


def cache_root() -> Path:
    """Where everything lives that can be made again: kernels, the harness of `verify`, fetched interpreters."""
    if chosen := os.environ.get("REPLAY_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "alloc-replay"


@cache
def cache_folder(sources: tuple[str, ...]) -> Path:
    """Returns the folder for machine code of these source files and of all that they import of this package."""
    files = sorted(_with_imported(map(Path, sources)))
    digest = digest_files(((path.name, path) for path in files), of_more=f"numba {version('numba')}")
    folder = cache_root() / "kernels" / digest[:20]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        _drop_stale(folder.parent)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        # Nothing can be kept. Left to itself numba would write beside the sources, blind to edits in other files.
        passing = Path(tempfile.mkdtemp(prefix="replay-kernels-"))
        atexit.register(shutil.rmtree, passing, ignore_errors=True)
        _not_kept[passing] = f"{folder.parent}: {error.strerror}"
        return passing


def why_not_kept(path: str | Path) -> str:
    """Says where machine code should be kept and why it cannot be; empty for a file in the cache."""
    return next((reason for folder, reason in _not_kept.items() if Path(path).is_relative_to(folder)), "")


def _with_imported(sources: Iterable[Path]) -> set[Path]:
    """Returns the files and, transitively, this package's files that they import; importing a package means all of it.

    All of it, because models and formats are discovered in their packages, not imported by name.
    """
    found: set[Path] = set()
    waiting = [*sources, *_COMPILER.rglob("*.py")]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += _imported(path)
    return found


@cache
def _imported(path: Path) -> list[Path]:
    """Returns this package's files that the file imports, without those that they import."""
    found: list[Path] = []
    for name in _IMPORT.findall(path.read_text("utf-8")):
        target = _PACKAGE.joinpath(*name.split(".")[1:])
        found += target.rglob("*.py") if target.is_dir() else [target.with_suffix(".py")]
    return [each for each in found if each.is_file()]


def _drop_stale(kernels: Path) -> None:
    """Removes all but the newest folders, and none that another process may still be filling."""
    times = {}
    for path in kernels.iterdir():
        with suppress(FileNotFoundError):  # another process removes stale folders too
            times[path] = path.stat().st_mtime
    for path in sorted(times, key=times.__getitem__, reverse=True)[_FOLDERS_KEPT:]:
        if times[path] < time.time() - _SECONDS_KEPT:
            shutil.rmtree(path, ignore_errors=True)
