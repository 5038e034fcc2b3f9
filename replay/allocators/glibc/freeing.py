"""glibc's `_int_free` over one arena: fastbins, merging, malloc_consolidate, and when the heap is trimmed."""

import numpy as np

from replay.allocators.glibc.bins import FASTBINS
from replay.allocators.glibc.heaps import heap_trim
from replay.allocators.glibc.memory import (
    UNIT_SHIFT,
    UNSORTED,
    is_free,
    link_at_front,
    mark_bin,
    merge_next,
    set_free,
    set_used,
    size_of,
    unlink_chunk,
)
from replay.allocators.glibc.system import MAIN_HEAP, address_of, systrim, top_bytes
from replay.allocators.glibc.tcache import tcache_put, tcache_room
from replay.allocators.linux import touch
from replay.jit.compiling import cold, inlined, leaf

TRIM_BYTES = 65_536
"""FASTBIN_CONSOLIDATION_THRESHOLD; ATTEMPT_TRIMMING_THRESHOLD in later versions."""


@inlined
def int_free_chunk(state, stack, arena, chunk, size):
    """_int_free_chunk: puts a chunk into its fastbin, or merges it, which may trim the heap."""
    par = state.par[0]
    if size <= par.max_fast:
        slot = np.uint64(arena.fastbins + size)
        state.memory[np.uint64(chunk)].fd = state.fastbins[slot]
        state.fastbins[slot] = chunk
        arena.have_fast = 1
        return
    _merge_and_trim(state, stack, arena, chunk)


@cold
def call_int_free_chunk(state, stack, arena, chunk, size):
    """`int_free_chunk` as a call that is not inlined."""
    int_free_chunk(state, stack, arena, chunk, size)


@inlined
def int_free(state, stack, arena, chunk, size):
    """_int_free, called by malloc itself: into the tcache up to 2.41, without it later."""
    index = size - state.par[0].min_units
    if not state.par[0].lazy_tcache and tcache_room(state, index):
        tcache_put(state, chunk, index)
    else:
        if state.par[0].perturb:
            perturb(state, stack, chunk, size << UNIT_SHIFT)
        int_free_chunk(state, stack, arena, chunk, size)


@cold
def call_int_free(state, stack, arena, chunk, size):
    """`_int_free` as a call that is not inlined."""
    int_free(state, stack, arena, chunk, size)


@cold
def int_free_merge_chunk(state, stack, arena, chunk):
    """_int_free_merge_chunk: frees a chunk without tcache and fastbins."""
    _merge_and_trim(state, stack, arena, chunk)


@inlined
def _merge_and_trim(state, stack, arena, chunk):
    size = _merge(state, arena, chunk, state.par[0].sorts_small)
    if (size << UNIT_SHIFT) >= TRIM_BYTES:
        _trim(state, stack, arena)


@inlined
def _merge(state, arena, chunk, sorts_small):
    """Merges a chunk with free neighbours and puts it into the unsorted list, its small bin, or top. Returns its
    size."""
    memory, par = state.memory, state.par[0]
    before = np.int64(memory[np.uint64(chunk)].before)
    if is_free(memory, before):
        unlink_chunk(memory, before, par)
        merge_next(state, before)
        chunk = before
    behind = np.int64(memory[np.uint64(chunk)].behind)
    if behind == arena.top:
        merge_next(state, chunk)
        size = size_of(memory, chunk)
        set_used(memory, chunk, size)
        arena.top = chunk
        return size
    if is_free(memory, behind):
        unlink_chunk(memory, behind, par)
        merge_next(state, chunk)
    size = size_of(memory, chunk)
    set_free(memory, chunk, size)
    memory[np.uint64(chunk)].smaller = 0
    if sorts_small and size < par.small_units:
        index = size + par.small_shift
        link_at_front(memory, chunk, arena.bins + index)
        mark_bin(state, arena, index)
    else:
        link_at_front(memory, chunk, arena.bins + UNSORTED)
    return size


@cold
def _trim(state, stack, arena):
    """Consolidates fastbins and trims the heap, after a large chunk was merged (_int_free_maybe_trim)."""
    if arena.have_fast:
        consolidate(state, stack, arena)
    if arena.heap != MAIN_HEAP:
        heap_trim(state, stack, arena)
    elif top_bytes(state, arena) >= state.par[0].trim_threshold:
        systrim(state, stack, arena, state.par[0].top_pad)


@leaf
def consolidate(state, stack, arena):
    """malloc_consolidate: merges the chunks of all fastbins with free neighbours, into the unsorted list or top."""
    memory = state.memory
    arena.have_fast = 0
    for slot in range(arena.fastbins, arena.fastbins + FASTBINS):
        chunk = state.fastbins[slot]
        state.fastbins[slot] = 0
        while chunk:
            next_chunk = np.int64(memory[np.uint64(chunk)].fd)
            _merge(state, arena, chunk, False)
            chunk = next_chunk


@cold
def perturb(state, stack, chunk, length):
    """alloc_perturb, free_perturb: touches all of a chunk. For blocks of the program this is not needed, because it
    writes to them anyway."""
    start, header = address_of(state, chunk), state.par[0].header
    if length > header:
        touch(stack, start + header, start + length)
