"""Runs the code of an object program: a stack machine whose steps request and free the memory that CPython would.

A step runs one instruction, or drops one reference that is left to drop. Before each step there is room for all that it
can add to the tables; where there is not, the machine stops with FULL, and continues with larger ones.
"""

from typing import NamedTuple

import numpy as np

from replay.jit.arrays import DONE, FULL, record
from replay.jit.compiling import by_reference, entry, leaf
from replay.objects.code import Do
from replay.objects.heap import (
    BYTES,
    CALLOC,
    DIGIT_BITS,
    EVENTS_A_STEP,
    FLOAT,
    INSTANCE,
    INT,
    LIST,
    MALLOC,
    MEM,
    OBJ,
    PLACE,
    RANGE,
    RANGE_ITERATOR,
    REALLOC,
    SEQUENCE_ITERATOR,
    TEXT,
    TUPLE,
    Heap,
    drop,
    drop_leaf,
    drop_next,
    emit,
    end_vector,
    free_block,
    give_items,
    new_block,
    new_object,
    new_record,
    refer,
)
from replay.objects.language import LARGEST

FAILED = 2
MISTAKES = (
    "",
    "the variable {name!r} is not bound",
    "this object has no attribute {name!r}",
    "the attribute {name!r} has no value yet",
    "expected an integer",
    "the integer exceeds the largest one, {largest}",
    "expected a list",
    "expected a list or tuple",
    "the index {value} is not below the length, {limit}",
    "the list is empty",
    "calls are nested more than {limit} deep",
)
UNBOUND, NO_ATTRIBUTE, NO_VALUE, NOT_INT, TOO_LARGE, NOT_LIST, NOT_SEQUENCE, NO_ITEM, EMPTY, TOO_DEEP = range(1, 11)
FRAME = record("function", "at", "locals", "block", "room")
STATE = record(
    "at", "function", "locals", "top", "depth", "frames_kept", "random", "choices", "need", "is_over", "mistake",
    "value", "limit",
)  # fmt: skip
"""`need`: entries of the stack and of the items that one step can take at most."""
FRAMES_KEPT = 200
"""Frames that CPython keeps for later calls, in addition to one of each function (up to 3.10)."""
DEPTH_MAX = 900
"""CPython's limit is 1000 calls, of which a program's start takes some."""
(
    NUMBER, FLOAT_CONSTANT, TEXT_CONSTANT, CONSTANTS, LOAD, STORE, DELETE, ATTRIBUTE, SET_ATTRIBUTE, LETTERS,
    MAKE_BYTES, HALF, SUM, PRODUCT, MAKE_TUPLE, MAKE_LIST, LIST_OF_CONSTANTS, NEW, CALL, RETURN, ITEM, SET_ITEM, LENGTH,
    APPEND, POP_LAST, CLEAR, DISCARD, MAKE_RANGE, ITERATE, NEXT, JUMP, CHOOSE,
) = map(int, Do)  # fmt: skip


@by_reference
class Machine(NamedTuple):
    """The heap; the code; `stack`: local variables and values of all calls; `constants`: the object of each instruction
    that pushes a constant; `ints`: small integers."""

    heap: Heap
    state: np.ndarray
    instructions: np.ndarray
    functions: np.ndarray
    classes: np.ndarray
    slots: np.ndarray
    stack: np.ndarray
    frames: np.ndarray
    kept_frames: np.ndarray
    constants: np.ndarray
    ints: np.ndarray


@leaf
def _push(machine, number):
    state = machine.state[0]
    machine.stack[state.top] = number
    state.top += 1


@leaf
def _pop(machine):
    state = machine.state[0]
    state.top -= 1
    return np.int64(machine.stack[state.top])


@leaf
def _digits(value):
    return np.int64(1) if value < 1 << DIGIT_BITS else np.int64(2)


@leaf
def new_int(machine, value, digits):
    """Returns an integer in memory for so many digits, or the small integer of this value."""
    rules = machine.heap.rules[0]
    if value < rules.small_ints:
        refer(machine.heap, machine.ints[value])
        return np.int64(machine.ints[value])
    size = 24 + 4 * digits
    return new_object(machine.heap, INT, max(size, rules.int_least), value)


