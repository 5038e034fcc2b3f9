"""System calls: each changes regions, areas and pages, is counted, and is logged."""

import numpy as np

from replay.allocators._stack import NO_MEMORY, ask_for_room, attend, change_mapped, change_resident, log
from replay.allocators._tally import SYSCALLS
from replay.allocators.linux.areas import (
    COUNTED,
    HUGETLB,
    NO_RESERVE,
    WRITABLE,
    add_area,
    is_hugetlb,
    move_ranges,
    unmap_areas,
)
from replay.allocators.linux.pages import drop_pages, move_pages
from replay.allocators.linux.regions import (
    area_of,
    cut_all,
    cut_out,
    highest_hole,
    hole_at,
    insert_region,
    take_region,
)
from replay.allocators.linux.reserves import add_reserved
from replay.allocators.linux.settings import GAP_BYTES
from replay.allocators.linux.tables import measure_headroom, region_of
from replay.jit.compiling import cold, leaf

MMAP, MUNMAP, MREMAP, BRK, MADVISE, MPROTECT = range(len(SYSCALLS))


@leaf
def choose_place(stack, length):
    """Returns the address that Linux chooses for `length` bytes (whole pages), and the index at which their region is
    inserted."""
    state = stack.linux
    huge = state.space[0].huge_page_size
    if huge and length % huge == 0:
        start, index = highest_hole(state, length + huge)
        return (start & -huge) + huge, index
    return highest_hole(state, length)


@leaf
def count_mmap(stack, start, length):
    """Counts and logs an mmap at `start`; returns `start`."""
    tally = stack.tally[0]
    change_mapped(stack, length)
    tally.mmap += 1
    tally.mmap_bytes += length
    log(stack, MMAP, start, length)
    return start


@cold
def mmap(stack, length):
    """mmap: maps `length` bytes (rounded up to pages) and returns the address."""
    page = stack.linux.space[0].page_size
    length = (length + page - 1) & -page
    start, index = choose_place(stack, length)
    return count_mmap(stack, take_region(stack, start, index, length, WRITABLE, 0, 0), length)


@cold
def mmap_arena(stack, length):
    """Maps an arena at the next given address, or with `mmap` if all of them are used."""
    state = stack.linux
    space = state.space[0]
    if space.given == state.given.shape[0]:
        return mmap(stack, length)
    space.given += 1
    return count_mmap(stack, state.given[space.given - 1], length)


@cold
def mmap_huge_pages(stack, length):
    """mmap with MAP_HUGETLB: returns an address aligned to huge pages. Does not count reserved huge pages."""
    state = stack.linux
    space = state.space[0]
    huge = max(space.huge_page_size, space.page_size)
    padding = huge - space.page_size
    start, index = highest_hole(state, length + padding)
    start = take_region(stack, (start + padding) & -huge, index, length, WRITABLE | HUGETLB, 0, 0)
    return count_mmap(stack, start, length)


@cold
def mmap_hugetlb(stack, length, is_reserve, hint):
    """mmap with MAP_HUGETLB: returns the address, or -1 if too few reserved huge pages are left. `is_reserve`:
    PROT_NONE. `hint`: the address, if it is free; 0 for no hint."""
    state, tally = stack.linux, stack.tally[0]
    space, huge = state.space[0], state.space[0].huge_page_size
    whole = (length + huge - 1) & -huge
    tally.mmap += 1
    tally.mmap_bytes += length
    if whole >> space.huge_shift > space.huge_pages_left:
        log(stack, MMAP, -1, length)
        return np.int64(-1)
    start, index = hint, np.int64(hole_at(state, hint, whole)) if hint else np.int64(-1)
    if index < 0:
        padding = huge - space.page_size
        start, index = highest_hole(state, whole + padding)
        start = (start + padding) & -huge
    start = take_region(stack, start, index, whole, HUGETLB | COUNTED | (NO_RESERVE if is_reserve else WRITABLE), 0, 0)
    space.huge_pages_left -= whole >> space.huge_shift
    if is_reserve:
        add_reserved(stack, start, start + whole)
    else:
        change_mapped(stack, whole)
    log(stack, MMAP, start, length)
    return start


