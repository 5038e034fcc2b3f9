"""Instructions of queues.

queue       an object with the items: a semaphore, then from 3.13 on the queue's items from index `owner` on, of
            which the queue's array has room for `capacity`; up to 3.12 a list, which begins with `owner` items that
            were taken. `capacity`: whether a put releases the semaphore
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.containers import resize
from replay.objects.heap import (
    CALLOC,
    MALLOC,
    MEM,
    RAW,
    drop,
    end_vector,
    free_block,
    give_items,
    new_block,
    new_object,
    new_record,
)
from replay.objects.kinds import LIST, LIST_QUEUE, QUEUE, SEMAPHORE
from replay.objects.machine import NOT_QUEUE, fail, pop, push
from replay.objects.waiting import EMPTY_QUEUE, open_lock, wait, wake

RING_LEAST = 8
ON_STACK_BYTES = 64
"""Items of a list that CPython removes at a time without memory for them, in bytes."""


@leaf
def new_queue(machine):
    heap, rules = machine.heap, machine.heap.rules[0]
    number = new_object(heap, LIST_QUEUE if rules.queues_have_list else QUEUE, rules.queue_bytes, np.int64(1))
    give_items(heap, number, np.int64(2))
    semaphore = new_record(heap, SEMAPHORE, np.int64(0))
    heap.items[heap.objects[number].first] = semaphore
    push(machine, number)
    return True


@leaf
def fill_queue(machine):
    """Allocates the list of a new queue and its lock, or the array of its items."""
    heap, number = machine.heap, np.int64(machine.stack[machine.state[0].top - 1])
    queue = heap.objects[number]
    if queue.kind == QUEUE:
        queue.owner, queue.capacity = 1, RING_LEAST
        queue.vector = new_block(heap, CALLOC, MEM, np.int64(8 * RING_LEAST))
        return True
    made = new_object(heap, LIST, np.int64(56), np.int64(0))
    queue.length = 2
    heap.items[queue.first + 1] = made
    heap.objects[heap.items[queue.first]].vector = new_block(heap, MALLOC, RAW, heap.rules[0].lock_raw_bytes)
    return True


@leaf
def put(machine):
    """Puts the value on the stack into the queue below."""
    heap = machine.heap
    value, number = pop(machine), pop(machine)
    queue = heap.objects[number]
    if queue.kind not in (QUEUE, LIST_QUEUE):
        return fail(machine, NOT_QUEUE, np.int64(0), np.int64(0))
    lock = np.int64(heap.items[queue.first])
    if queue.kind == LIST_QUEUE:
        items = np.int64(heap.items[queue.first + 1])
        entry = heap.objects[items]
        length = entry.length
        if length < entry.capacity and not heap.rules[0].append_resizes:
            entry.length += 1
        else:
            resize(machine, items, length + 1)
        heap.items[entry.first + length] = value
        if queue.capacity:
            queue.capacity = 0
            open_lock(machine, lock)
    elif heap.objects[lock].capacity:
        heap.objects[lock].capacity -= 1
        wake(machine, lock, value)
    else:
        _put_into_ring(machine, number, value)
    drop(heap, number)
    return True


@leaf
def _put_into_ring(machine, number, value):
    heap, queue = machine.heap, machine.heap.objects[number]
    if queue.length - queue.owner == queue.capacity:
        _resize_ring(machine, number, 2 * queue.capacity)
    if queue.length == 1 << queue.room and queue.owner > queue.length >> 1:
        for index in range(queue.owner, queue.length):
            heap.items[queue.first + 1 + index - queue.owner] = heap.items[queue.first + index]
        queue.length -= queue.owner - 1
        for index in range(queue.length, 1 << queue.room):
            heap.items[queue.first + index] = 0
        queue.owner = 1
    give_items(heap, number, queue.length + 1)
    heap.items[queue.first + queue.length] = value
    queue.length += 1


@leaf
def _resize_ring(machine, number, capacity):
    heap, queue = machine.heap, machine.heap.objects[number]
    block = new_block(heap, CALLOC, MEM, 8 * capacity)
    free_block(heap, MEM, queue.vector)
    queue.vector, queue.capacity = block, capacity


@leaf
def take(machine):
    """Replaces a queue by its first item, when it has one."""
    heap, state = machine.heap, machine.state[0]
    number = np.int64(machine.stack[state.top - 1])
    queue = heap.objects[number]
    if queue.kind == QUEUE:
        if state.granted:
            item, state.granted = np.int64(state.granted), 0
        elif queue.owner == queue.length:
            heap.objects[heap.items[queue.first]].capacity += 1
            return wait(machine, EMPTY_QUEUE, np.int64(heap.items[queue.first]))
        else:
            item = _take_from_ring(machine, number)
    elif queue.kind == LIST_QUEUE:
        items, lock = np.int64(heap.items[queue.first + 1]), np.int64(heap.items[queue.first])
        if state.granted:
            queue.capacity, state.granted = 1, 0
        if queue.owner == heap.objects[items].length:
            if heap.objects[lock].length == 0:
                heap.objects[lock].length, queue.capacity = 1, 1
            heap.objects[lock].capacity += 1
            return wait(machine, EMPTY_QUEUE, lock)
        item = _take_from_list(machine, number, items)
    else:
        return fail(machine, NOT_QUEUE, np.int64(0), np.int64(0))
    drop(heap, pop(machine))
    push(machine, item)
    return True


@leaf
def _take_from_ring(machine, number):
    heap, queue = machine.heap, machine.heap.objects[number]
    if queue.length - queue.owner < queue.capacity // 4 and queue.capacity > RING_LEAST:
        _resize_ring(machine, number, queue.capacity // 2)
    place = queue.first + queue.owner
    item = np.int64(heap.items[place])
    heap.items[place] = 0
    queue.owner += 1
    return item


@leaf
def _take_from_list(machine, number, items):
    """Takes the first item; when more than half of the list was taken, CPython deletes this part of it."""
    heap, queue, entry = machine.heap, machine.heap.objects[number], machine.heap.objects[items]
    place = entry.first + queue.owner
    item = np.int64(heap.items[place])
    heap.items[place] = 0
    queue.owner += 1
    taken, left = np.int64(queue.owner), entry.length - queue.owner
    if taken > left:
        queue.owner = 0
        if left == 0:
            end_vector(heap, items)
            return item
        block = np.int64(0)
        if 8 * taken > ON_STACK_BYTES:
            block = new_block(heap, MALLOC, MEM, 8 * taken)
        for index in range(left):
            heap.items[entry.first + index] = heap.items[entry.first + taken + index]
            heap.items[entry.first + taken + index] = 0
        resize(machine, items, left)
        if block:
            free_block(heap, MEM, block)
    return item
