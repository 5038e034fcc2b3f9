"""Tables by address: bits of pages, and states of ranges for huge pages.

    mappings   one table, indexed downwards from `mmap_base`. It covers all addresses from `reach` on
    heap       one table, indexed upwards from `brk_base`
    chunks     tables for 256 MiB each, created on the first touch of a page in it, for mappings at hints below `reach`.
               `directory` is a hash table of them: the place is the stretch modulo the length, or the next free one.
               A new chunk copies the entries of its addresses from the other tables. `space.sparse` is 0 while no
               mapping starts below `reach`.

A huge page is in one chunk, or in none.
"""

import numpy as np

from replay.allocators.linux.bits import get_bit
from replay.allocators.linux.settings import CHUNK_BYTES, CHUNK_SHIFT, CHUNKS_SPARE, SLACK_BYTES
from replay.jit.arrays import record
from replay.jit.compiling import cold, leaf

NOWHERE, MAPPINGS, HEAP, CHUNKS = range(4)
"""The tables. NOWHERE is for addresses that are not mapped, or whose chunk does not exist yet."""
PLACE = record("stretch", "chunk")
"""A chunk, counted from 1, and the address of its stretch divided by 256 MiB. An empty place has chunk 0."""


@leaf
def end_of_pages(state, start, length):
    """Returns the end of the last page of `length` bytes from `start` on."""
    page = state.space[0].page_size
    return (start + length + page - 1) & -page


@leaf
def region_of(state, start):
    """Returns the index of the region of `start`."""
    low, high = 0, state.space[0].regions - 1
    while low < high:
        middle = (low + high) >> 1
        if state.regions[middle].start <= start:
            high = middle
        else:
            low = middle + 1
    return low


@leaf
def measure_headroom(state):
    """Computes `headroom`: bytes that one event may map before the tables must grow."""
    space = state.space[0]
    above = (state.heap_pages.shape[0] << (space.page_shift + 6)) - (space.brk - space.brk_base)
    chunks = (chunk_count(state) - space.chunks - CHUNKS_SPARE) << CHUNK_SHIFT
    space.headroom = min(space.lowest - space.reach, above, chunks) - SLACK_BYTES


@leaf
def chunk_count(state):
    """Returns the number of chunks that the tables have room for."""
    return state.chunk_pages.shape[0] >> (CHUNK_SHIFT - state.space[0].page_shift - 6)


def directory_with_room(directory, chunks):
    """Returns the directory with at least twice as many places as `chunks`."""
    if 2 * chunks <= directory.shape[0]:
        return directory
    larger = np.zeros(1 << int(2 * chunks - 1).bit_length(), PLACE)
    for place in directory[directory["chunk"] > 0]:
        larger[place_of(larger, place.stretch)] = place
    return larger


@leaf
def locate(state, at, end):
    """Returns the table of address `at`, its first and last bits for [at, end), and the end of the part that it has."""
    space, stop = state.space[0], end
    shift, is_kept = space.page_shift, at >= space.lowest
    if space.sparse:
        stop, is_kept = min(end, (at | (CHUNK_BYTES - 1)) + 1), at >= space.reach
        chunk = chunk_of(state, at)
        if chunk:
            first = ((chunk - 1) << CHUNK_SHIFT) | (at & (CHUNK_BYTES - 1))
            return CHUNKS, first >> shift, (first + stop - 1 - at) >> shift, stop
    if at >= space.brk_base and stop <= space.brk:
        return HEAP, (at - space.brk_base) >> shift, (stop - 1 - space.brk_base) >> shift, stop
    if is_kept and stop <= space.mmap_base:
        return MAPPINGS, (space.mmap_base - stop) >> shift, (space.mmap_base - 1 - at) >> shift, stop
    return NOWHERE, np.int64(0), np.int64(-1), stop


@leaf
def place_of(directory, stretch):
    """Returns the place of a stretch in the directory, which may be empty."""
    last = directory.shape[0] - 1
    at = stretch & last
    while directory[at].chunk and directory[at].stretch != stretch:
        at = (at + 1) & last
    return at


@leaf
def chunk_of(state, address):
    """Returns the number of the chunk of an address, 0 if there is none."""
    return state.directory[place_of(state.directory, address >> CHUNK_SHIFT)].chunk


