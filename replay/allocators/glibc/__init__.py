"""glibc's malloc, chunk by chunk where the real one puts it.

Follows `malloc/malloc.c` of glibc 2.31, 2.36, 2.41 and 2.43, on x86-64 and i386. What differs between versions is a
field of `Rules`. The words are glibc's own and are explained where they are at home:

    memory    chunks, their neighbours, bins' lists
    arena     tcache, fastbins, unsorted list, bins, top; malloc, free and realloc over them
    system    the heap's end, mapped chunks, dynamic thresholds, trimming

A place is the number of a chunk's record, or, from MAPPED_PLACE on, of a mapped chunk.

Invariants (`check`):
    chunks lie end to end from the start of the heap to top, and top ends where the heap does
    of two neighbours at most one is free, and each knows the other
    every free chunk is in the bin of its size, or in the unsorted list; large bins are sorted
    heap_bytes == heap + mappings
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from replay.allocators import kernel
from replay.allocators.glibc.arena import (
    INACTIVE,
    consolidate,
    free_chunk,
    int_malloc,
    int_realloc,
    make_tcache,
    tcache_get,
    tcache_put,
    tcache_room,
)
from replay.allocators.glibc.large_cache import LARGE_BINS, get_large, put_large
from replay.allocators.glibc.memory import (
    NBINS,
    SMALL_UNITS_32,
    SMALL_UNITS_64,
    UNIT,
    UNIT_SHIFT,
    UNSORTED,
    bin_index,
    is_free,
    new_memory,
    size_of,
)
from replay.allocators.glibc.system import (
    MAPPED,
    MAPPED_PLACE,
    address_of,
    free_mapped,
    mapped_size,
    realloc_mapped,
    systrim,
    trim_bins,
)
from replay.allocators.stack import MARGIN, extend, record
from replay.by_reference import by_reference
from replay.compiled import cold, inlined, leaf
from replay.processor import prefetch
from replay.units import Size

ROLES = ("libc",)

MMAP_THRESHOLD = 128 << 10
"""DEFAULT_MMAP_THRESHOLD_MIN: where the dynamic threshold starts."""
MMAP_THRESHOLD_MAX = {8: 32 << 20, 4: 512 << 10}
"""DEFAULT_MMAP_THRESHOLD_MAX by word size: where it stops."""
TCACHE_BINS = 64
"""Of one size each."""
PLACE_MASK = (1 << 32) - 1
FASTBINS = 11
"""One a size in units; the largest that `mxfast` allows are 10."""


Version = Annotated[Literal["2.31", "2.36", "2.41", "2.43"], BeforeValidator(str)]
"""YAML reads an unquoted one as a number."""


@dataclass(frozen=True)
class Rules:
    """What one version does."""

    tcache_count: int = 7
    tcache_bytes: int = 2 * TCACHE_BINS
    """Of tcache_perthread_struct, besides a pointer a bin."""
    tcache_bins: int = TCACHE_BINS
    has_fastbins: bool = True
    calloc_uses_tcache: bool = False
    """From 2.41 on."""
    sorts_small: bool = False
    """A small chunk that is freed goes to its bin at once, not to the unsorted list: from 2.41 on."""
    keeps_slack: bool = False
    """A realloc that would give back less than two words does nothing: from 2.41 on."""
    keeps_mapped_page: bool = False
    """... and one of a mapped chunk neither where that is no more than a page: 2.41 alone."""
    lazy_tcache: bool = False
    """The cache is made with the first free that could use it, not with the first malloc; realloc passes it by."""
    full_mapped_header: bool = False
    """A mapped chunk counts without its header, and takes two words more than was asked, not one."""


_2_41 = Rules(calloc_uses_tcache=True, sorts_small=True, keeps_slack=True, keeps_mapped_page=True)
RULES = {
    "2.31": Rules(),
    "2.36": Rules(),
    "2.41": _2_41,
    "2.43": Rules(
        tcache_count=16,
        tcache_bytes=2 * (TCACHE_BINS + LARGE_BINS),
        tcache_bins=TCACHE_BINS + LARGE_BINS,
        has_fastbins=False,
        calloc_uses_tcache=True,
        sorts_small=True,
        keeps_slack=True,
        lazy_tcache=True,
        full_mapped_header=True,
    ),
}


class Config(BaseModel):
    """glibc's malloc."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Literal["glibc"] = "glibc"
    version: Version = "2.36"
    word_size: Literal[4, 8] = 8
    mmap_threshold: Size | Literal["dynamic"] = Field(
        "dynamic", description="Requests from here on get a mapping of their own; dynamic: freeing one raises it."
    )
    trim_threshold: Size | Literal["dynamic"] = Field(
        "dynamic", description="A free end of the heap of this size goes back; dynamic: twice the mmap_threshold."
    )
    top_pad: Annotated[Size, Field(le=64 << 20)] | Literal["default"] = Field(
        "default", description="What the heap grows by beyond need."
    )
    mmap_max: int = Field(65_536, ge=0, le=2**31 - 1, description="Mapped chunks that may exist at once.")
    mxfast: Size | Literal["default"] = Field("default", description="Largest request that a fastbin takes back.")
    tcache_count: int | Literal["default"] = Field("default", description="Chunks of a size that a thread keeps.")
    tcache_max: Size | Literal["default"] = Field("default", description="Largest request that the cache serves.")
    tcache_unsorted_limit: int = Field(0, ge=0, description="Chunks a malloc sorts while it fills the cache; 0: all.")


