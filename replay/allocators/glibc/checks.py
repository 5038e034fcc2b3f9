"""malloc under MALLOC_CHECK_, as in `malloc/hooks.c` of glibc 2.31. From 2.34 on, a separate library does this.

Each block has one more byte, for a magic byte after it, and further ones up to the end of its chunk. All threads share
the main arena, there is no tcache, and freed mappings do not raise the thresholds.
"""

from replay.allocators.glibc.aligned import int_memalign
from replay.allocators.glibc.allocating import call_int_malloc
from replay.allocators.glibc.freeing import call_int_free_chunk
from replay.allocators.glibc.memory import UNIT, UNIT_SHIFT, size_of
from replay.allocators.glibc.reallocating import int_realloc
from replay.allocators.glibc.system import MAIN_ARENA, MAPPED_PLACE, free_mapped, realloc_mapped
from replay.allocators.linux import touch
from replay.jit.compiling import cold, leaf


@leaf
def _units(par, size):
    """request2size of one more byte, in units."""
    return max((size + 1 + par.word_size + UNIT - 1) >> UNIT_SHIFT, par.min_units)


@leaf
def _mem2mem_check(state, stack, place):
    """mem2mem_check: writes magic bytes to the end of the chunk. In a heap, its pages are touched anyway. Returns
    `place`."""
    if place >= MAPPED_PLACE:
        chunk = state.mapped[place & (MAPPED_PLACE - 1)]
        touch(stack, chunk.address + chunk.lead, chunk.address + chunk.size_bytes)
    return place


@cold
def malloc_check(state, stack, size):
    """malloc_check: allocates from the main arena."""
    arena = state.arenas[MAIN_ARENA]
    return _mem2mem_check(state, stack, call_int_malloc(state, stack, arena, _units(state.par[0], size)))


@cold
def memalign_check(state, stack, alignment, size):
    """memalign_check: allocates an aligned block from the main arena."""
    arena = state.arenas[MAIN_ARENA]
    return _mem2mem_check(state, stack, int_memalign(state, stack, arena, alignment, _units(state.par[0], size)))


@cold
def free_check(state, stack, place, size):
    """free_check: frees into the main arena, or unmaps."""
    if place >= MAPPED_PLACE:
        free_mapped(state, stack, place)
    else:
        call_int_free_chunk(state, stack, state.arenas[MAIN_ARENA], place, size)


@cold
def realloc_check(state, stack, place, size):
    """realloc_check: reallocates in the main arena."""
    nb, arena = _units(state.par[0], size), state.arenas[MAIN_ARENA]
    if place >= MAPPED_PLACE:
        realloc_mapped(state, stack, place, nb)
        return _mem2mem_check(state, stack, place)
    return _mem2mem_check(state, stack, int_realloc(state, stack, arena, place, size_of(state.memory, place), nb))
