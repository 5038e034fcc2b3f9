"""Finds the process of each event by its thread, in the table of processes of the metadata.

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
"""Threads are found by index if all their numbers are lower, else by binary search. Thread ids of Linux are lower."""
_NO_PROCESS = (-1, -1, 0)
"""First row of the lookup table: thread, process and number within the process of a thread that is not found."""


def mistake_in(metadata: Metadata) -> str | None:
    """Returns a message about the first mistake in the table of processes, or None."""
    processes = metadata.processes
    if processes and metadata.process != ProcessMemory():
        return "`process` and `processes` exclude each other; write the memory of each process as its `memory`"
    names = Counter(process.name for process in processes)
    threads = Counter(chain.from_iterable(process.threads for process in processes))
    for name, count in names.items():
        if count > 1:
            return f"{count} processes have the name {name!r}"
    for thread, count in threads.items():
        if count > 1:
            return f"thread {thread} is listed {count} times"
    for process in processes:
        memory = process.memory
        if not process.name:
            return "a process has no name"
        if min(memory.static_bytes, memory.stack_bytes, memory.stack_resident_bytes) < 0:
            return f"negative bytes in process {process.name!r}"
        for thread in process.threads:
            if not 0 <= thread <= _THREAD_LAST:
                return f"thread {thread} of process {process.name!r} is not a UInt32"
    return None


def refuse_processes(trace: Trace, path: object, reason: str) -> None:
    """Raises a TraceError with this reason if the trace has a table of processes."""
    if processes := trace.metadata.processes:
        named = f"{processes[0].name!r}{' and others' if processes[1:] else ''}"
        message = (
            f"has a table of processes ({named}), and {reason}: select one with `replay trace filter --process NAME`"
        )
        raise TraceError(message, path=path)


class Processes:
    """Finds processes by thread. `read` returns the table. It is called again if a thread is not found, because the
    table of a trace may grow while it is read."""

    def __init__(self, read: Callable[[], tuple[Process, ...]]) -> None:
        self._read = read
        self._read_table()

    def _read_table(self) -> None:
        self.table = self._read()
        rows = [
            (thread, number, own_number)
            for number, process in enumerate(self.table)
            for own_number, thread in enumerate(process.threads)
        ]
        self._threads, self._processes, self._own_numbers = np.array([_NO_PROCESS, *sorted(rows)], np.int64).T.copy()
        highest = int(self._threads[-1])
        self._index = np.zeros(highest + 2 if highest < _INDEXED else 0, np.uint32)
        """The row of the lookup table for each thread number; the last entry is for all numbers that are not in it."""
        if self._index.shape[0]:
            self._index[self._threads[1:]] = np.arange(1, self._threads.shape[0])

    def find(self, thread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each thread (uint32) the number of its process, -1 if unknown, and the thread's number in it
        (int64)."""
        at: np.ndarray
        if self._index.shape[0]:
            at = self._index.take(thread, mode="clip")
        else:
            last = np.searchsorted(self._threads, thread, side="right") - 1
            at = np.where(self._threads[last] == thread, last, 0)
        return self._processes[at], self._own_numbers[at]

    def of(self, thread: np.ndarray, first_row: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Does the same as `find`, but raises a TraceError for an unknown thread; `first_row` is the row of the first
        one."""
        processes, own_numbers = self.find(thread)
        if (processes < 0).any():
            self._read_table()
            processes, own_numbers = self.find(thread)
        if (processes < 0).any():
            row = int((processes < 0).argmax())
            raise TraceError(unknown_thread(int(thread[row])), row=first_row + row)
        return processes, own_numbers

    def owners(self, thread: np.ndarray) -> np.ndarray:
        """Returns the number of each row's process, 0 if the trace has no table of processes."""
        return self.of(thread)[0] if self.table else np.zeros(thread.shape[0], np.int64)


def processes_of(trace: Trace) -> Processes:
    """Returns the processes of a trace, as far as it was read."""
    return Processes(lambda: trace.metadata.processes)


def unknown_thread(thread: int) -> str:
    """Returns the message for an event of a thread that no process has."""
    return f"thread {thread} belongs to none of the processes in the metadata"
