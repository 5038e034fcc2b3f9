"""Clears objects of the garbage: drops the references by which they keep each other alive."""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.dicts import clear_dict
from replay.objects.dropping import weak_references
from replay.objects.heap import REFERABLE, drop, end_items, end_vector, give_items, references
from replay.objects.kinds import (
    CELL,
    DICT,
    DICT_ITERATOR,
    EXCEPTION,
    FRAME,
    FUNCTION,
    INSTANCE,
    LIST,
    LIST_ITERATOR,
    LIST_QUEUE,
    METHOD,
    OPEN,
    QUEUE,
    SET,
    STEPS,
    TRACEBACK,
    TUPLE_ITERATOR,
    WEAKREF,
)
from replay.objects.sets import give_slots

WITH_OWNER = (
    LIST_ITERATOR, TUPLE_ITERATOR, DICT_ITERATOR, FUNCTION, CELL, METHOD, STEPS, WEAKREF,
)  # fmt: skip
"""Kinds of objects whose only reference is `owner`."""


@leaf
def can_be_cleared(heap, kind):
    """Whether the collector can drop the references of an object of a kind."""
    if kind in (QUEUE, LIST_QUEUE):
        return heap.rules[0].clears_queues > 0
    return kind in (LIST, DICT, INSTANCE, OPEN, SET, FUNCTION, CELL, EXCEPTION, TRACEBACK, FRAME, WEAKREF)


@leaf
def clear_object(heap, number):
    """Drops all references of an object."""
    kind = heap.objects[number].kind
    if kind == LIST:
        end_vector(heap, number)
    elif kind == DICT and heap.objects[number].vector == 0:
        clear_dict(heap, number)
    elif kind in (DICT, SET):
        _clear_table(heap, number)
    elif kind in WITH_OWNER:
        if heap.objects[number].owner:
            drop(heap, np.int64(heap.objects[number].owner))
        heap.objects[number].owner = 0
    elif kind == OPEN and heap.objects[number].vector and heap.rules[0].clears_values:
        _clear_values(heap, number)
    elif kind == FRAME:
        _clear_variables(heap, number)
    elif kind in (QUEUE, LIST_QUEUE):
        _clear_queue(heap, number)
    else:
        _clear_slots(heap, number)


@leaf
def _clear_values(heap, number):
    """Drops the attributes of an instance, and frees their block; its weak references remain."""
    reference = weak_references(heap, number)
    reverse_items(heap, number)
    end_items(heap, number, heap.objects[number].length)
    if reference:
        give_items(heap, number, np.int64(1))
        entry = heap.objects[number]
        entry.capacity, heap.items[entry.first + (1 << entry.room) - 1] = REFERABLE, reference


@leaf
def _clear_table(heap, number):
    """Empties a set, or a dict that shares its keys with others."""
    entry, length = heap.objects[number], references(heap, number)
    keys, kind = np.int64(entry.owner), entry.kind
    reverse_items(heap, number)
    vector = end_items(heap, number, length)
    if kind == SET:
        entry.owner = 0
        give_slots(heap, number)
    elif kind == DICT:
        entry.owner = 0
        heap.objects[vector].owner = keys


@leaf
def reverse_items(heap, number):
    """Reverses the items of an object before they are taken from it, so that they die from the first one on."""
    entry, length = heap.objects[number], references(heap, number)
    for index in range(length // 2):
        first, last = entry.first + index, entry.first + length - 1 - index
        heap.items[first], heap.items[last] = heap.items[last], heap.items[first]


@leaf
def _clear_queue(heap, number):
    """Drops the list of a queue, or its items, from the first one on, and its array."""
    queue = heap.objects[number]
    if queue.kind == LIST_QUEUE:
        drop(heap, np.int64(heap.items[queue.first + 1]))
        queue.length, heap.items[queue.first + 1] = 1, 0
        return
    semaphore, length = np.int64(heap.items[queue.first]), np.int64(queue.length)
    heap.items[queue.first] = 0
    reverse_items(heap, number)
    end_items(heap, number, length)
    give_items(heap, number, np.int64(2))
    heap.items[heap.objects[number].first], heap.objects[number].length, heap.objects[number].owner = semaphore, 1, 1


@leaf
def _clear_slots(heap, number):
    """Drops the references of an instance, from its first slot on."""
    for slot in range(heap.objects[number].length):
        place = heap.objects[number].first + heap.objects[number].length - 1 - slot
        if heap.items[place]:
            drop(heap, np.int64(heap.items[place]))
            heap.items[place] = 0


@leaf
def _clear_variables(heap, number):
    """Drops the variables of a frame object, as if it ended; not its caller and its function."""
    entry = heap.objects[number]
    for index in range(entry.length - 2):
        place = entry.first + entry.length - 2 - index
        if heap.items[place]:
            drop(heap, np.int64(heap.items[place]))
            heap.items[place] = 0
