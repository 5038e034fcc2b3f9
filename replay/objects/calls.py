"""Calls: frames, local variables and arguments."""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.containers import make_container
from replay.objects.dropping import drop_frame
from replay.objects.frame_objects import (
    end_unreferred,
    frame_object,
    has_caller,
    is_referred,
    keep_frame,
    leave_variables,
)
from replay.objects.heap import (
    MALLOC,
    MEM,
    OBJ,
    REALLOC,
    drop,
    emit,
    free_block,
    give_items,
    new_block,
    new_counted_block,
    new_record,
    refer,
)
from replay.objects.instructions import EXCEPTIONAL
from replay.objects.kinds import FRAME, FUNCTION, METHOD, TUPLE, VECTOR
from replay.objects.machine import (
    CALL_METHOD,
    CALL_VALUE,
    DEPTH_MAX,
    MAKE_CELL,
    NONE,
    NOT_FUNCTION,
    TOO_DEEP,
    WRONG_COUNT,
    applies,
    fail,
    pop,
    push,
)

FEW_ARGUMENTS, FRAME_ARGUMENTS = 5, 8
"""CPython copies so many arguments of `__init__`, or more, to a block. From 3.14 on it copies FRAME_ARGUMENTS or more
to another one, which it frees at once."""


@leaf
def frame_room(heap, called):
    """Returns the number of variables and values in the frame of a function, up to 3.10."""
    return called.locals + (called.stack_3_8 if heap.rules[0].list_classic else called.stack)


@leaf
def frame_bytes(machine, function):
    """Returns the size of the frame that a call of a function allocates, 0 for none."""
    base = machine.heap.rules[0].frame_base
    if base == 0 or machine.state[0].frames_kept or machine.functions[function].block:
        return np.int64(0)
    return base + 8 * frame_room(machine.heap, machine.functions[function])


@leaf
def enter_frame(machine, function):
    """Takes memory for the frame of a call: that of the function's last call, kept memory, or new memory."""
    heap, state, called = machine.heap, machine.state[0], machine.functions[function]
    frame, base = machine.frames[state.depth], heap.rules[0].frame_base
    if base == 0:
        return
    need = frame_room(heap, called)
    if heap.collector[0].ready:  # allocated before the collection that it started
        frame.block, frame.room = new_counted_block(heap, base + 8 * need), need
    elif called.block:
        frame.block, frame.room = called.block, called.room
        called.block = 0
    elif state.frames_kept:
        state.frames_kept -= 1
        kept = machine.kept_frames[state.frames_kept]
        frame.block, frame.room = kept.block, kept.room
        if need > frame.room:
            frame.room = need
            emit(heap, REALLOC, OBJ, frame.block, base + 8 * need)
    else:
        frame.block, frame.room = new_counted_block(heap, base + 8 * need), need


@leaf
def leave_frame(machine, function):
    """Keeps the memory of a frame for the function's next call, or for any call, or frees it after its variables."""
    heap, state = machine.heap, machine.state[0]
    frame = machine.frames[state.depth]
    if heap.rules[0].frame_base:
        if not keep_frame(machine, function, np.int64(frame.block), np.int64(frame.room)):
            heap.objects[state.ended_frame].block = frame.block
        drop_frame(heap, np.int64(state.ended_frame))


@leaf
def call(machine, function):
    """Calls a function with the values on the stack as its first local variables."""
    return enter(machine, function, np.int64(machine.functions[function].parameters), False)


@leaf
def enter(machine, function, kept, has_callee):
    """Calls a function. Up to 3.10, the caller keeps the last `kept` arguments. `has_callee`: see FRAME."""
    state, called = machine.state[0], machine.functions[function]
    if state.depth + state.nested >= DEPTH_MAX:
        return fail(machine, TOO_DEEP, np.int64(0), np.int64(DEPTH_MAX))
    frame = machine.frames[state.depth]
    frame.function, frame.at, frame.locals = state.function, state.at, state.locals
    state.depth += 1
    called.warmth += 1
    enter_frame(machine, function)
    state.function, state.at, state.locals = function, called.start, state.top - called.parameters
    for slot in range(called.parameters, called.locals):
        machine.stack[state.locals + slot] = 0
    state.top = state.locals + called.locals
    state.checks = machine.instructions[called.start].op != MAKE_CELL
    inner = machine.frames[state.depth]
    inner.kept, inner.has_callee = np.int64(0), has_callee
    if called.free:
        _take_cells(machine, called)
    if machine.heap.rules[0].keeps_arguments:
        inner.kept = kept
        for slot in range(called.parameters - kept, called.parameters):
            refer(machine.heap, machine.stack[state.locals + slot])
            push(machine, machine.stack[state.locals + slot])
    return True


