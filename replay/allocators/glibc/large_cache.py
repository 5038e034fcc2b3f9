"""The cache's bins above those of one size each: from 2.42 on, for what `tcache_max` lets in, mapped chunks too.

A bin holds sizes from one power of two to the next, in a list that rises by size; only an equal size is served. Entries
are places: chunk numbers, or those of mapped chunks.
"""

import numpy as np

from replay.allocators.glibc.memory import UNIT_SHIFT, size_of
from replay.allocators.glibc.system import MAPPED_PLACE, mapped_size
from replay.jit.compiling import cold, leaf
from replay.jit.cpu_intrinsics import bit_length

LARGE_BINS = 12
FIRST_BIN = 64
_LEAST_BITS = 6
"""2^6 units, 1,024 bytes: the first of these bins."""


@leaf
def bin_of(size):
    """The bin for chunks of so many units."""
    return FIRST_BIN - 1 - _LEAST_BITS + bit_length(size)


@leaf
def size_in_cache(state, place):
    """Units of a chunk, mapped or not."""
    if place >= MAPPED_PLACE:
        return mapped_size(state.par[0], state.mapped[place & (MAPPED_PLACE - 1)]) >> UNIT_SHIFT
    return size_of(state.memory, place)


@leaf
def following(state, place):
    """The next in the list, or 0."""
    if place >= MAPPED_PLACE:
        return state.mapped[place & (MAPPED_PLACE - 1)].next
    return np.int64(state.memory[np.uint64(place)].fd)


@leaf
def set_following(state, place, following):
    """Links one entry of a list to the next."""
    if place >= MAPPED_PLACE:
        state.mapped[place & (MAPPED_PLACE - 1)].next = following
    else:
        state.memory[np.uint64(place)].fd = following


@leaf
def _find(state, index, size):
    """The first entry of at least this size, or 0, and the one before it, or 0."""
    before, place = np.int64(0), state.cache[state.par[0].cache + index].first
    while place and size_in_cache(state, place) < size:
        before, place = place, following(state, place)
    return before, place


@cold
def put_large(state, place):
    """Whether the cache took the chunk."""
    par, size = state.par[0], size_in_cache(state, place)
    index = bin_of(size)
    if size > par.tcache_large or index < FIRST_BIN or state.cache[par.cache + index].count >= par.tcache_count:
        return False
    before, behind = _find(state, index, size)
    set_following(state, place, behind)
    if before:
        set_following(state, before, place)
    else:
        state.cache[par.cache + index].first = place
    state.cache[par.cache + index].count += 1
    return True


@cold
def get_large(state, wanted):
    """A chunk of just this size, or 0."""
    index, cache = bin_of(wanted), state.par[0].cache
    before, place = _find(state, index, wanted)
    if place == 0 or size_in_cache(state, place) != wanted:
        return np.int64(0)
    if before:
        set_following(state, before, following(state, place))
    else:
        state.cache[cache + index].first = following(state, place)
    state.cache[cache + index].count -= 1
    return place