@leaf
def get_page(state, address):
    """Returns whether the page of `address` is resident, and whether it was lazily freed; 0 or 1 each."""
    table, bit, _, _ = locate(state, address, address + 1)
    if table == CHUNKS:
        return get_bit(state.chunk_pages, bit), get_bit(state.chunk_lazy, bit)
    if table == HEAP:
        return get_bit(state.heap_pages, bit), get_bit(state.heap_lazy, bit)
    if table == MAPPINGS:
        return get_bit(state.mmap_pages, bit), get_bit(state.mmap_lazy, bit)
    return np.int64(0), np.int64(0)


@leaf
def _table_of_range(state, address):
    space = state.space[0]
    if not space.sparse:
        return MAPPINGS if address >= space.lowest else HEAP
    if chunk_of(state, address):
        return CHUNKS
    if space.brk_base <= address < space.brk:
        return HEAP
    return MAPPINGS if address >= space.reach else NOWHERE


@leaf
def skip_unmade(state, at, end):
    """Returns the first address of [at, end) that has a table, or `end`. Stretches without chunks may have
    terabytes."""
    while at < end and state.space[0].sparse and _table_of_range(state, at) == NOWHERE:
        at = (at | (CHUNK_BYTES - 1)) + 1
    return at


@leaf
def _range_index(state, address, table):
    space = state.space[0]
    if table == CHUNKS:
        chunk = chunk_of(state, address) - 1
        return ((chunk << CHUNK_SHIFT) | (address & (CHUNK_BYTES - 1))) >> space.huge_shift
    number = address >> space.huge_shift
    if table == HEAP:
        return number - (space.brk_base >> space.huge_shift)
    return ((space.mmap_base - 1) >> space.huge_shift) - number


@leaf
def get_range(state, address):
    """Returns the state of the range of `address`."""
    table = _table_of_range(state, address)
    if table == MAPPINGS:
        return state.mmap_ranges[_range_index(state, address, table)]
    if table == HEAP:
        return state.heap_ranges[_range_index(state, address, table)]
    if table == CHUNKS:
        return state.chunk_ranges[_range_index(state, address, table)]
    return np.uint8(0)


@leaf
def set_range(state, address, value):
    """Sets the state of the range of `address`."""
    table = _table_of_range(state, address)
    if table == NOWHERE:
        if value == 0 or not add_chunk(state, address):
            return
        table = CHUNKS
    index = _range_index(state, address, table)
    if table == MAPPINGS:
        state.mmap_ranges[index] = value
    elif table == HEAP:
        state.heap_ranges[index] = value
    else:
        state.chunk_ranges[index] = value


@leaf
def _move_bit(source, bit, target, new):
    target[new >> 6] |= get_bit(source, bit) << (new & 63)
    source[bit >> 6] &= ~(np.int64(1) << (bit & 63))


@cold
def add_chunk(state, address):
    """Creates the chunk of an address. Returns False if there is no room; the headroom of an event prevents this.

    Moves the entries of the heap to it. The table of mappings has none there, because `reach` is the start of a chunk.
    """
    space = state.space[0]
    if space.chunks == chunk_count(state):
        return False
    stretch, number = address >> CHUNK_SHIFT, space.chunks
    begin = stretch << CHUNK_SHIFT
    at, end = max(begin, space.brk_base), min(begin + CHUNK_BYTES, space.brk)
    while at < end:
        bit, new = (at - space.brk_base) >> space.page_shift, ((number << CHUNK_SHIFT) + at - begin) >> space.page_shift
        _move_bit(state.heap_pages, bit, state.chunk_pages, new)
        _move_bit(state.heap_lazy, bit, state.chunk_lazy, new)
        if space.transparent:
            index = _range_index(state, at, HEAP)
            state.chunk_ranges[((number << CHUNK_SHIFT) + at - begin) >> space.huge_shift] = state.heap_ranges[index]
        at += space.page_size
    place = place_of(state.directory, stretch)
    state.directory[place].stretch = stretch
    state.directory[place].chunk = number + 1
    space.chunks += 1
    measure_headroom(state)
    return True
