"""The cyclic collector: finds objects that only refer to each other, and clears them, in CPython's order.

A collection has phases. START finds the garbage in one step: its cost is that of the objects visited. CALL_BACK calls
one callback of a weak reference a step, and FINALIZE closes one generator or finalizes one object of the garbage a
step, if there are any (`replay.objects.finalizing`); while these run code, it is INTERRUPTED. CLEAR clears one
object a step; what dies by this is freed in the steps in between. EMPTY frees one block of the free lists a step, in
collections of the oldest generation. STOP ends.

    outer_refs   of each object in the collection: its references that are not from other objects in the collection
    found        IN_QUESTION until the object is known to be reachable; UNREACHABLE while it is in the garbage
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.clearing import WITH_OWNER, can_be_cleared, clear_object
from replay.objects.dropping import clear_reference, weak_references
from replay.objects.heap import (
    CALLBACKS,
    FINALIZES,
    GARBAGE,
    GENERATIONS,
    MALLOC,
    OBJ,
    PERMANENT,
    drop,
    emit,
    free_block,
    free_counted_block,
    may_be_tracked,
    new_block,
    refer,
    references,
    track,
    untrack,
)
from replay.objects.kinds import (
    DICT,
    FRAME,
    FREE_LISTS,
    GENERATOR,
    GENERATOR_FRAME,
    INSTANCE,
    KEYS,
    KINDS,
    OPEN,
    PLACE,
    TUPLE,
    WEAKREF,
    has_header,
    is_forward,
)
from replay.objects.running_generators import RUNNING, conceal_generators, expose_generators
from replay.trace import Op

IDLE, START, CLEAR, EMPTY, STOP, FINALIZE, CALL_BACK = range(7)
INTERRUPTED = -1
REACHABLE, IN_QUESTION, UNREACHABLE = range(3)
GC_START, GC_END = int(Op.GC_START), int(Op.GC_END)
START_TEXT, STOP_TEXT = 5, 4
"""Lengths of two texts that CPython creates for callbacks, from 3.12 on."""

INSTANCES = (INSTANCE, OPEN)


@leaf
def move_all(heap, source, target):
    """Appends the objects of one ring to another."""
    first, last = heap.objects[source].next, heap.objects[source].previous
    if first == source:
        return
    end = heap.objects[target].previous
    heap.objects[end].next, heap.objects[first].previous = first, end
    heap.objects[last].next, heap.objects[target].previous = target, last
    heap.objects[source].next, heap.objects[source].previous = source, source


@leaf
def _children(heap, number):
    """Returns the number of entries in which an object can refer to others with the collector's header."""
    entry = heap.objects[number]
    if entry.kind in WITH_OWNER:
        return np.int64(1)
    if entry.kind == GENERATOR:
        return np.int64(entry.owner > 0) + (0 if entry.capacity == RUNNING else entry.length)
    return references(heap, number) + (entry.kind == GENERATOR_FRAME)


@leaf
def _child(heap, number, index):
    """Returns one of these entries, in the order of CPython's traversal; 0 for an empty one."""
    entry = heap.objects[number]
    if entry.kind in WITH_OWNER:
        return np.int64(entry.owner)
    if entry.kind == FRAME:  # its caller, its function, then the variables
        place = entry.length - index if index > 1 and heap.rules[0].locals_from_last else index - 1
        return np.int64(heap.items[entry.first + (place if index else entry.length - 1)])
    if entry.kind in (GENERATOR, GENERATOR_FRAME):
        return _value(heap, number, index)
    return np.int64(heap.items[entry.first + (index if is_forward(entry.kind) else entry.length - 1 - index)])


@leaf
def _value(heap, number, index):
    """Returns an entry of a generator or frame; a loop without an iterator object has the sequence itself. What a
    generator handles is last."""
    entry = heap.objects[number]
    if heap.rules[0].frame_base:
        if index == 0:
            return np.int64(entry.owner)
        index -= 1
    elif index == entry.length:
        return np.int64(entry.owner)
    value = np.int64(heap.items[entry.first + index])
    return np.int64(heap.objects[value].owner) if heap.objects[value].kind == PLACE else value


@leaf
def count_outer_references(heap, ring):
    """Sets `outer_refs` of all objects of a ring, and counts them; returns the number of objects and references that it
    visited."""
    visited, number = np.int64(0), np.int64(heap.objects[ring].next)
    while number != ring:
        entry = heap.objects[number]
        entry.outer_refs, entry.found = entry.refs, IN_QUESTION
        visited += 1
        number = np.int64(entry.next)
    heap.collector[0].visited = visited
    number = np.int64(heap.objects[ring].next)
    while number != ring:
        children = _children(heap, number)
        visited += children
        for index in range(children):
            child = _child(heap, number, index)
            if heap.objects[child].found == IN_QUESTION:
                heap.objects[child].outer_refs -= 1
        number = np.int64(heap.objects[number].next)
    return visited


