"""glibc's `_int_malloc` over one arena. Functions return the index of a chunk, or the place of a mapped chunk."""

import numpy as np

from replay.allocators.glibc.bins import (
    from_fastbin,
    from_large_bin,
    from_larger_bin,
    from_remainder,
    from_small_bin,
    place_in_bin,
)
from replay.allocators.glibc.freeing import consolidate
from replay.allocators.glibc.memory import UNSORTED, bin_index, set_used, size_of
from replay.allocators.glibc.sysmalloc import sysmalloc, use_top
from replay.allocators.glibc.tcache import INACTIVE, LIVE, tcache_get, tcache_put, tcache_room, update_is_ready
from replay.jit.compiling import cold, inlined

MAX_ITERATIONS = 10_000
"""MAX_ITERS: the number of chunks that one malloc takes from the unsorted list."""
NEEDS_TCACHE = -1
"""Result of `_search` if the tcache must be created before it can continue. `par.found` is then the chunk it found."""


@inlined
def int_malloc(state, stack, arena, nb):
    """_int_malloc: returns a chunk of `nb` units, or 0 if it fails."""
    par = state.par[0]
    if nb <= par.max_fast:
        chunk = from_fastbin(state, arena, nb)
        if chunk:
            if state.fastbins[np.uint64(arena.fastbins + nb)]:
                _stash_fast(state, arena, nb)
            return chunk
    if nb < par.small_units:
        chunk = from_small_bin(state, arena, nb)
        if chunk:
            if nb - par.min_units < par.tcache_bins:
                _stash_small(state, stack, arena, nb)
            return chunk
        chunk = from_remainder(state, stack, arena, nb)
        if chunk:
            return chunk
    elif arena.have_fast:
        consolidate(state, stack, arena)
    return _search_all(state, stack, arena, nb)


@cold
def call_int_malloc(state, stack, arena, nb):
    """`int_malloc` as a call. Only the most frequent caller inlines it, because it is large."""
    return int_malloc(state, stack, arena, nb)


@cold
def _search_all(state, stack, arena, nb):
    """The rest of _int_malloc. Creates the tcache if the search finds a chunk that may go into it."""
    par = state.par[0]
    resumed = False
    while True:
        chunk = _search(state, stack, arena, nb, resumed, resumed)
        if chunk != NEEDS_TCACHE:
            return chunk
        found = par.found
        tcache_init(state, stack, arena, par.tcache_units_inside)
        index = nb - par.min_units
        if not tcache_room(state, index):
            return found
        tcache_put(state, found, index)
        resumed = True


@inlined
def _search(state, stack, arena, nb, cached, resumed):
    """The main loop of _int_malloc. Returns a chunk of `nb` units, 0 or NEEDS_TCACHE.

    `cached`: whether a chunk of this size was put into the tcache. `resumed`: whether the tcache exists, or is being
    created.
    """
    memory, par = state.memory, state.par[0]
    is_small = nb < par.small_units
    cache_index = nb - par.min_units
    unsorted = arena.bins + UNSORTED
    unsorted_seen = 0
    has_changed = resumed  # if False, the caller has tried `from_remainder`
    while True:
        iterations = 0
        while True:
            chunk = np.int64(memory[np.uint64(unsorted)].bk)
            if chunk == unsorted:
                break
            before = np.int64(memory[np.uint64(chunk)].bk)
            if has_changed and before == unsorted and is_small:
                remainder = from_remainder(state, stack, arena, nb)
                if remainder:
                    return remainder
            has_changed = True
            size = size_of(memory, chunk)
            memory[np.uint64(unsorted)].bk = before
            memory[np.uint64(before)].fd = unsorted
            if size == nb:
                set_used(memory, chunk, size)
                if par.lazy_tcache and par.tcache == INACTIVE and not resumed:
                    par.found = chunk
                    return np.int64(NEEDS_TCACHE)
                if not tcache_room(state, cache_index):
                    return chunk
                tcache_put(state, chunk, cache_index)
                cached = True
                continue
            place_in_bin(state, arena, chunk, size)
            unsorted_seen += 1
            if cached and 0 < par.unsorted_limit < unsorted_seen:
                return tcache_get(state, cache_index)
            iterations += 1
            if iterations >= MAX_ITERATIONS:
                break
        if cached:
            return tcache_get(state, cache_index)
        index = bin_index(nb, par)
        if not is_small:
            chunk = from_large_bin(state, stack, arena, index, nb)
            if chunk:
                return chunk
        chunk = from_larger_bin(state, stack, arena, index, nb)
        if chunk:
            return chunk
        size = size_of(memory, arena.top)
        if size < nb + par.min_units:
            if arena.have_fast:
                consolidate(state, stack, arena)
                has_changed = True
                continue
            return sysmalloc(state, stack, arena, nb)
        return use_top(state, stack, arena, nb)


@cold
def _stash_fast(state, arena, nb):
    """Moves further chunks of the fastbin into the tcache."""
    index = nb - state.par[0].min_units
    while state.fastbins[np.uint64(arena.fastbins + nb)] and tcache_room(state, index):
        tcache_put(state, from_fastbin(state, arena, nb), index)


@cold
def _stash_small(state, stack, arena, nb):
    """Moves further chunks of the small bin into the tcache."""
    memory, par = state.memory, state.par[0]
    if par.lazy_tcache and par.tcache == INACTIVE:
        tcache_init(state, stack, arena, par.tcache_units_inside)
    index, head = nb - par.min_units, arena.bins + nb + par.small_shift
    while np.int64(memory[np.uint64(head)].bk) != head and tcache_room(state, index):
        tcache_put(state, from_small_bin(state, arena, nb), index)


@cold
def tcache_init(state, stack, arena, nb):
    """tcache_init: allocates the chunk of the tcache itself. The tcache is not used during this allocation."""
    par = state.par[0]
    if not par.lazy_tcache or par.tcache_count:
        chunk = from_fastbin(state, arena, nb) if nb <= par.max_fast else np.int64(0)
        if chunk == 0 and nb < par.small_units:
            chunk = from_small_bin(state, arena, nb)
        if chunk == 0:
            chunk = _search(state, stack, arena, nb, False, True)
        state.threads[par.thread].cache_chunk = chunk
    par.tcache = LIVE
    update_is_ready(par)
