"""Kernels of `replay.trace.editing.collecting`: which blocks are objects of the collector, and the collector itself.

A block is named by its key: the number of the allocations before its own. So keys are also ages. `objects` has one bit
for each key: whether the block has the collector's header. `fates` has a byte for each: which collection frees it.
"""

from typing import Any, NamedTuple

import numpy as np

from replay.jit.arrays import record
from replay.jit.compiling import by_reference, entry, inlined, leaf
from replay.trace.block_ops import FREE, allocates, concerns_block
from replay.trace.columns import NO_TYPE, Op

_GC_START, _GC_END, _MARK = int(Op.GC_START), int(Op.GC_END), int(Op.MARK)
_FOREIGN_FREE, _LIVE_OBJECT = int(Op.FOREIGN_FREE), int(Op.LIVE_OBJECT)
_MALLOC, _FREE, _REALLOC, _NO_TYPE = int(Op.MALLOC), int(FREE), int(Op.REALLOC), NO_TYPE
_PERMANENT = 3
"""The generation of objects that `gc.freeze` moved out of the collector's reach."""

_WAITS, _FREED = 254, 255
"""Fates of a block that a recorded collection freed: it waits for a collection; it was freed. Lower fates are the
number of the recorded collection plus 1, modulo _FATES; 0 is any other block."""
_FATES = 253

AGES, _AGES_AN_OCTAVE = 1280, 32
"""Classes of ages, up to 2^40 allocations."""
NO_OBJECTS = 64
"""Kinds of blocks without a type, by the power of two of their size."""
_ROUNDS, _TINY = 300, 1e-300
"""Rounds in which the distribution of ages becomes more likely."""

COLLECTOR = record(
    "count0", "count1", "count2", "threshold0", "threshold1", "threshold2", "enabled", "pending", "total",
    "young", "middle", "old", "examined", "aged", "frozen", "freeze_phase", "end_phase", "is_over",
    "recorded_count", "recorded_threshold", "recorded_generation", "recorded_examined", "recorded_aged",
    "phantoms", "phantoms_made", "visible", "found",
    "inside", "thread", "inside_from", "runs", "generation", "due", "patience",
    "allocations", "doomed", "rows", "recorded", "explicit", "ran", "promotions", "last_full",
)  # fmt: skip
"""The state of the collector under other settings, and of the recorded one.

    young, middle, old      live objects by generation
    examined, aged          the first key after the last collection, and after the last one of generation 1 or 2
    frozen                  keys below are permanent; phase of the mark at which `gc.freeze` is called, or -1
    recorded_…              the same in the recording; recorded_generation is that of the current collection
    end_phase, is_over      phase of the interpreter's teardown or -1; whether it has begun
    visible, found          objects that the recorded collection freed so far; those of the collection otherwise
    inside …                whether a recorded collection runs, its thread, the first key after its start; whether the
                            collector runs it under the other settings too, and its generation there
    due, patience           events until the collection runs that became due; their number at first
    doomed                  length of the list of blocks that a recorded collection will free, or has freed
    phantoms, phantoms_made live blocks of FREE_LISTS that the recording does not have, and all of them so far
    recorded, explicit, ran recorded collections so far, those of them by `gc.collect`, and those that ran
    promotions, last_full   recorded collections of generation 1 or 2; the first key after the last one of generation 2
"""
DOOMED = record("key", "domain")
LIVE = record("power", "used", "bytes", "domain")
PHANTOM = record("number", "born", "which")
FREE_LIST = record("bytes", "domain", "type", "collected", "is_empty", "frees", "pending", "freed")
"""A free list of CPython that collections fill.

    bytes, domain, type, collected  of its blocks; whether they have the collector's header
    freed                           by full collections. These empty all free lists, so this is also garbage that went
                                    into the list first
    is_empty                        the last event of such a block was an allocation: none was in the free list
    frees                           frees of such blocks in the current recorded collection, which does not run
    pending                         blocks that a collection that did not run put into the free list. Once the list is
                                    empty again, the program has taken them: without the collection, it would have
                                    allocated as many
"""
LIST_LENGTH, FREE_LISTS = 80, 24
"""Blocks of a free list of lists, dicts or keys of dicts, in CPython 3.11 to 3.15; the number of all lists plus 1: 0 is
none."""
LISTS, DICTS, KEYS, TUPLES = range(1, 5)
"""Numbers of free lists. From TUPLES on: those of tuples, from length 1 on. They take 2,000 each."""
_FIRST_PHANTOM = 1 << 48
"""The key of the first phantom."""


