"""Instructions of dicts. Their hash tables grow as in CPython.

A dict is a record of kind DICT: `length` is the number of keys in use, its items are entries of key and value in the
order of insertion, and `owner` is its hash table, none before the first key. Deleted entries are 0.

The table is a record of kind KEYS: `block` is its memory, `capacity` the number of its slots, `length` that of
entries, also of deleted ones, `vector` that of deleted ones before all others, as far as it is known, `owner` whether
all keys are texts. Its items are the slots: an entry, counted from 1,
DELETED or 0. Where a key is in the table has no effect on memory, so slots are chosen by a simpler rule than CPython's.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.heap import (
    KEYS_LEAST,
    MALLOC,
    MEM,
    chunk_log,
    drop,
    end_keys,
    free_block,
    may_be_tracked,
    new_block,
    new_chunk,
    new_object,
    new_record,
    refer,
    track,
)
from replay.objects.kinds import DICT, DICT_ITERATOR, INT, KEYS, SET, TEXT
from replay.objects.machine import (
    DELETE_ITEM,
    DICT_CHANGED,
    DICT_OF_CONSTANTS,
    FIRST_KEY,
    MAKE_DICT,
    NO_KEY,
    NO_KEYS,
    NOT_DICT,
    NOT_INT,
    NOT_KEY,
    NOT_KEYED,
    applies,
    fail,
    pop,
    push,
)
from replay.objects.sets import has_element

DELETED = -1
DICT_BYTES, DICT_ITERATOR_BYTES = 64, 72
FEW_PAIRS = 5
"""Displays of more pairs create their hash table first, with room for all."""


@leaf
def usable(slots):
    """Returns how many entries a table of so many slots has."""
    return (slots << 1) // 3


@leaf
def keys_bytes(rules, slots, are_texts):
    """Returns the size of a table."""
    index = slots * (1 if slots < 1 << 8 else 2 if slots < 1 << 16 else 4)
    return rules.keys_header + index + (rules.text_entry if are_texts else np.int64(24)) * usable(slots)


@leaf
def slots_for(wanted):
    """Returns the smallest number of slots that is at least `wanted`."""
    slots = np.int64(KEYS_LEAST)
    while slots < wanted:
        slots <<= 1
    return slots


@leaf
def grown_slots(heap, length):
    """Returns how many slots a table gets when a dict of so many keys is moved."""
    return max(slots_for(3 * length), heap.rules[0].slots_least if length else np.int64(0))


@leaf
def new_keys(heap, slots, are_texts):
    """Returns a new table without entries."""
    number = new_record(heap, KEYS, np.int64(0))
    entry = heap.objects[number]
    entry.capacity, entry.owner = slots, are_texts
    if slots == KEYS_LEAST and are_texts and heap.kept_counts[KEYS]:
        heap.kept_counts[KEYS] -= 1
        entry.block = heap.kept[KEYS, heap.kept_counts[KEYS]]
    else:
        rules = heap.rules[0]
        entry.block = new_block(heap, MALLOC, rules.keys_domain, keys_bytes(rules, slots, are_texts))
    entry.room = chunk_log(slots)
    entry.first = new_chunk(heap, entry.room)
    return number


@leaf
def _are_texts(heap, is_text):
    """Whether a table has entries for texts only. Up to 3.10 all tables have the same entries."""
    return np.int64(is_text or heap.rules[0].text_entry == 24)


@leaf
def _slot(heap, number, key, wants_free):
    """Returns the slot of a key in the table of a dict, or the free slot for it."""
    sought, entry = heap.objects[key], heap.objects[number]
    table, mask = heap.objects[entry.owner], heap.objects[entry.owner].capacity - 1
    mixed = sought.length ^ (sought.length >> 31) ^ (sought.capacity << 20)
    slot = (((mixed & 0x7FFFFFFF) * 0x9E3779B1) >> 24) & mask
    while True:
        found = np.int64(heap.items[table.first + slot])
        if found == 0:
            return slot
        if not wants_free and found > 0:
            other = heap.objects[heap.items[entry.first + 2 * found - 2]]
            if other.length == sought.length and other.kind == sought.kind and other.capacity == sought.capacity:
                return slot
        slot = (slot + 1) & mask


@leaf
def find(heap, number, key):
    """Returns the entry of a key in a dict, counted from 1; 0 for none."""
    entry = heap.objects[number]
    if entry.owner == 0:
        return np.int64(0)
    return np.int64(heap.items[heap.objects[entry.owner].first + _slot(heap, number, key, False)])


@leaf
def new_table(heap, number, slots, are_texts):
    """Gives a dict a new table, without entries."""
    entry = heap.objects[number]
    entry.owner = new_keys(heap, slots, are_texts)
    entry.room = chunk_log(2 * usable(slots))
    entry.first = new_chunk(heap, entry.room)


@leaf
def insert_entry(heap, number, key, value):
    """Adds an entry of a new key to a dict whose table has room for it."""
    entry = heap.objects[number]
    table = heap.objects[entry.owner]
    heap.items[entry.first + 2 * table.length] = key
    heap.items[entry.first + 2 * table.length + 1] = value
    heap.items[table.first + _slot(heap, number, key, True)] = table.length + 1
    table.length += 1
    entry.length += 1


@leaf
def give_keys(heap, number, slots, are_texts):
    """Gives a dict a new table with its entries; the previous table ends."""
    entry = heap.objects[number]
    old, first, room = entry.owner, entry.first, entry.room
    count = heap.objects[old].length
    new_table(heap, number, slots, are_texts)
    entry.length = 0
    for index in range(count):
        key = np.int64(heap.items[first + 2 * index])
        if key:
            insert_entry(heap, number, key, np.int64(heap.items[first + 2 * index + 1]))
    if old:
        heap.items[first] = heap.chunks[room]
        heap.chunks[room] = first
        end_keys(heap, old)


@leaf
def track_dict(heap, number, value):
    """Has the collector track a dict from its first value on that may be tracked (up to 3.13)."""
    if heap.objects[number].next == 0 and may_be_tracked(heap, value):
        track(heap, number, heap.generations[0].ring)


@leaf
def insert(heap, number, key, value):
    """Sets the value of a key in a dict, as `insertdict` of CPython does; returns the previous value, 0 for a new key.

    The dict takes over the reference to the value, and that to a new key.
    """
    entry, are_texts = heap.objects[number], _are_texts(heap, heap.objects[key].kind == TEXT)
    track_dict(heap, number, value)
    if entry.owner == 0:
        give_keys(heap, number, np.int64(KEYS_LEAST), are_texts)
    elif are_texts < heap.objects[entry.owner].owner:  # the first key that is not a text
        give_keys(heap, number, grown_slots(heap, entry.length), np.int64(0))
    found = find(heap, number, key)
    if found:
        old = np.int64(heap.items[entry.first + 2 * found - 1])
        heap.items[entry.first + 2 * found - 1] = value
        return old
    table = heap.objects[entry.owner]
    if table.length == usable(table.capacity):
        give_keys(heap, number, grown_slots(heap, entry.length), table.owner)
    insert_entry(heap, number, key, value)
    return np.int64(0)


@leaf
def is_key(heap, number):
    kind = heap.objects[number].kind
    return kind in (INT, TEXT)


@leaf
def dict_item(machine, number, key, is_set):
    """Pushes a value of a dict, or sets it to the value on the stack; the dict and the key were popped."""
    heap = machine.heap
    if not is_key(heap, key):
        return fail(machine, NOT_KEY, np.int64(0), np.int64(0))
    if is_set:
        _store(machine, number, key, pop(machine))
        return True
    found = find(heap, number, key)
    if found == 0:
        return fail(machine, NO_KEY, key, np.int64(0))
    value = np.int64(heap.items[heap.objects[number].first + 2 * found - 1])
    refer(heap, value)
    push(machine, value)
    key_first = applies(machine, heap.rules[0].item_key_first)
    drop(heap, number if key_first else key)
    drop(heap, key if key_first else number)
    return True


@leaf
def _store(machine, number, key, value):
    """Sets the value of a key in a dict. The previous value dies, then what the stack referred to."""
    heap, rules = machine.heap, machine.heap.rules[0]
    is_specialised, before = applies(machine, rules.stores_specialised), heap.objects[number].length
    old = insert(heap, number, key, value)
    is_new = heap.objects[number].length > before
    if heap.objects[number].refs > 1 or is_specialised:  # the dict took over the references to value and new key
        drop(heap, number)
        if not is_new:
            drop(heap, key)
    else:
        if is_new:
            refer(heap, key)
        refer(heap, value)
        drop(heap, value if rules.from_top else key)
        drop(heap, number)
        drop(heap, key if rules.from_top else value)
    if old:
        drop(heap, old)


@leaf
def clear_dict(heap, number):
    """Empties a dict: its keys and values die, then its table ends."""
    counts, entry = heap.counts[0], heap.objects[number]
    if entry.owner == 0:
        return
    table, task = heap.objects[entry.owner], heap.dying[counts.dying]
    heap.items[table.first] = heap.chunks[table.room]
    heap.chunks[table.room] = table.first
    table.first, table.room, table.length = entry.first, entry.room, 2 * table.length
    task.object, task.position = entry.owner, table.length
    counts.dying += 1
    entry.first, entry.length, entry.owner = 0, 0, 0


@leaf
def make_dict(machine, pairs, has_constant_keys):
    """Replaces keys and values, or values and a constant tuple of keys, by a dict of them."""
    heap, state = machine.heap, machine.state[0]
    are_texts = kind_of_keys(machine, pairs, has_constant_keys)
    if are_texts < 0:
        return fail(machine, NOT_KEY, np.int64(0), np.int64(0))
    number = _new_dict(heap, pairs, are_texts)
    step = 1 if has_constant_keys else 2
    bottom = state.top - has_constant_keys - step * pairs
    for index in range(pairs):
        key = _display_key(machine, pairs, has_constant_keys, index)
        value, before = np.int64(machine.stack[bottom + step * index + step - 1]), heap.objects[number].length
        refer(heap, value)
        old = insert(heap, number, key, value)
        if old:
            heap.objects[old].refs -= 1  # the stack still refers to it
        if heap.objects[number].length > before:
            refer(heap, key)
    for index in range(bottom, state.top - has_constant_keys):
        drop(heap, np.int64(machine.stack[index]))
    state.top = bottom
    push(machine, number)
    return True


@leaf
def _display_key(machine, pairs, has_constant_keys, index):
    """Returns a key of the display whose values, and keys or the constant tuple of keys, are on the stack."""
    heap, top = machine.heap, machine.state[0].top
    if has_constant_keys:
        return np.int64(heap.items[heap.objects[machine.stack[top - 1]].first + index])
    return np.int64(machine.stack[top - 2 * pairs + 2 * index])


@leaf
def kind_of_keys(machine, pairs, has_constant_keys):
    """Returns whether the table of a display has entries for texts only; -1 if a key is neither integer nor text."""
    heap, are_texts = machine.heap, True
    for index in range(pairs):
        key = _display_key(machine, pairs, has_constant_keys, index)
        if not is_key(heap, key):
            return np.int64(-1)
        are_texts = are_texts and heap.objects[key].kind == TEXT
    return _are_texts(heap, are_texts)


@leaf
def display_slots(pairs):
    """Returns the number of slots of the table that a display of many pairs creates first."""
    return slots_for((3 * pairs + 1) >> 1)


@leaf
def _new_dict(heap, pairs, are_texts):
    """Returns an empty dict, with a table for so many pairs if they are many."""
    rules = heap.rules[0]
    if pairs <= FEW_PAIRS:
        return new_object(heap, DICT, np.int64(DICT_BYTES), np.int64(0))
    values = np.int64(0)
    if 2 * pairs > rules.pairs_values:
        values = new_block(heap, MALLOC, MEM, 8 * (2 * pairs + 1))
    slots = display_slots(pairs)
    table = new_keys(heap, slots, are_texts)
    number = new_object(heap, DICT, np.int64(DICT_BYTES), np.int64(0))
    entry = heap.objects[number]
    entry.owner, entry.room = table, chunk_log(2 * usable(slots))
    entry.first = new_chunk(heap, entry.room)
    if values:
        free_block(heap, MEM, values)
    return number


@leaf
def _first_entry(heap, number):
    """Returns the first entry of a dict that is not deleted. The table remembers it, as all before remain deleted."""
    entry = heap.objects[number]
    table = heap.objects[entry.owner]
    while table.vector < table.length and heap.items[entry.first + 2 * table.vector] == 0:
        table.vector += 1
    return table.vector


@leaf
def iterate_dict(machine, number):
    """Replaces a dict, which was popped, by an iterator over its keys."""
    heap = machine.heap
    iterator = new_object(heap, DICT_ITERATOR, np.int64(DICT_ITERATOR_BYTES), np.int64(0))
    entry = heap.objects[iterator]
    entry.owner, entry.capacity = number, heap.objects[number].length
    entry.room = entry.capacity  # keys that are left
    entry.length = _first_entry(heap, number)
    push(machine, iterator)
    return True


@leaf
def next_key(machine, iterator, target):
    """Pushes the next key of an iterator on the stack; at its end, drops it and jumps."""
    heap, state, entry = machine.heap, machine.state[0], machine.heap.objects[iterator]
    owner = heap.objects[entry.owner]
    if owner.length != entry.capacity:
        return fail(machine, DICT_CHANGED, np.int64(0), np.int64(0))
    count = heap.objects[owner.owner].length
    while entry.length < count and heap.items[owner.first + 2 * entry.length] == 0:
        entry.length += 1
    if entry.length >= count:
        state.top -= 1
        state.at = target
        drop(heap, iterator)
        return True
    if entry.room == 0:
        return fail(machine, DICT_CHANGED, np.int64(0), np.int64(0))
    key = np.int64(heap.items[owner.first + 2 * entry.length])
    entry.length += 1
    entry.room -= 1
    refer(heap, key)
    push(machine, key)
    return True


@leaf
def first_key(machine):
    """Replaces an iterator over a dict by the first key; the iterator ends at once."""
    heap, iterator = machine.heap, pop(machine)
    number = np.int64(heap.objects[iterator].owner)
    if heap.objects[iterator].kind != DICT_ITERATOR:
        return fail(machine, NOT_DICT, np.int64(0), np.int64(0))
    if heap.objects[number].length == 0:
        return fail(machine, NO_KEYS, np.int64(0), np.int64(0))
    key = np.int64(heap.items[heap.objects[number].first + 2 * heap.objects[iterator].length])
    refer(heap, key)
    push(machine, key)
    drop(heap, iterator)
    machine.state[0].checks = 1
    return True


@leaf
def contains(machine, other):
    """Pops a dict or set, and a key; jumps if it does not have the key."""
    heap, state = machine.heap, machine.state[0]
    number, key = pop(machine), pop(machine)
    kind = heap.objects[number].kind
    if kind not in (DICT, SET):
        return fail(machine, NOT_KEYED, np.int64(0), np.int64(0))
    if kind == SET and heap.objects[key].kind != INT:
        return fail(machine, NOT_INT, np.int64(0), np.int64(0))
    if not is_key(heap, key):
        return fail(machine, NOT_KEY, np.int64(0), np.int64(0))
    has_key = has_element(heap, number, key) if kind == SET else find(heap, number, key) > 0
    if not has_key:
        state.at = other
    drop(heap, number)
    drop(heap, key)
    return True


@leaf
def do_dict(machine, op, argument):
    """Runs one of the instructions of dicts only."""
    heap = machine.heap
    if op in (MAKE_DICT, DICT_OF_CONSTANTS):
        return make_dict(machine, argument, op == DICT_OF_CONSTANTS)
    if op == FIRST_KEY:
        return first_key(machine)
    key = pop(machine) if op == DELETE_ITEM else np.int64(0)
    number = pop(machine)
    if heap.objects[number].kind != DICT:
        return fail(machine, NOT_DICT, np.int64(0), np.int64(0))
    if not is_key(heap, key):
        return fail(machine, NOT_KEY, np.int64(0), np.int64(0))
    found = find(heap, number, key)
    if found == 0:
        return fail(machine, NO_KEY, key, np.int64(0))
    _delete(heap, number, key, found)
    return True


@leaf
def _delete(heap, number, key, found):
    """Deletes an entry of a dict; its key dies, then its value; then the dict and the key that were on the stack."""
    entry = heap.objects[number]
    heap.items[heap.objects[entry.owner].first + _slot(heap, number, key, False)] = DELETED
    place = entry.first + 2 * found - 2
    drop(heap, number if heap.rules[0].from_top else key)
    drop(heap, key if heap.rules[0].from_top else number)
    drop(heap, np.int64(heap.items[place + 1]))
    drop(heap, np.int64(heap.items[place]))
    heap.items[place] = heap.items[place + 1] = 0
    entry.length -= 1
