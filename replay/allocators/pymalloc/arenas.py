"""Arenas: maps and unmaps them, updates arena table and radix tree, and keeps usable arenas sorted by free pools.

This module also declares the records of arenas and pools. The package explains the terms.
"""

import numpy as np

from replay import allocators as lower
from replay.allocators._stack import ARENA_MAPPED, ARENA_UNMAPPED, MARGIN, ask_for_room, log
from replay.allocators.linux import mmap_arena, mmap_huge_pages, munmap, touch
from replay.jit.arrays import record
from replay.jit.compiling import cold, leaf

NONE = -1
NO_LINK = 0xFFFF
"""End of a pool's list of free blocks. A pool has fewer blocks than this."""
NO_CLASS = 0xFFFF
INITIAL_ARENA_OBJECTS = 16
"""Initial number of entries of the arena table (obmalloc.c)."""


GEOMETRY = record(
    "header", "pool_size", "arena_size", "pools_per_arena", "keep_last", "radix", "huge", "bottom_shift", "top_shift",
    "middle_bytes", "bottom_bytes", "word_size",
    "usable", "unused", "arenas", "arena_table", "arena_table_place", "nodes",
)  # fmt: skip
"""Settings, then variables: heads of the lists of usable and of unused arenas (usable_arenas, unused_arena_objects),
number of arena records ever used, entries (maxarenas) and place in libc of the arena table, number of tree nodes."""

POOL = record(
    list=np.uint16, carved=np.uint16, live=np.uint16, capacity=np.uint16, index=np.uint16, ready=np.uint16,
    size_bytes=np.int32, next=np.int32, prev=np.int32, touched=np.int32, arena=np.int32,
)  # fmt: skip
"""A pool: 32 bytes, two to a cache line.

    list         first free block, or NO_LINK (freeblock)
    carved       number of blocks carved so far (nextoffset)
    live         number of live blocks (ref.count)
    index        size class, NO_CLASS before the first use (szidx); `size_bytes`: bytes of its blocks
    ready        blocks can be carved up to this number before the pool is full or its next page is touched
    next, prev   in the class's used list; `next` also in its arena's free list
    touched      offset of the end of its resident part
"""

ARENA = record("address", "first_pool", "carved", "free_list", "free", "pools", "next", "prev")
"""`first_pool`: address of the first pool; `carved`: number of pools carved so far (pool_address); `free_list`: freed
pools (freepools); `free`: number of pools free or not carved (nfreepools); `pools`: number of pools (ntotalpools)."""

NODE = record("key", "address")


@cold
def _grow_arena_table(state, stack):
    """Allocates the table of arena objects from libc, or doubles it."""
    geometry = state.geometry[0]
    entry_bytes = 48 if geometry.word_size == 8 else 28  # sizeof(struct arena_object)
    old_bytes = geometry.arena_table * entry_bytes
    geometry.arena_table = 2 * geometry.arena_table if geometry.arena_table else INITIAL_ARENA_OBJECTS
    table_bytes = geometry.arena_table * entry_bytes
    if old_bytes:
        place = lower.realloc(stack.libc, stack, geometry.arena_table_place, table_bytes)
    else:
        place = lower.malloc(stack.libc, stack, table_bytes)
    geometry.arena_table_place = place
    begin = lower.address(stack.libc, stack, place)
    touch(stack, begin, begin + table_bytes)


@cold
def _write_node(state, stack, key, node_bytes, offset):
    """Touches an entry of the radix tree's node with this key. Allocates the node if it is missing."""
    geometry, nodes = state.geometry[0], state.nodes
    index = 0
    while index < geometry.nodes and nodes[index].key != key:
        index += 1
    if index == geometry.nodes:
        place = lower.calloc(stack.libc, stack, node_bytes)
        nodes[index].key = key
        nodes[index].address = lower.address(stack.libc, stack, place)
        geometry.nodes += 1
        if geometry.nodes + MARGIN > nodes.shape[0]:
            ask_for_room(stack)
    begin = nodes[index].address + offset
    touch(stack, begin, begin + 8)


@leaf
def _cover(state, stack, address):
    """Adds `address` to the radix tree. Keys of the two allocated levels differ in their lowest bit."""
    geometry = state.geometry[0]
    middle, bottom = address >> geometry.bottom_shift, address // geometry.arena_size
    offset = 8 * middle & (geometry.middle_bytes - 1)
    _write_node(state, stack, (address >> geometry.top_shift) << 1, geometry.middle_bytes, offset)
    offset = 8 * bottom & (geometry.bottom_bytes - 1)
    _write_node(state, stack, middle << 1 | 1, geometry.bottom_bytes, offset)


