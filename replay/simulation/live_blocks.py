"""The live blocks of a simulated process at one moment, and where and when the program allocated each of them."""

import numpy as np

from replay.jit.arrays import record, with_room
from replay.jit.compiling import entry
from replay.simulation.clock import Slice
from replay.simulation.loop import ROW_BITS, ROW_MASK, ROWS_A_DOMAIN
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
LOCATED = record("address", "bytes", "block", is_small=np.bool_)
"""A live block, as the models have it."""
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
    located: np.ndarray,
    order: np.ndarray,
    blocks: np.ndarray,
    allocations: np.ndarray,
    begin_ns: int,
    completed: np.ndarray,
) -> None:
    """Writes a row of LIVE_BLOCK for each block, in this order. `blocks`: the simulator's, by number."""
    for at in range(order.shape[0]):
        block, row = located[np.uint64(order[at])], completed[at]
        found, size_and_row = allocations[np.uint64(block.block)], blocks[np.uint64(block.block)].size_and_row
        row.address, row.bytes, row.block, row.is_small = block.address, block.bytes, block.block, block.is_small
        row.requested_bytes, row.domain = size_and_row >> ROW_BITS, (size_and_row & ROW_MASK) // ROWS_A_DOMAIN
        row.allocated_ns, row.row = found.allocated_ns - begin_ns, found.row
        row.thread, row.site = found.thread, found.site


class Allocations:
    """Remembers the last allocation of each block number."""

    def __init__(self) -> None:
        self._found = np.zeros(1024, ALLOCATION)

    def feed(self, part: Slice) -> None:
        """Adds the rows of a slice."""
        events = part.events
        self._found = with_room(self._found, events.highest_block + 1)
        site = np.zeros(0, np.uint32) if events.site is None else events.site
        _note_allocations(
            events.op, events.block, events.time_ns, events.thread, site, part.first_row, part.start, part.end,
            self._found,
        )  # fmt: skip

    def complete(self, located: np.ndarray, blocks: np.ndarray, begin_ns: int) -> np.ndarray:
        """Returns rows of LIVE_BLOCK by rising address. `blocks`: the simulator's, by number."""
        order = np.argsort(np.ascontiguousarray(located["address"]))
        completed = np.empty(len(order), LIVE_BLOCK)
        _complete(located, order, blocks, self._found, begin_ns, completed)
        return completed
