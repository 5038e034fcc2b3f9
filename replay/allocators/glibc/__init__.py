"""glibc's malloc. Every chunk is at the address at which the real malloc places it.

Follows `malloc/malloc.c` of glibc 2.31, 2.36, 2.41 and 2.43, on x86-64 and i386. Differences between versions are
fields of `Rules`. The terms are those of glibc; each module explains its own:

    memory        chunks, their neighbours, the linked lists of bins
    bins          fastbins, unsorted list, small and large bins of an arena
    allocating    _int_malloc
    freeing       _int_free, malloc_consolidate
    reallocating  _int_realloc
    aligned       memalign: blocks aligned to more than 16 bytes
    sysmalloc     what happens where top is too small; chunks from top
    system        the end of the main heap, mapped chunks, dynamic thresholds, trimming
    heaps         the heaps of all arenas but the main one
    hugetlb       the main heap if malloc uses reserved huge pages
    threads       which arena and which cache a thread uses
    tcache        the cache of a thread; large_cache: its bins for larger sizes, from 2.42 on
    checks        malloc under MALLOC_CHECK_ in 2.31

A place is the index of a chunk's record. From MAPPED_PLACE on, it is that of a mapped chunk.

Invariants (`check`):
    chunks are contiguous from the start of a heap to top, or to the fencepost at the end of a full heap
    of two neighbours, at most one is free; each links to the other
    every free chunk is in the bin of its size, or in the unsorted list; large bins are sorted
    heap_bytes == bytes of all heaps and mapped chunks
    `attached` of an arena is its number of threads; arenas without threads are in the free list
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from replay.allocators import linux
from replay.allocators._stack import MARGIN
from replay.allocators._tally import Counter, CounterKind
from replay.allocators.glibc import threads
from replay.allocators.glibc.aligned import get_aligned, int_memalign
from replay.allocators.glibc.allocating import call_int_malloc, int_malloc
from replay.allocators.glibc.bins import FASTBINS
from replay.allocators.glibc.checks import free_check, malloc_check, memalign_check, realloc_check
from replay.allocators.glibc.freeing import call_int_free, call_int_free_chunk, consolidate, int_free_chunk
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
from replay.allocators.glibc.reallocating import int_realloc
from replay.allocators.glibc.settings import MMAP_THRESHOLD, RULES, Config, new_par
from replay.allocators.glibc.spans import span_changes, spans, top_rule
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
    BINS_A_THREAD,
    TCACHE_BIN,
    THREAD,
    arena_get,
    end_thread,
    maybe_init_tcache,
    switch_thread,
)
from replay.jit.arrays import copied_state, extend
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
    "top_rule",
]

ROLES = ("libc",)
VERIFIED = "glibc's blocks and system calls"
FREE_MEMORY = "free chunks and tables"
COUNTERS = (
    Counter("thread_arenas", CounterKind.SUM, "arenas created for threads, besides the main one"),
    Counter("heaps_released", CounterKind.SUM, "heaps of thread arenas that were unmapped", more_is_worse=False),
    Counter("top_trims", CounterKind.SUM, "times the free end of a heap was released", more_is_worse=False),
    Counter("mapped_chunks", CounterKind.LEVEL, "chunks with a mapping of their own", more_is_worse=False),
)
CHUNKS_AT_FIRST = 1 << 20
"""Initial size of the table of chunks. Unused records do not become resident."""
ARENA_SHIFT = 40
"""The state of an interrupted trim: arena << ARENA_SHIFT | result of trim_bins."""


@by_reference
class State(NamedTuple):
    """One PAR record; ARENA, HEAP and THREAD records by number; CHUNK records; by arena, the bitmap of bins that may
    have chunks, 32 a word, and the fastbins by size; by thread, its TCACHE_BIN records by size; MAPPED records."""

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
    """Returns the empty bins of the main arena. They are cached, because in plain Python they take as long as a short
    trace."""
    bins = np.zeros(NBINS, CHUNK)
    empty_bins(bins, 0)
    return bins


def new_state(config: Config) -> State:
    """Returns the state of a process that has not called malloc."""
    state = State(
        par=new_par(config),
        arenas=np.zeros(HEAPS_MAX, ARENA),
        heaps=np.zeros(HEAPS_MAX, HEAP),
        threads=np.zeros(0, THREAD),
        memory=np.zeros(CHUNKS_AT_FIRST, CHUNK),
        binmap=np.zeros(HEAPS_MAX * NBINS // BITS_A_WORD, np.int64),
        fastbins=np.zeros(HEAPS_MAX * FASTBINS, np.int64),
        cache=np.zeros(0, TCACHE_BIN),
        mapped=np.zeros(4 * MARGIN, MAPPED),
    )
    state.memory[:NBINS] = _main_bins()
    arena, heap = state.arenas[MAIN_ARENA], state.heaps[MAIN_HEAP]
    arena.number, arena.next, arena.attached = MAIN_ARENA, MAIN_ARENA, 1
    arena.heap, arena.top, arena.last_remainder = MAIN_HEAP, UNSORTED, -1
    heap.arena = MAIN_ARENA
    return with_threads(state, 1)


def with_threads(state: State, count: int) -> State:
    """Returns the state with tables for at least `count` threads."""
    if count <= state.threads.shape[0]:
        return state
    return state._replace(
        threads=extend(state.threads, count),
        cache=extend(state.cache, count * BINS_A_THREAD),
    )


@inlined
def _units(par, size):
    """request2size, in units of 16 bytes."""
    return max((size + par.word_size + UNIT - 1) >> UNIT_SHIFT, par.min_units)


@inlined
def malloc(state, stack, size):
    """Allocates from the tcache, or from the arena."""
    par = state.par[0]
    nb = _units(par, size)
    index = nb - par.min_units
    if index < par.tcache_bins and state.cache[np.uint64(par.cache + index)].first:
        return tcache_get(state, index)
    if par.is_ready:
        place = int_malloc(state, stack, state.arenas[np.uint64(par.arena)], nb)
        return place if place else _arena_get_retry(state, stack, nb)
    return _malloc_uncached(state, stack, nb, size)


@cold
def _arena_get_retry(state, stack, nb):
    """arena_get_retry: allocates from the main arena after the thread's arena failed."""
    return call_int_malloc(state, stack, state.arenas[MAIN_ARENA], nb)


