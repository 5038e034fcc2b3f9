"""Locks, and how an instruction waits.

An instruction that blocks, or that another thread has waited for, ends the slice: `state.waits` says why, and the
scheduler (`replay.objects.threads`) continues there. A blocked instruction runs again when the thread is granted what
it waits for.

    lock        length: whether it is held; capacity: number of waiting threads; vector: its memory in the raw domain
    semaphore   a lock that is no object
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.heap import MALLOC, RAW, drop, new_block, new_object, refer
from replay.objects.kinds import LOCK, PLAIN_LOCK
from replay.objects.machine import NONE, NOT_HELD, NOT_LOCK, fail, pop, push

RUNS, LOCKED, EMPTY_QUEUE, WAKES, SLEEPS, WORKS, STARTS = range(7)
"""What an instruction has the scheduler do: nothing; wait for a lock, or an item of a queue; wake the first thread that
waits for a lock or queue; wait for a time; compute for a time; start a thread."""


@leaf
def wait(machine, why, awaited):
    """Has the thread wait; then the instruction runs again."""
    state = machine.state[0]
    state.waits, state.awaited = why, awaited
    state.checks = 0
    state.at -= 1
    machine.instructions[state.at].runs -= 1
    return True


@leaf
def wake(machine, awaited, given):
    state = machine.state[0]
    state.waits, state.awaited, state.given = WAKES, awaited, given


@leaf
def push_none(machine):
    number = np.int64(machine.ints.shape[0] + 1 + NONE)
    refer(machine.heap, number)
    push(machine, number)
    return True


@leaf
def new_lock(machine):
    heap, rules = machine.heap, machine.heap.rules[0]
    number = new_object(heap, LOCK if rules.locks_have_header else PLAIN_LOCK, rules.lock_bytes, np.int64(0))
    if rules.lock_raw_bytes:
        heap.objects[number].vector = new_block(heap, MALLOC, RAW, rules.lock_raw_bytes)
    push(machine, number)
    return True


@leaf
def _is_lock(kind):
    return kind in (LOCK, PLAIN_LOCK)


@leaf
def acquire(machine):
    """Replaces a lock by the result of its method, when the thread holds the lock."""
    state, number = machine.state[0], np.int64(machine.stack[machine.state[0].top - 1])
    lock = machine.heap.objects[number]
    if not _is_lock(lock.kind):
        return fail(machine, NOT_LOCK, np.int64(0), np.int64(0))
    if lock.length and not state.granted:
        lock.capacity += 1
        return wait(machine, LOCKED, number)
    lock.length, state.granted = 1, 0
    drop(machine.heap, pop(machine))
    return push_none(machine)


@leaf
def release(machine):
    """Replaces a lock by the result of its method. The first thread that waits for the lock holds it from now on."""
    number = pop(machine)
    lock = machine.heap.objects[number]
    if not _is_lock(lock.kind):
        return fail(machine, NOT_LOCK, np.int64(0), np.int64(0))
    if lock.length == 0:
        return fail(machine, NOT_HELD, np.int64(0), np.int64(0))
    open_lock(machine, number)
    drop(machine.heap, number)
    return push_none(machine)


@leaf
def open_lock(machine, number):
    """Gives a lock to the first thread that waits for it; else, no thread holds it."""
    lock = machine.heap.objects[number]
    lock.length = lock.capacity > 0
    if lock.capacity:
        lock.capacity -= 1
        wake(machine, number, np.int64(1))
