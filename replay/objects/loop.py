"""The loop of the machine: one step after the other.

A step runs one instruction, or drops one reference that is left to drop. Before each step there is room for all that it
can add to the tables; where there is not, the machine stops with FULL, and continues with larger ones.
"""

import numpy as np

from replay.jit.arrays import DONE, FULL
from replay.jit.compiling import entry, leaf
from replay.objects.calls import call, enter_frame, frame_room, return_value
from replay.objects.code import SWITCHES
from replay.objects.collector import IDLE, collect_next, freeze, request_generation, start_collection, unfreeze
from replay.objects.containers import attribute, change_list, item, list_of_constants, make_container
from replay.objects.heap import (
    BYTES,
    EVENTS_A_STEP,
    FLOAT,
    INSTANCE,
    INT,
    LIST,
    PLACE,
    RANGE,
    SEQUENCE_ITERATOR,
    TEXT,
    TUPLE,
    drop,
    drop_leaf,
    drop_next,
    give_items,
    has_kept,
    new_counted_block,
    new_object,
    new_record,
    refer,
)
from replay.objects.machine import (
    APPEND,
    ATTRIBUTE,
    CALL,
    CHOOSE,
    CLEAR,
    COLLECT,
    CONSTANT,
    DELETE,
    DISCARD,
    FAILED,
    FOUND,
    HALF,
    ITEM,
    ITERATE,
    JUMP,
    LENGTH,
    LETTERS,
    LIST_OF_CONSTANTS,
    LOAD,
    MAKE_BYTES,
    MAKE_LIST,
    MAKE_RANGE,
    MAKE_TUPLE,
    NEW,
    NEXT,
    NONE,
    NOT_INT,
    NOT_SEQUENCE,
    POP_LAST,
    PRODUCT,
    RETURN,
    SET_ATTRIBUTE,
    SET_ITEM,
    STORE,
    SUM,
    SWITCH_COLLECTOR,
    UNBOUND,
    UNWIND,
    fail,
    pop,
    push,
)
from replay.objects.twin import INCREMENT, MULTIPLIER
from replay.objects.values import compute, digits_of, iterate_range, new_int, new_range, next_item, repeat_text

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
def _do(machine):
    """Runs the next instruction; returns False at the end of the program, and for a mistake."""
    heap, state = machine.heap, machine.state[0]
    at = state.at
    instruction = machine.instructions[at]
    op, argument = instruction.op, instruction.argument
    state.at += 1
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
        state.checks = instruction.other < at
        state.at = instruction.other
        return True
    if op in (SUM, PRODUCT):
        return compute(machine, op)
    if op == CALL:
        state.checks = 1
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
        state.checks = op != APPEND or _is_first(instruction)
        return change_list(machine, op)
    if op in (ITEM, SET_ITEM):
        return item(machine, op == SET_ITEM)
    if op == NEW:
        slots = machine.classes[argument]
        number = new_object(heap, INSTANCE, 32 + 8 * slots, slots)
        heap.objects[number].owner = argument
        give_items(heap, number, slots)
        push(machine, number)
        state.checks = 1
        return True
    if op == MAKE_TUPLE:
        return make_container(machine, TUPLE, argument)
    if op == MAKE_LIST:
        return make_container(machine, LIST, argument)
    if op == LETTERS:
        return repeat_text(machine, TEXT, heap.rules[0].text_header)
    if op == MAKE_BYTES:
        return repeat_text(machine, BYTES, np.int64(33))
    if op == CHOOSE:
        return _choose(machine, argument, instruction.other)
    if op == LIST_OF_CONSTANTS:
        return list_of_constants(machine)
    if op == MAKE_RANGE:
        state.checks = 1
        return new_range(machine, argument)
    if op == COLLECT:
        start_collection(heap, argument)
        return True
    if op == FOUND:
        return _found(machine)
    if op == SWITCH_COLLECTOR:
        return _switch(machine, argument)
    return _rare(machine, op)


@leaf
def _is_first(instruction):
    """Whether an instruction runs for the first time: only then does CPython check after `append` and `len`."""
    is_first = instruction.other == 0
    instruction.other = 1
    return is_first


