"""malloc under MALLOC_CHECK_, as `malloc/hooks.c` of glibc 2.31 has it; from 2.34 on a library of its own does that.

Each block takes a byte more, for a mark right behind it, and more marks up to the end of its chunk. All threads share
the main arena, no cache is ever made, and freed mappings raise no threshold.
"""

from replay.allocators.glibc.aligned import int_memalign
from replay.allocators.glibc.arena import call_free_chunk, call_int_malloc, int_realloc
from replay.allocators.glibc.memory import UNIT, UNIT_SHIFT, size_of
from replay.allocators.glibc.system import MAIN_ARENA, MAPPED_PLACE, free_mapped, realloc_mapped
from replay.allocators.linux import touch
from replay.jit.compiling import cold, leaf


@leaf
def _units(par, size):
    """request2size of a byte more."""
    return max((size + 1 + par.word_size + UNIT - 1) >> UNIT_SHIFT, par.min_units)


@leaf
def _mark(state, stack, place):
    """mem2mem_check: of heaps' chunks the marks reach no page that is not written to anyway."""
    if place >= MAPPED_PLACE:
        chunk = state.mapped[place & (MAPPED_PLACE - 1)]
        touch(stack, chunk.address + chunk.lead, chunk.address + chunk.size_bytes)
    return place


@cold
def malloc_check(state, stack, size):
    """From the main arena."""
    arena = state.arenas[MAIN_ARENA]
    return _mark(state, stack, call_int_malloc(state, stack, arena, _units(state.par[0], size)))


@cold
def memalign_check(state, stack, alignment, size):
    """The same at a multiple of `alignment`."""
    arena = state.arenas[MAIN_ARENA]
    return _mark(state, stack, int_memalign(state, stack, arena, alignment, _units(state.par[0], size)))


@cold
def free_check(state, stack, place, size):
    """Back to the main arena or the kernel."""
    if place >= MAPPED_PLACE:
        free_mapped(state, stack, place)
    else:
        call_free_chunk(state, stack, state.arenas[MAIN_ARENA], place, size)


@cold
def realloc_check(state, stack, place, size):
    """As without, in the main arena."""
    wanted, arena = _units(state.par[0], size), state.arenas[MAIN_ARENA]
    if place >= MAPPED_PLACE:
        realloc_mapped(state, stack, place, wanted)
        return _mark(state, stack, place)
    return _mark(state, stack, int_realloc(state, stack, arena, place, size_of(state.memory, place), wanted))
