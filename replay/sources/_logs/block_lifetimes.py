"""Converts calls on addresses into events of blocks, with the same rules for every log.

A log identifies blocks by address, can begin in the middle of a program, and can lack data that a trace needs.

free of an address without a live block     the block is older than the log, or was freed twice: left out, counted
realloc of an address without a live block  the block is older than the log: converted to a malloc, counted
allocation at the address of a live block   its free is missing in the log: inserted right before, counted
realloc to 0 bytes, in domain libc          a free, as in the C library; in Python's domains the block stays live
free or realloc                             has the domain of the allocation; the domain in the log is ignored
no time                                     one event per microsecond
"""

import numpy as np

from replay.jit.arrays import DONE, FULL, call_with_room, record, with_room
from replay.jit.compiling import entry
from replay.sources._logs.calls import MOVE, NO_PARTNER, Calls
from replay.trace import NO_SITE, NUMBERS, Domain, Events, Op, release_number, take_number
from replay.trace.block_numbering import clear_slot, doubled, find_slot, is_half_full

EVENT_NS = 1000
"""Time between two events of a log without times."""
_FREE, _REALLOC, _MALLOC = int(Op.FREE), int(Op.REALLOC), int(Op.MALLOC)
_LIBC = int(Domain.LIBC)
_NUMBER_BITS = 32
_NUMBER = (1 << _NUMBER_BITS) - 1
_REPAIRS = record("dropped_frees", "born_by_realloc", "missing_frees")
"""Counts of the first three rules above."""


@entry
def _follow_calls(
    op: np.ndarray,
    key: np.ndarray,
    size: np.ndarray,
    domain: np.ndarray,
    partner: np.ndarray,
    start: int,
    out: int,
    moved_blocks: np.ndarray,
    rows: np.ndarray,
    columns: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    keys: np.ndarray,
    numbers: np.ndarray,
    free_numbers: np.ndarray,
    counts: np.ndarray,
    repairs: np.ndarray,
) -> tuple[int, int, int]:
    """Writes events for calls from row `start` on; returns a status, the next row, and the number of events.

    `rows` has the call of each event; `columns` are op, domain, block and size of the events. `numbers` has the number
    of a live block and, in higher bits, the domain of its allocation; `moved_blocks` has the same for a block that a
    MOVE removed. `key` of a realloc that frees becomes the address of the block. Everything but the other columns of
    the calls changes in place.
    """
    out_op, out_domain, out_block, out_size = columns
    for row in range(start, op.shape[0]):
        if is_half_full(counts, keys):
            return FULL, row, out
        code, slot = op[row], find_slot(key[row], keys, numbers)
        life = numbers[slot]
        if code == MOVE:
            moved_blocks[row] = life
            if life >= 0:
                clear_slot(slot, keys, numbers)
            continue
        moved = moved_blocks[partner[row]] if code == _REALLOC and partner[row] >= 0 else -1
        if moved >= 0 and size[row] == 0 and moved >> _NUMBER_BITS == _LIBC:
            number = moved & _NUMBER
            out_op[out], out_domain[out], out_block[out], out_size[out] = _FREE, _LIBC, number, 0
            key[row], rows[out] = key[partner[row]], row
            out += 1
            release_number(free_numbers, counts, number)
            continue
        if life >= 0:
            number = life & _NUMBER
            out_op[out], out_domain[out], out_block[out], out_size[out] = _FREE, life >> _NUMBER_BITS, number, 0
            rows[out] = row
            out += 1
            release_number(free_numbers, counts, number)
            clear_slot(slot, keys, numbers)
            repairs[0].missing_frees += code != _FREE
        elif code == _FREE:
            repairs[0].dropped_frees += 1
        if code == _FREE:
            continue
        life = moved
        if life < 0:
            if code == _REALLOC:
                repairs[0].born_by_realloc += partner[row] >= 0
                code = _MALLOC
            life = take_number(free_numbers, counts) | np.int64(domain[row]) << _NUMBER_BITS
        slot = find_slot(key[row], keys, numbers)
        keys[slot], numbers[slot] = key[row], life
        out_op[out], out_domain[out], out_size[out] = code, life >> _NUMBER_BITS, size[row]
        out_block[out] = life & _NUMBER
        rows[out] = row
        out += 1
    return DONE, op.shape[0], out


class BlockLifetimes:
    """Converts the calls of one log to events, batch by batch.

    `addresses`: whether keys are addresses; the events then have the column `address`.
    """

    def __init__(self, *, addresses: bool) -> None:
        self._addresses = addresses
        self._events = 0
        self._keys = np.zeros(1024, np.int64)
        self._numbers = np.full(1024, -1, np.int64)
        self._free_numbers = np.zeros(1024, np.int64)
        self._counts = np.zeros(1, NUMBERS)
        self._repairs = np.zeros(1, _REPAIRS)

    @property
    def dropped_frees(self) -> int:
        return int(self._repairs[0].dropped_frees)

    @property
    def born_by_realloc(self) -> int:
        return int(self._repairs[0].born_by_realloc)

    @property
    def missing_frees(self) -> int:
        return int(self._repairs[0].missing_frees)

    def events(self, calls: Calls) -> Events:
        """Returns the events of the next batch of calls."""
        total = calls.op.shape[0]
        self._free_numbers = with_room(self._free_numbers, int(self._counts[0].used) + total)
        partner = calls.partner if calls.partner is not None else np.full(total, NO_PARTNER, np.int64)
        rows, moved_blocks = np.empty(2 * total, np.int64), np.empty(total, np.int64)
        types = (np.uint8, np.uint8, np.uint32, np.int64)
        op, domain, block, size = (np.empty(2 * total, type_) for type_ in types)
        _, _, out = call_with_room(
            lambda row, out: _follow_calls(
                calls.op, calls.key.view(np.int64), calls.size, calls.domain, partner, row, out, moved_blocks, rows,
                (op, domain, block, size),
                self._keys, self._numbers, self._free_numbers, self._counts, self._repairs,
            ),
            self._double,
            0, 0,
        )  # fmt: skip
        return self._gather(calls, rows[:out], op[:out], domain[:out], block[:out], size[:out])

    def _double(self, _row: int, _out: int) -> None:
        self._keys, self._numbers = doubled(self._keys, self._numbers)

    def _gather(
        self, calls: Calls, rows: np.ndarray, op: np.ndarray, domain: np.ndarray, block: np.ndarray, size: np.ndarray
    ) -> Events:
        counted_ns = (self._events + np.arange(rows.shape[0])) * EVENT_NS
        time_ns = counted_ns if calls.time_ns is None else calls.time_ns[rows]
        site = calls.site[rows] if calls.site is not None else None
        if site is not None:
            site[op == _FREE] = NO_SITE
        self._events += rows.shape[0]
        address = calls.key[rows] if self._addresses else None
        thread = calls.thread[rows]
        return Events(
            time_ns=time_ns, thread=thread, op=op, domain=domain, block=block, size=size, address=address, site=site
        )
