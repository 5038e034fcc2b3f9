"""The first pass of `replay.trace.editing.collecting`: which collection freed a block, and the ages of garbage."""

from typing import Any

import numpy as np

from replay.jit.compiling import entry, inlined, leaf
from replay.trace.block_ops import FREE, allocates
from replay.trace.columns import NO_TYPE, Op
from replay.trace.editing.collector_state import (
    AGES,
    AGES_AN_OCTAVE,
    DICTS,
    FREE_LISTS,
    KEYS,
    LISTS,
    NO_OBJECTS,
    TUPLES,
    Findings,
    end_recorded,
    fate_of,
)

_GC_START, _GC_END, _MARK, _LIVE_OBJECT = int(Op.GC_START), int(Op.GC_END), int(Op.MARK), int(Op.LIVE_OBJECT)
_FREE, _REALLOC, _NO_TYPE = int(FREE), int(Op.REALLOC), NO_TYPE
_ROUNDS, _TINY = 300, 1e-300
"""Rounds in which the distribution of ages becomes more likely."""


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
            live[block[row]].power, live[block[row]].used = _age_class(size[row]) // AGES_AN_OCTAVE, 0
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
            end_recorded(gc)
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
                found.fates[key] = fate_of(gc.recorded - 1)
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
    return 0 if age < 2 else int(min(AGES_AN_OCTAVE * np.log2(age), AGES - 1))


def age_of_class(number: float) -> int:
    """Returns the age at which a class begins."""
    return round(2.0 ** (number / AGES_AN_OCTAVE))


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
