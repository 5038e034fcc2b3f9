"""Integrals of requested bytes over time, for their mean. They depend on the trace alone, not on a model."""

import numpy as np

from replay.jit.arrays import extend, record
from replay.jit.compiling import entry
from replay.jit.cpu_intrinsics import add_product
from replay.trace.block_ops import LAST_BLOCK_OP
from replay.trace.events import Events

SUM = record("low", "high")
"""A 128-bit integer in two words."""


@entry
def _add_changes(
    time_ns: np.ndarray,
    op: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    owner: np.ndarray,
    begin_ns: int,
    row: int,
    stops: np.ndarray,
    sizes: np.ndarray,
    total: np.ndarray,
    sums: np.ndarray,
    totals: np.ndarray,
) -> None:
    """Adds each row's change of requested bytes, multiplied by its time since `begin_ns`, to `total`.

    Reads the rows from `row` to the last of the ascending `stops`, and writes the total before each stop into `totals`.
    `owner` is the process of each row, or empty; if it is not, the change is also added to the process's entry of
    `sums`. `sizes` has the requested bytes of each block, 0 for blocks that are not live. Changes `sizes`, `total`,
    `sums` and `totals` in place.
    """
    low, high = total[0].low, total[0].high
    for index in range(stops.shape[0]):
        for at in range(row, stops[index]):
            if op[at] > LAST_BLOCK_OP:
                continue
            number = np.uint64(block[at])  # numba tests only signed indexes for being negative
            change = size[at] - sizes[number]
            sizes[number] = size[at]
            low, high = add_product(low, high, change, time_ns[at] - begin_ns)
            if owner.shape[0] > 0:
                each = sums[owner[at]]
                each.low, each.high = add_product(each.low, each.high, change, time_ns[at] - begin_ns)
        row = max(row, stops[index])
        totals[index].low, totals[index].high = low, high
    total[0].low, total[0].high = low, high


class RequestedChanges:
    """Sums the changes of requested bytes, each multiplied by its time since `begin_ns`, in total and by process.

    With `begin_ns` as time 0, the integral of requested bytes until t is t times the live bytes at t, minus this sum.
    """

    def __init__(self, begin_ns: int, processes: int = 0) -> None:
        self._begin_ns = begin_ns
        self._sizes = np.zeros(1024, np.int64)
        self.total = np.zeros(1, SUM)
        """The sum over all rows so far."""
        self.sums = np.zeros(processes, SUM)
        """The sums by process; empty for a trace of one process."""

    def feed(self, events: Events, start: int, stops: np.ndarray, owner: np.ndarray | None = None) -> np.ndarray:
        """Adds the rows from `start` to the last of the ascending `stops`; returns the total before each stop.

        `owner` is the number of each row's process, or None for a trace of one process.
        """
        self._sizes = extend(self._sizes, (events.highest_block + 1) * 5 // 4)
        totals = np.zeros(len(stops), SUM)
        _add_changes(
            events.time_ns, events.op, events.block, events.size, np.zeros(0, np.int64) if owner is None else owner,
            self._begin_ns, start, stops, self._sizes, self.total, self.sums, totals,
        )  # fmt: skip
        return totals
