"""musl's malloc ("mallocng"). Every block is at the address where the real malloc places it.

Follows `src/malloc/mallocng` of musl 1.2.3 to 1.2.6 on x86-64. `memory` explains the terms:

    memory    size classes, groups, slots, and the headers of slots
    groups    where slots come from, and when a group is released
    spans     what is mapped

A place is the index of a record of BLOCK. All threads share one heap, and no thread has a cache.

What musl's dynamic loader does with malloc before the program starts is not simulated: it gives the unused ends of
the pages of libraries to malloc (they are used before anything is mapped), and allocates for itself. Where a slot was
used by the program before a nested group, its offsets depend on bytes that the program wrote: then a block may be at
another multiple of 16 in the same slot. The model takes them for unwritten.

Invariants (`check`):
    avail and freed slots of a group are disjoint, and all other slots are live blocks or host nested groups
    a group is in the ring of its class if it has avail or freed slots
    usage of a class == sum of the slots of its groups
    heap_bytes == bytes of mappings and of pages of metas
"""

from typing import NamedTuple

import numpy as np

from replay.allocators._stack import give_record_back, take_record
from replay.allocators.linux import free_lazily, mmap, mremap, touch
from replay.allocators.musl.groups import (
    count_heap,
    end_of_slot,
    free_slot,
    step_seq,
    take_meta,
    take_slot,
)
from replay.allocators.musl.memory import (
    BLOCK,
    BOUNCE_CLASSES,
    CLASSES,
    GROUPS_AT_ONCE,
    HEAP,
    MAPPED,
    META,
    MMAP_THRESHOLD,
    NOTHING,
    OVERHEAD,
    PAGE,
    PAGE_SHIFT,
    PAGE_WORDS,
    PAGES_MAX,
    UNIT,
    all_slots,
    clear_words,
    copy_words,
    enframe,
    lowest_slot,
    mark_aligned,
    mark_freed,
    set_end,
    size_to_class,
    slot_start,
    stride_of,
)
from replay.allocators.musl.settings import LAZY_VERSIONS, Config
from replay.allocators.musl.spans import check, spans
from replay.jit.arrays import extend
from replay.jit.compiling import by_reference, cold, inlined, leaf
from replay.jit.cpu_intrinsics import prefetch

__all__ = ["Config", "State", "check", "new_state", "spans"]

ROLES = ("libc",)
VERIFIED = "musl's blocks and system calls"
FREE_MEMORY = "free slots and tables"
NESTED_CLASSES_MAX = 16
"""More groups than can be nested in each other."""


@by_reference
class State(NamedTuple):
    """One HEAP record; META records by number, BLOCK records by place; by class, the head of its ring and the slots of
    its groups; by class from BOUNCE_CLASS on, the `seq` of its last unmapping and its bounces; words, and ranges of
    unused words; groups that wait for a slot."""

    heap: np.ndarray
    metas: np.ndarray
    blocks: np.ndarray
    active: np.ndarray
    usage: np.ndarray
    unmapped: np.ndarray
    bounces: np.ndarray
    words: np.ndarray
    ranges: np.ndarray
    waiting: np.ndarray


def new_state(config: Config) -> State:
    """Returns the state before the first allocation."""
    state = State(
        heap=np.zeros(1, HEAP),
        metas=np.zeros(1024, META),
        blocks=np.zeros(1 << 14, BLOCK),
        active=np.full(CLASSES, NOTHING, np.int64),
        usage=np.zeros(CLASSES, np.int64),
        unmapped=np.zeros(BOUNCE_CLASSES, np.int64),
        bounces=np.zeros(BOUNCE_CLASSES, np.int64),
        words=np.zeros(4 * GROUPS_AT_ONCE * PAGES_MAX * PAGE_WORDS, np.uint32),
        ranges=np.zeros(PAGES_MAX, np.int64),
        waiting=np.zeros((NESTED_CLASSES_MAX, 3), np.int64),
    )
    heap = state.heap[0]
    heap.unused = heap.unused_meta = NOTHING
    heap.lazy = config.version in LAZY_VERSIONS
    return state


