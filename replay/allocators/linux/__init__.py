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
                until then they are no mapped memory. mprotect may close them again, and keeps their pages.
    hint        an address that mmap prefers: taken if all of the mapping fits there, below `mmap_base`, outside the
                heap and not below `address_min`; otherwise mmap chooses, without alignment to huge pages. From
                `mmap_base` on nothing is free: the program's libraries and its stack are there. Below the heap
                everything is free: the program's own segments are not known.
    lazy        resident pages that MADV_FREE gave to Linux, which takes none of them as long as memory is not short.
                Linux splits a huge page of them when one of its pages, moved away by mremap, is given too, and the
                others are then no longer lazy; the model does not know where a moved page came from.
    huge page   with `transparent_huge_pages`, a first touch makes a whole aligned range resident where `areas` says so,
                and counts as one page fault. Single pages of it can go again.
    hugetlb     memory made of reserved huge pages (MAP_HUGETLB), of which so many are free as a program starts.
                A mapping takes all it may need, or is refused; a first touch makes one of them resident; only whole
                ones can be given back, and such a mapping never grows.

    calls       mmap, munmap, mremap, brk
    mappings    mmap with an address and flags, mprotect, aligned mappings
    advice      madvise
    regions     what is mapped, and the holes
    reserves    which of it may not be touched
    pages       what is resident, and what was lazily freed
    tables      where both are kept; mappings far below all others have tables of their own
    areas       where huge pages may be

What models may call. Each is one system call, counted and logged, except `mmap_aligned` and `trim`, which make several,
and `touch`, which makes none. Addresses and lengths are whole pages where nothing else is stated.

    mmap(stack, length) -> address                    memory where Linux chooses; the length is rounded up
    mmap_at(stack, hint, length, flags) -> address    the same at a hint (0: none). Flags: NO_ACCESS (PROT_NONE),
                                                      NOT_RESERVED (MAP_NORESERVE), FIXED (replaces what is there; its
                                                      pages go), NO_REPLACE (-1 if something is there)
    mmap_aligned(stack, hint, length, alignment, padding, flags) -> address
                                                      at a multiple of `alignment`: maps at the hint; if that is not
                                                      aligned, unmaps it, maps `padding` more bytes and trims both ends
    trim(stack, start, mapped_length, length, alignment) -> address    that last step alone
    reserve(stack, length, hint) -> address           mmap_at with NO_ACCESS and NOT_RESERVED
    protect(stack, start, length)                     mprotect(PROT_READ | PROT_WRITE): commits. What is committed
                                                      already does not count again
    unprotect(stack, start, length)                   mprotect(PROT_NONE): decommits. The pages stay resident: call
                                                      `dontneed` before it, or mmap_at with FIXED and NO_ACCESS instead
    munmap(stack, start, length)                      across mappings, reserves and holes; not of the heap
    mremap(stack, start, old_length, length) -> address    of memory that was mapped by one call, not of reserves
    brk(stack, end)                                   only a model in the C library's place
    dontneed(stack, start, length)                    MADV_DONTNEED: the pages go
    free_lazily(stack, start, length)                 MADV_FREE: the pages stay resident; `touch` makes them ordinary
    advise_huge_pages, advise_small_pages             MADV_HUGEPAGE, MADV_NOHUGEPAGE
    touch(stack, start, end)                          the program or the model writes to [start, end)

`mapped_bytes` counts what is committed. Spans of a model cover exactly that; pages that `unprotect` left resident are
in no span. `space.lazy_bytes` and `space.lazy_bytes_peak` count lazily freed bytes; a model that calls `free_lazily`
declares a counter of its own and copies both into it after `free_lazily`, after `touch` and after what releases pages.
MADV_COLLAPSE and MADV_POPULATE are not supported, nor FIXED over the heap.

Invariants (`check`):
    regions are disjoint, not adjacent, page-aligned, and sorted by falling address; so are reserves, inside of regions
    reserved_bytes == sum of reserves
    mapped_bytes == sum of regions - reserved_bytes + (brk - brk_base)
    resident_bytes == page_size * pages marked, and only mapped pages are marked
    lazy_bytes == page_size * pages marked as lazily freed, and only resident pages are

