"""Reads the records of a memray capture with a kernel. The first byte of a record is its kind:

    1ppppaaa    an allocation or a free. p: index of one of the last 15 addresses; 15: a new address follows, as the
                difference to the previous new one in units of 8 bytes. a: the allocator; 0: it follows as a byte. Then,
                for allocations with native stacks, the difference of the stack's number; then the size, except for
                frees
    01......    a Python frame is pushed: number of its code object, and the signed offset of the instruction
    001ppppc    a Python object is created (c) or destroyed: an address as above, and the native stack of a creation
    0001nnnn    n + 1 frames are popped
    12          the following records are of another thread: its number, 8 bytes
    5           a native frame: two signed numbers
    6           the list of mappings starts again: no data
    8           a mapping: 8 bytes, and a number
    1           the end
    2           memory: resident bytes, and ms since the start
    14          code: number; name and file, ended by zero bytes; first line, as a signed difference to that of the
                previous record; length of the line table; line table
    7, 10       a mapped file: a text, a number, 8 bytes; the name of a thread: a text

Numbers are in groups of seven bits from the lowest; all bytes but the last have the bit 128. The lowest bit of a signed
number is its sign.
"""

from typing import NamedTuple

import numpy as np

from replay.jit.compiling import entry, inlined, leaf
from replay.sources.memray.allocator_types import MMAP, MUNMAP, NUMBERS_FROM_FORMAT_12, UNKNOWN, call_tables
from replay.sources.memray.stacks import (
    OFFSETS,
    RECENT,
    State,
    has_room,
    innermost,
    pop,
    push,
)
from replay.trace import NO_SITE, Op

RECORD_BYTES_MAX = 32
"""Maximum length of a record that the kernel reads. This number of bytes must follow the first byte of the last one."""
THREADS_MAX = 1 << 24
"""Maximum number of a thread. memray counts threads from 1, so a larger number is not a thread."""
FILLED, ENDED, OTHER, BAD, GROW = range(5)
"""Why the kernel stopped: columns full or no more bytes; at the end; at a kind of record that it does not handle; at an
invalid or incomplete record; because a table is full."""
MEMORY, MAPPED_FILE, THREAD_NAME, CODE = 2, 7, 10, 14
_END, _NATIVE_FRAME, _MAPPINGS_ANEW, _MAPPED, _THREAD = 1, 5, 6, 8, 12
_ADDRESS_SHIFT = 3
_FREE = int(Op.FREE)
OPS, DOMAINS = call_tables(NUMBERS_FROM_FORMAT_12)
"""Op and domain by the number of an allocator, in formats 12 and 13."""


class Columns(NamedTuple):
    """The columns of a batch. `used`: number of the frame, in the order of first allocations, or NO_SITE."""

    op: np.ndarray
    address: np.ndarray
    size: np.ndarray
    domain: np.ndarray
    thread: np.ndarray
    used: np.ndarray


def new_columns(rows: int) -> Columns:
    return Columns(*(np.empty(rows, type_) for type_ in (np.uint8, np.int64, np.int64, np.uint8, np.uint32, np.uint32)))


@inlined
def _byte(data, at):
    """Returns a byte as int64: numba converts a mix of unsigned and signed numbers to float."""
    return np.int64(data[at])


@inlined
def _number(data: np.ndarray, at: int) -> tuple[int, int]:
    """Returns the lowest 64 bits of the number at `at`, and its end. A number has at most ten groups."""
    byte = _byte(data, at)
    at += 1
    value, shift = byte & 127, 7
    while byte & 128 and shift < 70:
        byte = _byte(data, at)
        at += 1
        value |= (byte & 127) << shift
        shift += 7
    return value, at


