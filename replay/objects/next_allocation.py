"""What the next instruction allocates first, of the objects that the collector counts.

Up to 3.11, an allocation that exceeds the threshold of the youngest generation starts a collection, before the object
is complete. The machine makes this allocation before the instruction, then collects; the instruction takes the block.
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.calls import FEW_ARGUMENTS, callee, frame_bytes
from replay.objects.coroutines import STEPS_BYTES
from replay.objects.dicts import (
    DICT_BYTES,
    DICT_ITERATOR_BYTES,
    FEW_PAIRS,
    display_slots,
    keys_bytes,
    kind_of_keys,
    usable,
)
from replay.objects.exceptions import exception_bytes, stop_context
from replay.objects.frame_objects import frame_object_bytes, is_referred, needs_frame_object
from replay.objects.functions import CELL_BYTES, METHOD_BYTES, class_of, method_of
from replay.objects.generators import generator_bytes
from replay.objects.handlers import CLASS_BITS, LENGTH_MASK
from replay.objects.heap import HAS_DICT, MALLOC, MEM, has_kept, new_block, new_counted_block
from replay.objects.instances import slots_bytes
from replay.objects.kinds import (
    BUILTIN_EXCEPTIONS,
    DICT,
    EXCEPTION,
    GENERATOR,
    LIST,
    LIST_ITERATOR,
    METHOD,
    OPEN,
    STOP_ITERATION,
    TUPLE,
    TUPLE_ITERATOR,
)
from replay.objects.machine import (
    ARGUMENTS,
    ATTRIBUTE,
    CALL,
    CALL_INIT,
    CALL_METHOD,
    CALL_VALUE,
    DICT_OF_CONSTANTS,
    END_GENERATOR,
    FILL_QUEUE,
    ITERATE,
    LIST_OF_CONSTANTS,
    MAKE_ARGUMENTS,
    MAKE_CELL,
    MAKE_CLOSURE,
    MAKE_DICT,
    MAKE_FRAME,
    MAKE_FUNCTION,
    MAKE_GENERATOR,
    MAKE_LIST,
    MAKE_LOCK,
    MAKE_QUEUE,
    MAKE_RANGE,
    MAKE_SET,
    MAKE_STEPS,
    MAKE_TUPLE,
    MAKE_WEAKREF,
    MATCH,
    NEW,
    NEW_EXCEPTION,
    PACK_ARGUMENTS,
    RAISE_AGAIN,
    RAISE_CLASS,
    RETURN,
    SEND,
    SET_ATTRIBUTE,
    SET_OF_CONSTANTS,
    START,
)
from replay.objects.running_generators import ENDED
from replay.objects.sets import SET_BYTES
from replay.objects.unwinding import unwinding_bytes
from replay.objects.weak_references import weak_reference_bytes


@leaf
def allocate_next(machine):
    """Makes the counted allocation of the next instruction, if it has one; returns whether it has."""
    heap, collector, instruction = machine.heap, machine.heap.collector[0], machine.instructions[machine.state[0].at]
    op, argument = instruction.op, instruction.argument
    if machine.state[0].unwinding:
        size = unwinding_bytes(machine)
        if size:
            collector.ready = new_counted_block(heap, size)
        return size > 0
    if op in (MAKE_DICT, DICT_OF_CONSTANTS):
        return _allocate_dict(machine, argument, op == DICT_OF_CONSTANTS)
    if op == SET_ATTRIBUTE:
        return _allocate_attributes(machine, argument)
    size = _container_bytes(machine, op, argument)
    before = np.int64(0)
    if size and op == CALL_INIT and instruction.other >= FEW_ARGUMENTS:
        before = new_block(heap, MALLOC, MEM, 8 * (instruction.other + 1))
    if size:
        collector.ready = new_counted_block(heap, size)
    collector.ready_before = before
    return size > 0


@leaf
def _container_bytes(machine, op, argument):
    """Returns the size of the object that an instruction allocates first, 0 for none."""
    heap, state = machine.heap, machine.state[0]
    rules = heap.rules[0]
    if op in (MAKE_TUPLE, MAKE_ARGUMENTS, PACK_ARGUMENTS) or (op == MAKE_RANGE and rules.range_arguments):
        length = np.int64(1) if op == MAKE_RANGE else argument
        if op == MAKE_ARGUMENTS and length == 0:
            return np.int64(0)
        return np.int64(0) if has_kept(heap, TUPLE, length) else rules.tuple_header + 8 * length
    if op == START:
        return np.int64(0) if has_kept(heap, TUPLE, np.int64(2)) else rules.tuple_header + 16
    if op == MAKE_LOCK:
        return rules.lock_bytes * rules.locks_have_header
    if op == MAKE_QUEUE:
        return np.int64(rules.queue_bytes)
    if op in (MAKE_LIST, LIST_OF_CONSTANTS, FILL_QUEUE):
        return np.int64(0) if has_kept(heap, LIST, np.int64(0)) else np.int64(56)
    if op in (MAKE_SET, SET_OF_CONSTANTS):
        return np.int64(SET_BYTES)
    if op == NEW:
        slots = machine.classes[argument].slots
        return slots_bytes(machine, argument) if slots >= 0 else rules.instance_bytes
    if op == ITERATE:
        kind = heap.objects[machine.stack[state.top - 1]].kind
        if kind in (LIST, TUPLE):
            iterator = LIST_ITERATOR if kind == LIST else TUPLE_ITERATOR
            return np.int64(0 if has_kept(heap, iterator, np.int64(0)) else 48)
        return np.int64(DICT_ITERATOR_BYTES if kind == DICT else 0)
    if op in (MAKE_CELL, MAKE_FUNCTION, MAKE_CLOSURE):
        return np.int64(CELL_BYTES) if op == MAKE_CELL else np.int64(rules.function_bytes)
    if op == ATTRIBUTE:
        has_method = method_of(machine, np.int64(machine.stack[state.top - 1]), argument) > 0
        return np.int64(METHOD_BYTES if has_method and not has_kept(heap, METHOD, np.int64(0)) else 0)
    if op == MAKE_STEPS:
        return np.int64(STEPS_BYTES)
    if op == MAKE_WEAKREF:
        return weak_reference_bytes(machine, argument)
    if op in (END_GENERATOR, SEND):
        return exception_bytes(heap, STOP_ITERATION) if _stops(machine, op) else np.int64(0)
    if op == MAKE_GENERATOR:
        return generator_bytes(heap, machine.functions[argument])
    if ARGUMENTS <= op <= RAISE_AGAIN or op == RETURN:
        return _exception_bytes(machine, op, argument)
    return _frame_bytes(machine, op, argument)


@leaf
def _stops(machine, op):
    """Whether a generator ends with a StopIteration, or has ended before: see `pass_stop`."""
    state = machine.state[0]
    if stop_context(machine) == 0:
        return False
    if op == END_GENERATOR:
        return True
    entry = machine.heap.objects[machine.stack[state.top - 1]]
    return entry.kind == GENERATOR and entry.capacity == ENDED


@leaf
def _frame_bytes(machine, op, argument):
    """Returns the size of the frame that an instruction allocates, 0 for none."""
    if op in (CALL, CALL_INIT, MAKE_FRAME):
        return frame_bytes(machine, argument)
    if op in (CALL_VALUE, CALL_METHOD) and machine.heap.rules[0].frame_base:
        function = callee(machine, op, argument)
        return frame_bytes(machine, function) if function >= 0 else np.int64(0)
    return np.int64(0)


@leaf
def _exception_bytes(machine, op, argument):
    """Returns the size of the object that an instruction of exceptions, or a `return`, allocates first, 0 for none."""
    heap, rules = machine.heap, machine.heap.rules[0]
    if op in (NEW_EXCEPTION, RAISE_CLASS):
        return exception_bytes(heap, argument)
    if op == RETURN:
        caller = machine.state[0].depth - 1
        is_new = is_referred(machine) and needs_frame_object(machine, caller)
        return frame_object_bytes(machine, caller) if is_new else np.int64(0)
    length = argument if op == ARGUMENTS else argument >> CLASS_BITS & LENGTH_MASK if op == MATCH else np.int64(0)
    return rules.tuple_header + 8 * length if length and not has_kept(heap, TUPLE, length) else np.int64(0)


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
    is_own = entry.kind == EXCEPTION and entry.owner >= BUILTIN_EXCEPTIONS
    if (entry.kind != OPEN and not is_own) or has_kept(heap, DICT, np.int64(0)):
        return False
    values, kind = np.int64(0), machine.classes[class_of(entry)]
    if heap.rules[0].splits_dicts or is_own:
        if heap.items[entry.first]:
            return False
        if kind.keys:
            values = new_block(heap, MALLOC, MEM, 8 * usable(heap.objects[kind.keys].capacity))
    elif entry.capacity & HAS_DICT or machine.slots[entry.owner, name] >= 0 or kind.usable:
        return False
    collector.ready = new_counted_block(heap, np.int64(DICT_BYTES))
    collector.ready_before = values
    return True
