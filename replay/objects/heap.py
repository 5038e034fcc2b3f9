"""The objects of a simulated interpreter: records with reference counts, references to other objects, free lists.

    object      a record, named by its index; 0 is none. Objects that live forever have the count IMMORTAL
    items       references of a tuple, list or instance: a power of two of entries of `items`, from `first` on
    block       the number of the object's memory block in the trace; a list has a second one, its `vector`
    free list   memory of dead objects of one kind and size, which CPython keeps for the next one (last in, first out)
    dying       a stack of what is left to do: references to drop, and objects whose items are being dropped. It is the
                C stack of CPython's deallocators, so objects die in CPython's order
    delayed     objects whose references wait until fewer objects are being freed: CPython's trashcan, up to 3.12
    generation  objects that the cyclic collector tracks, as a ring of references `next` and `previous`. The ring's
                first element is a record that is no object. `replay.objects.collector` works on them

Every function here is one step of the machine at most: it writes at most EVENTS_A_STEP events.
"""

from typing import NamedTuple

import numpy as np

from replay.jit.arrays import record
from replay.jit.compiling import by_reference, leaf
from replay.objects.kinds import (
    DICT,
    INT,
    KEYS,
    KINDS,
    PLACE,
    SEMAPHORE,
    SET,
    TUPLE,
    TUPLES_KEPT,
    VECTOR,
    WITH_ITEMS,
    has_header,
    is_one_of,
)
from replay.trace import Domain, Op

IMMORTAL = 1 << 40
"""Reference count of objects that live forever."""
EVENTS_A_STEP = 16
DIGIT_BITS = 30
SMALLEST_CHUNK = 2
END_OF_GENERATOR = 1
"""Position of a generator that is going to be freed; others are in `replay.objects.closing`."""


REFERABLE, FINALIZES, HAS_DICT = 1, 2, 4
"""Flags in `capacity` of an instance: it can have weak references; its class has a finalizer, which was not called yet;
its attributes are in a dict."""
OBSERVED = -2
"""Position of an object that is going to end, before its finalizer and the callbacks of its weak references."""
MALLOC, CALLOC, REALLOC, FREE = int(Op.MALLOC), int(Op.CALLOC), int(Op.REALLOC), int(Op.FREE)
RAW, MEM, OBJ = int(Domain.RAW), int(Domain.MEM), int(Domain.OBJ)
"""Items of an exception; numbers of classes from the second on are those of the program."""
KEYS_LEAST = 8
"""Slots of the smallest hash table of a dict."""

