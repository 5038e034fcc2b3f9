"""Converts the records of the ring into events, with dense numbers of blocks and threads, and times in nanoseconds.

Properties of recordings that traces do not have:

    foreign     a block older than the recording. Its free becomes an observation, its realloc that and a malloc
    unseen      a free that the hooks did not see, e.g. some of CPython's own while it starts or ends. It is detected
                when the address is allocated again; its row is before that allocation
    a realloc   is two records of one thread. Other threads can allocate the old address in between. Its row is at the
                second record
    excluded    a thread whose blocks are left out. Its calls for blocks of other threads are recorded
"""

import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from replay.jit.arrays import DONE, FULL, call_with_room, extend, record, with_room
from replay.jit.compiling import entry, inlined, leaf
from replay.jit.cpu_intrinsics import counter
from replay.recorder import object_types, tap
from replay.recorder.type_table import BYTES_MOST, BYTES_SHIFT, POINTER
from replay.trace import NUMBERS, Events, Op, release_number, take_number
from replay.trace.block_numbering import clear_slot, doubled, find_slot, is_half_full

_OP_SHIFT, _DOMAIN_SHIFT = tap.SIZE_BITS, tap.SIZE_BITS + tap.OP_BITS
_WORD, _SITE_SHIFT, _HALF_SITE = (1 << tap.NUMBER_BITS) - 1, tap.NUMBER_BITS, (1 << tap.SITE_BITS) - 1
_SITE_BITS, _DOMAIN_BITS = tap.SITE_BITS, tap.DOMAIN_BITS
_LAP_SHIFT, _LAPS = 64 - tap.LAP_BITS, 1 << tap.LAP_BITS
_SLOTS, _SIZES, _OPS, _DOMAINS = 1 << tap.RING_BITS, 1 << tap.SIZE_BITS, 1 << tap.OP_BITS, 1 << tap.DOMAIN_BITS
_CALLOC_RECORD, _FREED, _FROM, _TO, _FAILED = tap.CALLOC, tap.FREE, tap.REALLOC_FROM, tap.REALLOC_TO, tap.REALLOC_FAILED
_PLAIN = np.array(
    [Op.MALLOC, Op.CALLOC, Op.FREE, Op.REALLOC, Op.REALLOC, Op.REALLOC,
     Op.ARENA_MAPPED, Op.ARENA_UNMAPPED, Op.GC_START, Op.GC_END, Op.MARK], np.int64,
)  # fmt: skip
"""The op of each kind of record."""
_MALLOC, _REALLOC, _FREE, _FOREIGN_FREE = int(Op.MALLOC), int(Op.REALLOC), int(Op.FREE), int(Op.FOREIGN_FREE)
_NONE, _FOREIGN = -1, -2
_THREAD = record("ident", "block", "address", "is_excluded")
"""A thread: number and address of the block that it is reallocating, and whether the thread is excluded."""
_TALLY = record(
    "threads", "thread", "foreign_frees", "foreign_reallocs", "unseen_frees", "last_ns", "excluded_calls", "pointers"
)
"""Counts, the thread of the last record, and its time."""
_ROWS_A_RECORD = 3
_POINTER = POINTER
_POINTERS_MOST, _POINTER_SLOTS = 1 << 14, 1 << 15
_KNOWN_TYPE, _BEHIND_HEADER, _HEADER_AND_OBJECT = object_types.KNOWN_TYPE, object_types.BEHIND_HEADER, 32
_BYTES_SHIFT, _BYTES_MOST, _UNKNOWN_BYTES = BYTES_SHIFT, BYTES_MOST, 1 << 62


