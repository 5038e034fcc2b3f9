"""Kernels of `replay.trace.editing.collecting`: which blocks are objects of the collector, and the collector itself.

A block is named by its key: the number of the allocations before its own. So keys are also ages. `objects` has one bit
for each key: whether the block has the collector's header.
"""

from typing import NamedTuple

import numpy as np

from replay.jit.arrays import record
from replay.jit.compiling import by_reference, entry, inlined, leaf
from replay.trace.block_ops import FREE, allocates, concerns_block
from replay.trace.columns import NO_TYPE, Op

_GC_START, _GC_END, _MARK = int(Op.GC_START), int(Op.GC_END), int(Op.MARK)
_FOREIGN_FREE, _LIVE_OBJECT = int(Op.FOREIGN_FREE), int(Op.LIVE_OBJECT)
_FREE, _NO_TYPE = int(FREE), NO_TYPE
_PERMANENT = 3
"""The generation of objects that `gc.freeze` moved out of the collector's reach."""

COLLECTOR = record(
    "count0", "count1", "count2", "threshold0", "threshold1", "threshold2", "enabled", "pending", "total",
    "young", "middle", "old", "examined", "aged", "frozen", "freeze_phase",
    "recorded_count", "recorded_threshold", "inside", "thread", "inside_from", "runs", "generation", "due", "patience",
    "allocations", "deferred", "newest", "rows", "recorded", "explicit", "ran",
)  # fmt: skip
"""The state of the collector under other settings, and of the recorded one.

    young, middle, old      live objects by generation
    examined, aged          the first key after the last collection, and after the last one of generation 1 or 2
    frozen                  keys below are permanent; phase of the mark at which `gc.freeze` is called, or -1
    recorded_count …        count of generation 0 in the recording
    inside …                whether a recorded collection runs, its thread, the first key after its start; whether the
                            collector runs it under the other settings too, and its generation there
    due, patience           events until the collection runs that became due; their number at first
    deferred, newest        garbage that waits for a collection, and the highest key in it
    recorded, explicit, ran collections of the recording, those of them by `gc.collect`, and those that ran
"""
GARBAGE = record("key", "domain", "type")


@by_reference
class Rows(NamedTuple):
    """Resulting rows. `source` is the row that one is a copy of, or -1."""

    source: np.ndarray
    time_ns: np.ndarray
    thread: np.ndarray
    op: np.ndarray
    domain: np.ndarray
    size: np.ndarray
    type: np.ndarray
    key: np.ndarray


@entry
def find_objects(
    op: np.ndarray,
    block: np.ndarray,
    type_: np.ndarray,
    collected: np.ndarray,
    keys: np.ndarray,
    objects: np.ndarray,
    allocations: int,
) -> int:
    """Sets the bits of the objects of which a batch has the types; returns the number of allocations after it.

    `collected`: by type, whether its objects have the collector's header. `keys`: the key of each live block. Changes
    `keys` and `objects` in place.
    """
    for row in range(op.shape[0]):
        if allocates(op[row]):
            keys[block[row]] = allocations
            allocations += 1
        elif (op[row] == _FREE or op[row] == _LIVE_OBJECT) and type_[row] != _NO_TYPE and collected[type_[row]]:
            if block[row] < keys.shape[0]:
                key = keys[block[row]]
                objects[key >> 3] |= np.uint8(1 << (key & 7))
    return allocations


@inlined
def _is_object(objects: np.ndarray, key: int) -> bool:
    return (objects[key >> 3] >> np.uint8(key & 7)) & 1 != 0


@inlined
def _put(rows: Rows, gc: np.ndarray, source: int, time_ns: int, thread: int, op: int) -> int:
    """Begins a resulting row and returns its number."""
    row = gc.rows
    rows.source[row], rows.time_ns[row], rows.thread[row], rows.op[row] = source, time_ns, thread, op
    rows.domain[row], rows.size[row], rows.type[row], rows.key[row] = 2, 0, _NO_TYPE, 0
    gc.rows += 1
    return row


@inlined
def _generation_of(gc: np.ndarray, key: int) -> int:
    """Returns the generation of a live object: survivors move up by one at each collection of their generation."""
    if key < gc.frozen:
        return _PERMANENT
    if key >= gc.examined:
        return 0
    return 2 if key < gc.aged else 1


@leaf
def _count_free(gc: np.ndarray, key: int) -> None:
    """Counts the free of an object."""
    generation = _generation_of(gc, key)
    gc.count0 = max(gc.count0 - 1, 0)
    gc.young -= generation == 0
    gc.middle -= generation == 1
    gc.old -= generation == 2


@leaf
def _due_generation(gc: np.ndarray) -> int:
    """Returns the generation that a collection has now."""
    if gc.count2 > gc.threshold2 and gc.pending >= gc.total // 4:
        return 2
    return 1 if gc.count1 > gc.threshold1 else 0


@leaf
def _begin(gc: np.ndarray, garbage: np.ndarray, objects: np.ndarray, rows: Rows, time_ns: int, thread: int) -> None:
    """Begins a collection of `gc.generation`, and frees the garbage of earlier recorded ones that it finds."""
    generation = gc.generation
    gc.count2 = 0 if generation == 2 else gc.count2 + (generation == 1)
    gc.count1 = 0 if generation else gc.count1 + 1
    gc.count0, gc.due = 0, 0
    gc.ran += 1
    row = _put(rows, gc, -1, time_ns, thread, _GC_START)
    rows.size[row] = generation
    if gc.deferred == 0 or (generation == 0 and gc.newest < gc.examined):
        return
    kept, newest = 0, -1
    for index in range(gc.deferred):
        each = garbage[index]
        key, domain, type_ = each.key, each.domain, each.type
        if _generation_of(gc, key) <= generation:
            row = _put(rows, gc, -1, time_ns, thread, _FREE)
            rows.domain[row], rows.type[row], rows.key[row] = domain, type_, key
            if _is_object(objects, key):
                _count_free(gc, key)
        else:
            other = garbage[kept]
            other.key, other.domain, other.type = key, domain, type_
            newest = max(newest, key)
            kept += 1
    gc.deferred, gc.newest = kept, newest