OBJECT = record(
    "kind", "refs", "block", "length", "first", "room", "capacity", "vector", "owner",
    "next", "previous", "outer_refs", "found",
)  # fmt: skip
"""`length`: items of a container, characters, the value of an integer, the next value or index of an iterator.
`room`: the chunk of items, as a power of two. `capacity`: allocated items of a list; the end of a range's iterator;
which text a constant is, 0 for one of the letter x only; the function of a bound method; flags of an instance.
`owner`: class of an instance, sequence of an iterator, length of a range as an object, keys of a dict, closure of a
function, content of a cell, instance of a bound method, coroutine of its steps.
Of generators and their frames: see `replay.objects.generators`.
`next`, `previous`: neighbours in a generation, 0 if not tracked. `outer_refs`, `found`: of the collector."""
DYING = record("object", "position")
"""`position`: -1 for a reference to drop, else the number of items that are left."""
EVENT = record("op", "domain", "block", "requested", "step")
"""`block` of a start of a collection: the number of objects that it visits."""
COUNTS = record(
    "objects", "free_object", "items", "largest", "dying", "blocks", "free_blocks", "events", "steps", "steps_most"
)
"""`largest`: the largest chunk of items so far, as a power of two. The next one is at most twice as large.
`steps_most`: the limit of steps, which jumps back and nested calls check."""
GENERATION = record("ring", "count", "threshold", "collections", "collected")
"""`ring`: the record that its ring of objects starts with. `count`, `threshold`: as gc.get_count() and
gc.get_threshold(). `collections`, `collected`: as gc.get_stats()."""
COLLECTOR = record(
    "phase", "generation", "enabled", "requested", "ready_before", "ready", "pending", "total", "held", "garbage",
    "free_list", "nesting", "unwinding", "delayed", "waiting", "generators", "finalizers", "weakrefs", "floor", "freed",
    "visited",
)  # fmt: skip
"""The collector. `requested`: whether a collection starts at the next check; up to 3.11, with the next allocation that
counts. `ready`: a block that was allocated before the collection that its allocation started; `ready_before`: another
one before it. `pending`, `total`: objects that survived collections of generation 1 since the
last one of generation 2, and that one. `held`: the object being cleared. `garbage`: number of objects found.
`waiting`: number of references to drop that wait for the end of the collection.
`generators`, `finalizers`: number of generators, and of objects with finalizers, in the garbage. `weakrefs`: number of
weak references. `floor`: `waiting` outside of collections. `freed`: weak references that their callbacks freed.
`visited`: objects in the last ring whose outer references were counted.
The trashcan. `nesting`: objects being freed at the same time. `unwinding`: whether the outermost one was delayed.
`delayed`: the newest delayed object."""
GENERATIONS, PERMANENT, GARBAGE, FINALIZED, CALLBACKS = 3, 3, 4, 5, 6
"""Number of generations; after them, the objects of gc.freeze(), those that a collection found unreachable, those
of them whose finalizers were called, and weak references whose callbacks a collection calls."""
RULES = record(
    "int_least", "length_least", "small_ints", "list_classic", "constants_op", "pop_keeps_empty", "text_header",
    "range_iterator_bytes", "range_lengths", "range_arguments", "keeps_arguments", "frame_base",
    "locals_from_last", "tuples_lost", "append_resizes", "least_shrunk", "tuple_header", "sequence_iterators",
    "trashcan_levels", "collects_in_loop", "collects_disabled",
    "clears_values", "tracks_all_tuples", "count_bytes",
    "keys_header", "keys_domain", "text_entry", "pairs_values", "slots_least",
    "instance_bytes", "splits_dicts", "values_inline", "sets_reuse", "frozen_twice", "right_first", "item_key_first",
    "stores_specialised", "from_top", "method_first", "index_first", "list_before_item",
    "function_bytes", "cells_apart", "inits_inline", "slots_inline", "copies_arguments", "arguments_forward",
    "exception_bytes", "own_exception_bytes", "exception_first", "separate_traceback", "handlers_last",
    "delays_exceptions", "pushes_addresses", "pushes_places",
    "thread_state_bytes", "thread_state_op", "boot_bytes", "boot_domain", "callback_bytes", "handle_bytes",
    "lock_bytes", "lock_raw_bytes", "locks_have_header", "queue_bytes", "queues_have_list", "clears_queues",
    "checks_often",
    "generator_bytes", "frame_object_bytes", "exit_bytes", "throws_exit", "exposes", "inlines_loops", "clears_new",
    "coroutine_more", "notes_exits", "keeps_failed", "chains_exits", "links_caller", "wraps_results",
    "weakref_bytes", "weakref_slot_bytes", "calls_alone", "keeps_references", "clears_references_again",
    "resurrects_all",
)  # fmt: skip


@by_reference
class Heap(NamedTuple):
    """The objects. `chunks`: for each power of two, the first free chunk of items. `emptied`: the free lists in the
    order in which a full collection empties them."""

    counts: np.ndarray
    rules: np.ndarray
    objects: np.ndarray
    items: np.ndarray
    chunks: np.ndarray
    dying: np.ndarray
    free_blocks: np.ndarray
    kept: np.ndarray
    kept_counts: np.ndarray
    limits: np.ndarray
    events: np.ndarray
    emptied: np.ndarray
    collector: np.ndarray
    generations: np.ndarray


@leaf
def emit(heap, op, domain, block, size):
    """Writes an event."""
    counts = heap.counts[0]
    event = heap.events[counts.events]
    event.op, event.domain, event.block, event.requested, event.step = op, domain, block, size, counts.steps
    counts.events += 1


@leaf
def new_block(heap, op, domain, size):
    """Allocates a block and returns its number."""
    counts, collector = heap.counts[0], heap.collector[0]
    if collector.ready_before:
        block = np.int64(collector.ready_before)
        collector.ready_before = 0
        return block
    if counts.free_blocks:
        counts.free_blocks -= 1
        block = heap.free_blocks[counts.free_blocks]
    else:
        block = counts.blocks
        counts.blocks += 1
    emit(heap, op, domain, block, size)
    return block


