"""The live blocks of a simulated process at one moment, and where and when the program allocated each of them."""

import numpy as np

from replay.jit.arrays import at_places, extend, record
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
        """Fills in the allocation of rows of LIVE_BLOCK, in place; returns them by rising address."""
        allocations = at_places(self._found, live["block"])
        for name in ALLOCATION.names or ():
            live[name] = allocations[name]
        live["allocated_ns"] -= begin_ns
        return at_places(live, np.argsort(live["address"]))
