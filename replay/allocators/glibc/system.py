"""Memory from the kernel and back: the heap's end, chunks in mappings of their own, trimming.

    sysmalloc   a request that top cannot serve: a mapping of its own from `mmap_threshold` on, else a longer heap
    systrim     gives whole pages at the heap's end back, all but `top_pad`
    mapped      a chunk in a mapping of its own; freeing one raises the dynamic thresholds to its size

Everything below `heap.touched` counts as resident: the heap is written to without a gap, from its start to the header
of top, because programs fill what they ask for. Once malloc_trim has punched holes (`heap.holes`), writes are told to
the kernel one by one.
"""

import numpy as np

from replay.allocators.glibc.memory import (
    NBINS,
    UNIT,
    UNIT_SHIFT,
    UNSORTED,
    bin_index,
    new_chunk,
    set_used,
    size_of,
)
from replay.allocators.kernel import brk, dontneed, mmap, mremap, munmap, touch
from replay.allocators.stack import MARGIN, NO_MEMORY, ask_for_room, record
from replay.compiled import cold, inlined, leaf

MAPPED_PLACE = 1 << 40
"""Places from here on number records of MAPPED; those below are chunks of the heap."""
BIN_SHIFT = 32
"""Where trim_bins stopped: bin << BIN_SHIFT | chunk."""
HEAP_BYTES_MAX = 32 << 30
"""What sizes of 31 bits in units can tell; a heap that would grow further has no memory."""
IS_MMAPPED = 2
"""A flag in the real header that one comparison forgets to mask."""

MAPPED = record("address", "size_bytes", "next")
"""A mapping with one chunk in it; `next` chains the unused records."""


@inlined
def address_of(state, chunk):
    """Where a chunk of the heap starts."""
    return state.heap[0].origin + (np.int64(state.memory[np.uint64(chunk)].start) << UNIT_SHIFT)


@inlined
def top_bytes(state, stack):
    """Size of top; where headers have 8 bytes it is no whole number of units."""
    return stack.kernel.space[0].brk - address_of(state, state.heap[0].top)


@inlined
def raise_top(state, stack):
    """Top's header is written, and everything before it will be."""
    heap = state.heap[0]
    end = address_of(state, heap.top) + heap.header
    if end > heap.touched:
        _touch_heap(state, stack, end)


@leaf
def touch_header(state, stack):
    """Top's header is written, but not all before it."""
    heap = state.heap[0]
    start = address_of(state, heap.top)
    if start + heap.header > heap.touched:
        touch(stack, start, start + heap.header)


@cold
def _touch_heap(state, stack, end):
    heap = state.heap[0]
    touch(stack, heap.touched, end)
    page = stack.kernel.space[0].page_size
    heap.touched = (end + page - 1) & -page


@leaf
def _move_brk(state, stack, end):
    tally = stack.tally[0]
    tally.heap_bytes += end - stack.kernel.space[0].brk
    brk(stack, end)
    tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)


@cold
def extend_top(state, stack, wanted):
    """The rest of sysmalloc: the heap grows until top holds `wanted` units and a smallest chunk."""
    heap, memory, space = state.heap[0], state.memory, stack.kernel.space[0]
    old_size = size_of(memory, heap.top)
    size = ((wanted + heap.min_units - old_size) << UNIT_SHIFT) + heap.top_pad
    start = space.brk
    end = start + ((size + space.page_size - 1) & -space.page_size)
    if end - space.brk_base > HEAP_BYTES_MAX:
        stack.tally[0].attention |= NO_MEMORY
        return
    _move_brk(state, stack, end)
    if old_size == 0:
        # The first chunk's block must lie on a unit: where headers have 8 bytes, it starts 8 behind the break.
        misaligned = (start + heap.header) & (UNIT - 1)
        if misaligned:
            _move_brk(state, stack, end + space.page_size)
        heap.origin = heap.touched = start
        if misaligned:
            heap.origin += UNIT - misaligned
        heap.top = new_chunk(state, stack)
    set_used(memory, heap.top, top_bytes(state, stack) >> UNIT_SHIFT)


