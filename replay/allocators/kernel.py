"""The address space of a Linux process: mmap, munmap, brk, and which pages are resident.

Follows `mm/mmap.c` of Linux 6.x for x86-64, top-down layout, anonymous private mappings only.

    mmap area   everything below `mmap_base`, filled downwards: a new mapping takes the top end of the *highest* hole
                that is large enough. A length that is a whole number of huge pages is aligned to a huge page, as seen
                in Linux 6.18 (`huge_page_size`; 0: not at all): the hole must be larger by one huge page, and of that
                stretch the highest aligned place is taken. For a mapping *of* huge pages one page less will do.
    heap        grows upwards from `brk_base`.
    region      a maximal range of mapped addresses; neighbours merge, as the kernel merges their VMAs.
    given       places of arenas as a recording saw them: above `mmap_base`, where nothing else is kept account of
    reserve     addresses that are taken but may not be touched (PROT_NONE), until mprotect lets the program at them;
                until then they are no mapped memory
    huge page   with `transparent_huge_pages`, a first touch makes a whole aligned range resident where `areas` says so,
                and counts as one page fault. Single pages of it can go again.
    hugetlb     memory made of reserved huge pages (MAP_HUGETLB), of which so many are free as a program starts.
                A mapping takes all it may need, or is refused; a first touch makes one of them resident; only whole
                ones can be given back, and such a mapping never grows.

Invariants (`check`):
    regions are disjoint, not adjacent, page-aligned, and sorted by falling address
    mapped_bytes == sum of regions - reserved_bytes + (brk - brk_base)
    resident_bytes == page_size * pages marked, and only mapped pages are marked

Pages are marked in two bit tables, one counted downwards from `mmap_base`, one upwards from `brk_base`. `headroom` is
how many bytes a single event may still map before the tables must grow; the player asks before it plays an event.
"""

from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from replay.allocators.areas import (
    ADVISED,
    AREA,
    COUNTED,
    EMPTY,
    HUGE,
    HUGETLB,
    IN_PAGES,
    MODES,
    NEVER,
    NO_RESERVE,
    RESERVED_ONLY,
    WRITABLE,
    add_area,
    change_areas,
    check_areas,
    empty_ranges,
    find_area,
    is_hugetlb,
    may_be_huge,
    move_ranges,
    range_state,
    set_range_state,
    unmap_areas,
)
from replay.allocators.stack import (
    MARGIN,
    NO_MEMORY,
    RESIDENT_PEAK,
    SYSCALLS,
    ask_for_room,
    extend,
    log,
    record,
)
from replay.by_reference import by_reference
from replay.compiled import cold, leaf
from replay.units import Size

MMAP, MUNMAP, MREMAP, BRK, MADVISE, MPROTECT = range(len(SYSCALLS))

SLACK_BYTES = 256 << 20
"""Address space that one event may take beside what it asks for: an arena, tables, top_pad, padding to huge pages. What
configurations may set is limited so that all of them together stay below."""
GAP_BYTES = 1 << 20
"""Heap and mappings never come closer."""


