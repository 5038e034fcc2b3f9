"""Exceptions and their handlers. `replay.objects.unwinding` finds the handler of one that was raised.

An exception is a record of kind EXCEPTION. Its items are its attributes, the tuple of its arguments, its traceback, its
cause, and its context: the exception that was handled when it was raised. `owner` is its class: see
`replay.objects.exception_classes`. `capacity` is the instruction after its `raise`.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.containers import make_container
from replay.objects.functions import cell_slot
from replay.objects.handlers import CLASS_BITS, HANDLER_VALUES, HAS_RESULT, IN_CELL, JUMPS_BACK, LENGTH_MASK, UNKNOWN
from replay.objects.heap import drop, drop_leaf, give_items, new_object, refer
from replay.objects.instructions import IN_TUPLE
from replay.objects.kinds import BUILTIN_EXCEPTIONS, EXCEPTION, EXCEPTION_ITEMS, INT, STOP_ITERATION, TUPLE
from replay.objects.machine import (
    ARGUMENTS,
    CRITICAL_LENGTH,
    ENTER_FINALLY,
    HANDLED,
    LEAVE_HANDLER,
    MATCH,
    NEW_EXCEPTION,
    NONE,
    NOT_EXCEPTION,
    RAISE,
    RAISE_AGAIN,
    RAISE_CLASS,
    RERAISE,
    UNBIND,
    fail,
    pop,
    push,
)

ATTRIBUTES_ITEM, ARGUMENTS_ITEM, TRACEBACK_ITEM, CAUSE_ITEM, CONTEXT_ITEM = range(EXCEPTION_ITEMS)
SEEK, ADD_FRAME, ADD_TRACEBACK, ENTER, LEAVE, NOTE_PLACE, STOP = range(1, 8)
"""What the machine does next with a raised exception: see `replay.objects.unwinding`."""


@leaf
def do_exception(machine, op, argument, other):
    """Runs an instruction of exceptions."""
    heap, state = machine.heap, machine.state[0]
    if op == ARGUMENTS:
        if argument and (other >= BUILTIN_EXCEPTIONS or not heap.rules[0].exception_first):
            for index in range(argument):  # the stack refers to them until the exception is created
                refer(heap, machine.stack[state.top - 1 - index])
            return make_container(machine, TUPLE, argument)
        return True
    if op == NEW_EXCEPTION:
        state.checks = other != IN_TUPLE
        push(machine, _new_exception(machine, argument, other))
        return True
    if op in (RAISE, RAISE_CLASS):
        cause = pop(machine) if other else np.int64(0)
        number = pop(machine) if op == RAISE else _new_exception(machine, argument, np.int64(0))
        if heap.objects[number].kind != EXCEPTION:
            return fail(machine, NOT_EXCEPTION, np.int64(0), np.int64(0))
        _raise(machine, number)
        return not other or _set_cause(machine, number, cause)
    if op == MATCH:
        _match(machine, argument, other)
        return True
    if op == HANDLED:
        refer(heap, state.handled)
        push(machine, np.int64(state.handled))
        return True
    if op == LEAVE_HANDLER:
        _leave_handler(machine, argument, other)
        return True
    if op in (RERAISE, RAISE_AGAIN):
        _raise_again(machine)
        return True
    if op == UNBIND:
        unbind(machine, argument)
        return True
    if op == ENTER_FINALLY:
        push(machine, np.int64(0))
        return not heap.rules[0].pushes_addresses or push_place(machine)
    place = pop(machine)
    if place:
        drop_leaf(heap, place)
    return True


@leaf
def _take_value(machine, variable):
    """Unbinds a variable, and returns its value, 0 for none."""
    heap, place = machine.heap, machine.state[0].locals + variable - 1
    if variable & IN_CELL:
        cell = heap.objects[machine.stack[machine.state[0].locals + cell_slot(heap, variable & ~IN_CELL)]]
        value = np.int64(cell.owner)
        cell.owner = 0
        return value
    value = np.int64(machine.stack[place])
    machine.stack[place] = 0
    return value


@leaf
def unbind(machine, variable):
    """Drops the value of a variable, if it has one."""
    value = _take_value(machine, variable)
    if value:
        drop(machine.heap, value)


@leaf
def push_place(machine):
    """Replaces the value on the stack by the integer of the place in the code, if it is no small one; returns False if
    this is not known."""
    state = machine.state[0]
    far = machine.far[state.at - 1]
    if far == UNKNOWN:
        return fail(machine, CRITICAL_LENGTH, np.int64(0), np.int64(0))
    if far:
        size = np.int64(max(machine.heap.rules[0].int_least, 28))
        machine.stack[state.top - 1] = new_object(machine.heap, np.int64(INT), size, np.int64(1))
    return True


@leaf
def exception_bytes(heap, which):
    """Returns the size of an exception of a class."""
    rules = heap.rules[0]
    if which == STOP_ITERATION:
        return np.int64(rules.exception_bytes + 8)
    return np.int64(rules.exception_bytes if which < BUILTIN_EXCEPTIONS else rules.own_exception_bytes)


@leaf
def _new_exception(machine, which, count):
    """Returns a new exception with the arguments on the stack, or in the tuple there."""
    heap = machine.heap
    number = new_object(heap, np.int64(EXCEPTION), exception_bytes(heap, which), np.int64(EXCEPTION_ITEMS))
    give_items(heap, number, np.int64(EXCEPTION_ITEMS))
    heap.objects[number].owner = which
    if count == IN_TUPLE:
        arguments = np.int64(machine.stack[machine.state[0].top - 1])
        if heap.objects[arguments].kind == TUPLE:  # else there are none
            refer(heap, arguments)
            heap.items[heap.objects[number].first + ARGUMENTS_ITEM] = arguments
    elif count:
        if heap.rules[0].exception_first and which < BUILTIN_EXCEPTIONS:
            make_container(machine, TUPLE, count)
        else:
            first = heap.objects[machine.stack[machine.state[0].top - 1]].first
            for index in range(count):
                heap.objects[heap.items[first + index]].refs -= 1
        heap.items[heap.objects[number].first + ARGUMENTS_ITEM] = pop(machine)
    return number


@leaf
def create_raised(machine, context):
    """Creates the exception that is raised, of class `raised_class`. `context`: the one that is handled, 0 for none."""
    heap, state = machine.heap, machine.state[0]
    which = np.int64(state.raised_class)
    number = new_object(heap, np.int64(EXCEPTION), exception_bytes(heap, which), np.int64(EXCEPTION_ITEMS))
    give_items(heap, number, np.int64(EXCEPTION_ITEMS))
    heap.objects[number].owner, heap.objects[number].capacity = which, state.raised_at
    if context:
        refer(heap, context)
        set_item(heap, number, np.int64(CONTEXT_ITEM), context)
    state.raised = number


@leaf
def pass_stop(machine, context):
    """Creates and drops the StopIteration with which a generator ends while an exception is handled."""
    state = machine.state[0]
    raised, which = np.int64(state.raised), np.int64(state.raised_class)
    state.raised_class = STOP_ITERATION
    create_raised(machine, context)
    drop(machine.heap, np.int64(state.raised))
    state.raised, state.raised_class = raised, which


@leaf
def stop_context(machine):
    """Returns the handled exception that has the end of a generator create a StopIteration, up to 3.9; else 0."""
    return handled_exception(machine) if machine.heap.rules[0].wraps_results else np.int64(0)


@leaf
def handled_exception(machine):
    """Returns the exception that is handled now; in a generator maybe by a caller. 0 for none."""
    state = machine.state[0]
    found, depth = np.int64(state.handled), np.int64(state.depth)
    while found == 0 and depth > 0:
        if machine.frames[depth].generator:
            found = np.int64(machine.frames[depth - 1].handled)
        depth -= 1
    return found


@leaf
def item_of(heap, number, which):
    return np.int64(heap.items[heap.objects[number].first + which])


@leaf
def set_item(heap, number, which, value):
    """Sets an item of an exception, which takes over the reference, and drops the old one."""
    place = heap.objects[number].first + which
    if heap.items[place]:
        drop(heap, np.int64(heap.items[place]))
    heap.items[place] = value


@leaf
def _set_cause(machine, number, cause):
    """Sets the cause of an exception, or removes it for None. The old one dies before the old context."""
    heap = machine.heap
    is_none = cause == machine.ints.shape[0] + 1 + NONE
    if not is_none and heap.objects[cause].kind != EXCEPTION:
        return fail(machine, NOT_EXCEPTION, np.int64(0), np.int64(0))
    set_item(heap, number, np.int64(CAUSE_ITEM), np.int64(0) if is_none else cause)
    return True


@leaf
def _raise(machine, number):
    """Raises an exception. One that is handled now becomes its context."""
    heap, state = machine.heap, machine.state[0]
    heap.objects[number].capacity = state.at
    handled = np.int64(state.handled)
    if handled == 0 and state.generators:
        handled = handled_exception(machine)
    if handled and handled != number:
        other = handled
        while item_of(heap, other, CONTEXT_ITEM):
            if item_of(heap, other, CONTEXT_ITEM) == number:
                set_item(heap, other, CONTEXT_ITEM, np.int64(0))
            else:
                other = item_of(heap, other, CONTEXT_ITEM)
        refer(heap, handled)
        set_item(heap, number, CONTEXT_ITEM, handled)
    state.raised, state.unwinding = number, ADD_FRAME
    state.region = machine.region_of[state.at - 1]
    _take_traceback(machine, number)


@leaf
def _take_traceback(machine, number):
    """Up to 3.11, a raised exception and its traceback are separate until a handler is found."""
    heap, state = machine.heap, machine.state[0]
    if heap.rules[0].separate_traceback:
        state.raised_traceback = item_of(heap, number, TRACEBACK_ITEM)
        if state.raised_traceback:
            refer(heap, state.raised_traceback)


@leaf
def _raise_again(machine):
    """Raises the handled exception again."""
    heap, state = machine.heap, machine.state[0]
    state.raised, state.unwinding = state.handled, SEEK
    state.region = machine.region_of[state.at - 1]
    refer(heap, state.raised)
    if heap.rules[0].frame_base:
        state.raised_traceback = state.handled_traceback
        refer(heap, state.raised_traceback)
    else:
        _take_traceback(machine, np.int64(state.raised))


@leaf
def _match(machine, classes, other):
    """Jumps unless the handled exception is one of these classes; several are in a tuple."""
    heap, state = machine.heap, machine.state[0]
    length = classes >> CLASS_BITS & LENGTH_MASK
    if length:
        drop_leaf(heap, new_object(heap, np.int64(TUPLE), heap.rules[0].tuple_header + 8 * length, length))
    if classes >> heap.objects[state.handled].owner & 1 == 0:
        state.at = other


@leaf
def leave_handled(machine):
    """Pops what was handled before the handled exception, which is dropped."""
    heap, state = machine.heap, machine.state[0]
    exception, traceback = np.int64(state.handled), np.int64(state.handled_traceback)
    state.top -= HANDLER_VALUES
    state.handled_traceback, state.handled = machine.stack[state.top], machine.stack[state.top + 1]
    if traceback:
        drop(heap, traceback)
    drop(heap, exception)


@leaf
def _leave_handler(machine, variable, flags):
    """Ends a handler, and unbinds its variable: after the handler, or before it in 3.8."""
    heap, state = machine.heap, machine.state[0]
    has_result = flags & HAS_RESULT
    result, value = np.int64(0), np.int64(0)
    if has_result:
        result = pop(machine)
    if variable:
        value = _take_value(machine, variable)
    is_first = heap.rules[0].list_classic and not has_result  # the last that is to be dropped is dropped first
    if value and not is_first:
        drop(heap, value)
    leave_handled(machine)
    if value and is_first:
        drop(heap, value)
    if has_result:
        push(machine, result)
    state.checks = flags & JUMPS_BACK and heap.rules[0].handlers_last