@leaf
def _class_for(state, size):
    """Returns the class of a new block: the next larger one while a class has no groups and few slots are in use."""
    size_class = size_to_class(size)
    if state.active[size_class] >= 0 or size_class & 1 or not 4 <= size_class < 32 or size_class == 6:
        return size_class
    if state.usage[size_class]:
        return size_class
    usage, number = state.usage[size_class | 1], state.active[size_class | 1]
    if number < 0 or not (state.metas[number].avail | state.metas[number].freed):
        usage += 3
    return size_class | 1 if usage <= 12 else size_class


@cold
def _map_block(state, stack, place, size):
    """Allocates a block as a separate mapping."""
    heap, block = state.heap[0], state.blocks[place]
    address = mmap(stack, size + OVERHEAD + UNIT)
    step_seq(state)
    number = take_meta(state, stack)
    meta = state.metas[number]
    meta.mem, meta.last, meta.size_class = address, 0, MAPPED
    meta.pages = (size + OVERHEAD + UNIT + PAGE - 1) >> PAGE_SHIFT
    meta.host, meta.word, meta.active_last = NOTHING, NOTHING, 0
    heap.mappings += 1
    count_heap(stack, meta.pages * PAGE)
    block.address = enframe(state, number, 0, size, heap.mappings)
    block.meta, block.slot = number, 0
    touch(stack, address, address + UNIT)


@leaf
def malloc(state, stack, size):
    """Takes the lowest available slot of the group at the head of the ring of the class."""
    place = take_record(stack, state.heap[0], state.blocks)
    block = state.blocks[place]
    if size >= MMAP_THRESHOLD:
        _map_block(state, stack, place, size)
    else:
        size_class = _class_for(state, size)
        number = state.active[size_class]
        mask = state.metas[number].avail if number >= 0 else np.int64(0)
        if mask:
            slot = np.int64(lowest_slot(mask))
            state.metas[number].avail = mask & (mask - 1)
        else:
            slot = take_slot(state, stack, size_class, size)
            number = state.active[size_class]
        block.address = enframe(state, number, slot, size, state.heap[0].mappings)
        block.meta, block.slot = number, slot
    block.size_bytes = size
    block.stride = stride_of(state.metas[block.meta])
    _touch_ends(state, stack, block)
    return place


@leaf
def _touch_ends(state, stack, block):
    """malloc writes before the block, behind it, and at the end of its slot."""
    end = end_of_slot(state.metas[block.meta], block.slot)
    if block.stride <= PAGE:
        touch(stack, block.address - 2 * OVERHEAD, end)
        return
    touch(stack, block.address - 2 * OVERHEAD, block.address)
    behind = block.address + block.size_bytes
    if behind < end:
        touch(stack, behind, behind + 1)
        touch(stack, max(behind, end - 2 * OVERHEAD), end)


@leaf
def calloc(state, stack, size):
    """Malloc; clears the block, which matters for what is left of headers in it."""
    place = malloc(state, stack, size)
    block = state.blocks[place]
    clear_words(state, state.metas[block.meta], block.address, size)
    return place


@leaf
def memalign(state, stack, alignment, size):
    """Allocates at the first multiple of `alignment` in a slot that has room for it."""
    alignment = max(alignment, UNIT)
    place = malloc(state, stack, size + alignment - UNIT)
    block = state.blocks[place]
    meta, distance = state.metas[block.meta], -block.address & (alignment - 1)
    block.address += distance
    block.size_bytes = size
    if distance:
        mark_aligned(state, meta, block.slot, block.address, size)
    else:
        set_end(state, meta, block.slot, block.address, size)
    _touch_ends(state, stack, block)
    return place


