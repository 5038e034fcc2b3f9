"""Instructions of threads, locks and queues.

An instruction that blocks, or that another thread has waited for, ends the slice: `state.waits` says why, and the
scheduler (`replay.objects.threads`) continues there. A blocked instruction runs again when the thread is granted what
it waits for.

    lock        length: whether it is held; capacity: number of waiting threads; vector: its memory in the raw domain
    queue       an object with the items: a semaphore, then from 3.13 on the queue's items from index `owner` on, of
                which the queue's array has room for `capacity`; up to 3.12 a list, which begins with `owner` items that
                were taken. `capacity`: whether a put releases the semaphore
    semaphore   a lock that is no object
"""

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.containers import resize
from replay.objects.heap import (
    CALLOC,
    INT,
    LIST,
    LIST_QUEUE,
    LOCK,
    MALLOC,
    MEM,
    PLAIN_LOCK,
    QUEUE,
    RAW,
    SEMAPHORE,
    TUPLE,
    drop,
    emit,
    end_vector,
    free_block,
    give_items,
    new_block,
    new_object,
    new_record,
    refer,
)
from replay.objects.machine import (
    ACQUIRE,
    BEGIN_THREAD,
    END_THREAD,
    FILL_QUEUE,
    LEAVE_THREAD,
    MAKE_LOCK,
    MAKE_QUEUE,
    NONE,
    NOT_HELD,
    NOT_LOCK,
    NOT_QUEUE,
    PUT,
    SLEEP,
    START,
    TAKE,
    WORK,
    fail,
    pop,
    push,
)
from replay.trace import Op

RUNS, LOCKED, EMPTY_QUEUE, WAKES, SLEEPS, WORKS, STARTS = range(7)
"""What an instruction has the scheduler do: nothing; wait for a lock, or an item of a queue; wake the first thread that
waits for a lock or queue; wait for a time; compute for a time; start a thread."""
THREAD_END = int(Op.THREAD_END)
IDENTITY = 1 << 46
"""The size of the number that a new thread has in Python: it is an address."""
RING_LEAST = 8
ON_STACK_BYTES = 64
"""Items of a list that CPython removes at a time without memory for them, in bytes."""


@leaf
def _wait(machine, why, awaited):
    """Has the thread wait; then the instruction runs again."""
    state = machine.state[0]
    state.waits, state.awaited = why, awaited
    state.checks = 0
    state.at -= 1
    machine.instructions[state.at].runs -= 1
    return True


@leaf
def _wake(machine, awaited, given):
    state = machine.state[0]
    state.waits, state.awaited, state.given = WAKES, awaited, given


@leaf
def _push_none(machine):
    number = np.int64(machine.ints.shape[0] + 1 + NONE)
    refer(machine.heap, number)
    push(machine, number)
    return True


@leaf
def do_thread(machine, op, argument, other):
    """Runs an instruction of threads, locks or queues."""
    state = machine.state[0]
    state.checks = op not in (BEGIN_THREAD, LEAVE_THREAD, END_THREAD, MAKE_QUEUE, WORK)
    if op in (ACQUIRE, MAKE_LOCK):
        return _acquire(machine) if op == ACQUIRE else _new_lock(machine)
    if op in (MAKE_QUEUE, FILL_QUEUE):
        return _new_queue(machine) if op == MAKE_QUEUE else _fill_queue(machine)
    if op == PUT:
        return _put(machine)
    if op == TAKE:
        return _take(machine)
    if op == START:
        return _start(machine, other)
    if op == BEGIN_THREAD:
        return _begin(machine)
    if op == LEAVE_THREAD:
        result = pop(machine)
        drop(machine.heap, np.int64(state.arguments))
        drop(machine.heap, result)
        return True
    if op == END_THREAD:
        return _end(machine)
    if op in (SLEEP, WORK):
        state.waits, state.delay_ns = SLEEPS if op == SLEEP else WORKS, argument
        return _push_none(machine) if op == SLEEP else True
    return _release(machine)


# Threads


