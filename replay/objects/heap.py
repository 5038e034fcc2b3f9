"""The objects of a simulated interpreter: records with reference counts, references to other objects, free lists.

    object      a record, named by its index; 0 is none. Objects that live forever have the count IMMORTAL
    items       references of a tuple, list or instance: a power of two of entries of `items`, from `first` on
    block       the number of the object's memory block in the trace; a list has a second one, its `vector`
    free list   memory of dead objects of one kind and size, which CPython keeps for the next one (last in, first out)
    dying       a stack of what is left to do: references to drop, and objects whose items are being dropped. It is the
                C stack of CPython's deallocators, so objects die in CPython's order

Every function here is one step of the machine at most: it writes at most EVENTS_A_STEP events.
"""

from enum import IntEnum, auto
from typing import NamedTuple

import numpy as np

from replay.jit.arrays import record
from replay.jit.compiling import by_reference, leaf
from replay.trace import Domain, Op

IMMORTAL = 1 << 40
"""Reference count of objects that live forever."""
EVENTS_A_STEP = 16
DIGIT_BITS = 30
SMALLEST_CHUNK = 2


class Kind(IntEnum):
    """The type of an object."""

    NONE = 0
    INT = auto()
    FLOAT = auto()
    TEXT = auto()
    BYTES = auto()
    TUPLE = auto()
    LIST = auto()
    INSTANCE = auto()
    RANGE = auto()
    RANGE_ITERATOR = auto()
    SEQUENCE_ITERATOR = auto()
    VECTOR = auto()
    """The items of a list that was cleared, without the list: no object, but its items die as those of one."""
    PLACE = auto()
    """A loop over a list or tuple without an iterator object."""
    DICT = auto()
    DICT_ITERATOR = auto()
    KEYS = auto()
    """The hash table of a dict: no object. Keys that were cleared have the entries of their dict, which die."""
    OPEN = auto()
    """An instance that has a dict."""
    SET = auto()


(
    INT, FLOAT, TEXT, BYTES, TUPLE, LIST, INSTANCE, RANGE, RANGE_ITERATOR, SEQUENCE_ITERATOR, VECTOR, PLACE, DICT,
    DICT_ITERATOR, KEYS, OPEN, SET,
) = map(int, list(Kind)[1:])  # fmt: skip
MALLOC, CALLOC, REALLOC, FREE = int(Op.MALLOC), int(Op.CALLOC), int(Op.REALLOC), int(Op.FREE)
MEM, OBJ = int(Domain.MEM), int(Domain.OBJ)
KEYS_LEAST = 8
"""Slots of the smallest hash table of a dict."""
TUPLES_KEPT = 21
"""Tuples of fewer items have a free list for each length."""
KINDS = len(Kind)
FREE_LISTS = KINDS + TUPLES_KEPT
LONGEST_FREE_LIST = 2000

OBJECT = record("kind", "refs", "block", "length", "first", "room", "capacity", "vector", "owner")
"""`length`: items of a container, characters, the value of an integer, the next value or index of an iterator.
`room`: the chunk of items, as a power of two. `capacity`: allocated items of a list; the end of a range's iterator;
which text a constant is, 0 for one of the letter x only.
`owner`: class of an instance, sequence of an iterator, length of a range as an object, keys of a dict."""
DYING = record("object", "position")
"""`position`: -1 for a reference to drop, else the number of items that are left."""
EVENT = record("op", "domain", "block", "requested", "step")
COUNTS = record("objects", "free_object", "items", "largest", "dying", "blocks", "free_blocks", "events", "steps")
"""`largest`: the largest chunk of items so far, as a power of two. The next one is at most twice as large."""
RULES = record(
    "int_least", "length_least", "small_ints", "list_classic", "constants_op", "pop_keeps_empty", "text_header",
    "range_iterator_bytes", "range_lengths", "range_arguments", "keeps_arguments", "frame_base",
    "locals_from_last", "tuples_lost", "append_resizes", "least_shrunk", "tuple_header", "sequence_iterators",
    "keys_header", "keys_domain", "text_entry", "pairs_values", "slots_least",
    "instance_bytes", "splits_dicts", "values_inline", "sets_reuse", "right_first", "item_key_first",
    "stores_specialised", "from_top", "method_first", "index_first", "list_before_item",
)  # fmt: skip


