"""glibc's `_int_memalign`: blocks with an alignment of more than 16 bytes.

    padded   size of a chunk that contains an aligned chunk at any address
    lead     the part before the aligned chunk. It is split off and freed; in a mapped chunk, it stays
    tail     the part after the aligned chunk. It is split off and freed

Up to 2.36, lead and tail are freed into the tcache and fastbins. Later versions merge them at once. They also search
the tcache for an aligned chunk first.
"""

import numpy as np

from replay.allocators.glibc.allocating import call_int_malloc
from replay.allocators.glibc.freeing import call_int_free, int_free_merge_chunk, perturb
from replay.allocators.glibc.large_cache import bin_of, following, set_following, size_in_cache
from replay.allocators.glibc.memory import UNIT, UNIT_SHIFT, is_free, size_of, split
from replay.allocators.glibc.system import MAPPED_PLACE, address_of, block_address, touch_to_top
from replay.allocators.glibc.tcache import TCACHE_BINS
from replay.allocators.linux import touch
from replay.jit.compiling import cold, leaf


@cold
def get_aligned(state, nb, alignment):
    """tcache_get_align: takes the first chunk of this size with an aligned block from the tcache; 0 if none."""
    par, index = state.par[0], nb - state.par[0].min_units
    if index >= par.tcache_bins:
        if index < TCACHE_BINS or nb > par.tcache_large:
            return np.int64(0)
        index = np.int64(bin_of(nb))
    tcache_bin = state.cache[par.cache + index]
    before, place = np.int64(0), tcache_bin.first
    while place:
        size = size_in_cache(state, place)
        if size > nb:
            return np.int64(0)
        if size == nb and block_address(state, place) & (alignment - 1) == 0:
            if before:
                set_following(state, before, following(state, place))
            else:
                tcache_bin.first = following(state, place)
            tcache_bin.count -= 1
            return place
        before, place = place, following(state, place)
    return np.int64(0)


@cold
def int_memalign(state, stack, arena, alignment, nb):
    """_int_memalign: returns a chunk of `nb` units whose block is aligned, or 0 if it fails."""
    par = state.par[0]
    padded = ((nb + par.min_units) << UNIT_SHIFT) + alignment
    par.touched_by_caller = 1
    chunk = call_int_malloc(state, stack, arena, (padded + par.word_size + UNIT - 1) >> UNIT_SHIFT)
    par.touched_by_caller = 0
    if chunk == 0:
        return chunk
    if chunk >= MAPPED_PLACE:
        return _align_mapped(state, stack, chunk, alignment, padded)
    lead = _lead(block_address(state, chunk), alignment, par.min_units << UNIT_SHIFT)
    _touch_padded(state, stack, arena, chunk, lead)
    if lead:
        aligned = split(state, stack, chunk, lead >> UNIT_SHIFT)
        start = address_of(state, aligned)
        touch(stack, start, start + par.header)
        _free_part(state, stack, arena, chunk, lead >> UNIT_SHIFT)
        chunk = aligned
    _cut_tail(state, stack, arena, chunk, nb)
    return chunk


@leaf
def _lead(block, alignment, least):
    """Returns the bytes from a block to the next aligned address: 0, or at least `least`."""
    lead = -block & (alignment - 1)
    return lead + alignment if 0 < lead < least else lead


@leaf
def _align_mapped(state, stack, place, alignment, padded):
    """Moves the block to the first aligned address in its mapping. Returns the place."""
    par, chunk = state.par[0], state.mapped[place & (MAPPED_PLACE - 1)]
    block = block_address(state, place)
    if par.perturb:
        touch(stack, block, block + padded)
    chunk.lead = _lead(block, alignment, par.mapped_lead_least)
    touch(stack, block + chunk.lead - par.header, block + chunk.lead)
    return place


@leaf
def _touch_padded(state, stack, arena, chunk, lead):
    """Touches a padded chunk that was split off top.

    Whole pages of the lead and of the tail are not written to. A lead with such pages is a hole in the heap; the tail
    becomes top again.
    """
    par, heap, page = state.par[0], state.heaps[np.uint64(arena.heap)], stack.linux.space[0].page_size
    if par.perturb:
        touch_to_top(state, stack, arena)
        perturb(state, stack, chunk, size_of(state.memory, chunk) << UNIT_SHIFT)
        return
    if np.int64(state.memory[np.uint64(chunk)].behind) != arena.top:
        touch_to_top(state, stack, arena)
        return
    top = address_of(state, arena.top)
    touch(stack, top, top + par.header)
    if top + par.header <= heap.touched:
        return
    fields = address_of(state, chunk) + 6 * par.word_size
    if fields > heap.touched:
        touch(stack, heap.touched, fields)
        heap.touched = (fields + page - 1) & -page
    aligned = (address_of(state, chunk) + lead) & -page
    if aligned > heap.touched:
        par.holes = 1
        heap.touched = aligned


@leaf
def _cut_tail(state, stack, arena, chunk, nb):
    """Splits off and frees the part after `nb` units, if it is large enough."""
    par, memory = state.par[0], state.memory
    rest = size_of(memory, chunk) - nb
    behind = np.int64(memory[np.uint64(chunk)].behind)
    least = par.min_units if par.aligned_in_tcache else par.min_units + 1
    if par.merges_any_tail and (behind == arena.top or is_free(memory, behind)):
        least = np.int64(1)
    if rest >= least:
        tail = split(state, stack, chunk, nb)
        if par.holes:
            start = address_of(state, tail)
            touch(stack, start, start + 6 * par.word_size)
        _free_part(state, stack, arena, tail, rest)
    touch_to_top(state, stack, arena)


@leaf
def _free_part(state, stack, arena, chunk, size):
    if state.par[0].aligned_in_tcache:
        int_free_merge_chunk(state, stack, arena, chunk)
    else:
        call_int_free(state, stack, arena, chunk, size)
