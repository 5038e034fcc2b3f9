"""Frame objects: what tracebacks refer to, and what keeps the local variables of a call that an exception has left.

Up to 3.10, every call has one. It is a record only from the first traceback on; before, `calls` has its memory. From
3.11 on, CPython creates it for a traceback, or when a frame object of a call is left whose traceback lives on: this one
refers to the frame object of its caller.

A call that ends while others refer to its frame object leaves its variables there. Then the object's items are the
function, from 3.11 on if it is in a variable, the variables in the order in which they die, and the frame object of the
caller. The collector tracks it from then on.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.heap import (
    FRAME,
    drop,
    free_counted_block,
    give_items,
    new_counted_block,
    new_record,
    refer,
    track,
)
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
    number = machine.frames[machine.state[0].depth].object
    return number > 0 and (machine.heap.objects[number].refs > 1 or machine.heap.collector[0].ready > 0)


@leaf
def leave_variables(machine):
    """Moves the variables of the current call, which ends, to its frame object."""
    heap, state = machine.heap, machine.state[0]
    count, frame = machine.functions[state.function].locals, machine.frames[state.depth]
    number, caller = np.int64(frame.object), np.int64(0)
    if state.depth > bottom_depth(machine):
        caller = frame_object(machine, state.depth - 1)
        refer(heap, caller)
    give_items(heap, number, count + 2)
    entry = heap.objects[number]
    has_function = frame.has_callee and not heap.rules[0].frame_base
    heap.items[entry.first] = machine.stack[state.locals - 1] if has_function else 0
    for index in range(count):
        slot = count - 1 - index if heap.rules[0].locals_from_last else index
        heap.items[entry.first + 1 + index] = machine.stack[state.locals + slot]
    heap.items[entry.first + 1 + count] = caller
    entry.length = count + 2
    track(heap, number, heap.generations[0].ring)
    drop(heap, number)
    frame.object = 0


@leaf
def end_unreferred(machine):
    """Ends the frame object of the current call, to which nothing else refers."""
    heap, frame = machine.heap, machine.frames[machine.state[0].depth]
    entry = heap.objects[frame.object]
    if heap.rules[0].frame_base == 0:
        free_counted_block(heap, entry.block)
    entry.kind, entry.first = 0, heap.counts[0].free_object
    heap.counts[0].free_object = frame.object
    frame.object = 0


@leaf
def end_frame(machine, number):
    """Keeps or frees the memory of a frame object that ended; up to 3.10."""
    entry = machine.heap.objects[number]
    if not keep_frame(machine, entry.owner, np.int64(entry.block), np.int64(entry.capacity)):
        free_counted_block(machine.heap, np.int64(entry.block))
    entry.kind, entry.first = 0, machine.heap.counts[0].free_object
    machine.heap.counts[0].free_object = number


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
