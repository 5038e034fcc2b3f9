"""A recording with types as it would have been with other settings of the cyclic garbage collector.

The collector runs when the count of generation 0 exceeds its threshold. The trace has all that changes the count, so
its collections can be computed for any thresholds. What a recorded collection freed was garbage then. Under other
settings, it is freed by the first collection whose generation includes it, from the moment on at which it became
garbage. This moment is not recorded. It is after

- the allocation and the last realloc of the block,
- the last recorded collection that examined the block and kept it,

and before the recorded collection that freed it. `Moments` has the two bounds and an estimate between them.
Assumptions:

- The program does the same otherwise. Its finalizers run as recorded, and only the frees move.
- Objects of one cycle have the same age, and all objects with the collector's header are tracked.
- Free lists have the same contents.

Explicit collections (`gc.collect`) stay. They are those at which the count did not exceed the recorded threshold.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from replay.jit.arrays import with_room
from replay.support.errors import ReplayError
from replay.support.names import nearest
from replay.trace import COLUMNS, NO_TYPE, TEARDOWN_MARK, Collector, Domain, Events, ObjectType, Op, Trace
from replay.trace.editing import EditedTrace, KeyedEvents, edited
from replay.trace.editing.collector_kernels import FIRST_PHANTOM, Future, Rows, collect_otherwise, drop_freed
from replay.trace.editing.collector_state import (
    AGES,
    COLLECTOR,
    DICTS,
    DOOMED,
    FREE_LIST,
    FREE_LISTS,
    KEYS,
    LIST_LENGTH,
    LISTS,
    LIVE,
    NO_OBJECTS,
    PHANTOM,
    TUPLES,
    Findings,
)
from replay.trace.editing.garbage_ages import age_of_class, find_fates, likely_ages
from replay.trace.visits import has_incremental_collector

_PATIENCE = {"3.11": 8}
"""Events between the moment when a collection becomes due, and a recorded collection that is the same. CPython 3.11
collects in the allocation."""
_PATIENCE_SINCE = 256
"""Later versions collect at the next check of the interpreter loop."""
_KEYS_IN_OBJ, _KEYS_BYTES = ("3.11", "3.12"), 120
"""Versions that allocate the keys of dicts in domain obj, and the bytes of the smallest ones. Later versions allocate
them in domain mem, where other blocks can have this size."""
_BY_KEY, _CLASSES = ("fates", "free_lists", "kinds", "alive", "dead"), AGES + 1
_TUPLE_BYTES, _TUPLE_BYTES_SINCE = dict.fromkeys(("3.11", "3.12", "3.13"), 48), 56
"""A tuple of length 1, with the collector's header."""


_NEVER, _TINY = 1 << 62, 1e-300


class Moments(Enum):
    """The moment at which a block becomes garbage, within the bounds that the recording has for it."""

    EARLIEST = "earliest"
    ESTIMATE = "estimate"
    """At the mean of the most likely distribution of ages, within the bounds of the block. The distribution is that of
    all blocks of its type, or without a type of its size. The mean keeps the expected number of live blocks."""
    LATEST = "latest"


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
        """Whether collections can become more frequent."""
        new = self.over(recorded)
        if not new.is_automatic or not recorded.is_automatic:
            return new.is_automatic
        return any(mine < there for mine, there in zip(new.thresholds, recorded.thresholds, strict=True))


