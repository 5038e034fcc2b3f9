"""The loop of the machine: one step after the other.

A step runs one instruction, or drops one reference that is left to drop. Before each step there is room for all that it
can add to the tables; where there is not, the machine stops with FULL, and continues with larger ones.
"""

import numpy as np

from replay.jit.arrays import DONE, FULL
from replay.jit.compiling import entry, leaf
from replay.objects.calls import enter_frame
from replay.objects.closing import close_next
from replay.objects.collector import (
    FINALIZE,
    IDLE,
    INTERRUPTED,
    collect_next,
    request_generation,
)
from replay.objects.dispatch import run_instruction
from replay.objects.dropping import drop_next
from replay.objects.finalizing import call_or_finalize_next
from replay.objects.frame_objects import end_frame
from replay.objects.heap import EVENTS_A_STEP, OBSERVED
from replay.objects.machine import (
    CONSTANT,
    DISCARD,
    FAILED,
    LOAD,
    STORE,
)
from replay.objects.nested_calls import observe_next
from replay.objects.next_allocation import allocate_next
from replay.objects.unwinding import unwind_next

PAUSED, WAITS, YIELDS = range(3, 6)
"""Statuses of a slice: it has taken its time, ends with an instruction for the scheduler, or with a check at which the
thread drops the GIL."""
STEP_NS, CALL_NS = 20, 12
"""Nominal times of a step of the machine and of a call of an allocator."""


@leaf
def _collects(machine):
    """Starts the collection that was requested, if CPython does so before the next instruction or within it."""
    heap, collector, young = machine.heap, machine.heap.collector[0], machine.heap.generations[0]
    if collector.phase == INTERRUPTED:
        return False
    if heap.rules[0].collects_in_loop:
        if machine.state[0].checks:
            collector.requested = 0
            if collector.enabled or heap.rules[0].collects_disabled:
                request_generation(heap)
    elif young.count < young.threshold:
        collector.requested = 0
    elif collector.enabled and young.threshold and not collector.ready and allocate_next(machine):
        request_generation(heap)
    return collector.phase != IDLE


@leaf
def _has_room(machine):
    """Whether the tables have room for one more step."""
    heap, state = machine.heap, machine.state[0]
    counts = heap.counts[0]
    return (
        counts.events + EVENTS_A_STEP <= heap.events.shape[0]
        and counts.objects + EVENTS_A_STEP <= heap.objects.shape[0]
        and counts.items + state.need + (4 << counts.largest) <= heap.items.shape[0]
        and counts.dying + state.need <= heap.dying.shape[0]
        and counts.free_blocks + EVENTS_A_STEP <= heap.free_blocks.shape[0]
        and state.top + state.need <= machine.stack.shape[0]
    )


@entry
def run_machine(machine):
    """Runs the program until it ends (DONE), a table needs more room (FULL), or it makes a mistake (FAILED)."""
    heap, state = machine.heap, machine.state[0]
    counts = heap.counts[0]
    if state.function < 0:
        state.function = machine.functions.shape[0] - 1
        machine.functions[state.function].warmth = 1
        enter_frame(machine, state.function)
    while _has_room(machine):
        counts.steps += 1
        if counts.dying > heap.collector[0].waiting:
            ended = drop_next(heap)
            if ended > 0:
                end_frame(machine, ended)
            elif ended < 0:
                if ended == OBSERVED:
                    observe_next(machine)
                else:
                    close_next(machine)
                if state.mistake:
                    return FAILED
        elif heap.collector[0].phase > IDLE:
            if heap.collector[0].phase >= FINALIZE:
                call_or_finalize_next(machine)
            else:
                collect_next(machine)
            if state.mistake:
                return FAILED
        elif state.is_over:
            return DONE
        elif heap.collector[0].requested and _collects(machine):
            pass
        elif not (unwind_next(machine) if state.unwinding else run_instruction(machine)):
            if state.mistake:
                return FAILED
            state.is_over = 1
    return FULL


@entry
def run_slice(machine, limit_ns):
    """Runs one of several threads for about this time at most: until it ends (DONE), a table needs more room (FULL), it
    makes a mistake (FAILED), or it is PAUSED, WAITS or YIELDS. Threads change only between instructions."""
    heap, state = machine.heap, machine.state[0]
    counts = heap.counts[0]
    steps, events, often = np.int64(counts.steps), np.int64(counts.events), heap.rules[0].checks_often
    if state.function < 0:
        state.function = machine.functions.shape[0] - 1
        machine.functions[state.function].warmth = 1
        enter_frame(machine, state.function)
    while _has_room(machine):
        before, phase = np.int64(counts.steps), heap.collector[0].phase
        counts.steps += 1
        if counts.dying:
            ended = drop_next(heap)
            if ended > 0:
                end_frame(machine, ended)
        elif phase:
            collect_next(machine)
        elif state.is_over:
            counts.steps -= 1
            return DONE
        elif state.waits:
            counts.steps -= 1
            return WAITS
        elif heap.collector[0].requested and _collects(machine):
            pass
        elif state.yields and state.checks:
            counts.steps -= 1
            return YIELDS
        elif (before - steps) * STEP_NS + (counts.events - events) * CALL_NS >= limit_ns:
            counts.steps -= 1
            return PAUSED
        else:
            op = machine.instructions[state.at].op
            if state.unwinding:
                unwind_next(machine)
            elif not run_instruction(machine):
                state.is_over = 1
            if state.mistake:
                return FAILED
            if often and op not in (LOAD, STORE, CONSTANT, DISCARD):
                state.checks = 1
        if phase:
            state.collecting += counts.steps - before
    return FULL