@by_reference
class Findings(NamedTuple):
    """What the first pass finds. By key: `objects`, `fates`, and the free list of the block.

    Also by key, for each block that a collection freed: its kind, which is NO_OBJECTS plus the type, or the power of
    two of the size; the class of the age at which it was `alive` for the last time, by a realloc or a collection that
    kept it; the class of the age plus 1 at which it was `dead`. `examinations` and `promotions`: the first keys after
    the recorded collections, and after those of generation 1 or 2.
    """

    objects: np.ndarray
    fates: np.ndarray
    free_lists: np.ndarray
    kinds: np.ndarray
    alive: np.ndarray
    dead: np.ndarray
    examinations: np.ndarray
    promotions: np.ndarray


@by_reference
class Future(NamedTuple):
    """What the first pass found about the recorded collections, for the second one.

    `following`: by generation and recorded collection, the first one from it on that examines this generation.
    `free_lists`: as in Findings. `dying`: by key, the class of the age at which a block becomes garbage. `ages`: by
    class, the lowest age.
    """

    following: np.ndarray
    free_lists: np.ndarray
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


@entry
def find_fates(
    thread: np.ndarray,
    op: np.ndarray,
    domain: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    type_: np.ndarray,
    collected: np.ndarray,
    lists: np.ndarray,
    keys: np.ndarray,
    live: np.ndarray,
    found: Findings,
    state: np.ndarray,
) -> None:
    """Finds the objects in a batch, and the fates of blocks. Changes the last five arguments in place.

    `collected`: by type, whether its objects have the collector's header. `keys`: key of each live block. `live`: its
    size and the power of two of it, its domain, and `used` as in Findings. `lists`: of FREE_LIST, by number.
    """
    gc = state[0]
    for row in range(op.shape[0]):
        kind = op[row]
        if allocates(kind):
            keys[block[row]] = gc.allocations
            live[block[row]].power, live[block[row]].used = _age_class(size[row]) // _AGES_AN_OCTAVE, 0
            live[block[row]].bytes, live[block[row]].domain = size[row], domain[row]
            gc.allocations += 1
        elif kind == _REALLOC and not (gc.inside and thread[row] == gc.thread):
            live[block[row]].used = _age_class(gc.allocations - keys[block[row]]) + 1  # the next class is after it
        elif kind == _GC_START and gc.inside == 0:
            gc.inside, gc.thread, gc.inside_from, gc.recorded = 1, thread[row], gc.allocations, gc.recorded + 1
            gc.recorded_generation = size[row]
        elif kind == _GC_END and gc.inside and thread[row] == gc.thread:
            found.examinations[gc.recorded - 1] = gc.allocations
            if gc.recorded_generation > 0:
                found.promotions[gc.promotions] = gc.allocations
                gc.promotions += 1
            if gc.recorded_generation == 2:
                gc.last_full = gc.allocations
            _end_recorded(gc)
        elif kind == _MARK and size[row] == gc.end_phase:
            gc.is_over = 1
        elif kind in (_FREE, _LIVE_OBJECT) and block[row] < keys.shape[0]:
            key = keys[block[row]]
            if type_[row] != _NO_TYPE and collected[type_[row]]:
                found.objects[key >> 3] |= np.uint8(1 << (key & 7))
            which = _free_list_of(live[block[row]], int(type_[row]), lists)
            if which > 0:
                found.free_lists[key] = which
                lists[which].bytes, lists[which].domain = live[block[row]].bytes, live[block[row]].domain
                if kind == _FREE and gc.inside and gc.recorded_generation == 2 and gc.is_over == 0:
                    lists[which].freed += 1
            if kind == _FREE and gc.inside and thread[row] == gc.thread and key < gc.inside_from:
                found.fates[key] = _fate(gc.recorded - 1)
                found.kinds[key] = live[block[row]].power if type_[row] == _NO_TYPE else NO_OBJECTS + int(type_[row])
                alive, dead = _age_class(_kept_until(gc, key, found) - key), _age_class(gc.inside_from - key)
                found.alive[key] = min(max(alive, live[block[row]].used), dead)
                found.dead[key] = dead + 1


