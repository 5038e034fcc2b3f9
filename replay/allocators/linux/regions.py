"""Regions: maximal ranges of mapped addresses, and the holes between them."""

import numpy as np

from replay.allocators._stack import MARGIN, NO_MEMORY, ask_for_room, attend, change_mapped
from replay.allocators.linux.areas import (
    WRITABLE,
    add_area,
    find_area,
    is_hugetlb,
    unmap_areas,
)
from replay.allocators.linux.pages import drop_pages
from replay.allocators.linux.reserves import release_reserved
from replay.allocators.linux.settings import GAP_BYTES
from replay.allocators.linux.tables import measure_headroom, region_of
from replay.jit.compiling import cold, leaf


@leaf
def highest_hole(state, length):
    """Returns the start of the highest free `length` bytes, and the index at which their region would be inserted."""
    ceiling = state.space[0].mmap_base
    count = state.space[0].regions
    for index in range(count):
        if ceiling - state.regions[index].end >= length:
            return ceiling - length, index
        ceiling = state.regions[index].start
    return ceiling - length, count


@leaf
def hole_at(state, start, length):
    """Returns the index at which a region [start, start + length) would be inserted; -1 if part of it is mapped."""
    regions, count = state.regions, state.space[0].regions
    index = 0
    while index < count and regions[index].start >= start + length:
        index += 1
    return index if index == count or regions[index].end <= start else -1


@leaf
def area_of(state, start):
    """Returns kind, owner and moved of the area of `start`; those of a new area if areas are not used."""
    if not state.space[0].transparent:
        return np.int64(WRITABLE), np.int64(0), np.int64(0)
    area = state.areas[find_area(state, start)]
    return area.kind, area.owner, area.moved


@leaf
def insert_region(state, index, start, end):
    """Inserts [start, end) before region `index`, and merges it with adjacent regions."""
    space, regions = state.space[0], state.regions
    above = index > 0 and regions[index - 1].start == end
    below = index < space.regions and regions[index].end == start
    if above and below:
        regions[index - 1].start = regions[index].start
        for moved in range(index, space.regions - 1):
            regions[moved].start, regions[moved].end = regions[moved + 1].start, regions[moved + 1].end
        space.regions -= 1
    elif above:
        regions[index - 1].start = start
    elif below:
        regions[index].end = end
    else:
        for moved in range(space.regions, index, -1):
            regions[moved].start, regions[moved].end = regions[moved - 1].start, regions[moved - 1].end
        regions[index].start, regions[index].end = start, end
        space.regions += 1


@leaf
def take_region(stack, start, index, length, kind, owner, moved):
    """Maps [start, start + length), before region `index`, as an area of this kind. Returns `start`, or another address
    if the address space is full."""
    state = stack.linux
    space = state.space[0]
    if start < space.brk + GAP_BYTES:
        attend(stack, NO_MEMORY)
        return space.lowest
    if start < space.lowest:
        space.lowest = start
        measure_headroom(state)
    return put_region(stack, start, index, length, kind, owner, moved)


@leaf
def put_region(stack, start, index, length, kind, owner, moved):
    """Maps [start, start + length) at any address. A mapping far below all others does not change `space.lowest`."""
    state = stack.linux
    space = state.space[0]
    insert_region(state, index, start, start + length)
    if start < space.reach:
        space.sparse = 1
    elif start < space.lowest:
        space.lowest = start
        measure_headroom(state)
    if space.headroom < 0 or space.regions + MARGIN > state.regions.shape[0]:
        ask_for_room(stack)
    if space.transparent:
        add_area(stack, start, start + length, kind, owner, moved)
    return start


@leaf
def cut_out(stack, start, end):
    """Unmaps [start, end), which is in one region, and releases its pages."""
    state = stack.linux
    space, regions = state.space[0], state.regions
    index = region_of(state, start)
    region = regions[index]
    if region.end == end and region.start == start:
        for moved in range(index, space.regions - 1):
            regions[moved].start, regions[moved].end = regions[moved + 1].start, regions[moved + 1].end
        space.regions -= 1
    elif region.end == end:
        region.end = start
    elif region.start == start:
        region.start = end
    else:
        for moved in range(space.regions, index, -1):
            regions[moved].start, regions[moved].end = regions[moved - 1].start, regions[moved - 1].end
        regions[index].start = end
        regions[index + 1].end = start
        space.regions += 1
        if space.regions + MARGIN > regions.shape[0]:
            ask_for_room(stack)
    drop_pages(stack, start, end)
    released = release_reserved(stack, start, end) if space.reserves else 0
    change_mapped(stack, start - end + released)
    if space.transparent:
        if is_hugetlb(state, start):
            space.huge_pages_left += (end - start) >> space.huge_shift
        unmap_areas(stack, start, end)


@cold
def cut_all(stack, start, end):
    """Unmaps all regions in [start, end)."""
    state = stack.linux
    while state.space[0].regions:
        region = state.regions[region_of(state, end - 1)]
        first, last = max(start, region.start), min(end, region.end)
        if first >= last:
            return
        cut_out(stack, first, last)
        end = first
