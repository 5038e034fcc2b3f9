"""Calls: frames, local variables and arguments."""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.frame_objects import end_unreferred, is_referred, keep_frame, leave_variables
from replay.objects.heap import OBJ, REALLOC, drop, emit, new_counted_block, refer
from replay.objects.machine import DEPTH_MAX, TOO_DEEP, fail, pop, push


@leaf
def frame_room(heap, called):
    """Returns the number of variables and values in the frame of a function, up to 3.10."""
    return called.locals + (called.stack_3_8 if heap.rules[0].list_classic else called.stack)


@leaf
def enter_frame(machine, function):
    """Takes memory for the frame of a call: that of the function's last call, kept memory, or new memory."""
    heap, state, called = machine.heap, machine.state[0], machine.functions[function]
    frame, base = machine.frames[state.depth], heap.rules[0].frame_base
    if base == 0:
        return
    need = frame_room(heap, called)
    if called.block:
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
    """Keeps the memory of a frame for the function's next call, or for any call, or frees it."""
    frame = machine.frames[machine.state[0].depth]
    if machine.heap.rules[0].frame_base:
        keep_frame(machine, function, np.int64(frame.block), np.int64(frame.room))


@leaf
def call(machine, function):
    """Calls a function with the values on the stack as its first local variables."""
    state, called = machine.state[0], machine.functions[function]
    if state.depth == DEPTH_MAX:
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
    if machine.heap.rules[0].keeps_arguments:
        for slot in range(called.parameters):
            refer(machine.heap, machine.stack[state.locals + slot])
            push(machine, machine.stack[state.locals + slot])
    return True


@leaf
def return_value(machine):
    """Returns to the caller: the local variables die, then the arguments that the caller kept."""
    heap, state = machine.heap, machine.state[0]
    result, called = pop(machine), machine.functions[state.function]
    if state.depth == 0:  # the result of main is not used; it dies last
        drop(heap, result)
    if heap.rules[0].keeps_arguments:
        for slot in range(called.parameters):
            drop(heap, np.int64(machine.stack[state.locals + called.locals + slot]))
    if is_referred(machine):
        leave_variables(machine)
    else:
        if machine.frames[state.depth].object:
            end_unreferred(machine)
        for index in range(called.locals):
            slot = index if heap.rules[0].locals_from_last else called.locals - 1 - index
            if machine.stack[state.locals + slot]:
                drop(heap, np.int64(machine.stack[state.locals + slot]))
        leave_frame(machine, state.function)
    state.top = state.locals
    if state.depth == 0:
        return False
    state.depth -= 1
    frame = machine.frames[state.depth]
    state.function, state.at, state.locals = frame.function, frame.at, frame.locals
    push(machine, result)
    return True
