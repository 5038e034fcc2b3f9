"""Reads a trace once, in a thread, for one reader or for several that simulate it side by side.

While readers simulate a batch, the thread decodes and validates the next ones: pyarrow and kernels release the GIL.
Each reader receives the same batches in the same order, and then the error of the trace, if it has one. At most AHEAD
batches wait for the slowest reader, so memory does not depend on the length of the trace.

Threads synchronize with queues in C only. An interrupt can leave a lock of `threading` locked, and other threads would
then wait forever.
"""

from _thread import start_new_thread
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

from replay.trace.events import Events
from replay.trace.metadata import Metadata
from replay.trace.traces import MemoryTrace, Trace

AHEAD = 2


class ReadingEnded(BaseException):
    """The block of `read_ahead` has ended, so the reader gets no more batches."""


class SharedTrace:
    """A trace whose first reading comes from the thread. Later readings read the trace itself."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._is_used = self._is_closed = False
        self._batches: SimpleQueue[Events | BaseException | None] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(AHEAD):
            self._room.put(None)

    @property
    def metadata(self) -> Metadata:
        return self._trace.metadata

    @property
    def duration_ns(self) -> int | None:
        return self._trace.duration_ns

    @property
    def events_total(self) -> int | None:
        return self._trace.events_total

    def batches(self) -> Iterator[Events]:
        if self._is_used:
            yield from self._trace.batches()
            return
        self._is_used = True
        try:
            while (batch := self._batches.get()) is not None:
                if self._is_closed:
                    raise ReadingEnded
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
                del batch  # else it stays in memory while the reader waits for the next one
                self._room.put(None)
        finally:
            self.close()

    def put(self, batch: Events | BaseException | None) -> bool:
        """Hands a batch, an error, or None for the end to the reader; waits until it has room for a batch.

        Returns whether it reads on.
        """
        if isinstance(batch, Events) and not self._is_closed:
            self._room.get()
        if not self._is_closed:
            self._batches.put(batch)
        return not self._is_closed

    def close(self) -> None:
        """Ends the reading: the thread no longer waits for this reader, nor this reader for the thread."""
        self._is_closed = True
        self._room.put(None)
        self._batches.put(None)


@contextmanager
def read_ahead(trace: Trace, readers: int = 1) -> Iterator[list[Trace]]:
    """Yields the trace for each reader, read by one thread, which ends with the block.

    A trace in memory, or one that is already read ahead, is yielded itself.
    """
    if isinstance(trace, MemoryTrace | SharedTrace):
        yield [trace] * readers
        return
    shared = [SharedTrace(trace) for _ in range(readers)]
    ended: SimpleQueue[None] | None = None
    try:
        ended = _start(trace, shared)
        yield list(shared)
    finally:
        for each in shared:
            each.close()
        if ended is not None:
            ended.get()


def _start(trace: Trace, shared: list[SharedTrace]) -> "SimpleQueue[None]":
    """Starts the thread; returns the queue into which it puts an entry at its end."""
    ended: SimpleQueue[None] = SimpleQueue()

    def read() -> None:
        end: BaseException | None = None
        try:
            _read(trace, shared)
        except BaseException as error:  # the readers raise it
            end = error
        finally:
            for each in shared:
                each.put(end)
            ended.put(None)

    start_new_thread(read, ())
    return ended


def _read(trace: Trace, shared: list[SharedTrace]) -> None:
    """Hands each batch to all readers, until none reads on."""
    batches = trace.batches()
    try:
        for events in batches:
            reads_on = [each.put(events) for each in shared]
            if not any(reads_on):
                break
            del events
    finally:
        with suppress(AttributeError):  # only generators have `close`
            batches.close()  # type: ignore[attr-defined]
