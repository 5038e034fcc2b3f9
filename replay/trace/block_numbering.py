"""Dense numbers for blocks that are named by addresses or by numbers with gaps, and for threads.

A hash table, kept in two arrays, leads from the key of every live block to its number: open addressing, a power of two
of slots, at most half of them taken, and removal that moves later keys back, so that nothing but live blocks is in it.
`numbers` holds -1 in a slot that is free. The rule by which numbers are given is that of `replay.trace`.
"""

import numpy as np

from replay.jit.compiling import entry, inlined, leaf
from replay.support.errors import TraceError
from replay.trace.columns import Op
from replay.trace.events import Events

_CALLOC, _FREE = int(Op.CALLOC), int(Op.FREE)
_OK, _FULL, _LIVE, _DEAD = range(4)


@leaf
def take_number(free_numbers: np.ndarray, counts: np.ndarray) -> int:
    """The number of a new block; changes `counts` in place.

    `free_numbers` (int64) is a stack of released numbers that the caller keeps at least `counts[0]` plus the rows of
    a batch long; `counts` (int64[2]) holds how many numbers were ever used and the height of the stack.
    """
    if counts[1] > 0:
        counts[1] -= 1
        return free_numbers[counts[1]]
    counts[0] += 1
    return counts[0] - 1


@leaf
def release_number(free_numbers: np.ndarray, counts: np.ndarray, number: int) -> None:
    """Puts a dead block's number on top of the stack, in place; see `take_number`."""
    free_numbers[counts[1]] = number
    counts[1] += 1


@inlined
def _home(key: int, mask: int) -> int:
    """The slot where a key belongs; products of 32 by 31 bits, so that no int64 overflows."""
    low = ((key & 0xFFFFFFFF) * 0x5BD1E995) >> 16
    high = (((key >> 32) & 0xFFFFFFFF) * 0x5BD1E995) >> 16
    return (low ^ high) & mask


@inlined
def find_slot(key: int, keys: np.ndarray, numbers: np.ndarray) -> int:
    """The slot that holds `key`, or the free one where it would go."""
    mask = keys.shape[0] - 1
    slot = _home(key, mask)
    while numbers[slot] >= 0 and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@leaf
def clear_slot(slot: int, keys: np.ndarray, numbers: np.ndarray) -> None:
    """Frees a slot in place, moving back every later key that would no longer be found."""
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
    """Puts every live key into the new, empty table, in place."""
    for slot in range(keys.shape[0]):
        if numbers[slot] >= 0:
            new_slot = find_slot(keys[slot], new_keys, new_numbers)
            new_keys[new_slot], new_numbers[new_slot] = keys[slot], numbers[slot]


