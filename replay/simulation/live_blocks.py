"""The live blocks of a simulated process at one moment, and where and when the program allocated each of them."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from replay.jit.arrays import extend, record
from replay.jit.compiling import entry
from replay.simulation.clock import Slice
from replay.trace import NO_SITE, NO_TYPE, Op
from replay.trace.block_ops import FREE, LAST_BLOCK_OP, allocates

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
_LIVE_OBJECT, _NO_TYPE = int(Op.LIVE_OBJECT), NO_TYPE
_GROWTH = 4
"""Tables by block number grow by this factor: untouched memory costs nothing, and copies do."""


class LiveBlocks(NamedTuple):
    """Live blocks by rising number: a column for each field of LIVE_BLOCK; without rows if it was not requested."""

    address: np.ndarray
    bytes: np.ndarray
    requested_bytes: np.ndarray
    allocated_ns: np.ndarray
    block: np.ndarray
    row: np.ndarray
    thread: np.ndarray
    site: np.ndarray
    domain: np.ndarray
    is_small: np.ndarray

    @classmethod
    def of_length(cls, blocks: int, fields: Collection[str]) -> "LiveBlocks":
        """Returns columns that are to be filled. No fields: all of them."""
        wanted = fields or cls._fields
        return cls(*(np.empty(blocks if name in wanted else 0, LIVE_BLOCK[name]) for name in cls._fields))

    def records(self) -> np.ndarray:
        """Returns rows of LIVE_BLOCK by rising address."""
        order = np.argsort(self.address)
        rows = np.empty(len(order), LIVE_BLOCK)
        for name, column in self._asdict().items():
            rows[name] = column[order]
        return rows


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
def _note_types(
    op: np.ndarray, block: np.ndarray, type_: np.ndarray, start: int, end: int, places: np.ndarray, types: np.ndarray
) -> None:
    """Writes the types of awaited blocks that the rows from `start` to `end` free, or that live at the end.

    `places`: for each number of a block, 1 more than its index in `types`; 0 if it is not awaited. Changes both.
    """
    for at in range(start, end):
        number = np.uint64(block[at])
        if (op[at] == FREE or op[at] == _LIVE_OBJECT) and number < places.shape[0] and places[number]:
            types[places[number] - 1] = type_[at]
            places[number] = 0


class Allocations:
    """Remembers the last allocation of each block number."""

    def __init__(self) -> None:
        self.table = np.zeros(1024, ALLOCATION)
        """By block number."""
        self._places, self._types = np.zeros(0, np.uint32), np.zeros(0, np.uint32)
        self.has_types = False
        """Whether the rows so far have types."""

    def feed(self, part: Slice) -> None:
        """Adds the rows of a slice."""
        events = part.events
        if events.highest_block >= len(self.table):
            self.table = extend(self.table, _GROWTH * (events.highest_block + 1))
        site = np.zeros(0, np.uint32) if events.site is None else events.site
        _note_allocations(
            events.op, events.block, events.time_ns, events.thread, site, part.first_row, part.start, part.end,
            self.table,
        )  # fmt: skip
        self.has_types |= events.type is not None
        if len(self._types) and events.type is not None:
            _note_types(events.op, events.block, events.type, part.start, part.end, self._places, self._types)

    def types(self, blocks: np.ndarray) -> np.ndarray:
        """Returns the types of live blocks with these numbers: NO_TYPE until rows are added that free them, or the end
        of the program is reached. Only the array that was returned last is filled in."""
        self._types = np.full(len(blocks), NO_TYPE, np.uint32)
        self._places = np.zeros(int(blocks.max(initial=0)) + 1, np.uint32)
        self._places[blocks] = np.arange(1, len(blocks) + 1, dtype=np.uint32)
        return self._types
