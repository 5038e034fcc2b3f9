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

    calls       mmap, munmap, mremap, brk, madvise, mprotect
    regions     what is mapped, and the holes
    pages       what is resident
    areas       where huge pages may be

Invariants (`check`):
    regions are disjoint, not adjacent, page-aligned, and sorted by falling address
    mapped_bytes == sum of regions - reserved_bytes + (brk - brk_base)
    resident_bytes == page_size * pages marked, and only mapped pages are marked

`headroom` is how many bytes a single event may still map before the tables must grow; the loop checks it before an
event.
"""

from typing import NamedTuple

import numpy as np

from replay.allocators.linux.areas import (
    AREA,
    MODES,
    NEVER,
    RESERVED_ONLY,
    check_areas,
)
from replay.allocators.linux.calls import (
    advise_huge_pages,
    brk,
    dontneed,
    mmap,
    mmap_arena,
    mmap_huge_pages,
    mmap_hugetlb,
    mremap,
    munmap,
    munmap_reserve,
    protect,
    reserve,
)
from replay.allocators.linux.pages import touch
from replay.allocators.linux.regions import highest_hole, measure_headroom
from replay.allocators.linux.residency import resident_bytes, resident_pages, toggled_pages
from replay.allocators.linux.settings import GAP_BYTES, SLACK_BYTES, Config
from replay.jit.arrays import extend, record
from replay.jit.compiling import by_reference

__all__ = [
    "Config", "State", "advise_huge_pages", "brk", "check", "dontneed", "grow", "has_room", "mmap", "mmap_arena",
    "mmap_huge_pages", "mmap_hugetlb", "mremap", "munmap", "munmap_reserve", "new_state", "protect", "reserve",
    "resident_bytes", "resident_pages", "toggled_pages", "touch", "with_given",
]  # fmt: skip

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
    measure_headroom(state)
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


def with_given(state: State, places: np.ndarray) -> State:
    """The same address space, in which the next arenas lie at these places (int64), above `mmap_base` all of them."""
    assert not places.size or places.min() >= state.space[0].mmap_base
    return state._replace(given=places)


def has_room(state: State, length: int) -> bool:
    """Whether `length` bytes fit into one hole of the address space, or on top of the heap."""
    space = state.space[0]
    start, _ = highest_hole(state, length)
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
    measure_headroom(grown)
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
        check_areas(state, resident_pages(state), _stretches(space, regions))
    for start, end in regions:
        marked[0][(space.mmap_base - end) >> space.page_shift : (space.mmap_base - start) >> space.page_shift] = 0
    marked[1][: heap_bytes >> space.page_shift] = 0
    assert not marked[0].any(), "a page outside every mapping is resident"
    assert not marked[1].any(), "a page above the heap is resident"


def _stretches(space: np.record, regions: np.ndarray) -> list[tuple[int, int]]:
    """What is mapped, by falling address, the heap last."""
    heap = [(int(space.brk_base), int(space.brk))] if space.brk > space.brk_base else []
    return [(int(start), int(end)) for start, end in regions] + heap
