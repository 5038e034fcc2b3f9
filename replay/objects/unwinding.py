"""What a raised exception does until its handler runs: a traceback for each call, and the end of calls without one.

    ADD_FRAME       the current call gets a frame object, from 3.11 on
    ADD_TRACEBACK   the traceback gets an entry for this call
    SEEK            the region of the instruction decides: values die that the handler does not need
    ENTER           its handler starts, or it ends a handler that it leaves
    LEAVE           the call ends, and leaves its variables to its frame object; continues in the caller
    STOP            `next` raises StopIteration
    NOTE_PLACE      in 3.12 and 3.13, before LEAVE in a generator: the place in the code is a new integer for a while

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
    NOTE_PLACE,
    SEEK,
    STOP,
    TRACEBACK_ITEM,
    create_raised,
    exception_bytes,
    handled_exception,
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
    links_caller,
    needs_frame_object,
)
from replay.objects.generators import fail_next, leave_generator
from replay.objects.handlers import CATCH, FINALLY, FINALLY_VALUES, HANDLER_VALUES, NAME
from replay.objects.heap import drop, give_items, new_object, refer
from replay.objects.interruptions import continue_interrupted
from replay.objects.kinds import GENERATOR_EXIT, STOP_ITERATION, TRACEBACK
from replay.objects.machine import (
    BY_CALL,
    CALL_INIT,
    LEAVES_DYING,
    NEXT_OF,
    STOPS_GENERATOR,
    UNCAUGHT,
    UNKNOWN_PLACE,
    YIELD,
    YIELD_AGAIN,
    fail,
    pop,
    push,
)

TRACEBACK_BYTES = 56


@leaf
def unwinding_bytes(machine):
    """Returns the size of the counted object that the next step allocates, 0 for none."""
    state = machine.state[0]
    if state.unwinding == ADD_TRACEBACK:
        return np.int64(TRACEBACK_BYTES)
    if state.unwinding == ENTER and _needs_exception(machine):
        return exception_bytes(machine.heap, state.raised_class)
    if state.unwinding == STOP:
        is_created = state.raised == 0 and handled_exception(machine) > 0
        return exception_bytes(machine.heap, STOP_ITERATION) if is_created else np.int64(0)
    if state.unwinding == LEAVE and not links_caller(machine):
        return np.int64(0)
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
        if _needs_exception(machine):
            create_raised(machine, np.int64(0))
        if region.kind not in (CATCH, FINALLY):
            return _end_handler(machine, region)
        _enter(machine, region)
    elif state.unwinding == LEAVE:
        if machine.frames[state.depth].generator:
            return _leave_generator(machine)
        _leave(machine)
    elif state.unwinding == NOTE_PLACE:
        return _note_place(machine)
    elif state.unwinding == STOP:
        _stop(machine)
    else:
        return _seek(machine)
    return True


@leaf
def _stop(machine):
    """Raises StopIteration in a call of `next`, whose generator has ended."""
    heap, state = machine.heap, machine.state[0]
    context = handled_exception(machine)
    state.raised_class, state.raised_at = STOP_ITERATION, state.at
    if state.raised == 0 and (heap.rules[0].exit_bytes or context):
        create_raised(machine, context)
    fail_next(machine)
    state.region, state.unwinding = machine.region_of[state.at - 1], ADD_FRAME


@leaf
def _needs_exception(machine):
    """Whether an exception has to be created, up to 3.11: code of a handler is next."""
    state = machine.state[0]
    return state.raised == 0 and machine.regions[state.region].kind in (CATCH, FINALLY, NAME)


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
            return _fail_where_raised(machine, UNCAUGHT, _raised_class(machine))
        if state.end_call and machine.frames[state.depth - 1].at == state.end_call:
            return _fail_where_raised(machine, LEAVES_DYING, np.int64(0))
        if machine.frames[state.depth].generator and _raised_class(machine) == STOP_ITERATION:
            return _fail_where_raised(machine, STOPS_GENERATOR, np.int64(0))
        notes_place = heap.rules[0].notes_exits and machine.frames[state.depth].generator > 0
        state.unwinding = NOTE_PLACE if notes_place else LEAVE
    else:
        state.unwinding = ENTER
    return True


@leaf
def _fail_where_raised(machine, mistake, value):
    """Stops the machine with a mistake at the statement that raised the exception."""
    state = machine.state[0]
    state.at = machine.heap.objects[state.raised].capacity if state.raised else state.raised_at
    return fail(machine, mistake, value, np.int64(0))


@leaf
def _raised_class(machine):
    """Returns the class of the exception that is raised."""
    state = machine.state[0]
    return np.int64(machine.heap.objects[state.raised].owner if state.raised else state.raised_class)


@leaf
def _note_place(machine):
    """Creates and drops the integer of the place that an exception leaves in a generator."""
    state = machine.state[0]
    push(machine, np.int64(0))
    if not push_place(machine):
        if machine.instructions[state.at - 1].op in (YIELD, YIELD_AGAIN):
            state.mistake = UNKNOWN_PLACE
        return False
    place = pop(machine)
    if place:
        drop(machine.heap, place)
    state.unwinding = LEAVE
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


@leaf
def _leave_generator(machine):
    """Ends a generator, and continues in its caller, or after the generator was closed."""
    state = machine.state[0]
    closes = machine.frames[state.depth].closes
    leave_variables(machine)
    leave_generator(machine)
    if closes:
        return _end_closing(machine, closes)
    instruction = machine.instructions[state.at - 1]
    if instruction.op == NEXT_OF:
        fail_next(machine)
    state.region, state.unwinding = machine.region_of[state.at - 1], ADD_FRAME
    return True


@leaf
def _end_closing(machine, closes):
    """Drops the exception that closed a generator. Another one continues, if the generator was closed by a call."""
    heap, state = machine.heap, machine.state[0]
    raised, traceback = np.int64(state.raised), np.int64(state.raised_traceback)
    is_exit = _raised_class(machine) == GENERATOR_EXIT
    if not is_exit and closes != BY_CALL:
        return _fail_where_raised(machine, LEAVES_DYING, np.int64(0))
    continue_interrupted(machine)
    if not is_exit:
        state.raised, state.raised_traceback = raised, traceback
        state.region, state.unwinding = machine.region_of[state.at - 1], ADD_FRAME
        return True
    if traceback:
        drop(heap, traceback)
    if raised:
        drop(heap, raised)
    return True
