"""Dense numbers for blocks that are named by addresses or by numbers with gaps, and for threads.

A hash table in two arrays maps the key of each live block to its number. It has open addressing, a power of two of
slots, and is at most half full. Removal moves later keys back, so the table contains live blocks only. `numbers` is -1
in a free slot. Blocks are numbered by the rule of `replay.trace`.
"""

import numpy as np

from replay.jit.arrays import DONE, FULL, call_with_room, record, with_room
from replay.jit.compiling import entry, inlined, leaf
from replay.support.errors import TraceError
from replay.trace.block_ops import FREE, allocates, concerns_block
from replay.trace.columns import Op
from replay.trace.events import Events

NO_BLOCK = (1 << 32) - 1
"""The number of a live object's block that is not live, because an edit removed its allocation."""
_ALREADY_LIVE, _NOT_LIVE = 2, 3
_LIVE_OBJECT = int(Op.LIVE_OBJECT)
NUMBERS = record("used", "released")
"""State of a numbering: count of numbers ever used, and of those on the stack of released numbers."""
_LINK = record("number", "next")
_LINKS = record("used", "unused")


@leaf
def take_number(free_numbers: np.ndarray, counts: np.ndarray) -> int:
    """Returns the number of a new block. Changes `counts`, one entry of NUMBERS, in place.

    `free_numbers` (int64) is the stack of released numbers. The caller provides at least as many entries as numbers
    were used, plus the rows of a batch.
    """
    count = counts[0]
    if count.released > 0:
        count.released -= 1
        return free_numbers[count.released]
    count.used += 1
    return count.used - 1


@leaf
def release_number(free_numbers: np.ndarray, counts: np.ndarray, number: int) -> None:
    """Pushes the number of a freed block onto the stack, in place; see `take_number`."""
    count = counts[0]
    free_numbers[count.released] = number
    count.released += 1


@inlined
def _home(key: int, mask: int) -> int:
    """Returns the first slot to search for a key. It multiplies 32 by 31 bits, so that no int64 overflows."""
    low = ((key & 0xFFFFFFFF) * 0x5BD1E995) >> 16
    high = (((key >> 32) & 0xFFFFFFFF) * 0x5BD1E995) >> 16
    return (low ^ high) & mask


@inlined
def find_slot(key: int, keys: np.ndarray, numbers: np.ndarray) -> int:
    """Returns the slot of `key`, or the free slot to insert it in."""
    mask = keys.shape[0] - 1
    slot = _home(key, mask)
    while numbers[slot] >= 0 and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@leaf
def clear_slot(slot: int, keys: np.ndarray, numbers: np.ndarray) -> None:
    """Frees a slot, and moves back every later key that would no longer be found. Changes both arrays in place."""
    mask = keys.shape[0] - 1
    hole, probe = slot, (slot + 1) & mask
    while numbers[probe] >= 0:
        if ((probe - _home(keys[probe], mask)) & mask) >= ((probe - hole) & mask):
            keys[hole], numbers[hole] = keys[probe], numbers[probe]
            hole = probe
        probe = (probe + 1) & mask
    numbers[hole] = -1


@entry
def _move_all(keys: np.ndarray, numbers: np.ndarray, new_keys: np.ndarray, new_numbers: np.ndarray) -> None:
    """Inserts all live keys into the new table, which is empty, in place."""
    for slot in range(keys.shape[0]):
        if numbers[slot] >= 0:
            new_slot = find_slot(keys[slot], new_keys, new_numbers)
            new_keys[new_slot], new_numbers[new_slot] = keys[slot], numbers[slot]