class Config(BaseModel):
    """The kernel below the allocators."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Literal["linux"] = "linux"
    page_size: Size = 4096
    huge_page_size: Size = Field(2 << 20, description="Alignment of mappings that are multiples of it; 0: none.")
    transparent_huge_pages: Literal["never", "madvise", "always"] = Field(
        "never", description="Whether a first touch may get a huge page: where malloc asked for it, or anywhere."
    )
    reserved_huge_pages: int = Field(
        0, ge=0, le=1 << 20, description="Free ones (vm.nr_hugepages), for what malloc maps with MAP_HUGETLB."
    )
    mmap_base: Size = Field(0x7FFFF7FF1000, description="The first mapping ends here.")
    brk_base: Size = Field(0x555555560000, description="The heap starts here.")

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        if not 256 <= self.page_size <= 1 << 21 or self.page_size & (self.page_size - 1):
            raise ValueError(f"page_size: {self.page_size} is no power of two from 256 bytes to 2 MiB")
        if self.huge_page_size and (
            self.huge_page_size & (self.huge_page_size - 1)
            or self.huge_page_size % self.page_size
            or self.huge_page_size > 32 << 20
        ):
            raise ValueError(f"huge_page_size: {self.huge_page_size} is no power of two of whole pages up to 32 MiB")
        if self.transparent_huge_pages != "never" and self.huge_page_size <= self.page_size:
            raise ValueError(
                f"transparent_huge_pages: {self.transparent_huge_pages} needs a huge_page_size above page_size"
            )
        if self.reserved_huge_pages and self.huge_page_size <= self.page_size:
            raise ValueError(f"reserved_huge_pages: {self.reserved_huge_pages} need a huge_page_size above page_size")
        for name in ("mmap_base", "brk_base"):
            if getattr(self, name) % self.page_size:
                raise ValueError(f"{name}: {getattr(self, name):#x} is not a multiple of the page size")
        if not 0 < self.brk_base < self.mmap_base - 2 * SLACK_BYTES or self.mmap_base >= 1 << 47:
            raise ValueError(
                f"mmap_base: {self.mmap_base:#x} must lie well above brk_base {self.brk_base:#x} and below 2^47"
            )
        return self


SPACE = record(
    "page_size", "page_shift", "huge_page_size", "mmap_base", "brk_base", "brk", "lowest", "regions", "headroom",
    "reserved_bytes", "given", "transparent", "huge_shift", "areas", "owners",
    "huge_pages_left",
)  # fmt: skip
REGION = record("start", "end")


@by_reference
class State(NamedTuple):
    """`space`: one SPACE record; `regions`: REGION by falling address; the bits of resident pages; given places, of
    which `space.given` were taken; AREA by falling address and the states of ranges, both only where huge pages may be.
    `space.huge_pages_left` are reserved and no mapping's."""

    space: np.ndarray
    regions: np.ndarray
    mmap_pages: np.ndarray
    heap_pages: np.ndarray
    given: np.ndarray
    areas: np.ndarray
    mmap_ranges: np.ndarray
    heap_ranges: np.ndarray


def new_state(config: Config) -> State:
    """An address space with nothing in it."""
    words = 4 * SLACK_BYTES // (64 * config.page_size)
    state = State(
        space=np.zeros(1, SPACE),
        regions=np.zeros(256, REGION),
        mmap_pages=np.zeros(words, np.int64),
        heap_pages=np.zeros(words, np.int64),
        given=np.zeros(0, np.int64),
        areas=np.zeros(0, AREA),
        mmap_ranges=np.zeros(0, np.uint8),
        heap_ranges=np.zeros(0, np.uint8),
    )
    space = state.space[0]
    space.page_size, space.page_shift = config.page_size, config.page_size.bit_length() - 1
    space.huge_page_size, space.huge_shift = config.huge_page_size, max(config.huge_page_size.bit_length() - 1, 0)
    space.transparent, space.huge_pages_left = MODES.index(config.transparent_huge_pages), config.reserved_huge_pages
    if config.reserved_huge_pages and space.transparent == NEVER:
        space.transparent = RESERVED_ONLY
    state = _with_ranges(state)
    space = state.space[0]
    space.mmap_base = space.lowest = config.mmap_base
    space.brk_base = space.brk = config.brk_base
    _measure_headroom(state)
    return state


def _with_ranges(state: State) -> State:
    """The same address space with as much room for areas as for regions, and a state for each range that has pages."""
    space = state.space[0]
    if space.transparent == NEVER:
        return state
    ranges = [
        2 + ((pages.shape[0] << (space.page_shift + 6)) >> space.huge_shift)
        for pages in (state.mmap_pages, state.heap_pages)
    ]
    return state._replace(
        areas=extend(state.areas, max(state.regions.shape[0], 3 * int(space.areas))),
        mmap_ranges=extend(state.mmap_ranges, ranges[0]),
        heap_ranges=extend(state.heap_ranges, ranges[1]),
    )


@leaf
def _measure_headroom(state):
    space = state.space[0]
    bits = space.page_shift + 6
    below = (state.mmap_pages.shape[0] << bits) - (space.mmap_base - space.lowest)
    above = (state.heap_pages.shape[0] << bits) - (space.brk - space.brk_base)
    space.headroom = min(below, above) - SLACK_BYTES


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
def _mark(stack, start, end, value):
    """How many pages changed. Outside of heap and mappings lie none: a model without real addresses gives such ones."""
    space = stack.kernel.space[0]
    shift = space.page_shift
    if start >= space.lowest:
        if end > space.mmap_base:
            return 0
        last = (space.mmap_base - 1 - start) >> shift
        return _set_bits(stack.kernel.mmap_pages, (space.mmap_base - end) >> shift, last, value)
    if start < space.brk_base or end > space.brk:
        return 0
    first = (start - space.brk_base) >> shift
    return _set_bits(stack.kernel.heap_pages, first, (end - 1 - space.brk_base) >> shift, value)


