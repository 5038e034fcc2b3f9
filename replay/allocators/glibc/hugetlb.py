"""glibc.malloc.hugetlb from 2 on: malloc maps reserved huge pages, as long as the kernel has enough of them.

    hp_bytes     size of these pages (`hp_pagesize`); 0 if the tunable is not set, or if the kernel lacks this size
    open_region  extends the main heap by a mapping, never by brk: of huge pages, or of normal pages if that fails

Starts of chunks in all these mappings count from 32 GiB below `mmap_base`. Each mapping but the last ends with a
fencepost.
"""

from replay.allocators._stack import NO_MEMORY, attend
from replay.allocators.glibc.memory import UNIT_SHIFT, UNSORTED, new_chunk, set_used
from replay.allocators.glibc.system import HEAP_BYTES_MAX, MAIN_HEAP, move_end
from replay.allocators.linux import mmap, mmap_hugetlb
from replay.jit.compiling import cold, leaf

DEFAULT_PAGE = 2
"""The value of the tunable for the kernel's default huge page size."""
MMAP_AS_MORECORE_SIZE = 1 << 20
HEAPS_PAGES = 4
"""Number of huge pages in a heap of a thread arena, if `hp_heaps`."""


@cold
def set_hp_pagesize(state, stack):
    """Evaluates the tunable, as ptmalloc_init does. Sets fields of `par` in place."""
    par, space = state.par[0], stack.linux.space[0]
    page = space.huge_page_size
    if page <= space.page_size or par.hp_bytes not in (DEFAULT_PAGE, page):
        par.hp_bytes = 0
        return
    par.hp_bytes = page
    state.heaps[MAIN_HEAP].origin = space.mmap_base - HEAP_BYTES_MAX
    if par.hp_heaps:
        par.heap_bytes_max = HEAPS_PAGES * page
    if par.hp_threshold:
        par.mmap_threshold, par.dynamic = page, 0


@leaf
def _huge_length(par, need, is_first):
    """Returns the length to map with huge pages. Before 2.43, only that of the first mapping is in whole huge pages."""
    if par.huge_heaps or is_first:
        return (need + par.hp_bytes - 1) & -par.hp_bytes
    return max(need, par.hp_bytes)


@leaf
def _length(par, need, is_first):
    """Returns the length to map with normal pages. In 2.36, two arguments of the call are swapped."""
    if not par.hp_swapped:
        return max(need, MMAP_AS_MORECORE_SIZE)
    return (need + MMAP_AS_MORECORE_SIZE - 1) & -MMAP_AS_MORECORE_SIZE if is_first else need


@leaf
def open_region(state, stack, arena, nb):
    """sysmalloc_mmap_fallback: maps memory for `nb` units, and makes it the top of the main arena."""
    par, page, heap = state.par[0], stack.linux.space[0].page_size, state.heaps[MAIN_HEAP]
    need = (((nb + par.min_units) << UNIT_SHIFT) + par.top_pad + page - 1) & -page
    is_first = arena.top == UNSORTED
    length = _huge_length(par, need, is_first)
    start = mmap_hugetlb(stack, length, False, 0)
    if start < 0:
        length = _length(par, need, is_first)
        start = mmap(stack, length)
    if start < heap.origin:
        attend(stack, NO_MEMORY)
        start = heap.origin
    par.mapped_heap_bytes += heap.end - heap.address
    heap.address = heap.end = heap.touched = start
    move_end(state, stack, heap, start + length)
    arena.top = new_chunk(state, stack)
    top = state.memory[arena.top]
    top.start, top.before, top.behind = (start - heap.origin) >> UNIT_SHIFT, 0, 0
    set_used(state.memory, arena.top, length >> UNIT_SHIFT)
