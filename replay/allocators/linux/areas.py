"""The conditions for huge pages: mapped areas (VMAs), and which ranges have page tables.

Follows `mm/vma.c`, `mm/memory.c`, `mm/huge_memory.c` and `mm/mremap.c` of Linux 6.18, for anonymous private memory of a
process that never forks. Used only if transparent huge pages are not `never`, or if huge pages are reserved.

    area    a VMA. Adjacent areas of the same kind merge, unless both were touched before they became adjacent (`owner`
            represents the anon_vma), or one was moved here after it had been touched (`moved`)
    range   an aligned stretch of the size of a huge page. Its state is one of
              EMPTY      it has no page table: the first touch allocates a huge page, if all of it is in one area that
                         may have huge pages
              IN_PAGES   it has a page table: each page is allocated on its first touch
              HUGE       it is one huge page

The state changes from HUGE to IN_PAGES when part of the range is unmapped, released or moved, or changes its kind; its
other pages stay resident. It becomes EMPTY when one call unmaps or releases all of it, when it is moved as a whole, or
when munmap leaves no area in it. Otherwise, an empty page table stays, e.g. after several calls that release parts.
Since Linux 6.14, a call that releases all of a range also frees its page table (CONFIG_PT_RECLAIM).

Resident bytes are those that RSS counts. Linux may keep the memory of a partly unmapped huge page until memory is
short.

A process may have more huge pages than this model: khugepaged, which collapses single pages in the background, and
sizes between a page and a huge page are not simulated. Allocation of a transparent huge page never fails here.

Invariants (`check_areas`):
    areas are disjoint, sorted by descending address, and cover all mapped addresses
    a HUGE range is in one area, and all its pages are resident; an EMPTY range has no resident page
"""

from typing import NamedTuple

import numpy as np

from replay.allocators._stack import MARGIN, ask_for_room
from replay.allocators.linux.tables import get_range, set_range, skip_unmade
from replay.jit.arrays import record
from replay.jit.compiling import leaf

NEVER, MADVISE_ONLY, ALWAYS, RESERVED_ONLY = range(4)
MODES = ("never", "madvise", "always")
"""The values of /sys/kernel/mm/transparent_hugepage/enabled. RESERVED_ONLY is `never` with reserved huge pages."""

WRITABLE, ADVISED, NO_RESERVE, HUGETLB, COUNTED, NOT_HUGE, CHARGED = 1, 2, 4, 8, 16, 32, 64
"""Bits of an area's kind: access is allowed; MADV_HUGEPAGE; MAP_NORESERVE; MAP_HUGETLB; its huge pages count in
`reserved_huge_pages`; MADV_NOHUGEPAGE; it was touched, but access is not allowed now (VM_ACCOUNT)."""
EMPTY, IN_PAGES, HUGE = range(3)
"""States of a range."""

AREA = record("start", "end", "kind", "owner", "moved")
"""`owner`: 0 before the first touch, then a number, which areas split from each other share; `moved`: the distance by
which mremap has moved it down since."""


@leaf
def find_area(state, address):
    """Returns the index of the highest area that starts at or below `address`; the number of areas if there is none."""
    low, high = 0, state.space[0].areas
    while low < high:
        middle = (low + high) >> 1
        if state.areas[middle].start <= address:
            high = middle
        else:
            low = middle + 1
    return low


@leaf
def _put_area(stack, index, start, end, kind, owner, moved):
    """Inserts an area before area `index`."""
    state = stack.linux
    space, areas = state.space[0], state.areas
    for shifted in range(space.areas, index, -1):
        areas[shifted] = areas[shifted - 1]
    area = areas[index]
    area.start, area.end, area.kind, area.owner, area.moved = start, end, kind, owner, moved
    space.areas += 1
    if space.areas + 2 * MARGIN > areas.shape[0]:
        ask_for_room(stack)


@leaf
def _drop_area(state, index):
    space = state.space[0]
    for shifted in range(index, space.areas - 1):
        state.areas[shifted] = state.areas[shifted + 1]
    space.areas -= 1