@cold
def _new_arena(state, stack):
    """Maps an arena, which becomes the only usable one."""
    geometry, tally = state.geometry[0], stack.tally[0]
    index = geometry.unused
    if index >= 0:
        geometry.unused = state.arenas[index].next
    else:
        index = geometry.arenas
        if index == geometry.arena_table:
            _grow_arena_table(state, stack)
        geometry.arenas += 1
        if geometry.arenas + MARGIN > state.arenas.shape[0]:
            ask_for_room(stack)
    address = mmap_huge_pages(stack, geometry.arena_size) if geometry.huge else mmap_arena(stack, geometry.arena_size)
    log(stack, ARENA_MAPPED, address, geometry.arena_size)
    if geometry.huge:
        touch(stack, address, address + geometry.arena_size)
    if geometry.radix:
        _cover(state, stack, address)
        if address & (geometry.arena_size - 1):
            _cover(state, stack, address + geometry.arena_size)
    arena = state.arenas[index]
    arena.address = address
    arena.first_pool = (address + geometry.pool_size - 1) & -geometry.pool_size
    arena.pools = geometry.pools_per_arena - (1 if address & (geometry.pool_size - 1) else 0)
    arena.free = arena.pools
    arena.carved = 0
    arena.free_list = arena.next = arena.prev = NONE
    geometry.usable = index
    state.last_with[arena.free] = index
    _count_arena(state, stack)
    tally.pools_free += arena.pools


@leaf
def _count_arena(state, stack):
    geometry, tally = state.geometry[0], stack.tally[0]
    tally.arenas_mapped += 1
    tally.arenas += 1
    tally.arenas_peak = max(tally.arenas_peak, tally.arenas)
    tally.arena_bytes += geometry.arena_size
    tally.arena_bytes_peak = max(tally.arena_bytes_peak, tally.arena_bytes)


@leaf
def take_pool(state, stack):
    """Takes a free pool of the fullest usable arena: the one freed last, or a new one, whose class is NO_CLASS."""
    geometry, tally = state.geometry[0], stack.tally[0]
    if geometry.usable == NONE:
        _new_arena(state, stack)
    index = geometry.usable
    arena = state.arenas[index]
    # The arena is the first one with its count. It may also be the last one; with one pool less, it is the last one.
    if state.last_with[arena.free] == index:
        state.last_with[arena.free] = NONE
    if arena.free > 1:
        state.last_with[arena.free - 1] = index
    number = arena.free_list
    if number != NONE:
        arena.free_list = state.pools[number].next
    else:
        number = index * geometry.pools_per_arena + arena.carved
        arena.carved += 1
        pool = state.pools[number]
        pool.index, pool.arena, pool.touched = NO_CLASS, index, 0
    arena.free -= 1
    if arena.free == 0:
        geometry.usable = arena.next
        if arena.next != NONE:
            state.arenas[arena.next].prev = NONE
    tally.pools_free -= 1
    tally.pools_used += 1
    tally.pool_bytes += geometry.pool_size
    tally.pool_bytes_peak = max(tally.pool_bytes_peak, tally.pool_bytes)
    return number


@leaf
def link_arena_first(state, index):
    geometry, arenas = state.geometry[0], state.arenas
    arenas[index].prev = NONE
    arenas[index].next = geometry.usable
    if geometry.usable != NONE:
        arenas[geometry.usable].prev = index
    geometry.usable = index


@leaf
def link_arena_behind(state, index, before):
    arena, previous = state.arenas[index], state.arenas[before]
    arena.prev = before
    arena.next = previous.next
    if previous.next != NONE:
        state.arenas[previous.next].prev = index
    previous.next = index


@leaf
def unlink_arena(state, index):
    geometry, arena = state.geometry[0], state.arenas[index]
    if arena.prev == NONE:
        geometry.usable = arena.next
    else:
        state.arenas[arena.prev].next = arena.next
    if arena.next != NONE:
        state.arenas[arena.next].prev = arena.prev


@cold
def release_arena(state, stack, index):
    """Unmaps an arena. Its record is the next to be reused."""
    geometry, tally, arena = state.geometry[0], stack.tally[0], state.arenas[index]
    log(stack, ARENA_UNMAPPED, arena.address, geometry.arena_size)
    munmap(stack, arena.address, geometry.arena_size)
    arena.address = 0
    arena.next = geometry.unused
    geometry.unused = index
    tally.arenas_unmapped += 1
    tally.arenas -= 1
    tally.arena_bytes -= geometry.arena_size
    tally.pools_free -= arena.pools


@leaf
def open_window(state, stack, window):
    """Adds an arena at address `window` whose pools are full of unknown blocks. Returns its number."""
    geometry, tally, index = state.geometry[0], stack.tally[0], state.geometry[0].arenas
    geometry.arenas += 1
    if geometry.arenas + MARGIN > state.arenas.shape[0]:
        ask_for_room(stack)
    arena = state.arenas[index]
    arena.address = arena.first_pool = window
    arena.pools = arena.carved = geometry.pools_per_arena
    arena.free = 0
    arena.free_list = arena.next = arena.prev = NONE
    for number in range(index * geometry.pools_per_arena, (index + 1) * geometry.pools_per_arena):
        pool = state.pools[number]
        pool.index, pool.arena, pool.touched, pool.list = NO_CLASS, index, geometry.pool_size, NO_LINK
    _count_arena(state, stack)
    tally.pools_full += arena.pools
    tally.pool_bytes += geometry.pool_size * arena.pools
    return index
