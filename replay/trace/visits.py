"""Estimates how many objects each garbage collection of a recording with types visits.

A collection visits the tracked objects of its generation and the younger ones, alive or garbage. An object is young in
the first collection after its allocation. One that survives moves to the next generation. The type of a block is noted
at its end, so its visits are counted then: one as a young object, one in the middle generation, and one in each full
collection from then on.

Whether an object is tracked is known for those that live at the end only: up to 3.13, collections untrack tuples and
dicts that refer to no object with the collector's header. All other objects are assumed to be tracked.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from replay.jit.arrays import record, with_room
from replay.jit.compiling import entry, leaf
from replay.trace.block_ops import FREE, allocates
from replay.trace.columns import NO_TYPE, Op
from replay.trace.events import Events
from replay.trace.metadata import Metadata, ObjectType

_GC_START, _MARK, _FOREIGN_FREE, _LIVE_OBJECT = (
    int(op) for op in (Op.GC_START, Op.MARK, Op.FOREIGN_FREE, Op.LIVE_OBJECT)
)
_FULL, _NO_TYPE, _COUNTED = 2, NO_TYPE, 1 << 62
_INCREMENTAL = tuple(f"3.14.{patch}" for patch in range(5))
"""Releases with an incremental collector."""
_LIVE = record("born", "is_newer")
"""By block: the collections before its allocation, and whether it is newer than `gc.freeze()`."""
_COLLECTION = record("generation", "older", "visits", "more")
"""A collection. `older`: the collections of generation 1 or 2 before it. `visits`: of young and middle objects, and of
those from before the recording. `more`: by how many old objects it would visit more than the one before, if full."""
_STATE = record("collections", "older", "young", "old", "freeze_phase", "frozen", "is_frozen", "live")
"""`young` and `old`: objects from before the recording. `frozen`: collections before `gc.freeze()`. `live`: objects
that lived at the end."""


def has_incremental_collector(metadata: Metadata) -> bool:
    """Whether the interpreter's collector has no full collections."""
    return (metadata.origin.interpreter or "").partition(" ")[2] in _INCREMENTAL


@leaf
def _add_visits(state: Any, collections: np.ndarray, older: np.ndarray, block: Any, end: int) -> None:
    """Adds the visits of an object that lives from its allocation to the collection `end`, exclusively."""
    if state.is_frozen and not block.is_newer:
        end = min(end, state.frozen)
    first = block.born
    if first >= end:
        return
    collections[first].visits += 1
    following = first + 1
    if collections[first].generation == 0:
        middle = collections[following].older
        if middle >= state.older or older[middle] >= end:
            return
        collections[older[middle]].visits += 1
        following = older[middle] + 1
    collections[following].more += 1
    collections[end].more -= 1


@leaf
def _begin(state: Any, collections: np.ndarray, older: np.ndarray, generation: int) -> None:
    """Counts a collection of the objects from before the recording, and prepares the next one."""
    number = state.collections
    collections[number].generation = generation
    collections[number].visits += state.young
    state.young = 0
    if generation >= _FULL:
        collections[number].visits += state.old
    if generation > 0:
        older[state.older] = number
        state.older += 1
    state.collections += 1
    collections[state.collections].older = state.older


@entry
def _count(
    op: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    type_: np.ndarray,
    collected: np.ndarray,
    untracked_visits: np.ndarray,
    live: np.ndarray,
    collections: np.ndarray,
    older: np.ndarray,
    states: np.ndarray,
) -> None:
    """Counts a batch. Changes the last four arrays in place.

    `collected`: by type, whether its objects have the collector's header. `untracked_visits`: by type, the collections
    that visit an object that is not tracked at the end.
    """
    state = states[0]
    for row in range(op.shape[0]):
        kind, number = op[row], block[row]
        if allocates(kind):
            live[number].born, live[number].is_newer = state.collections, state.is_frozen
        elif kind == _GC_START:
            _begin(state, collections, older, size[row])
        elif kind == _MARK and size[row] == state.freeze_phase and state.is_frozen == 0:
            state.is_frozen, state.frozen, state.young, state.old = 1, state.collections, 0, 0
        elif type_[row] == _NO_TYPE or not collected[type_[row]]:
            continue
        elif kind == _FOREIGN_FREE:
            state.old = max(state.old - 1, 0)
        elif kind == FREE:
            _add_visits(state, collections, older, live[number], state.collections)
        elif kind == _LIVE_OBJECT and number < live.shape[0]:
            state.live += 1
            end = state.collections
            if size[row] == 0:
                end = min(end, live[number].born + untracked_visits[type_[row]])
            _add_visits(state, collections, older, live[number], end)
            live[number].born = _COUNTED  # a free in the interpreter's teardown follows


class Visits:
    """The visits of the collections of one trace, whose batches pass through `counted`."""

    def __init__(self, metadata: Metadata) -> None:
        types = metadata.types or (ObjectType("", "", False),)
        untracks_late = metadata.origin.cpython_version in ("3.11", "3.12", "3.13")
        self._collected = np.array([each.collected for each in types])
        self._untracked_visits = np.array([untracks_late and str(each) == "tuple" for each in types]).astype(np.int64)
        self._live, self._collections = np.zeros(1024, _LIVE), np.zeros(1024, _COLLECTION)
        self._older, self._state = np.zeros(1024, np.int64), np.zeros(1, _STATE)
        state, collector = self._state[0], metadata.collector
        state.freeze_phase = -1
        if collector:
            state.young, state.old = collector.counts[0], collector.old_objects
        if metadata.freeze_at in metadata.phases:
            state.freeze_phase = metadata.phases.index(metadata.freeze_at)

    @classmethod
    def of(cls, metadata: Metadata) -> "Visits | None":
        """Returns the visits of a trace to be read; None if they cannot be estimated."""
        can = metadata.collector and not metadata.processes and not has_incremental_collector(metadata)
        return cls(metadata) if can else None

    def counted(self, batches: Iterable[Events]) -> Iterator[Events]:
        """Yields the batches, and counts them."""
        for events in batches:
            self._feed(events)
            yield events

    def _feed(self, events: Events) -> None:
        if events.type is None:
            return
        room = int(self._state[0].collections) + int(np.count_nonzero(events.op == Op.GC_START)) + 1
        self._live = with_room(self._live, events.highest_block + 1)
        self._collections, self._older = with_room(self._collections, room), with_room(self._older, room)
        _count(
            events.op, events.block, events.size, events.type, self._collected, self._untracked_visits,
            self._live, self._collections, self._older, self._state,
        )  # fmt: skip

    @property
    def numbers(self) -> tuple[int, ...]:
        """The objects visited by each collection so far; empty if the types of live objects are unknown."""
        if self._state[0].live == 0:
            return ()
        found = self._collections[: int(self._state[0].collections)]
        of_full = np.where(found["generation"] >= _FULL, found["more"].cumsum(), 0)
        return tuple((found["visits"] + of_full).tolist())