@leaf
def free_block(heap, domain, block):
    """Frees a block."""
    counts = heap.counts[0]
    emit(heap, FREE, domain, block, 0)
    heap.free_blocks[counts.free_blocks] = block
    counts.free_blocks += 1


@leaf
def free_list(kind, length):
    """Returns the free list for objects of a kind and length."""
    if kind == TUPLE and length < TUPLES_KEPT:
        return KINDS + length
    return kind if kind != INT or length < 1 << DIGIT_BITS else np.int64(0)


@leaf
def new_record(heap, kind, length):
    """Creates an object without memory and items; its count is 1."""
    counts = heap.counts[0]
    number = counts.free_object
    if number:
        counts.free_object = heap.objects[number].first
    else:
        number = counts.objects
        counts.objects += 1
    entry = heap.objects[number]
    entry.kind, entry.refs, entry.length, entry.block = kind, 1, length, 0
    entry.first, entry.room, entry.capacity, entry.vector, entry.owner = 0, 0, 0, 0, 0
    entry.next, entry.previous, entry.outer_refs, entry.found = 0, 0, 0, 0
    return number


@leaf
def new_counted_block(heap, size):
    """Allocates a block for an object with the collector's header, which counts, and returns its number."""
    collector, young = heap.collector[0], heap.generations[0]
    if collector.ready:
        block = np.int64(collector.ready)
        collector.ready = 0
        return block
    young.count += 1
    if heap.rules[0].collects_in_loop:
        is_due = young.count > young.threshold and collector.enabled and not collector.phase
    else:
        is_due = young.count >= young.threshold  # the next allocation collects
    if is_due and young.threshold:
        collector.requested = 1
    return new_block(heap, MALLOC, OBJ, size)


@leaf
def free_counted_block(heap, block):
    """Frees a block of an object with the collector's header, which counts."""
    heap.generations[0].count = max(heap.generations[0].count - 1, 0)
    free_block(heap, OBJ, block)


@leaf
def has_kept(heap, kind, length):
    """Whether a free list has memory for a new object of this kind and length."""
    return heap.kept_counts[free_list(kind, length)] > 0 and not (kind == TUPLE and length == heap.rules[0].tuples_lost)


@leaf
def new_object(heap, kind, size, length):
    """Creates an object without items, in memory of its free list or in new memory; its count is 1."""
    number, which = new_record(heap, kind, length), free_list(kind, length)
    if has_kept(heap, kind, length) and not heap.collector[0].ready:
        heap.kept_counts[which] -= 1
        heap.objects[number].block = heap.kept[which, heap.kept_counts[which]]
    elif has_header(kind):
        heap.objects[number].block = new_counted_block(heap, size)
    else:
        heap.objects[number].block = new_block(heap, MALLOC, OBJ, size)
    if has_header(kind) and kind != (DICT if heap.rules[0].tracks_all_tuples else TUPLE):
        track(heap, number, heap.generations[0].ring)
    return number


@leaf
def may_be_tracked(heap, number):
    """Whether the collector tracks an object, or may track it later."""
    kind = heap.objects[number].kind
    return has_header(kind) and (kind != TUPLE or heap.objects[number].next > 0)


@leaf
def track(heap, number, ring):
    """Adds an object at the end of a ring."""
    entry, first = heap.objects[number], heap.objects[ring]
    entry.next, entry.previous = ring, first.previous
    heap.objects[first.previous].next = number
    first.previous = number


@leaf
def untrack(heap, number):
    """Removes an object from its ring, if it is in one."""
    entry = heap.objects[number]
    if entry.next:
        heap.objects[entry.previous].next = entry.next
        heap.objects[entry.next].previous = entry.previous
        entry.next, entry.previous = 0, 0


@leaf
def end_object(heap, number):
    """Gives the memory of a dead object to its free list, or frees it."""
    counts, entry = heap.counts[0], heap.objects[number]
    which = free_list(entry.kind, entry.length)
    if entry.kind in (VECTOR, PLACE, SEMAPHORE):
        pass
    elif heap.kept_counts[which] < heap.limits[which]:
        heap.kept[which, heap.kept_counts[which]] = entry.block
        heap.kept_counts[which] += 1
    elif has_header(entry.kind):
        free_counted_block(heap, entry.block)
    else:
        free_block(heap, OBJ, entry.block)
    entry.kind, entry.first = 0, counts.free_object
    counts.free_object = number


