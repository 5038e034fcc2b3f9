"""glibc's `_int_realloc` over one arena."""

import numpy as np

from replay.allocators.glibc.allocating import call_int_malloc
from replay.allocators.glibc.bins import split_off
from replay.allocators.glibc.freeing import int_free, perturb
from replay.allocators.glibc.memory import UNIT_SHIFT, is_free, merge_next, set_used, size_of, split, unlink_chunk
from replay.allocators.glibc.system import touch_header, touch_to_top
from replay.jit.compiling import cold


@cold
def int_realloc(state, stack, arena, chunk, old_size, nb):
    """_int_realloc: keeps the chunk, extends it into top or the next free chunk, or allocates another chunk and frees
    it. Returns the chunk, or 0 if there is no room."""
    memory, par = state.memory, state.par[0]
    result, remainder, remainder_size = chunk, np.int64(0), np.int64(0)
    behind = np.int64(memory[np.uint64(chunk)].behind)
    if old_size < nb:
        both = old_size + size_of(memory, behind)
        if behind == arena.top and both >= nb + par.min_units:
            merge_next(state, chunk)
            arena.top = split(state, stack, chunk, nb)
            touch_to_top(state, stack, arena)
            return chunk
        if behind != arena.top and is_free(memory, behind) and both >= nb:
            unlink_chunk(memory, behind, par)
        else:
            par.touched_by_caller = 1
            other = call_int_malloc(state, stack, arena, nb)
            par.touched_by_caller = 0
            if other == 0:
                return other
            if other != np.int64(memory[np.uint64(chunk)].behind):
                touch_to_top(state, stack, arena)
                result, remainder, remainder_size = other, chunk, old_size
            else:
                # The new chunk follows the old one, and both are merged. The program does not write to the part that is
                # split off again, but the header of top after it was written.
                touch_header(state, stack, arena)
                if par.perturb:
                    perturb(state, stack, other, nb << UNIT_SHIFT)
        if result == chunk:
            merge_next(state, chunk)
    if result == chunk:
        size = size_of(memory, chunk)
        set_used(memory, chunk, size)
        if size - nb >= par.min_units:
            remainder, remainder_size = split_off(state, stack, chunk, nb), size - nb
    if remainder:
        int_free(state, stack, arena, remainder, remainder_size)
    if old_size < nb and result == chunk:
        touch_to_top(state, stack, arena)
    return result
