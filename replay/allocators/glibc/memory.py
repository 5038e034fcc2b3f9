"""Chunks in the simulated heap, and the bins' lists through them: glibc's own layout, in units of 16 bytes.

One CHUNK record stands for 16 bytes of heap, so that the record of a chunk is found as the real one finds its header:
by address. A chunk is named by the number of its first unit. Sizes are units as well; `head` is size << 1, with
PREV_INUSE as its lowest bit. The next unit's `fd` and `bk` are a large free chunk's `fd_nextsize` and `bk_nextsize`.

The first NBINS units are the bins' headers, linked to themselves while empty, as in glibc. FIRST is the first unit of
the heap; 0 is no chunk.
"""

import numpy as np

from replay.allocators.stack import record
from replay.compiled import inlined, leaf

UNIT_SHIFT = 4
UNIT = 1 << UNIT_SHIFT
"""MALLOC_ALIGNMENT, on i386 too since 2.26."""
PREV_INUSE = 1

NBINS = 128
UNSORTED = 1
FIRST = 256
SMALL_UNITS_64, SMALL_UNITS_32 = 64, 63
"""MIN_LARGE_SIZE: larger chunks go to large bins."""
BITS_A_WORD = 32

CHUNK = record(foot=np.uint32, head=np.uint32, fd=np.uint32, bk=np.uint32)
"""`foot`: size of the chunk before, while that is free (mchunk_prev_size); `head`: mchunk_size."""


def new_memory(units: int) -> np.ndarray:
    """Empty bins, and a heap of so many units that nothing is in."""
    memory = np.zeros(FIRST + units, CHUNK)
    memory["fd"][: NBINS + 1] = memory["bk"][: NBINS + 1] = np.arange(NBINS + 1)
    return memory


@inlined
def size_of(memory, chunk):
    """In units."""
    return np.int64(memory[np.uint64(chunk)].head >> 1)


@inlined
def prev_inuse(memory, chunk):
    """Whether the chunk before this one is in use (or cannot be merged with)."""
    return memory[np.uint64(chunk)].head & 1


@inlined
def set_head(memory, chunk, size):
    """A chunk of this size behind one that is in use."""
    memory[np.uint64(chunk)].head = size << 1 | PREV_INUSE


@inlined
def set_size(memory, chunk, size):
    """set_head_size: what is known about the chunk before stays."""
    entry = memory[np.uint64(chunk)]
    entry.head = size << 1 | (entry.head & 1)


@inlined
def set_foot(memory, chunk, size):
    """The chunk behind learns this free one's size."""
    memory[np.uint64(chunk + size)].foot = size


@inlined
def set_inuse_at(memory, chunk, size):
    """set_inuse_bit_at_offset: the chunk is in use, which is written down in the one behind it."""
    entry = memory[np.uint64(chunk + size)]
    entry.head = entry.head | PREV_INUSE


@inlined
def clear_inuse(memory, following):
    """The chunk before `following` is no longer in use."""
    entry = memory[np.uint64(following)]
    entry.head = (entry.head >> 1) << 1


@inlined
def bin_index(size, heap):
    """The bin for chunks of `size` units."""
    if size < heap.small_units:
        return size + heap.small_shift
    if heap.word_size == 8:
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
def clear_nextsize(memory, chunk):
    """The chunk is no entry of a skip list."""
    entry = memory[np.uint64(chunk + 1)]
    entry.fd = entry.bk = 0


@inlined
def unlink_chunk(memory, chunk, heap):
    """Takes a chunk off whatever bin it is in."""
    entry = memory[np.uint64(chunk)]
    behind, before = np.int64(entry.fd), np.int64(entry.bk)
    memory[np.uint64(behind)].bk = before
    memory[np.uint64(before)].fd = behind
    if np.int64(entry.head >> 1) >= heap.small_units:
        _leave_skip_list(memory, chunk, behind)


@leaf
def _leave_skip_list(memory, chunk, behind):
    """The first of each size in a large bin is in a second list; if it goes, the next of its size takes its place."""
    skip = memory[np.uint64(chunk + 1)]
    larger, smaller = np.int64(skip.bk), np.int64(skip.fd)
    if smaller == 0:
        return
    heir = memory[np.uint64(behind + 1)]
    if heir.fd != 0:
        memory[np.uint64(smaller + 1)].bk = larger
        memory[np.uint64(larger + 1)].fd = smaller
    elif smaller == chunk:
        heir.fd = heir.bk = behind
    else:
        heir.fd, heir.bk = smaller, larger
        memory[np.uint64(smaller + 1)].bk = behind
        memory[np.uint64(larger + 1)].fd = behind


@leaf
def link_by_size(memory, chunk, size, head):
    """Puts a chunk into a large bin: sorted by falling size, behind the first of its own size."""
    skip = memory[np.uint64(chunk + 1)]
    behind = np.int64(memory[np.uint64(head)].fd)
    if behind == head:
        skip.fd = skip.bk = chunk
        link(memory, chunk, head, head)
        return
    last = np.int64(memory[np.uint64(head)].bk)
    if size < size_of(memory, last):
        first = memory[np.uint64(behind + 1)]
        smallest = np.int64(first.bk)
        skip.fd, skip.bk = behind, smallest
        first.bk = chunk
        memory[np.uint64(smallest + 1)].fd = chunk
        link(memory, chunk, last, head)
        return
    while size < size_of(memory, behind):
        behind = np.int64(memory[np.uint64(behind + 1)].fd)
    if size == size_of(memory, behind):
        behind = np.int64(memory[np.uint64(behind)].fd)
    else:
        found = memory[np.uint64(behind + 1)]
        larger = np.int64(found.bk)
        skip.fd, skip.bk = behind, larger
        found.bk = chunk
        memory[np.uint64(larger + 1)].fd = chunk
    link(memory, chunk, np.int64(memory[np.uint64(behind)].bk), behind)


@inlined
def mark_bin(binmap, index):
    """The bin may hold something."""
    binmap[index >> 5] |= np.int64(1) << (index & 31)


@leaf
def next_bin(memory, binmap, index):
    """The first bin from `index` on that is not empty, or NBINS; those found empty are unmarked."""
    word = index >> 5
    bits = binmap[word] >> (index & 31) << (index & 31)
    while True:
        while bits == 0:
            word += 1
            if word == NBINS // BITS_A_WORD:
                return np.int64(NBINS)
            bits = binmap[word]
        low = bits & -bits
        found = word << 5
        if low >> 16:
            found += 16
        rest = low >> (found & 31)
        while rest > 1:
            rest >>= 1
            found += 1
        if np.int64(memory[np.uint64(found)].bk) != found:
            return found
        binmap[word] &= ~low
        bits &= ~low
