"""What the collector sees of generators that run.

The values of such a generator are on the machine's stack. For a collection, those that CPython's collector sees are
copied to the generator's items.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.heap import give_items
from replay.objects.kinds import GENERATOR
from replay.objects.machine import CALL_INIT, MAKE_GENERATOR, MIXED_LOOP, NEXT, NEXT_OF, SEND, fail

ENDED, RUNNING, EXPOSED = -1, -2, -3
"""EXPOSED: running, and its values are copied to its items for the collector."""


@leaf
def values_of(heap, generator):
    """Returns the object that has the values of a generator: its frame up to 3.10, else itself."""
    return np.int64(heap.objects[generator].owner) if heap.rules[0].frame_base else generator


@leaf
def give_handled(heap, generator, exception, traceback):
    """Notes what a suspended generator handles, up to 3.10."""
    give_items(heap, generator, np.int64(2))
    entry = heap.objects[generator]
    heap.items[entry.first], heap.items[entry.first + 1], entry.length = exception, traceback, 2


@leaf
def handled_by(heap, generator):
    """Returns the exception that a suspended generator handles, 0 for none."""
    entry = heap.objects[generator]
    if heap.rules[0].frame_base == 0:
        return np.int64(entry.owner)
    return np.int64(heap.items[entry.first] if entry.length else 0)


@leaf
def coroutine_of(machine, number):
    """Returns the field `coroutine` of the function of a generator, 0 for other objects."""
    entry = machine.heap.objects[number]
    return np.int64(machine.functions[entry.vector].coroutine if entry.kind == GENERATOR else 0)


@leaf
def waits(machine, generator):
    """Whether a generator is suspended in `await` or `yield from`."""
    following = machine.heap.objects[generator].capacity
    return following >= 0 and machine.instructions[following].op == SEND


@leaf
def awaited_by(machine, generator):
    """Returns the generator or coroutine that a generator waits for, 0 for none."""
    heap = machine.heap
    if not waits(machine, generator):
        return np.int64(0)
    values = heap.objects[values_of(heap, generator)]
    inner = np.int64(heap.items[values.first + values.length - 1])
    return inner if heap.objects[inner].kind == GENERATOR else np.int64(0)


@leaf
def _is_inlined(machine, depth):
    """Whether the interpreter keeps the stack of a running frame in memory while it runs the next one (3.11 to 3.13):
    after calls of functions, and from 3.12 on in `await`, `yield from`, and specialised loops over generators."""
    caller = machine.instructions[machine.frames[depth].at - 1]
    if machine.frames[depth + 1].closes:
        return False
    if caller.op == CALL_INIT:
        return machine.stack[_start(machine, depth + 1) - 2] == 0  # there is no tuple of arguments
    if caller.op not in (NEXT, SEND):
        return caller.op != NEXT_OF
    if not machine.heap.rules[0].inlines_loops:
        return False
    if caller.op == SEND or caller.argument == 0:  # 0: a loop over the steps of a coroutine
        return caller.op == SEND
    if caller.argument != caller.runs:  # CPython specialises the loop for one type, later perhaps for another
        fail(machine, MIXED_LOOP, np.int64(0), np.int64(0))
        machine.state[0].at = machine.frames[depth].at
    return caller.runs > 1


@leaf
def _visible_end(machine, depth):
    """Returns the end of the stack, as far as the collector sees it, of a generator that runs at a depth."""
    state, rules = machine.state[0], machine.heap.rules[0]
    frame = machine.frames[depth]
    start = np.int64(state.locals if depth == state.depth else frame.locals)
    if rules.frame_base:
        function = state.function if depth == state.depth else frame.function
        return start + machine.functions[function].locals
    if depth == state.depth:
        return np.int64(state.top) if rules.exposes else _end_at_call(machine, start)
    if not rules.exposes and not _is_inlined(machine, depth):
        return start
    end = _start(machine, depth + 1) - machine.frames[depth + 1].has_callee
    return end - 2 * (machine.instructions[frame.at - 1].op == CALL_INIT)  # without the instance and the tuple


@leaf
def _start(machine, depth):
    """Returns the place of the first variable of the call at a depth."""
    state = machine.state[0]
    return np.int64(state.locals if depth == state.depth else machine.frames[depth].locals)


@leaf
def _end_at_call(machine, start):
    """Returns the end of the stack that the collector sees of the top frame: in 3.11, all but the arguments if it calls
    a generator function, whose generator starts the collection; else nothing, which is the start."""
    state, collector, pending = machine.state[0], machine.heap.collector[0], machine.instructions[machine.state[0].at]
    if collector.ready and collector.waiting == collector.floor and pending.op == MAKE_GENERATOR:
        return np.int64(state.top - machine.functions[pending.argument].parameters)
    return start


@leaf
def expose_generators(machine):
    """Copies to the items of running generators what the collector sees of their values."""
    heap, state = machine.heap, machine.state[0]
    handled, traceback = np.int64(state.handled), np.int64(state.handled_traceback)
    for back in range(state.depth if state.generators else 0):
        depth = state.depth - back
        frame, caller = machine.frames[depth], machine.frames[depth - 1]
        if frame.generator == 0:
            continue
        start, end = np.int64(state.locals if depth == state.depth else frame.locals), _visible_end(machine, depth)
        heap.objects[frame.generator].capacity = EXPOSED
        values = heap.objects[values_of(heap, np.int64(frame.generator))]
        values.length = end - start
        for slot in range(end - start):
            heap.items[values.first + slot] = machine.stack[start + slot]
        if heap.rules[0].frame_base:
            values.refs += depth < state.depth  # of the frame above it
            values.owner = heap.objects[caller.generator].owner
            if handled:
                give_handled(heap, np.int64(frame.generator), handled, traceback)
        else:
            values.owner = handled
        handled, traceback = np.int64(caller.handled), np.int64(caller.handled_traceback)


@leaf
def conceal_generators(machine):
    """Empties the items of running generators."""
    heap, state = machine.heap, machine.state[0]
    for depth in range(1, state.depth + 1 if state.generators else 0):
        frame = machine.frames[depth]
        if frame.generator == 0:
            continue
        heap.objects[frame.generator].capacity = RUNNING
        values = heap.objects[values_of(heap, np.int64(frame.generator))]
        values.length = 0
        if heap.rules[0].frame_base:
            values.refs -= depth < state.depth
            heap.objects[frame.generator].length = 0
        values.owner = 0
