"""The upper bound: an allocator that never reuses memory.

    end     address of the next block; blocks follow each other in the order of allocation, at multiples of 16

A block that shrinks keeps its address. A block that grows is copied to the end.

Invariant (`check`): all blocks that were ever allocated are below `end`, which never decreases
"""

from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from replay.allocators import SpanKind, extend, give_record_back, record, span_rows, take_record
from replay.allocators.linux import brk, touch
from replay.jit.compiling import by_reference, cold, inlined, leaf
from replay.jit.cpu_intrinsics import prefetch
from replay.support.units import Size

ROLES = ("libc",)


class Config(BaseModel):
    """An allocator that never reuses memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_pad: Size = Field(128 << 10, le=64 << 20)


ALIGNMENT = 16
HEAP = record("end", "limit", "page", "top_pad", "used", "unused")
"""`limit` is the break, 0 before the first allocation; `page` is the start of the page that was written to last."""
BLOCK = record("address", "size_bytes", "next")


@by_reference
class State(NamedTuple):
    """One HEAP record; BLOCK records by place. Records of freed blocks are reused, linked by `next`; memory is not."""

    heap: np.ndarray
    blocks: np.ndarray


def new_state(config: Config) -> State:
    """Returns the state before the first allocation."""
    state = State(np.zeros(1, HEAP), np.zeros(1024, BLOCK))
    state.heap[0].top_pad, state.heap[0].unused = config.top_pad, -1
    return state


@inlined
def _place_at_end(state, stack, block, alignment, size):
    heap = state.heap[0]
    block.address = (heap.end + alignment - 1) & -alignment
    block.size_bytes = max(size + 15 & -16, 16)
    if block.address + block.size_bytes > heap.limit:
        _extend(stack, heap, block, alignment)
    heap.end = block.address + block.size_bytes


@cold
def _extend(stack, heap, block, alignment):
    """Moves the break so far that the block fits; places the first block there."""
    space, tally = stack.linux.space[0], stack.tally[0]
    if heap.limit == 0:
        block.address = (space.brk + alignment - 1) & -alignment
    if block.address + block.size_bytes > space.brk:
        end = (block.address + block.size_bytes + heap.top_pad + space.page_size - 1) & -space.page_size
        tally.heap_bytes += end - space.brk
        tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
        brk(stack, end)
    heap.limit = space.brk


@leaf
def malloc(state, stack, size):
    """Allocates at the end."""
    return memalign(state, stack, ALIGNMENT, size)


@leaf
def memalign(state, stack, alignment, size):
    """Allocates at the next multiple of `alignment`. Bytes before it stay unused."""
    place = take_record(stack, state.heap[0], state.blocks)
    _place_at_end(state, stack, state.blocks[place], max(alignment, ALIGNMENT), size)
    return place


@leaf
def free(state, stack, place):
    """Frees the record of a block. Its memory is never reused."""
    give_record_back(state.heap[0], state.blocks, place)


@leaf
def realloc(state, stack, place, size):
    """Keeps a block that fits into its bytes, else copies it to the end. The place does not change."""
    block = state.blocks[place]
    if size > block.size_bytes:
        _place_at_end(state, stack, block, ALIGNMENT, size)
    return place


@inlined
def fill(state, stack, place, size):
    """Touches the pages that the program writes to, unless it wrote to the only one last."""
    heap, begin = state.heap[0], state.blocks[place].address
    if size > 0 and (begin < heap.page or begin + size > heap.page + stack.linux.space[0].page_size):
        touch(stack, begin, begin + size)
        heap.page = (begin + size - 1) & -stack.linux.space[0].page_size


@inlined
def expect(state, place):
    """Prefetches the record of a block that will be freed."""
    prefetch(state.blocks, place)


@leaf
def block_size(state, stack, place):
    """Returns the bytes of a block: the request when it was last placed, rounded up to 16."""
    return state.blocks[place].size_bytes


@leaf
def address(state, stack, place):
    """Returns the address of a block."""
    return state.blocks[place].address


def grow(state: State) -> State:
    """Returns the state with room for twice the blocks."""
    return state._replace(blocks=extend(state.blocks, 2 * max(int(state.heap[0].used), 512)))


def spans(state: State, stack: NamedTuple) -> np.ndarray:
    """Returns one row of SPAN: the heap, freed blocks included."""
    heap, space = state.heap[0], stack.linux.space[0]  # type: ignore[attr-defined]
    blocks = _live_blocks(state)
    live_bytes = int(blocks["size_bytes"].sum())
    free_bytes = int(space.brk - heap.end) if heap.end else 0
    start, length = np.array([space.brk_base]), np.array([space.brk - space.brk_base])
    return span_rows(
        SpanKind.HEAP, start, length, start, live_blocks=len(blocks), live_bytes=live_bytes, free_bytes=free_bytes
    )


def _live_blocks(state: State) -> np.ndarray:
    """Returns the records in use: all used so far, without those in the list of unused ones."""
    unused, number = set(), int(state.heap[0].unused)
    while number >= 0:
        unused.add(number)
        number = int(state.blocks[number].next)
    return state.blocks[[each for each in range(int(state.heap[0].used)) if each not in unused]]


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError if an invariant of this file does not hold."""
    heap, space = state.heap[0], stack.linux.space[0]  # type: ignore[attr-defined]
    blocks = state.blocks[: heap.used]
    assert (blocks["address"] + blocks["size_bytes"] <= heap.end).all()
    assert heap.end <= space.brk