@cold
def _release_pages(state, stack, block):
    """Releases the whole pages of a slot lazily, if it has two pages or more."""
    meta = state.metas[block.meta]
    start = slot_start(meta, block.slot)
    end = start + stride_of(meta) - OVERHEAD
    if ((start - 1) ^ end) >= 2 * PAGE and meta.last:
        base = (start + PAGE - 1) & -PAGE
        length = (end - base) & -PAGE
        if length > 0:
            free_lazily(stack, base, length)


@leaf
def free(state, stack, place):
    """Marks the slot as freed. The first and the last slot of a group may change its ring, or release it."""
    block = state.blocks[place]
    meta = state.metas[block.meta]
    mark_freed(state, meta, block.address)
    if state.heap[0].lazy and block.stride >= PAGE:
        _release_pages(state, stack, block)
    own = np.int64(1) << block.slot
    if not meta.freed or (meta.freed | meta.avail) + own == all_slots(meta.last):
        free_slot(state, stack, np.int64(block.meta), np.int64(block.slot))
    else:
        meta.freed += own
    block.address = 0
    give_record_back(state.heap[0], state.blocks, place)


@leaf
def realloc(state, stack, place, size):
    """Keeps the slot if its class is the one for `size` or the next; mappings are resized with mremap."""
    block = state.blocks[place]
    meta = state.metas[block.meta]
    room = min(end_of_slot(meta, block.slot) - block.address, MMAP_THRESHOLD - 1)
    if size <= room and size_to_class(size) + 1 >= meta.size_class:
        block.size_bytes = size
        set_end(state, meta, block.slot, block.address, size)
        _touch_ends(state, stack, block)
        return place
    if meta.size_class == MAPPED and size >= MMAP_THRESHOLD:
        _resize_mapping(state, stack, place, size)
        return place
    new_place = malloc(state, stack, size)
    new_block = state.blocks[new_place]
    copy_words(
        state,
        stack,
        meta,
        block.address,
        state.metas[new_block.meta],
        new_block.address,
        min(size, block.size_bytes),
    )
    free(state, stack, place)
    return new_place


@cold
def _resize_mapping(state, stack, place, size):
    block = state.blocks[place]
    meta = state.metas[block.meta]
    distance = block.address - meta.mem
    length = (size + distance + OVERHEAD + PAGE - 1) & -PAGE
    if meta.pages * PAGE != length:
        count_heap(stack, length - meta.pages * PAGE)
        meta.mem = mremap(stack, meta.mem, meta.pages * PAGE, length)
        meta.pages = length >> PAGE_SHIFT
    block.address, block.size_bytes, block.stride = meta.mem + distance, size, stride_of(meta)
    _touch_ends(state, stack, block)


@inlined
def block_size(state, stack, place):
    """Returns the bytes of the block's slot, the next header included."""
    return state.blocks[np.uint64(place)].stride


@inlined
def address(state, stack, place):
    """Returns the address of a block."""
    return state.blocks[np.uint64(place)].address


@leaf
def fill(state, stack, place, size):
    """The program writes to a block. malloc has touched every page of a small slot."""
    block = state.blocks[place]
    if block.stride > PAGE and size > 0:
        touch(stack, block.address, block.address + size)


@inlined
def expect(state, place):
    """The block will soon be freed."""
    prefetch(state.blocks, np.uint64(place))


def grow(state: State) -> State:
    """Returns the state with room for twice the groups and blocks, and for more words."""
    heap = state.heap[0]
    words = int(heap.words_used) + 2 * GROUPS_AT_ONCE * PAGES_MAX * PAGE_WORDS
    return state._replace(
        metas=extend(state.metas, 2 * max(int(heap.metas), 512)),
        blocks=extend(state.blocks, 2 * max(int(heap.used), 8192)),
        words=extend(state.words, 2 * words, int(heap.words_used)) if words > state.words.shape[0] else state.words,
    )
