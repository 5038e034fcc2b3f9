"""Threads. Each has its own tcache, and is attached to an arena, which it may share with other threads.

    main arena   the arena of the first thread
    new arenas   each further thread creates one with its first malloc, until there are `arena_max`. From then on, new
                 threads use the arenas in turn: the main one, then from the newest to the oldest
    free list    arenas without a thread; a new thread takes the one whose last thread ended last

At the end of a thread, the chunks in its tcache are freed into their arenas.
"""

import numpy as np

from replay.allocators._stack import NO_MEMORY, attend
from replay.allocators.glibc.allocating import tcache_init
from replay.allocators.glibc.bins import FASTBINS
from replay.allocators.glibc.freeing import call_int_free_chunk
from replay.allocators.glibc.heaps import new_heap, open_heap
from replay.allocators.glibc.hugetlb import set_hp_pagesize
from replay.allocators.glibc.large_cache import LARGE_BINS, following
from replay.allocators.glibc.memory import BITS_A_WORD, NBINS, UNIT, empty_bins, size_of
from replay.allocators.glibc.system import MAIN_ARENA, MAPPED_PLACE, arena_of, free_mapped, touch_to_top
from replay.allocators.glibc.tcache import INACTIVE, LIVE, TCACHE_BINS, update_is_ready
from replay.jit.arrays import record
from replay.jit.compiling import cold, inlined, leaf

THREAD = record("arena", "tcache", "cache_chunk")
"""The thread's arena, or 0; state of its tcache, INACTIVE or LIVE; the chunk of its tcache_perthread_struct. For the
current thread, `par` has the current values of `arena` and `tcache`."""
NO_THREAD = -1
TCACHE_BIN = record("first", "count")
"""A bin of a thread's tcache: head of the list, and number of chunks."""
BINS_A_THREAD = TCACHE_BINS + LARGE_BINS
"""Number of TCACHE_BIN records of a thread."""


@cold
def switch_thread(state, stack, thread):
    """Makes `thread` the current thread. The first thread of a run is the main thread."""
    par = state.par[0]
    if par.thread == NO_THREAD:
        par.arena = MAIN_ARENA
        if par.hp_bytes:
            set_hp_pagesize(state, stack)
    else:
        left, entered = state.threads[par.thread], state.threads[thread]
        left.arena, left.tcache = par.arena, par.tcache
        par.arena, par.tcache = entered.arena, entered.tcache
    par.thread, par.cache = thread, thread * BINS_A_THREAD
    update_is_ready(par)


@cold
def end_thread(state, stack):
    """Ends the current thread: frees the chunks in its tcache, then the tcache, and detaches it from its arena."""
    par = state.par[0]
    if par.tcache == LIVE:
        par.tcache = INACTIVE
        for slot in range(par.cache, par.cache + BINS_A_THREAD):
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
    update_is_ready(par)


@leaf
def _release(state, stack, place):
    if place >= MAPPED_PLACE:
        free_mapped(state, stack, place)
    else:
        call_int_free_chunk(state, stack, arena_of(state, place), place, size_of(state.memory, place))


@inlined
def arena_get(state, stack, size):
    """arena_get: returns the arena of the current thread. `size` is the number of bytes to allocate, for a new
    arena."""
    if state.par[0].arena == 0:
        _arena_get2(state, stack, size)
    return state.arenas[np.uint64(state.par[0].arena)]


@cold
def maybe_init_tcache(state, stack):
    """tcache_init outside of _int_malloc: creates the thread's tcache in its arena."""
    par = state.par[0]
    if par.lazy_tcache and par.tcache_count == 0:
        par.tcache = LIVE
    else:
        tcache_init(state, stack, arena_get(state, stack, par.tcache_bytes), par.tcache_units)


@cold
def _arena_get2(state, stack, size):
    """arena_get2: attaches the thread to an arena of the free list, a new one, or the next one in turn
    (reused_arena)."""
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
    update_is_ready(par)


@leaf
def _new_arena(state, stack, size):
    """_int_new_arena: creates an arena and returns its number."""
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
    touch_to_top(state, stack, arena)
    arena.next, main.next = main.next, number
    return number