def doubled(keys: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a copy of the table with twice as many slots."""
    new_keys = np.zeros(2 * keys.shape[0], np.int64)
    new_numbers = np.full(new_keys.shape[0], -1, np.int64)
    _move_all(keys, numbers, new_keys, new_numbers)
    return new_keys, new_numbers


@inlined
def is_half_full(counts: np.ndarray, keys: np.ndarray) -> bool:
    """Returns whether the table is half full, so that it must be doubled before another key is inserted."""
    return 2 * (counts[0].used - counts[0].released) >= keys.shape[0]


@entry
def _number_events(
    op: np.ndarray,
    key: np.ndarray,
    start: int,
    block: np.ndarray,
    keys: np.ndarray,
    numbers: np.ndarray,
    free_numbers: np.ndarray,
    counts: np.ndarray,
) -> tuple[int, int]:
    """Writes `block` from row `start` on; returns a status and the row it stopped at. Changes all arrays that follow in
    place."""
    for row in range(start, op.shape[0]):
        if not concerns_block(op[row]):
            block[row] = 0
            if op[row] == _LIVE_OBJECT:
                slot = find_slot(key[row], keys, numbers)
                block[row] = numbers[slot] if numbers[slot] >= 0 else NO_BLOCK
            continue
        slot = find_slot(key[row], keys, numbers)
        if allocates(op[row]):
            if numbers[slot] >= 0:
                return _ALREADY_LIVE, row
            if is_half_full(counts, keys):
                return FULL, row
            keys[slot] = key[row]
            numbers[slot] = take_number(free_numbers, counts)
        elif numbers[slot] < 0:
            return _NOT_LIVE, row
        block[row] = numbers[slot]
        if op[row] == FREE:
            release_number(free_numbers, counts, numbers[slot])
            clear_slot(slot, keys, numbers)
    return DONE, op.shape[0]


class Numbering:
    """Numbers the blocks of one trace, batch by batch; `path` is named in errors."""

    def __init__(self, path: object = None) -> None:
        self._path = path
        self._rows = 0
        self._keys = np.zeros(1024, np.int64)
        self._numbers = np.full(1024, -1, np.int64)
        self._free_numbers = np.zeros(1024, np.int64)
        self._counts = np.zeros(1, NUMBERS)

    def number(self, op: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Returns the block numbers (uint32) of the next rows: ops (uint8) and keys of their blocks (uint64). A realloc
        keeps its key."""
        rows = op.shape[0]
        block = np.empty(rows, np.uint32)
        self._free_numbers = with_room(self._free_numbers, int(self._counts[0].used) + rows)
        status, row = call_with_room(
            lambda row: _number_events(
                op, key.view(np.int64), row, block, self._keys, self._numbers, self._free_numbers, self._counts
            ),
            self._double,
            0,
        )
        if status != DONE:
            message = allocated_twice if status == _ALREADY_LIVE else not_live
            raise TraceError(message(int(op[row]), int(key[row])), path=self._path, row=self._rows + row)
        self._rows += rows
        return block

    def _double(self, _row: int) -> None:
        self._keys, self._numbers = doubled(self._keys, self._numbers)


THREADS_KEPT = 1024
"""Threads with lower numbers keep them."""


class ThreadNumbering:
    """Numbers the threads of one trace so densely that tables can be indexed by them."""

    def __init__(self) -> None:
        self._others: dict[int, int] = {}
        self.count = 1
        """One more than the highest number so far."""

    def number(self, thread: np.ndarray, highest: int) -> np.ndarray:
        """Returns the number (uint32) of each row's thread (uint32). `highest` is at least the highest thread."""
        if highest < THREADS_KEPT:
            self.count = max(self.count, highest + 1)
            return thread
        distinct, indexes = np.unique(thread, return_inverse=True)
        numbers = np.array([self._number(name) for name in distinct.tolist()], np.uint32)
        self.count = max(self.count, int(numbers.max()) + 1)
        return numbers[indexes]

    def _number(self, name: int) -> int:
        return name if name < THREADS_KEPT else self._others.setdefault(name, THREADS_KEPT + len(self._others))


@entry
def _number_apart(
    op: np.ndarray,
    block: np.ndarray,
    owner: np.ndarray,
    start: int,
    own: np.ndarray,
    numbers: np.ndarray,
    counts: np.ndarray,
    heads: np.ndarray,
    links: np.ndarray,
    state: np.ndarray,
) -> tuple[int, int]:
    """Writes the number of each row's block within its process into `own`; returns a status and the row it stopped at.
    Changes all arrays that follow in place.

    `numbers` has the number of each live block, `counts` how many numbers each process has used. The numbers that a
    process has released are a linked list in `links`, whose head is in `heads`. `state` has the count of links ever
    used, and the head of the list of unused links. Link 0 ends a list.
    """
    pool = state[0]
    for row in range(start, op.shape[0]):
        own[row] = 0
        if not concerns_block(op[row]):
            continue
        process = owner[row]
        if allocates(op[row]):
            link = heads[process]
            if link:
                numbers[block[row]] = links[link].number
                heads[process], links[link].next, pool.unused = links[link].next, pool.unused, link
            else:
                numbers[block[row]] = counts[process]
                counts[process] += 1
        own[row] = numbers[block[row]]
        if op[row] == FREE:
            link = pool.unused
            if link:
                pool.unused = links[link].next
            else:
                if pool.used + 1 >= links.shape[0]:
                    return FULL, row
                pool.used += 1
                link = pool.used
            links[link].number, links[link].next, heads[process] = own[row], heads[process], link
    return DONE, op.shape[0]


class NumberingApart:
    """Numbers the blocks of each process from 0. In the trace, all processes share one numbering."""

    def __init__(self, processes: int) -> None:
        self.counts = np.zeros(processes, np.int64)
        """By process, one more than the highest number so far."""
        self._numbers = np.zeros(1024, np.int64)
        self._heads, self._links = np.zeros(processes, np.int64), np.zeros(1024, _LINK)
        self._state = np.zeros(1, _LINKS)

    def number(self, events: Events, owner: np.ndarray) -> np.ndarray:
        """Returns the numbers (uint32) of the next rows' blocks; `owner` is the process (int64) of each row."""
        self._numbers, op, block = with_room(self._numbers, events.highest_block + 1), events.op, events.block
        own = np.empty(op.shape[0], np.uint32)
        call_with_room(
            lambda row: _number_apart(
                op, block, owner, row, own, self._numbers, self.counts, self._heads, self._links, self._state
            ),
            self._double,
            0,
        )
        return own

    def _double(self, _row: int) -> None:
        self._links = with_room(self._links, self._links.shape[0] + 1)


def allocated_twice(op: int, block: int) -> str:
    """Returns the message for an allocation of a live block."""
    return f"{Op(op).name.lower()} of block {block}, which is live; free it first or give the new block another number"


def not_live(op: int, block: int) -> str:
    """Returns the message for a free or realloc of a block that is not live."""
    advice = "it was freed before or never allocated"
    return f"{Op(op).name.lower()} of block {block}, which is not live: {advice}" + (
        "; write realloc(NULL, size) as a malloc" if op == Op.REALLOC else ""
    )
