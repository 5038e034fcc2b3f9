"""Instructions of tuples, lists and instances. Lists grow and shrink as in CPython."""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.dicts import clear_dict, dict_item
from replay.objects.functions import bind_method
from replay.objects.heap import (
    CALLOC,
    MALLOC,
    MEM,
    REALLOC,
    drop,
    emit,
    end_vector,
    free_block,
    give_items,
    new_block,
    new_object,
    refer,
    track,
)
from replay.objects.instances import open_attribute
from replay.objects.kinds import BUILTIN_EXCEPTIONS, DICT, EXCEPTION, INSTANCE, INT, LIST, OPEN, TUPLE, has_header
from replay.objects.machine import (
    APPEND,
    CLEAR,
    EMPTY,
    NO_ATTRIBUTE,
    NO_ITEM,
    NO_VALUE,
    NOT_INT,
    NOT_LIST,
    NOT_MUTABLE,
    NOT_SEQUENCE,
    applies,
    fail,
    pop,
    push,
)


@leaf
def _grown(rules, wanted, length):
    """Returns the capacity of a list that CPython resizes to `wanted` items."""
    if rules.list_classic:
        return wanted + (wanted >> 3) + (3 if wanted < 9 else 6) if wanted else wanted
    if wanted == 0:
        return wanted
    capacity = (wanted + (wanted >> 3) + 6) & ~3
    return (wanted + 3) & ~3 if wanted - length > capacity - wanted else capacity


@leaf
def resize(machine, number, wanted):
    """Sets the length of a list as `list_resize` of CPython does."""
    heap = machine.heap
    rules, entry = heap.rules[0], heap.objects[number]
    fits = wanted <= entry.capacity and (wanted >= entry.capacity >> 1 or entry.capacity <= rules.least_shrunk)
    if not fits or (wanted == 0 and entry.vector and not rules.pop_keeps_empty):
        entry.capacity = _grown(rules, wanted, entry.length)
        if entry.capacity == 0 and not rules.pop_keeps_empty:
            free_block(heap, MEM, entry.vector)
            entry.vector = 0
        elif entry.vector:
            emit(heap, REALLOC, MEM, entry.vector, 8 * entry.capacity)
        else:
            entry.vector = new_block(heap, MALLOC, MEM, 8 * entry.capacity)
        if entry.capacity:
            give_items(heap, number, entry.capacity)
    entry.length = wanted


@leaf
def make_container(machine, kind, length):
    """Replaces values by a tuple or list of them."""
    heap, state = machine.heap, machine.state[0]
    if kind == TUPLE:
        number = new_object(heap, kind, heap.rules[0].tuple_header + 8 * length, length)
    else:
        number = new_object(heap, kind, np.int64(56), length)
        heap.objects[number].capacity = length
        if length:
            heap.objects[number].vector = new_block(heap, CALLOC, MEM, 8 * length)
    if length:
        give_items(heap, number, length)
    state.top -= length
    first = heap.objects[number].first
    for index in range(length):
        heap.items[first + index] = machine.stack[state.top + index]
    if kind == TUPLE and not heap.rules[0].tracks_all_tuples and _has_headers(heap, number):
        track(heap, number, heap.generations[0].ring)
    push(machine, number)
    return True


@leaf
def _has_headers(heap, number):
    """Whether an item of a tuple has the collector's header, tracked or not."""
    entry, index = heap.objects[number], np.int64(0)
    while index < entry.length and not has_header(heap.objects[heap.items[entry.first + index]].kind):
        index += 1
    return index < entry.length


@leaf
def list_of_constants(machine):
    """Replaces a constant tuple by a list with its items."""
    heap, rules = machine.heap, machine.heap.rules[0]
    constants = heap.objects[pop(machine)]
    length = constants.length
    if rules.constants_op == CALLOC:
        capacity = length
    elif rules.constants_op == REALLOC:
        capacity = _grown(rules, length, np.int64(0))
    else:
        capacity = (length + 1) & ~1
    number = new_object(heap, LIST, np.int64(56), length)
    entry = heap.objects[number]
    entry.capacity = capacity
    entry.vector = new_block(heap, CALLOC if rules.constants_op == CALLOC else MALLOC, MEM, 8 * capacity)
    give_items(heap, number, capacity)
    for index in range(length):
        item = heap.items[constants.first + index]
        refer(heap, item)
        heap.items[entry.first + index] = item
    push(machine, number)
    return True