@leaf
def _reach(heap, number, ring):
    """Notes that an object's references are reachable."""
    for index in range(_children(heap, number)):
        child = _child(heap, number, index)
        entry = heap.objects[child]
        if entry.found == UNREACHABLE:
            untrack(heap, child)
            track(heap, child, ring)
            entry.found, entry.outer_refs = IN_QUESTION, 1
        elif entry.found == IN_QUESTION and entry.outer_refs == 0:
            entry.outer_refs = 1


@leaf
def separate_garbage(heap, ring, garbage):
    """Moves the objects of a ring that cannot be reached from outside to the ring `garbage`."""
    number = np.int64(heap.objects[ring].next)
    while number != ring:
        entry = heap.objects[number]
        if entry.outer_refs:
            entry.found = REACHABLE
            _reach(heap, number, ring)
            number = np.int64(entry.next)
        else:
            following = np.int64(entry.next)
            untrack(heap, number)
            track(heap, number, garbage)
            entry.found = UNREACHABLE
            number = following


@leaf
def count_garbage(heap):
    """Returns the number of objects in the garbage, which are no longer in question; counts those with finalizers."""
    collector, garbage = heap.collector[0], heap.generations[GARBAGE].ring
    found, number = np.int64(0), np.int64(heap.objects[garbage].next)
    while number != garbage:
        entry = heap.objects[number]
        entry.found = REACHABLE
        collector.generators += entry.kind == GENERATOR
        if entry.kind in INSTANCES:
            collector.finalizers += entry.capacity & FINALIZES > 0
        found += 1
        number = np.int64(entry.next)
    return found


@leaf
def _find_callbacks(heap):
    """Clears the weak references to the garbage, and those in it. Callbacks of those that are not garbage are next. In
    3.15, those without callbacks are cleared later."""
    garbage, callbacks = heap.generations[GARBAGE].ring, heap.generations[CALLBACKS].ring
    is_last, number = heap.rules[0].keeps_references > 0, np.int64(heap.objects[garbage].next)
    while number != garbage:
        entry = heap.objects[number]
        if entry.kind == WEAKREF and not is_last:
            clear_reference(heap, number)
        reference = weak_references(heap, number) if entry.kind in INSTANCES else np.int64(0)
        while reference:
            observer = heap.objects[reference]
            following = np.int64(observer.length)
            if observer.owner or not is_last:
                clear_reference(heap, reference)
            if observer.owner and observer.found != UNREACHABLE:
                refer(heap, reference)
                untrack(heap, reference)
                track(heap, reference, callbacks)
            reference = following
        number = np.int64(entry.next)


@leaf
def start_clearing(heap):
    """Has the next steps clear the garbage. Before, newer releases clear all weak references to it, and those in it."""
    collector, garbage = heap.collector[0], heap.generations[GARBAGE].ring
    collector.phase = CLEAR
    if not heap.rules[0].clears_references_again or collector.weakrefs == 0:
        return
    number = np.int64(heap.objects[garbage].next)
    while number != garbage:
        entry = heap.objects[number]
        if entry.kind == WEAKREF:
            clear_reference(heap, number)
        elif entry.kind in INSTANCES:
            while weak_references(heap, number):
                clear_reference(heap, weak_references(heap, number))
        number = np.int64(entry.next)


@leaf
def _survivors(heap, ring, is_full):
    """Untracks tuples, and in full collections up to 3.13 dicts, that can be in no cycle; returns the number of the
    other objects of a ring."""
    untracks_dicts = is_full and heap.rules[0].tracks_all_tuples
    survivors, number = np.int64(0), np.int64(heap.objects[ring].next)
    while number != ring:
        following, kind = np.int64(heap.objects[number].next), heap.objects[number].kind
        if (kind == TUPLE or (kind == DICT and untracks_dicts)) and not _may_be_in_cycle(heap, number):
            untrack(heap, number)
        else:
            survivors += 1
        number = following
    return survivors


@leaf
def _may_be_in_cycle(heap, number):
    """Whether a tuple or dict refers to an object that the collector tracks, or may track later."""
    index, children = np.int64(0), _children(heap, number)
    while index < children and not may_be_tracked(heap, _child(heap, number, index)):
        index += 1
    return index < children


@leaf
def _text(heap, length):
    """Allocates and frees a text, from 3.12 on."""
    if heap.rules[0].collects_in_loop:
        block = new_block(heap, MALLOC, OBJ, heap.rules[0].text_header + length)
        free_block(heap, OBJ, block)


@leaf
def request_generation(heap):
    """Starts the collection that the counts call for, if they do."""
    collector = heap.collector[0]
    for back in range(GENERATIONS):
        generation = GENERATIONS - 1 - back
        counted = heap.generations[generation]
        if counted.count > counted.threshold:
            if generation == GENERATIONS - 1 and collector.pending < collector.total // 4:
                continue
            start_collection(heap, generation)
            return


