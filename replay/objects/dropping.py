"""The end of objects: what is left to drop, the trashcan, and weak references and finalizers that observe the end.

Every function here is one step of the machine at most.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.heap import (
    END_OF_GENERATOR,
    FINALIZES,
    MEM,
    OBSERVED,
    RAW,
    REFERABLE,
    drop,
    end_keys,
    end_object,
    free_block,
    free_counted_block,
    has_items,
    leave_keys,
    references,
    take_items,
    untrack,
)
from replay.objects.kinds import (
    BUILTIN_EXCEPTIONS,
    DICT,
    ENDED_FRAME,
    EXCEPTION,
    FRAME,
    GENERATOR,
    GENERATOR_FRAME,
    KEYS,
    LOCK,
    NESTED,
    OBSERVABLE,
    PLAIN_LOCK,
    SEMAPHORE,
    VECTOR,
    WEAKREF,
    is_forward,
    is_one_of,
)


@leaf
def references_to_drop(heap, number):
    """Returns the number of references that an object drops when it is freed."""
    entry = heap.objects[number]
    return references(heap, number) if has_items(entry.kind) else np.int64(entry.owner > 0)


@leaf
def is_nested(heap, number):
    """Whether freeing an object counts for the trashcan."""
    if heap.rules[0].trashcan_levels == 0:
        return False
    entry = heap.objects[number]
    if entry.kind == EXCEPTION:
        return heap.rules[0].delays_exceptions > 0 or entry.owner >= BUILTIN_EXCEPTIONS
    return is_one_of(entry.kind, NESTED)


@leaf
def _enters_trashcan(heap, number):
    """Counts an object that is going to be freed; returns True if it is delayed instead."""
    collector, entry = heap.collector[0], heap.objects[number]
    if not is_nested(heap, number):
        return False
    if collector.nesting < heap.rules[0].trashcan_levels:
        collector.nesting += 1
        return False
    entry.next, collector.delayed = collector.delayed, number
    return True


@leaf
def leave_trashcan(heap):
    """Counts an object that was freed. After the outermost one, the newest delayed object is next."""
    collector, counts = heap.collector[0], heap.counts[0]
    collector.nesting -= 1
    if collector.nesting != collector.unwinding:
        return
    collector.nesting, collector.unwinding = 0, 0
    if collector.delayed:
        number = np.int64(collector.delayed)
        entry, task = heap.objects[number], heap.dying[counts.dying]
        collector.delayed, entry.next = entry.next, 0
        collector.nesting, collector.unwinding = 2, 1  # the loop over delayed objects counts too
        task.object, task.position = number, references_to_drop(heap, number)
        counts.dying += 1
        if is_one_of(entry.kind, OBSERVABLE):
            _observe(heap, number)


@leaf
def weak_references(heap, number):
    """Returns the first weak reference to an instance, 0 for none. It is in the last of the entries for its items."""
    entry = heap.objects[number]
    if entry.first == 0 or not entry.capacity & REFERABLE:
        return np.int64(0)
    return np.int64(heap.items[entry.first + (1 << entry.room) - 1])


@leaf
def clear_reference(heap, number):
    """Has a weak reference refer to nothing. Its neighbours among those to the same object are `room` and `length`."""
    entry = heap.objects[number]
    if entry.capacity == 0:
        return
    referent = heap.objects[entry.capacity]
    if entry.room:
        heap.objects[entry.room].length = entry.length
    else:
        heap.items[referent.first + (1 << referent.room) - 1] = entry.length
    if entry.length:
        heap.objects[entry.length].room = entry.room
    entry.capacity, entry.length, entry.room = 0, 0, 0


@leaf
def _observe(heap, number):
    """Notes that an instance or weak reference is going to end. If there is a finalizer or callbacks, they are next."""
    entry, counts = heap.objects[number], heap.counts[0]
    if entry.kind == WEAKREF:
        clear_reference(heap, number)
        heap.collector[0].weakrefs -= 1
    elif entry.capacity & FINALIZES or (heap.collector[0].weakrefs and weak_references(heap, number)):
        task = heap.dying[counts.dying]
        task.object, task.position = number, OBSERVED
        counts.dying += 1


@leaf
def drop_frame(heap, number):
    """Has the next steps end a frame, after all references that are dropped after this: they are nested in it."""
    counts = heap.counts[0]
    task = heap.dying[counts.dying]
    task.object, task.position = number, 0
    counts.dying += 1
    heap.collector[0].nesting += 1


@leaf
def drop_next(heap):
    """Takes one step of dropping references. Returns a frame object that ended, whose memory may be kept; -1 if a
    generator or its frame is next to end; OBSERVED if a finalizer or callback is next; else 0."""
    counts = heap.counts[0]
    task = heap.dying[counts.dying - 1]
    number = task.object
    entry = heap.objects[number]
    if task.position <= OBSERVED:
        return np.int64(OBSERVED)
    if task.position < 0:
        entry.refs -= 1
        if entry.refs or number == 0:
            counts.dying -= 1
            return np.int64(0)
        if entry.kind == GENERATOR:
            task.position = END_OF_GENERATOR
            return np.int64(-1)
        untrack(heap, number)
        if _enters_trashcan(heap, number):
            counts.dying -= 1
        else:
            task.position = references_to_drop(heap, number)
            if is_one_of(entry.kind, OBSERVABLE):
                _observe(heap, number)
        return np.int64(0)
    if entry.kind == GENERATOR or (entry.kind == GENERATOR_FRAME and task.position == 0):
        return np.int64(-1)
    if task.position:
        task.position -= 1
        if is_forward(entry.kind):
            child = np.int64(heap.items[entry.first + references(heap, number) - 1 - task.position])
        elif has_items(entry.kind):
            child = np.int64(heap.items[entry.first + task.position])
        else:
            child = entry.owner
        if child:
            drop(heap, child)
        return np.int64(0)
    counts.dying -= 1
    if entry.kind == KEYS:
        end_keys(heap, number)
        return np.int64(0)
    if entry.kind == ENDED_FRAME:
        if entry.block:
            free_counted_block(heap, entry.block)
            entry.block = 0
        leave_trashcan(heap)
        return np.int64(0)
    take_items(heap, number)
    if entry.vector:
        free_block(heap, RAW if entry.kind in (LOCK, PLAIN_LOCK, SEMAPHORE) else MEM, entry.vector)
    if entry.kind in (DICT, VECTOR) and entry.owner:
        leave_keys(heap, entry.owner)
    is_counted, is_kept = is_nested(heap, number), entry.kind == FRAME and heap.rules[0].frame_base > 0
    if not is_kept:
        end_object(heap, number)
    if is_counted:
        leave_trashcan(heap)
    return np.int64(number if is_kept else 0)