HEAP = record(
    "word_size", "header", "min_units", "small_units", "small_shift",
    "mmap_threshold", "threshold_max", "trim_threshold", "top_pad", "mmap_max", "dynamic",
    "max_fast", "tcache_bins", "tcache_count", "unsorted_limit",
    "sorts_small", "calloc_uses_tcache", "lazy_tcache", "keeps_slack_bytes", "keeps_mapped_page",
    "map_overhead", "remap_overhead", "map_offset", "map_size_less",
    "tcache_units", "tcache_units_inside", "tcache_large",
    "origin", "touched", "holes", "top", "last_remainder", "have_fast", "found", "in_realloc", "tcache",
    "chunks", "spare", "mmaps", "mapped", "unused",
)  # fmt: skip
"""Settings and rules; from `origin` on what changes: start of the heap, end of what is resident, whether there are
holes in it; glibc's `top`, `last_remainder` (where it starts), `have_fastchunks`; a chunk in hand; whether a
realloc is going on; state of the tcache;
records of chunks ever used, head of the list of unused ones; `n_mmaps`, and the same two for mapped chunks."""


@by_reference
class State(NamedTuple):
    """One HEAP record; CHUNK records; bins that may hold something, 32 a word; fastbins by size; the cache by size,
    heads and counts; MAPPED records."""

    heap: np.ndarray
    memory: np.ndarray
    binmap: np.ndarray
    fastbins: np.ndarray
    entries: np.ndarray
    counts: np.ndarray
    mapped: np.ndarray


def _request_units(word_size: int, size: int) -> int:
    """request2size, in units."""
    return max((size + word_size + UNIT - 1) >> UNIT_SHIFT, 4 * word_size >> UNIT_SHIFT)