@leaf
def attribute(machine, name, is_set):
    """Replaces an instance by its attribute; or sets it to the value below the instance."""
    heap, number = machine.heap, pop(machine)
    entry = heap.objects[number]
    if entry.kind == OPEN or (entry.kind == EXCEPTION and entry.owner >= BUILTIN_EXCEPTIONS):
        return open_attribute(machine, number, name, is_set)
    slot = machine.slots[entry.owner, name] if entry.kind == INSTANCE else np.int64(-1)
    if slot < 0:
        if entry.kind == INSTANCE and machine.methods[entry.owner, name] and not is_set:
            return bind_method(machine, number, name)
        return fail(machine, NO_ATTRIBUTE, name, np.int64(0))
    place = entry.first + slot
    old = np.int64(heap.items[place])
    if is_set:
        heap.items[place] = pop(machine)
        drop(heap, number)
        if old:
            drop(heap, old)
        return True
    if old == 0:
        return fail(machine, NO_VALUE, name, np.int64(0))
    refer(heap, old)
    push(machine, old)
    drop(heap, number)
    return True


@leaf
def item(machine, is_set):
    """Replaces a sequence or dict and an index or key by the item; or sets it to the value below both."""
    heap = machine.heap
    index, number = pop(machine), pop(machine)
    entry, key = heap.objects[number], heap.objects[index]
    if entry.kind == DICT:
        return dict_item(machine, number, index, is_set)
    if entry.kind != LIST and (is_set or entry.kind != TUPLE):
        return fail(machine, NOT_MUTABLE if is_set else NOT_SEQUENCE, np.int64(0), np.int64(0))
    if key.kind != INT:
        return fail(machine, NOT_INT, np.int64(0), np.int64(0))
    if key.length >= entry.length:
        return fail(machine, NO_ITEM, key.length, entry.length)
    place = entry.first + key.length
    old = np.int64(heap.items[place])
    if is_set:
        value = pop(machine)
        heap.items[place] = value
        _drop_stored(machine, number, index, value, old)
        return True
    refer(heap, old)
    push(machine, old)
    index_first = applies(machine, heap.rules[0].index_first)
    drop(heap, number if index_first else index)
    drop(heap, index if index_first else number)
    return True


@leaf
def _drop_stored(machine, number, index, value, old):
    """Drops what a store in a list replaces, and what the stack refers to: the list, the index, and also the value."""
    heap, rules = machine.heap, machine.heap.rules[0]
    is_specialised, is_last = applies(machine, rules.stores_specialised), heap.objects[number].refs == 1
    if is_last and is_specialised and rules.list_before_item:
        drop(heap, old)
        drop(heap, number)
        drop(heap, index)
        return
    if is_last and rules.from_top and not is_specialised:
        refer(heap, value)
        drop(heap, value)
    index_first = is_specialised or rules.from_top
    drop(heap, number if index_first else index)
    drop(heap, index if index_first else number)
    drop(heap, old)


@leaf
def change_list(machine, op):
    """Appends the value on the stack to the list below; or removes the last item, or all items, of a list."""
    heap = machine.heap
    value = pop(machine) if op == APPEND else np.int64(0)
    number = pop(machine)
    entry = heap.objects[number]
    if op == CLEAR and entry.kind == DICT:
        drop(heap, number)
        clear_dict(heap, number)
        return True
    if entry.kind != LIST:
        return fail(machine, NOT_MUTABLE if op == CLEAR else NOT_LIST, np.int64(0), np.int64(0))
    if op == APPEND:
        length = entry.length
        if length < entry.capacity and not heap.rules[0].append_resizes:
            entry.length += 1
        else:
            resize(machine, number, length + 1)
        heap.items[entry.first + length] = value
        is_specialised = applies(machine, heap.rules[0].stores_specialised)
        if heap.rules[0].method_first and not is_specialised and heap.objects[number].refs == 1:
            refer(heap, value)  # of the stack, which outlives the list
            drop(heap, value)
        drop(heap, number)
    elif op == CLEAR:
        drop(heap, number)
        end_vector(heap, number)
    else:
        if entry.length == 0:
            return fail(machine, EMPTY, np.int64(0), np.int64(0))
        last = np.int64(heap.items[entry.first + entry.length - 1])
        resize(machine, number, entry.length - 1)
        push(machine, last)
        drop(heap, number)
    return True
