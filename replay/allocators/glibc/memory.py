"""Chunks of the heap, tsuccessor neighbours, and the linked lists of bins.

glibc stores all this in the heap itself: a header before each block, links inside free blocks. Here, each chunk is a
record in one dense table, identified by its index. The table is small if blocks are large. Neighbours in the heap are
linked in both directions, in place of glibc's sizes and `prev_size`. One bit of a chunk's own record represents
PREV_INUSE in the header of the next chunk.

Each arena has a record for each bin. As in glibc, it links to itself if the bin is empty. The table starts with the
bins of the main arena. Index 0 means "no chunk". Sizes and starts are in units of 16 bytes.
"""

import numpy as np

from replay.allocators._stack import MARGIN, ask_for_room
from replay.jit.arrays import record
from replay.jit.compiling import cold, inlined, leaf
from replay.jit.cpu_intrinsics import bit_length

UNIT_SHIFT = 4
UNIT = 1 << UNIT_SHIFT
"""MALLOC_ALIGNMENT; since 2.26 also on i386."""

NBINS = 128
UNSORTED = 1
SMALL_UNITS_64, SMALL_UNITS_32 = 64, 63
"""MIN_LARGE_SIZE: chunks of at least this size are in large bins."""
BITS_A_WORD = 32
IN_HEAP = 1 << 31
"""Flag in a chunk's `start`: the chunk is not in the main heap."""
HEAP_SHIFT = 22
HEAP_UNITS = 1 << HEAP_SHIFT
"""HEAP_MAX_SIZE, 64 MiB."""
HEAPS_MAX = 1 << 9

CHUNK = record(**dict.fromkeys(("start", "head", "before", "behind", "fd", "bk", "smaller", "larger"), np.uint32))
"""32 bytes, two to a cache line.

    start            offset in the main heap; for another heap IN_HEAP, its number, and the offset in HEAP_SHIFT bits
    head             size << 1 | 1 if the chunk is free and may be merged with its neighbours
    before, behind   the previous and the next chunk in the heap
    fd, bk           links in a bin; `fd` also in fastbins, the tcache, and the list of unused records
    smaller, larger  skip list of a large bin (fd_nextsize, bk_nextsize): the first chunk of each size is in it; else 0
"""


@leaf
def empty_bins(memory, first):
    """Initializes the records from `first` on as the empty bins of an arena, in place."""
    for index in range(first, first + NBINS):
        memory[index].fd = memory[index].bk = memory[index].smaller = index


@inlined
def size_of(memory, chunk):
    """Returns the size of a chunk in units."""
    return np.int64(memory[np.uint64(chunk)].head >> 1)


@inlined
def is_free(memory, chunk):
    """Returns whether a chunk may be merged with a neighbour. Chunks in fastbins or a tcache may not."""
    return memory[np.uint64(chunk)].head & 1


@inlined
def set_used(memory, chunk, size):
    """Marks a chunk as in use and sets its size."""
    memory[np.uint64(chunk)].head = size << 1


@inlined
def set_free(memory, chunk, size):
    """Marks a chunk as free and sets its size."""
    memory[np.uint64(chunk)].head = size << 1 | 1


@inlined
def new_chunk(state, stack):
    """Returns the index of an unused record."""
    par = state.par[0]
    chunk = par.spare
    if chunk:
        par.spare = state.memory[np.uint64(chunk)].fd
        return chunk
    chunk = par.chunks
    par.chunks = chunk + 1
    if chunk + NBINS + 2 * MARGIN > state.memory.shape[0]:  # one event may create an arena
        ask_for_room(stack)
    return chunk


@leaf
def release_record(state, chunk):
    """Puts a record into the list of unused ones; its `head` becomes 0."""
    par, entry = state.par[0], state.memory[np.uint64(chunk)]
    entry.head, entry.fd = 0, par.spare
    par.spare = chunk


