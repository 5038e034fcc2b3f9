"""Plays slices of a trace: the one loop through which every event of every run goes.

The loop keeps what is common to all models: which block lies where (`BLOCK` by block number), what was asked for and
handed out, by domain and size class, and the peaks of both. Everything else is asked of the models of the stack.

Size classes are those of the blocks handed out, so they fit every model: 8-byte steps up to 1,024 bytes, then powers
of two; `class_limit` gives the largest block of a class.
"""

import numpy as np

from replay.allocators import address, block_size, calloc, expect, fill, free, malloc, realloc, switch_thread
from replay.allocators.stack import LARGE, RESIDENT_PEAK, record
from replay.compiled import inlined
from replay.processor import bit_length, prefetch

# As numbers, because numba compares enum members far slower.
CALLOC, REALLOC, FREE = 1, 2, 3

BLOCK = record("place", "size_and_row")
"""`place`: of the small role, or ~place of the libc role; `size_and_row`: size << ROW_BITS | row of CLASS."""

EXACT_CLASSES = 129
CLASSES = EXACT_CLASSES + 38
"""0, 8, … 1,024 bytes, then up to 2^11, 2^12 … 2^48."""
DOMAINS = 4
TURN = record("row", "thread")
"""From this row of a batch on, events are that thread's."""
AHEAD = 12
"""Rows ahead whose blocks are told to the models, and twice as many whose entries are fetched."""
BLOCKS_IN_CACHE = 8192
LARGE_BYTES = 16 << 20
"""Smaller requests fit into the slack that the kernel always keeps."""
CLASS = record("mallocs", "requested_bytes", "frees", "freed_bytes")
"""Of one domain, role and size class, all that ever came and went; a row's number is `class_row`."""
ROWS_A_DOMAIN = 2 * CLASSES
ROW_BITS = 11
ROW_MASK = (1 << ROW_BITS) - 1
assert DOMAINS * ROWS_A_DOMAIN <= ROW_MASK


def new_classes() -> np.ndarray:
    """A row for each domain, role (libc, small) and size class."""
    return np.zeros(DOMAINS * ROWS_A_DOMAIN, CLASS)


def class_limit(index: int) -> int:
    """Bytes of the largest block in size class `index`."""
    return 8 * index if index < EXACT_CLASSES else 1 << (index - EXACT_CLASSES + 11)


@inlined
def class_row(domain, small, block_bytes):
    """The row of CLASS that counts such a block; `small` is 1 for the small role."""
    above = EXACT_CLASSES - 11 + max(11, bit_length(block_bytes - 1))
    index = (block_bytes + 7) >> 3 if block_bytes <= 1024 else above
    return domain * ROWS_A_DOMAIN + small * CLASSES + index


@inlined
def _place_of(stack, route, kind, domain, place, size):
    """Where the models put the block that this event makes or moves."""
    if kind == REALLOC:
        if place >= 0:
            place = realloc(stack.small, stack, place, size)
        else:
            place = ~realloc(stack.libc, stack, ~place, max(size, 1))
    elif route[np.uint64(domain)]:
        place = calloc(stack.small, stack, size) if kind == CALLOC else malloc(stack.small, stack, size)
    elif kind == CALLOC:
        place = ~calloc(stack.libc, stack, max(size, 1))
    else:
        place = ~malloc(stack.libc, stack, max(size, 1))
    if place < 0 and size > 0:
        fill(stack.libc, stack, ~place, size)
    return place


@inlined
def _bytes_of(stack, place, size, sign):
    """Bytes of the block as handed out; libc's share is noted, with `sign` 1 as it comes and -1 as it goes."""
    if place >= 0:
        return block_size(stack.small, stack, place)
    block_bytes = block_size(stack.libc, stack, ~place)
    tally = stack.tally[0]
    tally.libc_requested_bytes += sign * size
    tally.libc_block_bytes += sign * block_bytes
    return block_bytes


@inlined
def _settle(tally, started, row, requested, requested_peak, block_bytes, block_peak):
    """Writes down what the loop keeps to itself, and what follows from it."""
    tally.requested_bytes, tally.requested_bytes_peak = requested, requested_peak
    tally.block_bytes, tally.block_bytes_peak = block_bytes, block_peak
    tally.small_requested_bytes = requested - tally.libc_requested_bytes
    tally.small_block_bytes = block_bytes - tally.libc_block_bytes
    tally.mallocs = row - started - tally.callocs - tally.reallocs - tally.frees