@cold
def systrim(state, stack, pad):
    """Whether anything went back."""
    heap, space = state.heap[0], stack.kernel.space[0]
    area = top_bytes(state, stack) - (heap.min_units << UNIT_SHIFT) - 1
    # glibc compares as unsigned: a top of the least size has an area of -1, and the heap grows by what was to be kept.
    if 0 <= area <= pad:
        return False
    extra = (area - pad) & -space.page_size
    if extra == 0:
        return False
    _move_brk(state, stack, space.brk - extra)
    heap.touched = min(heap.touched, space.brk)
    set_used(state.memory, heap.top, top_bytes(state, stack) >> UNIT_SHIFT)
    return True


@leaf
def _mapping_bytes(stack, heap, wanted):
    """Length of the mapping for a chunk of `wanted` units."""
    page = stack.kernel.space[0].page_size
    return ((wanted << UNIT_SHIFT) + heap.map_overhead + page - 1) & -page


@cold
def map_chunk(state, stack, wanted):
    """sysmalloc_mmap: a place of its own."""
    heap, tally = state.heap[0], stack.tally[0]
    length = _mapping_bytes(stack, heap, wanted)
    start = mmap(stack, length)
    tally.heap_bytes += length
    tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
    index = heap.unused
    if index >= 0:
        heap.unused = state.mapped[index].next
    else:
        index = heap.mapped
        heap.mapped += 1
        if heap.mapped + MARGIN > state.mapped.shape[0]:
            ask_for_room(stack)
    chunk = state.mapped[index]
    chunk.address, chunk.size_bytes = start, length
    heap.mmaps += 1
    touch(stack, start, start + heap.map_offset + heap.header)
    return MAPPED_PLACE | index


@inlined
def mapped_size(heap, mapped):
    """chunksize of a mapped chunk."""
    return mapped.size_bytes - heap.map_size_less


@cold
def free_mapped(state, stack, place):
    """munmap_chunk, and the dynamic thresholds before it."""
    heap, index = state.heap[0], place & (MAPPED_PLACE - 1)
    chunk = state.mapped[index]
    size = mapped_size(heap, chunk)
    if heap.dynamic and heap.mmap_threshold < size + IS_MMAPPED <= heap.threshold_max:
        heap.mmap_threshold = size
        heap.trim_threshold = 2 * size
    stack.tally[0].heap_bytes -= chunk.size_bytes
    munmap(stack, chunk.address, chunk.size_bytes)
    heap.mmaps -= 1
    chunk.next = heap.unused
    heap.unused = index


@cold
def realloc_mapped(state, stack, place, wanted):
    """mremap_chunk: the mapping shrinks, grows or moves; its place stays."""
    heap, tally, chunk = state.heap[0], stack.tally[0], state.mapped[place & (MAPPED_PLACE - 1)]
    page = stack.kernel.space[0].page_size
    length = ((wanted << UNIT_SHIFT) + heap.remap_overhead + page - 1) & -page
    if length != chunk.size_bytes:
        chunk.address = mremap(stack, chunk.address, chunk.size_bytes, length)
        tally.heap_bytes += length - chunk.size_bytes
        tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
        chunk.size_bytes = length


@cold
def trim_bins(state, stack, resume):
    """mtrim: whole pages inside free chunks go back, though not their addresses.

    Gives 0, or where to go on: each page given back is logged, and the log may be full.
    """
    heap, memory = state.heap[0], state.memory
    page = stack.kernel.space[0].page_size
    least = bin_index(np.int64(page >> UNIT_SHIFT), heap)
    fields = 6 * heap.word_size  # sizeof (struct malloc_chunk)
    for index in range(max(UNSORTED, resume >> BIN_SHIFT), NBINS):
        if index == UNSORTED or index >= least:
            chunk = resume & ((1 << BIN_SHIFT) - 1)
            resume = 0
            if chunk == 0:
                chunk = np.int64(memory[np.uint64(index)].bk)
            while chunk != index:
                if stack.tally[0].attention:
                    return index << BIN_SHIFT | chunk
                start = address_of(state, chunk)
                end = start + (size_of(memory, chunk) << UNIT_SHIFT)
                first = (start + fields + page - 1) & -page
                if end - start > page - 1 + fields and end - first > page - 1:
                    dontneed(stack, first, (end - first) & -page)
                    heap.holes = 1
                chunk = np.int64(memory[np.uint64(chunk)].bk)
    return 0
