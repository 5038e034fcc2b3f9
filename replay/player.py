"""Plays slices of a trace: the one loop through which every event of every run goes.

The loop keeps what is common to all models: which block lies where (`BLOCK` by block number), what was asked for and
handed out, by domain and size class, and the peaks of both. Everything else is asked of the models of the stack.

Size classes are those of the blocks handed out, so they fit every model: 8-byte steps up to 1,024 bytes, then powers
of two; `class_limit` gives the largest block of a class.
"""

import numpy as np

from replay.allocators import address, block_size, calloc, free, malloc, realloc
from replay.allocators.kernel import touch
from replay.allocators.stack import LARGE, RESIDENT_PEAK, record
from replay.compiled import inlined

# As numbers, because numba compares enum members far slower.
CALLOC, REALLOC, FREE = 1, 2, 3

BLOCK = record("place", "size_and_domain")
"""`place`: of the small role, or ~place of the libc role; `size_and_domain`: size << 2 | domain."""

EXACT_CLASSES = 129
CLASSES = EXACT_CLASSES + 38
"""0, 8, … 1,024 bytes, then up to 2^11, 2^12 … 2^48."""
DOMAINS = 4
LARGE_BYTES = 16 << 20
"""Smaller requests fit into the slack that the kernel always keeps."""
CLASS = record("mallocs", "requested_bytes", "frees", "freed_bytes")
"""Of one domain, role and size class, all that ever came and went; a row's number is `class_row`."""


def new_classes() -> np.ndarray:
    """A row for each domain, role (libc, small) and size class."""
    return np.zeros(DOMAINS * 2 * CLASSES, CLASS)


def class_limit(index: int) -> int:
    """Bytes of the largest block in size class `index`."""
    return 8 * index if index < EXACT_CLASSES else 1 << (index - EXACT_CLASSES + 11)


@inlined
def class_row(domain, small, block_bytes):
    """The row of CLASS that counts such a block; `small` is 1 for the small role."""
    if block_bytes <= 1024:
        index = (block_bytes + 7) >> 3
    else:
        index = EXACT_CLASSES
        rest = (block_bytes - 1) >> 11
        while rest:
            rest >>= 1
            index += 1
    return np.uint64((2 * domain + small) * CLASSES + index)


@inlined
def _place_of(stack, route, kind, domain, place, size):
    """Where the models put the block that this event makes or moves."""
    if kind == REALLOC:
        if place >= 0:
            place = realloc(stack.small, stack, place, size)
        else:
            place = ~realloc(stack.libc, stack, ~place, max(size, 1))
    elif route[domain]:
        place = calloc(stack.small, stack, size) if kind == CALLOC else malloc(stack.small, stack, size)
    elif kind == CALLOC:
        place = ~calloc(stack.libc, stack, max(size, 1))
    else:
        place = ~malloc(stack.libc, stack, max(size, 1))
    if place < 0 and size > 0:
        begin = address(stack.libc, stack, ~place)
        touch(stack, begin, begin + size)
    return place


@inlined
def _count_out(stack, classes, place, size_and_domain):
    """The block is still there, but no longer the program's."""
    tally = stack.tally[0]
    size, domain = size_and_domain >> 2, size_and_domain & 3
    if place >= 0:
        block_bytes = block_size(stack.small, stack, place)
        row = classes[class_row(domain, 1, block_bytes)]
    else:
        block_bytes = block_size(stack.libc, stack, ~place)
        row = classes[class_row(domain, 0, block_bytes)]
        tally.libc_requested_bytes -= size
        tally.libc_block_bytes -= block_bytes
    tally.requested_bytes -= size
    tally.block_bytes -= block_bytes
    row.frees += 1
    row.freed_bytes += size


@inlined
def _count_in(stack, classes, place, size, domain):
    tally = stack.tally[0]
    if place >= 0:
        block_bytes = block_size(stack.small, stack, place)
        row = classes[class_row(domain, 1, block_bytes)]
    else:
        block_bytes = block_size(stack.libc, stack, ~place)
        row = classes[class_row(domain, 0, block_bytes)]
        tally.libc_requested_bytes += size
        tally.libc_block_bytes += block_bytes
    row.mallocs += 1
    row.requested_bytes += size
    requested_bytes = tally.requested_bytes + size
    tally.requested_bytes = requested_bytes
    if requested_bytes > tally.requested_bytes_peak:
        tally.requested_bytes_peak = requested_bytes
    block_bytes += tally.block_bytes
    tally.block_bytes = block_bytes
    if block_bytes > tally.block_bytes_peak:
        tally.block_bytes_peak = block_bytes


@inlined
def _settle(tally):
    """Counters that are kept up only where somebody looks at them."""
    tally.small_requested_bytes = tally.requested_bytes - tally.libc_requested_bytes
    tally.small_block_bytes = tally.block_bytes - tally.libc_block_bytes


@inlined
def _play_event(stack, blocks, classes, route, kind, domain, number, size):
    """One event; returns the place of its block, or of the one that it frees."""
    tally, entry = stack.tally[0], blocks[number]
    place = entry.place
    if kind == FREE:
        _count_out(stack, classes, place, entry.size_and_domain)
        if place >= 0:
            free(stack.small, stack, place)
        else:
            free(stack.libc, stack, ~place)
        tally.frees += 1
        return place
    if kind == REALLOC:
        _count_out(stack, classes, place, entry.size_and_domain)
        domain = entry.size_and_domain & 3
        tally.reallocs += 1
    elif kind == CALLOC:
        tally.callocs += 1
    else:
        tally.mallocs += 1
    place = _place_of(stack, route, kind, domain, place, size)
    entry.place = place
    entry.size_and_domain = size << 2 | domain
    _count_in(stack, classes, place, size, domain)
    return place


def play(stack, blocks, classes, route, at_peak, columns, first_row, start, ticks, samples, addresses):
    """Plays rows of `columns` (op, domain, block, size) from `start`; none of them is a boundary.

    `ticks` are rows in rising order, the last one the end: before row ticks[i] is played, samples[i] becomes a copy of
    the counters. `at_peak[0]` becomes one whenever resident memory stands higher than ever. `addresses`, if not empty,
    takes the address of each block made or moved, its complement where the libc role owns it, and 0 for a free.
    `first_row`: rows of the trace before this batch.

    Stops early where tables need more room (`attention` has ROOM or LARGE) or nothing can be mapped (NO_MEMORY).
    Returns the next row to play and the next tick to take.
    """
    op, domain, block, size = columns
    tally, space = stack.tally[0], stack.kernel.space[0]
    row = start
    for tick in range(ticks.shape[0]):
        stop = ticks[tick]
        while row < stop:
            at = np.uint64(row)  # an unsigned index is not looked at for being negative
            wanted = size[at]
            if wanted > LARGE_BYTES and wanted > space.headroom:
                tally.attention |= LARGE
                return row, tick
            tally.row = first_row + row
            kind = op[at]
            place = _play_event(stack, blocks, classes, route, kind, np.int64(domain[at]), block[at], wanted)
            if addresses.shape[0] > 0:
                if kind == FREE:
                    addresses[row] = 0
                elif place >= 0:
                    addresses[row] = address(stack.small, stack, place)
                else:
                    addresses[row] = ~address(stack.libc, stack, ~place)
            row += 1
            if tally.attention:
                if tally.attention & RESIDENT_PEAK:
                    tally.attention ^= RESIDENT_PEAK
                    _settle(tally)
                    at_peak[0] = stack.tally[0]
                if tally.attention:
                    return row, tick
        _settle(tally)
        samples[tick] = stack.tally[0]
    return row, ticks.shape[0]
