"""Groups: where slots come from, and when a group is released.

A group is mapped if its slots need more than half a page; a smaller one is nested in a slot of a larger class. When
groups of a class are mapped and unmapped again and again (they *bounce*), the last group of this class is kept.
"""

import numpy as np

from replay.allocators._stack import MARGIN, ask_for_room
from replay.allocators.linux import brk, brk_behind_guard, mmap, munmap, touch
from replay.allocators.musl.memory import (
    BOUNCE_CLASS,
    BOUNCE_CLASSES,
    CLASSES,
    METAS_A_PAGE,
    NOTHING,
    OVERHEAD,
    PAGE,
    PAGE_SHIFT,
    PREFIX_PAGES,
    SIZE_CLASSES,
    UNIT,
    UNIT_SHIFT,
    all_slots,
    enframe,
    give_words_back,
    lowest_slot,
    size_to_class,
    slot_start,
    stride_of,
    take_words,
)
from replay.jit.compiling import cold, inlined, leaf

SMALL_COUNTS = np.array(
    [[30, 30, 30], [31, 15, 15], [20, 10, 10], [31, 15, 7], [25, 12, 6], [21, 10, 5], [18, 8, 4], [31, 15, 7],
     [28, 14, 6]], np.int64
)  # fmt: skip
"""Slots of a group of the classes 0 to 8: many if many slots are in use, else fewer."""
MEDIUM_COUNTS = np.array([28, 24, 20, 32], np.int64)
"""The same for larger classes, by class modulo 4; halved while few slots are in use."""
RETAINED, BOUNCES_MAX = 100, 150


# Metas


@cold
def _take_meta_page(state, stack):
    """Moves the program break for a page of metas. Below the first one is a page without access."""
    heap = state.heap[0]
    if heap.brk == 0:
        heap.brk = stack.linux.space[0].brk
        brk_behind_guard(stack, heap.brk + 2 * PAGE, PAGE)
        heap.brk += PAGE
    else:
        brk(stack, heap.brk + PAGE)
    heap.brk += PAGE
    count_heap(stack, PAGE)
    touch(stack, heap.brk - PAGE, heap.brk - PAGE + UNIT)


@cold
def count_heap(stack, change):
    """Counts bytes that are mapped for musl, or unmapped if negative."""
    tally = stack.tally[0]
    tally.heap_bytes += change
    tally.heap_bytes_peak = max(tally.heap_bytes_peak, tally.heap_bytes)


@leaf
def take_meta(state, stack):
    """Returns the number of a meta that is not in use."""
    heap, metas = state.heap[0], state.metas
    number = heap.unused_meta
    if number >= 0:
        heap.unused_meta = metas[number].next
    else:
        number = heap.metas
        if number % METAS_A_PAGE == 0:
            _take_meta_page(state, stack)
        heap.metas += 1
        if heap.metas + MARGIN > metas.shape[0]:
            ask_for_room(stack)
    metas[number].previous = metas[number].next = NOTHING
    metas[number].avail = metas[number].freed = 0
    return number


@leaf
def give_meta_back(state, number):
    """The meta is not in use any more."""
    state.metas[number].mem = 0
    state.metas[number].next = state.heap[0].unused_meta
    state.heap[0].unused_meta = number


# The rings of groups with free slots


@leaf
def queue(state, size_class, number):
    """Adds a group at the end of the ring of its class."""
    metas, head = state.metas, state.active[size_class]
    meta = metas[number]
    if head == NOTHING:
        meta.previous = meta.next = number
        state.active[size_class] = number
    else:
        meta.next, meta.previous = head, metas[head].previous
        metas[meta.previous].next = number
        metas[head].previous = number


@leaf
def dequeue(state, size_class, number):
    """Removes a group from its ring; if it was the head, the next group is."""
    metas = state.metas
    meta = metas[number]
    if meta.next != number:
        metas[meta.previous].next = meta.next
        metas[meta.next].previous = meta.previous
        if state.active[size_class] == number:
            state.active[size_class] = meta.next
    else:
        state.active[size_class] = NOTHING
    meta.previous = meta.next = NOTHING


@leaf
def _activate(meta):
    """Makes the freed slots up to the last activated one available; returns their mask."""
    mask = meta.freed & all_slots(meta.active_last)
    meta.freed &= ~mask
    meta.avail = mask
    return mask


@cold
def _activate_more(meta):
    """Activates two more slots, and all that fit into the same page."""
    count, size = meta.active_last + 2, UNIT * SIZE_CLASSES[meta.size_class]
    span = UNIT + size * count
    while (span ^ (span + size - 1)) < PAGE:
        count += 1
        span += size
    meta.active_last = min(count, meta.last + 1) - 1


