"""Instances of classes without slots. Their attributes are stored as CPython of the release stores them.

    up to 3.10      in a dict, which is created with the first attribute. Dicts of one class share the table of keys
                    (split dicts) as long as their attributes are set in the same order
    3.11, 3.12      in a block of values, which is created with the instance
    from 3.13 on    in the instance

From 3.11 on, the class has a table of keys with room for SHARED_KEYS; `usable` of them are left. It has less room with
each new instance, and so have later instances. An attribute for which no room is left moves all attributes of its
instance to a dict.

An instance is a record of kind OPEN. Its items are the values in the order of the class's keys, or its dict. From 3.11
on, the number of values and their order of insertion follow, where references are not sought. The last entry is the
first weak reference to the instance. `Machine.slots` has the place of each attribute among the keys of each class.
"""

import numpy as np

from replay.jit.arrays import record
from replay.jit.compiling import leaf
from replay.objects.dicts import DICT_BYTES, find, grown_slots, insert, insert_entry, new_table, track_dict, usable
from replay.objects.functions import bind_method, class_of
from replay.objects.heap import (
    HAS_DICT,
    MALLOC,
    MEM,
    REFERABLE,
    chunk_log,
    drop,
    free_block,
    give_items,
    leave_keys,
    new_block,
    new_chunk,
    new_object,
    refer,
    take_items,
)
from replay.objects.kinds import DICT, EXCEPTION, INSTANCE, OPEN
from replay.objects.machine import IS_METHOD, NO_VALUE, fail, pop, push

CLASS = record("slots", "usable", "entries", "keys", "traits", "finalizer")
"""`slots`: -1 if instances have a dict, EXCEPTIONAL of classes of exceptions. `traits`: flags of new instances.
`finalizer`: the function that finalizes them. `usable`, `entries`: of the shared keys, from 3.11 on. `keys`: the shared
table of keys up to 3.10, 0 for none."""
SHARED_KEYS = 30


@leaf
def slots_bytes(machine, which):
    """Returns the size of an instance of a class with slots."""
    kind = machine.classes[which]
    return 32 + 8 * kind.slots + machine.heap.rules[0].weakref_slot_bytes * (kind.traits & REFERABLE)


@leaf
def new_instance(machine, which):
    """Pushes a new instance of a class with slots."""
    heap, kind = machine.heap, machine.classes[which]
    number = new_object(heap, INSTANCE, slots_bytes(machine, which), kind.slots)
    heap.objects[number].owner, heap.objects[number].capacity = which, kind.traits
    give_items(heap, number, kind.slots + (kind.traits & REFERABLE))
    push(machine, number)
    return True


@leaf
def new_open(machine, which):
    """Pushes a new instance of a class whose instances have a dict."""
    heap, kind = machine.heap, machine.classes[which]
    rules, count = heap.rules[0], kind.entries + kind.usable
    if rules.values_inline:
        number = new_object(heap, OPEN, rules.instance_bytes + _inline_bytes(count), count)
    else:
        number = new_object(heap, OPEN, rules.instance_bytes, count)
    entry = heap.objects[number]
    entry.owner, entry.capacity = which, kind.traits
    push(machine, number)
    if rules.splits_dicts:
        return True
    if kind.usable > 1:
        kind.usable -= 1
        count -= 1
    if not rules.values_inline:
        entry.vector = new_block(heap, MALLOC, MEM, ((count + 9) & ~7) + 8 * count)
    entry.length = count
    give_items(heap, number, 2 * count + 2)
    return True


@leaf
def _inline_bytes(count):
    return ((count + 7) & ~7) + 8 * (count + 1)


@leaf
def open_attribute(machine, number, name, is_set):
    """Pushes an attribute of an instance, which was popped; or sets it to the value on the stack."""
    heap, entry = machine.heap, machine.heap.objects[number]
    which, in_dict = class_of(entry), heap.rules[0].splits_dicts or entry.kind == EXCEPTION
    if is_set:
        if machine.methods[which, name]:
            return fail(machine, IS_METHOD, name, np.int64(0))
        value = pop(machine)
        old = _set_in_dict(machine, number, name, value) if in_dict else _set_in_values(machine, number, name, value)
        drop(heap, number)
        if old:
            drop(heap, old)
        return True
    value = np.int64(0)
    if in_dict or entry.capacity & HAS_DICT:
        if heap.items[entry.first]:
            value = _get_in_dict(machine, which, np.int64(heap.items[entry.first]), name)
    elif machine.slots[which, name] >= 0:
        value = np.int64(heap.items[entry.first + machine.slots[which, name]])
    if value == 0:
        if machine.methods[which, name]:
            return bind_method(machine, number, name)
        return fail(machine, NO_VALUE, name, np.int64(0))
    refer(heap, value)
    push(machine, value)
    drop(heap, number)
    return True


# Values of an instance, from 3.11 on


@leaf
def _set_in_values(machine, number, name, value):
    """Sets an attribute, and returns its previous value, 0 for none."""
    heap, entry = machine.heap, machine.heap.objects[number]
    if entry.capacity & HAS_DICT:
        return insert(heap, np.int64(heap.items[entry.first]), np.int64(machine.attributes[name]), value)
    kind, place = machine.classes[entry.owner], np.int64(machine.slots[entry.owner, name])
    if place < 0:
        if kind.usable == 0:
            _give_dict(machine, number)
            return insert(heap, np.int64(heap.items[entry.first]), np.int64(machine.attributes[name]), value)
        place = kind.entries
        machine.slots[entry.owner, name] = place
        kind.entries += 1
        kind.usable -= 1
    old = np.int64(heap.items[entry.first + place])
    heap.items[entry.first + place] = value
    if old == 0:
        order = entry.first + entry.length
        heap.items[order] += 1
        heap.items[order + heap.items[order]] = name
    return old


