"""The live blocks at a point of a trace, with the data to allocate or free them there. Tables are by block number."""

import numpy as np

from replay.jit.arrays import extend, record, with_room
from replay.jit.compiling import entry
from replay.trace import NO_ALIGNMENT, Events, Op, Trace
from replay.trace.block_ops import FREE, MEMALIGN, allocates, concerns_block, requests
from replay.trace.editing import KEPT
from replay.trace.events import nulls
from replay.trace.processes import processes_of

_BLOCK = record("bytes", "domain", "thread")
"""A live block: its current size; domain and thread of its allocation."""


@entry
def _follow(
    op: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    domain: np.ndarray,
    thread: np.ndarray,
    first_row: int,
    allocation_rows: np.ndarray,
    blocks: np.ndarray,
) -> None:
    """Applies events to `allocation_rows`, the row of each live block's allocation or -1, and `blocks` (_BLOCK); both
    change in place."""
    for row in range(op.shape[0]):
        if not concerns_block(op[row]):
            continue
        number = block[row]
        if op[row] == FREE:
            allocation_rows[number] = -1
            continue
        blocks[number].bytes = size[row]
        if allocates(op[row]):
            allocation_rows[number] = first_row + row
            blocks[number].domain, blocks[number].thread = domain[row], thread[row]


class LiveBlocks:
    """Follows the live blocks of one trace, batch by batch."""

    def __init__(self, trace: Trace) -> None:
        self._processes = processes_of(trace)
        self._rows = 0
        self._allocation_rows = np.full(1024, -1, np.int64)
        self._blocks = np.zeros(1024, _BLOCK)
        self._optional: dict[str, np.ndarray] = {}
        """Optional columns by block number: the values of the block's latest allocation or realloc."""
        self._main_threads: dict[int, int] = {}
        """By process, the thread of its first event with a block."""
        self._ended: set[int] = set()
        """Threads whose last event so far is a thread end."""

    def follow(self, events: Events) -> None:
        """Applies the next batch of events."""
        self._reserve(events.highest_block + 1)
        _follow(
            events.op, events.block, events.size, events.domain, events.thread,
            self._rows, self._allocation_rows, self._blocks,
        )  # fmt: skip
        self._rows += events.rows
        self._follow_optional(events)
        self._follow_threads(events)

    def _follow_optional(self, events: Events) -> None:
        rows = requests(events.op)
        for name, column in events.keep_optional(*KEPT).optional().items():
            if name not in self._optional:
                self._optional[name] = nulls(name, self._allocation_rows.shape[0])
            self._optional[name][events.block[rows]] = column[
                rows
            ]  # of several rows of a block, the last one is stored

    def _follow_threads(self, events: Events) -> None:
        missing = set(range(max(1, len(self._processes.table)))) - set(self._main_threads)
        threads = events.thread[concerns_block(events.op)] if missing else events.thread[:0]
        owner = self._processes.owners(threads)
        for process in missing & set(owner.tolist()):
            self._main_threads[process] = int(threads[(owner == process).argmax()])
        self._ended -= set(events.thread[np.isin(events.thread, list(self._ended))].tolist())
        for row in np.flatnonzero(events.op == Op.THREAD_END).tolist():
            if not (events.thread[row + 1 :] == events.thread[row]).any():
                self._ended.add(int(events.thread[row]))

    def events(self, op: Op, time_ns: int) -> Events:
        """Returns an allocation or a free of each live block at this time, in the order of their allocation.

        The events are of the thread that allocated the block or, if it has ended, of the main thread of its process. A
        block is allocated with a memalign if its latest allocation or realloc was one, else with a malloc. Frees have
        nulls in the optional columns.
        """
        block = np.flatnonzero(self._allocation_rows >= 0)
        block = block[np.argsort(self._allocation_rows[block])]
        blocks = self._blocks[block]
        size, domain, thread = blocks["bytes"], blocks["domain"], blocks["thread"]
        for ended in self._ended & set(thread.tolist()):
            thread[thread == ended] = self._main_threads[int(self._processes.owners(np.array([ended], np.uint32))[0])]
        allocate = op == Op.MALLOC
        rows = block.shape[0]
        optional = {name: column[block] if allocate else nulls(name, rows) for name, column in self._optional.items()}
        ops = np.full(rows, int(op), np.uint8)
        if "alignment" in optional:
            ops[optional["alignment"] != NO_ALIGNMENT] = MEMALIGN
        return Events(
            time_ns=np.full(rows, time_ns, np.int64),
            thread=thread.astype(np.uint32),
            op=ops,
            domain=domain.astype(np.uint8),
            block=block.astype(np.uint32),
            size=size.copy() if allocate else np.zeros(rows, np.int64),
            **optional,
        )

    def _reserve(self, blocks: int) -> None:
        self._allocation_rows = with_room(self._allocation_rows, blocks, fill=-1)
        self._blocks = with_room(self._blocks, blocks)
        for name, column in self._optional.items():
            self._optional[name] = extend(column, self._allocation_rows.shape[0], fill=int(nulls(name, 1)[0]))
