"""Generators: objects that keep the variables and values of a function while it is suspended.

    generator   `vector`: its function. `capacity`: the instruction that is next, ENDED, or RUNNING. Its items are the
                local variables and then the stack; one more is its frame object, if it has one. `owner`: the exception
                that it handles
    frame       up to 3.10, a separate object: the `owner` of its generator, and it has the values. The generator's own
                items are the exception that it handles, and the traceback. `capacity`: the function; `vector`: its
                memory in variables and values; `owner`: the frame that resumed it
    running     the values are on the machine's stack, not in the items

`replay.objects.closing` has the end of a generator that is suspended.
"""

import numpy as np

from replay.jit.compiling import cold, leaf
from replay.objects.calls import enter_frame
from replay.objects.exceptions import STOP, create_raised, pass_stop, stop_context
from replay.objects.frame_objects import end_unreferred, is_frame_referred, leave_variables, object_place
from replay.objects.heap import drop, give_items, new_object, new_record, take_items, track
from replay.objects.instructions import COROUTINE
from replay.objects.interruptions import continue_interrupted
from replay.objects.kinds import FRAME, GENERATOR, GENERATOR_FRAME, STEPS, STOP_ITERATION, TUPLE
from replay.objects.machine import (
    ALREADY_RUNNING,
    AWAITED,
    DEPTH_MAX,
    GENERATOR_ENDED,
    IGNORES_EXIT,
    MAKE_FRAME,
    MAKE_GENERATOR,
    NEXT_OF,
    NONE,
    NOT_GENERATOR,
    RESULT_LOST,
    RETURNED_TO_HANDLER,
    SEND,
    TOO_DEEP,
    TUPLE_RETURNED,
    YIELD,
    applies,
    fail,
    pop,
    push,
)
from replay.objects.running_generators import ENDED, RUNNING, coroutine_of, give_handled, values_of


@leaf
def generator_bytes(heap, called):
    """Returns the size of a generator of a function."""
    more = heap.rules[0].coroutine_more if called.coroutine == COROUTINE else np.int64(0)
    return heap.rules[0].generator_bytes + more + 8 * called.slots


@leaf
def _keep_arguments(machine, number, called):
    """Moves the arguments on the stack to the items of a generator or frame; its other variables are not bound."""
    heap, state = machine.heap, machine.state[0]
    give_items(heap, number, called.locals + called.stack + 1)
    entry = heap.objects[number]
    entry.length = called.locals
    state.top -= called.parameters
    for slot in range(called.parameters):
        heap.items[entry.first + slot] = machine.stack[state.top + slot]
    for slot in range(called.parameters, called.locals + called.stack + 1):
        heap.items[entry.first + slot] = 0


@leaf
def _make_frame(machine, function):
    """Replaces the arguments on the stack by a frame, up to 3.10."""
    heap, state, called = machine.heap, machine.state[0], machine.functions[function]
    if heap.rules[0].frame_base == 0:
        return True
    state.depth += 1
    enter_frame(machine, function)
    memory = machine.frames[state.depth]
    state.depth -= 1
    number = new_record(heap, GENERATOR_FRAME, np.int64(0))
    entry = heap.objects[number]
    entry.block, entry.vector, entry.capacity = memory.block, memory.room, function
    _keep_arguments(machine, number, called)
    push(machine, number)
    return True


@leaf
def _make_generator(machine, function):
    """Pushes a generator with the frame or the arguments on the stack."""
    heap, called = machine.heap, machine.functions[function]
    number = new_object(heap, GENERATOR, generator_bytes(heap, called), np.int64(0))
    entry = heap.objects[number]
    entry.capacity, entry.vector = called.start, function
    if heap.rules[0].frame_base:
        entry.owner = pop(machine)
        track(heap, np.int64(entry.owner), heap.generations[0].ring)
    else:
        _keep_arguments(machine, number, called)
    push(machine, number)
    return True


@leaf
def resume(machine, generator):
    """Continues a generator that has not ended."""
    state, entry = machine.state[0], machine.heap.objects[generator]
    if entry.capacity == RUNNING:
        return fail(machine, ALREADY_RUNNING, np.int64(0), np.int64(0))
    if state.depth == DEPTH_MAX:
        return fail(machine, TOO_DEEP, np.int64(0), np.int64(DEPTH_MAX))
    enter_generator(machine, generator)
    machine.functions[state.function].warmth += 1
    state.checks = machine.instructions[state.at].op != SEND
    return True