@cold
def touch(stack, start, end):
    """The pages of [start, end), end > start, are written to."""
    space, tally = stack.kernel.space[0], stack.tally[0]
    if space.transparent:
        fresh = _touch_areas(stack, start, end)
    else:
        fresh = _mark(stack, start, end, True)
        tally.page_faults += fresh
    if fresh:
        tally.resident_bytes += fresh << space.page_shift
        if tally.resident_bytes > tally.resident_bytes_peak:
            tally.resident_bytes_peak = tally.resident_bytes
            tally.attention |= RESIDENT_PEAK


@leaf
def _touch_areas(stack, start, end):
    """The same where pages may be huge: range by range. How many became resident."""
    state, tally = stack.kernel, stack.tally[0]
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
            fresh += _mark(stack, first, first + huge, True)
            set_range_state(state, at, HUGE)
            tally.page_faults += 1
            tally.huge_pages += 1
        elif range_state(state, at) != HUGE:
            pages = _mark(stack, at, stop, True)
            fresh += pages
            tally.page_faults += pages
            set_range_state(state, at, IN_PAGES)
        if area.owner == 0:
            space.owners += 1
            area.owner = space.owners
        at = stop
    return fresh


@leaf
def _map(stack, length):
    tally = stack.tally[0]
    tally.mapped_bytes += length
    tally.mapped_bytes_peak = max(tally.mapped_bytes_peak, tally.mapped_bytes)


@leaf
def _highest_hole(state, length):
    """Where `length` bytes fit highest, and before which region that is."""
    ceiling = state.space[0].mmap_base
    count = state.space[0].regions
    for index in range(count):
        if ceiling - state.regions[index].end >= length:
            return ceiling - length, index
        ceiling = state.regions[index].start
    return ceiling - length, count


@leaf
def _insert(state, index, start, end):
    """Puts [start, end) before region `index`, and merges it with the neighbours that it touches."""
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
def _take(stack, start, index, length, kind, owner, moved):
    """Maps [start, start + length), which lies before region `index`, as an area of this kind; gives its address."""
    state = stack.kernel
    space, tally = state.space[0], stack.tally[0]
    if start < space.brk + GAP_BYTES:
        tally.attention |= NO_MEMORY
        return space.lowest
    _insert(state, index, start, start + length)
    if start < space.lowest:
        space.lowest = start
        _measure_headroom(state)
    if space.headroom < 0 or space.regions + MARGIN > state.regions.shape[0]:
        ask_for_room(stack)
    if space.transparent:
        add_area(stack, start, start + length, kind, owner, moved)
    return start


@leaf
def _choose(stack, length):
    """Where mmap puts `length` bytes of whole pages, and before which region that is."""
    state = stack.kernel
    huge = state.space[0].huge_page_size
    if huge and length % huge == 0:
        start, index = _highest_hole(state, length + huge)
        return (start & -huge) + huge, index
    return _highest_hole(state, length)


@leaf
def _count_mmap(stack, start, length):
    tally = stack.tally[0]
    _map(stack, length)
    tally.mmap += 1
    tally.mmap_bytes += length
    log(stack, MMAP, start, length)
    return start


@cold
def mmap(stack, length):
    """The address of `length` new bytes (rounded up to pages)."""
    page = stack.kernel.space[0].page_size
    length = (length + page - 1) & -page
    start, index = _choose(stack, length)
    return _count_mmap(stack, _take(stack, start, index, length, WRITABLE, 0, 0), length)


@cold
def mmap_arena(stack, length):
    """The same, but where the next given place is, as long as there is one."""
    state = stack.kernel
    space = state.space[0]
    if space.given == state.given.shape[0]:
        return mmap(stack, length)
    space.given += 1
    return _count_mmap(stack, state.given[space.given - 1], length)


