"""Which pages are resident.

Pages are marked in two bit tables, one counted downwards from `mmap_base`, one upwards from `brk_base`.
"""

import numpy as np

from replay.allocators._stack import change_resident
from replay.allocators.linux.areas import (
    COUNTED,
    EMPTY,
    HUGE,
    IN_PAGES,
    find_area,
    may_be_huge,
    range_state,
    set_range_state,
)
from replay.jit.compiling import cold, leaf


@leaf
def _count_bits(word):
    """How many of 64 bits are set. The masks keep every step in the positive range of int64."""
    low = word & 0xFFFFFFFF
    high = (word >> 32) & 0xFFFFFFFF
    low -= (low >> 1) & 0x55555555
    high -= (high >> 1) & 0x55555555
    low = (low & 0x33333333) + ((low >> 2) & 0x33333333)
    high = (high & 0x33333333) + ((high >> 2) & 0x33333333)
    both = ((low + (low >> 4)) & 0x0F0F0F0F) + ((high + (high >> 4)) & 0x0F0F0F0F)
    return ((both * 0x01010101) >> 24) & 0xFF


@leaf
def _set_bits(bits, first, last, value):
    """Sets bits first … last to `value` in place; returns how many changed."""
    changed = 0
    for index in range(first >> 6, (last >> 6) + 1):
        mask = np.int64(-1)
        if index == first >> 6:
            mask <<= first & 63
        if index == last >> 6 and (last & 63) != 63:
            mask &= ~(np.int64(-1) << ((last & 63) + 1))
        word = bits[index]
        fresh = mask & ~word if value else mask & word
        if fresh != 0:
            changed += _count_bits(fresh)
            bits[index] = word ^ fresh
    return changed


@leaf
def mark(stack, start, end, value):
    """How many pages changed. Outside of heap and mappings lie none: a model without real addresses gives such ones."""
    space = stack.linux.space[0]
    shift = space.page_shift
    if start >= space.lowest:
        if end > space.mmap_base:
            return 0
        last = (space.mmap_base - 1 - start) >> shift
        return _set_bits(stack.linux.mmap_pages, (space.mmap_base - end) >> shift, last, value)
    if start < space.brk_base or end > space.brk:
        return 0
    first = (start - space.brk_base) >> shift
    return _set_bits(stack.linux.heap_pages, first, (end - 1 - space.brk_base) >> shift, value)


@cold
def touch(stack, start, end):
    """The pages of [start, end), end > start, are written to."""
    space, tally = stack.linux.space[0], stack.tally[0]
    if space.transparent:
        fresh = _touch_areas(stack, start, end)
    else:
        fresh = mark(stack, start, end, True)
        tally.page_faults += fresh
    if fresh:
        change_resident(stack, fresh << space.page_shift)


@leaf
def _touch_areas(stack, start, end):
    """The same where pages may be huge: range by range. How many became resident."""
    state, tally = stack.linux, stack.tally[0]
    space, huge = state.space[0], state.space[0].huge_page_size
    fresh, at = 0, start
    while at < end:
        index = find_area(state, at)
        if index == space.areas or state.areas[index].end <= at:
            return fresh
        area = state.areas[index]
        stop = min(end, min(area.end, (at & -huge) + huge))
        if (area.kind & COUNTED and range_state(state, at) == EMPTY) or may_be_huge(state, area, at):
            first = at & -huge
            fresh += mark(stack, first, first + huge, True)
            set_range_state(state, at, HUGE)
            tally.page_faults += 1
            tally.huge_pages += 1
        elif range_state(state, at) != HUGE:
            pages = mark(stack, at, stop, True)
            fresh += pages
            tally.page_faults += pages
            set_range_state(state, at, IN_PAGES)
        if area.owner == 0:
            space.owners += 1
            area.owner = space.owners
        at = stop
    return fresh


@leaf
def move_pages(stack, start, place, length):
    """Marks at `place` what is marked at `start`; returns how many bytes that are."""
    space, pages = stack.linux.space[0], stack.linux.mmap_pages
    moved = 0
    for page in range(length >> space.page_shift):
        offset = page << space.page_shift
        bit = (space.mmap_base - 1 - (start + offset)) >> space.page_shift
        if pages[bit >> 6] >> (bit & 63) & 1:
            moved += mark(stack, place + offset, place + offset + space.page_size, True)
    return moved << space.page_shift