@leaf
def _next_slot(state, size_class):
    """Takes a slot from the groups of the class that have one. Returns its index in the ring's head, or NOTHING."""
    metas, number = state.metas, state.active[size_class]
    if number == NOTHING:
        return np.int64(NOTHING)
    meta = metas[number]
    mask = meta.avail
    if not mask:
        if not meta.freed:
            dequeue(state, size_class, number)
            number = state.active[size_class]
            if number == NOTHING:
                return np.int64(NOTHING)
        else:
            number = meta.next
            state.active[size_class] = number
        mask = metas[number].freed
        if mask == all_slots(metas[number].last):  # another group is preferred to one that is entirely free
            number = metas[number].next
            state.active[size_class] = number
            mask = metas[number].freed
        if not mask & all_slots(metas[number].active_last):
            if metas[number].next != number:
                number = metas[number].next
                state.active[size_class] = number
            else:
                _activate_more(metas[number])
        mask = _activate(metas[number])
        _decay_bounces(state, size_class)
    metas[number].avail = mask & (mask - 1)
    return np.int64(lowest_slot(mask))


# Bounces: mapping a group soon after one of the same class was unmapped


@inlined
def _bounces_of(size_class):
    """Whether bounces are counted for the class."""
    return BOUNCE_CLASS <= size_class < BOUNCE_CLASS + BOUNCE_CLASSES


@leaf
def step_seq(state):
    """Counts one more mapping or unmapping. The count starts again at 1, and then no unmapping is recent."""
    heap = state.heap[0]
    if heap.seq == 255:
        state.unmapped[:] = 0
        heap.seq = 1
    else:
        heap.seq += 1


@leaf
def _count_bounce(state, size_class):
    if _bounces_of(size_class):
        index, heap = size_class - BOUNCE_CLASS, state.heap[0]
        seq = state.unmapped[index]
        if seq and heap.seq - seq < 10:
            state.bounces[index] = state.bounces[index] + 1 if state.bounces[index] + 1 < RETAINED else BOUNCES_MAX


@leaf
def _decay_bounces(state, size_class):
    if _bounces_of(size_class) and state.bounces[size_class - BOUNCE_CLASS]:
        state.bounces[size_class - BOUNCE_CLASS] -= 1


@leaf
def _is_bouncing(state, size_class):
    return _bounces_of(size_class) and state.bounces[size_class - BOUNCE_CLASS] >= RETAINED


# New groups


@leaf
def _first_count(state, size_class):
    """Returns the number of slots of a new group, before it is known whether it is mapped."""
    usage, size = state.usage[size_class], UNIT * SIZE_CLASSES[size_class]
    if size_class < len(SMALL_COUNTS):
        column = 0
        while column < 2 and 4 * SMALL_COUNTS[size_class, column] > usage:
            column += 1
        count = SMALL_COUNTS[size_class, column]
    else:
        count = MEDIUM_COUNTS[size_class & 3]
        while not count & 1 and 4 * count > usage:
            count >>= 1
        while size * count >= 65536 * UNIT:
            count >>= 1
    if count == 1 and size + UNIT <= PAGE // 2:
        count = np.int64(2)
    return count


@leaf
def _mapped_count(state, size_class, count, is_bouncing):
    """Returns the number of slots of a mapped group: fewer if `count` would be much more than what is in use."""
    usage, size = state.usage[size_class], UNIT * SIZE_CLASSES[size_class]
    if not size_class & 1 and size_class < 32:
        usage += state.usage[size_class + 1]
    if 4 * count > usage and not is_bouncing:
        kind, total = size_class & 3, size * count
        if kind == 1 and total > 8 * PAGE:
            return 2, usage
        if kind == 2 and total > 4 * PAGE:
            return 3, usage
        if kind == 0 and total > 8 * PAGE:
            return 3, usage
        if kind == 0 and total > 2 * PAGE:
            return 5, usage
    return count, usage


