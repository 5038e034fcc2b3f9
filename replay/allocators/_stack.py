"""What all layers of a run share: the stack, the log of system calls, time, and requests for room."""

from typing import NamedTuple

import numpy as np

from replay.jit.arrays import record
from replay.jit.compiling import by_reference, cold, inlined, leaf
from replay.jit.cpu_intrinsics import add_product

MARGIN = 16
"""Entries that an event may need at the most in any table of a model (arena table, two radix nodes, its block …)."""


ROOM, RESIDENT_PEAK, NO_MEMORY, LARGE = 1, 2, 4, 8
"""Bits of `attention`: a table is nearly full; resident memory reached a new peak; nothing can be mapped; the next
event requests more than the headroom."""

LOG = record("row", "kind", "address", "bytes")
"""What happened below: system calls (kind = index into SYSCALLS) and arena events."""
ARENA_MAPPED, ARENA_UNMAPPED = 16, 17

CLASS_VIEW = record("block_size", "pools_used", "pools_full", "blocks", "blocks_carved", "blocks_capacity")
"""A row of `classes` in the result of `observe`: a size class of the small role."""
ARENA_VIEW = record("address", "pools", "pools_free", "blocks", "block_bytes")
"""A row of `arenas` in the result of `observe`: a mapped arena, by address."""


@by_reference
class Stack(NamedTuple):
    """Everything that a run changes. Without a small role, `small` is the libc state and is not used."""

    tally: np.ndarray
    log: np.ndarray
    times_ns: np.ndarray
    """The time of each event of the batch at hand."""
    linux: NamedTuple
    libc: NamedTuple
    small: NamedTuple


@inlined
def now_ns(stack):
    """The time now, since the trace's first event."""
    tally = stack.tally[0]
    if tally.woken_ns >= 0:
        return tally.woken_ns
    return stack.times_ns[np.uint64(tally.at)] - tally.begin_ns


@inlined
def change_mapped(stack, change):
    """Counts bytes that are mapped, or unmapped if negative."""
    tally = stack.tally[0]
    tally.mapped_bytes += change
    if tally.mapped_bytes > tally.mapped_bytes_peak:
        tally.mapped_bytes_peak = tally.mapped_bytes
    tally.mapped_bytes_timed, tally.mapped_bytes_timed_high = add_product(
        tally.mapped_bytes_timed, tally.mapped_bytes_timed_high, change, now_ns(stack)
    )


@inlined
def change_resident(stack, change):
    """Counts bytes that became resident, or were released if negative."""
    tally = stack.tally[0]
    tally.resident_bytes += change
    tally.resident_bytes_timed, tally.resident_bytes_timed_high = add_product(
        tally.resident_bytes_timed, tally.resident_bytes_timed_high, change, now_ns(stack)
    )
    if tally.resident_bytes > tally.resident_bytes_peak:
        tally.resident_bytes_peak = tally.resident_bytes
        attend(stack, RESIDENT_PEAK)


@leaf
def wake_at(stack, time_ns):
    """Requests a call of `tick` at this time, or before the next event if the time has passed.

    The earliest request counts. It ends with the next call that it causes, and so do all later ones: in each `tick`,
    a model requests the next time that it still needs.
    """
    tally = stack.tally[0]
    tally.wake_ns = min(tally.wake_ns, time_ns)


@inlined
def of_libc(place):
    """Turns a place or an address of the libc role into one that says so, and back."""
    return ~place


@inlined
def is_of_libc(place):
    """Whether a place or an address says that the libc role owns the block."""
    return place < 0


@leaf
def attend(stack, why):
    """Has the simulator stop after the current event; while a turn begins, after its first one."""
    tally = stack.tally[0]
    tally.attention |= why
    tally.stop = 0


@leaf
def ask_for_room(stack):
    """Has the simulator grow the tables after the current event."""
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
    """Writes a row of LOG for the current event. A row behind the end of the table is counted, and reported later."""
    tally = stack.tally[0]
    if tally.rows_logged < stack.log.shape[0]:
        entry = stack.log[tally.rows_logged]
        entry.row = tally.first_row + tally.at
        entry.kind = kind
        entry.address = address
        entry.bytes = length
    tally.rows_logged += 1
    if tally.rows_logged + MARGIN > stack.log.shape[0]:
        ask_for_room(stack)