@cold
def _malloc_uncached(state, stack, nb, size):
    par = state.par[0]
    if nb - par.min_units >= TCACHE_BINS and nb <= par.tcache_large:
        place = get_large(state, nb)
        if place:
            return place
    return _malloc_from_arena(state, stack, nb, size)


@leaf
def _malloc_from_arena(state, stack, nb, size):
    """Allocates from the thread's arena without the tcache; from the main arena if that fails."""
    par = state.par[0]
    if par.check:
        return malloc_check(state, stack, size)
    if par.tcache == INACTIVE and not par.lazy_tcache:
        maybe_init_tcache(state, stack)
    place = call_int_malloc(state, stack, arena_get(state, stack, size), nb)
    return place if place else _arena_get_retry(state, stack, nb)


@cold
def _call_malloc(state, stack, size):
    """`malloc` as a call that is not inlined."""
    return malloc(state, stack, size)


@leaf
def calloc(state, stack, size):
    """Allocates as malloc does; up to 2.40, without the tcache."""
    if state.par[0].calloc_uses_tcache:
        return _call_malloc(state, stack, size)
    return _malloc_from_arena(state, stack, _units(state.par[0], size), size)


@cold
def memalign(state, stack, alignment, size):
    """Allocates an aligned block from the tcache (from 2.38 on), or from the arena."""
    par = state.par[0]
    if alignment <= UNIT:
        return _call_malloc(state, stack, size)
    if par.check:
        return memalign_check(state, stack, alignment, size)
    nb = _units(par, size)
    if par.aligned_in_tcache:
        place = get_aligned(state, nb, alignment)
        if place:
            return place
    arena = arena_get(state, stack, size + alignment + (par.min_units << UNIT_SHIFT))
    place = int_memalign(state, stack, arena, alignment, nb)
    return place if place else int_memalign(state, stack, state.arenas[MAIN_ARENA], alignment, nb)


@inlined
def free(state, stack, place):
    """Frees a chunk into the tcache or its arena; unmaps a mapped chunk."""
    par = state.par[0]
    if place >= MAPPED_PLACE:
        _free_uncached(state, stack, place, mapped_size(par, state.mapped[place & (MAPPED_PLACE - 1)]) >> UNIT_SHIFT)
        return
    size = size_of(state.memory, place)
    index = size - par.min_units
    if tcache_room(state, index):
        tcache_put(state, place, index)
    elif par.is_ready:
        int_free_chunk(state, stack, arena_of(state, place), place, size)
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
        maybe_init_tcache(state, stack)
        if place < MAPPED_PLACE and tcache_room(state, index):
            tcache_put(state, place, index)
            return
    if is_large and put_large(state, place):
        return
    if place >= MAPPED_PLACE:
        free_mapped(state, stack, place)
    else:
        call_int_free_chunk(state, stack, arena_of(state, place), place, size)


