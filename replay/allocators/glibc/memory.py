"""Chunks of the heap, their neighbours, and the bins' lists through them.

glibc keeps all this in the heap itself: a header before each block, links inside the free ones. Here each chunk has a
record in one dense table, and is named by its number: the table stays small where blocks are large. Neighbours in the
heap are linked both ways, which stands for glibc's sizes and `prev_size`; one bit of the chunk's own record stands for
the PREV_INUSE of the next one's header.

Each arena has a record for each bin, linked to itself while the bin is empty, as in glibc; the first ones are those of
the main arena. 0 is no chunk. Sizes and starts are in units of 16 bytes.
"""

import numpy as np

from replay.allocators._stack import MARGIN, ask_for_room
from replay.jit.arrays import record
from replay.jit.compiling import cold, inlined, leaf
from replay.jit.cpu_intrinsics import bit_length

UNIT_SHIFT = 4
UNIT = 1 << UNIT_SHIFT
"""MALLOC_ALIGNMENT, on i386 too since 2.26."""

NBINS = 128
UNSORTED = 1
SMALL_UNITS_64, SMALL_UNITS_32 = 64, 63
"""MIN_LARGE_SIZE: larger chunks go to large bins."""
BITS_A_WORD = 32
IN_HEAP = 1 << 31
"""In a chunk's `start`: it lies in a heap of its arena's own."""
HEAP_SHIFT = 22
HEAP_UNITS = 1 << HEAP_SHIFT
"""HEAP_MAX_SIZE, 64 MiB."""
HEAPS_MAX = 1 << 9

CHUNK = record(**dict.fromkeys(("start", "head", "before", "behind", "fd", "bk", "smaller", "larger"), np.uint32))
"""32 bytes, two to a cache line.

    start            from the start of the main heap; IN_HEAP and the number of another heap above its HEAP_SHIFT bits
    head             size << 1 | whether it is free and may be merged with its neighbours
    before, behind   neighbours in the heap
    fd, bk           in a bin, from its header on; `fd` also in fastbins, the cache, and the list of unused records
    smaller, larger  of the first of each size in a large bin (fd_nextsize, bk_nextsize), or 0
"""


@leaf
def empty_bins(memory, first):
    """Makes the records from `first` on an arena's bins."""
    for index in range(first, first + NBINS):
        memory[index].fd = memory[index].bk = memory[index].smaller = index


@inlined
def size_of(memory, chunk):
    """In units."""
    return np.int64(memory[np.uint64(chunk)].head >> 1)


@inlined
def is_free(memory, chunk):
    """Whether it can be merged with a neighbour; what waits in fastbins or the cache cannot."""
    return memory[np.uint64(chunk)].head & 1


@inlined
def set_used(memory, chunk, size):
    """The chunk is in use, and of this size."""
    memory[np.uint64(chunk)].head = size << 1


@inlined
def set_free(memory, chunk, size):
    """The chunk is free, and of this size."""
    memory[np.uint64(chunk)].head = size << 1 | 1


@inlined
def new_chunk(state, stack):
    """The number of an unused record."""
    par = state.par[0]
    chunk = par.spare
    if chunk:
        par.spare = state.memory[np.uint64(chunk)].fd
        return chunk
    chunk = par.chunks
    par.chunks = chunk + 1
    if chunk + NBINS + 2 * MARGIN > state.memory.shape[0]:  # an event may bring a new arena
        ask_for_room(stack)
    return chunk


@leaf
def drop_chunk(state, chunk):
    """The record is unused from now on: its `head` is 0."""
    par, entry = state.par[0], state.memory[np.uint64(chunk)]
    entry.head, entry.fd = 0, par.spare
    par.spare = chunk


@inlined
def split(state, stack, chunk, wanted):
    """Cuts a chunk; gives the one behind the cut. Both are in use."""
    memory = state.memory
    rest = new_chunk(state, stack)
    entry, tail = memory[np.uint64(chunk)], memory[np.uint64(rest)]
    behind = entry.behind
    tail.start, tail.head = entry.start + wanted, (np.int64(entry.head >> 1) - wanted) << 1
    tail.before, tail.behind = chunk, behind
    memory[np.uint64(behind)].before = rest
    entry.head, entry.behind = wanted << 1, rest
    return rest


@inlined
def absorb_behind(state, chunk):
    """The chunk takes in the one behind it, whose record is unused from then on."""
    memory = state.memory
    entry = memory[np.uint64(chunk)]
    gone = np.int64(entry.behind)
    tail = memory[np.uint64(gone)]
    entry.head = entry.head + ((tail.head >> 1) << 1)
    entry.behind = tail.behind
    memory[np.uint64(entry.behind)].before = chunk
    drop_chunk(state, gone)


@inlined
def bin_index(size, par):
    """The bin for chunks of `size` units."""
    return size + par.small_shift if size < par.small_units else _large_bin_index(size, par)