@leaf
def _count_munmap(stack, start, length):
    tally = stack.tally[0]
    tally.munmap += 1
    tally.munmap_bytes += length
    log(stack, MUNMAP, start, length)


@cold
def munmap(stack, start, length):
    """munmap: unmaps [start, start + length) and releases its pages. It may contain holes.

    Reserved huge pages are only unmapped as a whole; otherwise the call fails.
    """
    state = stack.linux
    space = state.space[0]
    end = start + ((length + space.page_size - 1) & -space.page_size)
    if is_hugetlb(state, start) and end & (space.huge_page_size - 1):
        _count_munmap(stack, start, end - start)
        return
    if start < space.mmap_base:
        cut_all(stack, start, end)
    else:
        change_mapped(stack, start - end)
    _count_munmap(stack, start, end - start)


@cold
def munmap_reserve(stack, start, length, reserved_bytes):
    """munmap of a stretch of which `reserved_bytes` are a reserve."""
    munmap(stack, start, length)


@cold
def mremap(stack, start, old_length, length):
    """mremap with MREMAP_MAYMOVE: resizes a mapping; both lengths are whole pages. Returns the address, or -1.

    A mapping shrinks in place. It grows in place if it is at the end of its region and the hole above is large enough.
    Else it moves with its pages to the address that mmap would choose. Mappings of reserved huge pages cannot grow.
    """
    state = stack.linux
    space, tally = state.space[0], stack.tally[0]
    tally.mremap += 1
    tally.mremap_bytes += length
    if is_hugetlb(state, start):
        huge = space.huge_page_size
        old_end, end = (start + old_length + huge - 1) & -huge, (start + length + huge - 1) & -huge
        if end < old_end:
            cut_out(stack, end, old_end)
        log(stack, MREMAP, start if end <= old_end else -1, length)
        return start if end <= old_end else np.int64(-1)
    if length < old_length:
        cut_out(stack, start + length, start + old_length)
        log(stack, MREMAP, start, length)
        return start
    kind, owner, moved = area_of(state, start)
    index = region_of(state, start)
    end = start + old_length
    ceiling = state.regions[index - 1].start if index > 0 else space.mmap_base
    if state.regions[index].end == end and ceiling - end >= length - old_length:
        insert_region(state, index, end, start + length)
        if space.transparent:
            add_area(stack, end, start + length, kind, owner, moved)
        change_mapped(stack, length - old_length)
        log(stack, MREMAP, start, length)
        return start
    place, index = choose_place(stack, length)
    place = take_region(stack, place, index, length, kind, owner, moved + start - place if owner else 0)
    if not tally.attention & NO_MEMORY:
        moved_bytes = move_pages(stack, start, place, old_length)
        if space.transparent:
            move_ranges(state, start, place, old_length)
        cut_out(stack, start, end)
        change_resident(stack, moved_bytes)  # after the old pages were released, so that no page counts twice
        change_mapped(stack, length)
    log(stack, MREMAP, place, length)
    return place


@cold
def brk(stack, new_brk):
    """brk: moves the end of the heap to `new_brk`, a page boundary not below `brk_base`."""
    state = stack.linux
    space, tally = state.space[0], stack.tally[0]
    old_brk = space.brk
    is_taken = space.sparse and new_brk > old_brk and hole_at(state, old_brk, new_brk + GAP_BYTES - old_brk) < 0
    if new_brk + GAP_BYTES > space.lowest or is_taken:
        attend(stack, NO_MEMORY)
        return
    if new_brk < old_brk:
        drop_pages(stack, new_brk, old_brk)
        change_mapped(stack, new_brk - old_brk)
        if space.transparent:
            unmap_areas(stack, new_brk, old_brk)
    else:
        change_mapped(stack, new_brk - old_brk)
        if space.transparent and new_brk > old_brk:
            add_area(stack, old_brk, new_brk, WRITABLE, 0, 0)
    space.brk = new_brk
    measure_headroom(state)
    if space.headroom < 0:
        ask_for_room(stack)
    tally.brk += 1
    tally.brk_bytes += abs(new_brk - old_brk)
    log(stack, BRK, new_brk, new_brk - old_brk)
