"""Weak references: objects that refer to an instance without keeping it alive.

An object of kind WEAKREF has its callback as `owner`, and the instance as `capacity`, 0 once that has ended. The weak
references to an instance are a list, linked by `length` (the next one) and `room` (the previous one): first the one
without a callback, of which an instance has one at most, then those with callbacks, from the newest on.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.containers import make_container
from replay.objects.dropping import weak_references
from replay.objects.heap import REFERABLE, drop, give_items, new_object, refer
from replay.objects.kinds import FUNCTION, METHOD, OBSERVABLE, TUPLE, WEAKREF, is_one_of
from replay.objects.machine import (
    MAKE_WEAKREF,
    NONE,
    NOT_FUNCTION,
    NOT_REFERABLE,
    NOT_WEAKREF,
    PACK_ARGUMENTS,
    REFERENT,
    fail,
    pop,
    push,
)


@leaf
def do_weak_reference(machine, op, argument, other):
    """Runs an instruction of weak references."""
    machine.state[0].checks = op in (MAKE_WEAKREF, REFERENT)
    if op == PACK_ARGUMENTS:
        return _pack_arguments(machine, argument)
    if op == MAKE_WEAKREF:
        return _make_weak_reference(machine, argument)
    if op == REFERENT:
        return _referent(machine)
    number = pop(machine)  # IS_NONE
    if number != _none(machine):
        machine.state[0].at = other
    drop(machine.heap, number)
    return True


@leaf
def _none(machine):
    return np.int64(machine.ints.shape[0] + 1 + NONE)


@leaf
def _pack_arguments(machine, count):
    """Pushes the tuple of arguments that CPython creates to call a class. The arguments remain below it."""
    first = machine.state[0].top - count
    for index in range(count):
        number = np.int64(machine.stack[first + index])
        refer(machine.heap, number)
        push(machine, number)
    return make_container(machine, TUPLE, count)


@leaf
def _plain(heap, referent):
    """Returns the weak reference to an instance that has no callback, 0 for none."""
    first = weak_references(heap, referent)
    return first if first and heap.objects[first].owner == 0 else np.int64(0)


@leaf
def weak_reference_bytes(machine, count):
    """Returns the size of the object that MAKE_WEAKREF creates, 0 if it uses an existing one."""
    heap, state = machine.heap, machine.state[0]
    referent = np.int64(machine.stack[state.top - 1 - count])
    exists = count == 1 and is_one_of(heap.objects[referent].kind, OBSERVABLE) and _plain(heap, referent) > 0
    return np.int64(0 if exists else heap.rules[0].weakref_bytes)


@leaf
def _make_weak_reference(machine, count):
    """Replaces an instance, maybe a callback, and the tuple of both by a weak reference."""
    heap, state = machine.heap, machine.state[0]
    arguments = pop(machine)
    referent = np.int64(machine.stack[state.top - count])
    callback = np.int64(machine.stack[state.top - 1]) if count > 1 else np.int64(0)
    entry = heap.objects[referent]
    if not is_one_of(entry.kind, OBSERVABLE) or entry.kind == WEAKREF or not entry.capacity & REFERABLE:
        return fail(machine, NOT_REFERABLE, np.int64(0), np.int64(0))
    if callback and heap.objects[callback].kind not in (FUNCTION, METHOD):
        return fail(machine, NOT_FUNCTION, np.int64(0), np.int64(0))
    made = np.int64(0) if callback else _plain(heap, referent)
    if made:
        refer(heap, made)
    else:
        made = new_object(heap, WEAKREF, heap.rules[0].weakref_bytes, np.int64(0))
        _link(heap, made, referent, callback)
    forward = heap.rules[0].arguments_forward
    for index in range(count):  # what is dropped first dies last
        drop(heap, np.int64(machine.stack[state.top - 1 - (index if forward else count - 1 - index)]))
    drop(heap, arguments)
    state.top -= count
    push(machine, made)
    return True


@leaf
def _link(heap, number, referent, callback):
    """Adds a weak reference to those of an instance."""
    give_items(heap, referent, np.int64(1))
    entry, target = heap.objects[number], heap.objects[referent]
    place = target.first + (1 << target.room) - 1
    first, before = np.int64(heap.items[place]), np.int64(0)
    if callback:
        refer(heap, callback)
        before = _plain(heap, referent)
    entry.capacity, entry.owner, entry.room = referent, callback, before
    entry.length = heap.objects[before].length if before else first
    if before:
        heap.objects[before].length = number
    else:
        heap.items[place] = number
    if entry.length:
        heap.objects[entry.length].room = number
    heap.collector[0].weakrefs += 1


@leaf
def _referent(machine):
    """Replaces a weak reference by the instance that it refers to, or None."""
    heap, number = machine.heap, pop(machine)
    if heap.objects[number].kind != WEAKREF:
        return fail(machine, NOT_WEAKREF, np.int64(0), np.int64(0))
    found = np.int64(heap.objects[number].capacity)
    if found == 0 or heap.objects[found].refs == 0:  # it is going to end
        found = _none(machine)
    refer(heap, found)
    push(machine, found)
    drop(heap, number)
    return True