@leaf
def _grown(rules, wanted, length):
    """Returns the capacity of a list that CPython resizes to `wanted` items."""
    if rules.list_classic:
        return wanted + (wanted >> 3) + (3 if wanted < 9 else 6) if wanted else wanted
    if wanted == 0:
        return wanted
    capacity = (wanted + (wanted >> 3) + 6) & ~3
    return (wanted + 3) & ~3 if wanted - length > capacity - wanted else capacity


@leaf
def _resize(machine, number, wanted):
    """Sets the length of a list as `list_resize` of CPython does."""
    heap = machine.heap
    rules, entry = heap.rules[0], heap.objects[number]
    fits = wanted <= entry.capacity and (wanted >= entry.capacity >> 1 or entry.capacity <= rules.least_shrunk)
    if not fits or (wanted == 0 and entry.vector and not rules.pop_keeps_empty):
        entry.capacity = _grown(rules, wanted, entry.length)
        if entry.capacity == 0 and not rules.pop_keeps_empty:
            free_block(heap, MEM, entry.vector)
            entry.vector = 0
        elif entry.vector:
            emit(heap, REALLOC, MEM, entry.vector, 8 * entry.capacity)
        else:
            entry.vector = new_block(heap, MALLOC, MEM, 8 * entry.capacity)
        if entry.capacity:
            give_items(heap, number, entry.capacity)
    entry.length = wanted


@leaf
def _fail(machine, mistake, value, limit):
    state = machine.state[0]
    state.mistake, state.value, state.limit = mistake, value, limit
    return False


@leaf
def _new_range(machine, stop):
    """Pushes an iterator over range(stop)."""
    heap, rules = machine.heap, machine.heap.rules[0]
    arguments = np.int64(0)
    if rules.range_arguments:
        arguments = new_object(heap, TUPLE, np.int64(48), np.int64(1))
    length = new_int(machine, stop, _digits(stop))
    if rules.range_lengths and stop:  # stop - start; minus 1; divided by step; plus 1, the length
        less = new_int(machine, stop - 1, _digits(stop - 1))
        quotient, difference = new_int(machine, stop - 1, _digits(stop - 1)), length
        length = new_int(machine, stop, _digits(stop))
        drop_leaf(heap, quotient)
        drop_leaf(heap, less)
        drop_leaf(heap, difference)
    made = new_object(heap, RANGE, np.int64(48), stop)
    heap.objects[made].owner = length
    if rules.range_arguments:
        drop_leaf(heap, arguments)
    iterator = new_object(heap, RANGE_ITERATOR, rules.range_iterator_bytes, np.int64(0))
    heap.objects[iterator].capacity = stop
    _push(machine, iterator)
    drop(heap, made)
    return True


@leaf
def _next(machine, target):
    """Pushes the next item of the iterator on the stack; at its end, drops it and jumps."""
    heap, state = machine.heap, machine.state[0]
    iterator = np.int64(machine.stack[state.top - 1])
    entry = heap.objects[iterator]
    if entry.kind == RANGE_ITERATOR:
        if entry.length < entry.capacity:
            entry.length += 1
            _push(machine, new_int(machine, entry.length - 1, _digits(entry.length - 1)))
            return True
    elif entry.length < heap.objects[entry.owner].length:
        item = np.int64(heap.items[heap.objects[entry.owner].first + entry.length])
        entry.length += 1
        refer(heap, item)
        _push(machine, item)
        return True
    state.top -= 1
    state.at = target
    drop(heap, iterator)
    return True


@leaf
def _compute(machine, op):
    """Replaces two integers by their sum or product."""
    heap = machine.heap
    right, left = _pop(machine), _pop(machine)
    first, second = heap.objects[left], heap.objects[right]
    if first.kind != INT or second.kind != INT:
        return _fail(machine, NOT_INT, np.int64(0), np.int64(0))
    a, b = first.length, second.length
    is_short = _digits(a) == 1 and _digits(b) == 1
    if op == SUM:
        value = a + b
        digits = _digits(value) if is_short else np.int64(3)
    else:
        if a and b > LARGEST // a:
            return _fail(machine, TOO_LARGE, np.int64(0), np.int64(0))
        value = a * b
        digits = _digits(value) if is_short else _digits(a) + _digits(b)
    if value > LARGEST:
        return _fail(machine, TOO_LARGE, np.int64(0), np.int64(0))
    _push(machine, new_int(machine, value, digits))
    drop_leaf(heap, left)
    drop_leaf(heap, right)
    return True