@cold
def mmap_huge_pages(stack, length):
    """The same for memory made of huge pages (MAP_HUGETLB): at their alignment, in a hole with room for that."""
    state = stack.kernel
    space = state.space[0]
    huge = max(space.huge_page_size, space.page_size)
    padding = huge - space.page_size
    start, index = _highest_hole(state, length + padding)
    start = _take(stack, (start + padding) & -huge, index, length, WRITABLE | HUGETLB, 0, 0)
    return _count_mmap(stack, start, length)


@cold
def mmap_hugetlb(stack, length, is_reserve, hint):
    """The same, from what is reserved for it: -1 if that is too little. PROT_NONE if it `is_reserve`; at `hint` if that
    is free, and no 0."""
    state, tally = stack.kernel, stack.tally[0]
    space, huge = state.space[0], state.space[0].huge_page_size
    whole = (length + huge - 1) & -huge
    tally.mmap += 1
    tally.mmap_bytes += length
    if whole >> space.huge_shift > space.huge_pages_left:
        log(stack, MMAP, -1, length)
        return np.int64(-1)
    start, index = hint, np.int64(_hole_at(state, hint, whole)) if hint else np.int64(-1)
    if index < 0:
        padding = huge - space.page_size
        start, index = _highest_hole(state, whole + padding)
        start = (start + padding) & -huge
    start = _take(stack, start, index, whole, HUGETLB | COUNTED | (NO_RESERVE if is_reserve else WRITABLE), 0, 0)
    space.huge_pages_left -= whole >> space.huge_shift
    if is_reserve:
        space.reserved_bytes += whole
    else:
        _map(stack, whole)
    log(stack, MMAP, start, length)
    return start


@leaf
def _hole_at(state, start, length):
    """Before which region [start, start + length) lies, or -1 if some of it is mapped."""
    regions, count = state.regions, state.space[0].regions
    index = 0
    while index < count and regions[index].start >= start + length:
        index += 1
    return index if index == count or regions[index].end <= start else -1


@cold
def reserve(stack, length, hint):
    """mmap with PROT_NONE: the address of `length` bytes that nothing else will lie in; at `hint` if that is free.

    A hint of 0 is none; with one that is taken, no alignment to huge pages is looked for.
    """
    state, tally = stack.kernel, stack.tally[0]
    if hint == 0:
        start, index = _choose(stack, length)
    else:
        start, index = hint, np.int64(_hole_at(state, hint, length))
        if index < 0:
            start, index = _highest_hole(state, length)
    start = _take(stack, start, index, length, NO_RESERVE, 0, 0)
    state.space[0].reserved_bytes += length
    tally.mmap += 1
    tally.mmap_bytes += length
    log(stack, MMAP, start, length)
    return start


@cold
def protect(stack, start, length):
    """mprotect: a reserved stretch becomes memory."""
    tally = stack.tally[0]
    space = stack.kernel.space[0]
    space.reserved_bytes -= length
    if space.transparent:
        change_areas(stack, start, start + length, WRITABLE)
    _map(stack, length)
    tally.mprotect += 1
    tally.mprotect_bytes += length
    log(stack, MPROTECT, start, length)


@leaf
def _region_of(state, start):
    """The region that `start` lies in."""
    low, high = 0, state.space[0].regions - 1
    while low < high:
        middle = (low + high) >> 1
        if state.regions[middle].start <= start:
            high = middle
        else:
            low = middle + 1
    return low


@leaf
def _cut_out(stack, start, end):
    """Takes [start, end), which lies in one region, out of the mappings; its pages are gone."""
    state = stack.kernel
    space, regions = state.space[0], state.regions
    index = _region_of(state, start)
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
    tally = stack.tally[0]
    tally.resident_bytes -= _mark(stack, start, end, False) << space.page_shift
    tally.mapped_bytes -= end - start
    if space.transparent:
        if is_hugetlb(state, start):
            space.huge_pages_left += (end - start) >> space.huge_shift
        unmap_areas(stack, start, end)


@leaf
def _count_munmap(stack, start, length):
    tally = stack.tally[0]
    tally.munmap += 1
    tally.munmap_bytes += length
    log(stack, MUNMAP, start, length)


@cold
def munmap(stack, start, length):
    """Gives [start, start + length) back; all of it must be mapped, in one region. Part of a huge page cannot go."""
    state, tally = stack.kernel, stack.tally[0]
    space = state.space[0]
    end = start + ((length + space.page_size - 1) & -space.page_size)
    if is_hugetlb(state, start) and end & (space.huge_page_size - 1):
        _count_munmap(stack, start, end - start)
        return
    if start < space.mmap_base:
        _cut_out(stack, start, end)
    else:
        tally.mapped_bytes -= end - start
    _count_munmap(stack, start, end - start)


