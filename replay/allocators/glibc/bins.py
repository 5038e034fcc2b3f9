"""Takes chunks from the lists of an arena, and puts chunks and remainders into them.

fastbins       small chunks that are not merged with their neighbours before malloc_consolidate
unsorted list  freed chunks and remainders (until 2.41, small ones, too). malloc searches it, and moves chunks that do
               not fit into their bins
small bins     chunks of one size each; the oldest is used first
large bins     chunks of a range of sizes, sorted by size
remainder      the rest of a chunk that was split; small requests in sequence are split from `last_remainder`

All sizes are in units of 16 bytes. Functions return the index of a chunk, or 0 if the list has none.
"""

import numpy as np

from replay.allocators.glibc.memory import (
    NBINS,
    UNSORTED,
    bin_index,
    link,
    link_at_front,
    link_by_size,
    mark_bin,
    next_bin,
    set_free,
    set_used,
    size_of,
    split,
    unlink_chunk,
    unlink_last,
)
from replay.allocators.glibc.system import address_of
from replay.allocators.linux import touch
from replay.jit.compiling import cold, inlined

FASTBINS = 11
"""One fastbin for each size in units. The largest size that `mxfast` allows is 10."""


@inlined
def split_off(state, stack, chunk, nb):
    """Splits a chunk and returns the tail. Touches the tail's header if the heap has holes."""
    tail = split(state, stack, chunk, nb)
    par = state.par[0]
    if par.holes:
        start = address_of(state, tail)
        is_large = size_of(state.memory, tail) >= par.small_units
        touch(stack, start, start + (6 if is_large else 4) * par.word_size)
    return tail


@inlined
def _keep_remainder(state, arena, remainder, nb, before, behind):
    """Puts the remainder of a chunk that was split for `nb` units into the unsorted list, between two entries."""
    memory, par = state.memory, state.par[0]
    entry = memory[np.uint64(remainder)]
    entry.smaller = 0
    set_free(memory, remainder, size_of(memory, remainder))
    link(memory, remainder, before, behind)
    if nb < par.small_units:
        arena.last_remainder = entry.start


@inlined
def cut(state, stack, arena, chunk, size, nb):
    """Splits `nb` units from a chunk that is in no list, and puts the remainder at the front of the unsorted list."""
    memory = state.memory
    if size - nb < state.par[0].min_units:
        set_used(memory, chunk, size)
    else:
        remainder = split_off(state, stack, chunk, nb)
        unsorted = arena.bins + UNSORTED
        _keep_remainder(state, arena, remainder, nb, unsorted, np.int64(memory[np.uint64(unsorted)].fd))


@inlined
def from_remainder(state, stack, arena, nb):
    """Splits the last remainder if it is the only chunk in the unsorted list and large enough. Returns the chunk, or
    0."""
    memory, par = state.memory, state.par[0]
    unsorted = arena.bins + UNSORTED
    chunk = np.int64(memory[np.uint64(unsorted)].bk)
    if (
        memory[np.uint64(chunk)].start == arena.last_remainder
        and np.int64(memory[np.uint64(chunk)].bk) == unsorted
        and size_of(memory, chunk) > nb + par.min_units  # the record of an empty bin has size 0
    ):
        remainder = split_off(state, stack, chunk, nb)
        _keep_remainder(state, arena, remainder, nb, unsorted, unsorted)
        return chunk
    return np.int64(0)


@inlined
def from_fastbin(state, arena, nb):
    """Takes the first chunk of the fastbin of this size; returns 0 if it is empty."""
    slot = np.uint64(arena.fastbins + nb)
    chunk = state.fastbins[slot]
    if chunk:
        state.fastbins[slot] = state.memory[np.uint64(chunk)].fd
    return chunk


@inlined
def from_small_bin(state, arena, nb):
    """Takes the last chunk of the small bin of this size; returns 0 if it is empty."""
    memory, head = state.memory, arena.bins + nb + state.par[0].small_shift
    if np.int64(memory[np.uint64(head)].bk) == head:
        return np.int64(0)
    chunk = unlink_last(memory, head)
    set_used(memory, chunk, nb)
    return chunk


@inlined
def from_large_bin(state, stack, arena, index, nb):
    """Takes `nb` units from the smallest chunk that fits in the large bin of this size; returns 0 if none fits."""
    memory, par = state.memory, state.par[0]
    head = arena.bins + index
    chunk = np.int64(memory[np.uint64(head)].fd)
    if chunk == head or size_of(memory, chunk) < nb:
        return np.int64(0)
    chunk = np.int64(memory[np.uint64(chunk)].larger)
    size = size_of(memory, chunk)
    while size < nb:
        chunk = np.int64(memory[np.uint64(chunk)].larger)
        size = size_of(memory, chunk)
    # The first chunk of a size is in the skip list. Unlinking the second one is cheaper.
    second = np.int64(memory[np.uint64(chunk)].fd)
    if chunk != np.int64(memory[np.uint64(head)].bk) and size_of(memory, second) == size:
        chunk = second
    unlink_chunk(memory, chunk, par)
    cut(state, stack, arena, chunk, size, nb)
    return chunk


@inlined
def from_larger_bin(state, stack, arena, index, nb):
    """Takes `nb` units from the last chunk of the next bin of larger chunks; returns 0 if all of them are empty."""
    memory = state.memory
    index = next_bin(state, arena, index + 1)
    if index >= NBINS:
        return np.int64(0)
    chunk = np.int64(memory[np.uint64(arena.bins + index)].bk)
    size = size_of(memory, chunk)
    unlink_chunk(memory, chunk, state.par[0])
    cut(state, stack, arena, chunk, size, nb)
    return chunk


@inlined
def place_in_bin(state, arena, chunk, size):
    """Puts a chunk of the unsorted list into its bin."""
    par = state.par[0]
    if size < par.small_units:
        index = size + par.small_shift
        link_at_front(state.memory, chunk, arena.bins + index)
        mark_bin(state, arena, index)
    else:
        _place_in_large_bin(state, arena, chunk, size)


@cold
def _place_in_large_bin(state, arena, chunk, size):
    index = bin_index(size, state.par[0])
    link_by_size(state.memory, chunk, size, arena.bins + index)
    mark_bin(state, arena, index)
