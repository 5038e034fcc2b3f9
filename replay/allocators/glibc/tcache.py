"""The cache of the thread at work: of each size a few chunks, freed last, for which the arena need not be asked."""

import numpy as np

from replay.jit.compiling import inlined

TCACHE_BINS = 64
"""Of one size each."""
INACTIVE, LIVE = 0, 1
"""`par.tcache`: not made yet; made."""


@inlined
def tcache_room(state, index):
    """Whether the cache takes another chunk of this size."""
    par = state.par[0]
    return (
        par.tcache == LIVE
        and index < par.tcache_bins
        and state.cache[np.uint64(par.cache + index)].count < par.tcache_count
    )


@inlined
def tcache_put(state, chunk, index):
    """The chunk becomes the first of its size."""
    kept = state.cache[np.uint64(state.par[0].cache + index)]
    state.memory[np.uint64(chunk)].fd = kept.first
    kept.first = chunk
    kept.count += 1


@inlined
def tcache_get(state, index):
    """The first of its size, of which there is one."""
    kept = state.cache[np.uint64(state.par[0].cache + index)]
    chunk = kept.first
    kept.first = state.memory[np.uint64(chunk)].fd
    kept.count -= 1
    return chunk


@inlined
def note_readiness(par):
    """Keeps `is_ready` true to what it says."""
    par.is_ready = par.arena != 0 and par.tcache == LIVE and par.tcache_large == 0
