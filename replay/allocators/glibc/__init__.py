"""glibc's malloc, with every chunk at the address that the real one gives it.

Follows `malloc/malloc.c` of glibc 2.31, 2.36, 2.41 and 2.43, on x86-64 and i386. What differs between versions is a
field of `Rules`. The words are glibc's own and are explained where they are at home:

    memory    chunks, their neighbours, bins' lists
    arena     fastbins, unsorted list, bins, top; malloc, free and realloc over them
    tcache    what a thread keeps before its arena is asked; large_cache: of larger sizes
    threads   whose arena and whose cache
    heaps     where arenas besides the main one lie
    hugetlb   the main heap, and what it is made of, where reserved huge pages are to be used
    aligned   memalign: chunks whose block lies at a multiple of more than 16 bytes
    checks    what MALLOC_CHECK_ makes of malloc in 2.31
    system    the main heap's end, mapped chunks, dynamic thresholds, trimming

A place is the number of a chunk's record, or, from MAPPED_PLACE on, of a mapped chunk.

Invariants (`check`):
    chunks lie end to end from the start of a heap to top or to a fence, which ends where the heap does
    of two neighbours at most one is free, and each knows the other
    every free chunk is in the bin of its size, or in the unsorted list; large bins are sorted
    heap_bytes == heaps + mappings
    an arena is attached to as many threads as it says; if to none, it is in the list of free ones
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from replay.allocators import linux
from replay.allocators._stack import MARGIN
from replay.allocators._tally import Counter, CounterKind
from replay.allocators.glibc import threads
from replay.allocators.glibc.aligned import get_aligned, int_memalign
from replay.allocators.glibc.arena import (
    FASTBINS,
    call_free_chunk,
    call_int_malloc,
    consolidate,
    free_chunk,
    give_back,
    int_malloc,
    int_realloc,
)
from replay.allocators.glibc.checks import free_check, malloc_check, memalign_check, realloc_check
from replay.allocators.glibc.large_cache import get_large, put_large
from replay.allocators.glibc.memory import (
    BITS_A_WORD,
    CHUNK,
    HEAPS_MAX,
    NBINS,
    UNIT,
    UNIT_SHIFT,
    UNSORTED,
    bin_index,
    empty_bins,
    is_free,
    size_of,
)
from replay.allocators.glibc.settings import MMAP_THRESHOLD, RULES, Config, new_par
from replay.allocators.glibc.spans import span_changes, spans
from replay.allocators.glibc.system import (
    ARENA,
    HEAP,
    MAIN_ARENA,
    MAIN_HEAP,
    MAPPED,
    MAPPED_PLACE,
    address_of,
    arena_of,
    block_address,
    free_mapped,
    mapped_size,
    realloc_mapped,
    systrim,
    trim_bins,
    unmap_chunk,
)
from replay.allocators.glibc.tcache import INACTIVE, TCACHE_BINS, tcache_get, tcache_put, tcache_room
from replay.allocators.glibc.threads import (
    CACHE_ROW,
    KEPT,
    THREAD,
    end_thread,
    open_tcache,
    own_arena,
    switch_thread,
)
from replay.jit.arrays import extend
from replay.jit.compiling import by_reference, cold, inlined, leaf
from replay.jit.cpu_intrinsics import prefetch

__all__ = [
    "MMAP_THRESHOLD",
    "RULES",
    "Config",
    "State",
    "end_thread",
    "new_state",
    "span_changes",
    "spans",
    "switch_thread",
]

ROLES = ("libc",)
COUNTERS = (
    Counter("thread_arenas", CounterKind.SUM, "arenas created for threads, besides the main one"),
    Counter("heaps_released", CounterKind.SUM, "heaps of thread arenas that were unmapped", more_is_worse=False),
    Counter("top_trims", CounterKind.SUM, "times the free end of a heap was released", more_is_worse=False),
    Counter("mapped_chunks", CounterKind.LEVEL, "chunks with a mapping of their own", more_is_worse=False),
)
CHUNKS_AT_FIRST = 1 << 20
"""Records that a run starts with room for; they take memory only once they are used."""
ARENA_SHIFT = 40
"""Where trim stopped: arena << ARENA_SHIFT | what trim_bins says."""


@by_reference
class State(NamedTuple):
    """One PAR record; ARENA, HEAP and THREAD records by number; CHUNK records; of each arena, the bins that may hold
    something, 32 a word, and fastbins by size; of each thread, KEPT by size; MAPPED records."""

    par: np.ndarray
    arenas: np.ndarray
    heaps: np.ndarray
    threads: np.ndarray
    memory: np.ndarray
    binmap: np.ndarray
    fastbins: np.ndarray
    cache: np.ndarray
    mapped: np.ndarray


@cache
def _main_bins() -> np.ndarray:
    """The main arena's, empty: in plain Python they take as long as a short trace, so they are made once."""
    bins = np.zeros(NBINS, CHUNK)
    empty_bins(bins, 0)
    return bins


