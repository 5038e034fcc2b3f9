"""glibc.malloc.hugetlb from 2 on: memory made of the kernel's reserved huge pages, as far as there are any.

    hp_bytes     size of such a page (`hp_pagesize`); 0: the tunable is not set, or names a size that there is not
    open_region  the main heap grows by mappings, never by the break: of huge pages, or if these are refused, of others

Chunks of all these mappings are counted from 32 GiB below the first. The end of one that is not the last is a fence.
"""

from replay.allocators._stack import NO_MEMORY, attend
from replay.allocators.glibc.memory import UNIT_SHIFT, UNSORTED, new_chunk, set_used
from replay.allocators.glibc.system import HEAP_BYTES_MAX, MAIN_HEAP, move_end
from replay.allocators.linux import mmap, mmap_hugetlb
from replay.jit.compiling import cold, leaf

DEFAULT_PAGE = 2
"""The tunable's value for the size that the kernel calls the default one."""
MMAP_AS_MORECORE_SIZE = 1 << 20
HEAPS_PAGES = 4
"""Huge pages that a heap of a thread may take, where it goes by them."""


@cold
def settle_page_size(state, stack):
    """What ptmalloc_init makes of the tunable."""
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
    """What is asked for in huge pages; but 2.43 asks for parts of such."""
    if par.huge_heaps or is_first:
        return (need + par.hp_bytes - 1) & -par.hp_bytes
    return max(need, par.hp_bytes)


@leaf
def _length(par, need, is_first):
    """What is asked for where there are no huge pages. In 2.36 unit and least size have changed places."""
    if not par.hp_swapped:
        return max(need, MMAP_AS_MORECORE_SIZE)
    return (need + MMAP_AS_MORECORE_SIZE - 1) & -MMAP_AS_MORECORE_SIZE if is_first else need


@leaf
def open_region(state, stack, arena, wanted):
    """sysmalloc_mmap_fallback: top of the main arena is in a new mapping, with room for so many units."""
    par, page, heap = state.par[0], stack.linux.space[0].page_size, state.heaps[MAIN_HEAP]
    need = (((wanted + par.min_units) << UNIT_SHIFT) + par.top_pad + page - 1) & -page
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