@cold
def munmap_reserve(stack, start, length, reserved_bytes):
    """The same where `reserved_bytes` of it were never made memory."""
    stack.kernel.space[0].reserved_bytes -= reserved_bytes
    stack.tally[0].mapped_bytes += reserved_bytes
    munmap(stack, start, length)


@cold
def mremap(stack, start, old_length, length):
    """Resizes a mapping (MREMAP_MAYMOVE), whole pages both; gives its address.

    It shrinks where it is, and grows there if it ends its region and the hole above is large enough. Else it moves to
    where mmap would put it, and its pages with it. -1 if it would grow and is made of huge pages.
    """
    state = stack.kernel
    space, tally = state.space[0], stack.tally[0]
    tally.mremap += 1
    tally.mremap_bytes += length
    if is_hugetlb(state, start):
        huge = space.huge_page_size
        old_end, end = (start + old_length + huge - 1) & -huge, (start + length + huge - 1) & -huge
        if end < old_end:
            _cut_out(stack, end, old_end)
        log(stack, MREMAP, start if end <= old_end else -1, length)
        return start if end <= old_end else np.int64(-1)
    if length < old_length:
        _cut_out(stack, start + length, start + old_length)
        log(stack, MREMAP, start, length)
        return start
    kind, owner, moved = _area_of(state, start)
    index = _region_of(state, start)
    end = start + old_length
    ceiling = state.regions[index - 1].start if index > 0 else space.mmap_base
    if state.regions[index].end == end and ceiling - end >= length - old_length:
        _insert(state, index, end, start + length)
        if space.transparent:
            add_area(stack, end, start + length, kind, owner, moved)
        _map(stack, length - old_length)
        log(stack, MREMAP, start, length)
        return start
    place, index = _choose(stack, length)
    place = _take(stack, place, index, length, kind, owner, moved + start - place if owner else 0)
    if not tally.attention & NO_MEMORY:
        _move_pages(stack, start, place, old_length)
        if space.transparent:
            move_ranges(state, start, place, old_length)
        _cut_out(stack, start, end)
        _map(stack, length)
    log(stack, MREMAP, place, length)
    return place


@leaf
def _area_of(state, start):
    """Kind, owner and moved of the area that `start` lies in; those of a new one where areas are not kept."""
    if not state.space[0].transparent:
        return np.int64(WRITABLE), np.int64(0), np.int64(0)
    area = state.areas[find_area(state, start)]
    return area.kind, area.owner, area.moved


@leaf
def _move_pages(stack, start, place, length):
    """Marks at `place` what is marked at `start`."""
    space, pages = stack.kernel.space[0], stack.kernel.mmap_pages
    for page in range(length >> space.page_shift):
        offset = page << space.page_shift
        bit = (space.mmap_base - 1 - (start + offset)) >> space.page_shift
        if pages[bit >> 6] >> (bit & 63) & 1:
            moved = _mark(stack, place + offset, place + offset + space.page_size, True)
            stack.tally[0].resident_bytes += moved << space.page_shift


@cold
def dontneed(stack, start, length):
    """madvise(MADV_DONTNEED): the pages go, the addresses stay. Of huge pages, whole ones from the start on."""
    state = stack.kernel
    _count_madvise(stack, start, length)
    if is_hugetlb(state, start):
        huge = state.space[0].huge_page_size
        length = 0 if start & (huge - 1) else length & -huge
        if length == 0:
            return
    stack.tally[0].resident_bytes -= _mark(stack, start, start + length, False) << state.space[0].page_shift
    if state.space[0].transparent:
        empty_ranges(state, start, start + length)


@cold
def advise_huge_pages(stack, start, length):
    """madvise(MADV_HUGEPAGE): first touches may get huge pages from now on, unless they are `never`."""
    if stack.kernel.space[0].transparent:
        change_areas(stack, start, start + length, ADVISED)
    _count_madvise(stack, start, length)


@leaf
def _count_madvise(stack, start, length):
    tally = stack.tally[0]
    tally.madvise += 1
    tally.madvise_bytes += length
    log(stack, MADVISE, start, length)