@inlined
def take_turn(stack, thread):
    """What follows is that thread's."""
    tally = stack.tally[0]
    if tally.thread != thread:
        tally.thread = thread
        switch_thread(stack.libc, stack, thread)


def play(stack, blocks, classes, route, at_peak, columns, first_row, start, turns, ticks, samples, addresses):
    """Plays rows of `columns` (op, domain, block, size) from `start`; none of them is a boundary.

    `turns`: who does what follows; the first one's row is at or before `start`, the last one's behind all others.
    `ticks` are rows in rising order, the last one the end: before row ticks[i] is played, samples[i] becomes a copy of
    the counters. `at_peak[0]` becomes one whenever resident memory stands higher than ever. `addresses`, if not empty,
    takes the address of each block made or moved, its complement where the libc role owns it, and 0 for a free.
    `first_row`: rows of the trace before this batch.

    Stops early where tables need more room (`attention` has ROOM or LARGE) or nothing can be mapped (NO_MEMORY).
    Returns the next row to play and the next tick to take.

    What every event changes is kept in variables, which are registers, and settled where somebody looks.
    """
    op, domains, block, sizes = columns
    tally, space = stack.tally[0], stack.kernel.space[0]
    requested, requested_peak = tally.requested_bytes, tally.requested_bytes_peak
    block_bytes, block_peak = tally.block_bytes, tally.block_bytes_peak
    started = start - tally.mallocs - tally.callocs - tally.reallocs - tally.frees
    row, turn = start, 0
    # Few blocks stay in the cache anyway.
    foreseen = ticks[ticks.shape[0] - 1] - 2 * AHEAD if blocks.shape[0] > BLOCKS_IN_CACHE else row
    for tick in range(ticks.shape[0]):
        while row < ticks[tick]:
            if row >= turns[turn].row:
                take_turn(stack, turns[turn].thread)
                turn += 1
            stop = min(ticks[tick], turns[turn].row)
            while row < stop:
                at = np.uint64(row)  # an unsigned index is not looked at for being negative
                size, kind, entry = sizes[at], op[at], blocks[block[at]]
                if size > LARGE_BYTES and size > space.headroom:
                    tally.attention |= LARGE
                    _settle(tally, started, row, requested, requested_peak, block_bytes, block_peak)
                    return row, tick
                tally.row = first_row + row
                if row < foreseen:
                    near = np.uint64(row + AHEAD)
                    prefetch(blocks, np.int64(block[np.uint64(row + 2 * AHEAD)]))
                    there = blocks[block[near]].place
                    if there >= 0:
                        expect(stack.small, there)
                    else:
                        expect(stack.libc, ~there)
                place, domain = entry.place, np.int64(domains[at])
                if kind >= REALLOC:
                    index, had = entry.size_and_row & ROW_MASK, entry.size_and_row >> ROW_BITS
                    requested -= had
                    block_bytes -= _bytes_of(stack, place, had, -1)
                    ended = classes[np.uint64(index)]
                    ended.frees += 1
                    ended.freed_bytes += had
                    domain = index // ROWS_A_DOMAIN
                if kind == FREE:
                    tally.frees += 1
                    if place >= 0:
                        free(stack.small, stack, place)
                    else:
                        free(stack.libc, stack, ~place)
                else:
                    if kind == REALLOC:
                        tally.reallocs += 1
                    elif kind == CALLOC:
                        tally.callocs += 1
                    place = _place_of(stack, route, kind, domain, place, size)
                    got = _bytes_of(stack, place, size, 1)
                    index = class_row(domain, 1 if place >= 0 else 0, got)
                    entry.place, entry.size_and_row = place, size << ROW_BITS | index
                    begun = classes[np.uint64(index)]
                    begun.mallocs += 1
                    begun.requested_bytes += size
                    requested += size
                    requested_peak = max(requested_peak, requested)
                    block_bytes += got
                    block_peak = max(block_peak, block_bytes)
                if addresses.shape[0] > 0:
                    if kind == FREE:
                        addresses[row] = 0
                    elif place >= 0:
                        addresses[row] = address(stack.small, stack, place)
                    else:
                        addresses[row] = ~address(stack.libc, stack, ~place)
                row += 1
                if tally.attention:
                    _settle(tally, started, row, requested, requested_peak, block_bytes, block_peak)
                    if tally.attention & RESIDENT_PEAK:
                        tally.attention ^= RESIDENT_PEAK
                        at_peak[0] = stack.tally[0]
                    if tally.attention:
                        return row, tick
        _settle(tally, started, row, requested, requested_peak, block_bytes, block_peak)
        samples[tick] = stack.tally[0]
    return row, ticks.shape[0]