@leaf
def chunk_log(length):
    log = SMALLEST_CHUNK
    while (1 << log) < length:
        log += 1
    return log


@leaf
def new_chunk(heap, log):
    """Returns the first of 2^log entries for items, which are empty."""
    counts, first = heap.counts[0], heap.chunks[log]
    if first:
        heap.chunks[log] = heap.items[first]
    else:
        first = counts.items
        counts.items += 1 << log
        counts.largest = max(counts.largest, log)
    for index in range(1 << log):
        heap.items[first + index] = 0
    return first


@leaf
def give_items(heap, number, length):
    """Gives an object at least so many entries for items; those it had are copied, new ones are empty."""
    entry, log = heap.objects[number], chunk_log(length)
    if entry.first and log <= entry.room:
        return
    first = new_chunk(heap, log)
    for index in range(1 << entry.room if entry.first else 0):
        heap.items[first + index] = heap.items[entry.first + index]
    take_items(heap, number)
    entry.first, entry.room = first, log


@leaf
def take_items(heap, number):
    """Takes the entries for items from an object."""
    entry = heap.objects[number]
    if entry.first:
        heap.items[entry.first] = heap.chunks[entry.room]
        heap.chunks[entry.room] = entry.first
        entry.first = 0


@leaf
def refer(heap, number):
    """Counts one more reference to an object."""
    heap.objects[number].refs += 1


@leaf
def drop(heap, number):
    """Has the next step count one reference less; several are dropped in the opposite order."""
    counts = heap.counts[0]
    entry = heap.dying[counts.dying]
    entry.object, entry.position = number, -1
    counts.dying += 1


@leaf
def drop_leaf(heap, number):
    """Counts one reference less to an object without references, at once."""
    entry = heap.objects[number]
    entry.refs -= 1
    if entry.refs == 0:
        untrack(heap, number)
        end_object(heap, number)


@leaf
def has_items(kind):
    return is_one_of(kind, WITH_ITEMS)


@leaf
def references(heap, number):
    """Returns how many entries of an object's items, from `first` on, can be references. Those that are none are 0."""
    entry = heap.objects[number]
    if entry.kind == DICT:  # keys and values, or values; an empty dict has the owner 0
        return heap.objects[entry.owner].length << (entry.vector == 0)
    if entry.kind == SET:
        return entry.capacity
    return entry.length if has_items(entry.kind) else np.int64(0)


@leaf
def leave_keys(heap, number):
    """Counts one reference less to the table of a dict, which may be shared."""
    heap.objects[number].refs -= 1
    if heap.objects[number].refs == 0:
        end_keys(heap, number)


@leaf
def end_keys(heap, number):
    """Gives the memory of keys to their free list, or frees it."""
    counts, entry = heap.counts[0], heap.objects[number]
    if entry.capacity == KEYS_LEAST and entry.owner and heap.kept_counts[KEYS] < heap.limits[KEYS]:
        heap.kept[KEYS, heap.kept_counts[KEYS]] = entry.block
        heap.kept_counts[KEYS] += 1
    elif entry.block:  # 0: a block that is older than the program
        free_block(heap, heap.rules[0].keys_domain, entry.block)
    take_items(heap, number)
    entry.kind, entry.first = 0, counts.free_object
    counts.free_object = number


@leaf
def end_vector(heap, number):
    """Empties a list: its items die, then its memory for them is freed."""
    if heap.objects[number].vector:
        end_items(heap, number, heap.objects[number].length)


@leaf
def end_items(heap, number, length):
    """Takes its items from an object: they die from the last one on, then the memory for them is freed."""
    counts, vector = heap.counts[0], new_record(heap, VECTOR, length)
    entry, rest, task = heap.objects[number], heap.objects[vector], heap.dying[counts.dying]
    rest.first, rest.room, rest.vector = entry.first, entry.room, entry.vector
    entry.first, entry.vector, entry.capacity, entry.length = 0, 0, 0, 0
    task.object, task.position = vector, length
    counts.dying += 1
    return vector