@cold
def brk(stack, new_brk):
    """Moves the end of the heap to `new_brk`, a page boundary not below `brk_base`."""
    state = stack.kernel
    space, tally = state.space[0], stack.tally[0]
    old_brk = space.brk
    if new_brk + GAP_BYTES > space.lowest:
        tally.attention |= NO_MEMORY
        return
    if new_brk < old_brk:
        tally.resident_bytes -= _mark(stack, new_brk, old_brk, False) << space.page_shift
        tally.mapped_bytes -= old_brk - new_brk
        if space.transparent:
            unmap_areas(stack, new_brk, old_brk)
    else:
        _map(stack, new_brk - old_brk)
        if space.transparent and new_brk > old_brk:
            add_area(stack, old_brk, new_brk, WRITABLE, 0, 0)
    space.brk = new_brk
    _measure_headroom(state)
    if space.headroom < 0:
        ask_for_room(stack)
    tally.brk += 1
    tally.brk_bytes += abs(new_brk - old_brk)
    log(stack, BRK, new_brk, new_brk - old_brk)


def with_given(state: State, places: np.ndarray) -> State:
    """The same address space, in which the next arenas lie at these places (int64), above `mmap_base` all of them."""
    assert not places.size or places.min() >= state.space[0].mmap_base
    return state._replace(given=places)


def has_room(state: State, length: int) -> bool:
    """Whether `length` bytes fit into one hole of the address space, or on top of the heap."""
    space = state.space[0]
    start, _ = _highest_hole(state, length)
    return bool(max(start, space.lowest - length) >= space.brk + GAP_BYTES)


def grow(state: State, need_bytes: int = 0) -> State:
    """The same address space with at least twice the room, and headroom for an event that maps `need_bytes`."""
    space = state.space[0]
    words = [state.mmap_pages.shape[0], state.heap_pages.shape[0]]
    used_bytes = [space.mmap_base - space.lowest, space.brk - space.brk_base]
    for area, used in enumerate(used_bytes):
        while (words[area] << (space.page_shift + 6)) - used < need_bytes + 2 * SLACK_BYTES:
            words[area] *= 2
    grown = state._replace(
        regions=extend(state.regions, 2 * max(int(space.regions), 128)),
        mmap_pages=extend(state.mmap_pages, words[0]),
        heap_pages=extend(state.heap_pages, words[1]),
    )
    _measure_headroom(grown)
    return _with_ranges(grown)


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError where an invariant of this file does not hold."""
    space, tally = state.space[0], stack.tally[0]  # type: ignore[attr-defined]
    regions = state.regions[: space.regions]
    assert (regions["start"] < regions["end"]).all()
    assert (regions["end"][1:] < regions["start"][:-1]).all(), "regions overlap, touch, or are out of order"
    assert not ((regions["start"] | regions["end"]) % space.page_size).any()
    heap_bytes = space.brk - space.brk_base
    mapped_bytes = (regions["end"] - regions["start"]).sum() + heap_bytes
    assert tally.mapped_bytes == mapped_bytes - space.reserved_bytes
    marked = [np.unpackbits(bits.view(np.uint8), bitorder="little") for bits in (state.mmap_pages, state.heap_pages)]
    assert tally.resident_bytes == space.page_size * sum(int(bits.sum()) for bits in marked)
    if space.transparent:
        check_areas(state, _resident(space, marked), _stretches(space, regions))
    for start, end in regions:
        marked[0][(space.mmap_base - end) >> space.page_shift : (space.mmap_base - start) >> space.page_shift] = 0
    marked[1][: heap_bytes >> space.page_shift] = 0
    assert not marked[0].any(), "a page outside every mapping is resident"
    assert not marked[1].any(), "a page above the heap is resident"


def _resident(space: np.record, marked: list[np.ndarray]) -> np.ndarray:
    """Addresses of all resident pages, sorted, for the marks of the mappings and of the heap."""
    heap = space.brk_base + np.flatnonzero(marked[1]) * space.page_size
    return np.concatenate([heap, np.sort(space.mmap_base - (1 + np.flatnonzero(marked[0])) * space.page_size)])


def _stretches(space: np.record, regions: np.ndarray) -> list[tuple[int, int]]:
    """What is mapped, by falling address, the heap last."""
    heap = [(int(space.brk_base), int(space.brk))] if space.brk > space.brk_base else []
    return [(int(start), int(end)) for start, end in regions] + heap
