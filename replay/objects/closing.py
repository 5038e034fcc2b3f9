"""The end of generators and coroutines that are suspended.

Up to 3.12, CPython throws an exception into a generator that dies or is closed. It creates a traceback, from 3.11 on a
frame object before it, and from 3.12 on first the exception; in 3.12 and 3.13.0 a frame object for the running
function. Then the values on the stack die, then the exception with all of them, then the local variables. From 3.13 on,
this holds for generators that wait in `await` or `yield from`; the variables and the stack of others die at once. What
a generator waits for is closed before it.

Steps are positions in the stack of what is left to drop. `closing_frame` is the frame whose stack is dying.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.collector import IDLE, request_generation, reverse_items
from replay.objects.frame_objects import keep_frame
from replay.objects.heap import (
    END_OF_GENERATOR,
    EXIT,
    EXIT_TRACEBACK,
    GENERATOR,
    GENERATOR_FRAME,
    INT,
    drop,
    drop_leaf,
    end_object,
    free_counted_block,
    leave_trashcan,
    new_counted_block,
    new_object,
    new_record,
    refer,
    take_items,
    track,
    untrack,
)
from replay.objects.instructions import COROUTINE, SMALL_PLACE
from replay.objects.machine import ALREADY_RUNNING, NEVER_RAN, NOT_GENERATOR, SEND, UNKNOWN_PLACE, fail, pop
from replay.objects.running_generators import ENDED, RUNNING, awaited_by, coroutine_of, values_of, waits

TRACEBACK_BYTES = 56
FREE, CLOSED, THROW, MAKE_FRAME_OBJECT, MAKE_TRACEBACK, DROP_STACK, END_FRAME, CLOSE = (
    0,
    *range(END_OF_GENERATOR + 1, 9),
)


@leaf
def is_due(machine, size):
    """Starts the collection that an allocation of this size starts, up to 3.11; returns whether it does."""
    heap, collector, young = machine.heap, machine.heap.collector[0], machine.heap.generations[0]
    if heap.rules[0].collects_in_loop or collector.phase != IDLE or collector.ready or not collector.requested:
        return False
    if young.count < young.threshold:
        collector.requested = 0
        return False
    if not collector.enabled or not young.threshold:
        return False
    collector.ready = new_counted_block(heap, size)
    request_generation(heap)
    collector.waiting = heap.counts[0].dying
    return True


@leaf
def _new(heap, kind, size):
    """Creates an object. Within a collection, the block of the allocation that started it is left alone."""
    collector = heap.collector[0]
    if collector.phase == IDLE:
        return new_object(heap, kind, size, np.int64(0))
    ready, ready_before = collector.ready, collector.ready_before
    collector.ready, collector.ready_before = 0, 0
    made = new_object(heap, kind, size, np.int64(0))
    collector.ready, collector.ready_before = ready, ready_before
    return made


@leaf
def _push(heap, number, position):
    task = heap.dying[heap.counts[0].dying]
    task.object, task.position = number, position
    heap.counts[0].dying += 1


@leaf
def _insert_drop(heap, number):
    """Has the reference to an object dropped after the step on top."""
    position = np.int64(heap.dying[heap.counts[0].dying - 1].position)
    generator = np.int64(heap.dying[heap.counts[0].dying - 1].object)
    heap.counts[0].dying -= 1
    drop(heap, number)
    _push(heap, generator, position)


@leaf
def _is_new(machine, number):
    """Whether a generator has never run."""
    entry = machine.heap.objects[number]
    return entry.capacity == machine.functions[entry.vector].start


@leaf
def _throws(machine, number):
    """Whether a generator that is closed is resumed with an exception."""
    rules = machine.heap.rules[0]
    if machine.heap.objects[number].capacity == ENDED:
        return False
    if not rules.throws_exit:
        return waits(machine, number)
    return not (rules.exit_bytes and _is_new(machine, number))


@leaf
def _drop_values(heap, number):
    """Drops the values of a generator in CPython's order."""
    entry = heap.objects[number]
    for index in range(entry.length):
        slot = index if heap.rules[0].locals_from_last else entry.length - 1 - index
        value = np.int64(heap.items[entry.first + slot])
        if value:
            drop(heap, value)
    entry.length = 0


