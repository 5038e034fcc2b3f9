"""The part of a collection that runs code: callbacks of weak references to the garbage, then its finalizers.

After finalizers, what can be reached again is no garbage.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.closing import close_generator, warns
from replay.objects.collector import (
    CALL_BACK,
    FINALIZE,
    INSTANCES,
    count_garbage,
    count_outer_references,
    move_all,
    separate_garbage,
    start_clearing,
)
from replay.objects.heap import CALLBACKS, FINALIZED, FINALIZES, GARBAGE, GENERATIONS, drop, refer, track, untrack
from replay.objects.kinds import GENERATOR
from replay.objects.nested_calls import call_finalizer, call_now


@leaf
def call_or_finalize_next(machine):
    """Takes one step of a collection in the phases CALL_BACK and FINALIZE."""
    if machine.heap.collector[0].phase == CALL_BACK:
        _call_back(machine)
    else:
        _finalize(machine)


@leaf
def _older_ring(heap):
    """Returns the ring of the generation that survivors of the collection belong to."""
    return heap.generations[min(heap.collector[0].generation + 1, GENERATIONS - 1)].ring


@leaf
def _call_back(machine):
    """Calls the next callback. Its weak reference then is in the older generation, if it still exists."""
    heap, collector = machine.heap, machine.heap.collector[0]
    ring = heap.generations[CALLBACKS].ring
    number = np.int64(heap.objects[ring].next)
    if collector.held:
        if number == collector.held:
            untrack(heap, number)
            track(heap, number, _older_ring(heap))
        else:
            collector.freed += 1
        collector.held = 0
    elif number != ring:
        drop(heap, number)
        if call_now(machine, np.int64(heap.objects[number].owner), number):
            collector.held = number
    else:
        collector.phase = FINALIZE


@leaf
def _finalize(machine):
    """Finalizes the next object of the garbage. After the last one, the rest is cleared."""
    heap, collector = machine.heap, machine.heap.collector[0]
    garbage, done = heap.generations[GARBAGE].ring, heap.generations[FINALIZED].ring
    number = np.int64(heap.objects[garbage].next)
    while number != garbage:
        entry = heap.objects[number]
        following = np.int64(entry.next)
        untrack(heap, number)
        track(heap, number, done)
        if entry.kind == GENERATOR and not warns(machine, number):
            refer(heap, number)
            drop(heap, number)
            close_generator(machine, number)
            return
        if entry.kind in INSTANCES and entry.capacity & FINALIZES:
            refer(heap, number)
            drop(heap, number)
            call_finalizer(machine, number)
            return
        number = following
    move_all(heap, done, garbage)
    if collector.finalizers or (collector.generators and machine.state[0].calls_nested):
        _keep_resurrected(heap)
    collector.garbage = count_garbage(heap) + collector.freed
    start_clearing(heap)


@leaf
def _keep_resurrected(heap):
    """Moves objects of the garbage that can be reached again to the older generation; in 3.8, all if there are any."""
    garbage, done = heap.generations[GARBAGE].ring, heap.generations[FINALIZED].ring
    heap.counts[0].steps += count_outer_references(heap, garbage)
    if heap.rules[0].resurrects_all:
        number = np.int64(heap.objects[garbage].next)
        while number != garbage and heap.objects[number].outer_refs == 0:
            number = np.int64(heap.objects[number].next)
        count_garbage(heap)
        if number != garbage:
            move_all(heap, garbage, _older_ring(heap))
        return
    separate_garbage(heap, garbage, done)
    move_all(heap, garbage, _older_ring(heap))
    move_all(heap, done, garbage)
