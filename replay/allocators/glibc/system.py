"""Memory from the kernel: the end of the main heap, mapped chunks, dynamic thresholds, trimming.

    sysmalloc   serves a request that top cannot: maps a chunk from `mmap_threshold` on, else extends the heap
    systrim     releases whole pages at the end of the main heap, except `top_pad`
    mapped      a chunk with a mapping of its own; freeing one raises the dynamic thresholds to its size
    hugetlb     if this tunable is 1 and transparent huge pages are `madvise`, malloc requests huge pages for memory of
                at least one, and moves the heap's end by whole ones (`thp_pagesize`). From 2 on: see module `hugetlb`

All of a heap below `touched` counts as resident. Programs write to their blocks, so a heap is written to without gaps,
from its start to the header of top. If a heap has `holes`, at trimmed pages or at the end of a full heap, every write
is passed to the kernel model.
"""

import numpy as np

from replay.allocators._stack import NO_MEMORY, attend, give_record_back, take_record
from replay.allocators.glibc.memory import (
    HEAP_SHIFT,
    HEAP_UNITS,
    HEAPS_MAX,
    IN_HEAP,
    NBINS,
    UNIT,
    UNIT_SHIFT,
    UNSORTED,
    bin_index,
    new_chunk,
    set_used,
    size_of,
)
from replay.allocators.linux import advise_huge_pages, brk, dontneed, mmap, mmap_hugetlb, mremap, munmap, touch
from replay.allocators.linux.areas import ALWAYS, MADVISE_ONLY
from replay.jit.arrays import record
from replay.jit.compiling import cold, inlined, leaf

MAPPED_PLACE = 1 << 31
"""Places from here on are indexes of MAPPED records; lower ones are chunks. All of them fit into a chunk's links."""
BIN_SHIFT = 32
"""The state of an interrupted trim_bins: bin << BIN_SHIFT | chunk."""
HEAP_BYTES_MAX = 32 << 30
"""Limit of a heap: sizes have 31 bits, in units. A larger heap is out of memory."""
IS_MMAPPED = 2
"""A flag in the real header. One comparison of glibc does not mask it."""

HEAP = record("arena", "address", "origin", "end", "limit", "page", "touched", "previous", "fence")
"""A heap: its arena; its start; the address of unit 0 of its chunks; its end; the end of its accessible part
(`mprotect_size`; not for the main heap); the step by which it grows; the end of its resident part. `previous`: the
previous heap of the arena, or in the list of unused records; `fence`: the fencepost of a full heap."""
MAIN_HEAP = 1
"""Heap 0 means "no heap"."""
ARENA = record(
    "number", "bins", "fastbins", "binmap", "heap", "top", "last_remainder", "have_fast",
    "next", "next_free", "attached",
)  # fmt: skip
"""malloc_state: its number; the first index of its bins in `memory`, and in `fastbins` and `binmap`; the heap of top;
top; start of the last remainder; have_fastchunks; links of the circular list of all arenas and of the free list;
number of attached threads."""
MAIN_ARENA = 1
"""Arena 0 means "no arena"."""
MAPPED = record("address", "size_bytes", "page", "lead", "next")
"""A mapping with one chunk; `page`: the page size it was rounded up to; `lead`: the offset of the chunk, for an aligned
block; `next` links unused records."""


@inlined
def address_of(state, chunk):
    """Returns the address of a chunk."""
    start = np.int64(state.memory[np.uint64(chunk)].start)
    if start < IN_HEAP:
        return state.heaps[MAIN_HEAP].origin + (start << UNIT_SHIFT)
    heap = state.heaps[np.uint64((start >> HEAP_SHIFT) & (HEAPS_MAX - 1))]
    return heap.origin + ((start & (HEAP_UNITS - 1)) << UNIT_SHIFT)


@leaf
def block_address(state, place):
    """Returns the address of the block of a chunk or a mapped chunk."""
    par = state.par[0]
    if place >= MAPPED_PLACE:
        chunk = state.mapped[place & (MAPPED_PLACE - 1)]
        return chunk.address + chunk.lead + par.map_offset + par.header
    return address_of(state, place) + par.header


@inlined
def arena_of(state, chunk):
    """Returns the arena of a chunk."""
    start = np.int64(state.memory[np.uint64(chunk)].start)
    if start < IN_HEAP:
        return state.arenas[MAIN_ARENA]
    heap = state.heaps[np.uint64((start >> HEAP_SHIFT) & (HEAPS_MAX - 1))]
    return state.arenas[np.uint64(heap.arena)]


