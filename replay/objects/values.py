"""Instructions that create numbers and texts, and the loops over ranges and sequences."""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.dicts import next_key
from replay.objects.generators import next_of_generator, next_of_steps
from replay.objects.heap import DIGIT_BITS, drop, drop_leaf, new_object, refer
from replay.objects.kinds import DICT_ITERATOR, GENERATOR, INT, RANGE, RANGE_ITERATOR, STEPS, TEXT, TUPLE
from replay.objects.language import LARGEST
from replay.objects.machine import BYTE, LETTER, NO_LETTERS, NOT_INT, SUM, TOO_LARGE, applies, fail, pop, push


@leaf
def digits_of(value):
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
def new_length(machine, length):
    """Returns the integer that `len` creates, below 2^30, or the small integer of this value."""
    rules = machine.heap.rules[0]
    if length < rules.small_ints:
        refer(machine.heap, machine.ints[length])
        return np.int64(machine.ints[length])
    return new_object(machine.heap, INT, max(np.int64(28), rules.length_least), length)


@leaf
def new_range(machine, stop):
    """Pushes range(stop)."""
    heap, rules = machine.heap, machine.heap.rules[0]
    arguments = np.int64(0)
    if rules.range_arguments:
        arguments = new_object(heap, TUPLE, np.int64(48), np.int64(1))
    length = new_int(machine, stop, digits_of(stop))
    if rules.range_lengths and stop:  # stop - start; minus 1; divided by step; plus 1, the length
        less = new_int(machine, stop - 1, digits_of(stop - 1))
        quotient, difference = new_int(machine, stop - 1, digits_of(stop - 1)), length
        length = new_int(machine, stop, digits_of(stop))
        drop_leaf(heap, quotient)
        drop_leaf(heap, less)
        drop_leaf(heap, difference)
    made = new_object(heap, RANGE, np.int64(48), stop)
    heap.objects[made].owner = length
    if rules.range_arguments:
        drop_leaf(heap, arguments)
    push(machine, made)
    return True


@leaf
def iterate_range(machine, made):
    """Pushes an iterator over a range, and drops the range."""
    heap = machine.heap
    iterator = new_object(heap, RANGE_ITERATOR, heap.rules[0].range_iterator_bytes, np.int64(0))
    heap.objects[iterator].capacity = heap.objects[made].length
    push(machine, iterator)
    drop(heap, made)
    return True


@leaf
def next_item(machine, target):
    """Pushes the next item, or key, of the iterator on the stack; at its end, drops it and jumps."""
    heap, state = machine.heap, machine.state[0]
    iterator = np.int64(machine.stack[state.top - 1])
    entry = heap.objects[iterator]
    if entry.kind == RANGE_ITERATOR:
        if entry.length < entry.capacity:
            entry.length += 1
            push(machine, new_int(machine, entry.length - 1, digits_of(entry.length - 1)))
            return True
    elif entry.kind == DICT_ITERATOR:
        return next_key(machine, iterator, target)
    elif entry.kind == GENERATOR:
        return next_of_generator(machine, iterator)
    elif entry.kind == STEPS:
        return next_of_steps(machine, iterator)
    elif entry.length < heap.objects[entry.owner].length:
        item = np.int64(heap.items[heap.objects[entry.owner].first + entry.length])
        entry.length += 1
        refer(heap, item)
        push(machine, item)
        return True
    state.top -= 1
    state.at = target
    drop(heap, iterator)
    return True


@leaf
def compute(machine, op):
    """Replaces two integers by their sum or product."""
    heap = machine.heap
    right, left = pop(machine), pop(machine)
    first, second = heap.objects[left], heap.objects[right]
    if first.kind != INT or second.kind != INT:
        return fail(machine, NOT_INT, np.int64(0), np.int64(0))
    a, b = first.length, second.length
    is_short = digits_of(a) == 1 and digits_of(b) == 1
    if op == SUM:
        value = a + b
        digits = digits_of(value) if is_short else np.int64(3)
    else:
        if a and b > LARGEST // a:
            return fail(machine, TOO_LARGE, np.int64(0), np.int64(0))
        value = a * b
        digits = digits_of(value) if is_short else digits_of(a) + digits_of(b)
    if value > LARGEST:
        return fail(machine, TOO_LARGE, np.int64(0), np.int64(0))
    push(machine, new_int(machine, value, digits))
    if applies(machine, heap.rules[0].right_first):
        drop_leaf(heap, right)
        drop_leaf(heap, left)
    else:
        drop_leaf(heap, left)
        drop_leaf(heap, right)
    return True


@leaf
def repeat_text(machine, kind, header):
    """Replaces a length by a new text or bytes."""
    heap, number = machine.heap, pop(machine)
    entry = heap.objects[number]
    if entry.kind != INT:
        return fail(machine, NOT_INT, np.int64(0), np.int64(0))
    length = entry.length
    if length == 1 or (length == 0 and kind == TEXT):  # these exist once
        single = NO_LETTERS if length == 0 else LETTER if kind == TEXT else BYTE
        push(machine, np.int64(machine.ints.shape[0] + 1 + single))
    else:
        push(machine, new_object(heap, kind, header + length, length))
    drop_leaf(heap, number)
    return True
