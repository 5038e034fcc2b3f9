"""The live blocks of a simulated process at one moment, and where and when the program allocated each of them."""

import numpy as np

from replay.jit.arrays import extend, record
from replay.jit.compiling import entry
from replay.simulation.clock import Slice
from replay.trace import NO_SITE
from replay.trace.block_ops import LAST_BLOCK_OP, allocates

LIVE_BLOCK = record(
    "address", "bytes", "requested_bytes", "allocated_ns", "block", "row", thread=np.uint32, site=np.uint32,
    domain=np.uint8, is_small=np.bool_,
)  # fmt: skip
"""A live block.

    bytes           allocated, with rounding and headers
    allocated_ns    time of the allocation since the first event; a realloc does not change it
    block, row      number of the block, and row of its allocation in the trace
    thread, site    of the allocation; NO_SITE if the trace has no call sites
    is_small        whether the small role owns the block, not libc
"""
ALLOCATION = record("allocated_ns", "row", thread=np.uint32, site=np.uint32)


@entry
def _note_allocations(
    op: np.ndarray,
    block: np.ndarray,
    time_ns: np.ndarray,
    thread: np.ndarray,
    site: np.ndarray,
    first_row: int,
    start: int,
    end: int,
    allocations: np.ndarray,
) -> None:
    """Writes the ALLOCATION of each block that the rows from `start` to `end` allocate. Changes `allocations` in place.

    `site` is empty if the trace has no call sites.
    """
    for at in range(start, end):
        if op[at] > LAST_BLOCK_OP or not allocates(op[at]):
            continue
        found = allocations[np.uint64(block[at])]
        found.allocated_ns, found.row = time_ns[at], first_row + at
        found.thread = thread[at]
        found.site = site[at] if site.shape[0] else NO_SITE


@entry
def _complete(
    live: np.ndarray, order: np.ndarray, allocations: np.ndarray, begin_ns: int, completed: np.ndarray
) -> None:
    """Writes rows of LIVE_BLOCK in this order, with their allocations, into `completed`."""
    for at in range(order.shape[0]):
        block, row = live[np.uint64(order[at])], completed[at]
        found = allocations[np.uint64(block.block)]
        row.address, row.bytes, row.requested_bytes = block.address, block.bytes, block.requested_bytes
        row.block, row.domain, row.is_small = block.block, block.domain, block.is_small
        row.allocated_ns, row.row = found.allocated_ns - begin_ns, found.row
        row.thread, row.site = found.thread, found.site


class Allocations:
    """Remembers the last allocation of each block number."""

    def __init__(self) -> None:
        self._found = np.zeros(1024, ALLOCATION)

    def feed(self, part: Slice) -> None:
        """Adds the rows of a slice."""
        events = part.events
        self._found = extend(self._found, (events.highest_block + 1) * 5 // 4)
        site = np.zeros(0, np.uint32) if events.site is None else events.site
        _note_allocations(
            events.op, events.block, events.time_ns, events.thread, site, part.first_row, part.start, part.end,
            self._found,
        )  # fmt: skip

    def complete(self, live: np.ndarray, begin_ns: int) -> np.ndarray:
        """Returns rows of LIVE_BLOCK by rising address, with the fields of their allocations."""
        order = np.argsort(np.ascontiguousarray(live["address"]), kind="stable")
        completed = np.empty_like(live)
        _complete(live, order, self._found, begin_ns, completed)
        return completed