@inlined
def _signed(data: np.ndarray, at: int) -> tuple[int, int]:
    value, at = _number(data, at)
    return ((value >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(value & 1), at


@inlined
def _address(data: np.ndarray, at: int, place: int, state: State) -> tuple[int, int]:
    """Returns the address of a record, and the position after it. `place`: its index in the recent addresses."""
    tally, recent = state.tallies[0], state.recent
    if place < RECENT:
        index = tally.recent + place
        return recent[index - RECENT if index >= RECENT else index], at
    step, at = _signed(data, at)
    tally.pointer += step
    latest = tally.recent - 1 if tally.recent > 0 else RECENT - 1
    recent[latest], tally.recent = tally.pointer << _ADDRESS_SHIFT, latest
    return recent[latest], at


@inlined
def _allocation(
    data: np.ndarray, at: int, end: int, native: bool, columns: Columns, row: int, state: State
) -> tuple[int, int]:
    """Reads the record whose first byte is before `at`; returns its end, or -1 if it is invalid, and the next row."""
    first = _byte(data, at - 1)
    address, at = _address(data, at, (first >> 3) & 15, state)
    allocator = first & 7
    if allocator == 0:
        allocator = _byte(data, at)
        at += 1
    op, size, used = OPS[allocator], 0, NO_SITE
    if op == UNKNOWN:
        return -1, row
    if op != _FREE:
        if native:
            _, at = _number(data, at)
        size, at = _number(data, at)
    if at > end:
        return at, row
    tally = state.tallies[0]
    tally.records += 1
    if op in (MMAP, MUNMAP):
        tally.mappings += 1
        if op == MMAP:
            tally.mapped_bytes += size
        return at, row
    if op != _FREE:
        used = innermost(state)
    columns.op[row], columns.domain[row], columns.size[row] = op, DOMAINS[allocator], size
    columns.address[row], columns.thread[row], columns.used[row] = address, tally.thread, used
    return at, row + 1


@leaf
def _other(data: np.ndarray, at: int, native: bool, state: State) -> int:
    """Reads a record that is not an allocation, for its effect on addresses and thread; returns its end, or -1 if it is
    invalid."""
    first = _byte(data, at - 1)
    if first & 32:
        _, at = _address(data, at, (first >> 1) & 15, state)
        return _number(data, at)[1] if native and first & 1 else at
    if first == _NATIVE_FRAME:
        _, at = _number(data, at)
        return _number(data, at)[1]
    if first == _MAPPINGS_ANEW:
        return at
    if first == _MAPPED:
        return _number(data, at + 8)[1]
    if first == _THREAD:
        thread = 0
        for byte in range(8):
            thread |= _byte(data, at + byte) << (8 * byte)
        if thread < 0 or thread > THREADS_MAX:
            return -1
        state.tallies[0].thread = thread
        return at + 8
    return -1


@entry
def read_records(
    data: np.ndarray, at: int, start_end: int, end: int, native: bool, columns: Columns, row: int, state: State
) -> tuple[int, int, int]:
    """Reads records that begin before `start_end` and end before `end`. Changes `columns` and `state` in place.

    At the end of the file, `RECORD_BYTES_MAX` zeros follow `end`. Returns why it stopped, the position of the next
    record, and the number of rows.
    """
    tally = state.tallies[0]
    while at < start_end and row < columns.op.shape[0]:
        first, begin = _byte(data, at), at
        known = tally.thread >= 0
        at += 1
        if first & 128:
            if not known:
                return BAD, begin, row
            at, row = _allocation(data, at, end, native, columns, row, state)
        elif first & 64:
            if not has_room(state):
                return GROW, begin, row
            code, at = _number(data, at)
            offset, at = _signed(data, at)
            if not known or code < 0 or code > OFFSETS >> 1 or offset < -1 or offset > OFFSETS >> 1:
                return BAD, begin, row
            if at <= end:
                push(code, offset, state)
        elif first & 48 == 16:
            if not known or not pop((first & 15) + 1, state):
                return BAD, begin, row
        elif first == _END:
            return ENDED, begin, row
        elif first in (MEMORY, MAPPED_FILE, THREAD_NAME, CODE):
            return OTHER, begin, row
        else:
            at = _other(data, at, native, state)
        if at < 0 or at > end:
            return BAD, begin, row
        if tally.thread >= state.tops.shape[0]:
            return GROW, at, row
    return FILLED, at, row