`headroom` is how many bytes a single event may still map before the tables must grow; the loop checks it before an
event.
"""

from typing import NamedTuple

import numpy as np

from replay.allocators.linux.advice import advise_huge_pages, advise_small_pages, dontneed, free_lazily
from replay.allocators.linux.areas import (
    AREA,
    MODES,
    NEVER,
    RESERVED_ONLY,
    check_areas,
)
from replay.allocators.linux.calls import (
    brk,
    mmap,
    mmap_arena,
    mmap_huge_pages,
    mmap_hugetlb,
    mremap,
    munmap,
    munmap_reserve,
)
from replay.allocators.linux.mappings import (
    FIXED,
    NO_ACCESS,
    NO_REPLACE,
    NOT_RESERVED,
    mmap_aligned,
    mmap_at,
    protect,
    reserve,
    trim,
    unprotect,
)
from replay.allocators.linux.pages import touch
from replay.allocators.linux.regions import highest_hole
from replay.allocators.linux.residency import lazy_pages, resident_bytes, resident_pages, toggled_pages, uncovered
from replay.allocators.linux.settings import (
    ADDRESS_MAX,
    ADDRESS_MIN,
    CHUNK_BYTES,
    CHUNK_SHIFT,
    CHUNKS_SPARE,
    GAP_BYTES,
    SLACK_BYTES,
    Config,
)
from replay.allocators.linux.tables import chunk_count, measure_headroom
from replay.jit.arrays import extend, record
from replay.jit.compiling import by_reference

__all__ = [
    "FIXED", "NOT_RESERVED", "NO_ACCESS", "NO_REPLACE", "Config", "State", "advise_huge_pages", "advise_small_pages",
    "brk", "check", "dontneed", "free_lazily", "grow", "has_room", "mmap", "mmap_aligned", "mmap_arena", "mmap_at",
    "mmap_huge_pages", "mmap_hugetlb", "mremap", "munmap", "munmap_reserve", "new_state", "protect", "reserve",
    "resident_bytes", "resident_pages", "toggled_pages", "touch", "trim", "uncovered", "unprotect", "with_given",
]  # fmt: skip

SPACE = record(
    "page_size", "page_shift", "huge_page_size", "mmap_base", "brk_base", "brk", "lowest", "regions", "headroom",
    "reserved_bytes", "given", "transparent", "huge_shift", "areas", "owners",
    "huge_pages_left", "address_min", "reach", "sparse", "chunks", "reserves", "lazy_bytes", "lazy_bytes_peak",
)  # fmt: skip
REGION = record("start", "end")


@by_reference
class State(NamedTuple):
    """`space`: one SPACE record; `regions`, `reserves`: REGION by falling address; the bits of resident and of lazily
    freed pages, and the chunk of each 256 MiB of addresses (see `tables`); given places, of which `space.given` were
    taken; AREA by falling address and the states of ranges, both only where huge pages may be.
    `space.huge_pages_left` are reserved and no mapping's."""

    space: np.ndarray
    regions: np.ndarray
    reserves: np.ndarray
    mmap_pages: np.ndarray
    heap_pages: np.ndarray
    chunk_pages: np.ndarray
    mmap_lazy: np.ndarray
    heap_lazy: np.ndarray
    chunk_lazy: np.ndarray
    directory: np.ndarray
    given: np.ndarray
    areas: np.ndarray
    mmap_ranges: np.ndarray
    heap_ranges: np.ndarray
    chunk_ranges: np.ndarray


def new_state(config: Config) -> State:
    """An address space with nothing in it."""
    words = 4 * SLACK_BYTES // (64 * config.page_size)
    chunk_words = 4 * CHUNKS_SPARE * CHUNK_BYTES // (64 * config.page_size)
    state = State(
        space=np.zeros(1, SPACE),
        regions=np.zeros(256, REGION),
        reserves=np.zeros(64, REGION),
        mmap_pages=np.zeros(words, np.int64),
        heap_pages=np.zeros(words, np.int64),
        chunk_pages=np.zeros(chunk_words, np.int64),
        mmap_lazy=np.zeros(words, np.int64),
        heap_lazy=np.zeros(words, np.int64),
        chunk_lazy=np.zeros(chunk_words, np.int64),
        directory=np.zeros(ADDRESS_MAX >> CHUNK_SHIFT, np.int32),
        given=np.zeros(0, np.int64),
        areas=np.zeros(0, AREA),
        mmap_ranges=np.zeros(0, np.uint8),
        heap_ranges=np.zeros(0, np.uint8),
        chunk_ranges=np.zeros(0, np.uint8),
    )
    space = state.space[0]
    space.page_size, space.page_shift = config.page_size, config.page_size.bit_length() - 1
    space.huge_page_size, space.huge_shift = config.huge_page_size, max(config.huge_page_size.bit_length() - 1, 0)
    space.transparent, space.huge_pages_left = MODES.index(config.transparent_huge_pages), config.reserved_huge_pages
    if config.reserved_huge_pages and space.transparent == NEVER:
        space.transparent = RESERVED_ONLY
    space.mmap_base = space.lowest = config.mmap_base
    space.brk_base = space.brk = config.brk_base
    space.address_min = max(ADDRESS_MIN, config.page_size)
    state = _with_ranges(state)
    _measure(state)
    return state