@leaf
def _repeat_text(machine, kind, header):
    """Replaces a length by a new text or bytes."""
    heap, number = machine.heap, _pop(machine)
    entry = heap.objects[number]
    if entry.kind != INT:
        return _fail(machine, NOT_INT, np.int64(0), np.int64(0))
    length = entry.length
    if length == 1 or (length == 0 and kind == TEXT):  # these exist once
        _push(machine, machine.ints[0])
    else:
        _push(machine, new_object(heap, kind, header + length, length))
    drop_leaf(heap, number)
    return True


@leaf
def _make_container(machine, kind, length):
    """Replaces values by a tuple or list of them."""
    heap, state = machine.heap, machine.state[0]
    if kind == TUPLE:
        number = new_object(heap, kind, heap.rules[0].tuple_header + 8 * length, length)
    else:
        number = new_object(heap, kind, np.int64(56), length)
        heap.objects[number].capacity = length
        if length:
            heap.objects[number].vector = new_block(heap, CALLOC, MEM, 8 * length)
    if length:
        give_items(heap, number, length)
    state.top -= length
    first = heap.objects[number].first
    for index in range(length):
        heap.items[first + index] = machine.stack[state.top + index]
    _push(machine, number)
    return True


@leaf
def _list_of_constants(machine, length):
    """Replaces a constant tuple by a list with its items."""
    heap, rules = machine.heap, machine.heap.rules[0]
    state = machine.state[0]
    state.top -= 1
    if rules.constants_op == CALLOC:
        capacity = length
    elif rules.constants_op == REALLOC:
        capacity = _grown(rules, length, np.int64(0))
    else:
        capacity = (length + 1) & ~1
    number = new_object(heap, LIST, np.int64(56), length)
    entry = heap.objects[number]
    entry.capacity = capacity
    entry.vector = new_block(heap, CALLOC if rules.constants_op == CALLOC else MALLOC, MEM, 8 * capacity)
    give_items(heap, number, capacity)
    for index in range(length):
        heap.items[entry.first + index] = machine.ints[0]
    _push(machine, number)
    return True


@leaf
def enter_frame(machine, function):
    """Takes memory for the frame of a call: that of the function's last call, kept memory, or new memory."""
    heap, state, called = machine.heap, machine.state[0], machine.functions[function]
    frame, base = machine.frames[state.depth], heap.rules[0].frame_base
    if base == 0:
        return
    need = called.locals + (called.stack_3_8 if heap.rules[0].list_classic else called.stack)
    if called.block:
        frame.block, frame.room = called.block, called.room
        called.block = 0
    elif state.frames_kept:
        state.frames_kept -= 1
        kept = machine.kept_frames[state.frames_kept]
        frame.block, frame.room = kept.block, kept.room
        if need > frame.room:
            frame.room = need
            emit(heap, REALLOC, OBJ, frame.block, base + 8 * need)
    else:
        frame.block, frame.room = new_block(heap, MALLOC, OBJ, base + 8 * need), need


@leaf
def leave_frame(machine, function):
    """Keeps the memory of a frame for the function's next call, or for any call, or frees it."""
    heap, state, called = machine.heap, machine.state[0], machine.functions[function]
    frame = machine.frames[state.depth]
    if heap.rules[0].frame_base == 0:
        return
    if called.block == 0:
        called.block, called.room = frame.block, frame.room
    elif state.frames_kept < FRAMES_KEPT:
        kept = machine.kept_frames[state.frames_kept]
        kept.block, kept.room = frame.block, frame.room
        state.frames_kept += 1
    else:
        free_block(heap, OBJ, frame.block)