@inlined
def realloc(state, stack, place, size):
    """Resizes in place if possible, also mapped chunks; else allocates, copies and frees. Returns the place."""
    par = state.par[0]
    if place < MAPPED_PLACE and par.is_ready:
        old_size, nb = size_of(state.memory, place), _units(par, size)
        if 0 <= old_size - nb < par.min_units:
            return place
        if par.keeps_slack_bytes == 0:
            arena = arena_of(state, place)
            moved = int_realloc(state, stack, arena, place, old_size, nb)
            return moved if moved else _realloc_by_copy(state, stack, arena, place, size)
    return _realloc_uncommon(state, stack, place, size)


@cold
def _realloc_by_copy(state, stack, arena, place, size):
    """Allocates a new block and frees the old one, because the block's arena has no room."""
    moved = _call_malloc(state, stack, size)
    call_int_free(state, stack, arena, place, size_of(state.memory, place))
    return moved


@cold
def _realloc_uncommon(state, stack, place, size):
    """`realloc` for all cases that `realloc` does not handle itself."""
    par, is_mapped = state.par[0], place >= MAPPED_PLACE
    if par.check:
        return realloc_check(state, stack, place, size)
    nb = _units(par, size)
    usable = 0
    if is_mapped:
        old_bytes = mapped_size(par, state.mapped[place & (MAPPED_PLACE - 1)])
        usable = old_bytes - (par.header if par.keeps_mapped_page else par.word_size)
    else:
        old_bytes = size_of(state.memory, place) << UNIT_SHIFT
        usable = old_bytes - par.word_size
    if par.keeps_slack_bytes and size <= usable:
        spare = usable - size
        if spare < par.keeps_slack_bytes or (
            is_mapped and par.keeps_mapped_page and spare <= stack.linux.space[0].page_size
        ):
            return place
    if is_mapped:
        if realloc_mapped(state, stack, place, nb):
            return place
        moved = _call_malloc(state, stack, size)
        unmap_chunk(state, stack, place)
        return moved
    if par.tcache == INACTIVE and not par.lazy_tcache:
        maybe_init_tcache(state, stack)
    arena = arena_of(state, place)
    moved = int_realloc(state, stack, arena, place, old_bytes >> UNIT_SHIFT, nb)
    return moved if moved else _realloc_by_copy(state, stack, arena, place, size)


@inlined
def block_size(state, stack, place):
    """Returns the bytes of a chunk, or of the mapping of a mapped chunk."""
    if place >= MAPPED_PLACE:
        return state.mapped[place & (MAPPED_PLACE - 1)].size_bytes
    return size_of(state.memory, place) << UNIT_SHIFT


@leaf
def address(state, stack, place):
    """Returns the address of the block, which follows the header of its chunk."""
    return block_address(state, place)


@inlined
def expect(state, place):
    """Prefetches the record of a chunk that will be freed."""
    prefetch(state.memory, place & (MAPPED_PLACE - 1))


@inlined
def fill(state, stack, place, size):
    """Touches a block that the program writes to. In a heap without holes, this was done before (see `system`)."""
    if (place >= MAPPED_PLACE or state.par[0].holes) and size > 0:
        begin = address(state, stack, place)
        linux.touch(stack, begin, begin + size)


@cold
def trim(state, stack, resume):
    """malloc_trim(0): consolidates the fastbins of each arena and releases whole pages inside free chunks, then the
    free end of the main heap. Returns 0, or a value to pass as `resume` if it must be called again."""
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
    """Returns the state with tables for twice the chunks and mappings."""
    par = state.par[0]
    return state._replace(
        memory=extend(state.memory, 2 * int(par.chunks) + 2 * NBINS, int(par.chunks)),
        mapped=extend(state.mapped, 2 * max(int(par.used), MARGIN)),
    )


def copy(state: State) -> State:
    """Returns a copy of the state. Only the chunks in use are read."""
    found: State = copied_state(state._replace(memory=state.memory[: state.par[0].chunks]))
    return found._replace(memory=extend(found.memory, len(state.memory)))


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError if an invariant of this package does not hold."""
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
    attached = [par.arena, *(thread.arena for number, thread in enumerate(state.threads) if number != par.thread)]
    for number in range(MAIN_ARENA, int(par.arenas) + 1):
        assert state.arenas[number].attached == attached.count(number) + (par.thread == threads.NO_THREAD)


def _check_arena(state: State, arena: np.record) -> int:
    """Checks one arena; returns the bytes of its heaps."""
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
            if before and not state.par[0].hp_bytes:  # else `before` may be the fencepost of another mapping
                assert memory[before].start + size_of(memory, before) == entry.start
            binned.discard(chunk)
            behind, chunk = chunk, before
        number = int(heap.previous)
        chunk = int(state.heaps[number].fence) if number else 0
    assert not binned, "a bin contains an unused record"
    return heap_bytes


def _binned(state: State, arena: np.record) -> set[int]:
    """Returns all chunks in the unsorted list and the bins."""
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
