"""The lower bound: an allocator that holds exactly the requested bytes, in whole pages.

    live    the requested bytes that are not freed

Blocks have no header and are not rounded up. The heap is compacted after each free, so it is the live bytes, rounded up
to whole pages. Since blocks would move, addresses have no meaning: each block gets one above those of all earlier
blocks, below the heap, where no memory is mapped.

Invariant (`check`): heap_bytes == live bytes, rounded up to pages
"""

from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from replay.allocators import SpanKind, extend, give_record_back, record, span_rows, take_record
from replay.allocators.linux import brk, touch
from replay.jit.compiling import by_reference, cold, inlined, leaf
from replay.jit.cpu_intrinsics import prefetch

ROLES = ("libc",)
ROUNDS_SIZES = False


class Config(BaseModel):
    """The least memory that can hold the live bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


HEAP = record("live_bytes", "bytes", "end", "used", "unused")
"""`bytes` are the live bytes, rounded up to pages; `end` is the address of the next block."""
BLOCK = record("address", "size_bytes", "next")
FIRST_ADDRESS = 1 << 16


@by_reference
class State(NamedTuple):
    """One HEAP record; BLOCK records by place, where `next` links the unused ones."""

    heap: np.ndarray
    blocks: np.ndarray


def new_state(config: Config) -> State:
    """Returns the state without live blocks."""
    state = State(np.zeros(1, HEAP), np.zeros(1024, BLOCK))
    state.heap[0].unused = -1
    state.heap[0].end = FIRST_ADDRESS
    return state


@inlined
def _fit(state, stack):
    """Moves the break if the live bytes need more pages or fewer."""
    heap = state.heap[0]
    if heap.live_bytes > heap.bytes or heap.live_bytes <= heap.bytes - stack.linux.space[0].page_size:
        _move_break(stack, heap)


@cold
def _move_break(stack, heap):
    """Sets the break to the end of the last page that the live bytes need."""
    space, tally = stack.linux.space[0], stack.tally[0]
    old_end = space.brk
    heap.bytes = (heap.live_bytes + space.page_size - 1) & -space.page_size
    end = space.brk_base + heap.bytes
    brk(stack, end)
    tally.heap_bytes += end - old_end
    tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
    if end > old_end:
        touch(stack, old_end, end)


@leaf
def malloc(state, stack, size):
    """Allocates exactly `size` bytes."""
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
    """Allocates at a multiple of `alignment`. The gap before it needs no memory."""
    heap = state.heap[0]
    heap.end = (heap.end + alignment - 1) & -alignment
    return malloc(state, stack, size)


@leaf
def free(state, stack, place):
    """Frees a block and shrinks the heap."""
    heap, block = state.heap[0], state.blocks[place]
    heap.live_bytes -= block.size_bytes
    give_record_back(heap, state.blocks, place)
    _fit(state, stack)


@leaf
def realloc(state, stack, place, size):
    """Changes the size of a block. It gets a new address, because it may have grown."""
    block = state.blocks[place]
    block.address = state.heap[0].end
    state.heap[0].end += (size + 15) & -16
    state.heap[0].live_bytes += size - block.size_bytes
    block.size_bytes = size
    _fit(state, stack)
    return place


@inlined
def fill(state, stack, place, size):
    """Does nothing: the heap is touched when it grows, and addresses have no meaning."""


@inlined
def expect(state, place):
    """Prefetches the record of a block that will be freed."""
    prefetch(state.blocks, place)


@leaf
def block_size(state, stack, place):
    """Returns the requested bytes of a block."""
    return state.blocks[place].size_bytes


@leaf
def address(state, stack, place):
    """Returns the address of a block."""
    return state.blocks[place].address


def grow(state: State) -> State:
    """Returns the state with room for twice the blocks."""
    return state._replace(blocks=extend(state.blocks, 2 * max(int(state.heap[0].used), 512)))


def spans(state: State, stack: NamedTuple) -> np.ndarray:
    """Returns one row of SPAN: the heap. All of it is live, except the rest of the last page."""
    heap, space = state.heap[0], stack.linux.space[0]  # type: ignore[attr-defined]
    start, length = np.array([space.brk_base]), np.array([space.brk - space.brk_base])
    live_bytes = int(heap.live_bytes)
    return span_rows(SpanKind.HEAP, start, length, start, live_bytes=live_bytes, free_bytes=length - live_bytes)


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError if an invariant of this file does not hold."""
    tally, page = stack.tally[0], stack.linux.space[0].page_size  # type: ignore[attr-defined]
    assert tally.heap_bytes == -(-state.heap[0].live_bytes // page) * page