@leaf
def _give_dict(machine, number):
    """Moves the attributes of an instance to a dict, in their order of insertion."""
    heap, entry = machine.heap, machine.heap.objects[number]
    order = entry.first + entry.length
    count = np.int64(heap.items[order])
    made = new_object(heap, DICT, np.int64(DICT_BYTES), np.int64(0))
    new_table(heap, made, grown_slots(heap, count), np.int64(1))
    for index in range(count):
        name = heap.items[order + 1 + index]
        value = np.int64(heap.items[entry.first + machine.slots[entry.owner, name]])
        insert_entry(heap, made, np.int64(machine.attributes[name]), value)
        track_dict(heap, made, value)
    if entry.vector:
        free_block(heap, MEM, entry.vector)
        entry.vector = 0
    heap.items[entry.first] = made
    entry.length = 1
    entry.capacity |= HAS_DICT


# Split dicts, up to 3.10. Such a dict has a `vector`, the block of its values


@leaf
def _get_in_dict(machine, which, number, name):
    """Returns an attribute in the dict of an instance, 0 for none."""
    heap, entry = machine.heap, machine.heap.objects[number]
    if entry.vector:
        place = np.int64(machine.slots[which, name])
        return np.int64(heap.items[entry.first + place]) if place >= 0 else np.int64(0)
    found = find(heap, number, np.int64(machine.attributes[name]))
    return np.int64(heap.items[entry.first + 2 * found - 1]) if found else np.int64(0)


@leaf
def _set_in_dict(machine, number, name, value):
    """Sets an attribute in the dict of an instance, as `_PyObjectDict_SetItem` does; returns its previous value."""
    heap, entry = machine.heap, machine.heap.objects[number]
    which = class_of(entry)
    kind = machine.classes[which]
    if heap.items[entry.first] == 0:
        made = _new_split(heap, kind.keys) if kind.keys else new_object(heap, DICT, np.int64(DICT_BYTES), np.int64(0))
        if entry.kind == OPEN:
            give_items(heap, number, np.int64(1))
            entry.length = 1
        heap.items[entry.first] = made
    attributes = np.int64(heap.items[entry.first])
    shared, key = heap.objects[attributes].owner, np.int64(machine.attributes[name])
    if heap.objects[attributes].vector and _fits(machine, which, attributes, name):
        track_dict(heap, attributes, value)
        old = np.int64(heap.items[heap.objects[attributes].first + machine.slots[which, name]])
        heap.items[heap.objects[attributes].first + machine.slots[which, name]] = value
        heap.objects[attributes].length += old == 0
        return old
    if heap.objects[attributes].vector:
        _combine(machine, which, attributes)
    old = insert(heap, attributes, key, value)
    if shared and shared == kind.keys and heap.objects[attributes].owner != shared:
        kind.keys = 0
        if heap.objects[shared].refs == 1:  # of the class only
            _share(machine, which, attributes)
        leave_keys(heap, shared)
    return old


@leaf
def _new_split(heap, keys):
    """Returns a dict without values whose keys are shared."""
    count = usable(heap.objects[keys].capacity)
    values = new_block(heap, MALLOC, MEM, 8 * count)
    number = new_object(heap, DICT, np.int64(DICT_BYTES), np.int64(0))
    heap.objects[number].owner, heap.objects[number].vector = keys, values
    refer(heap, keys)
    give_items(heap, number, count)
    return number


@leaf
def _fits(machine, which, number, name):
    """Whether a split dict remains split when a key is set; the key then is among the shared ones."""
    heap, entry = machine.heap, machine.heap.objects[number]
    keys, place = heap.objects[entry.owner], np.int64(machine.slots[which, name])
    if place >= 0:
        return heap.items[entry.first + place] != 0 or entry.length == place
    if entry.length != keys.length or keys.length == usable(keys.capacity):
        return False
    machine.slots[which, name] = keys.length
    keys.length += 1
    return True


@leaf
def _combine(machine, which, number):
    """Gives a split dict a separate table."""
    heap, entry = machine.heap, machine.heap.objects[number]
    shared, first, room, count = entry.owner, entry.first, entry.room, entry.length
    entry.length = 0
    new_table(heap, number, grown_slots(heap, count), np.int64(1))
    for place in range(count):
        for name in range(machine.attributes.shape[0]):
            if machine.slots[which, name] == place:
                insert_entry(heap, number, np.int64(machine.attributes[name]), np.int64(heap.items[first + place]))
    heap.items[first] = heap.chunks[room]
    heap.chunks[room] = first
    leave_keys(heap, shared)
    free_block(heap, MEM, entry.vector)
    entry.vector = 0


@leaf
def _share(machine, which, number):
    """Makes the table of a dict the shared one of its class: the dict becomes a split one."""
    heap, entry = machine.heap, machine.heap.objects[number]
    keys, first, room = heap.objects[entry.owner], entry.first, entry.room
    for name in range(machine.attributes.shape[0]):
        machine.slots[which, name] = -1
    entry.vector = new_block(heap, MALLOC, MEM, 8 * usable(keys.capacity))
    entry.room = chunk_log(usable(keys.capacity))
    entry.first = new_chunk(heap, entry.room)
    for place in range(keys.length):
        machine.slots[which, heap.items[first + 2 * place] - machine.attributes[0]] = place
        heap.items[entry.first + place] = heap.items[first + 2 * place + 1]
    heap.items[first] = heap.chunks[room]
    heap.chunks[room] = first
    take_items(heap, entry.owner)
    refer(heap, entry.owner)
    machine.classes[which].keys = entry.owner