def _measure(state: State) -> None:
    """Notes what the table of mappings covers, and the headroom; `reach` may be below 0."""
    space = state.space[0]
    covered = state.mmap_pages.shape[0] << (space.page_shift + 6)
    space.reach = -((covered - space.mmap_base) // CHUNK_BYTES) * CHUNK_BYTES
    measure_headroom(state)


def _with_ranges(state: State) -> State:
    """The same address space with as much room for areas as for regions, and a state for each range that has pages."""
    space = state.space[0]
    if space.transparent == NEVER:
        return state
    ranges = [
        2 + ((pages.shape[0] << (space.page_shift + 6)) >> space.huge_shift)
        for pages in (state.mmap_pages, state.heap_pages, state.chunk_pages)
    ]
    return state._replace(
        areas=extend(state.areas, max(state.regions.shape[0], 3 * int(space.areas))),
        mmap_ranges=extend(state.mmap_ranges, ranges[0]),
        heap_ranges=extend(state.heap_ranges, ranges[1]),
        chunk_ranges=extend(state.chunk_ranges, ranges[2]),
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
    words = [bits.shape[0] for bits in (state.mmap_pages, state.heap_pages, state.chunk_pages)]
    spare_bytes = [
        space.lowest - space.reach,
        (words[1] << (space.page_shift + 6)) - (space.brk - space.brk_base),
        (chunk_count(state) - space.chunks - CHUNKS_SPARE) << CHUNK_SHIFT,
    ]
    for table, spare in enumerate(spare_bytes):
        missing = need_bytes + 2 * SLACK_BYTES - spare
        least = words[table] + (missing >> (space.page_shift + 6))
        while missing > 0 and words[table] <= least:
            words[table] *= 2
    # Lazily freed pages are rare: tables without any are not copied, and take no memory.
    used = None if space.lazy_bytes else 0
    grown = state._replace(
        regions=extend(state.regions, 2 * max(int(space.regions), 128)),
        reserves=extend(state.reserves, 2 * int(space.reserves)),
        mmap_pages=extend(state.mmap_pages, words[0]),
        heap_pages=extend(state.heap_pages, words[1]),
        chunk_pages=extend(state.chunk_pages, words[2]),
        mmap_lazy=extend(state.mmap_lazy, words[0], used),
        heap_lazy=extend(state.heap_lazy, words[1], used),
        chunk_lazy=extend(state.chunk_lazy, words[2], used),
    )
    _measure(grown)
    return _with_ranges(grown)


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError where an invariant of this file does not hold."""
    space, tally = state.space[0], stack.tally[0]  # type: ignore[attr-defined]
    regions, reserves = state.regions[: space.regions], state.reserves[: space.reserves]
    for stretches in (regions, reserves):
        assert (stretches["start"] < stretches["end"]).all()
        assert (stretches["end"][1:] < stretches["start"][:-1]).all(), "stretches overlap, touch, or are out of order"
        assert not ((stretches["start"] | stretches["end"]) % space.page_size).any()
    mapped = [(int(start), int(end)) for start, end in regions]
    if space.brk > space.brk_base:
        mapped = sorted([*mapped, (int(space.brk_base), int(space.brk))], reverse=True)
    assert space.reserved_bytes == (reserves["end"] - reserves["start"]).sum()
    assert all(_are_inside(np.array([start, end - 1]), mapped) for start, end in reserves)
    assert tally.mapped_bytes == sum(end - start for start, end in mapped) - space.reserved_bytes
    resident, lazy = resident_pages(state), lazy_pages(state)
    assert (np.diff(resident) > 0).all(), "a page is marked twice"
    assert tally.resident_bytes == space.page_size * len(resident)
    assert _are_inside(resident, mapped), "a page outside every mapping is resident"
    assert np.isin(lazy, resident).all(), "a page that is not resident was lazily freed"
    assert space.lazy_bytes == space.page_size * len(lazy)
    if space.transparent:
        check_areas(state, resident, mapped, [(int(start), int(end)) for start, end in reserves])


def _are_inside(addresses: np.ndarray, stretches: list[tuple[int, int]]) -> bool:
    """Whether each address lies in one of the stretches, which are sorted by falling address."""
    edges = np.array(stretches[::-1], np.int64).reshape(-1, 2)
    index = np.searchsorted(edges[:, 0], addresses, side="right") - 1
    return bool((index >= 0).all() and (addresses < edges[index, 1]).all())