def doubled(keys: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same table in twice as many slots."""
    new_keys = np.zeros(2 * keys.shape[0], np.int64)
    new_numbers = np.full(new_keys.shape[0], -1, np.int64)
    _move_all(keys, numbers, new_keys, new_numbers)
    return new_keys, new_numbers


def with_room(free_numbers: np.ndarray, length: int) -> np.ndarray:
    """The same stack of numbers with room for that many, and some to come."""
    if length <= free_numbers.shape[0]:
        return free_numbers
    grown = np.zeros(2 * length, np.int64)
    grown[: free_numbers.shape[0]] = free_numbers
    return grown


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
    """Writes `block` from row `start` on; gives a status and the row it stopped at. The rest changes in place too."""
    for row in range(start, op.shape[0]):
        if op[row] > _FREE:
            block[row] = 0
            continue
        slot = find_slot(key[row], keys, numbers)
        if op[row] <= _CALLOC:
            if numbers[slot] >= 0:
                return _LIVE, row
            if 2 * (counts[0] - counts[1]) >= keys.shape[0]:
                return _FULL, row
            keys[slot] = key[row]
            numbers[slot] = take_number(free_numbers, counts)
        elif numbers[slot] < 0:
            return _DEAD, row
        block[row] = numbers[slot]
        if op[row] == _FREE:
            release_number(free_numbers, counts, numbers[slot])
            clear_slot(slot, keys, numbers)
    return _OK, op.shape[0]


class Numbering:
    """Numbers the blocks of one trace, batch by batch; `path` is named in errors."""

    def __init__(self, path: object = None) -> None:
        self._path = path
        self._rows = 0
        self._keys = np.zeros(1024, np.int64)
        self._numbers = np.full(1024, -1, np.int64)
        self._free_numbers = np.zeros(1024, np.int64)
        self._counts = np.zeros(2, np.int64)

    def number(self, op: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Block numbers (uint32) for ops (uint8) on blocks named by keys (uint64); a realloc keeps its key."""
        rows = op.shape[0]
        block = np.empty(rows, np.uint32)
        self._free_numbers = with_room(self._free_numbers, int(self._counts[0]) + rows)
        row = 0
        while True:
            status, row = _number_events(
                op, key.view(np.int64), row, block, self._keys, self._numbers, self._free_numbers, self._counts
            )  # fmt: skip
            if status == _OK:
                break
            if status != _FULL:
                say = allocated_twice if status == _LIVE else not_live
                raise TraceError(say(int(op[row]), int(key[row])), path=self._path, row=self._rows + row)
            self._double()
        self._rows += rows
        return block

    def _double(self) -> None:
        self._keys, self._numbers = doubled(self._keys, self._numbers)


THREADS_KEPT = 1024
"""Threads of lower numbers keep theirs."""


class ThreadNumbering:
    """Numbers the threads of one trace so densely that tables can be indexed by them."""

    def __init__(self) -> None:
        self._others: dict[int, int] = {}
        self.count = 1
        """All numbers so far are below."""

    def number(self, thread: np.ndarray, highest: int) -> np.ndarray:
        """The numbers (uint32) of these threads (uint32), row by row; none is above `highest`."""
        if highest < THREADS_KEPT:
            self.count = max(self.count, highest + 1)
            return thread
        distinct, places = np.unique(thread, return_inverse=True)
        numbers = np.array([self._number(name) for name in distinct.tolist()], np.uint32)
        self.count = max(self.count, int(numbers.max()) + 1)
        return numbers[places]

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
    lists: np.ndarray,
    links: np.ndarray,
) -> int:
    """Writes into `own` what each block is for its process; gives the row it stopped at. The rest changes in place too.

    `numbers`: of live blocks. Numbers that a process has released are a list of `links`, each with the number and the
    next link; lists[process] is its first one, lists[-1] that of links in no list, lists[-2] how many ever were in one.
    Link 0 is none.
    """
    for row in range(start, op.shape[0]):
        own[row] = 0
        if op[row] > _FREE:
            continue
        process = owner[row]
        if op[row] <= _CALLOC:
            link = lists[process]
            if link:
                numbers[block[row]] = links[link, 0]
                lists[process], links[link, 1], lists[-1] = links[link, 1], lists[-1], link
            else:
                numbers[block[row]] = counts[process]
                counts[process] += 1
        own[row] = numbers[block[row]]
        if op[row] == _FREE:
            link = lists[-1]
            if link:
                lists[-1] = links[link, 1]
            else:
                if lists[-2] + 1 >= links.shape[0]:
                    return row
                lists[-2] += 1
                link = lists[-2]
            links[link, 0], links[link, 1], lists[process] = own[row], lists[process], link
    return op.shape[0]


class NumberingApart:
    """Numbers the blocks of each process by themselves, where a trace has them in one numbering."""

    def __init__(self, processes: int) -> None:
        self.counts = np.zeros(processes, np.int64)
        """All numbers so far of a process are below."""
        self._numbers = np.zeros(1024, np.int64)
        self._lists, self._links = np.zeros(processes + 2, np.int64), np.zeros((1024, 2), np.int64)

    def number(self, events: Events, owner: np.ndarray) -> np.ndarray:
        """The numbers (uint32) of the next rows' blocks; `owner` is the process (int64) of each row."""
        self._numbers, op, block = with_room(self._numbers, events.highest_block + 1), events.op, events.block
        own = np.empty(op.shape[0], np.uint32)
        row = 0
        while True:
            row = _number_apart(op, block, owner, row, own, self._numbers, self.counts, self._lists, self._links)
            if row == op.shape[0]:
                return own
            self._links = np.append(self._links, np.zeros_like(self._links), axis=0)


def allocated_twice(op: int, block: int) -> str:
    """What to say of a malloc or calloc of a live block."""
    return f"{Op(op).name.lower()} of block {block}, which is live; free it first or give the new block another number"


def not_live(op: int, block: int) -> str:
    """What to say of a free or realloc of nothing."""
    advice = "it was freed before or never allocated"
    return f"{Op(op).name.lower()} of block {block}, which is not live: {advice}" + (
        "; write a realloc of nothing as a malloc" if op == Op.REALLOC else ""
    )