@leaf
def start_collection(heap, generation):
    """Has the next steps collect a generation and the younger ones."""
    heap.collector[0].phase, heap.collector[0].generation = START, generation


@leaf
def _find(heap):
    """Finds the garbage of the collection, and moves the survivors to the next generation."""
    collector = heap.collector[0]
    generation = collector.generation
    ring, garbage = heap.generations[generation].ring, heap.generations[GARBAGE].ring
    start = heap.counts[0].events
    emit(heap, GC_START, np.int64(0), np.int64(0), generation)
    _text(heap, np.int64(START_TEXT))
    if generation + 1 < GENERATIONS:
        heap.generations[generation + 1].count += 1
    for younger in range(generation + 1):
        heap.generations[younger].count = 0
        if younger < generation:
            move_all(heap, heap.generations[younger].ring, ring)
    heap.counts[0].steps += count_outer_references(heap, ring)
    heap.events[start].block = collector.visited
    collector.generators, collector.finalizers, collector.freed = 0, 0, 0
    separate_garbage(heap, ring, garbage)
    survivors = _survivors(heap, ring, generation + 1 == GENERATIONS)
    if generation + 1 < GENERATIONS:
        if generation + 2 == GENERATIONS:
            collector.pending += survivors
        move_all(heap, ring, heap.generations[generation + 1].ring)
    else:
        collector.pending, collector.total = 0, survivors
    if collector.weakrefs:
        _find_callbacks(heap)
    collector.garbage = count_garbage(heap)
    collector.held = 0
    if heap.objects[heap.generations[CALLBACKS].ring].next != heap.generations[CALLBACKS].ring:
        collector.phase = CALL_BACK
    elif collector.generators or collector.finalizers:
        collector.phase = FINALIZE
    else:
        start_clearing(heap)


@leaf
def _clear(heap):
    """Clears the first object of the garbage. One that survived this is no longer garbage."""
    collector, garbage = heap.collector[0], heap.generations[GARBAGE].ring
    older = min(collector.generation + 1, GENERATIONS - 1)
    number = np.int64(heap.objects[garbage].next)
    if collector.held and number == collector.held:
        untrack(heap, number)
        track(heap, number, heap.generations[older].ring)
        number = np.int64(heap.objects[garbage].next)
    if number == garbage:
        collector.phase = EMPTY if collector.generation == GENERATIONS - 1 else STOP
        collector.free_list = 0
        return
    collector.held = number
    if can_be_cleared(heap, heap.objects[number].kind):
        refer(heap, number)
        drop(heap, number)
        clear_object(heap, number)


@leaf
def _empty_free_lists(machine):
    """Frees one block of the free lists."""
    heap, state = machine.heap, machine.state[0]
    collector = heap.collector[0]
    while collector.free_list < FREE_LISTS:
        if state.frames_kept and collector.free_list:  # after those of bound methods
            state.frames_kept -= 1
            free_counted_block(heap, machine.kept_frames[state.frames_kept].block)
            return
        which = np.int64(heap.emptied[collector.free_list])
        if heap.kept_counts[which]:
            heap.kept_counts[which] -= 1
            block = np.int64(heap.kept[which, heap.kept_counts[which]])
            if which >= KINDS or has_header(which):
                free_counted_block(heap, block)
            elif block:  # 0: keys of a class, which are older than the program
                free_block(heap, heap.rules[0].keys_domain if which == KEYS else OBJ, block)
            return
        collector.free_list += 1
    collector.phase = STOP


@leaf
def collect_next(machine):
    """Takes one step of a collection."""
    heap = machine.heap
    collector = heap.collector[0]
    if collector.phase == START:
        expose_generators(machine)
        _find(heap)
        conceal_generators(machine)
    elif collector.phase == CLEAR:
        _clear(heap)
    elif collector.phase == EMPTY:
        _empty_free_lists(machine)
    else:
        _text(heap, np.int64(STOP_TEXT))
        emit(heap, GC_END, np.int64(0), np.int64(0), collector.garbage)
        done = heap.generations[collector.generation]
        done.collections += 1
        done.collected += collector.garbage
        collector.phase, collector.waiting = IDLE, collector.floor


@leaf
def freeze(heap):
    """Moves all objects to the permanent generation, which collections ignore."""
    for generation in range(GENERATIONS):
        move_all(heap, heap.generations[generation].ring, heap.generations[PERMANENT].ring)
        heap.generations[generation].count = 0


@leaf
def unfreeze(heap):
    """Moves the objects of the permanent generation to the oldest one."""
    move_all(heap, heap.generations[PERMANENT].ring, heap.generations[GENERATIONS - 1].ring)
