"""A simple C library `malloc`: right about what is mapped by itself, a fair estimate about the rest.

It follows glibc's chunk sizes, its growth of the heap and its treatment of large blocks (`malloc/malloc.c`, 2.36), but
not its bins: freed chunks wait in exact lists and are never merged with each other. Addresses of its blocks are
therefore *not* those of glibc; how many bytes it maps comes close, a little high after sizes change for good.

    chunk     what a block takes: the size asked for, one word of header, rounded up to 16 bytes, at least 4 words;
              above 1,024 bytes rounded up further, to an eighth of the power of two below
    bin       the free chunks of one size, last freed first
    top       the rest of the heap above the last chunk; a freed chunk right below it falls back into it
    mapped    a chunk of at least `mmap_threshold` that fits neither bin nor top has a mapping of its own (rounded up
              to pages); freeing one raises the threshold to its size (`mmap_threshold: dynamic`, up to 32 MiB) and
              the trim threshold to twice that. (glibc stops moving it once trim_threshold or top_pad is set as well;
              here only a number for `mmap_threshold` does that.)

Invariants (`check`):
    chunks of the heap (live, binned) and top tile [brk_base, brk) without gap
    heap_bytes == (brk - brk_base) + mapped chunks
"""

from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from replay.allocators.kernel import brk, mmap, munmap, touch
from replay.allocators.stack import MARGIN, ask_for_room, extend, record
from replay.by_reference import by_reference
from replay.compiled import cold, leaf
from replay.units import Size

MMAP_THRESHOLD = 128 << 10
"""glibc's DEFAULT_MMAP_THRESHOLD_MIN: where the dynamic threshold starts."""
MMAP_THRESHOLD_MAX = {8: 32 << 20, 4: 512 << 10}
"""glibc's DEFAULT_MMAP_THRESHOLD_MAX by word size: where it stops."""

EXACT_BINS = 65
"""Bins of 0, 16, … 1,024 bytes; then eight to each power of two."""
BINS = EXACT_BINS + 8 * 38

ROLES = ("libc",)


class Config(BaseModel):
    """A simple malloc with glibc's sizes, heap growth and mmap threshold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Literal["simple"] = "simple"
    word_size: Literal[4, 8] = 8
    mmap_threshold: Size | Literal["dynamic"] = "dynamic"
    trim_threshold: Size = 128 << 10
    top_pad: Size = Field(128 << 10, le=64 << 20)


HEAP = record(
    "word_size", "mmap_threshold", "threshold_max", "trim_threshold", "top_pad", "dynamic",
    "top", "started", "chunks", "unused",
)  # fmt: skip
"""Settings, and: address of top; whether the heap exists; chunk records ever used; head of the list of unused ones."""

CHUNK = record("address", "size_bytes", "next", "mapped")
"""`next` chains a bin, or the unused records; `mapped`: bytes of its own mapping, 0 in the heap."""


@by_reference
class State(NamedTuple):
    """One HEAP record; CHUNK by place; the head of each bin, -1 when empty."""

    heap: np.ndarray
    chunks: np.ndarray
    bins: np.ndarray


def new_state(config: Config) -> State:
    """A process that has not called malloc yet."""
    state = State(np.zeros(1, HEAP), np.zeros(1024, CHUNK), np.full(BINS, -1, np.int64))
    heap = state.heap[0]
    heap.word_size = config.word_size
    heap.dynamic = config.mmap_threshold == "dynamic"
    heap.mmap_threshold = MMAP_THRESHOLD if config.mmap_threshold == "dynamic" else config.mmap_threshold
    heap.threshold_max = MMAP_THRESHOLD_MAX[config.word_size]
    heap.trim_threshold, heap.top_pad = config.trim_threshold, config.top_pad
    heap.unused = -1
    return state


@leaf
def _chunk_size(heap, size):
    """glibc's `request2size`."""
    return max((size + heap.word_size + 15) & -16, (4 * heap.word_size + 15) & -16)


@leaf
def _bin(size):
    """The bin for chunks of at least `size` bytes, and the size of all of its chunks."""
    if size <= 16 * (EXACT_BINS - 1):
        return size >> 4, size
    step_shift = 7  # an eighth of 1,024
    index = EXACT_BINS
    while size > 16 << step_shift:
        step_shift += 1
        index += 8
    rounded = (size + (1 << step_shift) - 1) & -(1 << step_shift)
    return index + (rounded >> step_shift) - 9, rounded


@leaf
def _new_record(state, stack):
    heap = state.heap[0]
    place = heap.unused
    if place >= 0:
        heap.unused = state.chunks[place].next
        return place
    place = heap.chunks
    heap.chunks += 1
    if heap.chunks + MARGIN > state.chunks.shape[0]:
        ask_for_room(stack)
    return place


@leaf
def _drop_record(state, place):
    heap = state.heap[0]
    state.chunks[place].next = heap.unused
    heap.unused = place


@cold
def _move_brk(state, stack, end):
    tally = stack.tally[0]
    tally.heap_bytes += end - stack.kernel.space[0].brk
    brk(stack, end)
    tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)


