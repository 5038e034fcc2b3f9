"""What the end of an object interrupts when it runs code: a finalizer, a callback, or a generator that is closed.

Such code comes before everything else that is left to drop: `floor` is the number of references that were left before
it. A collection that runs is INTERRUPTED, and so is an exception on its way to a handler.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.collector import IDLE, INTERRUPTED, request_generation
from replay.objects.heap import new_counted_block
from replay.objects.machine import NESTED_MAX, TOO_DEEP, fail


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
def fail_at_statement(machine, mistake, value, limit):
    """Stops the machine with a mistake at the statement that was interrupted."""
    state = machine.state[0]
    for back in range(state.interrupted):
        if state.at == state.end_call:
            state.at = machine.nested[state.interrupted - 1 - back].at
    return fail(machine, mistake, value, limit)


@leaf
def interrupt(machine):
    """Saves what is interrupted. Up to 3.11, the block that a collection left for the next object remains ready for the
    first one that is created now."""
    heap, state, collector = machine.heap, machine.state[0], machine.heap.collector[0]
    if state.interrupted == NESTED_MAX:
        return fail_at_statement(machine, TOO_DEEP, np.int64(0), np.int64(NESTED_MAX))
    saved = machine.nested[state.interrupted]
    state.interrupted += 1
    saved.at, saved.checks, saved.is_over = state.at, state.checks, state.is_over
    saved.floor, saved.waiting, saved.phase = collector.floor, collector.waiting, collector.phase
    saved.ready, saved.ready_before = np.int64(0), np.int64(0)
    if collector.phase != IDLE:  # the blocks are for the instruction that started the collection
        saved.ready, saved.ready_before = collector.ready, collector.ready_before
        collector.ready, collector.ready_before, collector.phase = 0, 0, INTERRUPTED
    collector.floor = heap.counts[0].dying
    collector.waiting = collector.floor
    saved.unwinding, saved.region = state.unwinding, state.region
    saved.raised, saved.raised_class, saved.raised_at = state.raised, state.raised_class, state.raised_at
    saved.raised_traceback = state.raised_traceback
    state.is_over, state.unwinding, state.raised, state.raised_traceback = 0, 0, 0, 0
    return True


@leaf
def continue_interrupted(machine):
    """Restores what was interrupted last."""
    state, collector = machine.state[0], machine.heap.collector[0]
    state.interrupted -= 1
    saved = machine.nested[state.interrupted]
    state.at, state.checks, state.is_over = saved.at, saved.checks, saved.is_over
    state.unwinding, state.region = saved.unwinding, saved.region
    state.raised, state.raised_class, state.raised_at = saved.raised, saved.raised_class, saved.raised_at
    state.raised_traceback = saved.raised_traceback
    collector.floor, collector.waiting, collector.phase = saved.floor, saved.waiting, saved.phase
    if collector.phase != IDLE:
        collector.ready, collector.ready_before = saved.ready, saved.ready_before