@entry
def likely_ages(
    alive: np.ndarray, dead: np.ndarray, count: np.ndarray, shares: np.ndarray, changes: np.ndarray
) -> None:
    """Finds the most likely distribution of the ages at which blocks of one kind became garbage (Turnbull, 1976).

    `count` blocks were alive in one class of age, and dead in another one. Writes the share of each class into
    `shares` (float64), by expectation and maximization. `changes` (float64) is scratch memory, one longer.
    """
    classes, blocks = shares.shape[0], count.sum()
    shares[:] = 1.0 / classes
    for _ in range(_ROUNDS):
        changes[:] = 0.0
        for index in range(1, classes):
            shares[index] += shares[index - 1]
        for index in range(count.shape[0]):
            first, last = alive[index], dead[index]
            weight = count[index] / (shares[last] - (shares[first - 1] if first > 0 else 0.0) + _TINY)
            changes[first] += weight
            changes[last + 1] -= weight
        for index in range(classes - 1, 0, -1):
            shares[index] -= shares[index - 1]
        weight = 0.0
        for index in range(classes):
            weight += changes[index]
            shares[index] *= max(weight, 0.0) / blocks


@inlined
def _recorded_generation(gc: Any, key: int) -> int:
    """Returns the generation of a live object in the recording."""
    return 0 if key >= gc.recorded_examined else (2 if key < gc.recorded_aged else 1)


@inlined
def _free_list_of(block: Any, type_: int, lists: np.ndarray) -> int:
    """Returns the number of the free list that takes a block of this type, or 0. Keys of dicts have no type, but a
    size."""
    if type_ == lists[LISTS].type:
        return LISTS
    if type_ == lists[DICTS].type:
        return DICTS
    if type_ == lists[KEYS].type and block.bytes == lists[KEYS].bytes and block.domain == lists[KEYS].domain:
        return KEYS
    if type_ == lists[TUPLES].type:
        which = TUPLES + (block.bytes - lists[TUPLES].bytes) // 8
        return which if TUPLES <= which < FREE_LISTS else 0
    return 0


@inlined
def _age_class(age: int) -> int:
    """Returns the class of an age in allocations: 0 for 0 and 1, then 32 classes for each power of two."""
    return 0 if age < 2 else int(min(_AGES_AN_OCTAVE * np.log2(age), AGES - 1))


def age_of_class(number: float) -> int:
    """Returns the age at which a class begins."""
    return round(2.0 ** (number / _AGES_AN_OCTAVE))