@leaf
def _end(gc: np.ndarray, rows: Rows, time_ns: int, thread: int) -> None:
    """Ends a collection: survivors move to the next generation."""
    row = _put(rows, gc, -1, time_ns, thread, _GC_END)
    rows.size[row] = gc.generation
    gc.examined = gc.allocations
    if gc.generation == 0:
        gc.middle, gc.young = gc.middle + gc.young, 0
        return
    moved, gc.young, gc.middle = gc.young + gc.middle, 0, 0
    gc.aged, gc.old = gc.allocations, gc.old + moved
    if gc.generation == 1:
        gc.pending += moved
    else:
        gc.pending, gc.total = 0, gc.old


@leaf
def _freeze(gc: np.ndarray) -> None:
    """`gc.freeze()`: all objects become permanent."""
    gc.frozen = gc.allocations
    gc.young, gc.middle, gc.old, gc.count0, gc.count1, gc.count2 = 0, 0, 0, 0, 0, 0


@entry
def collect_otherwise(
    time_ns: np.ndarray,
    thread: np.ndarray,
    op: np.ndarray,
    domain: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    type_: np.ndarray,
    collected: np.ndarray,
    objects: np.ndarray,
    keys: np.ndarray,
    garbage: np.ndarray,
    state: np.ndarray,
    rows: Rows,
) -> None:
    """Writes the rows of a batch under other settings of the collector. Changes the last four arguments in place.

    `rows` and `garbage` have room for all.
    """
    gc = state[0]
    gc.rows = 0
    for at in range(op.shape[0]):
        kind, mover = op[at], thread[at]
        if gc.due > 0 and kind != _GC_START:
            gc.due -= 1
            if gc.due == 0 and gc.count0 > gc.threshold0:
                gc.generation = _due_generation(gc)
                _begin(gc, garbage, objects, rows, time_ns[at], mover)
                _end(gc, rows, time_ns[at], mover)
        if kind == _GC_START and gc.inside == 0:
            _meet_recorded(gc, garbage, objects, rows, time_ns[at], mover, size[at])
            continue
        if kind == _GC_END and gc.inside and mover == gc.thread:
            if gc.runs:
                _end(gc, rows, time_ns[at], mover)
            gc.inside = 0
            continue
        key = np.int64(0)
        if concerns_block(kind) or (kind == _LIVE_OBJECT and block[at] < keys.shape[0]):
            if allocates(kind):
                keys[block[at]] = gc.allocations
                _count_allocation(gc, objects)
            key = keys[block[at]]
        if kind == _FREE:
            is_object = _is_object(objects, key)
            gc.recorded_count = max(gc.recorded_count - is_object, 0)
            if gc.inside and mover == gc.thread and key < gc.inside_from:
                if gc.runs == 0 or _generation_of(gc, key) > gc.generation:
                    each = garbage[gc.deferred]
                    each.key, each.domain, each.type = key, domain[at], type_[at]
                    gc.deferred, gc.newest = gc.deferred + 1, max(gc.newest, key)
                    continue
            if is_object:
                _count_free(gc, key)
        elif kind == _FOREIGN_FREE and type_[at] != _NO_TYPE and collected[type_[at]]:
            gc.recorded_count = max(gc.recorded_count - 1, 0)
            gc.count0 = max(gc.count0 - 1, 0)
            gc.old = max(gc.old - 1, 0)
        elif kind == _MARK and size[at] == gc.freeze_phase:
            _freeze(gc)
        row = _put(rows, gc, at, time_ns[at], mover, kind)
        rows.domain[row], rows.size[row], rows.type[row], rows.key[row] = domain[at], size[at], type_[at], key


@leaf
def _count_allocation(gc: np.ndarray, objects: np.ndarray) -> None:
    """Counts an allocation. A collection becomes due if the count of objects exceeds the threshold."""
    key = gc.allocations
    gc.allocations += 1
    if not _is_object(objects, key):
        return
    gc.recorded_count += 1
    gc.count0 += 1
    gc.young += 1
    runs_now = gc.inside and gc.runs
    if gc.enabled and gc.count0 > gc.threshold0 > 0 and gc.due == 0 and not runs_now:
        gc.due = gc.patience


@leaf
def _meet_recorded(
    gc: np.ndarray, garbage: np.ndarray, objects: np.ndarray, rows: Rows, time_ns: int, thread: int, generation: int
) -> None:
    """Begins a recorded collection. It runs if one is due at the same moment, or if the program called `gc.collect`."""
    explicit = gc.recorded_count <= gc.recorded_threshold
    gc.recorded += 1
    gc.explicit += explicit
    gc.runs = explicit or gc.due > 0
    gc.inside, gc.thread, gc.inside_from, gc.recorded_count = 1, thread, gc.allocations, 0
    if gc.runs:
        gc.generation = generation if explicit else _due_generation(gc)
        _begin(gc, garbage, objects, rows, time_ns, thread)
