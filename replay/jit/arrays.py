"""Arrays for kernels: structured types, room for more entries, and kernels that are called again with more room.

A kernel that runs out of room in a table returns the status FULL and where it stopped, before it changes anything for
the entry at which it stopped.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DONE, FULL = 0, 1
"""Statuses of kernels that are called by `call_with_room`; each may have others."""


def record(*fields: str, **kinds: type) -> np.dtype:
    """A structured type of int64 `fields`, or of the kinds said; its scalars have attributes, here and in numba."""
    taken = [name for name in (*fields, *kinds) if hasattr(np.record, name)]
    assert not taken, f"NumPy's own attributes hide {taken} in plain Python"
    columns = [(name, np.int64) for name in fields] + list(kinds.items())
    return np.dtype((np.record, np.dtype(columns, align=True)))


def extend(array: np.ndarray, length: int, used: int | None = None, fill: int = 0) -> np.ndarray:
    """A copy of `array` with room for `length` entries, `fill` behind the old ones; the array itself if it has that.

    Only the first `used` entries are copied, all if None: what was never touched stays untouched, and takes no memory.
    """
    if length <= array.shape[0]:
        return array
    longer = np.zeros((length, *array.shape[1:]), array.dtype)
    kept = array[:used].view(np.uint8)  # in one piece, as in `copied`
    longer.view(np.uint8)[: kept.shape[0]] = kept
    if fill:
        longer[array.shape[0] :] = fill
    return longer


def copied(records: np.ndarray) -> np.ndarray:
    """A copy of adjacent records in one piece: NumPy copies them field by field, which takes ten times as long."""
    return records.view(np.uint8).copy().view(records.dtype)


def concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One array of at least one array of records of the same type; NumPy would merge the types part by part."""
    return np.concatenate([part.view(np.uint8) for part in parts]).view(parts[0].dtype)


def with_room(array: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """The array itself if it has `length` entries, else a copy with room for twice as many, `fill` behind the old."""
    return array if length <= array.shape[0] else extend(array, 2 * int(length), fill=fill)


def call_with_room(kernel: Callable[..., tuple[Any, ...]], grow: Callable[..., None], *start: int) -> tuple[Any, ...]:
    """What `kernel(*start)` returns: a status and where it stopped. While that is FULL, `grow` is called with where it
    stopped, and the kernel from there again."""
    status, *at = kernel(*start)
    while status == FULL:
        grow(*at)
        status, *at = kernel(*at)
    return status, *at
