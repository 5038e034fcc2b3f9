"""Heaps of thread arenas: each reserves 64 MiB of addresses, and makes the start of it accessible.

    new_heap      reserves twice the size with mmap, unmaps all but an aligned half, and makes its start accessible
    grow_heap     makes more of a heap accessible with mprotect
    heap_trim     unmaps heaps that are free as a whole; releases the free end of the last one with madvise, which
                  leaves it accessible

A heap starts with heap_info. In the first heap of an arena, the arena's malloc_state follows. Heaps of one arena are
linked by `previous`. A full heap ends with a fencepost (`fence`), a chunk that is never free, so that no chunk is
merged with the memory that follows.
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
    is_free,
    merge_next,
    new_chunk,
    release_record,
    set_used,
    unlink_chunk,
)
from replay.allocators.glibc.system import address_of, heap_step, madvise_thp, move_end, top_bytes
from replay.allocators.linux import dontneed, mmap_hugetlb, munmap_reserve, protect, reserve
from replay.jit.compiling import cold, leaf

HEAP_MIN_BYTES = 32 << 10
"""HEAP_MIN_SIZE"""


@leaf
def new_heap(state, stack, need_bytes):
    """Creates a heap for at least `need_bytes`, headers included. Returns its number, or 0 if it fails."""
    page = state.par[0].hp_bytes
    if page:
        number = _alloc_new_heap(state, stack, need_bytes, page, True)
        if number:
            return number
        return _alloc_new_heap(state, stack, need_bytes, stack.linux.space[0].page_size, False)
    return _alloc_new_heap(state, stack, need_bytes, heap_step(state, stack, False), False)


@leaf
def _alloc_new_heap(state, stack, need_bytes, page, is_hugetlb):
    par, bytes_max = state.par[0], state.par[0].heap_bytes_max
    if need_bytes > bytes_max:
        return np.int64(0)
    if (par.unused_heap == 0 and par.heaps == HEAPS_MAX) or bytes_max > HEAP_UNITS << UNIT_SHIFT:
        attend(stack, NO_MEMORY)
        return np.int64(0)
    length = max(min(need_bytes + par.top_pad, bytes_max), par.hp_bytes if par.hp_bytes else HEAP_MIN_BYTES)
    length = (length + page - 1) & -page
    start = _aligned_reserve(state, stack, bytes_max, is_hugetlb)
    if start < 0:
        return np.int64(0)
    protect(stack, start, length)
    madvise_thp(state, stack, start, length)
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
    """Reserves addresses at a multiple of `length`: at the hint that the last call left, or inside twice the length.
    Returns the start, or -1 if too few huge pages are reserved."""
    par, start = state.par[0], np.int64(-1)
    if par.aligned_area:
        start = _unmap_if_unaligned(stack, _reserve(stack, length, par.aligned_area, is_hugetlb), length)
        par.aligned_area = 0
    if start >= 0:
        return start
    begin = _reserve(stack, 2 * length, np.int64(0), is_hugetlb)
    if begin < 0:
        return _unmap_if_unaligned(stack, _reserve(stack, length, np.int64(0), is_hugetlb), length)
    start = (begin + length - 1) & -length
    if start > begin:
        munmap_reserve(stack, begin, start - begin, start - begin)
    else:
        par.aligned_area = start + length
    rest = begin + length - start
    munmap_reserve(stack, start + length, rest, rest)
    return start


@leaf
def _unmap_if_unaligned(stack, start, length):
    """Returns `start`; if it is not a multiple of `length`, unmaps the range and returns -1."""
    if start >= 0 and start & (length - 1):
        munmap_reserve(stack, start, length, length)
        return np.int64(-1)
    return start


@leaf
def open_heap(state, stack, arena, number, header_bytes):
    """Makes a heap the last one of an arena. All of it after `header_bytes` becomes top."""
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
def grow_heap(state, stack, arena, nb):
    """grow_heap: extends the arena's last heap until top has `nb` units plus a smallest chunk. Returns whether it
    could."""
    par, heap = state.par[0], state.heaps[np.uint64(arena.heap)]
    page = heap.page
    need = ((nb + par.min_units) << UNIT_SHIFT) - top_bytes(state, arena)
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
    """heap_trim: unmaps last heaps that are free as a whole, then releases the end of the last heap if it is large."""
    par, memory = state.par[0], state.memory
    min_bytes = par.min_units << UNIT_SHIFT
    heap = state.heaps[np.uint64(arena.heap)]
    while heap.previous and memory[np.uint64(arena.top)].before == 0:
        previous = state.heaps[heap.previous]
        fence = previous.fence
        before = np.int64(memory[np.uint64(fence)].before)
        first = before if is_free(memory, before) else fence
        free_bytes = previous.end - address_of(state, first)
        if free_bytes + par.heap_bytes_max - (previous.end - previous.address) < par.top_pad + min_bytes + heap.page:
            break
        _delete_heap(state, stack, arena)
        if first == before:
            unlink_chunk(memory, before, par)
            merge_next(state, before)
        arena.top = first
        set_used(memory, first, free_bytes >> UNIT_SHIFT)
        heap = previous
    area = top_bytes(state, arena) - min_bytes - 1
    extra = (area - par.top_pad) & -heap.page
    if area + min_bytes + 1 >= par.trim_threshold and area > par.top_pad and extra:
        stack.tally[0].glibc_top_trims += 1
        move_end(state, stack, heap, heap.end - extra)
        dontneed(stack, heap.end, extra)
        set_used(memory, arena.top, top_bytes(state, arena) >> UNIT_SHIFT)


@leaf
def _delete_heap(state, stack, arena):
    """delete_heap: unmaps the arena's last heap, which consists of top only."""
    par, number = state.par[0], arena.heap
    heap = state.heaps[number]
    stack.tally[0].glibc_heaps_released += 1
    if heap.address + par.heap_bytes_max == par.aligned_area:
        par.aligned_area = 0
    limit = heap.limit
    move_end(state, stack, heap, heap.address)
    munmap_reserve(stack, heap.address, par.heap_bytes_max, heap.address + par.heap_bytes_max - limit)
    release_record(state, arena.top)
    arena.heap = heap.previous
    heap.previous = par.unused_heap
    par.unused_heap = number
