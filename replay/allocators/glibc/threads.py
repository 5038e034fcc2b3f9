"""Threads: each with a cache of its own, and attached to an arena that it may share with others.

    main arena   of the thread that comes first
    new arenas   for each further thread with its first malloc, until there are `arena_max`; from then on the threads go
                 round the ring of arenas: main, then from the newest to the oldest
    free list    arenas whose last thread has ended; the next new thread takes the one that was left last

A thread's end empties its cache into the arenas that the chunks came from.
"""

import numpy as np

from replay.allocators._stack import NO_MEMORY, attend
from replay.allocators.glibc.arena import FASTBINS, call_free_chunk, make_tcache
from replay.allocators.glibc.heaps import new_heap, open_heap
from replay.allocators.glibc.hugetlb import settle_page_size
from replay.allocators.glibc.large_cache import LARGE_BINS, following
from replay.allocators.glibc.memory import BITS_A_WORD, NBINS, UNIT, empty_bins, size_of
from replay.allocators.glibc.system import MAIN_ARENA, MAPPED_PLACE, arena_of, free_mapped, raise_top
from replay.allocators.glibc.tcache import INACTIVE, LIVE, TCACHE_BINS, note_readiness
from replay.jit.arrays import record
from replay.jit.compiling import cold, inlined, leaf

THREAD = record("arena", "tcache", "cache_chunk")
"""Its arena, or 0; INACTIVE or LIVE; the chunk that the cache itself takes. Of the thread at work, the first two are in
`par`."""
NOBODY = -1
KEPT = record("first", "count")
"""Of one size (or in a large bin, of several), in a thread's cache."""
CACHE_ROW = TCACHE_BINS + LARGE_BINS
"""KEPT records of a thread."""


@cold
def switch_thread(state, stack, thread):
    """What follows is another thread's; the first one of all is the main thread."""
    par = state.par[0]
    if par.thread == NOBODY:
        par.arena = MAIN_ARENA
        if par.hp_bytes:
            settle_page_size(state, stack)
    else:
        left, entered = state.threads[par.thread], state.threads[thread]
        left.arena, left.tcache = par.arena, par.tcache
        par.arena, par.tcache = entered.arena, entered.tcache
    par.thread, par.cache = thread, thread * CACHE_ROW
    note_readiness(par)


@cold
def end_thread(state, stack):
    """The thread at work ends: what its cache holds is freed, then the cache; the arena may have no thread then."""
    par = state.par[0]
    if par.tcache == LIVE:
        par.tcache = INACTIVE
        for slot in range(par.cache, par.cache + CACHE_ROW):
            state.cache[slot].count = 0
            while state.cache[slot].first:
                place = state.cache[slot].first
                state.cache[slot].first = following(state, place)
                _release(state, stack, place)
        chunk = state.threads[par.thread].cache_chunk
        if chunk:
            _release(state, stack, chunk)
    state.threads[par.thread].cache_chunk = 0
    if par.arena:
        arena = state.arenas[par.arena]
        arena.attached -= 1
        if arena.attached == 0:
            arena.next_free = par.free_arenas
            par.free_arenas = par.arena
        par.arena = 0
    note_readiness(par)


@leaf
def _release(state, stack, place):
    if place >= MAPPED_PLACE:
        free_mapped(state, stack, place)
    else:
        call_free_chunk(state, stack, arena_of(state, place), place, size_of(state.memory, place))


@inlined
def own_arena(state, stack, size):
    """The arena of the thread at work, which wants `size` bytes of it."""
    if state.par[0].arena == 0:
        _find_arena(state, stack, size)
    return state.arenas[np.uint64(state.par[0].arena)]


@cold
def open_tcache(state, stack):
    """tcache_init outside of _int_malloc: the thread's cache, in its arena."""
    par = state.par[0]
    if par.lazy_tcache and par.tcache_count == 0:
        par.tcache = LIVE
    else:
        make_tcache(state, stack, own_arena(state, stack, par.tcache_bytes), par.tcache_units)


@cold
def _find_arena(state, stack, size):
    """arena_get2: one that no thread has, or a new one, or the next of all."""
    par, number = state.par[0], state.par[0].free_arenas
    if number:
        par.free_arenas = state.arenas[number].next_free
    else:
        if par.arena_limit == 0 and par.arenas > par.arena_test:
            par.arena_limit = par.arena_limit_later
        if par.arena_limit == 0 or par.arenas < par.arena_limit:
            number = _new_arena(state, stack, size)
        else:
            number = par.next_to_use
            par.next_to_use = state.arenas[number].next
    state.arenas[number].attached += 1
    par.arena = number
    note_readiness(par)


@leaf
def _new_arena(state, stack, size):
    """_int_new_arena: its number."""
    par, header = state.par[0], state.par[0].heap_header + state.par[0].arena_header
    heap = new_heap(state, stack, size + header + UNIT)
    if heap == 0:
        heap = new_heap(state, stack, header + UNIT)
    if heap == 0:
        attend(stack, NO_MEMORY)
        return np.int64(MAIN_ARENA)
    par.arenas += 1
    stack.tally[0].glibc_thread_arenas += 1
    number = par.arenas
    arena, main = state.arenas[number], state.arenas[MAIN_ARENA]
    arena.number, arena.last_remainder = number, -1
    arena.bins, arena.binmap, arena.fastbins = par.chunks, number * (NBINS // BITS_A_WORD), number * FASTBINS
    par.chunks += NBINS
    empty_bins(state.memory, arena.bins)
    open_heap(state, stack, arena, heap, header)
    raise_top(state, stack, arena)
    arena.next, main.next = main.next, number
    return number
