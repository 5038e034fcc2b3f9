"""The second pass of `replay.trace.editing.collecting`: the collector under other settings.

A block is named by its key: the number of the allocations before its own. So keys are also ages. `objects` has one bit
for each key: whether the block has the collector's header. `fates` has a byte for each: which collection frees it.
"""

from typing import Any, NamedTuple

import numpy as np

from replay.jit.compiling import by_reference, entry, inlined, leaf
from replay.trace.block_ops import FREE, allocates, concerns_block
from replay.trace.columns import NO_TYPE, Op
from replay.trace.editing.collector_state import (
    DICTS,
    FREE_LISTS,
    FREED,
    KEYS,
    LIST_LENGTH,
    NO_OBJECTS,
    WAITS,
    end_recorded,
    fate_of,
    recorded_generation,
)

_GC_START, _GC_END, _MARK = int(Op.GC_START), int(Op.GC_END), int(Op.MARK)
_FOREIGN_FREE, _LIVE_OBJECT = int(Op.FOREIGN_FREE), int(Op.LIVE_OBJECT)
_MALLOC, _FREE, _REALLOC, _NO_TYPE = int(Op.MALLOC), int(FREE), int(Op.REALLOC), NO_TYPE
_PERMANENT = 3
"""The generation of objects that `gc.freeze` moved out of the collector's reach."""

FIRST_PHANTOM = 1 << 48
"""The key of the first phantom."""


@by_reference
class Future(NamedTuple):
    """What the first pass found about the recorded collections, for the second one.

    `following`: by generation and recorded collection, the first one from it on that examines this generation.
    `free_lists`, `kinds`: as in Findings. `dying`: by key, the class of the age at which a block becomes garbage.
    `ages`: by class, the lowest age.
    """

    following: np.ndarray
    free_lists: np.ndarray
    kinds: np.ndarray
    dying: np.ndarray
    ages: np.ndarray


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


@inlined
def _is_object(objects: np.ndarray, key: int) -> bool:
    return (objects[key >> 3] >> np.uint8(key & 7)) & 1 != 0


@inlined
def _put(rows: Rows, gc: Any, source: int, time_ns: int, thread: int, op: int) -> int:
    """Begins a resulting row and returns its number."""
    row = gc.rows
    rows.source[row], rows.time_ns[row], rows.thread[row], rows.op[row] = source, time_ns, thread, op
    rows.domain[row], rows.size[row], rows.type[row], rows.key[row] = 2, 0, _NO_TYPE, 0
    gc.rows += 1
    return row


@inlined
def _generation_of(gc: Any, key: int) -> int:
    """Returns the generation of a live object: survivors move up by one at each collection of their generation."""
    if key < gc.frozen:
        return _PERMANENT
    if key >= gc.examined:
        return 0
    return 2 if key < gc.aged else 1


@leaf
def _count_free(gc: Any, key: int) -> None:
    """Counts the free of an object."""
    generation = _generation_of(gc, key)
    gc.count0 = max(gc.count0 - 1, 0)
    gc.young -= generation == 0
    gc.middle -= generation == 1
    gc.old -= generation == 2


@leaf
def _due_generation(gc: Any) -> int:
    """Returns the generation that a collection has now."""
    if gc.count2 > gc.threshold2 and gc.pending >= gc.total // 4:
        return 2
    return 1 if gc.count1 > gc.threshold1 else 0


@leaf
def _is_garbage(gc: Any, key: int, fate: int, future: Future, upcoming: int) -> bool:
    """Whether a block of this fate is garbage now, before the recorded collection `upcoming` or at its start.

    A block can be garbage if the first recorded collection from `upcoming` on that examines its generation is the one
    that frees it. It is after its age of death. The collection at hand frees its own.
    """
    if fate == WAITS or gc.allocations - key < future.ages[future.dying[key]]:
        return fate == WAITS
    following = future.following
    generation = recorded_generation(gc, key)
    collection = following[generation, upcoming]
    if gc.inside and collection == upcoming:
        return False
    return collection < following.shape[1] and fate == fate_of(collection)


