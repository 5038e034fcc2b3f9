"""What the next instruction allocates first, of the objects that the collector counts.

Up to 3.11, an allocation that exceeds the threshold of the youngest generation starts a collection, before the object
is complete. The machine makes this allocation before the instruction, then collects; the instruction takes the block.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.calls import frame_room
from replay.objects.dicts import (
    DICT_BYTES,
    DICT_ITERATOR_BYTES,
    FEW_PAIRS,
    display_slots,
    keys_bytes,
    kind_of_keys,
    usable,
)
from replay.objects.generators import generator_bytes
from replay.objects.heap import (
    DICT,
    LIST,
    MALLOC,
    MEM,
    OPEN,
    SEQUENCE_ITERATOR,
    TUPLE,
    has_kept,
    new_block,
    new_counted_block,
)
from replay.objects.machine import (
    CALL,
    DICT_OF_CONSTANTS,
    ITERATE,
    LIST_OF_CONSTANTS,
    MAKE_DICT,
    MAKE_FRAME,
    MAKE_GENERATOR,
    MAKE_LIST,
    MAKE_RANGE,
    MAKE_SET,
    MAKE_TUPLE,
    NEW,
    SET_ATTRIBUTE,
    SET_OF_CONSTANTS,
)
from replay.objects.sets import SET_BYTES


@leaf
def allocate_next(machine):
    """Makes the counted allocation of the next instruction, if it has one; returns whether it has."""
    heap, collector, instruction = machine.heap, machine.heap.collector[0], machine.instructions[machine.state[0].at]
    op, argument = instruction.op, instruction.argument
    if op in (MAKE_DICT, DICT_OF_CONSTANTS):
        return _allocate_dict(machine, argument, op == DICT_OF_CONSTANTS)
    if op == SET_ATTRIBUTE:
        return _allocate_attributes(machine, argument)
    size = _container_bytes(machine, op, argument)
    if size:
        collector.ready = new_counted_block(heap, size)
    return size > 0


@leaf
def _container_bytes(machine, op, argument):
    """Returns the size of the object that an instruction allocates first, 0 for none."""
    heap, state = machine.heap, machine.state[0]
    rules = heap.rules[0]
    if op == MAKE_TUPLE or (op == MAKE_RANGE and rules.range_arguments):
        length = argument if op == MAKE_TUPLE else np.int64(1)
        return np.int64(0) if has_kept(heap, TUPLE, length) else rules.tuple_header + 8 * length
    if op in (MAKE_LIST, LIST_OF_CONSTANTS):
        return np.int64(0) if has_kept(heap, LIST, np.int64(0)) else np.int64(56)
    if op in (MAKE_SET, SET_OF_CONSTANTS):
        return np.int64(SET_BYTES)
    if op == NEW:
        slots = machine.classes[argument].slots
        return 32 + 8 * slots if slots >= 0 else rules.instance_bytes
    if op == ITERATE:
        kind = heap.objects[machine.stack[state.top - 1]].kind
        if kind in (LIST, TUPLE):
            return np.int64(0) if has_kept(heap, SEQUENCE_ITERATOR, np.int64(0)) else np.int64(48)
        return np.int64(DICT_ITERATOR_BYTES if kind == DICT else 0)
    if op == MAKE_GENERATOR:
        return generator_bytes(heap, machine.functions[argument])
    if op in (CALL, MAKE_FRAME) and rules.frame_base and state.frames_kept == 0:
        called = machine.functions[argument]
        return rules.frame_base + 8 * frame_room(heap, called) if called.block == 0 else np.int64(0)
    return np.int64(0)


@leaf
def _allocate_dict(machine, pairs, has_constant_keys):
    """Allocates the object of a display; that of many pairs after its table."""
    heap, collector = machine.heap, machine.heap.collector[0]
    if has_kept(heap, DICT, np.int64(0)):
        return False
    table = np.int64(0)
    if pairs > FEW_PAIRS:
        are_texts = kind_of_keys(machine, pairs, has_constant_keys)
        table = new_block(
            heap, MALLOC, heap.rules[0].keys_domain, keys_bytes(heap.rules[0], display_slots(pairs), are_texts)
        )
    collector.ready = new_counted_block(heap, np.int64(DICT_BYTES))
    collector.ready_before = table
    return True


@leaf
def _allocate_attributes(machine, name):
    """Allocates the dict of an instance that gets its first attribute, or one without room, after its values."""
    heap, collector, stack, top = machine.heap, machine.heap.collector[0], machine.stack, machine.state[0].top
    entry = heap.objects[stack[top - 1]]
    if entry.kind != OPEN or has_kept(heap, DICT, np.int64(0)):
        return False
    values, kind = np.int64(0), machine.classes[entry.owner]
    if heap.rules[0].splits_dicts:
        if entry.length:
            return False
        if kind.keys:
            values = new_block(heap, MALLOC, MEM, 8 * usable(heap.objects[kind.keys].capacity))
    elif entry.capacity or machine.slots[entry.owner, name] >= 0 or kind.usable:
        return False
    collector.ready = new_counted_block(heap, np.int64(DICT_BYTES))
    collector.ready_before = values
    return True