@cold
def _large_bin_index(size, par):
    """Not inlined, or every malloc would come to know the large bin of its size, should it need that."""
    if par.word_size == 8:
        if size >> 2 <= 48:
            return 48 + (size >> 2)
    elif size >> 2 <= 45:
        return 49 + (size >> 2)
    if size >> 5 <= 20:
        return 91 + (size >> 5)
    if size >> 8 <= 10:
        return 110 + (size >> 8)
    if size >> 11 <= 4:
        return 119 + (size >> 11)
    if size >> 14 <= 2:
        return 124 + (size >> 14)
    return np.int64(126)


@inlined
def link(memory, chunk, before, behind):
    """Puts the chunk between two that are neighbours in a list."""
    entry = memory[np.uint64(chunk)]
    entry.bk, entry.fd = before, behind
    memory[np.uint64(before)].fd = chunk
    memory[np.uint64(behind)].bk = chunk


@inlined
def link_in_front(memory, chunk, head):
    """Puts the chunk at the front of a bin's list."""
    link(memory, chunk, head, np.int64(memory[np.uint64(head)].fd))


@inlined
def unlink_last(memory, head):
    """Takes the last chunk off a list that is not empty, and gives it; skip lists are not looked at."""
    chunk = np.int64(memory[np.uint64(head)].bk)
    before = np.int64(memory[np.uint64(chunk)].bk)
    memory[np.uint64(head)].bk = before
    memory[np.uint64(before)].fd = head
    return chunk


@inlined
def unlink_chunk(memory, chunk, par):
    """Takes a chunk off whatever bin it is in."""
    entry = memory[np.uint64(chunk)]
    behind, before = np.int64(entry.fd), np.int64(entry.bk)
    memory[np.uint64(behind)].bk = before
    memory[np.uint64(before)].fd = behind
    if np.int64(entry.head >> 1) >= par.small_units:
        _leave_skip_list(memory, chunk, behind)


@leaf
def _leave_skip_list(memory, chunk, behind):
    """The first of each size in a large bin is in a second list; if it goes, the next of its size takes its place."""
    entry, heir = memory[np.uint64(chunk)], memory[np.uint64(behind)]
    smaller, larger = np.int64(entry.smaller), np.int64(entry.larger)
    if smaller == 0:
        return
    if heir.smaller:
        memory[np.uint64(smaller)].larger = larger
        memory[np.uint64(larger)].smaller = smaller
    elif smaller == chunk:
        heir.smaller = heir.larger = behind
    else:
        heir.smaller, heir.larger = smaller, larger
        memory[np.uint64(smaller)].larger = behind
        memory[np.uint64(larger)].smaller = behind


@leaf
def link_by_size(memory, chunk, size, head):
    """Puts a chunk into a large bin: sorted by falling size, behind the first of its own size."""
    entry = memory[np.uint64(chunk)]
    behind = np.int64(memory[np.uint64(head)].fd)
    if behind == head:
        entry.smaller = entry.larger = chunk
        link(memory, chunk, head, head)
        return
    last = np.int64(memory[np.uint64(head)].bk)
    if size < size_of(memory, last):
        _enter_skip_list(memory, chunk, behind)
        link(memory, chunk, last, head)
        return
    while size < size_of(memory, behind):
        behind = np.int64(memory[np.uint64(behind)].smaller)
    if size == size_of(memory, behind):
        behind = np.int64(memory[np.uint64(behind)].fd)
    else:
        _enter_skip_list(memory, chunk, behind)
    link(memory, chunk, np.int64(memory[np.uint64(behind)].bk), behind)


@inlined
def _enter_skip_list(memory, chunk, smaller):
    """The chunk stands for its size from now on, before the one that stands for `smaller`; the list is a ring."""
    entry, found = memory[np.uint64(chunk)], memory[np.uint64(smaller)]
    larger = np.int64(found.larger)
    entry.smaller, entry.larger = smaller, larger
    found.larger = chunk
    memory[np.uint64(larger)].smaller = chunk


@inlined
def mark_bin(state, arena, index):
    """The bin may hold something."""
    state.binmap[np.uint64(arena.binmap + (index >> 5))] |= np.int64(1) << (index & 31)


@leaf
def next_bin(state, arena, index):
    """The first bin from `index` on that is not empty, or NBINS; those found empty are unmarked."""
    memory, binmap, first, word = state.memory, state.binmap, arena.binmap, index >> 5
    bits = binmap[np.uint64(first + word)] >> (index & 31) << (index & 31)
    while True:
        while bits == 0:
            word += 1
            if word == NBINS // BITS_A_WORD:
                return np.int64(NBINS)
            bits = binmap[np.uint64(first + word)]
        low = bits & -bits
        found = (word << 5) + bit_length(low) - 1
        head = arena.bins + found
        if np.int64(memory[np.uint64(head)].bk) != head:
            return found
        binmap[np.uint64(first + word)] &= ~low
        bits &= ~low
