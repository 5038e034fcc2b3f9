"""Function objects, cells and bound methods, and the instructions that create and use them.

A function's closure is a tuple of cells. A function of the program itself, or of a class, has none and lives forever.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.heap import drop, new_object, refer
from replay.objects.instructions import SLOT_BITS
from replay.objects.kinds import BUILTIN_EXCEPTIONS, CELL, EXCEPTION, FUNCTION, INSTANCE, METHOD, OPEN
from replay.objects.machine import (
    DELETE_CELL,
    LOAD_CELL,
    LOAD_CLOSURE,
    MAKE_CELL,
    MAKE_CLOSURE,
    UNBOUND,
    fail,
    pop,
    push,
)

CELL_BYTES, METHOD_BYTES = 40, 64
SLOT_MASK = (1 << SLOT_BITS) - 1


@leaf
def make_function(machine, op, function):
    """Pushes a function; the tuple of its cells, if it has some, was on the stack."""
    heap = machine.heap
    closure = pop(machine) if op == MAKE_CLOSURE else np.int64(0)
    number = new_object(heap, FUNCTION, heap.rules[0].function_bytes, function)
    heap.objects[number].owner = closure
    push(machine, number)
    return True


@leaf
def bind_method(machine, number, name):
    """Pushes a bound method of an instance, which was popped."""
    heap = machine.heap
    made = new_object(heap, METHOD, np.int64(METHOD_BYTES), np.int64(0))
    heap.objects[made].owner = number
    heap.objects[made].capacity = machine.methods[class_of(heap.objects[number]), name]
    push(machine, made)
    return True


@leaf
def class_of(entry):
    """Returns the class of an instance, or of an exception; the latter is below 0 for built-in classes."""
    return np.int64(entry.owner - BUILTIN_EXCEPTIONS if entry.kind == EXCEPTION else entry.owner)


@leaf
def method_of(machine, number, name):
    """Returns the function that an instance has as its method of this name, 0 for none."""
    entry = machine.heap.objects[number]
    has_methods = entry.kind in (INSTANCE, OPEN, EXCEPTION) and class_of(entry) >= 0
    return np.int64(machine.methods[class_of(entry), name] if has_methods else 0)


@leaf
def make_cell(machine, now, apart):
    """Moves a variable to a new cell. `now` is its slot, `apart` the slot of the cell and the parameter up to 3.10."""
    heap, state = machine.heap, machine.state[0]
    slot, source = np.int64(now), np.int64(now)
    if heap.rules[0].cells_apart:
        slot = apart & SLOT_MASK
        source = (apart >> SLOT_BITS) - 1 if apart >> SLOT_BITS else slot
    cell = new_object(heap, CELL, np.int64(CELL_BYTES), np.int64(0))
    heap.objects[cell].owner = machine.stack[state.locals + source]
    machine.stack[state.locals + source] = 0
    machine.stack[state.locals + slot] = cell
    state.checks = machine.instructions[state.at].op != MAKE_CELL
    return True


@leaf
def cell_slot(heap, slots):
    """Returns one of two slots of a cell, that from 3.11 on and above it that up to 3.10."""
    return np.int64(slots >> SLOT_BITS if heap.rules[0].cells_apart else slots & SLOT_MASK)


@leaf
def use_cell(machine, op, now, apart):
    """Pushes the content of a cell, or the cell; sets its content to the value on the stack, or unbinds it."""
    heap, state = machine.heap, machine.state[0]
    cell = np.int64(machine.stack[state.locals + (apart if heap.rules[0].cells_apart else now)])
    old = np.int64(heap.objects[cell].owner)
    if op == LOAD_CLOSURE:
        refer(heap, cell)
        push(machine, cell)
        return True
    if op == LOAD_CELL:
        if old == 0:
            return fail(machine, UNBOUND, apart, np.int64(0))
        refer(heap, old)
        push(machine, old)
        return True
    heap.objects[cell].owner = np.int64(0) if op == DELETE_CELL else pop(machine)
    if old:
        drop(heap, old)
    elif op == DELETE_CELL:
        return fail(machine, UNBOUND, apart, np.int64(0))
    return True
