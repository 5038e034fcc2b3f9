"""Coroutines, and what `await` and `yield from` do: a generator that waits for another one, which yields through it.

A coroutine is a GENERATOR whose function is declared as one. While it is suspended in `await`, its next instruction is
SEND, and the object that it waits for is the last of its values.

    steps       `owner`: the coroutine that `next` and loops run with it
"""

import numpy as np

from replay.jit.compiling import cold, leaf
from replay.objects.exceptions import pass_stop, stop_context
from replay.objects.generators import resume, suspend
from replay.objects.heap import drop, new_object, refer
from replay.objects.instructions import AWAITABLE, COROUTINE
from replay.objects.kinds import GENERATOR, LIST_ITERATOR, PLACE, STEPS, TUPLE_ITERATOR
from replay.objects.machine import (
    AWAIT,
    AWAITED,
    AWAITED_ALREADY,
    NONE,
    NOT_AWAITABLE,
    NOT_COROUTINE,
    SEND,
    YIELD_AGAIN,
    fail,
    pop,
    push,
)
from replay.objects.running_generators import ENDED, coroutine_of

STEPS_BYTES = 40


@leaf
def _check_awaitable(machine):
    """Checks that the value on the stack can be awaited."""
    state = machine.state[0]
    number = np.int64(machine.stack[state.top - 1])
    kind, entry = coroutine_of(machine, number), machine.heap.objects[number]
    if kind == 0:
        return fail(machine, NOT_AWAITABLE, np.int64(0), np.int64(0))
    if kind == COROUTINE and entry.capacity >= 0 and machine.instructions[entry.capacity].op == SEND:
        return fail(machine, AWAITED_ALREADY, np.int64(0), np.int64(0))
    return True


@cold
def is_iterator(machine, number, delegates):
    """Whether an object is its own iterator, in a loop or in `yield from`."""
    kind = machine.heap.objects[number].kind
    if kind != GENERATOR:
        return kind == STEPS and not delegates
    here = machine.functions[machine.state[0].function].coroutine
    return coroutine_of(machine, number) != COROUTINE or (delegates and here == AWAITABLE)


@leaf
def _send(machine, end):
    """Resumes what the function waits for; at its end, continues with its result."""
    heap, state = machine.heap, machine.state[0]
    number = np.int64(machine.stack[state.top - 1])
    entry = heap.objects[number]
    if entry.kind == GENERATOR and entry.capacity != ENDED:
        return resume(machine, number)
    if entry.kind == GENERATOR and coroutine_of(machine, number) == COROUTINE:
        return fail(machine, AWAITED, np.int64(0), np.int64(0))
    if entry.kind in (LIST_ITERATOR, TUPLE_ITERATOR, PLACE) and entry.length < heap.objects[entry.owner].length:
        item = np.int64(heap.items[heap.objects[entry.owner].first + entry.length])
        entry.length += 1
        refer(heap, item)
        push(machine, item)
        return True
    none = np.int64(machine.ints.shape[0] + 1 + NONE)
    refer(heap, none)
    machine.stack[state.top - 1] = none
    state.at = end
    drop(heap, number)
    context = stop_context(machine) if entry.kind == GENERATOR else np.int64(0)
    if context:
        pass_stop(machine, context)
    return True


@leaf
def _make_steps(machine):
    """Replaces a tuple of a coroutine by an iterator that runs the coroutine."""
    heap = machine.heap
    arguments = pop(machine)
    number = np.int64(heap.items[heap.objects[arguments].first])
    if coroutine_of(machine, number) != COROUTINE:
        return fail(machine, NOT_COROUTINE, np.int64(0), np.int64(0))
    made = new_object(heap, np.int64(STEPS), np.int64(STEPS_BYTES), np.int64(0))
    heap.objects[made].owner = number
    refer(heap, number)
    push(machine, made)
    machine.state[0].checks = 1
    drop(heap, arguments)
    return True


@cold
def do_coroutine(machine, op, other):
    """Runs an instruction of coroutines, or of `yield from`."""
    if op == SEND:
        return _send(machine, other)
    if op == YIELD_AGAIN:
        machine.state[0].at -= 2
        return suspend(machine)
    return _check_awaitable(machine) if op == AWAIT else _make_steps(machine)
