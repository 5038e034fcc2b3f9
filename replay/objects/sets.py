"""Instructions of sets of integers. Where an element is in the table decides when it dies, so tables are CPython's.

A set is a record of kind SET: `length` is the number of elements, `capacity` the number of slots, `owner` that of slots
that are or were in use since the last resize. Its items are the slots, 0 for a free one; then, for each slot, whether
its element was discarded. `vector` is the block of a table of more than SLOTS_INSIDE slots.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.frozensets import PERTURB_SHIFT, PROBES, SLOTS_INSIDE
from replay.objects.heap import (
    MALLOC,
    MEM,
    chunk_log,
    drop,
    drop_leaf,
    free_block,
    new_block,
    new_chunk,
    new_object,
    refer,
)
from replay.objects.kinds import INT, SET
from replay.objects.machine import ADD, NONE, NOT_INT, NOT_SET, fail, pop, push

SET_BYTES, SLOT_BYTES = 216, 16
_MANY = 50_000
"""A set of more elements gets twice as many slots as elements, instead of four times as many."""


@leaf
def _new_set(heap):
    number = new_object(heap, SET, np.int64(SET_BYTES), np.int64(0))
    give_slots(heap, number)
    return number


@leaf
def give_slots(heap, number):
    """Gives an empty set the slots inside of it."""
    entry = heap.objects[number]
    entry.capacity, entry.room = SLOTS_INSIDE, chunk_log(2 * SLOTS_INSIDE)
    entry.first = new_chunk(heap, entry.room)


@leaf
def _find(heap, number, value):
    """Returns the slot of an integer, or the first free slot of its sequence; and the last discarded one before, or -1.

    The sequence visits some neighbours, then a slot that follows from more bits of the hash, and so on. The hash of an
    integer is its value.
    """
    entry = heap.objects[number]
    mask, discarded = entry.capacity - 1, np.int64(-1)
    slot, perturb = value & mask, value
    while True:
        for place in range(slot, slot + 1 + (PROBES if slot + PROBES <= mask else 0)):
            found = np.int64(heap.items[entry.first + place])
            if found == 0 and heap.items[entry.first + entry.capacity + place]:
                discarded = np.int64(place)
            elif found == 0 or heap.objects[found].length == value:
                return np.int64(place), discarded
        perturb >>= PERTURB_SHIFT
        slot = (slot * 5 + 1 + perturb) & mask


@leaf
def has_element(heap, number, element):
    """Whether an integer is in a set."""
    slot, _ = _find(heap, number, heap.objects[element].length)
    return heap.items[heap.objects[number].first + slot] != 0


@leaf
def _resize(heap, number, wanted):
    """Moves the elements of a set to a table with more slots than `wanted`, as `set_table_resize` does."""
    entry, slots = heap.objects[number], np.int64(SLOTS_INSIDE)
    while slots <= wanted:
        slots <<= 1
    if slots == entry.capacity == SLOTS_INSIDE and entry.owner == entry.length:
        return
    first, room, old, block = entry.first, entry.room, entry.capacity, entry.vector
    entry.vector = new_block(heap, MALLOC, MEM, SLOT_BYTES * slots) if slots > SLOTS_INSIDE else np.int64(0)
    entry.capacity, entry.owner, entry.room = slots, entry.length, chunk_log(2 * slots)
    entry.first = new_chunk(heap, entry.room)
    for slot in range(old):
        element = np.int64(heap.items[first + slot])
        if element:
            place, _ = _find(heap, number, heap.objects[element].length)
            heap.items[entry.first + place] = element
    heap.items[first] = heap.chunks[room]
    heap.chunks[room] = first
    if block:
        free_block(heap, MEM, block)


@leaf
def _add(heap, number, element):
    """Adds an integer to a set, which then refers to it; returns False if it was there."""
    entry = heap.objects[number]
    slot, discarded = _find(heap, number, heap.objects[element].length)
    if heap.items[entry.first + slot]:
        return False
    refer(heap, element)
    entry.length += 1
    if discarded >= 0 and heap.rules[0].sets_reuse:
        heap.items[entry.first + discarded] = element
        heap.items[entry.first + entry.capacity + discarded] = 0
        return True
    heap.items[entry.first + slot] = element
    entry.owner += 1
    if entry.owner * 5 >= (entry.capacity - 1) * 3:
        _resize(heap, number, entry.length * (2 if entry.length > _MANY else 4))
    return True


@leaf
def make_set(machine, count):
    """Replaces integers by a set of them. Each is dropped from the stack once it was added."""
    heap, state = machine.heap, machine.state[0]
    bottom = state.top - count
    for index in range(bottom, state.top):
        if heap.objects[machine.stack[index]].kind != INT:
            return fail(machine, NOT_INT, np.int64(0), np.int64(0))
    number = _new_set(heap)
    for index in range(bottom, state.top):
        _add(heap, number, np.int64(machine.stack[index]))
        drop_leaf(heap, np.int64(machine.stack[index]))
    state.top = bottom
    push(machine, number)
    return True


@leaf
def set_of_constants(machine, once, twice):
    """Replaces a constant tuple of integers by a set of them, from 3.9 on an update by a constant frozenset.

    `once` and `twice`: the slots of this frozenset, made from the tuple, or again from the first frozenset.
    """
    heap = machine.heap
    constants, number = heap.objects[pop(machine)], _new_set(heap)
    if heap.rules[0].list_classic:
        for index in range(constants.length):
            _add(heap, number, np.int64(heap.items[constants.first + index]))
        push(machine, number)
        return True
    frozen = heap.objects[twice if heap.rules[0].frozen_twice else once]
    entry, none = heap.objects[number], machine.ints.shape[0] + 1 + NONE
    for index in range(frozen.length):
        entry.length += heap.items[frozen.first + index] != none
    if entry.length * 5 >= (SLOTS_INSIDE - 1) * 3:
        count = entry.length
        entry.length = 0
        _resize(heap, number, 2 * count)
        entry.length = count
    for index in range(frozen.length):
        element = np.int64(heap.items[frozen.first + index])
        if element == none:
            continue
        refer(heap, element)
        slot = np.int64(index)
        if entry.capacity != frozen.length:  # else the slots are copied
            slot, _ = _find(heap, number, heap.objects[element].length)
        heap.items[entry.first + slot] = element
    entry.owner = entry.length
    push(machine, number)
    return True


@leaf
def change_set(machine, op):
    """Adds the integer on the stack to the set below, or discards it."""
    heap = machine.heap
    element, number = pop(machine), pop(machine)
    entry = heap.objects[number]
    if entry.kind != SET:
        return fail(machine, NOT_SET, np.int64(0), np.int64(0))
    if heap.objects[element].kind != INT:
        return fail(machine, NOT_INT, np.int64(0), np.int64(0))
    drop(heap, element if heap.rules[0].method_first else number)
    drop(heap, number if heap.rules[0].method_first else element)
    if op == ADD:
        _add(heap, number, element)
        return True
    slot, _ = _find(heap, number, heap.objects[element].length)
    found = np.int64(heap.items[entry.first + slot])
    if found:
        heap.items[entry.first + slot] = 0
        heap.items[entry.first + entry.capacity + slot] = 1
        entry.length -= 1
        drop(heap, found)
    return True
