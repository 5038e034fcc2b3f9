"""Where the state of an address is kept: bit tables of pages, and tables of ranges that huge pages may fill.

    mappings   one table, counted downwards from `mmap_base`, that covers every address from `reach` on
    heap       one table, counted upwards from `brk_base`
    chunks     256 MiB each, made when a page of one is first touched: for mappings at hints that lie below `reach`.
               `directory` has the number of each stretch's chunk, 0 for none. A chunk takes over what the other
               tables have of its addresses. `space.sparse` is 0 as long as no mapping begins below `reach`.

A huge page lies in one chunk, or in none.
"""

import numpy as np

from replay.allocators.linux.bits import get_bit
from replay.allocators.linux.settings import ADDRESS_MAX, CHUNK_BYTES, CHUNK_SHIFT, CHUNKS_SPARE, SLACK_BYTES
from replay.jit.compiling import cold, leaf

NOWHERE, MAPPINGS, HEAP, CHUNKS = range(4)
"""The tables; nothing is kept of addresses that are not mapped, or lie in a chunk that is not made yet."""


@leaf
def end_of_pages(state, start, length):
    """Where the pages of `length` bytes from `start` on end."""
    page = state.space[0].page_size
    return (start + length + page - 1) & -page


@leaf
def region_of(state, start):
    """The region that `start` lies in."""
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
    space = state.space[0]
    above = (state.heap_pages.shape[0] << (space.page_shift + 6)) - (space.brk - space.brk_base)
    chunks = (chunk_count(state) - space.chunks - CHUNKS_SPARE) << CHUNK_SHIFT
    space.headroom = min(space.lowest - space.reach, above, chunks) - SLACK_BYTES


@leaf
def chunk_count(state):
    """How many chunks there is room for."""
    return state.chunk_pages.shape[0] >> (CHUNK_SHIFT - state.space[0].page_shift - 6)


@leaf
def locate(state, at, end):
    """The table that has the pages of [at, end), the first and last of their bits, and where what it has ends."""
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
def chunk_of(state, address):
    """The number of the chunk that has an address, 0 if none does."""
    return np.int64(state.directory[address >> CHUNK_SHIFT]) if 0 <= address < ADDRESS_MAX else np.int64(0)


@leaf
def get_page(state, address):
    """Whether the page of `address` is resident, and whether it was lazily freed; 0 or 1 each."""
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
    """The first address of [at, end) whose range any table has: stretches without a chunk may be terabytes."""
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
    """The state of the range that `address` lies in."""
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
    """The range that `address` lies in gets this state."""
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
    """Makes the chunk of an address; False if there is no room, which the headroom of an event prevents.

    It takes over what the heap has there. Mappings have nothing there, because `reach` is where a chunk begins.
    """
    space = state.space[0]
    if space.chunks == chunk_count(state):
        return False
    chunk, number = address >> CHUNK_SHIFT, space.chunks
    begin = chunk << CHUNK_SHIFT
    at, end = max(begin, space.brk_base), min(begin + CHUNK_BYTES, space.brk)
    while at < end:
        bit, new = (at - space.brk_base) >> space.page_shift, ((number << CHUNK_SHIFT) + at - begin) >> space.page_shift
        _move_bit(state.heap_pages, bit, state.chunk_pages, new)
        _move_bit(state.heap_lazy, bit, state.chunk_lazy, new)
        if space.transparent:
            index = _range_index(state, at, HEAP)
            state.chunk_ranges[((number << CHUNK_SHIFT) + at - begin) >> space.huge_shift] = state.heap_ranges[index]
        at += space.page_size
    state.directory[chunk] = number + 1
    space.chunks += 1
    measure_headroom(state)
    return True
