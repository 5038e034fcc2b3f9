"""Frame objects: what tracebacks refer to, and what keeps the local variables of a call that an exception has left.

Up to 3.10, every call has one. It is a record only from the first traceback on; before, `calls` has its memory. From
3.11 on, CPython creates it for a traceback, or when a frame object of a call is left whose traceback lives on: this one
refers to the frame object of its caller.

A call that ends while others refer to its frame object leaves its variables there. Then the object's items are the
function, from 3.11 on if it is in a variable, the variables in the order in which they die, and the frame object of the
caller. The collector tracks it from then on. Frames of generators have no caller then, except in 3.12 and 3.13.0. Up to
3.10, a generator's frame exists from the beginning, as a GENERATOR_FRAME.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.heap import drop, free_counted_block, give_items, new_counted_block, new_record, refer, track
from replay.objects.kinds import FRAME, GENERATOR_FRAME
from replay.objects.machine import FRAMES_KEPT


@leaf
def function_at(machine, depth):
    """Returns the function of the running call at a depth."""
    state = machine.state[0]
    return np.int64(state.function if depth == state.depth else machine.frames[depth].function)


@leaf
def bottom_depth(machine):
    """Returns the depth of the first call of a thread: 1, or 0 for `main`."""
    return np.int64(machine.state[0].arguments > 0)


@leaf
def has_caller(machine):
    """Whether the caller of the current call still runs: not for what the end of the variables of `main` calls."""
    state = machine.state[0]
    if state.depth == 1 and state.interrupted:
        return machine.nested[state.interrupted - 1].is_over == 0
    return state.depth > bottom_depth(machine)


@leaf
def links_caller(machine):
    """Whether the frame object of the current call, if it lives on, will refer to that of its caller."""
    is_generator = machine.frames[machine.state[0].depth].generator > 0
    return has_caller(machine) and (not is_generator or machine.heap.rules[0].links_caller > 0)


@leaf
def needs_frame_object(machine, depth):
    """Whether the frame object of a running call has to be allocated before another object can refer to it."""
    if depth < bottom_depth(machine) or machine.heap.rules[0].frame_base:
        return False
    return machine.frames[depth].object == 0


@leaf
def frame_object_bytes(machine, depth):
    return np.int64(machine.functions[function_at(machine, depth)].object_bytes)


@leaf
def frame_object(machine, depth):
    """Returns the frame object of a running call."""
    heap, frame = machine.heap, machine.frames[depth]
    if frame.generator and heap.rules[0].frame_base:
        return np.int64(heap.objects[frame.generator].owner)
    if frame.object == 0:
        is_new = needs_frame_object(machine, depth)
        number = new_record(heap, np.int64(FRAME), np.int64(0))
        entry = heap.objects[number]
        entry.block = new_counted_block(heap, frame_object_bytes(machine, depth)) if is_new else frame.block
        entry.capacity, entry.owner = frame.room, function_at(machine, depth)
        frame.object = number
    return np.int64(frame.object)


@leaf
def is_referred(machine):
    """Whether others refer to the frame object of the current call, or did before a collection that this started."""
    frame = machine.frames[machine.state[0].depth]
    return frame.object > 0 and (machine.heap.objects[frame.object].refs > 1 or machine.heap.collector[0].ready > 0)


@leaf
def is_frame_referred(machine):
    """Whether others refer to the frame object of the generator that runs."""
    heap, frame = machine.heap, machine.frames[machine.state[0].depth]
    number = np.int64(heap.objects[frame.generator].owner if heap.rules[0].frame_base else frame.object)
    return number > 0 and heap.objects[number].refs > 1


@leaf
def leave_variables(machine):
    """Moves the variables of the current call, which ends, to its frame object."""
    heap, state = machine.heap, machine.state[0]
    count, frame = machine.functions[state.function].locals, machine.frames[state.depth]
    number, caller = frame_object(machine, state.depth), np.int64(0)
    if links_caller(machine):
        caller = frame_object(machine, state.depth - 1)
        refer(heap, caller)
    has_function = frame.has_callee and not heap.rules[0].frame_base
    function = np.int64(machine.stack[state.locals - 1] if has_function else 0)
    _take_over(heap, number, function, machine.stack, np.int64(state.locals), np.int64(count), caller)
    frame.object = 0


@leaf
def _take_over(heap, number, function, values, first, count, caller):
    """Moves values to a frame object, which is tracked from then on, and loses one reference."""
    entry = heap.objects[number]
    if entry.kind == GENERATOR_FRAME:
        entry.kind, entry.owner, entry.capacity, entry.vector = FRAME, entry.capacity, entry.vector, 0
    give_items(heap, number, count + 2)
    entry = heap.objects[number]
    heap.items[entry.first] = function
    for index in range(count):
        slot = count - 1 - index if heap.rules[0].locals_from_last else index
        heap.items[entry.first + 1 + index] = values[first + slot]
    heap.items[entry.first + 1 + count] = caller
    entry.length = count + 2
    if entry.next == 0:
        track(heap, number, heap.generations[0].ring)
    if entry.refs > 1:
        entry.refs -= 1
    else:  # a collection that this started has freed what referred to it
        drop(heap, number)


@leaf
def release_frame_object(machine, generator):
    """Ends the frame object of a suspended generator, if it has one, from 3.11 on. If others refer to it, it takes over
    the values of the generator."""
    heap, entry = machine.heap, machine.heap.objects[generator]
    place = object_place(machine, generator)
    number = np.int64(heap.items[place]) if entry.first else np.int64(0)
    if number == 0:
        return
    heap.items[place] = 0
    if heap.objects[number].refs > 1:
        length, entry.length = np.int64(entry.length), 0
        _take_over(heap, number, np.int64(0), heap.items, np.int64(entry.first), length, np.int64(0))
    else:
        free_counted_block(heap, np.int64(heap.objects[number].block))
        _end_record(heap, number)


@leaf
def object_place(machine, generator):
    """Returns the place of the frame object among the items of a generator, from 3.11 on: after its values."""
    entry = machine.heap.objects[generator]
    called = machine.functions[entry.vector]
    return entry.first + called.locals + called.stack


@leaf
def _end_record(heap, number):
    """Ends a frame object whose memory was freed or kept."""
    entry = heap.objects[number]
    entry.kind, entry.first = 0, heap.counts[0].free_object
    heap.counts[0].free_object = number


@leaf
def end_unreferred(machine):
    """Ends the frame object of the current call, to which nothing else refers."""
    heap, frame = machine.heap, machine.frames[machine.state[0].depth]
    if heap.rules[0].frame_base == 0:
        free_counted_block(heap, heap.objects[frame.object].block)
    _end_record(heap, np.int64(frame.object))
    frame.object = 0


@leaf
def end_frame(machine, number):
    """Keeps or frees the memory of a frame object that ended; up to 3.10."""
    entry = machine.heap.objects[number]
    if not keep_frame(machine, entry.owner, np.int64(entry.block), np.int64(entry.capacity)):
        free_counted_block(machine.heap, np.int64(entry.block))
    _end_record(machine.heap, number)


@leaf
def keep_frame(machine, function, block, room):
    """Keeps the memory of a frame for the function's next call, or for any call, up to 3.10; returns False if it has to
    be freed."""
    state, called = machine.state[0], machine.functions[function]
    if called.block == 0:
        called.block, called.room = block, room
    elif state.frames_kept < FRAMES_KEPT:
        kept = machine.kept_frames[state.frames_kept]
        kept.block, kept.room = block, room
        state.frames_kept += 1
    else:
        return False
    return True