@leaf
def _found(machine):
    """Pushes the number of objects that the last collection found."""
    heap, found = machine.heap, machine.heap.collector[0].garbage
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
def _rare(machine, op):
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
    if entry.kind not in (LIST, TUPLE):
        return fail(machine, NOT_SEQUENCE, np.int64(0), np.int64(0))
    if op == LENGTH:
        machine.state[0].checks = _is_first(machine.instructions[machine.state[0].at - 1])
        push(machine, new_int(machine, entry.length, digits_of(entry.length)))
        drop(heap, number)
        return True
    if heap.rules[0].sequence_iterators:
        iterator = new_object(heap, SEQUENCE_ITERATOR, np.int64(48), np.int64(0))
    else:
        iterator = new_record(heap, PLACE, np.int64(0))
    heap.objects[iterator].owner = number
    push(machine, iterator)
    return True


@leaf
def _next_counted_bytes(machine):
    """Returns the size of the block with the collector's header that the next instruction allocates first, or 0."""
    heap, state = machine.heap, machine.state[0]
    rules, instruction = heap.rules[0], machine.instructions[state.at]
    op, argument = instruction.op, instruction.argument
    if op == MAKE_TUPLE or (op == MAKE_RANGE and rules.range_arguments):
        length = argument if op == MAKE_TUPLE else np.int64(1)
        return np.int64(0) if has_kept(heap, TUPLE, length) else rules.tuple_header + 8 * length
    if op in (MAKE_LIST, LIST_OF_CONSTANTS):
        return np.int64(0) if has_kept(heap, LIST, np.int64(0)) else np.int64(56)
    if op == NEW:
        return 32 + 8 * machine.classes[argument]
    if op == ITERATE and rules.sequence_iterators and not has_kept(heap, SEQUENCE_ITERATOR, np.int64(0)):
        is_range = heap.objects[machine.stack[state.top - 1]].kind == RANGE
        return np.int64(0 if is_range else 48)
    if op == CALL and rules.frame_base and machine.functions[argument].block == 0 and state.frames_kept == 0:
        return rules.frame_base + 8 * frame_room(heap, machine.functions[argument])
    return np.int64(0)


@leaf
def _collects(machine):
    """Starts the collection that was requested, if CPython does so before the next instruction or within it."""
    heap, collector, young = machine.heap, machine.heap.collector[0], machine.heap.generations[0]
    if heap.rules[0].collects_in_loop:
        if machine.state[0].checks:
            collector.requested = 0
            if collector.enabled:
                request_generation(heap)
    elif young.count < young.threshold:
        collector.requested = 0
    elif collector.enabled and young.threshold:
        size = _next_counted_bytes(machine)
        if size:
            collector.ready = new_counted_block(heap, size)
            request_generation(heap)
    return collector.phase != IDLE


@leaf
def _has_room(machine):
    """Whether the tables have room for one more step."""
    heap, state = machine.heap, machine.state[0]
    counts = heap.counts[0]
    return (
        counts.events + EVENTS_A_STEP <= heap.events.shape[0]
        and counts.objects + EVENTS_A_STEP <= heap.objects.shape[0]
        and counts.items + state.need + (4 << counts.largest) <= heap.items.shape[0]
        and counts.dying + state.need <= heap.dying.shape[0]
        and counts.free_blocks + EVENTS_A_STEP <= heap.free_blocks.shape[0]
        and state.top + state.need <= machine.stack.shape[0]
    )


@entry
def run_machine(machine):
    """Runs the program until it ends (DONE), a table needs more room (FULL), or it makes a mistake (FAILED)."""
    heap, state = machine.heap, machine.state[0]
    counts = heap.counts[0]
    if state.function < 0:
        state.function = machine.functions.shape[0] - 1
        enter_frame(machine, state.function)
    while _has_room(machine):
        counts.steps += 1
        if counts.dying:
            drop_next(heap)
        elif heap.collector[0].phase:
            collect_next(machine)
        elif state.is_over:
            return DONE
        elif heap.collector[0].requested and _collects(machine):
            pass
        elif not _do(machine):
            if state.mistake:
                return FAILED
            state.is_over = 1
    return FULL
