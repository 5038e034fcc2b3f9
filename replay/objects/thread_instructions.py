"""Runs the instructions of threads, locks and queues. Those of threads are here."""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.heap import CALLOC, MALLOC, RAW, drop, emit, free_block, give_items, new_block, new_object, refer
from replay.objects.kinds import INT, TUPLE
from replay.objects.machine import (
    ACQUIRE,
    BEGIN_THREAD,
    END_THREAD,
    FILL_QUEUE,
    LEAVE_THREAD,
    MAKE_LOCK,
    MAKE_QUEUE,
    PUT,
    SLEEP,
    START,
    TAKE,
    WORK,
    pop,
    push,
)
from replay.objects.queues import fill_queue, new_queue, put, take
from replay.objects.waiting import SLEEPS, STARTS, WORKS, acquire, new_lock, push_none, release
from replay.trace import Op

THREAD_END = int(Op.THREAD_END)
IDENTITY = 1 << 46
"""The size of the number that a new thread has in Python: it is an address."""


@leaf
def do_thread(machine, op, argument, other):
    """Runs an instruction of threads, locks or queues."""
    state = machine.state[0]
    state.checks = op not in (BEGIN_THREAD, LEAVE_THREAD, END_THREAD, MAKE_QUEUE, WORK)
    if op in (ACQUIRE, MAKE_LOCK):
        return acquire(machine) if op == ACQUIRE else new_lock(machine)
    if op in (MAKE_QUEUE, FILL_QUEUE):
        return new_queue(machine) if op == MAKE_QUEUE else fill_queue(machine)
    if op == PUT:
        return put(machine)
    if op == TAKE:
        return take(machine)
    if op == START:
        return _start(machine, other)
    if op == BEGIN_THREAD:
        return _begin(machine)
    if op == LEAVE_THREAD:
        result = pop(machine)
        drop(machine.heap, np.int64(state.arguments))
        drop(machine.heap, result)
        return True
    if op == END_THREAD:
        return _end(machine)
    if op in (SLEEP, WORK):
        state.waits, state.delay_ns = SLEEPS if op == SLEEP else WORKS, argument
        return push_none(machine) if op == SLEEP else True
    return release(machine)


@leaf
def _start(machine, first):
    """Replaces the arguments by the number of a new thread.

    CPython allocates a tuple of the function and its arguments, and what the thread needs.
    """
    heap, state, rules = machine.heap, machine.state[0], machine.heap.rules[0]
    arguments = pop(machine)
    refer(heap, arguments)
    both = new_object(heap, TUPLE, rules.tuple_header + 16, np.int64(2))
    give_items(heap, both, np.int64(2))
    heap.items[heap.objects[both].first + 1] = arguments
    state.next_handle = new_block(heap, CALLOC, RAW, rules.handle_bytes) if rules.handle_bytes else np.int64(0)
    state.next_boot = new_block(heap, MALLOC, rules.boot_domain, rules.boot_bytes)
    state.next_thread_state = new_block(heap, rules.thread_state_op, RAW, rules.thread_state_bytes)
    state.next_callback = new_block(heap, MALLOC, RAW, rules.callback_bytes) if rules.callback_bytes else np.int64(0)
    state.next_arguments, state.awaited, state.waits = arguments, first, STARTS
    push(machine, new_object(heap, INT, np.int64(32), np.int64(IDENTITY)))
    drop(heap, both)
    return True


@leaf
def _begin(machine):
    """Pushes the arguments of a new thread's function."""
    heap, state = machine.heap, machine.state[0]
    if state.callback:
        free_block(heap, RAW, state.callback)
    arguments = heap.objects[state.arguments]
    for index in range(arguments.length):
        number = np.int64(heap.items[arguments.first + index])
        refer(heap, number)
        push(machine, number)
    return True


@leaf
def _end(machine):
    """Frees the memory of a thread."""
    heap, state = machine.heap, machine.state[0]
    free_block(heap, heap.rules[0].boot_domain, state.boot)
    free_block(heap, RAW, state.thread_state)
    if state.handle:
        free_block(heap, RAW, state.handle)
    emit(heap, THREAD_END, np.int64(0), np.int64(0), np.int64(0))
    return False
