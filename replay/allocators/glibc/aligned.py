"""glibc's `_int_memalign`: blocks at a multiple of more than 16 bytes.

    padded   a chunk so large that an aligned one lies in it, wherever it is
    lead     what is cut off before the aligned chunk, and freed; of a mapped chunk it stays part of the mapping
    tail     what is cut off behind it, and freed

Up to 2.36 lead and tail go through the cache and the fastbins. Later versions merge them at once; they also look for an
aligned chunk in the cache first.
"""

import numpy as np

from replay.allocators.glibc.arena import call_int_malloc, give_back, merge_chunk, perturb
from replay.allocators.glibc.large_cache import bin_of, following, set_following, size_in_cache
from replay.allocators.glibc.memory import UNIT, UNIT_SHIFT, is_free, size_of, split
from replay.allocators.glibc.system import MAPPED_PLACE, address_of, block_address, raise_top
from replay.allocators.glibc.tcache import TCACHE_BINS
from replay.allocators.linux import touch
from replay.jit.compiling import cold, leaf


@cold
def get_aligned(state, wanted, alignment):
    """The first chunk in the cache of just this size whose block is aligned, or 0."""
    par, index = state.par[0], wanted - state.par[0].min_units
    if index >= par.tcache_bins:
        if index < TCACHE_BINS or wanted > par.tcache_large:
            return np.int64(0)
        index = np.int64(bin_of(wanted))
    kept = state.cache[par.cache + index]
    before, place = np.int64(0), kept.first
    while place:
        size = size_in_cache(state, place)
        if size > wanted:
            return np.int64(0)
        if size == wanted and block_address(state, place) & (alignment - 1) == 0:
            if before:
                set_following(state, before, following(state, place))
            else:
                kept.first = following(state, place)
            kept.count -= 1
            return place
        before, place = place, following(state, place)
    return np.int64(0)


@cold
def int_memalign(state, stack, arena, alignment, wanted):
    """A chunk of `wanted` units whose block is aligned, or 0 if this arena has none."""
    par = state.par[0]
    padded = ((wanted + par.min_units) << UNIT_SHIFT) + alignment
    par.raised_by_caller = 1
    chunk = call_int_malloc(state, stack, arena, (padded + par.word_size + UNIT - 1) >> UNIT_SHIFT)
    par.raised_by_caller = 0
    if chunk == 0:
        return chunk
    if chunk >= MAPPED_PLACE:
        return _align_mapped(state, stack, chunk, alignment, padded)
    lead = _lead(block_address(state, chunk), alignment, par.min_units << UNIT_SHIFT)
    _note_writes(state, stack, arena, chunk, lead)
    if lead:
        aligned = split(state, stack, chunk, lead >> UNIT_SHIFT)
        start = address_of(state, aligned)
        touch(stack, start, start + par.header)
        _free_cutting(state, stack, arena, chunk, lead >> UNIT_SHIFT)
        chunk = aligned
    _cut_tail(state, stack, arena, chunk, wanted)
    return chunk


@leaf
def _lead(block, alignment, least):
    """Bytes from a block to the next aligned address; 0, or not less than `least`."""
    lead = -block & (alignment - 1)
    return lead + alignment if 0 < lead < least else lead


@leaf
def _align_mapped(state, stack, place, alignment, padded):
    """The block moves to the first aligned place in its mapping."""
    par, chunk = state.par[0], state.mapped[place & (MAPPED_PLACE - 1)]
    block = block_address(state, place)
    if par.perturb:
        touch(stack, block, block + padded)
    chunk.lead = _lead(block, alignment, par.mapped_lead_least)
    touch(stack, block + chunk.lead - par.header, block + chunk.lead)
    return place


@leaf
def _note_writes(state, stack, arena, chunk, lead):
    """Marks the pages of a chunk that was cut off top as written.

    Whole pages of the lead and of the tail are not written. A lead with such pages is a hole in the heap; the tail
    becomes top again.
    """
    par, heap, page = state.par[0], state.heaps[np.uint64(arena.heap)], stack.linux.space[0].page_size
    if par.perturb:
        raise_top(state, stack, arena)
        perturb(state, stack, chunk, size_of(state.memory, chunk) << UNIT_SHIFT)
        return
    top = address_of(state, arena.top)
    if np.int64(state.memory[np.uint64(chunk)].behind) != arena.top or top + par.header <= heap.touched:
        raise_top(state, stack, arena)
        return
    touch(stack, top, top + par.header)
    fields = address_of(state, chunk) + 6 * par.word_size
    if fields > heap.touched:
        touch(stack, heap.touched, fields)
        heap.touched = (fields + page - 1) & -page
    aligned = (address_of(state, chunk) + lead) & -page
    if aligned > heap.touched:
        par.holes = 1
        heap.touched = aligned


@leaf
def _cut_tail(state, stack, arena, chunk, wanted):
    """Frees what the chunk has behind `wanted` units, if that is enough for a chunk."""
    par, memory = state.par[0], state.memory
    rest = size_of(memory, chunk) - wanted
    behind = np.int64(memory[np.uint64(chunk)].behind)
    least = par.min_units if par.aligned_in_tcache else par.min_units + 1
    if par.merges_any_tail and (behind == arena.top or is_free(memory, behind)):
        least = np.int64(1)
    if rest >= least:
        tail = split(state, stack, chunk, wanted)
        if par.holes:
            start = address_of(state, tail)
            touch(stack, start, start + 6 * par.word_size)
        _free_cutting(state, stack, arena, tail, rest)
    raise_top(state, stack, arena)


@leaf
def _free_cutting(state, stack, arena, chunk, size):
    if state.par[0].aligned_in_tcache:
        merge_chunk(state, stack, arena, chunk)
    else:
        give_back(state, stack, arena, chunk, size)