@leaf
def add_area(stack, start, end, kind, owner, moved):
    """Adds an area at [start, end), which is unmapped. Merges it with the area below, the one above, or both."""
    state = stack.linux
    areas, index = state.areas, find_area(state, start)
    below, above = False, False
    if index < state.space[0].areas:
        area = areas[index]
        below = area.end == start and area.kind == kind and area.moved == moved
        below = below and (area.owner == owner or area.owner == 0 or owner == 0)
    if index > 0:
        area = areas[index - 1]
        above = area.start == end and area.kind == kind and area.moved == moved
        above = above and (area.owner == owner or area.owner == 0 or owner == 0)
        if above and below:
            other = areas[index].owner
            above = area.owner == other or area.owner == 0 or other == 0
    if below:
        area = areas[index]
        area.end, area.owner = end, max(area.owner, owner)
        if above:
            upper = areas[index - 1]
            upper.start, upper.owner = area.start, max(area.owner, upper.owner)
            _drop_area(state, index)
    elif above:
        area = areas[index - 1]
        area.start, area.owner = start, max(area.owner, owner)
    else:
        _put_area(stack, index, start, end, kind, owner, moved)


@leaf
def _cut_areas(stack, start, end):
    """Removes [start, end) from all areas."""
    state = stack.linux
    areas, index = state.areas, find_area(state, end - 1)
    while index < state.space[0].areas and areas[index].end > start:
        area = areas[index]
        if area.start < start and area.end > end:
            _put_area(stack, index, end, area.end, area.kind, area.owner, area.moved)
            areas[index + 1].end = start
            return
        if area.start < start:
            area.end = start
            return
        if area.end > end:
            area.start = end
            index += 1
        else:
            _drop_area(state, index)


@leaf
def _changed_kind(kind, owner, added, removed):
    """Returns the kind of an area with bits added and removed. A touched area that loses access stays charged."""
    changed = (kind | added) & ~removed
    if kind & removed & WRITABLE and owner and not kind & NO_RESERVE:
        changed |= CHARGED
    return changed


@leaf
def change_areas(stack, start, end, added, removed):
    """mprotect or madvise of [start, end): adds bits to the kind of all areas in it, and removes others."""
    state = stack.linux
    at = start
    while at < end:
        index = find_area(state, at)
        if index == state.space[0].areas or state.areas[index].end <= at:
            return
        area = state.areas[index]
        stop, kind, owner, moved = min(end, area.end), area.kind, area.owner, area.moved
        changed = _changed_kind(kind, owner, added, removed)
        if changed != kind:
            _cut_areas(stack, at, stop)
            add_area(stack, at, stop, changed, owner, moved)
        at = stop
    _split_at_edge(state, start)
    _split_at_edge(state, end)


@leaf
def _split_at_edge(state, address):
    """Splits the huge page across `address`, if an area starts there."""
    index = find_area(state, address)
    begins = index < state.space[0].areas and state.areas[index].start == address
    if begins and address & (state.space[0].huge_page_size - 1) and get_range(state, address) == HUGE:
        set_range(state, address, IN_PAGES)


@leaf
def is_hugetlb(state, address):
    """Returns whether `address` is in memory of counted reserved huge pages."""
    if not state.space[0].transparent:
        return False
    index = find_area(state, address)
    return index < state.space[0].areas and state.areas[index].end > address and state.areas[index].kind & COUNTED != 0


@leaf
def may_be_huge(state, area, address):
    """Returns whether a first touch of `address`, which is in `area`, allocates a huge page."""
    space = state.space[0]
    start = address & -space.huge_page_size
    if area.kind & (HUGETLB | NOT_HUGE) or get_range(state, address) != EMPTY:
        return False
    if space.transparent != ALWAYS and not area.kind & ADVISED:
        return False
    return area.start <= start and start + space.huge_page_size <= area.end


