"""Plays slices of a trace: the one loop through which every event of every run goes.

The loop keeps what is common to all models: which block lies where (`BLOCK` by block number), what was asked for and
handed out, by domain and size class, and the peaks of both. Everything else is asked of the models of the stack.

Size classes are those of the blocks handed out, so they fit every model: 8-byte steps up to 1,024 bytes, then powers
of two; `class_limit` gives the largest block of a class.
"""

import numpy as np

from replay.allocators import address, block_size, calloc, expect, fill, free, malloc, realloc, switch_thread
from replay.allocators.stack import LARGE, RESIDENT_PEAK, TELLING, record
from replay.compiled import cold, inlined
from replay.processor import bit_length, copy_record, prefetch

# As numbers, because numba compares enum members far slower.
MALLOC, CALLOC, REALLOC, FREE = range(4)

BLOCK = record("place", "size_and_row")
"""`place`: of the small role, or ~place of the libc role; `size_and_row`: size << ROW_BITS | row of CLASS."""

EXACT_CLASSES = 129
CLASSES = EXACT_CLASSES + 38
"""0, 8, … 1,024 bytes, then up to 2^11, 2^12 … 2^48."""
DOMAINS = 4
ONE = np.uint64(1)
AHEAD = np.uint64(12)
"""Rows ahead whose blocks are told to the models, and twice as many whose entries are fetched."""
BLOCKS_IN_CACHE = 65536
LARGE_BYTES = 16 << 20
"""Smaller requests fit into the slack that the kernel always keeps."""
CLASS = record("mallocs", "requested_bytes", "frees", "freed_bytes")
"""Of one domain, role and size class, all that ever came and went; a row's number is `class_row`."""
ROWS_A_ROLE = 256
"""More than there are classes: powers of two are quickest to come by."""
ROWS_A_DOMAIN = 2 * ROWS_A_ROLE
ROW_BITS = 11
ROW_MASK = (1 << ROW_BITS) - 1
DOMAIN_MASK = ROW_MASK - ROWS_A_DOMAIN + 1
assert CLASSES <= ROWS_A_ROLE
assert DOMAINS * ROWS_A_DOMAIN <= 1 << ROW_BITS


def new_classes() -> np.ndarray:
    """A row for each domain, role (libc, small) and size class."""
    return np.zeros(DOMAINS * ROWS_A_DOMAIN, CLASS)


def class_limit(index: int) -> int:
    """Bytes of the largest block in size class `index`."""
    return 8 * index if index < EXACT_CLASSES else 1 << (index - EXACT_CLASSES + 11)


@cold
def _class_above(block_bytes):
    """The size class of a block that is larger than the exact classes."""
    return EXACT_CLASSES - 11 + max(11, bit_length(block_bytes - 1))


@inlined
def class_row(first, small, block_bytes):
    """The row of CLASS that counts such a block of the domain whose rows begin there; `small` is 1 for that role."""
    index = first + small * ROWS_A_ROLE
    if block_bytes <= 1024:
        return index + ((block_bytes + 7) >> 3)
    return index + _class_above(block_bytes)


@inlined
def _make(model, stack, kind, place, size):
    """Where the model puts the block that this event makes or moves."""
    if kind == MALLOC:
        return malloc(model, stack, size)
    if kind == CALLOC:
        stack.tally[0].callocs += 1
        return calloc(model, stack, size)
    stack.tally[0].reallocs += 1
    return realloc(model, stack, place, size)


@inlined
def _count_out(classes, entry):
    """The block is counted as gone; bytes that were asked for."""
    gone, had = classes[np.uint64(entry.size_and_row & ROW_MASK)], entry.size_and_row >> ROW_BITS
    gone.frees += 1
    gone.freed_bytes += had
    return had


@inlined
def _end(stack, classes, entry, place, kind):
    """The block goes, unless it is moved."""
    tally = stack.tally[0]
    if place >= 0:
        block_bytes = block_size(stack.small, stack, place)
        if kind == FREE:
            free(stack.small, stack, place)
        had = _count_out(classes, entry)
        tally.small_requested_bytes -= had
        tally.small_block_bytes -= block_bytes
    else:
        block_bytes = block_size(stack.libc, stack, ~place)
        if kind == FREE:
            free(stack.libc, stack, ~place)
        had = _count_out(classes, entry)
        tally.libc_requested_bytes -= had
        tally.libc_block_bytes -= block_bytes


@inlined
def _count_in(tally, classes, entry, place, size, row):
    """The block is counted as made, of `row` of CLASS; peaks may rise."""
    entry.place, entry.size_and_row = place, size << ROW_BITS | row
    came = classes[np.uint64(row)]
    came.mallocs += 1
    came.requested_bytes += size
    requested_bytes = tally.small_requested_bytes + tally.libc_requested_bytes
    if requested_bytes > tally.requested_bytes_peak:
        tally.requested_bytes_peak = requested_bytes
    block_bytes = tally.small_block_bytes + tally.libc_block_bytes
    if block_bytes > tally.block_bytes_peak:
        tally.block_bytes_peak = block_bytes


@inlined
def _look_ahead(stack, blocks, block, at):
    """Has what rows ahead will need brought into the cache."""
    prefetch(blocks, np.int64(block[at + AHEAD + AHEAD]))
    there = blocks[block[at + AHEAD]].place
    if there >= 0:
        expect(stack.small, there)
    else:
        expect(stack.libc, ~there)