@cold
def _map_group(state, stack, number, size_class, request, count):
    """Maps a group; returns its number of slots. With one slot, it may be as large as the request needs."""
    meta, size = state.metas[number], UNIT * SIZE_CLASSES[size_class]
    is_bouncing = _is_bouncing(state, size_class)
    _count_bounce(state, size_class)
    step_seq(state)
    count, usage = _mapped_count(state, size_class, count, is_bouncing)
    needed = (size * count + UNIT + PAGE - 1) & -PAGE
    if not is_bouncing and count <= 7:
        request = (request + OVERHEAD + UNIT + PAGE - 1) & -PAGE
        if request < size + UNIT or (request >= 4 * PAGE and 2 * count > usage):
            count, needed = 1, request
    meta.mem = mmap(stack, needed)
    meta.pages = needed >> PAGE_SHIFT
    meta.host, meta.host_slot = NOTHING, 0
    meta.word = take_words(state, stack, meta.pages)
    touch(stack, meta.mem, meta.mem + UNIT)
    count_heap(stack, needed)
    state.heap[0].mappings += 1
    meta.active_last = min(max((PAGE - UNIT) // size - 1, 0), count - 1)
    return count


@cold
def _nest_group(state, number, host, slot, size_class, count):
    """Puts a group into a slot of another one."""
    meta, metas, size = state.metas[number], state.metas, UNIT * SIZE_CLASSES[size_class]
    room = UNIT * SIZE_CLASSES[metas[host].size_class] - OVERHEAD
    meta.mem = enframe(state, host, slot, room, state.heap[0].mappings)
    meta.pages, meta.host, meta.host_slot = 0, host, slot
    meta.word = metas[host].word + ((meta.mem - metas[host].mem) >> UNIT_SHIFT)
    words, at = state.words, meta.word
    words[at] = words[at] & ~np.int64(255 << 8) | (words[at] >> 8 & 31 | 6 << 5) << 8
    for index in range(count + 1):
        words[meta.word + 1 + (index * size >> UNIT_SHIFT)] &= ~np.int64(255)
    meta.active_last = count - 1


@leaf
def _finish_group(state, number, size_class, count):
    """Makes the activated slots of a new group available, but for the first one, which is taken."""
    meta = state.metas[number]
    state.usage[size_class] += count
    meta.last, meta.size_class = count - 1, size_class
    meta.avail = all_slots(meta.active_last)
    meta.freed = all_slots(meta.last) - meta.avail
    meta.avail -= 1
    queue(state, size_class, number)


@cold
def take_slot(state, stack, size_class, request):
    """Takes a slot of the class, in a new group if need be. Returns its index in the head of the ring of the class.

    A new group may need a slot of a larger class for itself, and that one a new group too: these groups wait.
    """
    waiting, depth = state.waiting, 0
    while True:
        slot = _next_slot(state, size_class)
        if slot >= 0:
            break
        number = take_meta(state, stack)
        size, count = UNIT * SIZE_CLASSES[size_class], _first_count(state, size_class)
        if size * count + UNIT > PAGE // 2:
            count = _map_group(state, stack, number, size_class, request, count)
            _finish_group(state, number, size_class, count)
            slot = np.int64(0)
            break
        waiting[depth, 0], waiting[depth, 1], waiting[depth, 2] = number, size_class, count
        depth += 1
        request = UNIT + count * size - OVERHEAD
        size_class = size_to_class(request)
    while depth:
        depth -= 1
        host, size_class, count = state.active[size_class], waiting[depth, 1], waiting[depth, 2]
        _nest_group(state, waiting[depth, 0], host, slot, size_class, count)
        touch(stack, state.metas[waiting[depth, 0]].mem, state.metas[waiting[depth, 0]].mem + UNIT)
        _finish_group(state, waiting[depth, 0], size_class, count)
        slot = np.int64(0)
    return slot


# Released groups


@leaf
def _is_releasable(state, number):
    """Whether a group without live slots is released."""
    meta = state.metas[number]
    size_class = meta.size_class
    if size_class >= CLASSES or stride_of(meta) < UNIT * SIZE_CLASSES[size_class]:
        return True
    if not meta.pages or meta.next != number or not _is_bouncing(state, size_class):
        return True
    count = meta.last + 1
    return 9 * count <= state.usage[size_class] and count < 20


@cold
def free_slot(state, stack, number, slot):
    """Frees the first or last live slot of a group; the group too, if none is left."""
    metas, address, length = state.metas, np.int64(0), np.int64(0)
    while True:
        meta, own = metas[number], np.int64(1) << slot
        mask, size_class = meta.freed | meta.avail, meta.size_class
        if mask + own != all_slots(meta.last) or not _is_releasable(state, number):
            if not mask and state.active[size_class] != number:
                queue(state, size_class, number)
            meta.freed |= own
            break
        if meta.next != NOTHING:
            was_head = state.active[size_class] == number
            dequeue(state, size_class, number)
            if was_head and state.active[size_class] != NOTHING:
                _activate(metas[state.active[size_class]])
        if size_class < CLASSES:
            state.usage[size_class] -= meta.last + 1
        address = meta.mem
        give_meta_back(state, number)
        if meta.pages:
            step_seq(state)
            if _bounces_of(size_class):
                state.unmapped[size_class - BOUNCE_CLASS] = state.heap[0].seq
            length = meta.pages * PAGE
            if meta.word != NOTHING:
                give_words_back(state, meta.word, meta.pages if size_class < CLASSES else PREFIX_PAGES)
            break
        number, slot = meta.host, meta.host_slot
    if length:
        munmap(stack, address, length)
        count_heap(stack, -length)


@leaf
def end_of_slot(meta, slot):
    """Returns the address behind the bytes of a slot that a block can have."""
    return slot_start(meta, slot) + stride_of(meta) - OVERHEAD