@leaf
def close_generator(machine, number):
    """Has the next steps close a generator that is not running, and before it those that it waits for."""
    heap, entry, inner = machine.heap, machine.heap.objects[number], awaited_by(machine, number)
    if entry.capacity == RUNNING:
        fail(machine, ALREADY_RUNNING, np.int64(0), np.int64(0))
    elif _throws(machine, number):
        _push(heap, number, THROW)
    elif entry.capacity != ENDED:
        if heap.rules[0].clears_new or not _is_new(machine, number):
            _drop_values(heap, number)
        entry.capacity = ENDED
    if inner:
        _push(heap, inner, CLOSE)


@leaf
def warns(machine, number):
    """Stops the program if a coroutine that never ran dies; returns whether it does."""
    if coroutine_of(machine, number) != COROUTINE or not _is_new(machine, number):
        return False
    return not fail(machine, NEVER_RAN, np.int64(0), np.int64(0))


@leaf
def do_close(machine):
    """Closes the generator on the stack."""
    heap, state = machine.heap, machine.state[0]
    number = pop(machine)
    if heap.objects[number].kind != GENERATOR:
        return fail(machine, NOT_GENERATOR, np.int64(0), np.int64(0))
    state.checks = 1
    drop(heap, number)
    close_generator(machine, number)
    return state.mistake == 0


@leaf
def close_next(machine):
    """Takes one step of ending the generator or frame on top of what is left to drop."""
    heap, counts = machine.heap, machine.heap.counts[0]
    task = heap.dying[counts.dying - 1]
    number, position = np.int64(task.object), np.int64(task.position)
    if heap.objects[number].kind == GENERATOR_FRAME:
        _end_frame_object(machine, number)
    elif position == END_OF_GENERATOR and not warns(machine, number):
        untrack(heap, number)
        if _throws(machine, number):
            task.position = CLOSED
            refer(heap, number)
            track(heap, number, heap.generations[0].ring)
            close_generator(machine, number)
        else:
            task.position = FREE
            _drop_values(heap, number)
    elif position == CLOSE:
        counts.dying -= 1
        close_generator(machine, number)
    elif position == CLOSED:
        untrack(heap, number)
        task.position = FREE
    elif position == FREE:
        counts.dying -= 1
        _free_frame_object(machine, number)
        take_items(heap, number)
        end_object(heap, number)
    else:
        _throw_next(machine, number, position)


@leaf
def _free_frame_object(machine, number):
    """Frees the frame object of a generator that was closed without an exception, if it has one: in 3.13.0."""
    heap, entry = machine.heap, machine.heap.objects[number]
    if heap.rules[0].exit_bytes and entry.first:
        called = machine.functions[entry.vector]
        block = np.int64(heap.items[entry.first + called.locals + called.stack])
        if block:
            free_counted_block(heap, block)


@leaf
def _throw_next(machine, number, position):
    """Takes one step of resuming a generator with an exception."""
    heap, rules = machine.heap, machine.heap.rules[0]
    task, entry = heap.dying[heap.counts[0].dying - 1], heap.objects[number]
    if position == THROW:
        _start(machine, number)
        task.position = MAKE_FRAME_OBJECT
    elif position == MAKE_FRAME_OBJECT:
        if rules.frame_object_bytes:
            _make_frame_object(machine, number)
        else:
            task.position = MAKE_TRACEBACK
    elif position == MAKE_TRACEBACK:
        if not is_due(machine, np.int64(TRACEBACK_BYTES)):
            task.position = DROP_STACK
            _make_traceback(heap, number)
    elif position == DROP_STACK:
        task.position = END_FRAME
        values = heap.objects[values_of(heap, number)] if rules.frame_base else entry
        first = np.int64(machine.functions[entry.vector].locals)
        for slot in range(first, entry.length):  # the top one first
            drop(heap, np.int64(heap.items[values.first + slot]))
        entry.length = first
    else:
        heap.counts[0].dying -= 1
        _end_throw(machine, number)


@leaf
def _start(machine, number):
    """Marks a generator as running, except in 3.12, where nothing can observe it."""
    heap, state, entry = machine.heap, machine.state[0], machine.heap.objects[number]
    if heap.rules[0].exit_bytes:
        return
    entry.capacity = RUNNING
    if heap.rules[0].frame_base == 0:
        return
    frame, runner = heap.objects[entry.owner], np.int64(machine.frames[state.depth].generator)
    entry.length = frame.length
    frame.length = machine.functions[entry.vector].locals
    frame.owner = state.closing_frame if state.closing_frame else heap.objects[runner].owner
    if frame.owner:
        refer(heap, np.int64(frame.owner))
    state.closing_frame = entry.owner