@cold
def _tell(stack, addresses, row, kind, place):
    """Notes where the block is that this event made or moved."""
    if kind == FREE:
        addresses[row] = 0
    elif place >= 0:
        addresses[row] = address(stack.small, stack, place)
    else:
        addresses[row] = ~address(stack.libc, stack, ~place)


@cold
def _settle(tally, rows):
    """Writes down what follows from all that was counted in so many rows."""
    tally.mallocs = rows - tally.callocs - tally.reallocs - tally.frees
    tally.requested_bytes = tally.small_requested_bytes + tally.libc_requested_bytes
    tally.block_bytes = tally.small_block_bytes + tally.libc_block_bytes


@cold
def _copy(tally, copies, index):
    """The counters as they are."""
    copy_record(tally, copies, index)


@inlined
def take_turn(stack, thread):
    """What follows is that thread's."""
    tally = stack.tally[0]
    if tally.thread != thread:
        tally.thread = thread
        switch_thread(stack.libc, stack, thread)


@inlined
def _begin_turn(stack, threads, row, end):
    """The thread of this row goes on; gives the row where another one does, or `end` if that comes first."""
    if threads.shape[0] == 0:
        take_turn(stack, np.int64(0))
        return end
    thread = threads[np.uint64(row)]
    take_turn(stack, np.int64(thread))
    row += 1
    while row < end and threads[np.uint64(row)] == thread:
        row += 1
    return row


def play(stack, blocks, classes, route, at_peak, columns, first_row, start, threads, ticks, samples, addresses):
    """Plays rows of `columns` (op, domain, block, size) from `start`; none of them is a boundary.

    `threads`: whose each row is; if empty, all are thread 0's.
    `ticks` are rows in rising order, the last one the end: before row ticks[i] is played, samples[i] becomes a copy of
    the counters. `at_peak[0]` becomes one whenever resident memory stands higher than ever. `addresses`, if not empty,
    takes the address of each block made or moved, its complement where the libc role owns it, and 0 for a free.
    `first_row`: rows of the trace before this batch.

    Stops early where tables need more room (`attention` has ROOM or LARGE) or nothing can be mapped (NO_MEMORY).
    Returns the next row to play and the next tick to take.

    Each instruction here is one of about a hundred an event. What follows from other counters is settled where somebody
    looks; what few events come to is `cold`, because the loop would keep registers for it.
    """
    op, domains, block, sizes = columns
    tally, space = stack.tally[0], stack.kernel.space[0]
    started = start - tally.mallocs - tally.callocs - tally.reallocs - tally.frees
    row = start
    if addresses.shape[0] > 0:
        tally.attention |= TELLING
    # Few blocks stay in the cache anyway.
    last = max(ticks[ticks.shape[0] - 1] - 2 * np.int64(AHEAD), 0)
    foreseen = np.uint64(last) if blocks.shape[0] > BLOCKS_IN_CACHE else np.uint64(0)
    for tick in range(ticks.shape[0]):
        while row < ticks[tick]:
            stop = _begin_turn(stack, threads, row, ticks[tick])
            # An unsigned index is not looked at for being negative.
            at, end = np.uint64(row), np.uint64(stop)
            tally.row, row = first_row + row, stop
            while at < end:
                kind, entry = op[at], blocks[block[at]]
                if at < foreseen:
                    _look_ahead(stack, blocks, block, at)
                place = entry.place
                if kind == FREE:
                    _end(stack, classes, entry, place, FREE)
                    tally.frees += 1
                else:
                    size = sizes[at]
                    if size > LARGE_BYTES and size > space.headroom:
                        tally.attention = LARGE
                        _settle(tally, np.int64(at) - started)
                        return np.int64(at), tick
                    if kind == REALLOC:
                        _end(stack, classes, entry, place, REALLOC)
                        is_small = place >= 0
                        first = entry.size_and_row & DOMAIN_MASK
                    else:
                        domain = np.int64(domains[at])
                        is_small = route[np.uint64(domain)] != 0
                        first = domain * ROWS_A_DOMAIN
                    if is_small:
                        place = _make(stack.small, stack, kind, place, size)
                    else:
                        place = ~_make(stack.libc, stack, kind, ~place, max(size, 1))
                    if place >= 0:
                        block_bytes = block_size(stack.small, stack, place)
                        tally.small_requested_bytes += size
                        tally.small_block_bytes += block_bytes
                        _count_in(tally, classes, entry, place, size, class_row(first, 1, block_bytes))
                    else:
                        block_bytes = block_size(stack.libc, stack, ~place)
                        fill(stack.libc, stack, ~place, size)
                        tally.libc_requested_bytes += size
                        tally.libc_block_bytes += block_bytes
                        _count_in(tally, classes, entry, place, size, class_row(first, 0, block_bytes))
                if tally.attention:
                    if tally.attention & TELLING:
                        _tell(stack, addresses, at, op[at], blocks[block[at]].place)
                    _settle(tally, np.int64(at) + 1 - started)
                    if tally.attention & RESIDENT_PEAK:
                        tally.attention ^= RESIDENT_PEAK
                        _copy(stack.tally, at_peak, 0)
                    if tally.attention & ~TELLING:
                        tally.attention &= ~TELLING
                        return np.int64(at) + 1, tick
                # Not kept in a register: LLVM would make it two, and a pointer for each column.
                tally.row += 1
                at = np.uint64(tally.row - first_row)
            tally.row -= 1
        _settle(tally, row - started)
        _copy(stack.tally, samples, tick)
    tally.attention = 0
    return row, ticks.shape[0]