@leaf
def _call(machine, function):
    """Calls a function with the values on the stack as its first local variables."""
    state, called = machine.state[0], machine.functions[function]
    if state.depth == DEPTH_MAX:
        return _fail(machine, TOO_DEEP, np.int64(0), np.int64(DEPTH_MAX))
    frame = machine.frames[state.depth]
    frame.function, frame.at, frame.locals = state.function, state.at, state.locals
    state.depth += 1
    enter_frame(machine, function)
    state.function, state.at, state.locals = function, called.start, state.top - called.parameters
    for slot in range(called.parameters, called.locals):
        machine.stack[state.locals + slot] = 0
    state.top = state.locals + called.locals
    if machine.heap.rules[0].keeps_arguments:
        for slot in range(called.parameters):
            refer(machine.heap, machine.stack[state.locals + slot])
            _push(machine, machine.stack[state.locals + slot])
    return True


@leaf
def _return(machine):
    """Returns to the caller: the local variables die, then the arguments that the caller kept."""
    heap, state = machine.heap, machine.state[0]
    result, called = _pop(machine), machine.functions[state.function]
    if heap.rules[0].keeps_arguments:
        for slot in range(called.parameters):
            drop(heap, np.int64(machine.stack[state.locals + called.locals + slot]))
    for index in range(called.locals):
        slot = index if heap.rules[0].locals_from_last else called.locals - 1 - index
        if machine.stack[state.locals + slot]:
            drop(heap, np.int64(machine.stack[state.locals + slot]))
    state.top = state.locals
    leave_frame(machine, state.function)
    if state.depth == 0:
        drop(heap, result)
        return False
    state.depth -= 1
    frame = machine.frames[state.depth]
    state.function, state.at, state.locals = frame.function, frame.at, frame.locals
    _push(machine, result)
    return True


@leaf
def _attribute(machine, name, is_set):
    """Replaces an instance by its attribute; or sets it to the value below the instance."""
    heap, number = machine.heap, _pop(machine)
    entry = heap.objects[number]
    slot = machine.slots[entry.owner, name] if entry.kind == INSTANCE else np.int64(-1)
    if slot < 0:
        return _fail(machine, NO_ATTRIBUTE, name, np.int64(0))
    place = entry.first + slot
    old = np.int64(heap.items[place])
    if is_set:
        heap.items[place] = _pop(machine)
        drop(heap, number)
        if old:
            drop(heap, old)
        return True
    if old == 0:
        return _fail(machine, NO_VALUE, name, np.int64(0))
    refer(heap, old)
    _push(machine, old)
    drop(heap, number)
    return True


@leaf
def _item(machine, is_set):
    """Replaces a sequence and an index by the item; or sets it to the value below both."""
    heap = machine.heap
    index, number = _pop(machine), _pop(machine)
    entry, key = heap.objects[number], heap.objects[index]
    if entry.kind != LIST and (is_set or entry.kind != TUPLE):
        return _fail(machine, NOT_LIST if is_set else NOT_SEQUENCE, np.int64(0), np.int64(0))
    if key.kind != INT:
        return _fail(machine, NOT_INT, np.int64(0), np.int64(0))
    if key.length >= entry.length:
        return _fail(machine, NO_ITEM, key.length, entry.length)
    place = entry.first + key.length
    old = np.int64(heap.items[place])
    if is_set:
        heap.items[place] = _pop(machine)
        drop(heap, index)
        drop(heap, number)
        drop(heap, old)
        return True
    refer(heap, old)
    _push(machine, old)
    drop(heap, index)
    drop(heap, number)
    return True


@leaf
def _of_list(machine, op):
    """Appends the value on the stack to the list below; or removes the last item, or all items, of a list."""
    heap = machine.heap
    value = _pop(machine) if op == APPEND else np.int64(0)
    number = _pop(machine)
    entry = heap.objects[number]
    if entry.kind != LIST:
        return _fail(machine, NOT_LIST, np.int64(0), np.int64(0))
    if op == APPEND:
        length = entry.length
        if length < entry.capacity and not heap.rules[0].append_resizes:
            entry.length += 1
        else:
            _resize(machine, number, length + 1)
        heap.items[entry.first + length] = value
        drop(heap, number)
    elif op == CLEAR:
        drop(heap, number)
        end_vector(heap, number)
    else:
        if entry.length == 0:
            return _fail(machine, EMPTY, np.int64(0), np.int64(0))
        last = np.int64(heap.items[entry.first + entry.length - 1])
        _resize(machine, number, entry.length - 1)
        _push(machine, last)
        drop(heap, number)
    return True


@leaf
def _constant(machine, at):
    number = np.int64(machine.constants[at])
    refer(machine.heap, number)
    _push(machine, number)
    return True