def new_state(config: Config) -> State:
    """A process that has not called malloc yet."""
    state = State(
        heap=np.zeros(1, HEAP),
        memory=new_memory(),
        binmap=np.zeros(NBINS // 32, np.int64),
        fastbins=np.zeros(FASTBINS, np.int64),
        entries=np.zeros(TCACHE_BINS + LARGE_BINS, np.int64),
        counts=np.zeros(TCACHE_BINS + LARGE_BINS, np.int64),
        mapped=np.zeros(4 * MARGIN, MAPPED),
    )
    heap, rules, word = state.heap[0], RULES[config.version], config.word_size
    heap.word_size, heap.header, heap.min_units = word, 2 * word, 4 * word >> UNIT_SHIFT
    heap.small_units = SMALL_UNITS_64 if word == 8 else SMALL_UNITS_32
    heap.small_shift = 0 if word == 8 else 1  # SMALLBIN_CORRECTION
    _set_thresholds(heap, config)
    fast = 8 * word * 2 if config.mxfast == "default" else config.mxfast
    heap.max_fast = (fast + word) >> UNIT_SHIFT if rules.has_fastbins else 0
    heap.tcache_count = rules.tcache_count if config.tcache_count == "default" else config.tcache_count
    heap.tcache_bins = TCACHE_BINS
    if config.tcache_max != "default":
        heap.tcache_bins = min(TCACHE_BINS, _request_units(word, config.tcache_max) - int(heap.min_units) + 1)
        if rules.lazy_tcache:
            heap.tcache_large = _request_units(word, config.tcache_max)
    heap.unsorted_limit = config.tcache_unsorted_limit
    heap.sorts_small, heap.calloc_uses_tcache = rules.sorts_small, rules.calloc_uses_tcache
    heap.lazy_tcache = rules.lazy_tcache
    heap.keeps_slack_bytes = 2 * word if rules.keeps_slack else 0
    heap.keeps_mapped_page = rules.keeps_mapped_page
    heap.map_offset = UNIT - 2 * word  # so that a mapped block lies on a unit too
    if rules.full_mapped_header:
        heap.map_overhead, heap.map_size_less = heap.map_offset + 2 * word, heap.map_offset + 2 * word
        heap.remap_overhead = heap.map_overhead
    else:
        heap.map_overhead, heap.map_size_less = word + (UNIT - 1 if word == 4 else 0), heap.map_offset
        heap.remap_overhead = heap.map_offset + word
    cache_bytes = rules.tcache_bytes + rules.tcache_bins * word
    heap.tcache_units = _request_units(word, cache_bytes)
    # Where _int_malloc itself makes the cache, it pads the size twice.
    heap.tcache_units_inside = _request_units(word, int(heap.tcache_units) << UNIT_SHIFT)
    heap.top, heap.chunks, heap.unused = UNSORTED, NBINS, -1
    return state


def _set_thresholds(heap: np.record, config: Config) -> None:
    heap.threshold_max = MMAP_THRESHOLD_MAX[config.word_size]
    heap.dynamic = config.mmap_threshold == config.trim_threshold == "dynamic" and config.top_pad == "default"
    heap.mmap_threshold = MMAP_THRESHOLD if config.mmap_threshold == "dynamic" else config.mmap_threshold
    heap.trim_threshold = 128 << 10 if config.trim_threshold == "dynamic" else config.trim_threshold
    heap.top_pad = 128 << 10 if config.top_pad == "default" else config.top_pad
    heap.mmap_max = config.mmap_max
    heap.dynamic &= config.mmap_max == 65_536


@inlined
def _units(heap, size):
    """request2size."""
    return max((size + heap.word_size + UNIT - 1) >> UNIT_SHIFT, heap.min_units)


@inlined
def malloc(state, stack, size):
    """From the cache, or from the arena."""
    heap = state.heap[0]
    wanted = _units(heap, size)
    index = wanted - heap.min_units
    if index < heap.tcache_bins and state.entries[np.uint64(index)]:
        return tcache_get(state, index)
    if index >= heap.tcache_bins and wanted <= heap.tcache_large:
        chunk = get_large(state, wanted)
        if chunk:
            return chunk
    return int_malloc(state, stack, wanted)


@leaf
def calloc(state, stack, size):
    """As malloc; up to 2.40 past the cache."""
    if state.heap[0].calloc_uses_tcache:
        return malloc(state, stack, size)
    return int_malloc(state, stack, _units(state.heap[0], size))


@inlined
def free(state, stack, place):
    """Into the cache, or back to the arena or the kernel."""
    heap = state.heap[0]
    if place >= MAPPED_PLACE:
        _free_uncached(state, stack, place, mapped_size(heap, state.mapped[place & (MAPPED_PLACE - 1)]) >> UNIT_SHIFT)
        return
    size = size_of(state.memory, place)
    index = size - heap.min_units
    if tcache_room(state, index):
        tcache_put(state, place, index)
    else:
        _free_uncached(state, stack, place, size)


@cold
def _free_uncached(state, stack, place, size):
    heap, index = state.heap[0], size - state.heap[0].min_units
    is_large = index >= TCACHE_BINS and size <= heap.tcache_large
    if heap.lazy_tcache and heap.tcache == INACTIVE and (index < heap.tcache_bins or is_large):
        make_tcache(state, stack, heap.tcache_units)
        if place < MAPPED_PLACE and tcache_room(state, index):
            tcache_put(state, place, index)
            return
    if is_large and put_large(state, place):
        return
    if place >= MAPPED_PLACE:
        free_mapped(state, stack, place)
        return
    free_chunk(state, stack, place, size)


@cold
def realloc(state, stack, place, size):
    """In place, if there is room; the mapping of a mapped chunk is resized."""
    heap, is_mapped = state.heap[0], place >= MAPPED_PLACE
    wanted = _units(heap, size)
    usable = 0
    if is_mapped:
        have = mapped_size(heap, state.mapped[place & (MAPPED_PLACE - 1)])
        usable = have - (heap.header if heap.keeps_mapped_page else heap.word_size)
    else:
        have = size_of(state.memory, place) << UNIT_SHIFT
        usable = have - heap.word_size
    if heap.keeps_slack_bytes and size <= usable:
        spare = usable - size
        if spare < heap.keeps_slack_bytes or (
            is_mapped and heap.keeps_mapped_page and spare <= stack.kernel.space[0].page_size
        ):
            return place
    if is_mapped:
        realloc_mapped(state, stack, place, wanted)
        return place
    return int_realloc(state, stack, place, have >> UNIT_SHIFT, wanted)


@inlined
def block_size(state, stack, place):
    """Bytes of the chunk, or of the mapping."""
    if place >= MAPPED_PLACE:
        return state.mapped[place & (MAPPED_PLACE - 1)].size_bytes
    return size_of(state.memory, place) << UNIT_SHIFT


@leaf
def address(state, stack, place):
    """Behind the chunk's header."""
    heap = state.heap[0]
    if place >= MAPPED_PLACE:
        return state.mapped[place & (MAPPED_PLACE - 1)].address + heap.map_offset + heap.header
    return address_of(state, place) + heap.header


@inlined
def expect(state, place):
    """Its chunk's record, unless it is a mapping."""
    prefetch(state.memory, place & PLACE_MASK)


@inlined
def fill(state, stack, place, size):
    """The program writes to its block: only in mappings, and in holes, is that news (`system`)."""
    if place >= MAPPED_PLACE or state.heap[0].holes:
        begin = address(state, stack, place)
        kernel.touch(stack, begin, begin + size)


@cold
def trim(state, stack, resume):
    """malloc_trim(0): the fastbins are merged, then pages inside free chunks and the end of the heap go back."""
    if state.heap[0].top == UNSORTED:
        return 0
    if resume == 0:
        consolidate(state, stack)
    resume = trim_bins(state, stack, resume)
    if resume == 0:
        systrim(state, stack, 0)
    return resume


def grow(state: State) -> State:
    """The same malloc with room for twice the chunks and mappings."""
    heap = state.heap[0]
    return state._replace(
        memory=extend(state.memory, 2 * int(heap.chunks), int(heap.chunks)),
        mapped=extend(state.mapped, 2 * max(int(heap.mapped), MARGIN)),
    )


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError where an invariant of this file does not hold."""
    heap, memory = state.heap[0], state.memory
    space, tally = stack.kernel.space[0], stack.tally[0]  # type: ignore[attr-defined]
    unused, index = set(), int(heap.unused)
    while index >= 0:
        unused.add(index)
        index = int(state.mapped[index].next)
    live = [index for index in range(int(heap.mapped)) if index not in unused]
    assert len(live) == heap.mmaps
    mapped_bytes = sum(int(state.mapped[index].size_bytes) for index in live)
    assert tally.heap_bytes == mapped_bytes + space.brk - space.brk_base
    if heap.top == UNSORTED:
        return
    binned = _binned(state)
    chunk, before, starts = int(heap.top), 0, []
    assert size_of(memory, chunk) == (space.brk - address_of(state, chunk)) >> UNIT_SHIFT
    assert not is_free(memory, memory[chunk].before), "a free chunk borders on top"
    while chunk:
        entry, before = memory[chunk], int(memory[chunk].before)
        starts.append(int(entry.start))
        assert bool(is_free(memory, chunk)) == (chunk in binned)
        assert not (is_free(memory, chunk) and is_free(memory, before)), "two free chunks are neighbours"
        if before:
            assert memory[before].behind == chunk
            assert memory[before].start + size_of(memory, before) == entry.start
        binned.discard(chunk)
        chunk = before
    assert starts[-1] == 0
    assert not binned, "a bin holds what is no chunk"


def _binned(state: State) -> set[int]:
    """All chunks in the unsorted list and the bins."""
    memory, heap, found = state.memory, state.heap[0], set()
    for index in range(UNSORTED, NBINS):
        chunk, sizes = int(memory[index].fd), []
        while chunk != index:
            assert chunk not in found
            assert memory[memory[chunk].fd].bk == chunk == memory[memory[chunk].bk].fd
            found.add(chunk)
            sizes.append(int(size_of(memory, chunk)))
            chunk = int(memory[chunk].fd)
        if index > UNSORTED:
            assert all(bin_index(size, heap) == index for size in sizes)
            assert sizes == sorted(sizes, reverse=True)
            assert not sizes or int(state.binmap[index >> 5]) >> (index & 31) & 1
    return found
