"""The address space of a Linux process: system calls, mapped memory and resident pages.

Follows `mm/mmap.c` of Linux 6.x for x86-64: top-down layout, anonymous private mappings only.

    mmap area   all addresses below `mmap_base`. A new mapping is at the upper end of the *highest* hole that is large
                enough. If its length is a multiple of `huge_page_size` (0: never), it is aligned to huge pages, as
                observed in Linux 6.18: the hole must be larger by one huge page, and the mapping is at the highest
                aligned address in it. For MAP_HUGETLB, the hole may be one page smaller.
    heap        grows upwards from `brk_base`.
    region      a maximal range of mapped addresses. Adjacent regions are merged, as Linux merges their VMAs.
    given       addresses of arenas in a recording. They are above `mmap_base`, where nothing else is simulated.
    reserve     mapped addresses that may not be accessed (PROT_NONE) until mprotect allows it. They do not count as
                mapped bytes. mprotect may forbid access again; pages then stay resident.
    hint        an address that mmap prefers. It is used if the mapping fits there: below `mmap_base`, outside the heap
                and not below `address_min`. Otherwise Linux chooses an address, without alignment to huge pages.
                Nothing is free from `mmap_base` on, where libraries and the stack are. All addresses below the heap
                are free: segments of the program are not simulated.
    lazy        resident pages after MADV_FREE. Linux releases them only if memory is short, which is not simulated.
                If mremap has moved one page out of a lazily freed huge page, and MADV_FREE is called for the moved
                page, Linux splits the huge page, and its other pages are no longer lazy. The model does not do this,
                because it does not know where a moved page came from.
    huge page   with `transparent_huge_pages`, a first touch may make a whole aligned range resident (see `areas`). It
                counts as one page fault. Single pages of the range can be released later.
    hugetlb     memory of reserved huge pages (MAP_HUGETLB). `reserved_huge_pages` are free at the start. A mapping
                allocates all pages that it may need, or fails. A first touch makes one page resident. Only whole pages
                can be released, and a mapping cannot grow.

    calls       mmap, munmap, mremap, brk
    mappings    mmap with an address and flags, mprotect, aligned mappings
    advice      madvise
    regions     mapped addresses and holes
    reserves    mapped addresses without access
    pages       resident pages and lazily freed pages
    tables      the bit tables of both; mappings far below all others have separate tables
    areas       the conditions for huge pages

Models may call these functions. Each is one system call, which is counted and logged. Exceptions are `mmap_aligned` and
`trim` (several calls), and `touch` (none). Addresses and lengths are multiples of the page size unless stated
otherwise.

    mmap(stack, length) -> address                    maps memory; Linux chooses the address; the length is rounded up
    mmap_at(stack, hint, length, flags) -> address    maps at a hint (0: none). Flags: NO_ACCESS (PROT_NONE),
                                                      NOT_RESERVED (MAP_NORESERVE), FIXED (replaces mappings there and
                                                      releases their pages), NO_REPLACE (returns -1 if the addresses
                                                      are not free)
    mmap_aligned(stack, hint, length, alignment, padding, flags) -> address
                                                      maps at a multiple of `alignment`: maps at the hint; if that is
                                                      not aligned, unmaps it, maps `padding` more bytes, and trims
    trim(stack, start, mapped_length, length, alignment) -> address    unmaps both ends around an aligned part
    reserve(stack, length, hint) -> address           mmap_at with NO_ACCESS and NOT_RESERVED
    protect(stack, start, length)                     mprotect(PROT_READ | PROT_WRITE): commits. Bytes that are
                                                      committed already do not count again
    unprotect(stack, start, length)                   mprotect(PROT_NONE): decommits. The pages stay resident: call
                                                      `dontneed` before it, or mmap_at with FIXED and NO_ACCESS instead
    munmap(stack, start, length)                      across mappings, reserves and holes; not for the heap
    mremap(stack, start, old_length, length) -> address    for memory mapped by one call, not for reserves
    brk(stack, end)                                   only for models in the role libc
    brk_behind_guard(stack, end, guard_bytes)         the first brk, and mmap with FIXED and NO_ACCESS at its start
    dontneed(stack, start, length)                    MADV_DONTNEED: releases the pages
    free_lazily(stack, start, length)                 MADV_FREE: pages stay resident; `touch` makes them normal pages
    advise_huge_pages, advise_small_pages             MADV_HUGEPAGE, MADV_NOHUGEPAGE
    touch(stack, start, end)                          the program or the model writes to [start, end)

`mapped_bytes` counts committed bytes, and the spans of a model cover exactly these. Pages that `unprotect` left
resident are in no span. `space.lazy_bytes` and `space.lazy_bytes_peak` count lazily freed bytes. A model that calls
`free_lazily` declares an own counter, and copies both into it after `free_lazily`, `touch`, and calls that release
pages. MADV_COLLAPSE, MADV_POPULATE, and FIXED over the heap are not supported.

Invariants (`check`):
    regions are disjoint, not adjacent, page-aligned, and sorted by descending address; the same for reserves, which
    are inside of regions
    reserved_bytes == sum of reserves
    mapped_bytes == sum of regions - reserved_bytes + (brk - brk_base)
    resident_bytes == page_size * resident pages, and all of them are mapped
    lazy_bytes == page_size * lazily freed pages, and all of them are resident

`headroom` is the number of bytes that one event may map before the tables must grow. The loop checks it before an
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
    brk_behind_guard,
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
    ADDRESS_MIN,
    CHUNK_BYTES,
    CHUNK_SHIFT,
    CHUNKS_SPARE,
    GAP_BYTES,
    SLACK_BYTES,
    Config,
)
from replay.allocators.linux.tables import PLACE, chunk_count, directory_with_room, measure_headroom
from replay.jit.arrays import extend, record
from replay.jit.compiling import by_reference

__all__ = [
    "FIXED", "NOT_RESERVED", "NO_ACCESS", "NO_REPLACE", "Config", "State", "advise_huge_pages", "advise_small_pages",
    "brk", "brk_behind_guard", "check", "dontneed", "free_lazily", "grow", "has_room", "mmap", "mmap_aligned",
    "mmap_arena", "mmap_at", "mmap_huge_pages", "mmap_hugetlb", "mremap", "munmap", "munmap_reserve", "new_state",
    "protect", "reserve", "resident_bytes", "resident_pages", "toggled_pages", "touch", "trim", "uncovered",
    "unprotect", "with_given",
]  # fmt: skip

SPACE = record(
    "page_size", "page_shift", "huge_page_size", "mmap_base", "brk_base", "brk", "lowest", "regions", "headroom",
    "reserved_bytes", "given", "transparent", "huge_shift", "areas", "owners",
    "huge_pages_left", "address_min", "reach", "sparse", "chunks", "reserves", "lazy_bytes", "lazy_bytes_peak",
)  # fmt: skip
REGION = record("start", "end")


@by_reference
class State(NamedTuple):
    """`space`: one SPACE record; `regions`, `reserves`: REGION records by descending address; bits of resident and of
    lazily freed pages, and the directory of their chunks (see `tables`); `given` addresses, of which
    `space.given` are used; AREA records by descending address and the states of ranges, both empty if huge pages are
    off. `space.huge_pages_left`: reserved huge pages without a mapping."""

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
    """Returns an empty address space."""
    words = 4 * SLACK_BYTES // (64 * config.page_size)
    chunks = CHUNKS_SPARE + 4 * SLACK_BYTES // CHUNK_BYTES
    chunk_words = chunks * CHUNK_BYTES // (64 * config.page_size)
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
        directory=directory_with_room(np.zeros(0, PLACE), chunks),
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
    """Computes `reach`, the lowest address in the table of mappings, which may be negative, and the headroom."""
    space = state.space[0]
    covered = state.mmap_pages.shape[0] << (space.page_shift + 6)
    space.reach = -((covered - space.mmap_base) // CHUNK_BYTES) * CHUNK_BYTES
    measure_headroom(state)


def _with_ranges(state: State) -> State:
    """Returns the address space with as many entries for areas as for regions, and with tables of ranges of the size of
    the tables of pages."""
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
    """Returns the address space with these addresses (int64) for the next arenas. All are above `mmap_base`."""
    assert not places.size or places.min() >= state.space[0].mmap_base
    return state._replace(given=places)


def has_room(state: State, length: int) -> bool:
    """Returns whether `length` bytes fit into one hole of the address space, or above the heap."""
    space = state.space[0]
    start, _ = highest_hole(state, length)
    return bool(max(start, space.lowest - length) >= space.brk + GAP_BYTES)


def grow(state: State, need_bytes: int = 0) -> State:
    """Returns the address space with tables of at least twice the size, and headroom for an event that maps
    `need_bytes`."""
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
    # Lazily freed pages are rare. Tables without any are not copied, and do not become resident.
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
    grown = grown._replace(directory=directory_with_room(grown.directory, chunk_count(grown)))
    _measure(grown)
    return _with_ranges(grown)


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError if an invariant of this package does not hold."""
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
    assert (np.diff(resident) > 0).all(), "a page is in two tables"
    assert tally.resident_bytes == space.page_size * len(resident)
    assert _are_inside(resident, mapped), "a page outside every mapping is resident"
    assert np.isin(lazy, resident).all(), "a page that is not resident was lazily freed"
    assert space.lazy_bytes == space.page_size * len(lazy)
    if space.transparent:
        check_areas(state, resident, mapped, [(int(start), int(end)) for start, end in reserves])


def _are_inside(addresses: np.ndarray, stretches: list[tuple[int, int]]) -> bool:
    """Returns whether all addresses are in the stretches, which are sorted by descending address."""
    edges = np.array(stretches[::-1], np.int64).reshape(-1, 2)
    index = np.searchsorted(edges[:, 0], addresses, side="right") - 1
    return bool((index >= 0).all() and (addresses < edges[index, 1]).all())
