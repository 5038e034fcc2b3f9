"""The lower bound: an allocator that holds exactly the requested bytes, in whole pages.

    live    the bytes asked for and not freed

Blocks have no header and no rounding, and close up when one goes, so the heap is exactly the live bytes in whole
pages. Addresses mean little where blocks move: each block is given one behind all others that ever were, below the
heap, where no page is.

Invariant (`check`): heap_bytes == live bytes rounded up to pages
"""

from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from replay.allocators import SpanKind, extend, give_record_back, record, span_rows, take_record
from replay.allocators.linux import brk, touch
from replay.jit.compiling import by_reference, cold, leaf

ROLES = ("libc",)


class Config(BaseModel):
    """The least memory that can hold the live bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


HEAP = record("live_bytes", "end", "used", "unused")
BLOCK = record("address", "size_bytes", "next")
FIRST_ADDRESS = 1 << 16


@by_reference
class State(NamedTuple):
    """One HEAP record; BLOCK by place, `next` chains the unused ones."""

    heap: np.ndarray
    blocks: np.ndarray


def new_state(config: Config) -> State:
    """Nothing is live."""
    state = State(np.zeros(1, HEAP), np.zeros(1024, BLOCK))
    state.heap[0].unused = -1
    state.heap[0].end = FIRST_ADDRESS
    return state


@cold
def _fit(state, stack):
    """The heap ends with the page that holds the last live byte."""
    space, tally = stack.linux.space[0], stack.tally[0]
    old_end = space.brk
    end = space.brk_base + ((state.heap[0].live_bytes + space.page_size - 1) & -space.page_size)
    if end != old_end:
        brk(stack, end)
        tally.heap_bytes += end - old_end
        tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
        if end > old_end:
            touch(stack, old_end, end)


@leaf
def malloc(state, stack, size):
    """Exactly `size` bytes more are live."""
    heap = state.heap[0]
    place = take_record(stack, heap, state.blocks)
    block = state.blocks[place]
    block.size_bytes, block.address = size, heap.end
    heap.end += (size + 15) & -16
    heap.live_bytes += size
    _fit(state, stack)
    return place


@leaf
def memalign(state, stack, alignment, size):
    """The same at a multiple of `alignment`; addresses take no memory."""
    heap = state.heap[0]
    heap.end = (heap.end + alignment - 1) & -alignment
    return malloc(state, stack, size)


@leaf
def free(state, stack, place):
    """Its bytes are gone at once."""
    heap, block = state.heap[0], state.blocks[place]
    heap.live_bytes -= block.size_bytes
    give_record_back(heap, state.blocks, place)
    _fit(state, stack)


@leaf
def realloc(state, stack, place, size):
    """Its bytes alone change in number; as it may have grown, it gets another address."""
    block = state.blocks[place]
    block.address = state.heap[0].end
    state.heap[0].end += (size + 15) & -16
    state.heap[0].live_bytes += size - block.size_bytes
    block.size_bytes = size
    _fit(state, stack)
    return place


@leaf
def block_size(state, stack, place):
    """What was asked for."""
    return state.blocks[place].size_bytes


@leaf
def address(state, stack, place):
    """Behind all blocks before it."""
    return state.blocks[place].address


def grow(state: State) -> State:
    """The same heap with room for twice the blocks."""
    return state._replace(blocks=extend(state.blocks, 2 * max(int(state.heap[0].used), 512)))


def spans(state: State, stack: NamedTuple) -> np.ndarray:
    """One row of SPAN: the heap, all of it live but the rest of the last page."""
    heap, space = state.heap[0], stack.linux.space[0]  # type: ignore[attr-defined]
    start, length = np.array([space.brk_base]), np.array([space.brk - space.brk_base])
    live_bytes = int(heap.live_bytes)
    return span_rows(SpanKind.HEAP, start, length, start, live_bytes=live_bytes, free_bytes=length - live_bytes)


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError where an invariant of this file does not hold."""
    tally, page = stack.tally[0], stack.linux.space[0].page_size  # type: ignore[attr-defined]
    assert tally.heap_bytes == -(-state.heap[0].live_bytes // page) * page