@leaf
def _choose(machine, steps, other):
    """Jumps unless the next random byte is below `steps`."""
    state = machine.state[0]
    state.random = (state.random * 1664525 + 1013904223) & 0xFFFFFFFF  # a linear congruential generator
    state.choices += 1
    if state.random >> 24 >= steps:
        state.at = other
    return True


@leaf
def _do(machine):
    """Runs the next instruction; returns False at the end of the program, and for a mistake."""
    heap, state = machine.heap, machine.state[0]
    at = state.at
    instruction = machine.instructions[at]
    op, argument = instruction.op, instruction.argument
    state.at += 1
    if op == LOAD:
        number = np.int64(machine.stack[state.locals + argument])
        if number == 0:
            return _fail(machine, UNBOUND, argument, np.int64(0))
        refer(heap, number)
        _push(machine, number)
        return True
    if op in (STORE, DELETE):
        old = np.int64(machine.stack[state.locals + argument])
        machine.stack[state.locals + argument] = _pop(machine) if op == STORE else np.int64(0)
        if old:
            drop(heap, old)
        elif op == DELETE:
            return _fail(machine, UNBOUND, argument, np.int64(0))
        return True
    if op <= CONSTANTS:
        return _constant(machine, at)
    if op in (ATTRIBUTE, SET_ATTRIBUTE):
        return _attribute(machine, argument, op == SET_ATTRIBUTE)
    if op == NEXT:
        return _next(machine, instruction.other)
    if op == JUMP:
        state.at = instruction.other
        return True
    if op in (SUM, PRODUCT):
        return _compute(machine, op)
    if op == CALL:
        return _call(machine, argument)
    if op == RETURN:
        return _return(machine)
    if op == DISCARD:
        drop(heap, _pop(machine))
        return True
    if op in (APPEND, POP_LAST, CLEAR):
        return _of_list(machine, op)
    if op in (ITEM, SET_ITEM):
        return _item(machine, op == SET_ITEM)
    if op == NEW:
        slots = machine.classes[argument]
        number = new_object(heap, INSTANCE, 32 + 8 * slots, slots)
        heap.objects[number].owner = argument
        give_items(heap, number, slots)
        _push(machine, number)
        return True
    if op == MAKE_TUPLE:
        return _make_container(machine, TUPLE, argument)
    if op == MAKE_LIST:
        return _make_container(machine, LIST, argument)
    if op == LETTERS:
        return _repeat_text(machine, TEXT, heap.rules[0].text_header)
    if op == MAKE_BYTES:
        return _repeat_text(machine, BYTES, np.int64(33))
    if op == CHOOSE:
        return _choose(machine, argument, instruction.other)
    if op == LIST_OF_CONSTANTS:
        return _list_of_constants(machine, argument)
    if op == MAKE_RANGE:
        return _new_range(machine, argument)
    return _rare(machine, op)


@leaf
def _rare(machine, op):
    """Runs one of the instructions that are left: HALF, LENGTH, ITERATE."""
    heap, number = machine.heap, _pop(machine)
    entry = heap.objects[number]
    if op == HALF:
        if entry.kind != INT:
            return _fail(machine, NOT_INT, np.int64(0), np.int64(0))
        _push(machine, new_object(heap, FLOAT, np.int64(24), np.int64(0)))
        drop_leaf(heap, number)
        return True
    if entry.kind not in (LIST, TUPLE):
        return _fail(machine, NOT_SEQUENCE, np.int64(0), np.int64(0))
    if op == LENGTH:
        _push(machine, new_int(machine, entry.length, _digits(entry.length)))
        drop(heap, number)
        return True
    if heap.rules[0].sequence_iterators:
        iterator = new_object(heap, SEQUENCE_ITERATOR, np.int64(48), np.int64(0))
    else:
        iterator = new_record(heap, PLACE, np.int64(0))
    heap.objects[iterator].owner = number
    _push(machine, iterator)
    return True


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
        enter_frame(machine, state.function)
    while _has_room(machine):
        if counts.dying:
            drop_next(heap)
        elif state.is_over:
            return DONE
        elif not _do(machine):
            if state.mistake:
                return FAILED
            state.is_over = 1
    return FULL