@inlined
def split(state, stack, chunk, nb):
    """Splits a chunk after `nb` units and returns the second part. Both parts are marked as in use."""
    memory = state.memory
    rest = new_chunk(state, stack)
    entry, tail = memory[np.uint64(chunk)], memory[np.uint64(rest)]
    behind = entry.behind
    tail.start, tail.head = entry.start + nb, (np.int64(entry.head >> 1) - nb) << 1
    tail.before, tail.behind = chunk, behind
    memory[np.uint64(behind)].before = rest
    entry.head, entry.behind = nb << 1, rest
    return rest


@inlined
def merge_next(state, chunk):
    """Merges a chunk with the next one, whose record becomes unused."""
    memory = state.memory
    entry = memory[np.uint64(chunk)]
    next_chunk = np.int64(entry.behind)
    tail = memory[np.uint64(next_chunk)]
    entry.head = entry.head + ((tail.head >> 1) << 1)
    entry.behind = tail.behind
    memory[np.uint64(entry.behind)].before = chunk
    release_record(state, next_chunk)


@inlined
def bin_index(size, par):
    """Returns the bin for chunks of `size` units."""
    return size + par.small_shift if size < par.small_units else _large_bin_index(size, par)


@cold
def _large_bin_index(size, par):
    """largebin_index. Not inlined, because else the compiler would compute it in every malloc."""
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
    """Inserts a chunk into a list, between two neighbours."""
    entry = memory[np.uint64(chunk)]
    entry.bk, entry.fd = before, behind
    memory[np.uint64(before)].fd = chunk
    memory[np.uint64(behind)].bk = chunk


@inlined
def link_at_front(memory, chunk, head):
    """Inserts a chunk at the front of a bin."""
    link(memory, chunk, head, np.int64(memory[np.uint64(head)].fd))


@inlined
def unlink_last(memory, head):
    """Removes and returns the last chunk of a bin that is not empty. Does not update skip lists."""
    chunk = np.int64(memory[np.uint64(head)].bk)
    before = np.int64(memory[np.uint64(chunk)].bk)
    memory[np.uint64(head)].bk = before
    memory[np.uint64(before)].fd = head
    return chunk


@inlined
def unlink_chunk(memory, chunk, par):
    """unlink_chunk: removes a chunk from its bin."""
    entry = memory[np.uint64(chunk)]
    behind, before = np.int64(entry.fd), np.int64(entry.bk)
    memory[np.uint64(behind)].bk = before
    memory[np.uint64(before)].fd = behind
    if np.int64(entry.head >> 1) >= par.small_units:
        _leave_skip_list(memory, chunk, behind)


@leaf
def _leave_skip_list(memory, chunk, behind):
    """Removes a chunk from the skip list, which has the first chunk of each size in a large bin. The next chunk of its
    size replaces it."""
    entry, successor = memory[np.uint64(chunk)], memory[np.uint64(behind)]
    smaller, larger = np.int64(entry.smaller), np.int64(entry.larger)
    if smaller == 0:
        return
    if successor.smaller:
        memory[np.uint64(smaller)].larger = larger
        memory[np.uint64(larger)].smaller = smaller
    elif smaller == chunk:
        successor.smaller = successor.larger = behind
    else:
        successor.smaller, successor.larger = smaller, larger
        memory[np.uint64(smaller)].larger = behind
        memory[np.uint64(larger)].smaller = behind


@leaf
def link_by_size(memory, chunk, size, head):
    """Inserts a chunk into a large bin, which is sorted by descending size, after the first chunk of its size."""
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
    """Inserts a chunk into the skip list, which is circular, before the chunk `smaller`."""
    entry, found = memory[np.uint64(chunk)], memory[np.uint64(smaller)]
    larger = np.int64(found.larger)
    entry.smaller, entry.larger = smaller, larger
    found.larger = chunk
    memory[np.uint64(larger)].smaller = chunk


@inlined
def mark_bin(state, arena, index):
    """mark_bin: sets the bin's bit in the binmap."""
    state.binmap[np.uint64(arena.binmap + (index >> 5))] |= np.int64(1) << (index & 31)


@leaf
def next_bin(state, arena, index):
    """Returns the first bin from `index` on that is not empty, or NBINS. Clears the bits of empty bins."""
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
