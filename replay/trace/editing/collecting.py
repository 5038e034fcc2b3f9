"""A recording with types as it would have been with other settings of the cyclic garbage collector.

The collector runs when the count of generation 0 exceeds its threshold. The trace has all that changes the count, so
its collections can be computed for any thresholds. What a recorded collection freed was garbage then. Under other
settings, it is freed by the first collection whose generation includes it, from the moment on at which it became
garbage. This moment is not recorded. Assumptions:

- The program does the same otherwise. Its finalizers run as recorded, and only the frees move.
- If collections become rarer, an object is garbage from the last recorded collection on that examined and kept it. Only
  collections under the other settings that run between this one and the one that freed it depend on this.
- If collections become more frequent, it is garbage only from the recorded collection on that freed it. So memory is at
  most as computed.
- Objects of one cycle have the same age, and all objects with the collector's header are tracked.
- Free lists have the same contents.

Explicit collections (`gc.collect`) stay. They are those at which the count did not exceed the recorded threshold.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from replay.jit.arrays import with_room
from replay.support.errors import ReplayError
from replay.support.names import nearest
from replay.trace import COLUMNS, NO_TYPE, Collector, Events, Op, Trace
from replay.trace.editing import EditedTrace, KeyedEvents, edited
from replay.trace.editing.collector_kernels import (
    AGES,
    COLLECTOR,
    DOOMED,
    NO_OBJECTS,
    Findings,
    Future,
    Rows,
    age_of_class,
    collect_otherwise,
    drop_freed,
    find_fates,
)
from replay.trace.provenance import Provenance

_PATIENCE = {"3.11": 8}
"""Events between the moment when a collection becomes due, and a recorded collection that is the same. CPython 3.11
collects in the allocation."""
_PATIENCE_SINCE = 256
"""Later versions collect at the next check of the interpreter loop."""
_INCREMENTAL = tuple(f"3.14.{patch}" for patch in range(5))
"""Releases with another collector."""


@dataclass(frozen=True)
class CollectorSettings:
    """Settings of the collector from the start of the recording on. None: as recorded."""

    threshold0: int | None = None
    threshold1: int | None = None
    threshold2: int | None = None
    enabled: bool | None = None
    freeze_at: str | None = None
    """Name of the phase at whose beginning `gc.freeze` is called."""

    def over(self, recorded: Collector) -> Collector:
        """Returns the settings that apply to a recording."""
        own = (self.threshold0, self.threshold1, self.threshold2)
        first, second, third = (
            there if mine is None else mine for mine, there in zip(own, recorded.thresholds, strict=True)
        )
        enabled = recorded.enabled if self.enabled is None else self.enabled
        return replace(recorded, thresholds=(first, second, third), enabled=enabled)

    def is_more_frequent(self, recorded: Collector) -> bool:
        """Whether collections can become more frequent, so that results are bounds."""
        new = self.over(recorded)
        if not new.enabled or not new.thresholds[0]:
            return False
        if not recorded.enabled or not recorded.thresholds[0]:
            return True
        return any(mine < there for mine, there in zip(new.thresholds, recorded.thresholds, strict=True))


class CollectedTrace(EditedTrace):
    """A recording with types under other settings of the collector. Reads the recording twice."""

    def __init__(self, trace: Trace, settings: CollectorSettings, command: str) -> None:
        super().__init__(self._read_events, lambda: edited(trace.metadata, command))
        self._trace, self.settings = trace, settings
        self.collector = _collector_of(trace)
        """The recorded one."""
        self.duration_ns = trace.duration_ns
        self._freeze_phase = _phase_of(trace, settings.freeze_at)
        types = trace.metadata.types
        self._collected = np.array([type_.collected for type_ in types] or [False])
        self._found: tuple[Findings, Future] | None = None
        self.recorded = self.explicit = self.ran = 0
        """Collections of the recording, those of them by `gc.collect`, and those under the other settings. Final after
        the last batch was read."""

    def _read_events(self) -> Iterator[KeyedEvents]:
        self._found = self._found or self._find()
        found, future = self._found
        fates = found.fates.copy()
        state, keys, doomed = self._new_state(), np.zeros(1024, np.int64), np.zeros(1024, DOOMED)
        for events in self._trace.batches():
            drop_freed(doomed, fates, state)
            keys = with_room(keys, events.highest_block + 1)
            doomed = with_room(doomed, int(state[0].doomed) + events.rows)
            rows = _new_rows(4 * events.rows + int(state[0].doomed) + 16)
            collect_otherwise(
                events.time_ns, events.thread, events.op, events.domain, events.block, events.size, _types(events),
                self._collected, found.objects, future, fates, keys, doomed, state, rows,
            )  # fmt: skip
            yield _keyed(events, rows, int(state[0].rows))
        last = state[0]
        self.recorded, self.explicit, self.ran = int(last.recorded), int(last.explicit), int(last.ran)

    def _find(self) -> tuple[Findings, Future]:
        """Reads the recording once."""
        keys, sizes, state = np.zeros(1024, np.int64), np.zeros(1024, np.int64), np.zeros(1, COLLECTOR)
        kinds = NO_OBJECTS + self._collected.shape[0]
        found = Findings(
            np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint16),
            np.zeros((kinds, AGES, 2), np.int64), np.zeros(1 << 10, np.int64), np.zeros(1 << 10, np.int64),
        )  # fmt: skip
        generations: list[int] = []
        for events in self._trace.batches():
            most, starts = int(state[0].allocations) + events.rows, events.size[events.op == Op.GC_START]
            keys, sizes = (with_room(each, events.highest_block + 1) for each in (keys, sizes))
            generations += starts.tolist()
            found = Findings(
                with_room(found.objects, most // 8 + 1), with_room(found.fates, most), with_room(found.kinds, most),
                found.ages, *(with_room(each, len(generations)) for each in (found.examinations, found.promotions)),
            )  # fmt: skip
            find_fates(
                events.thread, events.op, events.block, events.size, _types(events),
                self._collected, keys, sizes, found, state,
            )  # fmt: skip
        following = _following(np.array(generations, np.int64))
        return found, Future(following, found.kinds, _lifetimes(found.ages))

    def _new_state(self) -> np.ndarray:
        recorded, new = self.collector, self.settings.over(self.collector)
        state = np.zeros(1, COLLECTOR)
        gc = state[0]
        gc.count0, gc.count1, gc.count2 = recorded.counts
        gc.threshold0, gc.threshold1, gc.threshold2 = new.thresholds
        gc.enabled, gc.freeze_phase = new.enabled, self._freeze_phase
        gc.is_early = not self.settings.is_more_frequent(recorded)
        gc.young, gc.old = recorded.counts[0], recorded.old_objects
        if recorded.full_collections:
            gc.total = recorded.old_objects
        else:
            gc.pending = recorded.old_objects
        gc.recorded_count = recorded.counts[0]
        gc.recorded_threshold = recorded.thresholds[0]
        gc.patience = _PATIENCE.get(self._trace.metadata.origin.cpython_version, _PATIENCE_SINCE)
        return state


def _lifetimes(ages: np.ndarray) -> np.ndarray:
    """Returns the age at which objects of each kind become garbage (int64): one that contradicts the fewest blocks.

    A block contradicts an age if it was alive at a higher one, or garbage at a lower one. Of several such ages next to
    each other, it is the middle one.
    """
    alive, dead = ages[:, :, 0], ages[:, :, 1]
    costs = np.zeros((ages.shape[0], AGES + 1), np.int64)
    costs[:, :AGES] = alive[:, ::-1].cumsum(axis=1)[:, ::-1]  # alive at this class or a higher one
    costs[:, 1:] += dead.cumsum(axis=1)  # garbage at a lower class
    first = costs.argmin(axis=1)
    last = AGES - costs[:, ::-1].argmin(axis=1)
    return np.array([age_of_class((low + high) / 2) for low, high in zip(first, last, strict=True)], np.int64)


def _following(generations: np.ndarray) -> np.ndarray:
    """Returns, by generation and recorded collection, the first collection from it on that examines this generation;
    the number of collections if none does."""
    count = generations.shape[0]
    following = np.full((3, count + 1), count + 1, np.int64)
    for generation in range(3):
        numbers = np.where(generations >= generation, np.arange(count), count + 1)
        following[generation, :count] = np.minimum.accumulate(numbers[::-1])[::-1]
    return following


def _collector_of(trace: Trace) -> Collector:
    """Returns the recorded collector. Raises ReplayError for a trace without types, or with another collector."""
    metadata = trace.metadata
    if metadata.collector is None:
        raise ReplayError("settings of the garbage collector need types: record the program with `record --types`")
    if metadata.processes:
        raise ReplayError(
            "settings of the garbage collector need a trace of one process; `replay trace filter --process` makes one"
        )
    if (version := _release(metadata.origin)) in _INCREMENTAL:
        raise ReplayError(f"CPython {version} has an incremental collector, whose collections cannot be computed")
    return metadata.collector


def _release(origin: Provenance) -> str:
    """Returns the version of the recorded interpreter with its patch number."""
    return (origin.interpreter or "").partition(" ")[2]


def _phase_of(trace: Trace, name: str | None) -> int:
    """Returns the number of the phase; -1 for None."""
    if name is None:
        return -1
    phases = trace.metadata.phases
    if name not in phases:
        known = nearest(name, phases) if phases else "the recording has no marks"
        raise ReplayError(f"gc.freeze_at: unknown phase {name!r}; {known}")
    return phases.index(name)


def _types(events: Events) -> np.ndarray:
    return np.full(events.rows, NO_TYPE, np.uint32) if events.type is None else events.type


def _new_rows(length: int) -> Rows:
    kinds = {name: np.dtype(COLUMNS[name].memory_type) for name in Rows._fields if name in COLUMNS}
    kinds |= {"source": np.dtype(np.int64), "key": np.dtype(np.uint64)}
    return Rows(**{name: np.empty(length, kinds[name]) for name in Rows._fields})


def _keyed(events: Events, rows: Rows, count: int) -> KeyedEvents:
    """Returns the first `count` rows, with the optional columns of those that are copies."""
    rows = Rows(*(column[:count] for column in rows))
    copied = events.where(np.maximum(rows.source, 0)) if events.rows else events
    own = {name: getattr(rows, name) for name in ("time_ns", "thread", "op", "domain", "size")}
    for name, column in copied.optional().items():
        column[rows.source < 0] = COLUMNS[name].null
        own[name] = column
    if events.type is not None:
        own["type"] = rows.type
    return KeyedEvents(Events(block=np.zeros(count, np.uint32), **own), rows.key)
