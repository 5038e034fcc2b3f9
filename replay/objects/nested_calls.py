"""Calls of functions while other objects end: finalizers, and callbacks of weak references.

The instruction END_CALL follows the call, and continues with what it interrupted (`replay.objects.interruptions`).

Steps before an object ends are positions in the stack of what is left to drop.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.calls import enter, frame_bytes
from replay.objects.collector import IDLE
from replay.objects.dropping import clear_reference, is_nested, leave_trashcan, references_to_drop, weak_references
from replay.objects.heap import FINALIZES, OBSERVED, drop, give_items, has_kept, new_object, refer, track, untrack
from replay.objects.interruptions import continue_interrupted, fail_at_statement, interrupt, is_due
from replay.objects.kinds import METHOD, TUPLE
from replay.objects.machine import TOO_MANY_STEPS, WRONG_COUNT, pop, push

FINALIZED, CALLS = OBSERVED - 1, OBSERVED - 2
"""Positions: the finalizer has returned; the first of a tuple of weak references and callbacks is next. Below are the
others of this tuple."""


@leaf
def _starts_collection(machine, function):
    """Starts the collection that the frame of a call starts, up to 3.10; returns whether it does."""
    size = frame_bytes(machine, function)
    return size > 0 and is_due(machine, size)


@leaf
def call_now(machine, called, argument):
    """Has the next steps call a function or bound method with one argument, or none if it is 0. Returns whether it is
    called: a collection may come first."""
    heap, state = machine.heap, machine.state[0]
    is_method = heap.objects[called].kind == METHOD
    function = np.int64(heap.objects[called].capacity) if is_method else called
    number = np.int64(heap.objects[function].length)
    wanted, given = machine.functions[number].parameters - is_method, np.int64(argument > 0)
    if wanted != given:
        return fail_at_statement(machine, WRONG_COUNT, given, wanted)
    if _starts_collection(machine, number):
        return False
    if heap.counts[0].steps > heap.counts[0].steps_most:
        return fail_at_statement(machine, TOO_MANY_STEPS, np.int64(0), np.int64(heap.counts[0].steps_most))
    if not interrupt(machine):
        return False
    state.at = state.end_call
    push(machine, function)
    refer(heap, function)
    if is_method:
        push(machine, np.int64(heap.objects[called].owner))
        refer(heap, np.int64(heap.objects[called].owner))
    if argument:
        push(machine, argument)
        refer(heap, argument)
    return enter(machine, number, np.int64(0), True)


@leaf
def end_call(machine):
    """Drops the result of a call, and continues where it interrupted the program."""
    drop(machine.heap, pop(machine))
    continue_interrupted(machine)
    return True


@leaf
def call_finalizer(machine, number):
    """Has the next steps call the finalizer of an instance; returns whether it is called."""
    entry = machine.heap.objects[number]
    if not call_now(machine, np.int64(machine.classes[entry.owner].finalizer), number):
        return False
    entry.capacity &= ~FINALIZES
    return True


@leaf
def observe_next(machine):
    """Takes one step before an object ends."""
    heap, counts = machine.heap, machine.heap.counts[0]
    task = heap.dying[counts.dying - 1]
    number, position = np.int64(task.object), np.int64(task.position)
    if position <= CALLS:
        _call_next(machine, number, CALLS - position)
    elif position == FINALIZED:
        _end_finalizer(heap, number)
    elif heap.objects[number].capacity & FINALIZES:
        _finalize(machine, number)
    else:
        _call_all(machine, number)


@leaf
def _finalize(machine, number):
    """Calls the finalizer of an instance that is going to end."""
    heap, entry = machine.heap, machine.heap.objects[number]
    entry.refs = 1
    if entry.next == 0:
        track(heap, number, heap.generations[0].ring)
    if call_finalizer(machine, number):
        heap.dying[heap.counts[0].dying - 1].position = FINALIZED


@leaf
def _end_finalizer(heap, number):
    """Continues the end of an instance after its finalizer, unless something refers to it again."""
    counts, entry = heap.counts[0], heap.objects[number]
    entry.refs -= 1
    if entry.refs:
        counts.dying -= 2
        if is_nested(heap, number):
            leave_trashcan(heap)
        return
    untrack(heap, number)
    heap.dying[counts.dying - 1].position = OBSERVED
    heap.dying[counts.dying - 2].position = references_to_drop(heap, number)


@leaf
def _call_all(machine, number):
    """Clears the weak references to an instance. If any have callbacks, they are called next."""
    heap, counts, rules = machine.heap, machine.heap.counts[0], machine.heap.rules[0]
    reference = weak_references(heap, number)
    if reference and heap.objects[reference].owner == 0:
        clear_reference(heap, reference)
        reference = weak_references(heap, number)
    if reference == 0:
        counts.dying -= 1
        return
    if rules.calls_alone and heap.objects[reference].length == 0:
        _call_alone(machine, reference)
        return
    count, each = np.int64(0), reference
    while each:
        count += 2
        each = np.int64(heap.objects[each].length)
    if not has_kept(heap, TUPLE, count) and is_due(machine, rules.tuple_header + 8 * count):
        return
    counts.dying -= 1
    _push_calls(heap, number, count)


@leaf
def _call_alone(machine, reference):
    """Calls the only callback, after which it dies."""
    heap, counts = machine.heap, machine.heap.counts[0]
    callback = np.int64(heap.objects[reference].owner)
    task = heap.dying[counts.dying - 1]
    observed, task.object, task.position = np.int64(task.object), callback, -1
    if not call_now(machine, callback, reference):
        task.object, task.position = observed, OBSERVED
        return
    heap.objects[reference].owner = 0
    clear_reference(heap, reference)


@leaf
def _push_calls(heap, number, count):
    """Moves the weak references to an instance, and their callbacks, to a tuple whose callbacks are called next."""
    counts, collector = heap.counts[0], heap.collector[0]
    ready, ready_before = np.int64(collector.ready), np.int64(collector.ready_before)
    if collector.phase != IDLE:
        collector.ready, collector.ready_before = 0, 0
    made = new_object(heap, TUPLE, heap.rules[0].tuple_header + 8 * count, count)
    if collector.phase != IDLE:
        collector.ready, collector.ready_before = ready, ready_before
    if heap.objects[made].next == 0:
        track(heap, made, heap.generations[0].ring)
    give_items(heap, made, count)
    for index in range(0, count, 2):
        reference = weak_references(heap, number)
        refer(heap, reference)
        heap.items[heap.objects[made].first + index] = reference
        heap.items[heap.objects[made].first + index + 1] = heap.objects[reference].owner
        heap.objects[reference].owner = 0
        clear_reference(heap, reference)
    drop(heap, made)
    task = heap.dying[counts.dying]
    task.object, task.position = made, CALLS
    counts.dying += 1


@leaf
def _call_next(machine, number, index):
    """Calls the callback number `index` of a tuple."""
    heap, entry = machine.heap, machine.heap.objects[number]
    if 2 * index == entry.length:
        heap.counts[0].dying -= 1
        return
    reference = np.int64(heap.items[entry.first + 2 * index])
    callback = np.int64(heap.items[entry.first + 2 * index + 1])
    task = heap.dying[heap.counts[0].dying - 1]
    if call_now(machine, callback, reference):
        task.position -= 1
