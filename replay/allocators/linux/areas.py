"""What decides whether Linux serves a first touch with a huge page: mapped areas, and where page tables are.

Follows `mm/vma.c`, `mm/memory.c`, `mm/huge_memory.c` and `mm/mremap.c` of Linux 6.18, for anonymous private memory of a
process that never forks. Kept only where transparent huge pages are not `never`, or huge pages are reserved.

    area    a stretch that is mapped in one piece (a VMA). Neighbours of one kind merge, unless both have been touched
            while they were apart (`owner`, the anon_vma), or one was moved here after it had been touched (`moved`)
    range   an aligned stretch of one huge page's size. Each is
              EMPTY      no page table: the first touch gives all of it a huge page, if it lies in one area that may
                         have such
              IN_PAGES   has a page table: pages come singly
              HUGE       is one huge page

A range goes from HUGE to IN_PAGES when part of it is unmapped, given back or moved, or gets another kind; its other
pages stay. It is EMPTY again when all of it is unmapped or given back by one call, when it moves as a whole, or when an
unmapping leaves no area in it. Otherwise an empty page table stays: giving a range back bit by bit does not do it. That
giving back by one call does is news of Linux 6.14 (CONFIG_PT_RECLAIM).

Resident is what RSS counts: Linux may keep the memory of a partly unmapped huge page until memory runs short.

A process may see huge pages where this file has none: khugepaged, which collapses single pages in the background, is
not modelled, nor are sizes between a page and a huge page. Memory for huge pages is taken to be there.

Invariants (`check_areas`):
    areas are disjoint, sorted by falling address, and cover what is mapped
    a HUGE range lies in one area and all its pages are resident; an EMPTY one has no resident page
"""

from typing import NamedTuple

import numpy as np

from replay.allocators._stack import MARGIN, ask_for_room
from replay.allocators.linux.tables import get_range, set_range, skip_unmade
from replay.jit.arrays import record
from replay.jit.compiling import leaf

NEVER, MADVISE_ONLY, ALWAYS, RESERVED_ONLY = range(4)
MODES = ("never", "madvise", "always")
"""As /sys/kernel/mm/transparent_hugepage/enabled calls them; RESERVED_ONLY is `never` where huge pages are reserved."""

WRITABLE, ADVISED, NO_RESERVE, HUGETLB, COUNTED, NOT_HUGE, CHARGED = 1, 2, 4, 8, 16, 32, 64
"""Bits of an area's kind: it may be touched; MADV_HUGEPAGE; MAP_NORESERVE; it is made of the kernel's reserved huge
pages; of those that `reserved_huge_pages` counts; MADV_NOHUGEPAGE; it was touched, but may not be now (VM_ACCOUNT)."""
EMPTY, IN_PAGES, HUGE = range(3)
"""What a range may be."""

AREA = record("start", "end", "kind", "owner", "moved")
"""`owner`: 0 before the first touch, then a number that areas split from each other share; `moved`: how far down mremap
has moved it since."""


@leaf
def find_area(state, address):
    """The highest area that starts at or below `address`; their number if none does."""
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
    """A new area before area `index`."""
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
    """Maps [start, end), where nothing is; it merges with the area below, the one above, or both."""
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
    """Takes [start, end) out of all areas."""
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
    """The kind of an area after bits were added and removed; it stays charged for what was touched."""
    changed = (kind | added) & ~removed
    if kind & removed & WRITABLE and owner and not kind & NO_RESERVE:
        changed |= CHARGED
    return changed


@leaf
def change_areas(stack, start, end, added, removed):
    """mprotect or madvise of [start, end): the kind of what is mapped there gets some bits, and loses others."""
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
    """Where an area begins or ends at `address`, no huge page can lie across."""
    index = find_area(state, address)
    begins = index < state.space[0].areas and state.areas[index].start == address
    if begins and address & (state.space[0].huge_page_size - 1) and get_range(state, address) == HUGE:
        set_range(state, address, IN_PAGES)


@leaf
def is_hugetlb(state, address):
    """Whether `address` lies in memory made of counted huge pages."""
    if not state.space[0].transparent:
        return False
    index = find_area(state, address)
    return index < state.space[0].areas and state.areas[index].end > address and state.areas[index].kind & COUNTED != 0


@leaf
def may_be_huge(state, area, address):
    """Whether a first touch of `address`, which lies in `area`, gets a huge page."""
    space = state.space[0]
    start = address & -space.huge_page_size
    if area.kind & (HUGETLB | NOT_HUGE) or get_range(state, address) != EMPTY:
        return False
    if space.transparent != ALWAYS and not area.kind & ADVISED:
        return False
    return area.start <= start and start + space.huge_page_size <= area.end


@leaf
def unmap_areas(stack, start, end):
    """munmap of [start, end): areas and page tables. What lies above `mmap_base` in the same range keeps that one's."""
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
    """madvise(MADV_DONTNEED) of [start, end): ranges in it that lie in one area lose their page table."""
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
    """The range of `address` is no huge page any more; its pages stay."""
    if get_range(state, address) == HUGE:
        set_range(state, address, IN_PAGES)


@leaf
def split_partly_covered(state, start, end):
    """madvise(MADV_FREE) of [start, end): it splits a huge page of which only part is in it."""
    huge = state.space[0].huge_page_size
    if start & (huge - 1):
        split_range(state, start)
    if end & (huge - 1):
        split_range(state, end - 1)


@leaf
def move_ranges(state, start, place, length):
    """mremap of `length` bytes from `start` to `place`: a range moves as a whole if it becomes one there."""
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
    """Raises AssertionError where an invariant of this file does not hold.

    `resident`: addresses of resident pages, sorted; `mapped`, `reserved`: stretches by falling address.
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
    """The stretches that areas cover, by falling address."""
    joined: list[tuple[int, int]] = []
    for start, end in zip(areas["start"].tolist(), areas["end"].tolist(), strict=True):
        joined[-1:] = [(start, joined[-1][1])] if joined and joined[-1][0] == end else [*joined[-1:], (start, end)]
    return joined