def new_state(config: Config) -> State:
    """A process that has not called malloc yet."""
    state = State(
        par=new_par(config),
        arenas=np.zeros(HEAPS_MAX, ARENA),
        heaps=np.zeros(HEAPS_MAX, HEAP),
        threads=np.zeros(0, THREAD),
        memory=np.zeros(CHUNKS_AT_FIRST, CHUNK),
        binmap=np.zeros(HEAPS_MAX * NBINS // BITS_A_WORD, np.int64),
        fastbins=np.zeros(HEAPS_MAX * FASTBINS, np.int64),
        cache=np.zeros(0, KEPT),
        mapped=np.zeros(4 * MARGIN, MAPPED),
    )
    state.memory[:NBINS] = _main_bins()
    arena, heap = state.arenas[MAIN_ARENA], state.heaps[MAIN_HEAP]
    arena.number, arena.next, arena.attached = MAIN_ARENA, MAIN_ARENA, 1
    arena.heap, arena.top, arena.last_remainder = MAIN_HEAP, UNSORTED, -1
    heap.arena = MAIN_ARENA
    return with_threads(state, 1)


def with_threads(state: State, count: int) -> State:
    """The same malloc with room for so many threads."""
    if count <= state.threads.shape[0]:
        return state
    return state._replace(
        threads=extend(state.threads, count),
        cache=extend(state.cache, count * CACHE_ROW),
    )


@inlined
def _units(par, size):
    """request2size."""
    return max((size + par.word_size + UNIT - 1) >> UNIT_SHIFT, par.min_units)


@inlined
def malloc(state, stack, size):
    """From the cache, or from the arena."""
    par = state.par[0]
    wanted = _units(par, size)
    index = wanted - par.min_units
    if index < par.tcache_bins and state.cache[np.uint64(par.cache + index)].first:
        return tcache_get(state, index)
    if par.is_ready:
        place = int_malloc(state, stack, state.arenas[np.uint64(par.arena)], wanted)
        return place if place else _malloc_from_main(state, stack, wanted)
    return _malloc_uncached(state, stack, wanted, size)


@cold
def _malloc_from_main(state, stack, wanted):
    """arena_get_retry: the thread's arena had no room."""
    return call_int_malloc(state, stack, state.arenas[MAIN_ARENA], wanted)


@cold
def _malloc_uncached(state, stack, wanted, size):
    par = state.par[0]
    if wanted - par.min_units >= TCACHE_BINS and wanted <= par.tcache_large:
        place = get_large(state, wanted)
        if place:
            return place
    return _malloc_past_cache(state, stack, wanted, size)


@leaf
def _malloc_past_cache(state, stack, wanted, size):
    """From the thread's arena; if that has no room, from the main one."""
    par = state.par[0]
    if par.check:
        return malloc_check(state, stack, size)
    if par.tcache == INACTIVE and not par.lazy_tcache:
        open_tcache(state, stack)
    place = call_int_malloc(state, stack, own_arena(state, stack, size), wanted)
    return place if place else _malloc_from_main(state, stack, wanted)


@cold
def _call_malloc(state, stack, size):
    """The same for all but the most frequent caller."""
    return malloc(state, stack, size)


@leaf
def calloc(state, stack, size):
    """As malloc; up to 2.40 past the cache."""
    if state.par[0].calloc_uses_tcache:
        return _call_malloc(state, stack, size)
    return _malloc_past_cache(state, stack, _units(state.par[0], size), size)


@cold
def memalign(state, stack, alignment, size):
    """From the cache in later versions, or from the arena."""
    par = state.par[0]
    if alignment <= UNIT:
        return _call_malloc(state, stack, size)
    if par.check:
        return memalign_check(state, stack, alignment, size)
    wanted = _units(par, size)
    if par.aligned_in_tcache:
        place = get_aligned(state, wanted, alignment)
        if place:
            return place
    arena = own_arena(state, stack, size + alignment + (par.min_units << UNIT_SHIFT))
    place = int_memalign(state, stack, arena, alignment, wanted)
    return place if place else int_memalign(state, stack, state.arenas[MAIN_ARENA], alignment, wanted)


@inlined
def free(state, stack, place):
    """Into the cache, or back to the arena or the kernel."""
    par = state.par[0]
    if place >= MAPPED_PLACE:
        _free_uncached(state, stack, place, mapped_size(par, state.mapped[place & (MAPPED_PLACE - 1)]) >> UNIT_SHIFT)
        return
    size = size_of(state.memory, place)
    index = size - par.min_units
    if tcache_room(state, index):
        tcache_put(state, place, index)
    elif par.is_ready:
        free_chunk(state, stack, arena_of(state, place), place, size)
    else:
        _free_uncached(state, stack, place, size)


@cold
def _free_uncached(state, stack, place, size):
    par, index = state.par[0], size - state.par[0].min_units
    if par.check:
        free_check(state, stack, place, size)
        return
    is_large = index >= TCACHE_BINS and size <= par.tcache_large
    cacheable = index < par.tcache_bins or is_large
    if par.tcache == INACTIVE and (cacheable if par.lazy_tcache else place < MAPPED_PLACE):
        open_tcache(state, stack)
        if place < MAPPED_PLACE and tcache_room(state, index):
            tcache_put(state, place, index)
            return
    if is_large and put_large(state, place):
        return
    if place >= MAPPED_PLACE:
        free_mapped(state, stack, place)
    else:
        call_free_chunk(state, stack, arena_of(state, place), place, size)


@inlined
def realloc(state, stack, place, size):
    """In place, if there is room; the mapping of a mapped chunk is resized."""
    par = state.par[0]
    if place < MAPPED_PLACE and par.is_ready:
        have, wanted = size_of(state.memory, place), _units(par, size)
        if 0 <= have - wanted < par.min_units:
            return place
        if par.keeps_slack_bytes == 0:
            arena = arena_of(state, place)
            moved = int_realloc(state, stack, arena, place, have, wanted)
            return moved if moved else _realloc_by_copy(state, stack, arena, place, size)
    return _realloc_elsewhere(state, stack, place, size)


@cold
def _realloc_by_copy(state, stack, arena, place, size):
    """The block's arena has no room for it."""
    moved = _call_malloc(state, stack, size)
    give_back(state, stack, arena, place, size_of(state.memory, place))
    return moved


@cold
def _realloc_elsewhere(state, stack, place, size):
    """What changes the chunk, or may do so."""
    par, is_mapped = state.par[0], place >= MAPPED_PLACE
    if par.check:
        return realloc_check(state, stack, place, size)
    wanted = _units(par, size)
    usable = 0
    if is_mapped:
        have = mapped_size(par, state.mapped[place & (MAPPED_PLACE - 1)])
        usable = have - (par.header if par.keeps_mapped_page else par.word_size)
    else:
        have = size_of(state.memory, place) << UNIT_SHIFT
        usable = have - par.word_size
    if par.keeps_slack_bytes and size <= usable:
        spare = usable - size
        if spare < par.keeps_slack_bytes or (
            is_mapped and par.keeps_mapped_page and spare <= stack.linux.space[0].page_size
        ):
            return place
    if is_mapped:
        if realloc_mapped(state, stack, place, wanted):
            return place
        moved = _call_malloc(state, stack, size)
        unmap_chunk(state, stack, place)
        return moved
    if par.tcache == INACTIVE and not par.lazy_tcache:
        open_tcache(state, stack)
    arena = arena_of(state, place)
    moved = int_realloc(state, stack, arena, place, have >> UNIT_SHIFT, wanted)
    return moved if moved else _realloc_by_copy(state, stack, arena, place, size)


@inlined
def block_size(state, stack, place):
    """Bytes of the chunk, or of the mapping."""
    if place >= MAPPED_PLACE:
        return state.mapped[place & (MAPPED_PLACE - 1)].size_bytes
    return size_of(state.memory, place) << UNIT_SHIFT


@leaf
def address(state, stack, place):
    """Behind the chunk's header."""
    return block_address(state, place)


@inlined
def expect(state, place):
    """Its chunk's record, unless it is a mapping."""
    prefetch(state.memory, place & (MAPPED_PLACE - 1))


@inlined
def fill(state, stack, place, size):
    """The program writes to its block: only in mappings, and in holes, is that news (`system`)."""
    if (place >= MAPPED_PLACE or state.par[0].holes) and size > 0:
        begin = address(state, stack, place)
        linux.touch(stack, begin, begin + size)


@cold
def trim(state, stack, resume):
    """malloc_trim(0): of each arena, fastbins are merged and pages inside free chunks go back; of the main one, its
    heap's end too."""
    number, inside = resume >> ARENA_SHIFT, resume & ((1 << ARENA_SHIFT) - 1)
    if number == 0:
        number = np.int64(MAIN_ARENA)
    while True:
        arena = state.arenas[number]
        if inside == 0:
            consolidate(state, stack, arena)
        inside = trim_bins(state, stack, arena, inside)
        if inside:
            return number << ARENA_SHIFT | inside
        if number == MAIN_ARENA and arena.top != UNSORTED:
            systrim(state, stack, arena, 0)
        number = arena.next
        if number == MAIN_ARENA:
            return 0


def grow(state: State) -> State:
    """The same malloc with room for twice the chunks and mappings."""
    par = state.par[0]
    return state._replace(
        memory=extend(state.memory, 2 * int(par.chunks) + 2 * NBINS, int(par.chunks)),
        mapped=extend(state.mapped, 2 * max(int(par.used), MARGIN)),
    )


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError where an invariant of this file does not hold."""
    par, space, tally = state.par[0], stack.linux.space[0], stack.tally[0]  # type: ignore[attr-defined]
    unused, index = set(), int(par.unused)
    while index >= 0:
        unused.add(index)
        index = int(state.mapped[index].next)
    live = [index for index in range(int(par.used)) if index not in unused]
    assert len(live) == par.mmaps
    mapped_bytes = sum(int(state.mapped[index].size_bytes) for index in live)
    heap_bytes, number = int(par.mapped_heap_bytes), MAIN_ARENA
    while True:
        heap_bytes += _check_arena(state, state.arenas[number])
        number = int(state.arenas[number].next)
        if number == MAIN_ARENA:
            break
    assert tally.heap_bytes == mapped_bytes + heap_bytes
    if state.arenas[MAIN_ARENA].top != UNSORTED and not par.hp_bytes:
        assert state.heaps[MAIN_HEAP].end == space.brk
    attached = [par.arena, *(it.arena for number, it in enumerate(state.threads) if number != par.thread)]
    for number in range(MAIN_ARENA, int(par.arenas) + 1):
        assert state.arenas[number].attached == attached.count(number) + (par.thread == threads.NOBODY)


def _check_arena(state: State, arena: np.record) -> int:
    """Checks one arena; gives what its heaps take."""
    memory, heap_bytes = state.memory, 0
    if arena.top == UNSORTED:
        return 0
    binned = _binned(state, arena)
    number, chunk = int(arena.heap), int(arena.top)
    assert not is_free(memory, memory[chunk].before), "a free chunk borders on top"
    while number:
        heap, behind = state.heaps[number], 0
        assert heap.arena == arena.number
        assert (heap.end - address_of(state, chunk)) >> UNIT_SHIFT == size_of(memory, chunk)
        heap_bytes += int(heap.end - heap.address)
        while chunk:
            assert arena_of(state, chunk).number == arena.number
            entry, before = memory[chunk], int(memory[chunk].before)
            assert entry.behind == behind
            assert bool(is_free(memory, chunk)) == (chunk in binned)
            assert not (is_free(memory, chunk) and is_free(memory, before)), "two free chunks are neighbours"
            if before and not state.par[0].hp_bytes:  # or it may be the fence of another mapping
                assert memory[before].start + size_of(memory, before) == entry.start
            binned.discard(chunk)
            behind, chunk = chunk, before
        number = int(heap.previous)
        chunk = int(state.heaps[number].fence) if number else 0
    assert not binned, "a bin holds what is no chunk"
    return heap_bytes


def _binned(state: State, arena: np.record) -> set[int]:
    """All chunks in the unsorted list and the bins."""
    memory, par, found = state.memory, state.par[0], set()
    for index in range(UNSORTED, NBINS):
        head = int(arena.bins) + index
        chunk, sizes = int(memory[head].fd), []
        while chunk != head:
            assert chunk not in found
            assert memory[memory[chunk].fd].bk == chunk == memory[memory[chunk].bk].fd
            found.add(chunk)
            sizes.append(int(size_of(memory, chunk)))
            chunk = int(memory[chunk].fd)
        if index > UNSORTED:
            assert all(bin_index(size, par) == index for size in sizes)
            assert sizes == sorted(sizes, reverse=True)
            word = state.binmap[arena.binmap + (index >> 5)]
            assert not sizes or int(word) >> (index & 31) & 1
    return found
