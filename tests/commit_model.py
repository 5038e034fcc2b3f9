"""A model for tests: blocks in slots of reserved addresses far below the heap, of which only live ones are committed.

What a free leaves depends on the slot: lazily freed memory, addresses that may not be touched any more (MADV_DONTNEED
and mprotect), or addresses that were mapped anew (MAP_FIXED).
"""

from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from replay.allocators import MARGIN, NO_MEMORY, Counter, CounterKind, SpanKind, ask_for_room, attend, extend, record
from replay.allocators._spans import span_rows
from replay.allocators.linux import (
    FIXED,
    NO_ACCESS,
    NOT_RESERVED,
    dontneed,
    free_lazily,
    mmap_aligned,
    mmap_at,
    munmap,
    protect,
    touch,
    unprotect,
)
from replay.jit.compiling import by_reference, leaf

COUNTERS = (Counter("lazy_bytes", CounterKind.LEVEL, "lazily freed and not used since", "bytes"),)
HINT = 2 << 40
SLOT_BYTES, SLOTS = 1 << 18, 1 << 14
HEAD = record("start", "unused", "used")
SLOT = record("address", "live", "committed", "mapping", "next")


class Config(BaseModel):
    """A model for tests."""


@by_reference
class State(NamedTuple):
    head: np.ndarray
    slots: np.ndarray


def new_state(config):
    state = State(np.zeros(1, HEAD), np.zeros(64, SLOT))
    state.head[0].unused = -1
    return state


@leaf
def _count_lazy(stack):
    tally, space = stack.tally[0], stack.linux.space[0]
    tally.commit_lazy_bytes = space.lazy_bytes
    tally.commit_lazy_bytes_peak = max(tally.commit_lazy_bytes_peak, space.lazy_bytes_peak)


@leaf
def _take_slot(state, stack):
    head = state.head[0]
    if head.start == 0:
        flags = NO_ACCESS | NOT_RESERVED
        head.start = mmap_aligned(stack, HINT + 4096, SLOTS * SLOT_BYTES, SLOT_BYTES, SLOT_BYTES, flags)
    place = head.unused
    if place >= 0:
        head.unused = state.slots[place].next
        return place
    place = np.int64(head.used)
    head.used += 1
    if head.used == SLOTS:
        attend(stack, NO_MEMORY)
    if head.used + MARGIN > state.slots.shape[0]:
        ask_for_room(stack)
    state.slots[place].address = head.start + place * SLOT_BYTES
    return place


@leaf
def malloc(state, stack, size):
    place = _take_slot(state, stack)
    slot, length = state.slots[place], (size + 4095) & -4096
    slot.live = max(size, 1)
    if length > SLOT_BYTES:
        slot.mapping = length
        slot.address = mmap_aligned(stack, 0, length, SLOT_BYTES, SLOT_BYTES - 4096, 0)
    else:
        protect(stack, slot.address, max(length, 4096))  # some of it may be committed already
        slot.committed = max(slot.committed, length, 4096)
    return place


@leaf
def free(state, stack, place):
    slot, head = state.slots[place], state.head[0]
    if slot.mapping:
        munmap(stack, slot.address, slot.mapping)
        slot.mapping, slot.address = 0, head.start + place * SLOT_BYTES
    elif place % 3 == 0:
        free_lazily(stack, slot.address, slot.committed)
    elif place % 3 == 1:
        dontneed(stack, slot.address, slot.committed)
        unprotect(stack, slot.address, SLOT_BYTES)
        slot.committed = 0
    else:
        mmap_at(stack, slot.address, slot.committed, FIXED | NO_ACCESS | NOT_RESERVED)
        slot.committed = 0
    slot.live = 0
    slot.next = head.unused
    head.unused = place
    _count_lazy(stack)


@leaf
def fill(state, stack, place, size):
    slot = state.slots[place]
    touch(stack, slot.address, slot.address + max(size, 1))
    _count_lazy(stack)


@leaf
def block_size(state, stack, place):
    return (state.slots[place].live + 4095) & -4096


@leaf
def address(state, stack, place):
    return state.slots[place].address


def grow(state):
    return state._replace(slots=extend(state.slots, 2 * state.slots.shape[0]))


def spans(state, stack):
    slots = state.slots[: state.head[0].used]
    mapped = slots[slots["mapping"] > 0]
    own = state.head[0].start + np.arange(len(slots)) * SLOT_BYTES
    is_used = (slots["live"] > 0) & (slots["mapping"] == 0)
    parts = (
        (SpanKind.MAPPING, mapped["address"], mapped["mapping"]),
        (SpanKind.MAPPING, own[is_used], slots["committed"][is_used]),
        (SpanKind.CACHED_MAPPING, own[~is_used], slots["committed"][~is_used]),
    )
    return np.concatenate([span_rows(kind, start, length, start) for kind, start, length in parts])
