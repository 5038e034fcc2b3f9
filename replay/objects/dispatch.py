"""Runs an instruction of the machine: each is one step."""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.calls import call, call_init, call_method, call_value, end_init, make_arguments, return_value
from replay.objects.closing import do_close
from replay.objects.collector import IDLE, INTERRUPTED, freeze, start_collection, unfreeze
from replay.objects.containers import attribute, change_list, item, list_of_constants, make_container
from replay.objects.coroutines import do_coroutine, is_iterator
from replay.objects.dicts import contains, do_dict, iterate_dict
from replay.objects.exceptions import do_exception
from replay.objects.functions import make_cell, make_function, method_of, use_cell
from replay.objects.generators import do_generator
from replay.objects.heap import drop, drop_leaf, new_object, new_record, refer
from replay.objects.instances import new_instance, new_open
from replay.objects.instructions import IN_CALL, IN_DELEGATION, SWITCHES
from replay.objects.kinds import (
    BYTES,
    DICT,
    FLOAT,
    INT,
    LIST,
    LIST_ITERATOR,
    PLACE,
    RANGE,
    SET,
    TEXT,
    TUPLE,
    TUPLE_ITERATOR,
)
from replay.objects.machine import (
    ADD,
    APPEND,
    ARGUMENTS,
    ATTRIBUTE,
    AWAIT,
    CALL,
    CALL_INIT,
    CALL_METHOD,
    CALL_VALUE,
    CHOOSE,
    CLEAR,
    CLOSE,
    COLLECT,
    CONSTANT,
    CONTAINS,
    DELETE,
    DELETE_CELL,
    DISCARD,
    DISCARD_ELEMENT,
    END_CALL,
    END_INIT,
    FOUND,
    HALF,
    ITEM,
    ITERATE,
    JUMP,
    LENGTH,
    LETTERS,
    LIST_OF_CONSTANTS,
    LOAD,
    LOAD_CELL,
    LOAD_CLOSURE,
    LOAD_METHOD,
    MAKE_ARGUMENTS,
    MAKE_BYTES,
    MAKE_CELL,
    MAKE_CLOSURE,
    MAKE_DICT,
    MAKE_FRAME,
    MAKE_FUNCTION,
    MAKE_LIST,
    MAKE_RANGE,
    MAKE_SET,
    MAKE_STEPS,
    MAKE_TUPLE,
    NEW,
    NEXT,
    NEXT_OF,
    NONE,
    NOT_INT,
    NOT_SEQUENCE,
    PACK_ARGUMENTS,
    POP_LAST,
    PRODUCT,
    RAISE_AGAIN,
    RETURN,
    SET_ATTRIBUTE,
    SET_ITEM,
    SET_OF_CONSTANTS,
    START,
    STORE,
    STORE_CELL,
    SUM,
    SWITCH_COLLECTOR,
    TOO_MANY_STEPS,
    UNBOUND,
    UNWIND,
    WORK,
    fail,
    pop,
    push,
)
from replay.objects.nested_calls import end_call
from replay.objects.sets import change_set, make_set, set_of_constants
from replay.objects.thread_instructions import do_thread
from replay.objects.twin import INCREMENT, MULTIPLIER
from replay.objects.values import compute, iterate_range, new_length, new_range, next_item, repeat_text
from replay.objects.weak_references import do_weak_reference

CREATES = (
    NEW, MAKE_TUPLE, MAKE_LIST, LETTERS, MAKE_BYTES, LIST_OF_CONSTANTS, MAKE_RANGE, MAKE_SET, SET_OF_CONSTANTS,
)  # fmt: skip
"""Instructions that push a new object."""
USES_FUNCTIONS = (
    MAKE_CELL, LOAD_CELL, STORE_CELL, DELETE_CELL, LOAD_CLOSURE, MAKE_FUNCTION, MAKE_CLOSURE, CALL_VALUE, LOAD_METHOD,
    CALL_METHOD, MAKE_ARGUMENTS, CALL_INIT, END_INIT,
)  # fmt: skip
ENABLE, FREEZE = SWITCHES.index("enable"), SWITCHES.index("freeze")


@leaf
def push_constant(machine, number):
    refer(machine.heap, number)
    push(machine, np.int64(number))
    return True


