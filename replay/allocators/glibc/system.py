"""Memory from the kernel and back: the heap's end, chunks in mappings of their own, trimming.

    sysmalloc   a request that top cannot serve: a mapping of its own from `mmap_threshold` on, else a longer heap
    systrim     gives whole pages at the heap's end back, all but `top_pad`
    mapped      a chunk in a mapping of its own; freeing one raises the dynamic thresholds to its size
    hugetlb     with this tunable, and transparent huge pages on request, malloc requests them for all that it takes of
                at least one, and moves the heap's end by whole ones (`thp_pagesize`). With 2 or more: see `hugetlb`

Everything below a heap's `touched` counts as resident: it is written to without a gap, from its start to the header of
top, because programs fill what they ask for. Once there are `holes`, where malloc_trim was or a full heap ends, writes
are told to the kernel one by one.
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
"""Places from here on number records of MAPPED; those below are chunks of the heap. All fit into a chunk's links."""
BIN_SHIFT = 32
"""Where trim_bins stopped: bin << BIN_SHIFT | chunk."""
HEAP_BYTES_MAX = 32 << 30
"""What sizes of 31 bits in units can tell; a heap that would grow further has no memory."""
IS_MMAPPED = 2
"""A flag in the real header that one comparison forgets to mask."""

HEAP = record("arena", "address", "origin", "end", "limit", "page", "touched", "previous", "fence")
"""A heap: whose it is; where it starts, and its first unit that can hold a chunk; where it ends; up to where it may be
written to (`mprotect_size`; not of the main one); what it grows by; what is resident ends at `touched`. `previous`: of
the same arena, or of unused records; `fence`: the chunk that keeps the end of a full heap from what follows."""
MAIN_HEAP = 1
"""0 is no heap."""
ARENA = record(
    "number", "bins", "fastbins", "binmap", "heap", "top", "last_remainder", "have_fast",
    "next", "next_free", "attached",
)  # fmt: skip
"""malloc_state: its number; where in `memory`, `fastbins` and `binmap` its own begin; the heap that top is in; top;
where `last_remainder` starts; have_fastchunks; the ring of all arenas; the list of those without a thread; how many
threads have it."""
MAIN_ARENA = 1
"""0 is no arena."""
MAPPED = record("address", "size_bytes", "page", "lead", "next")
"""A mapping with one chunk in it; what it was rounded up to; how far the chunk was moved in it so that its block is
aligned; `next` chains the unused records."""


@inlined
def address_of(state, chunk):
    """Where a chunk starts."""
    start = np.int64(state.memory[np.uint64(chunk)].start)
    if start < IN_HEAP:
        return state.heaps[MAIN_HEAP].origin + (start << UNIT_SHIFT)
    heap = state.heaps[np.uint64((start >> HEAP_SHIFT) & (HEAPS_MAX - 1))]
    return heap.origin + ((start & (HEAP_UNITS - 1)) << UNIT_SHIFT)


@leaf
def block_address(state, place):
    """Where the block of a chunk or of a mapped chunk starts."""
    par = state.par[0]
    if place >= MAPPED_PLACE:
        chunk = state.mapped[place & (MAPPED_PLACE - 1)]
        return chunk.address + chunk.lead + par.map_offset + par.header
    return address_of(state, place) + par.header


@inlined
def arena_of(state, chunk):
    """The arena that a chunk belongs to."""
    start = np.int64(state.memory[np.uint64(chunk)].start)
    if start < IN_HEAP:
        return state.arenas[MAIN_ARENA]
    heap = state.heaps[np.uint64((start >> HEAP_SHIFT) & (HEAPS_MAX - 1))]
    return state.arenas[np.uint64(heap.arena)]


@inlined
def top_bytes(state, arena):
    """Size of top; where headers have 8 bytes it is no whole number of units."""
    return state.heaps[np.uint64(arena.heap)].end - address_of(state, arena.top)


@inlined
def raise_top(state, stack, arena):
    """Top's header is written, and everything before it will be."""
    end = address_of(state, arena.top) + state.par[0].header
    if end > state.heaps[np.uint64(arena.heap)].touched:
        _touch_heap(state, stack, arena, end)


@leaf
def touch_header(state, stack, arena):
    """Top's header is written, but not all before it."""
    start, header = address_of(state, arena.top), state.par[0].header
    if start + header > state.heaps[np.uint64(arena.heap)].touched:
        touch(stack, start, start + header)


@cold
def _touch_heap(state, stack, arena, end):
    heap = state.heaps[np.uint64(arena.heap)]
    touch(stack, heap.touched, end)
    page = stack.linux.space[0].page_size
    heap.touched = (end + page - 1) & -page


@leaf
def move_end(state, stack, heap, end):
    """A heap ends elsewhere: what is counted follows."""
    tally = stack.tally[0]
    tally.heap_bytes += end - heap.end
    tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
    heap.end = end
    heap.touched = min(heap.touched, end)


@leaf
def heap_step(state, stack, is_main):
    """What a heap's end moves by: a page, or a huge page (`thp_pagesize`)."""
    par, space = state.par[0], stack.linux.space[0]
    is_huge = space.transparent == MADVISE_ONLY or (space.transparent == ALWAYS and par.huge_heaps)
    if par.hugetlb and is_huge and (is_main or par.huge_heaps):
        return space.huge_page_size
    return space.page_size


