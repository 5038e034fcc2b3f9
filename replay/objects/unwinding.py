"""What a raised exception does until its handler runs: a traceback for each call, and the end of calls without one.

    ADD_FRAME       the current call gets a frame object, from 3.11 on
    ADD_TRACEBACK   the traceback gets an entry for this call
    SEEK            the region of the instruction decides: values die that the handler does not need
    ENTER           its handler starts, or it ends a handler that it leaves
    LEAVE           the call ends, and leaves its variables to its frame object; continues in the caller

Each is one step of the machine, and allocates one object at most.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.calls import fail_init
from replay.objects.exceptions import (
    ADD_FRAME,
    ADD_TRACEBACK,
    ENTER,
    LEAVE,
    SEEK,
    TRACEBACK_ITEM,
    item_of,
    leave_handled,
    push_place,
    set_item,
    unbind,
)
from replay.objects.frame_objects import (
    bottom_depth,
    frame_object,
    frame_object_bytes,
    leave_variables,
    needs_frame_object,
)
from replay.objects.handlers import CATCH, FINALLY, FINALLY_VALUES, HANDLER_VALUES, NAME
from replay.objects.heap import TRACEBACK, drop, give_items, new_object, refer
from replay.objects.machine import CALL_INIT, UNCAUGHT, fail, pop, push

TRACEBACK_BYTES = 56


@leaf
def unwinding_bytes(machine):
    """Returns the size of the counted object that the next step allocates, 0 for none."""
    state = machine.state[0]
    if state.unwinding == ADD_TRACEBACK:
        return np.int64(TRACEBACK_BYTES)
    depth = state.depth - (state.unwinding == LEAVE)
    if state.unwinding in (ADD_FRAME, LEAVE) and needs_frame_object(machine, depth):
        return frame_object_bytes(machine, depth)
    return np.int64(0)


@leaf
def unwind_next(machine):
    """Takes one step; returns False if the exception has no handler."""
    state = machine.state[0]
    state.checks = 0
    if state.unwinding == ADD_FRAME:
        frame_object(machine, state.depth)
        state.unwinding = ADD_TRACEBACK
    elif state.unwinding == ADD_TRACEBACK:
        _add_traceback(machine)
        state.unwinding = SEEK
    elif state.unwinding == ENTER:
        region = machine.regions[state.region]
        if region.kind in (CATCH, FINALLY):
            _enter(machine, region)
        else:
            return _end_handler(machine, region)
    elif state.unwinding == LEAVE:
        _leave(machine)
    else:
        return _seek(machine)
    return True


@leaf
def _add_traceback(machine):
    """Adds an entry for the current call."""
    heap, state = machine.heap, machine.state[0]
    number = new_object(heap, np.int64(TRACEBACK), np.int64(TRACEBACK_BYTES), np.int64(2))
    give_items(heap, number, np.int64(2))
    frame = frame_object(machine, state.depth)
    refer(heap, frame)
    first, is_separate = heap.objects[number].first, heap.rules[0].separate_traceback
    following = np.int64(state.raised_traceback) if is_separate else item_of(heap, state.raised, TRACEBACK_ITEM)
    heap.items[first], heap.items[first + 1] = following, frame
    if is_separate:
        state.raised_traceback = number
    else:
        heap.items[heap.objects[state.raised].first + TRACEBACK_ITEM] = number


@leaf
def _drop_values(machine, base):
    """Drops the values on the stack down to a base, the last one first."""
    state = machine.state[0]
    for place in range(base, state.top):
        if machine.stack[place]:
            drop(machine.heap, np.int64(machine.stack[place]))
    state.top = base


@leaf
def _seek(machine):
    """Leaves the current region."""
    heap, state = machine.heap, machine.state[0]
    region, called = machine.regions[state.region], machine.functions[state.function]
    kept = machine.frames[state.depth].kept if heap.rules[0].keeps_arguments else np.int64(0)
    _drop_values(machine, state.locals + called.locals + kept + region.depth)
    if state.region == 0:
        if state.depth == bottom_depth(machine):
            state.at = heap.objects[state.raised].capacity
            return fail(machine, UNCAUGHT, heap.objects[state.raised].owner, np.int64(0))
        state.unwinding = LEAVE
    else:
        state.unwinding = ENTER
    return True


@leaf
def _end_handler(machine, region):
    """Ends what an exception leaves: first the variable of a handler, then the handler."""
    heap, state = machine.heap, machine.state[0]
    is_name = region.kind == NAME
    if heap.rules[0].pushes_places:
        push(machine, np.int64(0))
        if not push_place(machine):
            return False
        place = pop(machine)
        if place:
            drop(heap, place)
    if is_name:
        unbind(machine, region.variable)
    else:
        leave_handled(machine)
    if is_name or heap.rules[0].frame_base == 0:
        _attach_traceback(machine)
    state.region, state.unwinding = region.outer, SEEK
    return True


@leaf
def _attach_traceback(machine):
    """Up to 3.11, the start of a handler gives the exception its traceback."""
    heap, state = machine.heap, machine.state[0]
    if heap.rules[0].separate_traceback:
        refer(heap, state.raised_traceback)
        set_item(heap, state.raised, TRACEBACK_ITEM, np.int64(state.raised_traceback))


@leaf
def _enter(machine, region):
    """Starts the handler of a region."""
    heap, state = machine.heap, machine.state[0]
    _attach_traceback(machine)
    push(machine, np.int64(state.handled_traceback))
    push(machine, np.int64(state.handled))
    for _ in range((HANDLER_VALUES if region.kind == CATCH else FINALLY_VALUES) - 2):
        push(machine, np.int64(0))
    state.handled, state.handled_traceback = state.raised, 0
    if heap.rules[0].frame_base:
        state.handled_traceback = state.raised_traceback
    elif heap.rules[0].separate_traceback:
        drop(heap, np.int64(state.raised_traceback))
    state.raised, state.raised_traceback = 0, 0
    state.at, state.unwinding = region.target, 0


@leaf
def _leave(machine):
    """Ends the current call, and continues in its caller."""
    heap, state = machine.heap, machine.state[0]
    called, left = machine.functions[state.function], machine.frames[state.depth]
    leave_variables(machine)
    state.top = state.locals - left.has_callee
    if heap.rules[0].keeps_arguments:
        if left.has_callee:
            drop(heap, np.int64(machine.stack[state.top]))
        for slot in range(left.kept):
            drop(heap, np.int64(machine.stack[state.locals + called.locals + slot]))
    state.depth -= 1
    frame = machine.frames[state.depth]
    state.function, state.at, state.locals = frame.function, frame.at, frame.locals
    instruction = machine.instructions[state.at - 1]
    if instruction.op == CALL_INIT:
        fail_init(machine, np.int64(instruction.other))
    state.region, state.unwinding = machine.region_of[state.at - 1], ADD_FRAME
