"""Counts the requests of each Python type in a recording with types.

The type of a block is known when it is freed, or at the end of the program. Until then, its requests are counted for
the block.
"""

import numpy as np

from replay.jit.arrays import extend, record, with_room
from replay.jit.compiling import entry
from replay.trace.block_numbering import ThreadNumbering
from replay.trace.block_ops import FREE, allocates, concerns_block, requests
from replay.trace.columns import NO_TYPE, Op
from replay.trace.events import Events
from replay.trace.traces import Trace

_GC_START, _GC_END, _LIVE_OBJECT = int(Op.GC_START), int(Op.GC_END), int(Op.LIVE_OBJECT)
_NO_TYPE = NO_TYPE
_BLOCK = record("calls", "bytes")
CALLS, BYTES, COLLECTED, LIVE = range(4)
"""Columns of the counts."""
_GENERATIONS = 3


@entry
def _count(
    op: np.ndarray,
    thread: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    type_: np.ndarray,
    blocks: np.ndarray,
    counts: np.ndarray,
    generations: np.ndarray,
    collecting: np.ndarray,
) -> None:
    """Counts a batch. Changes the last four arrays in place. A collection frees what its thread frees until it ends."""
    for row in range(op.shape[0]):
        kind, number = op[row], block[row]
        if kind == _GC_START:
            collecting[thread[row]] = True
            if 0 <= size[row] < generations.shape[0]:
                generations[size[row]] += 1
        elif kind == _GC_END:
            collecting[thread[row]] = False
        if not (concerns_block(kind) or (kind == _LIVE_OBJECT and number < blocks.shape[0])):
            continue
        entry_ = blocks[number]
        if allocates(kind):
            entry_.calls, entry_.bytes = 0, 0
        if requests(kind):
            entry_.calls += 1
            entry_.bytes += size[row]
        elif type_[row] != _NO_TYPE:
            total = counts[type_[row]]
            total[CALLS] += entry_.calls
            total[BYTES] += entry_.bytes
            if kind == FREE:
                total[COLLECTED] += collecting[thread[row]]
            else:
                total[LIVE] += 1
                entry_.calls, entry_.bytes = 0, 0


class TypedRequests:
    """Counts of each type: requests, their bytes, objects freed by collections, live objects at the end."""

    def __init__(self) -> None:
        self.counts = np.zeros((0, 4), np.int64)
        """By type: CALLS, BYTES, COLLECTED, LIVE."""
        self._blocks = np.zeros(1024, _BLOCK)
        self._generations = np.zeros(_GENERATIONS, np.int64)
        self._threads, self._collecting = ThreadNumbering(), np.zeros(1, bool)

    def feed(self, events: Events, types: int) -> None:
        """Counts the next batch. `types` is the number of types in the metadata."""
        if events.type is None:
            return
        self.counts = extend(self.counts, types)
        self._blocks = with_room(self._blocks, events.highest_block + 1)
        thread = self._threads.number(events.thread, events.highest_thread)
        self._collecting = extend(self._collecting, self._threads.count)
        _count(
            events.op, thread, events.block, events.size, events.type,
            self._blocks, self.counts, self._generations, self._collecting,
        )  # fmt: skip

    @property
    def collections(self) -> dict[int, int]:
        """The number of collections, by generation; empty without types."""
        return {index: int(count) for index, count in enumerate(self._generations) if count}


def types_of_blocks(trace: Trace, row: int, blocks: np.ndarray) -> np.ndarray:
    """Returns the type of each block, all of which are live before a row of the trace: as it is noted when the block is
    freed, or at the end of the program; NO_TYPE if it is unknown."""
    return ends_of_blocks(trace, row, blocks)[0]


def ends_of_blocks(trace: Trace, row: int, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same, and whether each block is an object that lives at the end, and that the collector does not
    track there."""
    types = np.full(int(blocks.max(initial=0)) + 1, NO_TYPE, np.uint32)
    is_pending, is_untracked = np.zeros(len(types), bool), np.zeros(len(types), bool)
    is_pending[blocks] = True
    first = 0
    for events in trace.batches():
        start, first = row - first, first + events.rows
        if events.type is None or first <= row:
            continue
        ends = np.flatnonzero((events.op == FREE) | (events.op == _LIVE_OBJECT))
        ends = ends[(ends >= start) & (events.block[ends] < len(types))]
        ends = ends[is_pending[events.block[ends]]]
        numbers, places = np.unique(events.block[ends], return_index=True)
        ends = ends[places]
        types[numbers] = events.type[ends]
        is_untracked[numbers] = (events.op[ends] == _LIVE_OBJECT) & (events.size[ends] == 0)
        is_pending[numbers] = False
    return types[blocks], is_untracked[blocks]


@entry
def _note_types(
    op: np.ndarray, block: np.ndarray, type_: np.ndarray, first_row: int, rows: np.ndarray, types: np.ndarray
) -> None:
    """Writes the types of blocks that a batch frees, or that live at the end, to the rows of their allocations.

    `rows`: the row of the last allocation of each block. Changes the last two arrays in place.
    """
    for at in range(op.shape[0]):
        kind, number = op[at], np.uint64(block[at])
        if allocates(kind):
            rows[number] = first_row + at
        elif (kind == FREE or (kind == _LIVE_OBJECT and number < rows.shape[0])) and type_[at] != _NO_TYPE:
            types[rows[number]] = type_[at]


def types_of_allocations(trace: Trace) -> np.ndarray:
    """Returns for each row of the trace the type of the block that it allocates; NO_TYPE if it is unknown."""
    types, rows, first_row = np.full(1024, NO_TYPE, np.uint32), np.zeros(1024, np.int64), 0
    for events in trace.batches():
        types = with_room(types, first_row + events.rows, fill=NO_TYPE)
        if events.type is not None:
            rows = with_room(rows, events.highest_block + 1)
            _note_types(events.op, events.block, events.type, first_row, rows, types)
        first_row += events.rows
    return types[:first_row]
