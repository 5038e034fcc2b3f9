"""Resident pages, and those of them that were lazily freed (MADV_FREE): Linux may release these at any time.

`space.lazy_bytes` counts lazily freed pages. A write makes a page normal again; in a huge page, all its pages.
"""

import numpy as np

from replay.allocators._stack import NO_MEMORY, ask_for_room, attend, change_resident
from replay.allocators.linux.areas import COUNTED, EMPTY, HUGE, IN_PAGES, find_area, may_be_huge
from replay.allocators.linux.bits import copy_bits, set_bits
from replay.allocators.linux.tables import (
    CHUNKS,
    HEAP,
    NOWHERE,
    add_chunk,
    get_page,
    get_range,
    locate,
    region_of,
    set_range,
)
from replay.jit.compiling import cold, leaf


@leaf
def mark(stack, start, end, value):
    """Marks the pages of [start, end) as resident or not; returns the number of pages that changed. Addresses outside
    of heap and mappings have no pages; models without real addresses pass such addresses."""
    space = stack.linux.space[0]
    shift = space.page_shift
    if space.sparse:
        return _mark_parts(stack, start, end, value)
    if start >= space.lowest:
        if end > space.mmap_base:
            return 0
        last = (space.mmap_base - 1 - start) >> shift
        return set_bits(stack.linux.mmap_pages, (space.mmap_base - end) >> shift, last, value)
    if start < space.brk_base or end > space.brk:
        return 0
    first = (start - space.brk_base) >> shift
    return set_bits(stack.linux.heap_pages, first, (end - 1 - space.brk_base) >> shift, value)


@cold
def _mark_parts(stack, start, end, value):
    """Does the same as `mark` if mappings are far apart."""
    state = stack.linux
    changed, at = 0, start
    while at < end:
        table, first, last, stop = locate(state, at, end)
        if table == NOWHERE and value and _is_mapped(state, at):
            if not add_chunk(state, at):
                attend(stack, NO_MEMORY)
                return changed
            if state.space[0].headroom < 0:
                ask_for_room(stack)
            table, first, last, stop = locate(state, at, end)
        if table != NOWHERE:
            changed += _mark_in(state, table, first, last, value)
        at = stop
    return changed


@leaf
def _mark_in(state, table, first, last, value):
    if table == CHUNKS:
        return set_bits(state.chunk_pages, first, last, value)
    return set_bits(state.heap_pages if table == HEAP else state.mmap_pages, first, last, value)


@leaf
def _mark_lazy_in(state, table, first, last):
    if table == CHUNKS:
        return copy_bits(state.chunk_pages, state.chunk_lazy, first, last)
    if table == HEAP:
        return copy_bits(state.heap_pages, state.heap_lazy, first, last)
    return copy_bits(state.mmap_pages, state.mmap_lazy, first, last)


@leaf
def _unmark_lazy_in(state, table, first, last):
    if table == CHUNKS:
        return set_bits(state.chunk_lazy, first, last, False)
    return set_bits(state.heap_lazy if table == HEAP else state.mmap_lazy, first, last, False)


@leaf
def _is_mapped(state, address):
    """Returns whether `address` is in a mapping."""
    if state.space[0].regions == 0:
        return False
    region = state.regions[region_of(state, address)]
    return region.start <= address < region.end


@leaf
def drop_pages(stack, start, end):
    """Releases all resident pages of [start, end)."""
    space = stack.linux.space[0]
    if space.lazy_bytes:
        unmark_lazy(stack, start, end)
    change_resident(stack, -(mark(stack, start, end, False) << space.page_shift))


@leaf
def mark_lazy(stack, start, end):
    """Marks the resident pages of [start, end) as lazily freed."""
    state = stack.linux
    space, at = state.space[0], start
    while at < end:
        table, first, last, stop = locate(state, at, end)
        if table != NOWHERE:
            space.lazy_bytes += _mark_lazy_in(state, table, first, last) << space.page_shift
        at = stop


@cold
def unmark_lazy(stack, start, end):
    """Removes the lazily-freed mark of all pages of [start, end)."""
    state = stack.linux
    space, at = state.space[0], start
    while at < end:
        table, first, last, stop = locate(state, at, end)
        if table != NOWHERE:
            space.lazy_bytes -= _unmark_lazy_in(state, table, first, last) << space.page_shift
        at = stop


@cold
def touch(stack, start, end):
    """Simulates writes to all pages of [start, end), where end > start."""
    space, tally = stack.linux.space[0], stack.tally[0]
    if space.transparent:
        fresh = _touch_areas(stack, start, end)
    else:
        fresh = mark(stack, start, end, True)
        tally.page_faults += fresh
        if space.lazy_bytes:
            unmark_lazy(stack, start, end)
    if fresh:
        change_resident(stack, fresh << space.page_shift)


@leaf
def _touch_areas(stack, start, end):
    """Touches [start, end) range by range, if huge pages are on. Returns the number of pages that became resident."""
    state, tally = stack.linux, stack.tally[0]
    space, huge = state.space[0], state.space[0].huge_page_size
    fresh, at = 0, start
    while at < end:
        index = find_area(state, at)
        if index == space.areas or state.areas[index].end <= at:
            return fresh
        area = state.areas[index]
        stop = min(end, min(area.end, (at & -huge) + huge))
        if (area.kind & COUNTED and get_range(state, at) == EMPTY) or may_be_huge(state, area, at):
            first = at & -huge
            fresh += mark(stack, first, first + huge, True)
            set_range(state, at, HUGE)
            tally.page_faults += 1
            tally.huge_pages += 1
        elif get_range(state, at) != HUGE:
            pages = mark(stack, at, stop, True)
            fresh += pages
            tally.page_faults += pages
            set_range(state, at, IN_PAGES)
        if space.lazy_bytes:
            is_huge = get_range(state, at) == HUGE
            unmark_lazy(stack, at & -huge if is_huge else at, (at & -huge) + huge if is_huge else stop)
        if area.owner == 0:
            space.owners += 1
            area.owner = space.owners
        at = stop
    return fresh


@leaf
def move_pages(stack, start, place, length):
    """Copies the marks of `length` bytes at `start` to `place`. Returns the number of resident bytes."""
    space, pages = stack.linux.space[0], stack.linux.mmap_pages
    moved, is_lazy, is_simple = 0, np.int64(0), not (space.sparse or space.lazy_bytes)
    for page in range(length >> space.page_shift):
        offset = page << space.page_shift
        if is_simple:
            bit = (space.mmap_base - 1 - (start + offset)) >> space.page_shift
            is_resident = (pages[bit >> 6] >> (bit & 63)) & 1
        else:
            is_resident, is_lazy = get_page(stack.linux, start + offset)
        if is_resident:
            moved += mark(stack, place + offset, place + offset + space.page_size, True)
            if is_lazy:
                mark_lazy(stack, place + offset, place + offset + space.page_size)
    return moved << space.page_shift
