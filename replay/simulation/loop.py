"""Simulates slices of a trace. Every event of every run passes through this loop.

The loop contains what is common to all models: the place of each block (`BLOCK` by block number), requested and
allocated bytes by domain and size class, and the peaks of both. The models of the stack do everything else.

Size classes are those of allocated bytes, so they fit every model: 8-byte steps up to 1,024 bytes, then powers of two;
`class_limit` returns the largest block of a class.
"""

import numpy as np

from replay.allocators import (
    LARGE,
    NO_WAKE_NS,
    RESIDENT_PEAK,
    address,
    block_size,
    calloc,
    expect,
    fill,
    free,
    is_of_libc,
    made_size,
    malloc,
    memalign,
    of_libc,
    realloc,
    record,
    sees_time,
    switch_thread,
    tick,
)
from replay.jit.compiling import cold, inlined, leaf
from replay.jit.cpu_intrinsics import bit_length, copy_record, opaque, prefetch
from replay.trace.block_ops import CALLOC, FREE, LAST_BLOCK_OP, MALLOC, MEMALIGN, REALLOC

BLOCK = record("place", "size_and_row")
"""`place`: of the small role, or `of_libc` of one of the libc role; `size_and_row`: size << ROW_BITS | row of CLASS."""

EXACT_CLASSES = 129
CLASSES = EXACT_CLASSES + 38
"""0, 8, … 1,024 bytes, then up to 2^11, 2^12 … 2^48."""
DOMAINS = 4
ONE = np.uint64(1)
AHEAD = np.uint64(12)
"""How many rows ahead models get notice of a block; its entry is fetched twice as many rows ahead."""
BLOCKS_IN_CACHE = 81920
LARGE_BYTES = 16 << 20
"""Smaller requests fit into the slack that the kernel always keeps."""
CLASS = record("blocks", "requested_bytes", "live_blocks", "live_requested_bytes")
"""Of one domain, role and size class: blocks ever allocated, and live ones; a row's number is `class_row`."""
ROWS_A_ROLE = 256
"""At least the number of classes; a power of two is the fastest to compute with."""
ROWS_A_DOMAIN = 2 * ROWS_A_ROLE
ROW_BITS = 11
ROW_MASK = (1 << ROW_BITS) - 1
DOMAIN_MASK = ROW_MASK - ROWS_A_DOMAIN + 1
GONE = 0
"""`size_and_row` of a block that is not live: the row of the libc role's blocks of 0 bytes, of which there are none."""
assert CLASSES <= ROWS_A_ROLE
assert DOMAINS * ROWS_A_DOMAIN <= 1 << ROW_BITS


CLASS_ROWS = DOMAINS * ROWS_A_DOMAIN
"""A row for each domain, role (libc, small) and size class."""


def new_classes() -> np.ndarray:
    """The counters by class: blocks ever allocated, and behind them the bytes requested for them."""
    return np.zeros(2 * CLASS_ROWS, np.int64)


