"""Merges traces: interleaves their events by time. Threads, blocks and phases of the traces stay separate.

The result is one process with the threads of all traces, or it keeps the processes of each trace.

Each trace starts at its offset from time 0. Events at the same time are in the order of the traces. Threads get new
numbers in the order of their first events. The name of a phase is prefixed with the name of its trace, except
malloc_trim, which is a call. Equal call sites are merged.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np

from replay.trace import COLUMNS, TRIM_MARK, Events, Metadata, Op, Process, ProcessMemory, Trace, joined
from replay.trace.editing import KEPT, EditedTrace, KeyedEvents, edited, refuse_too_long
from replay.trace.processes import processes_of
from replay.trace.provenance import common_provenance

_NUMBER_BITS = 32
"""The low bits of a key: the number of a block, a thread or a call site. The high bits are the index of its part."""


@dataclass(frozen=True)
class Part:
    """A trace that is merged with others."""

    trace: Trace
    name: str
    """Prefix for the names of its phases and processes; empty for no prefix."""
    offset_ns: int = 0


def merged(parts: list[Part], command: str, *, as_processes: bool = False) -> EditedTrace:
    """Returns the traces merged into one process, or with their processes kept apart."""
    numbering = _Numbering(parts)
    processes = numbering.processes if as_processes else tuple
    return EditedTrace(lambda: _merge(parts, numbering), lambda: numbering.metadata(command, processes()))


class _Numbering:
    """Numbers threads, phases and call sites of all parts together, in the order of their first events."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self.start()

    def start(self) -> None:
        """Removes all numbers."""
        self._threads: dict[int, int] = {}
        self._phases: dict[str, int] = {}
        self._tables: dict[str, dict[object, int]] = {name: {} for name in KEPT if COLUMNS[name].table}
        """By column that has indexes of a table of the metadata: the new number of each entry."""

    def joined(self, events: Events, part: np.ndarray) -> Events:
        """Returns the events with the common numbers; `part` is the index of each row's part. Changes `events` in
        place."""
        for row in np.flatnonzero(events.op == Op.MARK):
            events.size[row] = self._phase(self._parts[part[row]], int(events.size[row]))
        own = part << _NUMBER_BITS
        thread = _mapped(own | events.thread, lambda key: self._threads.setdefault(key, len(self._threads)))
        indexes = {name: column for name, column in events.optional().items() if name in self._tables}
        for name, column in indexes.items():
            column[:] = _mapped(own | column, partial(self._entry, name))
        return events._replace(thread=thread)

    def _phase(self, part: Part, phase: int) -> int:
        name = part.trace.metadata.phases[phase]
        if name != TRIM_MARK:
            name = _joined(part.name, name)
        return self._phases.setdefault(name, len(self._phases))

    def _entry(self, column: str, key: int) -> int:
        part, number = key >> _NUMBER_BITS, key & ((1 << _NUMBER_BITS) - 1)
        declared, numbers = COLUMNS[column], self._tables[column]
        table = getattr(self._parts[part].trace.metadata, cast(str, declared.table))
        return numbers.setdefault(table[number], len(numbers)) if number < len(table) else cast(int, declared.null)

    def processes(self) -> tuple[Process, ...]:
        """Returns the processes of all parts, with those threads that have events."""
        threads: dict[tuple[int, int], list[int]] = {}
        tables = [processes_of(part.trace) for part in self._parts]
        for key, number in self._threads.items():
            part, own = key >> _NUMBER_BITS, key & ((1 << _NUMBER_BITS) - 1)
            process = int(tables[part].find(np.array([own]))[0][0])
            threads.setdefault((part, max(process, 0)), []).append(number)
        return tuple(
            replace(process, name=_joined(part.name, process.name), threads=tuple(threads.get((index, number), ())))
            for index, part in enumerate(self._parts)
            for number, process in enumerate(_own_processes(part))
        )

    def metadata(self, command: str, processes: tuple[Process, ...]) -> Metadata:
        """Returns the metadata of the merged trace. Its origin has what is equal in all parts. If the result is one
        process, it has the static storage of the largest part and the stacks of all parts."""
        each = [part.trace.metadata for part in self._parts]
        memory = [process.memory for part in self._parts for process in _own_processes(part)]
        together = ProcessMemory(
            max(one.static_bytes for one in memory),
            sum(one.stack_bytes for one in memory),
            sum(one.stack_resident_bytes for one in memory),
        )
        origin = common_provenance(metadata.origin for metadata in each)
        process = ProcessMemory() if processes else together
        runtimes = {metadata.runtime and replace(metadata.runtime, resident=None) for metadata in each}
        runtime = runtimes.pop() if len(runtimes) == 1 else None
        phases = tuple(self._phases)
        metadata = Metadata(origin, phases=phases, process=process, processes=processes, runtime=runtime)
        tables = {cast(str, COLUMNS[name].table): tuple(table) for name, table in self._tables.items()}
        return edited(replace(metadata, **tables), command)  # type: ignore[arg-type]