@leaf
def _choose(machine, steps, other):
    """Jumps unless the next random byte is below `steps`."""
    state = machine.state[0]
    state.random = (state.random * MULTIPLIER + INCREMENT) & 0xFFFFFFFF
    state.choices += 1
    state.checks = 1
    if state.random >> 24 >= steps:
        state.at = other
    return True


@leaf
def run_instruction(machine):
    """Runs the next instruction; returns False at the end of the program, and for a mistake."""
    heap, state = machine.heap, machine.state[0]
    at = state.at
    instruction = machine.instructions[at]
    op, argument = instruction.op, instruction.argument
    state.at += 1
    instruction.runs += 1
    state.checks = 0
    if op == LOAD:
        number = np.int64(machine.stack[state.locals + argument])
        if number == 0:
            return fail(machine, UNBOUND, argument, np.int64(0))
        refer(heap, number)
        push(machine, number)
        return True
    if op in (STORE, DELETE):
        old = np.int64(machine.stack[state.locals + argument])
        machine.stack[state.locals + argument] = pop(machine) if op == STORE else np.int64(0)
        if old:
            drop(heap, old)
        elif op == DELETE:
            return fail(machine, UNBOUND, argument, np.int64(0))
        return True
    if op == CONSTANT:
        return push_constant(machine, machine.constants[argument])
    if op in (ATTRIBUTE, SET_ATTRIBUTE):
        return attribute(machine, argument, op == SET_ATTRIBUTE)
    if op == NEXT:
        return next_item(machine, instruction.other)
    if op == JUMP:
        is_back = instruction.other < at
        state.checks = is_back
        machine.functions[state.function].warmth += is_back
        if is_back and heap.counts[0].steps > heap.counts[0].steps_most:
            return fail(machine, TOO_MANY_STEPS, np.int64(0), np.int64(heap.counts[0].steps_most))
        state.at = instruction.other
        return True
    if op in (SUM, PRODUCT):
        return compute(machine, op)
    if op == CALL:
        return call(machine, argument)
    if op == UNWIND:
        result, iterator = pop(machine), pop(machine)
        push(machine, result)
        drop(heap, iterator)
        return True
    if op == RETURN:
        return return_value(machine)
    if op == DISCARD:
        drop(heap, pop(machine))
        return True
    if op in (APPEND, POP_LAST, CLEAR):
        state.checks = op != APPEND or instruction.runs == 1  # specialised later, without a check
        return change_list(machine, op)
    if op in (ITEM, SET_ITEM):
        return item(machine, op == SET_ITEM)
    if op in CREATES:
        return _create(machine, op, argument, instruction.other)
    return _do_rare(machine, op, argument, instruction.other)


@leaf
def _create(machine, op, argument, other):
    """Runs an instruction that pushes a new object."""
    heap, state = machine.heap, machine.state[0]
    if op == NEW:
        state.checks = other != IN_CALL
        return new_open(machine, argument) if machine.classes[argument].slots < 0 else new_instance(machine, argument)
    if op == MAKE_TUPLE:
        return make_container(machine, TUPLE, argument)
    if op == MAKE_LIST:
        return make_container(machine, LIST, argument)
    if op == LETTERS:
        return repeat_text(machine, TEXT, heap.rules[0].text_header)
    if op == MAKE_BYTES:
        return repeat_text(machine, BYTES, np.int64(33))
    if op == LIST_OF_CONSTANTS:
        return list_of_constants(machine)
    if op == MAKE_RANGE:
        state.checks = 1
        return new_range(machine, argument)
    if op == MAKE_SET:
        state.checks = argument == 0  # a call of the class
        return make_set(machine, argument)
    return set_of_constants(machine, machine.constants[argument], machine.constants[other])


@leaf
def _do_rare(machine, op, argument, other):
    """Runs one of the instructions that are left."""
    state = machine.state[0]
    if MAKE_FRAME <= op <= NEXT_OF:
        return do_generator(machine, op, argument)
    if op in USES_FUNCTIONS:
        return _use_function(machine, op, argument, other)
    if op == CHOOSE:
        return _choose(machine, argument, other)
    if op == COLLECT:
        if machine.heap.collector[0].phase == IDLE:
            start_collection(machine.heap, argument)
        return True
    if op == FOUND:
        return _found(machine)
    if op == SWITCH_COLLECTOR:
        return _switch(machine, argument)
    if op == CONTAINS:
        return contains(machine, other)
    if op == CLOSE:
        return do_close(machine)
    if AWAIT <= op <= MAKE_STEPS:
        return do_coroutine(machine, op, other)
    if op in (ADD, DISCARD_ELEMENT):
        state.checks = 1
        return change_set(machine, op)
    if ARGUMENTS <= op <= RAISE_AGAIN:
        return do_exception(machine, op, argument, other)
    if START <= op <= WORK:
        return do_thread(machine, op, argument, other)
    if PACK_ARGUMENTS <= op <= END_CALL:
        return end_call(machine) if op == END_CALL else do_weak_reference(machine, op, argument, other)
    if op >= MAKE_DICT:
        return do_dict(machine, op, argument)
    state.checks = op == ITERATE and argument == IN_CALL
    return _compute_rare(machine, op, argument == IN_DELEGATION)


