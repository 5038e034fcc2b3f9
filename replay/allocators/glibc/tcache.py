"""The tcache of the current thread: for each size a list of the chunks freed last, used before the arena."""

import numpy as np

from replay.jit.compiling import inlined

TCACHE_BINS = 64
"""Number of bins for one size each."""
INACTIVE, LIVE = 0, 1
"""Values of `par.tcache`: not created yet; in use."""


@inlined
def tcache_room(state, index):
    """Returns whether the bin of this index takes another chunk."""
    par = state.par[0]
    return (
        par.tcache == LIVE
        and index < par.tcache_bins
        and state.cache[np.uint64(par.cache + index)].count < par.tcache_count
    )


@inlined
def tcache_put(state, chunk, index):
    """Puts a chunk at the front of its bin."""
    tcache_bin = state.cache[np.uint64(state.par[0].cache + index)]
    state.memory[np.uint64(chunk)].fd = tcache_bin.first
    tcache_bin.first = chunk
    tcache_bin.count += 1


@inlined
def tcache_get(state, index):
    """Takes the first chunk of a bin that is not empty."""
    tcache_bin = state.cache[np.uint64(state.par[0].cache + index)]
    chunk = tcache_bin.first
    tcache_bin.first = state.memory[np.uint64(chunk)].fd
    tcache_bin.count -= 1
    return chunk


@inlined
def update_is_ready(par):
    """Updates `par.is_ready`: whether the thread has an arena and a tcache, and the tcache has small bins only."""
    par.is_ready = par.arena != 0 and par.tcache == LIVE and par.tcache_large == 0