@entry
def count_published(ring: np.ndarray, tail: int, most: int) -> int:
    """Returns the number of complete records from number `tail` on, up to the first incomplete one."""
    for ahead in range(most):
        index = tail + ahead
        lap = (ring[index & (_SLOTS - 1), 0] >> _LAP_SHIFT) & (_LAPS - 1)
        if lap != ((index // _SLOTS + 1) & (_LAPS - 1)):
            return ahead
    return most


@inlined
def _thread_number(ident: int, threads: np.ndarray, tallies: np.ndarray, excluded: np.ndarray) -> int:
    """Returns the row of a thread in `threads`, a new one for a new thread; -1 if no row is free."""
    tally = tallies[0]
    if threads[tally.thread].ident == ident:
        return tally.thread
    for number in range(tally.threads):
        if threads[number].ident == ident:
            tally.thread = number
            return number
    number = tally.threads
    if number == threads.shape[0]:
        return -1
    threads[number].ident, threads[number].block = ident, _NONE
    for each in excluded:
        if each == ident:
            threads[number].is_excluded = 1
    tally.thread, tally.threads = number, number + 1
    return number


class _State(NamedTuple):
    """The state between two records; changes in place.

    `keys`, `numbers`, `free_numbers` and `counts` are those of `replay.trace.block_numbering`, by address. `threads`
    has the type _THREAD, `tallies` _TALLY. `excluded` has the identities of threads whose blocks are left out.
    With types, `sizes` has the size and the domain of each block, and the other fields are the table of unknown
    pointers.
    """

    keys: np.ndarray
    numbers: np.ndarray
    free_numbers: np.ndarray
    counts: np.ndarray
    threads: np.ndarray
    tallies: np.ndarray
    excluded: np.ndarray
    sizes: np.ndarray
    pointers: np.ndarray
    pointer_keys: np.ndarray
    pointer_numbers: np.ndarray


@inlined
def _put(
    events: Events, row: int, thread: int, op: int, domain: int, block: int, size: int, address: int, now_ns: int
) -> int:
    """Writes a row in place; returns the number of the next row."""
    events.time_ns[row], events.thread[row], events.op[row], events.domain[row] = now_ns, thread, op, domain
    events.block[row], events.size[row], events.address[row] = block, size, address  # type: ignore[index]
    return row + 1


@leaf
def _number_pointer(pointer: int, block_bytes: int, state: _State) -> int:
    """Returns the number of an unknown pointer in a block of this size plus _POINTER; 0 if there are too many."""
    rounded = min(block_bytes, _BYTES_MOST) + 15 & -16
    key = pointer | rounded << _BYTES_SHIFT
    slot = find_slot(key, state.pointer_keys, state.pointer_numbers)
    if state.pointer_numbers[slot] < 0:
        number = state.tallies[0].pointers
        if number == state.pointers.shape[0]:
            return 0
        state.tallies[0].pointers = number + 1
        state.pointer_keys[slot], state.pointer_numbers[slot], state.pointers[number] = key, number, key
    return state.pointer_numbers[slot] + _POINTER


@inlined
def _type_of(type_: int, pointer_or_bytes: int, number: int, state: _State) -> int:
    """Returns the type in a free of block `number` (negative: an older block, of unknown length).

    Behind a block that is too short for the type, the hook found the type of another block.
    """
    block_bytes = _UNKNOWN_BYTES if number < 0 else state.sizes[number] >> _DOMAIN_BITS
    if pointer_or_bytes & _KNOWN_TYPE:
        return type_ if block_bytes >= pointer_or_bytes - _KNOWN_TYPE else 0
    if pointer_or_bytes == 0 or (pointer_or_bytes & _BEHIND_HEADER and block_bytes < _HEADER_AND_OBJECT):
        return 0
    return _number_pointer(pointer_or_bytes, block_bytes, state)


@inlined
def _end_block(
    events: Events, row: int, thread: int, domain: int, address: int, type_: int, hint: int, now_ns: int, state: _State
) -> int:
    """Translates a free; returns the next row. `hint`: the unknown pointer, or the smallest block of the type."""
    slot = find_slot(address, state.keys, state.numbers)
    number = state.numbers[slot]
    if number < 0 and state.threads[thread].is_excluded:
        state.tallies[0].excluded_calls += 1
        return row
    if events.type.shape[0] > 0:  # type: ignore[union-attr]
        events.type[row] = _type_of(type_, hint, number, state)  # type: ignore[index]
    if number < 0:
        state.tallies[0].foreign_frees += 1
        return _put(events, row, thread, _FOREIGN_FREE, domain, 0, 0, address, now_ns)
    release_number(state.free_numbers, state.counts, number)
    clear_slot(slot, state.keys, state.numbers)
    return _put(events, row, thread, _FREE, domain, number, 0, 0, now_ns)


@inlined
def _begin_block(
    events: Events,
    row: int,
    thread: int,
    op: int,
    domain: int,
    size: int,
    address: int,
    site: int,
    now_ns: int,
    state: _State,
) -> int:
    """Translates a malloc or calloc, or the second half of a realloc; returns the next row."""
    moved = _NONE
    if op == _REALLOC:
        moved, state.threads[thread].block = state.threads[thread].block, _NONE
    slot = find_slot(address, state.keys, state.numbers)
    if state.numbers[slot] >= 0:
        state.tallies[0].unseen_frees += 1
        row = _end_block(events, row, thread, domain, address, 0, 0, now_ns, state)
        slot = find_slot(address, state.keys, state.numbers)
    if moved < 0 and state.threads[thread].is_excluded:
        state.tallies[0].excluded_calls += 1
        return row
    is_foreign = moved == _FOREIGN
    old_address = state.threads[thread].address
    if is_foreign and old_address == address:
        row = _put(events, row, thread, _FOREIGN_FREE, domain, 0, 0, old_address, now_ns)
    if moved < 0:
        moved = take_number(state.free_numbers, state.counts)
        op = _MALLOC if op == _REALLOC else op
    state.keys[slot], state.numbers[slot] = address, moved
    if state.sizes.shape[0] > 0:
        state.sizes[moved] = size << _DOMAIN_BITS | domain
    if events.site.shape[0] > 0:  # type: ignore[union-attr]
        events.site[row] = site  # type: ignore[index]
    row = _put(events, row, thread, op, domain, moved, size, address, now_ns)
    if is_foreign:
        state.tallies[0].foreign_reallocs += 1
    if is_foreign and old_address != address:
        row = _put(events, row, thread, _FOREIGN_FREE, domain, 0, 0, old_address, now_ns)
    return row


@inlined
def _leave_address(thread: int, address: int, state: _State) -> None:
    """Translates the first half of a realloc: the block keeps its number and leaves its address."""
    slot = find_slot(address, state.keys, state.numbers)
    number = state.numbers[slot]
    mover = state.threads[thread]
    mover.block, mover.address = number if number >= 0 else _FOREIGN, address
    if number >= 0:
        clear_slot(slot, state.keys, state.numbers)


@inlined
def _return_to_address(thread: int, address: int, state: _State) -> None:
    """Translates a realloc that failed: the block is at its address again."""
    number, state.threads[thread].block = state.threads[thread].block, _NONE
    if number >= 0:
        slot = find_slot(address, state.keys, state.numbers)
        state.keys[slot], state.numbers[slot] = address, number


@entry
def _translate(
    ring: np.ndarray,
    first: int,
    records: int,
    done: int,
    events: Events,
    row: int,
    state: _State,
    origin: int,
    ns_a_count: float,
) -> tuple[int, int, int]:
    """Translates the records after the first `done` to rows from `row` on, while the batch has room.

    Returns a status, the number of translated records, and the next row. Changes `events` and `state` in place.
    """
    tally, status = state.tallies[0], DONE
    while done < records and row + _ROWS_A_RECORD <= events.op.shape[0]:
        at = (first + done) & (_SLOTS - 1)
        packed, address = ring[at, 0], ring[at, 3] & _WORD
        thread = _thread_number(ring[at, 2] & _WORD, state.threads, state.tallies, state.excluded)
        if thread < 0 or is_half_full(state.counts, state.keys):
            status = FULL
            break
        now_ns = max(tally.last_ns, np.int64((ring[at, 1] - origin) * ns_a_count))
        tally.last_ns = now_ns
        size, kind = packed & (_SIZES - 1), (packed >> _OP_SHIFT) & (_OPS - 1)
        domain = (packed >> _DOMAIN_SHIFT) & (_DOMAINS - 1)
        low, high = (ring[at, 2] >> _SITE_SHIFT) & _HALF_SITE, (ring[at, 3] >> _SITE_SHIFT) & _HALF_SITE
        site = low | high << _SITE_BITS
        if kind <= _CALLOC_RECORD or kind == _TO:
            row = _begin_block(events, row, thread, _PLAIN[kind], domain, size, address, site, now_ns, state)
        elif kind == _FREED:
            row = _end_block(events, row, thread, domain, address, site, size, now_ns, state)
        elif kind == _FROM:
            _leave_address(thread, address, state)
        elif kind == _FAILED:
            _return_to_address(thread, address, state)
        else:
            row = _put(events, row, thread, _PLAIN[kind], domain, 0, size, address, now_ns)
        done += 1
    return status, done, row


class Clock:
    """Converts the time stamps of hooks to nanoseconds since the creation of this object."""

    def __init__(self, counts: bool) -> None:
        self._counts = counts
        self.origin, self._origin_ns = self._now()

    def ns_a_count(self) -> float:
        """Returns the nanoseconds of a count, measured over the whole time so far, so it becomes more exact."""
        if not self._counts:
            return 1.0
        count, now_ns = self._now()
        return (now_ns - self._origin_ns) / (count - self.origin)

    def _now(self) -> tuple[int, int]:
        if not self._counts:
            return time.monotonic_ns(), 0
        return read_counter(), time.monotonic_ns()


@entry
def read_counter() -> int:
    """Returns the processor's time stamp counter."""
    return counter()


class Translator:
    """Translates the records of the ring into batches.

    `sites`: batches have the hooks' numbers of call sites. `types`: they have the hooks' numbers of types, or those of
    `pointers` plus POINTER.
    Blocks of the threads `excluded` are left out. A thread is identified by its `threading.get_ident()`.
    """

    def __init__(
        self, clock: Clock, rows: int, sites: bool = False, types: bool = False, excluded: Iterable[int] = ()
    ) -> None:
        self._clock, self._rows, self._sites, self._types = clock, rows, sites, types
        self._begin: int | None = None
        """The time of the first record, which is time 0 of the trace."""
        self._state = _State(
            np.zeros(1 << 16, np.int64), np.full(1 << 16, -1, np.int64), np.zeros(1 << 16, np.int64),
            np.zeros(1, NUMBERS), np.zeros(64, _THREAD), np.zeros(1, _TALLY),
            np.fromiter(excluded, np.int64),
            np.zeros(1 << 16 if types else 0, np.int64), np.zeros(_POINTERS_MOST if types else 0, np.int64),
            np.zeros(_POINTER_SLOTS, np.int64), np.full(_POINTER_SLOTS, -1, np.int64),
        )  # fmt: skip
        self.events, self.row = self._new_batch(), 0

    @property
    def full(self) -> bool:
        return self.row + _ROWS_A_RECORD > self._rows

    def translate(self, ring: np.ndarray, first: int, records: int) -> int:
        """Translates records from number `first` on into the batch; returns how many fitted."""
        free_numbers = with_room(self._state.free_numbers, int(self._state.counts[0].used) + records)
        sizes = self._state.sizes
        if self._types:
            sizes = with_room(sizes, int(self._state.counts[0].used) + records)
        self._state = self._state._replace(free_numbers=free_numbers, sizes=sizes)
        if self._begin is None and records:
            self._begin = int(ring[first & (_SLOTS - 1), 1])
        begin, ns_a_count = self._begin or 0, self._clock.ns_a_count()
        _, done, self.row = call_with_room(
            lambda done, row: _translate(ring, first, records, done, self.events, row, self._state, begin, ns_a_count),
            self._grow,
            0,
            self.row,
        )
        return int(done)

    def batch(self) -> Events:
        """Returns the rows so far and starts a new batch."""
        extras = [name for name, present in (("site", self._sites), ("type", self._types)) if present]
        batch = self.events.where(slice(0, self.row)).keep_optional("address", *extras)
        self.events, self.row = self._new_batch(), 0
        return batch

    @property
    def pointers(self) -> np.ndarray:
        """The unknown pointers so far (int64), by their number, as `replay.recorder.type_table` has them."""
        return self._state.pointers

    def live_objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns numbers, addresses and sizes of the live blocks of domain obj, by address. Needs types."""
        live = self._state.numbers >= 0
        address, number = self._state.keys[live], self._state.numbers[live]
        size, domain = np.divmod(self._state.sizes[number], 1 << tap.DOMAIN_BITS)
        rows = np.flatnonzero(domain == tap.OBJ)
        rows = rows[np.argsort(address[rows])]
        return number[rows], address[rows], size[rows]

    def put_live(self, number: np.ndarray, address: np.ndarray, tracked: np.ndarray) -> slice:
        """Writes rows of live objects, as many as the batch has room for; returns where. Their types are 0."""
        rows = slice(self.row, min(self._rows, self.row + number.shape[0]))
        count, events = rows.stop - rows.start, self.events
        events.time_ns[rows] = self._state.tallies[0].last_ns
        events.thread[rows], events.op[rows], events.domain[rows] = 0, Op.LIVE_OBJECT, tap.OBJ
        events.block[rows], events.size[rows] = number[:count], tracked[:count]
        events.address[rows] = address[:count]  # type: ignore[index]
        self.row = rows.stop
        return rows

    @property
    def live_blocks(self) -> int:
        return int(self._state.counts[0].used - self._state.counts[0].released)

    @property
    def foreign_frees(self) -> int:
        return int(self._state.tallies[0].foreign_frees)

    @property
    def foreign_reallocs(self) -> int:
        return int(self._state.tallies[0].foreign_reallocs)

    @property
    def unseen_frees(self) -> int:
        return int(self._state.tallies[0].unseen_frees)

    @property
    def excluded_calls(self) -> int:
        """Number of calls of excluded threads."""
        return int(self._state.tallies[0].excluded_calls)

    def _new_batch(self) -> Events:
        """Returns columns for the kernel. A site or type column without rows stands for no column."""
        sites, types = (np.zeros(self._rows if present else 0, np.uint32) for present in (self._sites, self._types))
        return Events.empty(self._rows, "address")._replace(site=sites, type=types)

    def _grow(self, _done: int, _row: int) -> None:
        """Doubles the table that is full."""
        state = self._state
        if state.tallies[0].threads == state.threads.shape[0]:
            self._state = state._replace(threads=extend(state.threads, 2 * state.threads.shape[0]))
        else:
            keys, numbers = doubled(state.keys, state.numbers)
            self._state = state._replace(keys=keys, numbers=numbers)