def count_classes(classes: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """All rows of CLASS, from the counters of the loop and the table of live blocks."""
    rows = np.zeros(CLASS_ROWS, CLASS)
    rows["blocks"], rows["requested_bytes"] = classes[:CLASS_ROWS], classes[CLASS_ROWS:]
    live = blocks["size_and_row"][blocks["size_and_row"] != GONE]
    row, size = live & ROW_MASK, live >> ROW_BITS
    rows["live_blocks"] = np.bincount(row, minlength=CLASS_ROWS)
    np.add.at(rows["live_requested_bytes"], row, size)
    return rows


def class_limit(index: int) -> int:
    """Bytes of the largest block in size class `index`."""
    return 8 * index if index < EXACT_CLASSES else 1 << (index - EXACT_CLASSES + 11)


@cold
def _class_above(block_bytes):
    """The size class of a block that is larger than the exact classes."""
    return EXACT_CLASSES - 11 + max(11, bit_length(block_bytes - 1))


@inlined
def class_row(first, block_bytes):
    """The row of CLASS that counts such a block of the domain and role whose rows begin there."""
    if block_bytes <= 1024:
        return first + ((block_bytes + 7) >> 3)
    return first + _class_above(block_bytes)


def class_rows(is_small: list[bool]) -> np.ndarray:
    """The first row of each domain, given whether the small role serves it."""
    return np.array([domain * ROWS_A_DOMAIN + small * ROWS_A_ROLE for domain, small in enumerate(is_small)])


@inlined
def _make(stack, first, size):
    """Malloc: the place, its complement where the libc role has the block, as that role's model knows it."""
    if first & ROWS_A_ROLE:
        return malloc(stack.small, stack, size)
    return of_libc(malloc(stack.libc, stack, max(size, 1)))


@inlined
def _make_zeroed(stack, first, size):
    """The same for calloc."""
    stack.tally[0].callocs += 1
    if first & ROWS_A_ROLE:
        return calloc(stack.small, stack, size)
    return of_libc(calloc(stack.libc, stack, max(size, 1)))


@inlined
def _move(stack, place, size):
    """The same for realloc; `place` shows which role owns the block."""
    stack.tally[0].reallocs += 1
    if not is_of_libc(place):
        return realloc(stack.small, stack, place, size)
    return of_libc(realloc(stack.libc, stack, of_libc(place), max(size, 1)))


@inlined
def _end(stack, entry, kind):
    """Counts a free or move of a block, and frees the block unless it is moved."""
    tally, place, had = stack.tally[0], entry.place, entry.size_and_row >> ROW_BITS
    if not is_of_libc(place):
        block_bytes = block_size(stack.small, stack, place)
        if kind == FREE:
            free(stack.small, stack, place)
    else:
        block_bytes = block_size(stack.libc, stack, of_libc(place))
        if kind == FREE:
            free(stack.libc, stack, of_libc(place))
        tally.libc_requested_bytes -= had
        tally.libc_block_bytes -= block_bytes
    tally.requested_slack += had
    tally.block_slack += block_bytes


@inlined
def _come(stack, blocks, classes, route, domains, block, at, kind, size):
    """Allocates or moves a block, counts it and updates peaks. `_memalign` does the same for memaligns."""
    tally = stack.tally[0]
    # Compared on its own, and first: LLVM would put it last in one decision on all kinds.
    if opaque(np.int64(kind)) == MALLOC:
        first = route[np.uint64(domains[at])]
        place, moved = _make(stack, first, size), False
    elif kind == CALLOC:
        first = route[np.uint64(domains[at])]
        place, moved = _make_zeroed(stack, first, size), False
    else:
        entry = blocks[block[at]]
        _end(stack, entry, REALLOC)
        first = entry.size_and_row & (DOMAIN_MASK | ROWS_A_ROLE)
        place, moved = _move(stack, entry.place, size), True
    if not is_of_libc(place):
        block_bytes = block_size(stack.small, stack, place) if moved else made_size(stack.small, stack, place, size)
    else:
        block_bytes = block_size(stack.libc, stack, of_libc(place))
        fill(stack.libc, stack, of_libc(place), size)
        tally.libc_requested_bytes += size
        tally.libc_block_bytes += block_bytes
        first &= DOMAIN_MASK
    _count(stack, blocks[block[at]], classes, first, place, block_bytes, size)


@inlined
def _count(stack, entry, classes, first, place, block_bytes, size):
    """Counts a block that was allocated or moved, in the class whose rows begin at `first`."""
    tally, row = stack.tally[0], class_row(first, block_bytes)
    entry.place, entry.size_and_row = place, size << ROW_BITS | row
    classes[np.uint64(row)] += 1
    classes[np.uint64(row + CLASS_ROWS)] += size
    tally.requested_slack -= size
    if tally.requested_slack < 0:
        tally.requested_bytes_peak -= tally.requested_slack
        tally.requested_slack = 0
    tally.block_slack -= block_bytes
    if tally.block_slack < 0:
        tally.block_bytes_peak -= tally.block_slack
        tally.block_slack = 0


@cold
def _memalign(stack, blocks, classes, route, columns, at):
    """Simulates a memalign, which few programs call. Returns False if a table has too little room for it."""
    _, domains, block, sizes, times, alignments = columns
    tally, size, alignment = stack.tally[0], sizes[at], np.int64(alignments[at])
    tally.at = np.int64(at)
    if not _reach(stack, times[at] - tally.begin_ns):
        return False
    if size + alignment > LARGE_BYTES and size + alignment > stack.linux.space[0].headroom:
        tally.attention = LARGE
        return False
    place = memalign(stack.libc, stack, alignment, max(size, 1))
    block_bytes = block_size(stack.libc, stack, place)
    fill(stack.libc, stack, place, size)
    tally.memaligns += 1
    tally.libc_requested_bytes += size
    tally.libc_block_bytes += block_bytes
    first = route[np.uint64(domains[at])] & DOMAIN_MASK
    _count(stack, blocks[block[at]], classes, first, of_libc(place), block_bytes, size)
    return True


@inlined
def _go(stack, entry):
    """Frees a block."""
    _end(stack, entry, FREE)
    entry.size_and_row = GONE
    stack.tally[0].frees += 1


@inlined
def _look_ahead(stack, blocks, op, block, at):
    """Prefetches the memory that later rows will read."""
    prefetch(blocks, np.int64(block[at + AHEAD + AHEAD]))
    if op[at + AHEAD] == MALLOC:
        return
    ahead = block[at + AHEAD]
    if ahead >= blocks.shape[0]:  # the row concerns no block, so its number may be any
        return
    there = blocks[ahead].place
    if not is_of_libc(there):
        expect(stack.small, there)
    else:
        expect(stack.libc, of_libc(there))


@cold
def _tell(stack, addresses, row, kind, place):
    """Stores the address of the block that this event allocated or moved."""
    if kind == FREE:
        addresses[row] = 0
    elif not is_of_libc(place):
        addresses[row] = address(stack.small, stack, place)
    else:
        addresses[row] = of_libc(address(stack.libc, stack, of_libc(place)))


@cold
def _settle(tally, rows):
    """Computes the counters that follow from others, after this number of rows."""
    tally.row = tally.first_row + tally.at
    tally.mallocs = rows - tally.callocs - tally.reallocs - tally.memaligns - tally.frees - tally.idle
    tally.requested_bytes = tally.requested_bytes_peak - tally.requested_slack
    tally.block_bytes = tally.block_bytes_peak - tally.block_slack
    tally.small_requested_bytes = tally.requested_bytes - tally.libc_requested_bytes
    tally.small_block_bytes = tally.block_bytes - tally.libc_block_bytes


@inlined
def _unsettle(tally, first_row, start):
    """Sets what the loop counts instead; returns the row from which `_settle` counts rows."""
    tally.first_row, tally.at = first_row, tally.row - first_row
    tally.requested_slack = tally.requested_bytes_peak - tally.requested_bytes
    tally.block_slack = tally.block_bytes_peak - tally.block_bytes
    return start - tally.mallocs - tally.callocs - tally.reallocs - tally.memaligns - tally.frees - tally.idle


@inlined
def _foreseen(blocks, end):
    """The row before which `_look_ahead` is worth its time: 0 for few blocks, which stay in the cache anyway."""
    if blocks.shape[0] <= BLOCKS_IN_CACHE:
        return np.uint64(0)
    return np.uint64(max(end - 2 * np.int64(AHEAD), 0))


@cold
def _copy(tally, copies, index):
    """Copies the counters."""
    copy_record(tally, copies, index)


@cold
def let_time_pass(stack, until_ns):
    """Calls `tick` at each time passed to `wake_at`, until `until_ns`; returns whether all of them are done.

    They are not if a table could have too little room afterwards.
    """
    tally = stack.tally[0]
    while tally.wake_ns <= until_ns:
        if tally.attention & ~RESIDENT_PEAK:
            return False
        tally.woken_ns, tally.wake_ns = tally.wake_ns, NO_WAKE_NS
        _tick(stack, tally.woken_ns)
        tally.woken_ns = -1
    return True


@leaf
def _tick(stack, now_ns):
    tick(stack.libc, stack, now_ns)
    if stack.tally[0].has_small:
        tick(stack.small, stack, now_ns)


@inlined
def _pass(stack, until_ns):
    """Advances time for models that see it. Returns False if a table has too little room."""
    if sees_time(stack.libc, stack) or sees_time(stack.small, stack):
        return let_time_pass(stack, until_ns)
    return True


@inlined
def _reach(stack, time_ns):
    """Advances the models to the time of this event. Returns False if a table has too little room for the event."""
    if sees_time(stack.libc, stack) or sees_time(stack.small, stack):
        if not let_time_pass(stack, time_ns):
            return False
        _tick(stack, time_ns)
        # What a model left to do at this time comes before the event, too.
        return let_time_pass(stack, time_ns) and stack.tally[0].attention & ~RESIDENT_PEAK == 0
    return True


@inlined
def take_turn(stack, thread):
    """Makes this thread the thread of the next events."""
    tally = stack.tally[0]
    if tally.thread != thread:
        tally.thread = thread
        switch_thread(stack.libc, stack, thread)


@inlined
def _begin_turn(stack, op, threads, row, end):
    """Switches to the thread of this event. Returns the next row of another thread, at most `end`."""
    if threads.shape[0] == 0:
        take_turn(stack, np.int64(0))
        return end
    thread = threads[np.uint64(row)]
    take_turn(stack, np.int64(thread))
    row += 1
    while row < end and (threads[np.uint64(row)] == thread or op[np.uint64(row)] > LAST_BLOCK_OP):
        row += 1
    return row


def simulate_rows(
    stack, blocks, classes, route, at_peak, columns, first_row, start, threads, ticks, tick_times, samples, addresses
):
    """Simulates rows of `columns` (op, domain, block, size, time_ns, alignment) from `start`. No row is a boundary.

    Rows that concern no block are skipped; their domain, block and size can have any value. `alignment` is empty if no
    row is a memalign.

    `threads` has the thread of each row; if empty, all are of thread 0.
    `ticks` are rows in rising order, the last one the end. Before row ticks[i] is simulated, samples[i] becomes a copy
    of the counters, after all that models do until tick_times[i]. `at_peak[0]` becomes a copy whenever resident memory
    reaches a new peak. `addresses`, if not empty, takes the address of each block that is allocated or moved, its
    complement where the libc role owns it, and 0 for a free.
    `first_row`: rows of the trace before this batch.

    Stops early where tables need more room (`attention` has ROOM or LARGE) or nothing can be mapped (NO_MEMORY).
    Returns the next row to simulate and the next tick to take.

    Each instruction here is one of about seventy an event. Counters that follow from others are computed when the
    counters are copied; rare paths are `cold`, because the loop would keep registers for them.
    """
    op, domains, block, sizes, times, _ = columns
    tally, space = stack.tally[0], stack.linux.space[0]
    row, started, telling = start, _unsettle(tally, first_row, start), addresses.shape[0] > 0
    foreseen = _foreseen(blocks, ticks[ticks.shape[0] - 1])
    for index in range(ticks.shape[0]):
        while row < ticks[index]:
            if op[np.uint64(row)] > LAST_BLOCK_OP:
                tally.idle += 1
                row += 1
                continue
            turn = _begin_turn(stack, op, threads, row, row + 1 if telling else ticks[index])
            while row < turn:
                tally.stop = row + 1 if tally.attention else turn
                # numba compares only signed indexes with 0.
                at = np.uint64(row)
                if op[at] == MEMALIGN:  # not in the loop below: a call there would take registers from all events
                    if not _memalign(stack, blocks, classes, route, columns, at):
                        _settle(tally, row - started)
                        return row, index
                    at += ONE
                    tally.stop = 0
                while at < np.uint64(tally.stop):
                    kind = op[at]
                    if at < foreseen:
                        _look_ahead(stack, blocks, op, block, at)
                    if kind > FREE:
                        if kind == MEMALIGN:
                            break
                        tally.idle += 1
                        at = opaque(at + ONE)
                        continue
                    tally.at = np.int64(at)
                    if not _reach(stack, times[at] - tally.begin_ns):
                        _settle(tally, np.int64(at) - started)
                        return np.int64(at), index
                    if kind == FREE:
                        _go(stack, blocks[block[at]])
                    else:
                        size = sizes[at]
                        if size > LARGE_BYTES and size > space.headroom:
                            tally.attention = LARGE
                            _settle(tally, np.int64(at) - started)
                            return np.int64(at), index
                        _come(stack, blocks, classes, route, domains, block, at, kind, size)
                    at = opaque(at + ONE)
                row = np.int64(at)
                if telling:
                    _tell(stack, addresses, at - ONE, op[at - ONE], blocks[block[at - ONE]].place)
                if tally.attention:
                    _settle(tally, row - started)
                    if tally.attention & RESIDENT_PEAK:
                        tally.attention ^= RESIDENT_PEAK
                        _copy(stack.tally, at_peak, 0)
                    if tally.attention:
                        return row, index
        if not _pass(stack, tick_times[index]):
            _settle(tally, row - started)
            return row, index
        _settle(tally, row - started)
        _copy(stack.tally, samples, index)
    return row, ticks.shape[0]