class CollectedTrace(EditedTrace):
    """A recording with types under other settings of the collector. Reads the recording twice."""

    def __init__(
        self, trace: Trace, settings: CollectorSettings, command: str, moments: Moments = Moments.ESTIMATE
    ) -> None:
        super().__init__(
            self._read_events, lambda: replace(edited(trace.metadata, command), freeze_at=settings.freeze_at)
        )
        self._trace, self.settings, self._command, self.moments = trace, settings, command, moments
        self.collector = _collector_of(trace)
        """The recorded one."""
        self.duration_ns = trace.duration_ns
        self._freeze_phase = _phase_of(trace, settings.freeze_at)
        types = trace.metadata.types
        self._collected = np.array([type_.collected for type_ in types] or [False])
        self._found: tuple[Findings, Future] | None = None
        """The same for all moments, except the lifetimes."""
        self._lists = np.zeros(FREE_LISTS, FREE_LIST)
        self.recorded = self.explicit = self.ran = 0
        """Collections of the recording, those of them by `gc.collect`, and those under the other settings. Final after
        the last batch was read."""

    def assuming(self, moments: Moments) -> "CollectedTrace":
        """Returns the same trace with other moments. It does not search the recording again."""
        other = CollectedTrace(self._trace, self.settings, self._command, moments)
        other._found, other._lists = self._found, self._lists
        return other

    def _read_events(self) -> Iterator[KeyedEvents]:
        self._found = self._found or self._find()
        found, future = self._found
        if self.moments is Moments.EARLIEST:
            future = future._replace(dying=found.alive)
        elif self.moments is Moments.LATEST:
            future = future._replace(ages=np.full_like(future.ages, _NEVER))
        fates = found.fates.copy()
        state, keys, doomed = self._new_state(), np.zeros(1024, np.int64), np.zeros(1024, DOOMED)
        phantoms, lists = np.zeros(1024, PHANTOM), self._lists.copy()
        events = Events.empty(0)
        for events in self._trace.batches():
            drop_freed(doomed, fates, state)
            keys = with_room(keys, events.highest_block + 1)
            doomed = with_room(doomed, int(state[0].doomed) + events.rows)
            ends = events.op == Op.GC_END
            more = TUPLES * LIST_LENGTH * (1 + int(np.count_nonzero(ends))) + 2 * int(events.size[ends].sum())
            phantoms = with_room(phantoms, int(state[0].phantoms) + more)
            rows = _new_rows(4 * events.rows + int(state[0].doomed) + int(state[0].phantoms) + 2 * more + 16)
            collect_otherwise(
                events.time_ns, events.thread, events.op, events.domain, events.block, events.size, _types(events),
                self._collected, found.objects, future, fates, keys, doomed, phantoms, lists, state, rows,
            )  # fmt: skip
            yield _keyed(events, rows, int(state[0].rows))
        last = state[0]
        if events.rows and events.type is not None:
            drop_freed(doomed, fates, state)
            yield _left(events, found, doomed[: last.doomed], phantoms[: last.phantoms], lists)
        self.recorded, self.explicit, self.ran = int(last.recorded), int(last.explicit), int(last.ran)

    def _find(self) -> tuple[Findings, Future]:
        """Reads the recording once."""
        self._lists = self._free_lists()
        keys, live, state = np.zeros(1024, np.int64), np.zeros(1024, LIVE), np.zeros(1, COLLECTOR)
        phases = self._trace.metadata.phases
        state[0].end_phase = phases.index(TEARDOWN_MARK) if TEARDOWN_MARK in phases else -1
        found = Findings(
            objects=np.zeros(1 << 16, np.uint8),
            fates=np.zeros(1 << 16, np.uint8),
            free_lists=np.zeros(1 << 16, np.uint8),
            kinds=np.zeros(1 << 16, np.uint16),
            alive=np.zeros(1 << 16, np.uint16),
            dead=np.zeros(1 << 16, np.uint16),
            examinations=np.zeros(1 << 10, np.int64),
            promotions=np.zeros(1 << 10, np.int64),
        )
        generations: list[int] = []
        for events in self._trace.batches():
            most, starts = int(state[0].allocations) + events.rows, events.size[events.op == Op.GC_START]
            keys, live = (with_room(each, events.highest_block + 1) for each in (keys, live))
            generations += starts.tolist()
            found = found._replace(
                objects=with_room(found.objects, most // 8 + 1),
                **{name: with_room(getattr(found, name), most) for name in _BY_KEY},
                **{name: with_room(getattr(found, name), len(generations)) for name in ("examinations", "promotions")},
            )
            find_fates(
                events.thread, events.op, events.domain, events.block, events.size, _types(events),
                self._collected, self._lists, keys, live, found, state,
            )  # fmt: skip
        following = _following(np.array(generations, np.int64))
        ages = np.array([0, *(age_of_class(number) for number in range(1, AGES + 1))], np.int64)
        return found, Future(following, found.free_lists, found.kinds, _dying(found, int(state[0].allocations)), ages)

    def _free_lists(self) -> np.ndarray:
        """Returns the free lists of CPython that hold objects of the collector. Lists and dicts have no size yet."""
        metadata, lists = self._trace.metadata, np.zeros(FREE_LISTS, FREE_LIST)
        lists["type"] = NO_TYPE + 1  # of no block
        for name, numbers in (("list", LISTS), ("dict", DICTS), ("tuple", slice(TUPLES, FREE_LISTS))):
            if (type_ := ObjectType("builtins", name, True)) in metadata.types:
                lists["type"][numbers], lists["collected"][numbers] = metadata.types.index(type_), 1
        lists["bytes"][TUPLES] = _TUPLE_BYTES.get(metadata.origin.cpython_version, _TUPLE_BYTES_SINCE)
        if metadata.origin.cpython_version in _KEYS_IN_OBJ:
            lists["type"][KEYS], lists["bytes"][KEYS], lists["domain"][KEYS] = NO_TYPE, _KEYS_BYTES, Domain.OBJ
        return lists

    def _new_state(self) -> np.ndarray:
        recorded, new = self.collector, self.settings.over(self.collector)
        state = np.zeros(1, COLLECTOR)
        gc = state[0]
        gc.count0, gc.count1, gc.count2 = recorded.counts
        gc.threshold0, gc.threshold1, gc.threshold2 = new.thresholds
        gc.enabled, gc.freeze_phase = new.enabled, self._freeze_phase
        gc.young, gc.old = recorded.counts[0], recorded.old_objects
        if recorded.full_collections:
            gc.total = recorded.old_objects
        else:
            gc.pending = recorded.old_objects
        gc.recorded_count = recorded.counts[0]
        gc.recorded_threshold = recorded.thresholds[0]
        gc.patience = _PATIENCE.get(self._trace.metadata.origin.cpython_version, _PATIENCE_SINCE)
        return state


def _dying(found: Findings, allocations: int) -> np.ndarray:
    """Returns, by key, the class of the age at which a block becomes garbage (uint16) as in `Moments.ESTIMATE`."""
    dying = np.zeros(allocations + 1, np.uint16)
    freed = np.flatnonzero(found.dead[:allocations])
    kind, alive, dead = (column[freed].astype(np.int64) for column in (found.kinds, found.alive, found.dead))
    codes, places, counts = np.unique(
        (kind * _CLASSES + alive) * _CLASSES + dead - 1, return_inverse=True, return_counts=True
    )
    kind, alive, dead = codes // _CLASSES**2, codes // _CLASSES % _CLASSES, codes % _CLASSES
    means, shares, scratch = np.zeros(codes.shape[0], np.uint16), np.zeros(_CLASSES), np.zeros(_CLASSES + 1)
    ages = np.array([age_of_class(number + 0.5) for number in range(_CLASSES)], np.float64)
    starts = np.flatnonzero(np.diff(kind, prepend=-1))
    for start, stop in zip(starts, [*starts, kind.shape[0]][1:], strict=True):
        rows = slice(start, stop)
        likely_ages(alive[rows], dead[rows], counts[rows], shares, scratch)
        share, moment = (_between(each, alive[rows], dead[rows]) for each in (shares, shares * ages))
        age = moment / np.maximum(share, _TINY)
        means[rows] = np.clip(np.searchsorted(ages, age), alive[rows], dead[rows])
    dying[freed] = means[places]
    return dying


def _between(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Returns the sums of the values from each first index to the last one."""
    sums = np.concatenate([[0.0], values.cumsum()])
    return sums[last + 1] - sums[first]


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
    if has_incremental_collector(metadata):
        name = (metadata.origin.interpreter or "").replace("cpython", "CPython")
        raise ReplayError(f"{name} has an incremental collector, whose collections cannot be computed")
    return metadata.collector


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


def _left(events: Events, found: Findings, doomed: np.ndarray, phantoms: np.ndarray, lists: np.ndarray) -> KeyedEvents:
    """Returns rows of live objects for the garbage that is left after the last batch, `events`."""
    kinds = found.kinds[doomed["key"]].astype(np.int64)
    doomed, types = doomed[kinds >= NO_OBJECTS], kinds[kinds >= NO_OBJECTS] - NO_OBJECTS
    phantoms = phantoms[lists["type"][phantoms["which"]] != NO_TYPE]
    of_lists = lists[phantoms["which"]]
    rows = _new_rows(len(doomed) + len(phantoms))
    rows.source[:], rows.thread[:], rows.time_ns[:], rows.op[:] = -1, 0, events.time_ns[-1], Op.LIVE_OBJECT
    rows.key[:] = np.concatenate([doomed["key"], FIRST_PHANTOM + phantoms["number"]])
    rows.domain[:] = np.concatenate([doomed["domain"], of_lists["domain"]])
    rows.type[:] = np.concatenate([types, of_lists["type"]])
    is_object = found.objects[doomed["key"] >> 3] >> (doomed["key"] & 7) & 1
    rows.size[:] = np.concatenate([is_object, of_lists["collected"]])
    return _keyed(events, rows, len(rows.key))


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
