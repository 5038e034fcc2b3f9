"""glibc's `sysmalloc`: more memory where top, the chunk at the end of the heap, is too small; and chunks from top."""

import numpy as np

from replay.allocators.glibc.freeing import call_int_free
from replay.allocators.glibc.heaps import grow_heap, new_heap, open_heap
from replay.allocators.glibc.hugetlb import open_region
from replay.allocators.glibc.memory import UNIT_SHIFT, UNSORTED, size_of, split
from replay.allocators.glibc.system import MAIN_HEAP, address_of, extend_main, map_chunk, touch_to_top
from replay.allocators.linux import touch
from replay.jit.compiling import cold, inlined, leaf


@cold
def sysmalloc(state, stack, arena, nb):
    """sysmalloc, if top is too small: maps the chunk, extends the heap, or adds a heap. Returns 0 if all of them
    fail."""
    par = state.par[0]
    if (nb << UNIT_SHIFT) >= par.mmap_threshold and par.mmaps < par.mmap_max:
        return map_chunk(state, stack, nb, par.hp_bytes)
    if arena.heap == MAIN_HEAP:
        if par.hp_bytes:
            _add_region(state, stack, arena, nb)
        else:
            extend_main(state, stack, arena, nb)
    elif not grow_heap(state, stack, arena, nb):
        number = new_heap(state, stack, ((nb + par.min_units) << UNIT_SHIFT) + par.heap_header)
        if number == 0:
            return map_chunk(state, stack, nb, 0)
        _add_heap(state, stack, arena, number)
        # The rest of the old heap was freed. This may have trimmed the new heap.
        if size_of(state.memory, arena.top) < nb + par.min_units:
            return np.int64(0)
    return use_top(state, stack, arena, nb)


@leaf
def _add_heap(state, stack, arena, number):
    """Makes another heap the arena's last one. Frees the old top, except for a fencepost at its end."""
    old_top, full_heap = arena.top, state.heaps[np.uint64(arena.heap)]
    open_heap(state, stack, arena, number, state.par[0].heap_header)
    touch(stack, state.heaps[number].address, state.heaps[number].address + state.par[0].heap_header)
    full_heap.fence = _make_fencepost(state, stack, old_top, full_heap.end)
    if full_heap.fence != old_top:
        _free_old_top(state, stack, arena, old_top)


@cold
def _add_region(state, stack, arena, nb):
    """Continues the main arena in a new mapping. Frees the old top, except for a fencepost at its end."""
    memory, old_top, end = state.memory, arena.top, state.heaps[MAIN_HEAP].end
    open_region(state, stack, arena, nb)
    if old_top != UNSORTED:
        fence = _make_fencepost(state, stack, old_top, end)
        memory[np.uint64(fence)].behind, memory[np.uint64(arena.top)].before = arena.top, fence
        if fence != old_top:
            _free_old_top(state, stack, arena, old_top)


@leaf
def _make_fencepost(state, stack, old_top, end):
    """Returns the fencepost of a full heap: the end of `old_top`, or all of it if it is too small to split."""
    par = state.par[0]
    units = size_of(state.memory, old_top) - par.min_units
    touch(stack, end - (par.min_units << UNIT_SHIFT), end)
    return old_top if units < par.min_units else split(state, stack, old_top, units)


@leaf
def _free_old_top(state, stack, arena, old_top):
    start = address_of(state, old_top)
    touch(stack, start, start + 6 * state.par[0].word_size)
    state.par[0].holes = 1
    call_int_free(state, stack, arena, old_top, size_of(state.memory, old_top))


@inlined
def use_top(state, stack, arena, nb):
    par = state.par[0]
    chunk = arena.top
    arena.top = split(state, stack, chunk, nb)
    if not par.touched_by_caller:
        touch_to_top(state, stack, arena)
    return chunk