@leaf
def _make_frame_object(machine, number):
    """Creates the exception, in 3.12, and the frame object of a generator, unless it has one."""
    heap, state, rules, entry = machine.heap, machine.state[0], machine.heap.rules[0], machine.heap.objects[number]
    called = machine.functions[entry.vector]
    size, kept = rules.frame_object_bytes + 8 * called.slots, np.int64(0)
    if is_due(machine, size):
        return
    heap.dying[heap.counts[0].dying - 1].position = MAKE_TRACEBACK
    if rules.exit_bytes:
        _insert_drop(heap, _new(heap, np.int64(EXIT), rules.exit_bytes))
        kept = np.int64(heap.items[entry.first + called.locals + called.stack])
    if kept:
        frame = new_record(heap, GENERATOR_FRAME, np.int64(0))
        heap.objects[frame].block = kept
    else:
        frame = _new(heap, np.int64(GENERATOR_FRAME), size)
        untrack(heap, frame)
    heap.objects[number].owner = frame
    if rules.links_caller:
        heap.objects[frame].owner, state.closing_frame = state.closing_frame, frame
        if heap.objects[frame].owner:
            refer(heap, np.int64(heap.objects[frame].owner))


@leaf
def _make_traceback(heap, number):
    """Creates the traceback, which refers to the frame."""
    frame = np.int64(heap.objects[number].owner)
    made = _new(heap, np.int64(EXIT_TRACEBACK), np.int64(TRACEBACK_BYTES))
    heap.objects[made].owner = frame
    refer(heap, frame)
    if heap.rules[0].exit_bytes:
        holder = np.int64(heap.dying[heap.counts[0].dying - 2].object)
        heap.objects[holder].owner = made
    else:
        _insert_drop(heap, made)


@leaf
def _end_throw(machine, number):
    """Ends the run of a generator: its variables belong to the frame, which the traceback refers to."""
    heap, state, rules, entry = machine.heap, machine.state[0], machine.heap.rules[0], machine.heap.objects[number]
    called, owner = machine.functions[entry.vector], np.int64(entry.owner)
    frame = heap.objects[owner]
    if rules.frame_base:
        back, runner = np.int64(frame.owner), np.int64(machine.frames[state.depth].generator)
        state.closing_frame = back if back != heap.objects[runner].owner else np.int64(0)
        frame.owner = 0
        if back:
            heap.objects[back].refs -= 1
    else:
        frame.first, frame.room, frame.length = entry.first, entry.room, called.locals
        entry.first, entry.length = 0, 0
        if rules.locals_from_last:
            reverse_items(heap, owner)
        if rules.exit_bytes:
            _note_place(machine, np.int64(entry.capacity))
        if rules.links_caller:
            state.closing_frame = frame.owner
            running = machine.frames[state.depth]
            if not frame.owner and not running.block and not state.is_over:  # the caller of `main` has one
                slots = machine.functions[state.function].slots
                running.block = new_counted_block(heap, rules.frame_object_bytes + 8 * slots)
        track(heap, owner, heap.generations[0].ring)
    entry.owner, entry.length, entry.capacity = 0, 0, ENDED
    frame.refs -= 1


@leaf
def _note_place(machine, following):
    """Creates and drops the integer of the place in the code that the exception leaves, in 3.12 and 3.13."""
    heap, is_send = machine.heap, machine.instructions[following].op == SEND
    distance = machine.far[following] if is_send else machine.instructions[following - 1].argument
    if distance > 1:
        machine.state[0].at = following + is_send
        fail(machine, UNKNOWN_PLACE, np.int64(0), np.int64(0))
    elif distance:
        drop_leaf(heap, new_object(heap, INT, heap.rules[0].int_least, np.int64(SMALL_PLACE + 1)))


@leaf
def _end_frame_object(machine, number):
    """Ends a frame whose variables have died."""
    heap, entry = machine.heap, machine.heap.objects[number]
    if entry.owner:
        drop(heap, np.int64(entry.owner))
        entry.owner = 0
        return
    heap.counts[0].dying -= 1
    take_items(heap, number)
    block, function, room = np.int64(entry.block), np.int64(entry.capacity), np.int64(entry.vector)
    if not heap.rules[0].frame_base or not keep_frame(machine, function, block, room):
        free_counted_block(heap, block)
    entry.kind, entry.first = 0, heap.counts[0].free_object
    heap.counts[0].free_object = number
    leave_trashcan(heap)