@cold
def _map_chunk(state, stack, size):
    """A chunk in a mapping of its own, with two words of header."""
    heap, tally = state.heap[0], stack.tally[0]
    page = stack.kernel.space[0].page_size
    length = (size + heap.word_size + page - 1) & -page
    start = mmap(stack, length)
    tally.heap_bytes += length
    tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
    touch(stack, start, start + 2 * heap.word_size)
    place = _new_record(state, stack)
    chunk = state.chunks[place]
    chunk.address, chunk.size_bytes, chunk.mapped = start, length, length
    return place


@cold
def malloc(state, stack, size):
    """From the bin, from top, from a mapping, or from a heap that grows: whichever comes first."""
    heap = state.heap[0]
    wanted = _chunk_size(heap, size)
    index, rounded = _bin(wanted)
    place = state.bins[index]
    if place >= 0:
        state.bins[index] = state.chunks[place].next
        return place
    space = stack.kernel.space[0]
    least = 4 * heap.word_size  # top never vanishes
    top_size = space.brk - heap.top if heap.started else 0
    if top_size < rounded + least:
        if wanted >= heap.mmap_threshold:
            return _map_chunk(state, stack, wanted)
        if not heap.started:
            heap.started = 1
            heap.top = space.brk
        grown = space.brk + rounded + heap.top_pad + least - top_size
        _move_brk(state, stack, (grown + space.page_size - 1) & -space.page_size)
    place = _new_record(state, stack)
    chunk = state.chunks[place]
    chunk.address, chunk.size_bytes, chunk.mapped = heap.top, rounded, 0
    heap.top += rounded
    header = 2 * heap.word_size
    touch(stack, chunk.address, chunk.address + header)
    touch(stack, heap.top, heap.top + header)  # the new top's
    return place


@cold
def free(state, stack, place):
    """Back to its bin, to top, or to the kernel."""
    heap, chunk = state.heap[0], state.chunks[place]
    if chunk.mapped:
        if heap.dynamic and heap.mmap_threshold < chunk.mapped <= heap.threshold_max:
            heap.mmap_threshold = chunk.mapped
            heap.trim_threshold = 2 * chunk.mapped
        stack.tally[0].heap_bytes -= chunk.mapped
        munmap(stack, chunk.address, chunk.mapped)
        _drop_record(state, place)
    elif chunk.address + chunk.size_bytes == heap.top:
        heap.top = chunk.address
        _drop_record(state, place)
        space = stack.kernel.space[0]
        if space.brk - heap.top >= heap.trim_threshold:
            keep = heap.top + heap.top_pad + 4 * heap.word_size
            end = (keep + space.page_size - 1) & -space.page_size
            if end < space.brk:
                _move_brk(state, stack, end)
    else:
        index, _ = _bin(chunk.size_bytes)
        chunk.next = state.bins[index]
        state.bins[index] = place


@cold
def realloc(state, stack, place, size):
    """In place while the chunk holds it and is not twice too large; else a new block, a copy, the old one freed."""
    chunk, wanted = state.chunks[place], _chunk_size(state.heap[0], size)
    if chunk.mapped:
        page = stack.kernel.space[0].page_size
        if ((wanted + state.heap[0].word_size + page - 1) & -page) == chunk.mapped:
            return place
    elif wanted <= chunk.size_bytes <= 2 * wanted:
        return place
    new_place = malloc(state, stack, size)
    free(state, stack, place)
    return new_place


@leaf
def block_size(state, stack, place):
    """Bytes of the chunk."""
    return state.chunks[place].size_bytes


@leaf
def address(state, stack, place):
    """Two words above the chunk."""
    return state.chunks[place].address + 2 * state.heap[0].word_size


def grow(state: State) -> State:
    """The same heap with room for twice the chunks."""
    return state._replace(chunks=extend(state.chunks, 2 * max(int(state.heap[0].chunks), 512)))


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError where an invariant of this file does not hold."""
    heap, tally = state.heap[0], stack.tally[0]  # type: ignore[attr-defined]
    space = stack.kernel.space[0]  # type: ignore[attr-defined]
    unused = set()
    place = heap.unused
    while place >= 0:
        unused.add(int(place))
        place = state.chunks[place].next
    chunks = [state.chunks[place] for place in range(heap.chunks) if place not in unused]
    mapped_bytes = sum(int(chunk.mapped) for chunk in chunks)
    assert tally.heap_bytes == mapped_bytes + (space.brk - space.brk_base)
    end = space.brk_base
    for chunk in sorted((chunk for chunk in chunks if not chunk.mapped), key=lambda chunk: chunk.address):
        assert chunk.address == end, "the heap has a gap, or two chunks overlap"
        end += chunk.size_bytes
    assert not heap.started or end == heap.top
    for index, head in enumerate(state.bins):
        while head >= 0:
            assert _bin(state.chunks[head].size_bytes)[0] == index
            head = state.chunks[head].next