@leaf
def enter_generator(machine, generator):
    """Moves the values of a suspended generator to the stack, and what it handles to the state."""
    heap, state, entry = machine.heap, machine.state[0], machine.heap.objects[generator]
    caller, values = machine.frames[state.depth], heap.objects[values_of(heap, generator)]
    caller.function, caller.at, caller.locals = state.function, state.at, state.locals
    caller.handled, caller.handled_traceback = state.handled, state.handled_traceback
    state.depth += 1
    state.generators += 1
    state.function, state.at, state.locals = entry.vector, entry.capacity, state.top
    for slot in range(values.length):
        machine.stack[state.locals + slot] = heap.items[values.first + slot]
    state.top = state.locals + values.length
    values.length, entry.capacity = 0, RUNNING
    frame = machine.frames[state.depth]
    frame.generator, frame.has_callee, frame.kept, frame.closes = generator, 0, 0, 0
    state.handled, state.handled_traceback = 0, 0
    if heap.rules[0].frame_base == 0:
        frame.object = heap.items[object_place(machine, generator)]
        state.handled, entry.owner = entry.owner, 0
    elif entry.length:
        state.handled, state.handled_traceback = heap.items[entry.first], heap.items[entry.first + 1]
        entry.length = 0


@leaf
def suspend(machine):
    """Returns to the caller; the generator keeps its values, except the top one of the stack, which is returned."""
    heap, state = machine.heap, machine.state[0]
    frame = machine.frames[state.depth]
    if frame.closes:
        return fail(machine, IGNORES_EXIT, np.int64(0), np.int64(0))
    result, entry = pop(machine), heap.objects[frame.generator]
    values = heap.objects[values_of(heap, np.int64(frame.generator))]
    entry.capacity = state.at
    values.length = state.top - state.locals
    for slot in range(values.length):
        heap.items[values.first + slot] = machine.stack[state.locals + slot]
    if heap.rules[0].frame_base == 0:
        heap.items[object_place(machine, np.int64(frame.generator))] = frame.object
        frame.object, entry.owner = 0, state.handled
    elif state.handled:
        give_handled(heap, np.int64(frame.generator), np.int64(state.handled), np.int64(state.handled_traceback))
    _leave(machine)
    if machine.instructions[state.at - 1].op == NEXT_OF:
        _end_next(machine, result, False)
    else:
        push(machine, result)
    return True


@leaf
def _leave(machine):
    """Returns from a generator to its caller, which handles what it handled before."""
    state = machine.state[0]
    machine.frames[state.depth].generator = 0
    state.top = state.locals
    state.generators -= 1
    state.depth -= 1
    caller = machine.frames[state.depth]
    state.function, state.at, state.locals = caller.function, caller.at, caller.locals
    state.handled, state.handled_traceback = caller.handled, caller.handled_traceback


@leaf
def _end_next(machine, result, has_ended):
    """Replaces the arguments of `next` by its result: a generator, and a default if the instruction has one."""
    heap, state = machine.heap, machine.state[0]
    default = pop(machine) if machine.instructions[state.at - 1].argument else np.int64(0)
    generator = pop(machine)
    state.checks = 1
    push(machine, default if has_ended else result)
    if default and not has_ended and heap.rules[0].method_first:
        drop(heap, default)
    drop(heap, generator)
    if default and not has_ended and not heap.rules[0].method_first:
        drop(heap, default)


@leaf
def stop(machine):
    """Has `next` raise StopIteration, if the program handles exceptions."""
    if machine.regions.shape[0] == 1:
        return fail(machine, GENERATOR_ENDED, np.int64(0), np.int64(0))
    machine.state[0].unwinding = STOP
    return True


@leaf
def fail_next(machine):
    """Drops the arguments of `next`, whose generator an exception left, or leaves them on the stack."""
    if not applies(machine, machine.heap.rules[0].keeps_failed):
        _end_next(machine, np.int64(0), False)
        machine.state[0].top -= 1
        machine.state[0].checks = 0