@leaf
def _start(machine, first):
    """Replaces the arguments by the number of a new thread.

    CPython allocates a tuple of the function and its arguments, and what the thread needs.
    """
    heap, state, rules = machine.heap, machine.state[0], machine.heap.rules[0]
    arguments = pop(machine)
    refer(heap, arguments)
    both = new_object(heap, TUPLE, rules.tuple_header + 16, np.int64(2))
    give_items(heap, both, np.int64(2))
    heap.items[heap.objects[both].first + 1] = arguments
    state.next_handle = new_block(heap, CALLOC, RAW, rules.handle_bytes) if rules.handle_bytes else np.int64(0)
    state.next_boot = new_block(heap, MALLOC, rules.boot_domain, rules.boot_bytes)
    state.next_thread_state = new_block(heap, rules.thread_state_op, RAW, rules.thread_state_bytes)
    state.next_callback = new_block(heap, MALLOC, RAW, rules.callback_bytes) if rules.callback_bytes else np.int64(0)
    state.next_arguments, state.awaited, state.waits = arguments, first, STARTS
    push(machine, new_object(heap, INT, np.int64(32), np.int64(IDENTITY)))
    drop(heap, both)
    return True


@leaf
def _begin(machine):
    """Pushes the arguments of a new thread's function."""
    heap, state = machine.heap, machine.state[0]
    if state.callback:
        free_block(heap, RAW, state.callback)
    arguments = heap.objects[state.arguments]
    for index in range(arguments.length):
        number = np.int64(heap.items[arguments.first + index])
        refer(heap, number)
        push(machine, number)
    return True


@leaf
def _end(machine):
    """Frees the memory of a thread."""
    heap, state = machine.heap, machine.state[0]
    free_block(heap, heap.rules[0].boot_domain, state.boot)
    free_block(heap, RAW, state.thread_state)
    if state.handle:
        free_block(heap, RAW, state.handle)
    emit(heap, THREAD_END, np.int64(0), np.int64(0), np.int64(0))
    return False


# Locks


@leaf
def _new_lock(machine):
    heap, rules = machine.heap, machine.heap.rules[0]
    number = new_object(heap, LOCK if rules.locks_have_header else PLAIN_LOCK, rules.lock_bytes, np.int64(0))
    if rules.lock_raw_bytes:
        heap.objects[number].vector = new_block(heap, MALLOC, RAW, rules.lock_raw_bytes)
    push(machine, number)
    return True


@leaf
def _is_lock(kind):
    return kind in (LOCK, PLAIN_LOCK)


@leaf
def _acquire(machine):
    """Replaces a lock by the result of its method, when the thread holds the lock."""
    state, number = machine.state[0], np.int64(machine.stack[machine.state[0].top - 1])
    lock = machine.heap.objects[number]
    if not _is_lock(lock.kind):
        return fail(machine, NOT_LOCK, np.int64(0), np.int64(0))
    if lock.length and not state.granted:
        lock.capacity += 1
        return _wait(machine, LOCKED, number)
    lock.length, state.granted = 1, 0
    drop(machine.heap, pop(machine))
    return _push_none(machine)


@leaf
def _release(machine):
    """Replaces a lock by the result of its method. The first thread that waits for the lock holds it from now on."""
    number = pop(machine)
    lock = machine.heap.objects[number]
    if not _is_lock(lock.kind):
        return fail(machine, NOT_LOCK, np.int64(0), np.int64(0))
    if lock.length == 0:
        return fail(machine, NOT_HELD, np.int64(0), np.int64(0))
    _open(machine, number)
    drop(machine.heap, number)
    return _push_none(machine)


@leaf
def _open(machine, number):
    """Gives a lock to the first thread that waits for it; else, no thread holds it."""
    lock = machine.heap.objects[number]
    lock.length = lock.capacity > 0
    if lock.capacity:
        lock.capacity -= 1
        _wake(machine, number, np.int64(1))


# Queues


@leaf
def _new_queue(machine):
    heap, rules = machine.heap, machine.heap.rules[0]
    number = new_object(heap, LIST_QUEUE if rules.queues_have_list else QUEUE, rules.queue_bytes, np.int64(1))
    give_items(heap, number, np.int64(2))
    semaphore = new_record(heap, SEMAPHORE, np.int64(0))
    heap.items[heap.objects[number].first] = semaphore
    push(machine, number)
    return True


@leaf
def _fill_queue(machine):
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
def _put(machine):
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
            _open(machine, lock)
    elif heap.objects[lock].capacity:
        heap.objects[lock].capacity -= 1
        _wake(machine, lock, value)
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
def _take(machine):
    """Replaces a queue by its first item, when it has one."""
    heap, state = machine.heap, machine.state[0]
    number = np.int64(machine.stack[state.top - 1])
    queue = heap.objects[number]
    if queue.kind == QUEUE:
        if state.granted:
            item, state.granted = np.int64(state.granted), 0
        elif queue.owner == queue.length:
            heap.objects[heap.items[queue.first]].capacity += 1
            return _wait(machine, EMPTY_QUEUE, np.int64(heap.items[queue.first]))
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
            return _wait(machine, EMPTY_QUEUE, lock)
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
