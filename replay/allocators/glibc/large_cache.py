"""The large bins of the tcache, from 2.42 on. They take chunks up to `tcache_max`, mapped chunks included.

A bin has the sizes from one power of two to the next, as a list in ascending order. Only chunks of exactly the size are
used. Entries are places of chunks or mapped chunks.
"""

import numpy as np

from replay.allocators.glibc.memory import UNIT_SHIFT, size_of
from replay.allocators.glibc.system import MAPPED_PLACE, mapped_size
from replay.jit.compiling import cold, leaf
from replay.jit.cpu_intrinsics import bit_length

LARGE_BINS = 12
FIRST_BIN = 64
_LEAST_BITS = 6
"""The first of these bins starts at 2^6 units (1,024 bytes)."""


@leaf
def bin_of(size):
    """Returns the bin for chunks of `size` units."""
    return FIRST_BIN - 1 - _LEAST_BITS + bit_length(size)


@leaf
def size_in_cache(state, place):
    """Returns the size in units of a chunk or a mapped chunk."""
    if place >= MAPPED_PLACE:
        return mapped_size(state.par[0], state.mapped[place & (MAPPED_PLACE - 1)]) >> UNIT_SHIFT
    return size_of(state.memory, place)


@leaf
def following(state, place):
    """Returns the entry after `place` in its list, or 0."""
    if place >= MAPPED_PLACE:
        return state.mapped[place & (MAPPED_PLACE - 1)].next
    return np.int64(state.memory[np.uint64(place)].fd)


@leaf
def set_following(state, place, following):
    """Makes `following` the entry after `place`."""
    if place >= MAPPED_PLACE:
        state.mapped[place & (MAPPED_PLACE - 1)].next = following
    else:
        state.memory[np.uint64(place)].fd = following


@leaf
def _find(state, index, size):
    """Finds the first entry of at least this size. Returns the entry before it, and the entry; 0 if there is none."""
    before, place = np.int64(0), state.cache[state.par[0].cache + index].first
    while place and size_in_cache(state, place) < size:
        before, place = place, following(state, place)
    return before, place


@cold
def put_large(state, place):
    """Puts a chunk into the tcache if there is room; returns whether it did."""
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
def get_large(state, nb):
    """Takes a chunk of exactly this size; returns 0 if there is none."""
    index, cache = bin_of(nb), state.par[0].cache
    before, place = _find(state, index, nb)
    if place == 0 or size_in_cache(state, place) != nb:
        return np.int64(0)
    if before:
        set_following(state, before, following(state, place))
    else:
        state.cache[cache + index].first = following(state, place)
    state.cache[cache + index].count -= 1
    return place
