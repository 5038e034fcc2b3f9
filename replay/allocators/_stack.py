"""What all layers of a run share: the counters, the log of what happened below, and requests for room."""

from typing import NamedTuple

import numpy as np

from replay.jit.arrays import extend as extend
from replay.jit.arrays import record as record
from replay.jit.compiling import by_reference, cold, inlined, leaf

MARGIN = 16
"""Entries that an event may need at the most in any table of a model (arena table, two radix nodes, its block …)."""


LEVELS = (
    "requested_bytes", "block_bytes", "pool_bytes", "arena_bytes", "heap_bytes", "mapped_bytes", "resident_bytes",
    "arenas",
)  # fmt: skip
"""What has a peak. `arenas` counts live ones."""

SYSCALLS = ("mmap", "munmap", "mremap", "brk", "madvise", "mprotect")

OWN = (
    "row", "thread", "rows_logged", "attention", "first_row", "at", "stop", "idle", "requested_slack", "block_slack",
)  # fmt: skip
"""Fields that the simulator keeps for itself: they count nothing."""

TALLY = record(
    *LEVELS,
    *(f"{name}_peak" for name in LEVELS),
    "small_requested_bytes", "small_block_bytes", "libc_requested_bytes", "libc_block_bytes",
    "arenas_mapped", "arenas_unmapped",
    "pools_used", "pools_full", "pools_free", "pools_made",
    *SYSCALLS, *(f"{name}_bytes" for name in SYSCALLS),
    "page_faults", "huge_pages",
    "mallocs", "callocs", "reallocs", "frees",
    *OWN,
)  # fmt: skip
"""All counters of a run, one record: every layer writes its own fields, samples are copies of it.

    requested_bytes   live, as the program asked for them        small_*, libc_*: the part in blocks of each role
    block_bytes       live, as handed out
    pool_bytes        in pools that hold blocks
    arena_bytes       in mapped arenas
    heap_bytes        mapped for libc: brk and its own mmaps
    mapped_bytes      mapped in all; resident_bytes: touched and not given back
    page_faults       first touches that the kernel served; huge_pages: those served with a huge page
    row               the event in hand when counters were last settled; thread: whose it is, -1 before the first
    attention         bits: why the simulator must stop after this event
    first_row, at     the event being played is `at` in a batch before which there were so many rows
    stop              where in the batch the simulator looks at `attention` at the latest
    idle              rows that moved no block
    *_slack           bytes until the level is as high as ever: the level is its peak less these
"""

ROOM, RESIDENT_PEAK, NO_MEMORY, LARGE = 1, 2, 4, 8
"""Bits of `attention`: a table is nearly full; resident memory stands higher than ever; the kernel cannot map; the next
event asks for more than there is headroom."""

LOG = record("row", "kind", "address", "bytes")
"""What happened below: system calls (kind = index into SYSCALLS) and arena events."""
ARENA_MAPPED, ARENA_UNMAPPED = 16, 17

CLASS_VIEW = record("block_size", "pools_used", "pools_full", "blocks", "blocks_carved", "blocks_capacity")
"""What `observe` may tell as `classes`: a row a size class of the small role."""
ARENA_VIEW = record("address", "pools", "pools_free", "blocks", "block_bytes")
"""What `observe` may tell as `arenas`: a row a mapped arena, by address."""


@by_reference
class Stack(NamedTuple):
    """Everything that a run changes. Where no small role exists, `small` is the libc state and is never asked."""

    tally: np.ndarray
    log: np.ndarray
    linux: NamedTuple
    libc: NamedTuple
    small: NamedTuple


@leaf
def attend(stack, why):
    """Has the simulator stop after the event in hand; while a turn begins, after its first one."""
    tally = stack.tally[0]
    tally.attention |= why
    tally.stop = 0


@leaf
def ask_for_room(stack):
    """So that the engine can grow the tables, after the event in hand."""
    attend(stack, ROOM)


@inlined
def take_record(stack, scalars, records):
    """The number of a record that is not in use.

    `scalars` tells in `used` how many ever were, and in `unused` the one that was given back last, or -1; `next` of a
    record leads on.
    """
    number = scalars.unused
    if number >= 0:
        scalars.unused = records[number].next
    else:
        number = scalars.used
        scalars.used += 1
        if scalars.used + MARGIN > records.shape[0]:
            ask_for_room(stack)
    return number


@inlined
def give_record_back(scalars, records, number):
    """The record is not in use any more."""
    records[number].next = scalars.unused
    scalars.unused = number


@cold
def log(stack, kind, address, length):
    """Writes down what happened to the address space in the event being played."""
    tally = stack.tally[0]
    entry = stack.log[tally.rows_logged]
    entry.row = tally.first_row + tally.at
    entry.kind = kind
    entry.address = address
    entry.bytes = length
    tally.rows_logged += 1
    if tally.rows_logged + MARGIN > stack.log.shape[0]:
        ask_for_room(stack)
