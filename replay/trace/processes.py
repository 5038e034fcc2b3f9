"""Which process each event of a trace is of: the table in its metadata, looked up by thread.

Processes are numbered in the order of the table, and the threads of each from 0.
"""

from collections import Counter
from collections.abc import Callable
from itertools import chain

import numpy as np

from replay.support.errors import TraceError
from replay.trace.metadata import Metadata, Process, ProcessMemory
from replay.trace.traces import Trace

_THREAD_LAST = (1 << 32) - 1
_INDEXED = 1 << 22
"""Linux numbers threads below this."""
_NOBODY = (-1, -1, 0)
"""The thread, process and place that begin the table."""


def mistake_in(metadata: Metadata) -> str | None:
    """What is wrong with the table of processes, if anything."""
    processes = metadata.processes
    if processes and metadata.process != ProcessMemory():
        return "`process` is of a trace of one process; with several, each has a `memory` of its own"
    names = Counter(process.name for process in processes)
    threads = Counter(chain.from_iterable(process.threads for process in processes))
    for name, count in names.items():
        if count > 1:
            return f"{count} processes are called {name!r}"
    for thread, count in threads.items():
        if count > 1:
            return f"thread {thread} stands there {count} times"
    for process in processes:
        memory = process.memory
        if not process.name:
            return "a process has no name"
        if min(memory.static_bytes, memory.stack_bytes, memory.stack_resident_bytes) < 0:
            return f"bytes below 0, of process {process.name!r}"
        for thread in process.threads:
            if not 0 <= thread <= _THREAD_LAST:
                return f"thread {thread} of process {process.name!r} is not a UInt32"
    return None


def refuse_processes(trace: Trace, path: object, reason: str) -> None:
    """Raises a TraceError with the reason given if the trace has several processes."""
    if processes := trace.metadata.processes:
        named = f"{processes[0].name!r}{' and others' if processes[1:] else ''}"
        message = f"names processes ({named}), and {reason}: take one out with `replay trace filter --process NAME`"
        raise TraceError(message, path=path)


class Processes:
    """Finds processes by thread. `read` returns the table; it is called again where the table may have grown."""

    def __init__(self, read: Callable[[], tuple[Process, ...]]) -> None:
        self._read = read
        self._look()

    def _look(self) -> None:
        self.table = self._read()
        rows = [
            (thread, number, place)
            for number, process in enumerate(self.table)
            for place, thread in enumerate(process.threads)
        ]
        self._threads, self._numbers, self._places = np.array([_NOBODY, *sorted(rows)], np.int64).T.copy()
        highest = int(self._threads[-1])
        self._index = np.zeros(highest + 2 if highest < _INDEXED else 0, np.uint32)
        """The row of the table for each low thread number; the last entry is of no process."""
        if self._index.shape[0]:
            self._index[self._threads[1:]] = np.arange(1, self._threads.shape[0])

    def find(self, thread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each row (uint32) the number of its process, -1 for none, and that of the thread in it (int64)."""
        at: np.ndarray
        if self._index.shape[0]:
            at = self._index.take(thread, mode="clip")
        else:
            last = np.searchsorted(self._threads, thread, side="right") - 1
            at = np.where(self._threads[last] == thread, last, 0)
        return self._numbers[at], self._places[at]

    def of(self, thread: np.ndarray, first_row: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The same, but every thread must be known; `first_row` is that of the first in the trace."""
        numbers, places = self.find(thread)
        if (numbers < 0).any():
            self._look()
            numbers, places = self.find(thread)
        if (numbers < 0).any():
            row = int((numbers < 0).argmax())
            raise TraceError(unknown_thread(int(thread[row])), row=first_row + row)
        return numbers, places

    def owners(self, thread: np.ndarray) -> np.ndarray:
        """Of each row the number of its process; 0 where there is no table."""
        return self.of(thread)[0] if self.table else np.zeros(thread.shape[0], np.int64)


def processes_of(trace: Trace) -> Processes:
    """Those of a trace, as far as it is read."""
    return Processes(lambda: trace.metadata.processes)


def unknown_thread(thread: int) -> str:
    """What to say of an event by it."""
    return f"thread {thread} is of none of the processes that the metadata names"