@leaf
def _begin(
    gc: Any,
    doomed: np.ndarray,
    phantoms: np.ndarray,
    lists: np.ndarray,
    objects: np.ndarray,
    fates: np.ndarray,
    future: Future,
    rows: Rows,
    time_ns: int,
    thread: int,
) -> None:
    """Begins a collection of `gc.generation`, and frees the garbage that no recorded collection frees at this moment.

    Keys in `doomed` rise, so that only its end can be young.
    """
    generation = gc.generation
    gc.count2 = 0 if generation == 2 else gc.count2 + (generation == 1)
    gc.count1 = 0 if generation else gc.count1 + 1
    gc.count0, gc.due, gc.found = 0, 0, 0
    gc.ran += 1
    row = _put(rows, gc, -1, time_ns, thread, _GC_START)
    rows.size[row] = generation
    least = gc.frozen
    if generation < 2:
        least = max(least, gc.aged if generation else gc.examined)
    first = gc.doomed
    while first > 0 and doomed[first - 1].key >= least:
        first -= 1
    kept, upcoming = first, gc.recorded - gc.inside
    for index in range(first, gc.doomed):
        key, domain = doomed[index].key, doomed[index].domain
        fate = int(fates[key])
        if fate == FREED:
            continue
        if _is_garbage(gc, key, fate, future, upcoming):
            row = _put(rows, gc, -1, time_ns, thread, _FREE)
            rows.domain[row], rows.key[row] = domain, key
            if future.kinds[key] >= NO_OBJECTS:
                rows.type[row] = future.kinds[key] - NO_OBJECTS
            fates[key] = FREED
            if _is_object(objects, key):
                gc.found += 1
                _count_free(gc, key)
        else:
            doomed[kept].key, doomed[kept].domain = key, domain
            kept += 1
    gc.doomed = kept
    while gc.phantoms > 0 and phantoms[gc.phantoms - 1].born >= least:
        gc.phantoms -= 1
        phantom = phantoms[gc.phantoms]
        list_ = lists[phantom.which]
        row = _put(rows, gc, -1, time_ns, thread, _FREE)
        rows.domain[row], rows.type[row], rows.key[row] = list_.domain, list_.type, FIRST_PHANTOM + phantom.number
        if list_.collected:
            gc.found += 1
            _count_free(gc, phantom.born)
    for which in range(1, FREE_LISTS):
        lists[which].pending = 0


@leaf
def _allocate_phantoms(
    gc: Any, phantoms: np.ndarray, list_: Any, which: int, rows: Rows, time_ns: int, thread: int
) -> None:
    """Allocates the pending blocks of a free list. They are garbage: the collection that did not run found as many."""
    for _ in range(list_.pending):
        row = _put(rows, gc, -1, time_ns, thread, _MALLOC)
        rows.domain[row], rows.size[row], rows.key[row] = list_.domain, list_.bytes, FIRST_PHANTOM + gc.phantoms_made
        phantom = phantoms[gc.phantoms]
        phantom.number, phantom.born, phantom.which = gc.phantoms_made, gc.allocations, which
        gc.phantoms += 1
        gc.phantoms_made += 1
        if list_.collected:
            _count_object(gc)
    list_.pending = 0


@leaf
def _follow_free_lists(
    gc: Any, lists: np.ndarray, collected: int, phantoms: np.ndarray, rows: Rows, time_ns: int, thread: int
) -> None:
    """Finds what a recorded collection that ends put into the free lists, or that it emptied them.

    It found `collected` objects. Those that were not freed went into free lists. A list of lists or dicts is full if
    others were freed. The rest is shared out by what full collections freed. The program takes as many tuples before
    the next collection, so they are allocated at once.
    """
    hidden, shares = collected - gc.visible, 0
    for which in range(1, FREE_LISTS):
        list_ = lists[which]
        if gc.runs == 0 and list_.frees > 0 and list_.is_empty and gc.recorded_generation < 2:
            list_.pending = LIST_LENGTH
            hidden -= LIST_LENGTH * list_.collected
        elif list_.frees == 0 and list_.collected:
            shares += list_.freed
        if list_.frees > 0 or gc.recorded_generation == 2:
            list_.is_empty = gc.recorded_generation == 2
    if gc.runs == 0 and gc.recorded_generation < 2 and hidden > 0 and shares > 0:
        dicts = 0 if lists[DICTS].frees > 0 else hidden * lists[DICTS].freed // shares
        for which in range(1, FREE_LISTS):
            list_ = lists[which]
            if list_.frees == 0 and list_.collected:
                list_.pending = hidden * list_.freed // shares
            elif which == KEYS and list_.frees == 0 and lists[DICTS].freed > 0:
                list_.pending = dicts * list_.freed // lists[DICTS].freed
            else:
                continue
            _allocate_phantoms(gc, phantoms, list_, which, rows, time_ns, thread)
    for which in range(1, FREE_LISTS):
        lists[which].frees = 0
    gc.visible = 0