@leaf
def _first_after(places: np.ndarray, count: int, key: int) -> int:
    """Returns the first of the rising `places` that is higher than the key; the key if there is none."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if places[middle] > key:
            high = middle
        else:
            low = middle + 1
    return places[low] if low < count else key


@leaf
def _kept_until(gc: Any, key: int, found: Findings) -> int:
    """Returns the key after the last recorded collection that examined and kept a block; its own key if none did."""
    if key >= gc.recorded_examined:
        return key
    if key >= gc.recorded_aged:
        return _first_after(found.examinations, gc.recorded - 1, key)
    return gc.last_full if gc.last_full > key else _first_after(found.promotions, gc.promotions, key)


@inlined
def _fate(collection: int) -> int:
    return collection % _FATES + 1


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
    if fate == _WAITS or gc.allocations - key < future.ages[future.dying[key]]:
        return fate == _WAITS
    following = future.following
    generation = _recorded_generation(gc, key)
    collection = following[generation, upcoming]
    if gc.inside and collection == upcoming:
        return False
    return collection < following.shape[1] and fate == _fate(collection)


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
        if fate == _FREED:
            continue
        if _is_garbage(gc, key, fate, future, upcoming):
            row = _put(rows, gc, -1, time_ns, thread, _FREE)
            rows.domain[row], rows.key[row] = domain, key
            fates[key] = _FREED
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
        rows.domain[row], rows.type[row], rows.key[row] = list_.domain, list_.type, _FIRST_PHANTOM + phantom.number
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
        rows.domain[row], rows.size[row], rows.key[row] = list_.domain, list_.bytes, _FIRST_PHANTOM + gc.phantoms_made
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
        if fates[key] != _FREED:
            doomed[kept].key, doomed[kept].domain = key, domain
            kept += 1
    state[0].doomed = kept


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
                since = gc.count0 - gc.threshold0 - 1
                gc.generation = _due_generation(gc)
                _begin(gc, doomed, phantoms, lists, objects, fates, future, rows, time_ns[at], mover)
                _end(gc, rows, time_ns[at], mover)
                gc.count0 = since  # the collection was due before
        if kind == _GC_START and gc.inside == 0:
            if _meet_recorded(gc, mover, size[at]):
                _begin(gc, doomed, phantoms, lists, objects, fates, future, rows, time_ns[at], mover)
            continue
        if kind == _GC_END and gc.inside and mover == gc.thread:
            if gc.runs:
                gc.found += size[at]
                _end(gc, rows, time_ns[at], mover)
            _follow_free_lists(gc, lists, size[at], phantoms, rows, time_ns[at], mover)
            _end_recorded(gc)
            continue
        key = np.int64(0)
        if concerns_block(kind) or (kind == _LIVE_OBJECT and block[at] < keys.shape[0]):
            if allocates(kind):
                keys[block[at]] = gc.allocations
                which = int(future.free_lists[gc.allocations])
                if which > 0:
                    lists[which].is_empty = 1
                    _allocate_phantoms(gc, phantoms, lists[which], which, rows, time_ns[at], mover)
                if fates[gc.allocations] > 0:
                    doomed[gc.doomed].key, doomed[gc.doomed].domain = gc.allocations, domain[at]
                    gc.doomed += 1
                _count_allocation(gc, objects)
            key = keys[block[at]]
            if kind == _FREE:
                is_left_out = _meets_free(gc, objects, fates, key, mover)
                which = int(future.free_lists[key])
                if which > 0 and gc.inside and mover == gc.thread:
                    lists[which].frees += 1
                elif which > 0:
                    lists[which].is_empty = 0
                if is_left_out:
                    continue
            if fates[key] == _FREED and kind != _FREE:
                continue  # freed before; the program cannot use it
        elif kind == _FOREIGN_FREE and type_[at] != _NO_TYPE and collected[type_[at]]:
            gc.recorded_count = max(gc.recorded_count - 1, 0)
            gc.count0 = max(gc.count0 - 1, 0)
            gc.old = max(gc.old - 1, 0)
        elif kind == _MARK and size[at] == gc.freeze_phase:
            _freeze(gc)
        row = _put(rows, gc, at, time_ns[at], mover, kind)
        rows.domain[row], rows.size[row], rows.type[row], rows.key[row] = domain[at], size[at], type_[at], key


@leaf
def _meets_free(gc: Any, objects: np.ndarray, fates: np.ndarray, key: int, thread: int) -> bool:
    """Counts a recorded free; returns whether it is left out: the block was freed before, or it waits."""
    is_object = _is_object(objects, key)
    gc.recorded_count = max(gc.recorded_count - is_object, 0)
    if fates[key] == _FREED:
        return True
    is_of_collection = gc.inside and thread == gc.thread and key < gc.inside_from
    gc.visible += is_object and is_of_collection
    if is_of_collection and (gc.runs == 0 or _generation_of(gc, key) > gc.generation):
        fates[key] = _WAITS
        return True
    if fates[key] > 0:
        fates[key] = _FREED
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


@leaf
def _end_recorded(gc: Any) -> None:
    """Ends a recorded collection."""
    gc.inside = 0
    gc.recorded_examined = gc.allocations
    if gc.recorded_generation > 0:
        gc.recorded_aged = gc.allocations
