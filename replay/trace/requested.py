"""Requested bytes over time: what their mean is computed from. It depends on the trace alone, whatever simulates it."""

import numpy as np

from replay.jit.arrays import extend, record
from replay.jit.compiling import entry
from replay.jit.cpu_intrinsics import add_product
from replay.trace.block_ops import LAST_BLOCK_OP
from replay.trace.events import Events

_SUM = record("low", "high")
"""A 128-bit integer in two words."""


@entry
def _add_changes(
    time_ns: np.ndarray,
    op: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    owner: np.ndarray,
    begin_ns: int,
    sizes: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Adds to the sum of each row's owner the change of requested bytes, multiplied by its time since `begin_ns`.

    All rows are owner 0's if `owner` is empty. `sizes` holds the bytes of each block, 0 where none is live.
    """
    low, high = sums[0].low, sums[0].high
    for row in range(op.shape[0]):
        if op[row] > LAST_BLOCK_OP:
            continue
        number = np.uint64(block[row])  # an unsigned index is not looked at for being negative
        change = size[row] - sizes[number]
        sizes[number] = size[row]
        if owner.shape[0] == 0:
            low, high = add_product(low, high, change, time_ns[row] - begin_ns)
        else:
            each = sums[owner[row]]
            each.low, each.high = add_product(each.low, each.high, change, time_ns[row] - begin_ns)
    if owner.shape[0] == 0:
        sums[0].low, sums[0].high = low, high


class RequestedChanges:
    """The sum of all changes of requested bytes, each multiplied by its time since `begin_ns`; for each process one.

    The integral of requested bytes from `begin_ns` to t is t times the bytes that are live then, less this sum.
    """

    def __init__(self, begin_ns: int, processes: int = 1) -> None:
        self._begin_ns = begin_ns
        self._sizes = np.zeros(1024, np.int64)
        self._sums = np.zeros(processes, _SUM)

    def feed(self, events: Events, start: int, end: int, owner: np.ndarray | None = None) -> None:
        """Adds some rows, which follow those before; `owner` is the number of each row's process."""
        self._sizes = extend(self._sizes, (events.highest_block + 1) * 5 // 4)
        rows = slice(start, end)
        _add_changes(
            events.time_ns[rows], events.op[rows], events.block[rows], events.size[rows],
            np.zeros(0, np.int64) if owner is None else owner[rows], self._begin_ns, self._sizes, self._sums,
        )  # fmt: skip

    def totals(self) -> list[int]:
        """The sums, by process."""
        return [(int(each.high) << 64) + (int(each.low) & (1 << 64) - 1) for each in self._sums]