@inlined
def top_bytes(state, arena):
    """Returns the size of top. With headers of 8 bytes, it is not a multiple of 16."""
    return state.heaps[np.uint64(arena.heap)].end - address_of(state, arena.top)


@inlined
def touch_to_top(state, stack, arena):
    """Touches the heap up to and including the header of top: the program writes to all blocks before it."""
    par = state.par[0]
    end = address_of(state, arena.top) + par.header
    if end > state.heaps[np.uint64(arena.heap)].touched:
        _touch_heap(state, stack, arena, end)
    elif par.holes:
        touch(stack, end - par.header, end)


@leaf
def touch_header(state, stack, arena):
    """Touches the header of top, but not the memory before it."""
    par, start = state.par[0], address_of(state, arena.top)
    if par.holes or start + par.header > state.heaps[np.uint64(arena.heap)].touched:
        touch(stack, start, start + par.header)


@cold
def _touch_heap(state, stack, arena, end):
    heap = state.heaps[np.uint64(arena.heap)]
    touch(stack, heap.touched, end)
    page = stack.linux.space[0].page_size
    heap.touched = (end + page - 1) & -page


@leaf
def move_end(state, stack, heap, end):
    """Sets the end of a heap and updates the counters."""
    tally = stack.tally[0]
    tally.heap_bytes += end - heap.end
    tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
    heap.end = end
    heap.touched = min(heap.touched, end)


@leaf
def heap_step(state, stack, is_main):
    """Returns the step by which a heap's end moves: a page, or a huge page (`thp_pagesize`)."""
    par, space = state.par[0], stack.linux.space[0]
    is_huge = space.transparent == MADVISE_ONLY or (space.transparent == ALWAYS and par.huge_heaps)
    if par.hugetlb and is_huge and (is_main or par.huge_heaps):
        return space.huge_page_size
    return space.page_size


@leaf
def madvise_thp(state, stack, start, length):
    """madvise_thp: requests transparent huge pages for a range, if the tunable is set and the range is large enough."""
    space = stack.linux.space[0]
    if state.par[0].hugetlb and space.transparent == MADVISE_ONLY and length >= space.huge_page_size:
        advise_huge_pages(stack, start, length)


@leaf
def _move_brk(state, stack, end):
    brk(stack, end)
    move_end(state, stack, state.heaps[MAIN_HEAP], stack.linux.space[0].brk)


@cold
def extend_main(state, stack, arena, nb):
    """The brk part of sysmalloc: extends the main heap until top has `nb` units plus a smallest chunk."""
    par, memory, space = state.par[0], state.memory, stack.linux.space[0]
    old_size = size_of(memory, arena.top)
    size = ((nb + par.min_units - old_size) << UNIT_SHIFT) + par.top_pad
    start, step = space.brk, heap_step(state, stack, True)
    assumed_start = 0 if old_size == 0 and not par.huge_heaps else start  # `huge_heaps` explains this
    end = start - assumed_start + ((assumed_start + size + step - 1) & -step)
    if end - space.brk_base > HEAP_BYTES_MAX:
        attend(stack, NO_MEMORY)
        return
    if old_size == 0:
        heap = state.heaps[MAIN_HEAP]
        heap.address = heap.origin = heap.touched = heap.end = start
    _move_brk(state, stack, end)
    madvise_thp(state, stack, start, end - start)
    if old_size == 0:
        # The first block must be aligned. With headers of 8 bytes, the chunk starts 8 bytes after the break.
        misaligned = (start + par.header) & (UNIT - 1)
        if misaligned:
            _move_brk(state, stack, end + space.page_size)
            state.heaps[MAIN_HEAP].origin += UNIT - misaligned
        arena.top = new_chunk(state, stack)
        top = memory[np.uint64(arena.top)]
        top.start = top.before = top.behind = 0
    set_used(memory, arena.top, top_bytes(state, arena) >> UNIT_SHIFT)


@cold
def systrim(state, stack, arena, pad):
    """systrim: releases the free end of the main heap, except `pad` bytes."""
    if state.par[0].hp_bytes:
        return
    par, space, step = state.par[0], stack.linux.space[0], heap_step(state, stack, True)
    area = top_bytes(state, arena) - (par.min_units << UNIT_SHIFT) - 1
    # glibc compares unsigned values. If top has the minimum size, the area is -1, and the heap grows by `pad`.
    if 0 <= area <= pad:
        return
    extra = (area - pad) & -step
    if extra:
        stack.tally[0].glibc_top_trims += 1 if extra > 0 else 0
        _move_brk(state, stack, space.brk - extra)
        set_used(state.memory, arena.top, top_bytes(state, arena) >> UNIT_SHIFT)


