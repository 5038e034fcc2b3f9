"""Heaps of an arena that is not the main one: 64 MiB of addresses each, of which what is needed is memory.

    new_heap      mmap of twice the size, so that an aligned half is in it; munmap of the rest; mprotect of the start
    extend_heap   mprotect of some more
    heap_trim     a heap that is free altogether goes back; else the end of the last one, by madvise: it stays writable

A heap begins with heap_info; the arena's first one holds the arena's own malloc_state behind it. Heaps of one arena are
chained by `previous`; a full one ends in a fence, a chunk that is never free, so that nothing is merged with what
follows.
"""

import numpy as np

from replay.allocators._stack import NO_MEMORY, attend
from replay.allocators.glibc.memory import (
    HEAP_SHIFT,
    HEAP_UNITS,
    HEAPS_MAX,
    IN_HEAP,
    UNIT,
    UNIT_SHIFT,
    absorb_behind,
    drop_chunk,
    is_free,
    new_chunk,
    set_used,
    unlink_chunk,
)
from replay.allocators.glibc.system import address_of, ask_for_huge_pages, heap_step, move_end, top_bytes
from replay.allocators.linux import dontneed, mmap_hugetlb, munmap_reserve, protect, reserve
from replay.jit.compiling import cold, leaf

HEAP_MIN_BYTES = 32 << 10
"""HEAP_MIN_SIZE"""


@leaf
def new_heap(state, stack, need_bytes):
    """The number of a heap that can hold so much, headers included; 0 if none can."""
    page = state.par[0].hp_bytes
    if page:
        number = _alloc_new_heap(state, stack, need_bytes, page, True)
        if number:
            return number
        return _alloc_new_heap(state, stack, need_bytes, stack.linux.space[0].page_size, False)
    return _alloc_new_heap(state, stack, need_bytes, heap_step(state, stack, False), False)


@leaf
def _alloc_new_heap(state, stack, need_bytes, page, is_hugetlb):
    par, most = state.par[0], state.par[0].heap_bytes_max
    if need_bytes > most:
        return np.int64(0)
    if (par.unused_heap == 0 and par.heaps == HEAPS_MAX) or most > HEAP_UNITS << UNIT_SHIFT:
        attend(stack, NO_MEMORY)
        return np.int64(0)
    length = max(min(need_bytes + par.top_pad, most), par.hp_bytes if par.hp_bytes else HEAP_MIN_BYTES)
    length = (length + page - 1) & -page
    start = _aligned_reserve(state, stack, most, is_hugetlb)
    if start < 0:
        return np.int64(0)
    protect(stack, start, length)
    ask_for_huge_pages(state, stack, start, length)
    number = par.unused_heap
    if number:
        par.unused_heap = state.heaps[number].previous
    else:
        number = par.heaps
        par.heaps += 1
    heap = state.heaps[number]
    heap.address = heap.end = heap.touched = start
    heap.origin = start + UNIT - par.header
    heap.limit, heap.page = start + length, page
    heap.previous = heap.fence = 0
    move_end(state, stack, heap, start + length)
    return number


@leaf
def _reserve(stack, length, hint, is_hugetlb):
    return mmap_hugetlb(stack, length, True, hint) if is_hugetlb else reserve(stack, length, hint)


@leaf
def _aligned_reserve(state, stack, length, is_hugetlb):
    """Addresses at a multiple of `length`: what the last search for some left over, or out of twice as many; -1 where
    too few huge pages are reserved for that."""
    par, start = state.par[0], np.int64(-1)
    if par.aligned_area:
        start = _kept_if_aligned(stack, _reserve(stack, length, par.aligned_area, is_hugetlb), length)
        par.aligned_area = 0
    if start >= 0:
        return start
    begin = _reserve(stack, 2 * length, np.int64(0), is_hugetlb)
    if begin < 0:
        return _kept_if_aligned(stack, _reserve(stack, length, np.int64(0), is_hugetlb), length)
    start = (begin + length - 1) & -length
    if start > begin:
        munmap_reserve(stack, begin, start - begin, start - begin)
    else:
        par.aligned_area = start + length
    rest = begin + length - start
    munmap_reserve(stack, start + length, rest, rest)
    return start