@leaf
def _take_cells(machine, called):
    """Copies the cells of a closure, that of the function below the local variables, to the last of these."""
    heap, state = machine.heap, machine.state[0]
    closure = heap.objects[heap.objects[machine.stack[state.locals - 1]].owner]
    for index in range(called.free):
        cell = np.int64(heap.items[closure.first + index])
        refer(heap, cell)
        machine.stack[state.locals + called.locals - called.free + index] = cell


@leaf
def callee(machine, op, count):
    """Returns the function that the next instruction calls, of those that call a value; -1 for none."""
    heap, state = machine.heap, machine.state[0]
    number = np.int64(machine.stack[state.top - count - 1])
    if op == CALL_METHOD and machine.stack[state.top - count - 2]:
        number = np.int64(machine.stack[state.top - count - 2])
    if heap.objects[number].kind == METHOD:
        number = np.int64(heap.objects[number].capacity)
    return np.int64(heap.objects[number].length) if heap.objects[number].kind == FUNCTION else np.int64(-1)


@leaf
def call_value(machine, count):
    """Calls the function or bound method below the arguments."""
    heap, state, rules = machine.heap, machine.state[0], machine.heap.rules[0]
    function = callee(machine, CALL_VALUE, count)
    if function < 0:
        return fail(machine, NOT_FUNCTION, np.int64(0), np.int64(0))
    place = state.top - count - 1
    called = np.int64(machine.stack[place])
    is_method = heap.objects[called].kind == METHOD
    wanted = machine.functions[function].parameters - is_method
    if wanted != count:
        return fail(machine, WRONG_COUNT, count, wanted)
    if is_method:
        owner = np.int64(heap.objects[called].owner)
        for index in range(count):
            machine.stack[state.top - index] = machine.stack[state.top - index - 1]
        state.top += 1
        machine.stack[place + 1] = owner
        refer(heap, owner)
        if not rules.keeps_arguments:  # the function takes the place of the bound method
            machine.stack[place] = heap.objects[called].capacity
            refer(heap, machine.stack[place])
            drop(heap, called)
    return enter(machine, function, count, True)


@leaf
def call_method(machine, count):
    """Calls what LOAD_METHOD found, which is below the arguments."""
    state = machine.state[0]
    place = state.top - count - 2
    if machine.stack[place] == 0:
        for index in range(count + 1):
            machine.stack[place + index] = machine.stack[place + index + 1]
        state.top -= 1
        return call_value(machine, count)
    function = callee(machine, CALL_METHOD, count)
    wanted = machine.functions[function].parameters - 1
    if wanted != count:
        return fail(machine, WRONG_COUNT, count, wanted)
    return enter(machine, function, count + 1, True)


# Calls of __init__. The stack has the arguments, the blocks of two copies of many arguments, their tuple, the instance,
# and the local variables of `__init__`. The class is not on it


@leaf
def make_arguments(machine, count, which):
    """Pushes the tuple of arguments that CPython creates to call a class, or 0 if it creates none."""
    heap, state, rules = machine.heap, machine.state[0], machine.heap.rules[0]
    slots = machine.classes[which].slots
    is_inline = slots != EXCEPTIONAL and applies(machine, rules.slots_inline if slots >= 0 else rules.inits_inline)
    is_copied = count > rules.pairs_values and not is_inline
    push(machine, _new_copy(heap, count) if is_copied else np.int64(0))
    push(machine, np.int64(0))
    if is_inline:
        push(machine, np.int64(0))
        return True
    if count == 0:  # the empty tuple exists once
        none = np.int64(machine.ints.shape[0] + 1 + NONE)
        refer(heap, none)
        push(machine, none)
        return True
    first = state.top - count - 2
    for index in range(count):
        refer(heap, machine.stack[first + index])
        push(machine, machine.stack[first + index])
    return make_container(machine, TUPLE, count)


@leaf
def _new_copy(heap, count):
    """Returns an object of a block for a copy of arguments, and of one value before them."""
    made = new_record(heap, VECTOR, np.int64(0))
    heap.objects[made].vector = new_block(heap, MALLOC, MEM, 8 * (count + 1))
    return made