@cold
def map_chunk(state, stack, nb, page):
    """sysmalloc_mmap: maps a chunk and returns its place. `page` is a huge page size to try first, or 0."""
    par, tally = state.par[0], stack.tally[0]
    start, need = np.int64(-1), (nb << UNIT_SHIFT) + par.map_overhead
    if page and nb << UNIT_SHIFT >= page:
        start = mmap_hugetlb(stack, (need + page - 1) & -page, False, np.int64(0))
    if start < 0:
        page = stack.linux.space[0].page_size
        start = mmap(stack, (need + page - 1) & -page)
        madvise_thp(state, stack, start, (need + page - 1) & -page)
    length = (need + page - 1) & -page
    tally.heap_bytes += length
    tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
    index = take_record(stack, par, state.mapped)
    chunk = state.mapped[index]
    chunk.address, chunk.size_bytes, chunk.page, chunk.lead = start, length, page, 0
    par.mmaps += 1
    tally.glibc_mapped_chunks += 1
    tally.glibc_mapped_chunks_peak = max(tally.glibc_mapped_chunks_peak, tally.glibc_mapped_chunks)
    touch(stack, start, start + par.map_offset + par.header)
    return MAPPED_PLACE | index


@inlined
def mapped_size(par, mapped):
    """Returns chunksize of a mapped chunk, in bytes."""
    return mapped.size_bytes - par.map_size_less - mapped.lead


@cold
def free_mapped(state, stack, place):
    """Frees a mapped chunk: raises the dynamic thresholds, then unmaps it."""
    par = state.par[0]
    size = mapped_size(par, state.mapped[place & (MAPPED_PLACE - 1)])
    if par.dynamic and par.mmap_threshold < size + IS_MMAPPED <= par.threshold_max:
        par.mmap_threshold = size
        par.trim_threshold = 2 * size
    unmap_chunk(state, stack, place)


@cold
def unmap_chunk(state, stack, place):
    """munmap_chunk: unmaps a chunk and releases its record."""
    par, index = state.par[0], place & (MAPPED_PLACE - 1)
    chunk = state.mapped[index]
    stack.tally[0].heap_bytes -= chunk.size_bytes
    munmap(stack, chunk.address, chunk.size_bytes)
    par.mmaps -= 1
    stack.tally[0].glibc_mapped_chunks -= 1
    give_record_back(par, state.mapped, index)


@cold
def realloc_mapped(state, stack, place, nb):
    """mremap_chunk: resizes a mapped chunk, and moves it if needed; returns whether it could. The place stays valid."""
    par, tally, chunk = state.par[0], stack.tally[0], state.mapped[place & (MAPPED_PLACE - 1)]
    page = chunk.page if par.huge_heaps else stack.linux.space[0].page_size
    length = ((nb << UNIT_SHIFT) + par.remap_overhead + chunk.lead + page - 1) & -page
    if length != chunk.size_bytes:
        moved = mremap(stack, chunk.address, chunk.size_bytes, length)
        if moved < 0:
            return False
        chunk.address = moved
        if not par.huge_heaps or chunk.size_bytes < stack.linux.space[0].huge_page_size:
            madvise_thp(state, stack, chunk.address, length)
        tally.heap_bytes += length - chunk.size_bytes
        tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
        chunk.size_bytes = length
    return True


@cold
def trim_bins(state, stack, arena, resume):
    """mtrim: releases whole pages inside free chunks; their addresses stay mapped.

    Returns 0 if done. If the log of system calls is full, returns a value to pass as `resume` in the next call.
    """
    par, memory = state.par[0], state.memory
    page = stack.linux.space[0].page_size
    least = bin_index(np.int64(page >> UNIT_SHIFT), par)
    fields = 6 * par.word_size  # sizeof (struct malloc_chunk)
    for index in range(max(UNSORTED, resume >> BIN_SHIFT), NBINS):
        if index == UNSORTED or index >= least:
            chunk = resume & ((1 << BIN_SHIFT) - 1)
            resume = 0
            head = arena.bins + index
            if chunk == 0:
                chunk = np.int64(memory[np.uint64(head)].bk)
            while chunk != head:
                if stack.tally[0].attention:
                    return index << BIN_SHIFT | chunk
                start = address_of(state, chunk)
                end = start + (size_of(memory, chunk) << UNIT_SHIFT)
                first = (start + fields + page - 1) & -page
                if end - start > page - 1 + fields and end - first > page - 1:
                    dontneed(stack, first, (end - first) & -page)
                    par.holes = 1
                chunk = np.int64(memory[np.uint64(chunk)].bk)
    return 0