@leaf
def _end(gc: Any, rows: Rows, time_ns: int, thread: int) -> None:
    """Ends a collection: survivors move to the next generation."""
    row = _put(rows, gc, -1, time_ns, thread, _GC_END)
    rows.size[row] = gc.found
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
def _freeze(gc: Any) -> None:
    """`gc.freeze()`: all objects become permanent."""
    gc.frozen = gc.allocations
    gc.young, gc.middle, gc.old, gc.count0, gc.count1, gc.count2 = 0, 0, 0, 0, 0, 0


@entry
def drop_freed(doomed: np.ndarray, fates: np.ndarray, state: np.ndarray) -> None:
    """Removes freed blocks from `doomed`, in place."""
    kept = 0
    for index in range(state[0].doomed):
        key, domain = doomed[index].key, doomed[index].domain
        if fates[key] != FREED:
            doomed[kept].key, doomed[kept].domain = key, domain
            kept += 1
    state[0].doomed = kept


@leaf
def _collect(
    gc: Any,
    doomed: np.ndarray,
    phantoms: np.ndarray,
    lists: np.ndarray,
    objects: np.ndarray,
    fates: np.ndarray,
    future: Future,
    rows: Rows,
    time_ns: int,
    thread: int,
) -> None:
    """Runs the collection that is due."""
    since = gc.count0 - gc.threshold0 - 1
    gc.generation = _due_generation(gc)
    _begin(gc, doomed, phantoms, lists, objects, fates, future, rows, time_ns, thread)
    _end(gc, rows, time_ns, thread)
    gc.count0 = since  # the collection was due before


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
    future: Future,
    fates: np.ndarray,
    keys: np.ndarray,
    doomed: np.ndarray,
    phantoms: np.ndarray,
    lists: np.ndarray,
    state: np.ndarray,
    rows: Rows,
) -> None:
    """Writes the rows of a batch under other settings of the collector. Changes the last seven arguments in place.

    `rows`, `doomed` and `phantoms` have room for all.
    """
    gc = state[0]
    gc.rows = 0
    for at in range(op.shape[0]):
        kind, mover = op[at], thread[at]
        if gc.due > 0 and kind != _GC_START:
            gc.due -= 1
            if gc.due == 0 and gc.count0 > gc.threshold0:
                _collect(gc, doomed, phantoms, lists, objects, fates, future, rows, time_ns[at], mover)
        if kind == _GC_START and gc.inside == 0:
            if _meet_recorded(gc, mover, size[at]):
                _begin(gc, doomed, phantoms, lists, objects, fates, future, rows, time_ns[at], mover)
            continue
        if kind == _GC_END and gc.inside and mover == gc.thread:
            if gc.runs:
                gc.found += size[at]
                _end(gc, rows, time_ns[at], mover)
            _follow_free_lists(gc, lists, size[at], phantoms, rows, time_ns[at], mover)
            end_recorded(gc)
            continue
        key = np.int64(0)
        if concerns_block(kind) or (kind == _LIVE_OBJECT and block[at] < keys.shape[0]):
            if allocates(kind):
                keys[block[at]] = gc.allocations
                _meet_allocation(
                    gc, objects, future, fates, doomed, phantoms, lists, rows, domain[at], time_ns[at], mover
                )
            key = keys[block[at]]
            if kind == _FREE and _meet_free(gc, objects, future, fates, lists, key, mover):
                continue
            if fates[key] == FREED and kind != _FREE:
                continue  # freed before; the program cannot use it
        elif kind == _FOREIGN_FREE and type_[at] != _NO_TYPE and collected[type_[at]]:
            gc.recorded_count = max(gc.recorded_count - 1, 0)
            gc.count0 = max(gc.count0 - 1, 0)
            gc.old = max(gc.old - 1, 0)
        elif kind == _MARK and size[at] == gc.freeze_phase:
            _freeze(gc)
        row = _put(rows, gc, at, time_ns[at], mover, kind)
        rows.domain[row], rows.size[row], rows.type[row], rows.key[row] = domain[at], size[at], type_[at], key


