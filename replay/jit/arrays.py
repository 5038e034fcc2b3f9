"""Arrays for kernels: structured types, larger copies, and calls of kernels that are repeated with larger tables.

A kernel that finds a table full returns the status FULL and its position, before it changes anything for the entry at
this position.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DONE, FULL = 0, 1
"""Statuses of kernels for `call_with_room`. A kernel can have other statuses too."""


def record(*fields: str, **kinds: type) -> np.dtype:
    """Returns a structured type of int64 `fields` and fields of other `kinds`. Its scalars have attributes for
    fields."""
    hidden = [name for name in (*fields, *kinds) if hasattr(np.record, name)]
    assert not hidden, f"NumPy's own attributes hide {hidden} in plain Python"
    columns = [(name, np.int64) for name in fields] + list(kinds.items())
    return np.dtype((np.record, np.dtype(columns, align=True)))


def extend(array: np.ndarray, length: int, used: int | None = None, fill: int = 0) -> np.ndarray:
    """Returns a copy of `array` with `length` entries, new ones set to `fill`; the array itself if it is long enough.

    Only the first `used` entries are copied (None: all). Untouched pages of the copy take no memory.
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


def copied_state(state: Any) -> Any:
    """A copy of a NamedTuple of arrays."""
    return type(state)(*(copied(part) if isinstance(part, np.ndarray) else part for part in state))


def at_places(records: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The records at these places, each copied in one piece, as in `copied`."""
    pieces = records.view(np.dtype((np.void, records.dtype.itemsize)))
    return pieces[places].view(records.dtype)


def concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One array of at least one array of records of the same type; NumPy would merge the types part by part."""
    return np.concatenate([part.view(np.uint8) for part in parts]).view(parts[0].dtype)


def with_room(array: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """Returns the array itself if it has `length` entries, else a copy with twice as many, new ones set to `fill`."""
    return array if length <= array.shape[0] else extend(array, 2 * int(length), fill=fill)


def call_with_room(kernel: Callable[..., tuple[Any, ...]], grow: Callable[..., None], *start: int) -> tuple[Any, ...]:
    """Returns the result of `kernel(*start)`: a status and the position. While the status is FULL, calls `grow` with
    the position, and the kernel again from there."""
    status, *at = kernel(*start)
    while status == FULL:
        grow(*at)
        status, *at = kernel(*at)
    return status, *at
