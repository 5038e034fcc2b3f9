"""Turns plain Python functions over NumPy arrays into machine code, and keeps that code on disk safely.

`leaf` marks a function that other kernels call. `entry` marks one that Python calls: its machine code, with every
leaf linked into it, is kept on disk. numba's own cache looks at the file of the entry alone and would go on running
old code after an edit in a leaf; so the cache folder is named by a digest of every source file of this package and
of the models at play, and an edit anywhere opens a new folder.

With `NUMBA_DISABLE_JIT=1` both marks leave the function as it is.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba

_PACKAGE = Path(__file__).parent
_FOLDERS_KEPT = 4

Function = TypeVar("Function", bound=Callable[..., Any])


def cache_root() -> Path:
    """Where everything lives that can be made again: kernels, the harness of `verify`, fetched interpreters."""
    if chosen := os.environ.get("REPLAY_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "alloc-replay"


@cache
def cache_folder(extra: tuple[str, ...] = ()) -> Path:
    """Where machine code made from the present sources lives; `extra` names further source files."""
    digest = hashlib.sha256(f"numba {numba.__version__}".encode())
    for path in [*sorted(_PACKAGE.rglob("*.py")), *map(Path, sorted(extra))]:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    kernels = cache_root() / "kernels"
    folder = kernels / digest.hexdigest()[:20]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        stale = sorted(kernels.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)[_FOLDERS_KEPT:]
    except OSError:  # a read-only home: numba falls back to a folder of its own choice
        return folder
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def leaf(function: Function) -> Function:
    """A kernel for other kernels to call."""
    compiled: Function = numba.njit(nogil=True, _nrt=False)(function)
    return compiled


def entry(function: Function, extra: tuple[str, ...] = ()) -> Function:
    """A kernel for Python to call; `extra` names source files outside this package that it is linked with."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder(extra))
    try:
        compiled: Function = numba.njit(nogil=True, cache=True, _nrt=False)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


def is_cold(function: Callable[..., Any]) -> bool:
    """Whether calling `function` would have to compile it first (nothing of it is on disk yet)."""
    stats = getattr(function, "_cache", None)
    if stats is None:
        return False
    folder = Path(stats.cache_path)
    return not any(folder.glob(f"*{function.__name__}-*.nbc")) if folder.exists() else True