def _own_processes(part: Part) -> tuple[Process, ...]:
    """Returns the table of processes of a part, or one unnamed process if it has none."""
    metadata = part.trace.metadata
    return metadata.processes or (Process("", (), metadata.process),)


def _joined(*names: str) -> str:
    return ": ".join(filter(None, names))


def _mapped(keys: np.ndarray, number: Callable[[int], int]) -> np.ndarray:
    """Returns `number(key)` (uint32) of each key. It is called once per distinct key, in the order of first rows."""
    unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    numbers = np.empty(unique.shape[0], np.uint32)
    for index in np.argsort(first):
        numbers[index] = number(int(unique[index]))
    return numbers[inverse]


def _merge(parts: list[Part], numbering: _Numbering) -> Iterator[KeyedEvents]:
    numbering.start()
    feeds = [_Feed(part) for part in parts]
    no_rows: Events | None = None
    while any([feed.fetch() for feed in feeds]):  # noqa: C419 - every feed must fetch
        frontier_ns = min(feed.last_ns for feed in feeds if not feed.ended)
        limiting = next(i for i, feed in enumerate(feeds) if not feed.ended and feed.last_ns == frontier_ns)
        taken = [feed.take(frontier_ns, including=index <= limiting) for index, feed in enumerate(feeds)]
        if no_rows is None:  # only now, all traces with events are among `taken`; every batch gets their columns
            no_rows = joined([events.where(slice(0, 0)) for events in taken if events is not None])
        yield _interleaved(taken, no_rows, numbering)


class _Feed:
    """The events of one trace. They wait until no other trace can have earlier ones."""

    def __init__(self, part: Part) -> None:
        self._batches = iter(part.trace.batches())
        self._shift_ns: int | None = None
        self._offset_ns = part.offset_ns
        self._waiting: Events | None = None
        self.ended = False

    @property
    def last_ns(self) -> int:
        """The time of the last waiting event."""
        assert self._waiting is not None
        return int(self._waiting.time_ns[-1])

    def fetch(self) -> bool:
        """Returns whether an event waits. Reads the next batch if none does."""
        while self._waiting is None and not self.ended:
            events = next(self._batches, None)
            if events is None:
                self.ended = True
            elif events.rows:
                if self._shift_ns is None:
                    self._shift_ns = self._offset_ns - int(events.time_ns[0])
                refuse_too_long(int(events.time_ns[-1]) + self._shift_ns, "offset")
                self._waiting = events._replace(time_ns=events.time_ns + self._shift_ns)
        return self._waiting is not None

    def take(self, until_ns: int, *, including: bool) -> Events | None:
        """Removes and returns the waiting events before this time, or up to it if `including`; None if none waits."""
        events = self._waiting
        if events is None:
            return None
        rows = int(np.searchsorted(events.time_ns, until_ns, side="right" if including else "left"))
        self._waiting = events.where(slice(rows, events.rows)) if rows < events.rows else None
        return events.where(slice(0, rows))


def _interleaved(taken: list[Events | None], no_rows: Events, numbering: _Numbering) -> KeyedEvents:
    """Returns the taken events as one batch, sorted by time, with at least the columns of `no_rows`. The sort is
    stable, so events at the same time are in the order of the traces."""
    parts = [(index, events) for index, events in enumerate(taken) if events is not None and events.rows]
    order = np.argsort(np.concatenate([events.time_ns for _, events in parts]), kind="stable")
    part = np.concatenate([np.full(events.rows, index, np.int64) for index, events in parts])[order]
    events = joined([no_rows, *(events for _, events in parts)]).keep_optional(*KEPT).where(order)
    key = (part << _NUMBER_BITS | events.block).view(np.uint64)
    return KeyedEvents(numbering.joined(events, part), key)