@leaf
def _use_function(machine, op, argument, other):
    """Runs an instruction of functions, cells and methods."""
    if op in (LOAD_CELL, STORE_CELL, DELETE_CELL, LOAD_CLOSURE):
        return use_cell(machine, op, argument, other)
    if op == MAKE_CELL:
        return make_cell(machine, argument, other)
    if op in (MAKE_FUNCTION, MAKE_CLOSURE):
        return make_function(machine, op, argument)
    if op == CALL_VALUE:
        return call_value(machine, argument)
    if op == LOAD_METHOD:
        return _load_method(machine, argument)
    if op == CALL_METHOD:
        return call_method(machine, argument)
    if op == MAKE_ARGUMENTS:
        return make_arguments(machine, argument, other)
    return call_init(machine, argument, other) if op == CALL_INIT else end_init(machine, argument)


@leaf
def _load_method(machine, name):
    """Replaces an instance by a method and itself, or by 0 and its attribute."""
    state = machine.state[0]
    number = np.int64(machine.stack[state.top - 1])
    function = method_of(machine, number, name)
    machine.stack[state.top - 1] = function
    push(machine, number)
    if function:
        refer(machine.heap, function)
        return True
    return attribute(machine, name, False)


@leaf
def _found(machine):
    """Pushes the number of objects that the last collection found."""
    heap, collector = machine.heap, machine.heap.collector[0]
    found = np.int64(0) if collector.phase == INTERRUPTED else np.int64(collector.garbage)
    machine.state[0].checks = 1
    if found < heap.rules[0].small_ints:
        return push_constant(machine, machine.ints[found])
    push(machine, new_object(heap, INT, heap.rules[0].count_bytes, found))
    return True


@leaf
def _switch(machine, argument):
    """Switches the collector off or on, freezes or unfreezes all objects; pushes None."""
    heap = machine.heap
    if argument <= ENABLE:
        heap.collector[0].enabled = argument == ENABLE
    elif argument == FREEZE:
        freeze(heap)
    else:
        unfreeze(heap)
    machine.state[0].checks = 1
    return push_constant(machine, machine.ints.shape[0] + 1 + NONE)


@leaf
def _compute_rare(machine, op, delegates):
    """Runs one of the instructions that are left: HALF, LENGTH, ITERATE."""
    heap, number = machine.heap, pop(machine)
    entry = heap.objects[number]
    if op == HALF:
        if entry.kind != INT:
            return fail(machine, NOT_INT, np.int64(0), np.int64(0))
        push(machine, new_object(heap, FLOAT, np.int64(24), np.int64(0)))
        drop_leaf(heap, number)
        return True
    if op == ITERATE and entry.kind == RANGE:
        return iterate_range(machine, number)
    if op == ITERATE and is_iterator(machine, number, delegates):
        push(machine, number)
        return True
    is_table = (entry.kind == DICT and not delegates) or (entry.kind == SET and op == LENGTH)
    if entry.kind not in (LIST, TUPLE) and not is_table:
        return fail(machine, NOT_SEQUENCE, np.int64(0), np.int64(0))
    if op == LENGTH:
        machine.state[0].checks = machine.instructions[machine.state[0].at - 1].runs == 1
        push(machine, new_length(machine, entry.length))
        drop(heap, number)
        return True
    if entry.kind == DICT:
        return iterate_dict(machine, number)
    if heap.rules[0].sequence_iterators:
        kind = LIST_ITERATOR if entry.kind == LIST else TUPLE_ITERATOR
        iterator = new_object(heap, kind, np.int64(48), np.int64(0))
    else:
        iterator = new_record(heap, PLACE, np.int64(0))
    heap.objects[iterator].owner = number
    push(machine, iterator)
    return True
