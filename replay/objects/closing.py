"""The end of generators and coroutines that are suspended.

Up to 3.12, CPython throws a GeneratorExit into a generator that dies or is closed: it is resumed with this exception,
which leaves it, or runs its `finally` before (`replay.objects.unwinding`). From 3.13 on, this holds for generators that
are suspended in `try`, `await` or `yield from`; the variables and the stack of others die at once. What a generator
waits for is closed before it.

From 3.12 on, the exception exists at once; up to 3.11 only once a handler starts, or if it has a context.

Steps are positions in the stack of what is left to drop.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.collector import IDLE
from replay.objects.dropping import leave_trashcan
from replay.objects.exceptions import ADD_FRAME, create_raised, exception_bytes, handled_exception
from replay.objects.frame_objects import keep_frame, release_frame_object
from replay.objects.generators import enter_generator
from replay.objects.heap import (
    END_OF_GENERATOR,
    drop,
    end_object,
    free_counted_block,
    refer,
    take_items,
    track,
    untrack,
)
from replay.objects.instructions import COROUTINE
from replay.objects.interruptions import fail_at_statement, interrupt, is_due
from replay.objects.kinds import GENERATOR, GENERATOR_EXIT, GENERATOR_FRAME
from replay.objects.machine import (
    ALREADY_RUNNING,
    BY_CALL,
    DEPTH_MAX,
    NEVER_RAN,
    NOT_GENERATOR,
    SEND,
    TOO_DEEP,
    fail,
    pop,
)
from replay.objects.running_generators import ENDED, RUNNING, awaited_by, coroutine_of, handled_by, waits

FREE, CLOSED, THROW, CLOSE = 0, *range(END_OF_GENERATOR + 1, END_OF_GENERATOR + 4)


@leaf
def _push(heap, number, position):
    task = heap.dying[heap.counts[0].dying]
    task.object, task.position = number, position
    heap.counts[0].dying += 1


@leaf
def _is_new(machine, number):
    """Whether a generator has never run."""
    entry = machine.heap.objects[number]
    return entry.capacity == machine.functions[entry.vector].start


@leaf
def _is_in_try(machine, number):
    """Whether a generator is suspended in `try` or in a handler."""
    return machine.region_of[machine.heap.objects[number].capacity - 1] > 0


@leaf
def _throws(machine, number):
    """Whether a generator that is closed is resumed with an exception."""
    rules = machine.heap.rules[0]
    if machine.heap.objects[number].capacity == ENDED:
        return False
    if not rules.throws_exit:
        return not _is_new(machine, number) and (waits(machine, number) or _is_in_try(machine, number))
    return not (rules.exit_bytes and _is_new(machine, number))


@leaf
def _drop_values(machine, number):
    """Drops the values of a generator in CPython's order, unless its frame object takes them over."""
    heap, entry = machine.heap, machine.heap.objects[number]
    if heap.rules[0].clears_new:
        release_frame_object(machine, number)
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
            _drop_values(machine, number)
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
    rules, is_ended = heap.rules[0], heap.objects[number].capacity == ENDED
    if is_ended and rules.throws_exit and rules.exit_bytes == 0 and handled_exception(machine):
        _push(heap, number, THROW)
    return state.mistake == 0


@leaf
def close_next(machine):
    """Takes one step of ending the generator or frame on top of what is left to drop."""
    heap, counts = machine.heap, machine.heap.counts[0]
    task = heap.dying[counts.dying - 1]
    number, position = np.int64(task.object), np.int64(task.position)
    if heap.objects[number].kind == GENERATOR_FRAME:
        _end_frame_object(machine, number)
    elif position == END_OF_GENERATOR:
        if warns(machine, number):
            return
        untrack(heap, number)
        if _throws(machine, number):
            task.position = CLOSED
            refer(heap, number)
            track(heap, number, heap.generations[0].ring)
            close_generator(machine, number)
        else:
            task.position = FREE
            _drop_values(machine, number)
    elif position == CLOSE:
        counts.dying -= 1
        close_generator(machine, number)
    elif position == CLOSED:
        untrack(heap, number)
        task.position = FREE
    elif position == FREE:
        counts.dying -= 1
        if heap.rules[0].frame_base == 0:  # in 3.13.0, the frame object of one that was closed
            release_frame_object(machine, number)
        take_items(heap, number)
        end_object(heap, number)
    else:
        _throw(machine, number)


@leaf
def _throw(machine, number):
    """Resumes a generator with a GeneratorExit."""
    heap, state = machine.heap, machine.state[0]
    context = handled_by(heap, number) if heap.rules[0].chains_exits else np.int64(0)
    if context == 0:
        context = handled_exception(machine)
    is_created = heap.rules[0].exit_bytes > 0 or context > 0
    if is_created and is_due(machine, exception_bytes(heap, GENERATOR_EXIT)):
        return
    if state.depth == DEPTH_MAX:
        fail_at_statement(machine, TOO_DEEP, np.int64(0), np.int64(DEPTH_MAX))
        return
    if heap.objects[number].capacity == ENDED:  # up to 3.11, `close` in a handler creates the exception nevertheless
        heap.counts[0].dying -= 1
        state.raised_class = GENERATOR_EXIT
        create_raised(machine, context)
        drop(heap, np.int64(state.raised))
        state.raised = 0
        return
    was_new = _is_new(machine, number)
    heap.counts[0].dying -= 1
    outer = heap.dying[heap.counts[0].dying - 1]
    is_called = outer.object == number and outer.position == -1 and heap.collector[0].phase <= IDLE
    if not interrupt(machine):
        return
    state.raised_class, state.raised_at = GENERATOR_EXIT, state.at
    if is_created:
        create_raised(machine, context)
    enter_generator(machine, number)
    machine.frames[state.depth].closes, state.checks = BY_CALL if is_called else 1, 0
    if machine.instructions[state.at].op == SEND and not was_new:
        state.at += 2  # after the instruction that yields
    state.unwinding, state.region = ADD_FRAME, np.int64(0) if was_new else machine.region_of[state.at - 1]


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