@leaf
def unmap_areas(stack, start, end):
    """munmap of [start, end): removes areas and page tables. A page table of a range that reaches above `mmap_base`
    stays."""
    state = stack.linux
    space, huge = state.space[0], state.space[0].huge_page_size
    _cut_areas(stack, start, end)
    at = start
    while at < end:
        first = at & -huge
        index = find_area(state, first + huge - 1)
        is_bare = index == space.areas or state.areas[index].end <= first
        if is_bare and first + huge <= space.mmap_base:
            set_range(state, at, EMPTY)
        elif get_range(state, at) == HUGE:
            set_range(state, at, IN_PAGES)
        at = skip_unmade(state, first + huge, end)


@leaf
def empty_ranges(state, start, end):
    """madvise(MADV_DONTNEED) of [start, end): frees the page tables of ranges that are in it and in one area."""
    huge = state.space[0].huge_page_size
    at = start
    while at < end:
        index = find_area(state, at)
        first, last = at & -huge, (at & -huge) + huge
        stop = min(end, last)
        if index < state.space[0].areas:
            stop = min(stop, state.areas[index].end)
        if at == first and stop == last:
            set_range(state, at, EMPTY)
        elif get_range(state, at) == HUGE:
            set_range(state, at, IN_PAGES)
        at = skip_unmade(state, stop, end)


@leaf
def split_range(state, address):
    """Splits a huge page into pages, which stay resident."""
    if get_range(state, address) == HUGE:
        set_range(state, address, IN_PAGES)


@leaf
def split_partly_covered(state, start, end):
    """madvise(MADV_FREE) of [start, end): splits huge pages that are only partly in it."""
    huge = state.space[0].huge_page_size
    if start & (huge - 1):
        split_range(state, start)
    if end & (huge - 1):
        split_range(state, end - 1)


@leaf
def move_ranges(state, start, place, length):
    """mremap of `length` bytes from `start` to `place`: moves states of ranges. A range keeps its state if it is
    aligned at its new address."""
    huge = state.space[0].huge_page_size
    at = 0
    while at < length:
        old, new = start + at, place + at
        part = min(length - at, min(huge - (old & (huge - 1)), huge - (new & (huge - 1))))
        found = get_range(state, old)
        if found != EMPTY:
            if part == huge:
                set_range(state, new, found)
                set_range(state, old, EMPTY)
            else:
                set_range(state, old, IN_PAGES)
                set_range(state, new, IN_PAGES)
        at += part


def check_areas(
    state: NamedTuple, resident: np.ndarray, mapped: list[tuple[int, int]], reserved: list[tuple[int, int]]
) -> None:
    """Raises AssertionError if an invariant of this file does not hold.

    `resident`: sorted addresses of resident pages; `mapped`, `reserved`: stretches by descending address.
    """
    space = state.space[0]  # type: ignore[attr-defined]
    areas = state.areas[: space.areas]  # type: ignore[attr-defined]
    assert (areas["start"] < areas["end"]).all()
    assert (areas["end"][1:] <= areas["start"][:-1]).all(), "areas overlap or are out of order"
    assert _joined(areas) == mapped
    assert _joined(areas[areas["kind"] & WRITABLE == 0]) == reserved
    huge = int(space.huge_page_size)
    for start, end in mapped:
        first = start & -huge
        while first < end:
            kind = get_range(state, max(first, start))
            pages = np.searchsorted(resident, first + huge) - np.searchsorted(resident, first)
            assert kind != EMPTY or pages == 0, "a page of a range without page table is resident"
            if kind == HUGE:
                assert pages == huge // space.page_size
                area = areas[find_area(state, first)]
                assert area["start"] <= first < first + huge <= area["end"]
            first = skip_unmade(state, first + huge, end)


def _joined(areas: np.ndarray) -> list[tuple[int, int]]:
    """Returns the stretches that areas cover, by descending address."""
    joined: list[tuple[int, int]] = []
    for start, end in zip(areas["start"].tolist(), areas["end"].tolist(), strict=True):
        joined[-1:] = [(start, joined[-1][1])] if joined and joined[-1][0] == end else [*joined[-1:], (start, end)]
    return joined