@leaf
def _kept_if_aligned(stack, start, length):
    """Gives a stretch back that does not lie at a multiple of its length, and then -1."""
    if start >= 0 and start & (length - 1):
        munmap_reserve(stack, start, length, length)
        return np.int64(-1)
    return start


@leaf
def open_heap(state, stack, arena, number, header_bytes):
    """The heap becomes the arena's last: all of it behind so many bytes of headers is top."""
    par, heap = state.par[0], state.heaps[number]
    heap.arena, heap.previous = arena.number, arena.heap
    top = new_chunk(state, stack)
    entry = state.memory[np.uint64(top)]
    units = (header_bytes + par.header + UNIT - 1 - UNIT) >> UNIT_SHIFT
    entry.start = IN_HEAP | number << HEAP_SHIFT | units
    entry.before = entry.behind = 0
    arena.heap, arena.top = number, top
    set_used(state.memory, top, top_bytes(state, arena) >> UNIT_SHIFT)


@leaf
def extend_heap(state, stack, arena, wanted):
    """Whether the arena's last heap could be made to hold `wanted` units more than a smallest chunk in top."""
    par, heap = state.par[0], state.heaps[np.uint64(arena.heap)]
    page = heap.page
    need = ((wanted + par.min_units) << UNIT_SHIFT) - top_bytes(state, arena)
    end = heap.end + ((need + page - 1) & -page)
    if end - heap.address > par.heap_bytes_max:
        return False
    if end > heap.limit:
        protect(stack, heap.limit, end - heap.limit)
        heap.limit = end
    move_end(state, stack, heap, end)
    set_used(state.memory, arena.top, top_bytes(state, arena) >> UNIT_SHIFT)
    return True


@cold
def heap_trim(state, stack, arena):
    """Heaps that are free altogether go back, and then the end of the last one if it is large."""
    par, memory = state.par[0], state.memory
    least = par.min_units << UNIT_SHIFT
    heap = state.heaps[np.uint64(arena.heap)]
    while heap.previous and memory[np.uint64(arena.top)].before == 0:
        previous = state.heaps[heap.previous]
        fence = previous.fence
        before = np.int64(memory[np.uint64(fence)].before)
        first = before if is_free(memory, before) else fence
        free_bytes = previous.end - address_of(state, first)
        if free_bytes + par.heap_bytes_max - (previous.end - previous.address) < par.top_pad + least + heap.page:
            break
        _close_heap(state, stack, arena)
        if first == before:
            unlink_chunk(memory, before, par)
            absorb_behind(state, before)
        arena.top = first
        set_used(memory, first, free_bytes >> UNIT_SHIFT)
        heap = previous
    area = top_bytes(state, arena) - least - 1
    extra = (area - par.top_pad) & -heap.page
    if area + least + 1 >= par.trim_threshold and area > par.top_pad and extra:
        stack.tally[0].glibc_top_trims += 1
        move_end(state, stack, heap, heap.end - extra)
        dontneed(stack, heap.end, extra)
        set_used(memory, arena.top, top_bytes(state, arena) >> UNIT_SHIFT)


@leaf
def _close_heap(state, stack, arena):
    """The arena's last heap, which is all top, goes back."""
    par, number = state.par[0], arena.heap
    heap = state.heaps[number]
    stack.tally[0].glibc_heaps_released += 1
    if heap.address + par.heap_bytes_max == par.aligned_area:
        par.aligned_area = 0
    limit = heap.limit
    move_end(state, stack, heap, heap.address)
    munmap_reserve(stack, heap.address, par.heap_bytes_max, heap.address + par.heap_bytes_max - limit)
    drop_chunk(state, arena.top)
    arena.heap = heap.previous
    heap.previous = par.unused_heap
    par.unused_heap = number