@leaf
def call_init(machine, function, count):
    """Calls `__init__` of the new instance on the stack. It takes over the arguments if they are in no tuple."""
    heap, state = machine.heap, machine.state[0]
    first = state.top - count - 4
    is_inline = machine.stack[state.top - 2] == 0
    if count >= FEW_ARGUMENTS and not is_inline:
        machine.stack[state.top - 3] = _new_copy(heap, count)
        if heap.rules[0].copies_arguments and count >= FRAME_ARGUMENTS:
            free_block(heap, MEM, new_block(heap, MALLOC, MEM, 8 * (count + 1)))
    refer(heap, machine.stack[state.top - 1])
    push(machine, machine.stack[state.top - 1])
    for index in range(count):
        number = np.int64(machine.stack[first + index])
        push(machine, number)
        if is_inline:
            machine.stack[first + index] = 0
        else:
            refer(heap, number)
    state.nested += 1
    return enter(machine, function, np.int64(0), False)


@leaf
def end_init(machine, count):
    """Drops the arguments of a class, and leaves the instance on the stack."""
    heap, state = machine.heap, machine.state[0]
    result, instance, arguments = pop(machine), pop(machine), pop(machine)
    second, first = pop(machine), pop(machine)
    state.nested -= 1
    for index in range(count):  # what is dropped first dies last
        back = index if heap.rules[0].arguments_forward else count - 1 - index
        number = np.int64(machine.stack[state.top - 1 - back])
        if number:
            drop(heap, number)
    if first:
        drop(heap, first)
    if arguments:
        state.checks = 1
        drop(heap, arguments)
    if second:
        drop(heap, second)
    drop(heap, result)
    state.top -= count
    push(machine, instance)
    return True


@leaf
def fail_init(machine, count):
    """Drops the instance and the arguments of a class whose `__init__` an exception left."""
    heap, state = machine.heap, machine.state[0]
    instance, arguments = pop(machine), pop(machine)
    second, first = pop(machine), pop(machine)
    state.nested -= 1
    for index in range(count):
        number = np.int64(machine.stack[state.top - count + index])
        if number:
            drop(heap, number)
    if first:
        drop(heap, first)
    if arguments:
        drop(heap, arguments)
    drop(heap, instance)
    if second:
        drop(heap, second)
    state.top -= count


@leaf
def _drop_with_variables(machine):
    """Has the next steps end a frame and its variables as one object, up to 3.10: its end can be nested in that of
    others, and calls can be nested in it. If it is delayed, it still refers to the frame of its caller."""
    heap, state = machine.heap, machine.state[0]
    frame, count = machine.frames[state.depth], np.int64(machine.functions[state.function].locals)
    ended = new_record(heap, FRAME, count + 1)
    give_items(heap, ended, count + 1)
    if heap.collector[0].nesting >= heap.rules[0].trashcan_levels and has_caller(machine):
        caller = frame_object(machine, state.depth - 1)
        refer(heap, caller)
        heap.items[heap.objects[ended].first + count] = caller
    entry = heap.objects[ended]
    entry.block, entry.capacity, entry.owner = frame.block, frame.room, state.function
    for slot in range(count):
        heap.items[entry.first + slot] = machine.stack[state.locals + slot]
    drop(heap, ended)


@leaf
def return_value(machine):
    """Returns to the caller: the local variables die, then the arguments that the caller kept."""
    heap, state = machine.heap, machine.state[0]
    result, called, frame = pop(machine), machine.functions[state.function], machine.frames[state.depth]
    has_function = is_referred(machine) and not heap.rules[0].frame_base
    if frame.has_callee and not has_function:  # what is dropped first dies last
        drop(heap, np.int64(machine.stack[state.locals - 1]))
    if state.depth == 0:  # the result of main is not used; it dies last
        drop(heap, result)
    if heap.rules[0].keeps_arguments:
        for slot in range(frame.kept):
            drop(heap, np.int64(machine.stack[state.locals + called.locals + slot]))
    if is_referred(machine):
        leave_variables(machine)
    else:
        if machine.frames[state.depth].object:
            end_unreferred(machine)
        if state.calls_nested and heap.rules[0].frame_base:
            _drop_with_variables(machine)
        else:
            leave_frame(machine, state.function)
            for index in range(called.locals):
                slot = index if heap.rules[0].locals_from_last else called.locals - 1 - index
                if machine.stack[state.locals + slot]:
                    drop(heap, np.int64(machine.stack[state.locals + slot]))
    state.top = state.locals - frame.has_callee
    if state.depth == 0:
        return False
    state.depth -= 1
    outer = machine.frames[state.depth]
    state.function, state.at, state.locals = outer.function, outer.at, outer.locals
    push(machine, result)
    return True