@by_reference
class Heap(NamedTuple):
    """The objects. `chunks`: for each power of two, the first free chunk of items."""

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
    counts = heap.counts[0]
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
    return number


@leaf
def new_object(heap, kind, size, length):
    """Creates an object without items, in memory of its free list or in new memory; its count is 1."""
    number, which = new_record(heap, kind, length), free_list(kind, length)
    if heap.kept_counts[which] and not (kind == TUPLE and length == heap.rules[0].tuples_lost):
        heap.kept_counts[which] -= 1
        heap.objects[number].block = heap.kept[which, heap.kept_counts[which]]
    else:
        heap.objects[number].block = new_block(heap, MALLOC, OBJ, size)
    return number


@leaf
def end_object(heap, number):
    """Gives the memory of a dead object to its free list, or frees it."""
    counts, entry = heap.counts[0], heap.objects[number]
    which = free_list(entry.kind, entry.length)
    if entry.kind in (VECTOR, PLACE):
        pass
    elif heap.kept_counts[which] < heap.limits[which]:
        heap.kept[which, heap.kept_counts[which]] = entry.block
        heap.kept_counts[which] += 1
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
        end_object(heap, number)


@leaf
def _has_items(kind):
    return kind in (TUPLE, LIST, VECTOR, INSTANCE, OPEN, DICT, KEYS, SET)


@leaf
def references(heap, number):
    """Returns how many entries of an object's items, from `first` on, can be references. Those that are none are 0."""
    entry = heap.objects[number]
    if entry.kind == DICT:  # keys and values, or values; an empty dict has the owner 0
        return heap.objects[entry.owner].length << (entry.vector == 0)
    if entry.kind == SET:
        return entry.capacity
    return entry.length if _has_items(entry.kind) else np.int64(0)


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
    counts, entry = heap.counts[0], heap.objects[number]
    if not entry.vector:
        return
    vector = new_record(heap, VECTOR, entry.length)
    rest, task = heap.objects[vector], heap.dying[counts.dying]
    rest.first, rest.room, rest.vector = entry.first, entry.room, entry.vector
    entry.first, entry.vector, entry.capacity, entry.length = 0, 0, 0, 0
    task.object, task.position = vector, rest.length
    counts.dying += 1


@leaf
def drop_next(heap):
    """Takes one step of dropping references."""
    counts = heap.counts[0]
    task = heap.dying[counts.dying - 1]
    number = task.object
    entry = heap.objects[number]
    if task.position < 0:
        entry.refs -= 1
        if entry.refs or number == 0:
            counts.dying -= 1
            return
        task.position = references(heap, number) if _has_items(entry.kind) else np.int64(entry.owner > 0)
        return
    if task.position:
        task.position -= 1
        if entry.kind in (
            INSTANCE,
            OPEN,
            DICT,
            KEYS,
            SET,
        ):  # from the first one on; other items die from the last one on
            child = np.int64(heap.items[entry.first + references(heap, number) - 1 - task.position])
        elif _has_items(entry.kind):
            child = np.int64(heap.items[entry.first + task.position])
        else:
            child = entry.owner
        if child:
            drop(heap, child)
        return
    counts.dying -= 1
    if entry.kind == KEYS:
        end_keys(heap, number)
        return
    take_items(heap, number)
    if entry.vector:
        free_block(heap, MEM, entry.vector)
    if entry.kind == DICT and entry.owner:
        leave_keys(heap, entry.owner)
    end_object(heap, number)