@leaf
def ask_for_huge_pages(state, stack, start, length):
    """madvise_thp"""
    space = stack.linux.space[0]
    if state.par[0].hugetlb and space.transparent == MADVISE_ONLY and length >= space.huge_page_size:
        advise_huge_pages(stack, start, length)


@leaf
def _move_brk(state, stack, end):
    brk(stack, end)
    move_end(state, stack, state.heaps[MAIN_HEAP], stack.linux.space[0].brk)


@cold
def extend_main(state, stack, arena, wanted):
    """The rest of sysmalloc: the heap grows until top holds `wanted` units and a smallest chunk."""
    par, memory, space = state.par[0], state.memory, stack.linux.space[0]
    old_size = size_of(memory, arena.top)
    size = ((wanted + par.min_units - old_size) << UNIT_SHIFT) + par.top_pad
    start, step = space.brk, heap_step(state, stack, True)
    known = 0 if old_size == 0 and not par.huge_heaps else start
    end = start - known + ((known + size + step - 1) & -step)
    if end - space.brk_base > HEAP_BYTES_MAX:
        attend(stack, NO_MEMORY)
        return
    if old_size == 0:
        heap = state.heaps[MAIN_HEAP]
        heap.address = heap.origin = heap.touched = heap.end = start
    _move_brk(state, stack, end)
    ask_for_huge_pages(state, stack, start, end - start)
    if old_size == 0:
        # The first chunk's block must lie on a unit: where headers have 8 bytes, it starts 8 behind the break.
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
    """The main heap's end goes back, as far as it is free, but for `pad` bytes."""
    if state.par[0].hp_bytes:
        return
    par, space, step = state.par[0], stack.linux.space[0], heap_step(state, stack, True)
    area = top_bytes(state, arena) - (par.min_units << UNIT_SHIFT) - 1
    # glibc compares as unsigned: a top of the least size has an area of -1, and the heap grows by what was to be kept.
    if 0 <= area <= pad:
        return
    extra = (area - pad) & -step
    if extra:
        stack.tally[0].glibc_top_trims += 1 if extra > 0 else 0
        _move_brk(state, stack, space.brk - extra)
        set_used(state.memory, arena.top, top_bytes(state, arena) >> UNIT_SHIFT)


@cold
def map_chunk(state, stack, wanted, page):
    """sysmalloc_mmap: a place of its own, of huge pages of this size if it is not 0 and there are enough."""
    par, tally = state.par[0], stack.tally[0]
    start, need = np.int64(-1), (wanted << UNIT_SHIFT) + par.map_overhead
    if page and wanted << UNIT_SHIFT >= page:
        start = mmap_hugetlb(stack, (need + page - 1) & -page, False, np.int64(0))
    if start < 0:
        page = stack.linux.space[0].page_size
        start = mmap(stack, (need + page - 1) & -page)
        ask_for_huge_pages(state, stack, start, (need + page - 1) & -page)
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
    """chunksize of a mapped chunk."""
    return mapped.size_bytes - par.map_size_less - mapped.lead


@cold
def free_mapped(state, stack, place):
    """munmap_chunk, and the dynamic thresholds before it."""
    par = state.par[0]
    size = mapped_size(par, state.mapped[place & (MAPPED_PLACE - 1)])
    if par.dynamic and par.mmap_threshold < size + IS_MMAPPED <= par.threshold_max:
        par.mmap_threshold = size
        par.trim_threshold = 2 * size
    unmap_chunk(state, stack, place)


@cold
def unmap_chunk(state, stack, place):
    """munmap_chunk"""
    par, index = state.par[0], place & (MAPPED_PLACE - 1)
    chunk = state.mapped[index]
    stack.tally[0].heap_bytes -= chunk.size_bytes
    munmap(stack, chunk.address, chunk.size_bytes)
    par.mmaps -= 1
    stack.tally[0].glibc_mapped_chunks -= 1
    give_record_back(par, state.mapped, index)


@cold
def realloc_mapped(state, stack, place, wanted):
    """mremap_chunk: whether the mapping could shrink, grow or move; its place stays."""
    par, tally, chunk = state.par[0], stack.tally[0], state.mapped[place & (MAPPED_PLACE - 1)]
    page = chunk.page if par.huge_heaps else stack.linux.space[0].page_size
    length = ((wanted << UNIT_SHIFT) + par.remap_overhead + chunk.lead + page - 1) & -page
    if length != chunk.size_bytes:
        moved = mremap(stack, chunk.address, chunk.size_bytes, length)
        if moved < 0:
            return False
        chunk.address = moved
        if not par.huge_heaps or chunk.size_bytes < stack.linux.space[0].huge_page_size:
            ask_for_huge_pages(state, stack, chunk.address, length)
        tally.heap_bytes += length - chunk.size_bytes
        tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)
        chunk.size_bytes = length
    return True


@cold
def trim_bins(state, stack, arena, resume):
    """mtrim: whole pages inside free chunks go back, though not their addresses.

    Gives 0, or where to go on: each page given back is logged, and the log may be full.
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