@inlined
def _meet_allocation(
    gc: Any,
    objects: np.ndarray,
    future: Future,
    fates: np.ndarray,
    doomed: np.ndarray,
    phantoms: np.ndarray,
    lists: np.ndarray,
    rows: Rows,
    domain: int,
    time_ns: int,
    thread: int,
) -> None:
    """Counts a recorded allocation, after the blocks that free lists would not have had for the program."""
    key = gc.allocations
    which = int(future.free_lists[key])
    if which > 0:
        lists[which].is_empty = 1
        _allocate_phantoms(gc, phantoms, lists[which], which, rows, time_ns, thread)
    if fates[key] > 0:
        doomed[gc.doomed].key, doomed[gc.doomed].domain = key, domain
        gc.doomed += 1
    _count_allocation(gc, objects)


@inlined
def _meet_free(
    gc: Any, objects: np.ndarray, future: Future, fates: np.ndarray, lists: np.ndarray, key: int, thread: int
) -> bool:
    """Follows a recorded free into the free lists; returns whether it is left out."""
    is_left_out = _is_left_out(gc, objects, fates, key, thread)
    which = int(future.free_lists[key])
    if which > 0 and gc.inside and thread == gc.thread:
        lists[which].frees += 1
    elif which > 0:
        lists[which].is_empty = 0
    return is_left_out


@leaf
def _is_left_out(gc: Any, objects: np.ndarray, fates: np.ndarray, key: int, thread: int) -> bool:
    """Counts a recorded free; returns whether it is left out: the block was freed before, or it waits."""
    is_object = _is_object(objects, key)
    gc.recorded_count = max(gc.recorded_count - is_object, 0)
    is_of_collection = gc.inside and thread == gc.thread and key < gc.inside_from
    gc.visible += is_object and is_of_collection
    if fates[key] == FREED:
        return True
    if is_of_collection and (gc.runs == 0 or _generation_of(gc, key) > gc.generation):
        fates[key] = WAITS
        return True
    if fates[key] > 0:
        fates[key] = FREED
    if is_object:
        _count_free(gc, key)
    return False


@leaf
def _count_allocation(gc: Any, objects: np.ndarray) -> None:
    """Counts an allocation. A collection becomes due if the count of objects exceeds the threshold."""
    key = gc.allocations
    gc.allocations += 1
    if not _is_object(objects, key):
        return
    gc.recorded_count += 1
    _count_object(gc)


@leaf
def _count_object(gc: Any) -> None:
    """Counts an allocation of an object under the other settings."""
    gc.count0 += 1
    gc.young += 1
    runs_now = gc.inside and gc.runs
    if gc.enabled and gc.count0 > gc.threshold0 > 0 and gc.due == 0 and not runs_now:
        gc.due = gc.patience


@leaf
def _meet_recorded(gc: Any, thread: int, generation: int) -> bool:
    """Begins a recorded collection; returns whether it runs: one is due, or the program called `gc.collect`."""
    explicit = gc.recorded_count <= gc.recorded_threshold
    gc.recorded += 1
    gc.explicit += explicit
    gc.runs = explicit or gc.due > 0
    gc.inside, gc.thread, gc.inside_from = 1, thread, gc.allocations
    gc.recorded_count, gc.recorded_generation = 0, generation
    gc.generation = generation if explicit else _due_generation(gc)
    return gc.runs != 0
