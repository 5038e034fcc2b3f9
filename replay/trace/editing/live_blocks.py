"""The live blocks at a point of a trace, with all that allocating them again takes: tables by block number."""

import numpy as np

from replay.jit.arrays import extend, record, with_room
from replay.jit.compiling import entry
from replay.trace import NO_ALIGNMENT, Events, Op, Trace
from replay.trace.block_ops import FREE, MEMALIGN, allocates, concerns_block, requests
from replay.trace.editing import KEPT
from replay.trace.events import nulls
from replay.trace.processes import processes_of

_BLOCK = record("bytes", "domain", "thread")
"""Of a live block: its size now; domain and thread of its allocation."""


@entry
def _follow(
    op: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    domain: np.ndarray,
    thread: np.ndarray,
    first_row: int,
    born: np.ndarray,
    now: np.ndarray,
) -> None:
    """Follows events. Changes in place `born`, the row of a live block's allocation or -1, and `now` (_BLOCK)."""
    for row in range(op.shape[0]):
        if not concerns_block(op[row]):
            continue
        number = block[row]
        if op[row] == FREE:
            born[number] = -1
            continue
        now[number].bytes = size[row]
        if allocates(op[row]):
            born[number] = first_row + row
            now[number].domain, now[number].thread = domain[row], thread[row]


class Living:
    """Follows the lives of one trace's blocks, batch by batch."""

    def __init__(self, trace: Trace) -> None:
        self._processes = processes_of(trace)
        self._rows = 0
        self._born = np.full(1024, -1, np.int64)
        self._now = np.zeros(1024, _BLOCK)
        self._optional: dict[str, np.ndarray] = {}
        """Columns that the events have, by block number: values of its latest allocation or realloc."""
        self._main: dict[int, int] = {}
        """The main thread of each process: that of its first block."""
        self._ended: set[int] = set()
        """Threads that were at their end last."""

    def follow(self, events: Events) -> None:
        """Takes in events that follow those before."""
        self._reserve(events.highest_block + 1)
        _follow(events.op, events.block, events.size, events.domain, events.thread, self._rows, self._born, self._now)
        self._rows += events.rows
        self._follow_optional(events)
        self._follow_threads(events)

    def _follow_optional(self, events: Events) -> None:
        rows = requests(events.op)
        for name, column in events.keep_optional(*KEPT).optional().items():
            if name not in self._optional:
                self._optional[name] = nulls(name, self._born.shape[0])
            self._optional[name][events.block[rows]] = column[rows]  # of several rows of a block, the last one counts

    def _follow_threads(self, events: Events) -> None:
        missing = set(range(max(1, len(self._processes.table)))) - set(self._main)
        at_work = events.thread[concerns_block(events.op)] if missing else events.thread[:0]
        owner = self._processes.owners(at_work)
        for process in missing & set(owner.tolist()):
            self._main[process] = int(at_work[(owner == process).argmax()])
        self._ended -= set(events.thread[np.isin(events.thread, list(self._ended))].tolist())
        for row in np.flatnonzero(events.op == Op.THREAD_END).tolist():
            if not (events.thread[row + 1 :] == events.thread[row]).any():
                self._ended.add(int(events.thread[row]))

    def events(self, op: Op, time_ns: int) -> Events:
        """An allocation or a free of every live block, in the order of birth, at one time, by the threads of birth;
        where such a thread has ended, by the main one of its process. Frees have nulls in the optional columns.

        A block is allocated by a memalign if its latest allocation or realloc was one, else by a malloc."""
        block = np.flatnonzero(self._born >= 0)
        block = block[np.argsort(self._born[block])]
        now = self._now[block]
        size, domain, thread = now["bytes"], now["domain"], now["thread"]
        for ended in self._ended & set(thread.tolist()):
            thread[thread == ended] = self._main[int(self._processes.owners(np.array([ended], np.uint32))[0])]
        begins = op == Op.MALLOC
        rows = block.shape[0]
        optional = {name: column[block] if begins else nulls(name, rows) for name, column in self._optional.items()}
        ops = np.full(rows, int(op), np.uint8)
        if "alignment" in optional:
            ops[optional["alignment"] != NO_ALIGNMENT] = MEMALIGN
        return Events(
            time_ns=np.full(rows, time_ns, np.int64),
            thread=thread.astype(np.uint32),
            op=ops,
            domain=domain.astype(np.uint8),
            block=block.astype(np.uint32),
            size=size.copy() if begins else np.zeros(rows, np.int64),
            **optional,
        )

    def _reserve(self, blocks: int) -> None:
        self._born, self._now = with_room(self._born, blocks, fill=-1), with_room(self._now, blocks)
        for name, column in self._optional.items():
            self._optional[name] = extend(column, self._born.shape[0], fill=int(nulls(name, 1)[0]))