@leaf
def _end_generator(machine):
    """Ends the function of a generator: its values die, then the caller has no next item, or the result of `await`."""
    heap, state = machine.heap, machine.state[0]
    result = pop(machine)
    frame, locals_ = machine.frames[state.depth], np.int64(state.locals)
    number, count, closes = np.int64(frame.generator), machine.functions[state.function].locals, frame.closes
    lives_on = is_frame_referred(machine)
    if lives_on:
        leave_variables(machine)
    elif frame.object:
        end_unreferred(machine)
    leave_generator(machine)
    caller = machine.instructions[state.at - 1]
    context = stop_context(machine)
    if context and result != machine.ints.shape[0] + 1 + NONE:
        return fail(machine, RETURNED_TO_HANDLER, np.int64(0), np.int64(0))
    if closes:
        continue_interrupted(machine)
        drop(heap, result)
    elif caller.op == SEND:
        if heap.rules[0].wraps_results and heap.objects[result].kind == TUPLE:
            return fail(machine, TUPLE_RETURNED, np.int64(0), np.int64(0))
        state.at = caller.other
        drop(heap, pop(machine))
        push(machine, result)
    elif result != machine.ints.shape[0] + 1 + NONE:
        return fail(machine, RESULT_LOST, np.int64(0), np.int64(0))
    elif caller.op == NEXT_OF:
        if caller.argument:
            _end_next(machine, np.int64(0), True)
        elif not stop(machine):
            return False
    else:
        _end_loop(machine)
    if context and state.unwinding == STOP:
        state.raised_class, state.raised_at = STOP_ITERATION, state.at
        create_raised(machine, context)
    elif context:
        pass_stop(machine, context)
    if lives_on:
        return True
    if heap.rules[0].frame_base:
        _end_frame(heap, number, machine.stack, locals_, np.int64(count))
        return True
    for index in range(count):
        slot = index if heap.rules[0].locals_from_last else count - 1 - index
        if machine.stack[locals_ + slot]:
            drop(heap, np.int64(machine.stack[locals_ + slot]))
    return True


@leaf
def leave_generator(machine):
    """Ends a generator whose variables were moved, and returns to its caller."""
    heap, number = machine.heap, np.int64(machine.frames[machine.state[0].depth].generator)
    heap.objects[number].capacity = ENDED
    if heap.rules[0].frame_base == 0:
        take_items(heap, number)
    elif heap.objects[heap.objects[number].owner].kind == FRAME:
        heap.objects[number].owner = 0
    _leave(machine)


@leaf
def _end_frame(heap, generator, values, first, count):
    """Moves the variables of a generator back to its frame, which ends, up to 3.10."""
    entry = heap.objects[generator]
    frame = heap.objects[entry.owner]
    for slot in range(count):
        heap.items[frame.first + slot] = values[first + slot]
    frame.length = count
    drop(heap, np.int64(entry.owner))
    entry.owner = 0


@leaf
def _end_loop(machine):
    """Ends the loop of the instruction NEXT that ran last."""
    state = machine.state[0]
    state.at = machine.instructions[state.at - 1].other
    drop(machine.heap, pop(machine))


@cold
def next_of_steps(machine, steps):
    """Resumes the coroutine of a loop, or of a call of `next`, over its steps."""
    coroutine = np.int64(machine.heap.objects[steps].owner)
    if machine.heap.objects[coroutine].capacity == ENDED:
        return fail(machine, AWAITED, np.int64(0), np.int64(0))
    return resume(machine, coroutine)


@leaf
def next_of_generator(machine, generator):
    """Resumes the generator of a loop, or ends the loop. The instruction's argument counts its generators."""
    machine.instructions[machine.state[0].at - 1].argument += 1
    if machine.heap.objects[generator].capacity == ENDED:
        _end_loop(machine)
        return True
    return resume(machine, generator)


@leaf
def _next_of(machine, has_default):
    """Resumes the generator of a call of `next`."""
    state = machine.state[0]
    number = np.int64(machine.stack[state.top - 1 - has_default])
    entry = machine.heap.objects[number]
    if entry.kind == STEPS:
        return next_of_steps(machine, number)
    if entry.kind != GENERATOR or coroutine_of(machine, number) == COROUTINE:
        return fail(machine, NOT_GENERATOR, np.int64(0), np.int64(0))
    if entry.capacity != ENDED:
        return resume(machine, number)
    if not has_default:
        return stop(machine)
    _end_next(machine, np.int64(0), True)
    return True


@leaf
def do_generator(machine, op, argument):
    """Runs an instruction for generators, except CLOSE."""
    if op == MAKE_FRAME:
        return _make_frame(machine, argument)
    if op == MAKE_GENERATOR:
        return _make_generator(machine, argument)
    if op == YIELD:
        return suspend(machine)
    if op == NEXT_OF:
        return _next_of(machine, argument)
    return _end_generator(machine)
