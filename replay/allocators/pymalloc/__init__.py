"""CPython's allocator for small objects. Every block is at the address at which the real pymalloc places it.

Follows `Objects/obmalloc.c`: 2.7, and 3.6 to 3.15 with the GIL. Differences between versions and builds are keys of
`Config`.

    block   the memory for one request: its size is rounded up to a multiple of `alignment`, the *size class*
    pool    `pool_size` bytes, aligned to `pool_size`: a header of `pool_header` bytes, then blocks of one size class.
            Freed blocks form a list, last freed first. Blocks never allocated are *carved*: added to the list one at a
            time, one in advance. A pool is *used* (some blocks are live), *full* (all are) or *free* (none is)
    used    by class, the list of used pools; blocks come from the first one. A full pool leaves the list, and enters it
            at the front when one of its blocks is freed
    arena   `arena_size` bytes from mmap, aligned to pages only: pools start at the first multiple of `pool_size`; if
            that is not the start, the arena has one pool less. Pools are carved, too. Free pools form a list, last
            freed first. They keep their class: if a pool is reused for it, its list of blocks is kept
    usable  the list of arenas with a free pool, fullest first; pools come from the first one. An arena that gets its
            first free pool enters at the front. One that gets another moves after the last arena that has as many free
            pools as it had before
    release an arena whose pools are all free is unmapped: always (`immediate`, up to 3.8), or unless it is the last one
            in the list of usable arenas (`keep-last`, from 3.9)
    tree    from 3.10, a radix tree finds arenas by address; its nodes are allocated by libc and never freed. Before,
            and without it, a pool's header has an index into the arena table, which starts with 16 entries and is
            doubled with raw realloc

Invariants (`check`):
    used pool: 0 < live < capacity; full pool: live == capacity == carved, and its list is empty
    live + length of the list == carved, for each pool that was ever used
    pools_used + pools_full + free pools == pools of all mapped arenas
    usable arenas are sorted by ascending number of free pools; all arenas with a free pool are among them
    pool_bytes == pool_size * (pools_used + pools_full); arena_bytes == arena_size * arenas

Code that runs for each event indexes arrays by np.uint64, because numba tests signed indexes for being negative.

Pages: allocation of a block touches all of it, because the program writes to it, and the link in the block carved in
advance. Both are in ascending order within a pool, so the resident part of a pool starts at its start and is
contiguous; `touched` is its end.
"""

from typing import NamedTuple

import numpy as np

from replay import allocators as lower
from replay.allocators._stack import MARGIN, of_libc
from replay.allocators.linux import touch
from replay.allocators.pymalloc.arenas import (
    ARENA,
    GEOMETRY,
    NO_CLASS,
    NO_LINK,
    NODE,
    NONE,
    POOL,
    link_arena_behind,
    link_arena_first,
    open_window,
    release_arena,
    take_pool,
    unlink_arena,
)
from replay.allocators.pymalloc.settings import Config
from replay.allocators.pymalloc.spans import kept_arenas, span_changes, spans
from replay.allocators.pymalloc.views import check, observe
from replay.jit.arrays import extend
from replay.jit.compiling import by_reference, cold, inlined, leaf
from replay.jit.cpu_intrinsics import prefetch

__all__ = ["Config", "State", "check", "kept_arenas", "new_state", "observe", "span_changes", "spans"]

ROLES = ("small",)
VERIFIED = "pymalloc's blocks, pools and arenas"
LINKS_AT_FIRST = (2 << 20) - 1
"""Initial size of `links`. From 4 MiB on, NumPy requests huge pages; clearing one takes longer than a short
simulation."""


@by_reference
class State(NamedTuple):
    """`used`: first used pool by class; `sizes`: bytes by class; `pools[arena * pools_per_arena + i]`; `links[place]`:
    next block in the list of its pool, where place is pool << pool_shift | block; `last_with[n]`: the last usable arena
    with n free pools (nfp2lasta); `nodes`: nodes of the radix tree."""

    alignment_shift: int
    pool_shift: int
    geometry: np.ndarray
    used: np.ndarray
    sizes: np.ndarray
    pools: np.ndarray
    links: np.ndarray
    arenas: np.ndarray
    last_with: np.ndarray
    nodes: np.ndarray


def _lay_out_tree(geometry: np.record, config: Config) -> None:
    """Computes shifts and node sizes of the radix tree, in place. Three levels share the address bits above an arena;
    the lowest gets the remainder."""
    arena_bits = config.arena_size.bit_length() - 1
    interior = (config.address_bits - arena_bits + 2) // 3
    bottom = config.address_bits - arena_bits - 2 * interior
    geometry.bottom_shift = arena_bits + bottom
    geometry.top_shift = arena_bits + bottom + interior
    geometry.middle_bytes = 8 << interior
    geometry.bottom_bytes = 8 << bottom  # two int32 an arena


def new_state(config: Config) -> State:
    """Returns the state before the first allocation, without arenas and without arena table."""
    pool_shift = (config.pool_size // config.alignment).bit_length() - 1
    pools_per_arena = config.arena_size // config.pool_size
    classes = config.small_threshold // config.alignment
    room = max(MARGIN + 1, LINKS_AT_FIRST // (pools_per_arena << pool_shift))
    state = State(
        alignment_shift=config.alignment.bit_length() - 1,
        pool_shift=pool_shift,
        geometry=np.zeros(1, GEOMETRY),
        used=np.full(classes, NONE, np.int64),
        sizes=np.arange(1, classes + 1) * config.alignment,
        pools=np.zeros(room * pools_per_arena, POOL),
        links=np.zeros(room * pools_per_arena << pool_shift, np.uint16),
        arenas=np.zeros(room, ARENA),
        last_with=np.full(pools_per_arena + 1, NONE, np.int64),
        nodes=np.zeros(2 * MARGIN, NODE),
    )
    geometry = state.geometry[0]
    geometry.header = config.pool_overhead
    geometry.pool_size, geometry.arena_size = config.pool_size, config.arena_size
    geometry.pools_per_arena = pools_per_arena
    geometry.keep_last = config.release == "keep-last"
    geometry.huge, geometry.word_size = config.huge_pages, config.word_size
    # With pointers of 32 bits, the root is the only node, and static.
    geometry.radix = config.radix_tree and config.word_size == 8
    _lay_out_tree(geometry, config)
    geometry.usable = geometry.unused = NONE
    return state


@cold
def _touch_to(state, stack, number, end):
    """Touches a pool up to offset `end`."""
    geometry, pool = state.geometry[0], state.pools[number]
    end = min(end, geometry.pool_size)
    if end > pool.touched:
        begin = _pool_address(state, number)
        touch(stack, begin + pool.touched, begin + end)
        page = stack.linux.space[0].page_size
        pool.touched = ((begin + end + page - 1) & -page) - begin


@leaf
def _pool_address(state, number):
    geometry, index = state.geometry[0], np.int64(state.pools[number].arena)
    return state.arenas[index].first_pool + (number - index * geometry.pools_per_arena) * geometry.pool_size


@inlined
def _link_in_front(state, number, index):
    """Inserts a pool at the front of the used list of a class."""
    pools, head = state.pools, state.used[np.uint64(index)]
    pools[np.uint64(number)].next = head
    pools[np.uint64(number)].prev = NONE
    if head != NONE:
        pools[np.uint64(head)].prev = number
    state.used[np.uint64(index)] = number


@cold
def _open_pool(state, stack, index):
    """Takes a free pool for size class `index`, whose used list is empty; returns the place of its first block."""
    geometry = state.geometry[0]
    number = take_pool(state, stack)
    pool = state.pools[number]
    _link_in_front(state, number, index)
    if pool.index == index:
        block = np.int64(pool.list)
        pool.live = 1
        place = number << state.pool_shift | block
        pool.list = state.links[place]
        return place
    size = state.sizes[index]
    pool.index, pool.size_bytes = index, size
    pool.capacity = (geometry.pool_size - geometry.header) // size
    pool.live = 1
    pool.carved = 2
    pool.list = 1
    place = number << state.pool_shift
    state.links[place + 1] = NO_LINK
    stack.tally[0].pools_made += 1
    _touch_carved(state, stack, number)
    return place


@leaf
def _touch_carved(state, stack, number):
    """Touches the link of the block carved last, and sets `ready` to the blocks whose links are resident."""
    geometry, pool = state.geometry[0], state.pools[number]
    first_link_end, size = geometry.header + geometry.word_size, np.int64(pool.size_bytes)
    _touch_to(state, stack, number, first_link_end + (np.int64(pool.carved) - 1) * size)
    pool.ready = min(np.int64(pool.capacity), 1 + (pool.touched - first_link_end) // size)


@cold
def _carve(state, stack, number):
    """Carves a block in the next page, or closes the pool if all blocks are carved."""
    pool = state.pools[number]
    carved = pool.carved
    if carved == pool.capacity:
        _close_pool(state, stack, number)
        return
    state.links[(number << state.pool_shift) + carved] = NO_LINK
    pool.list = carved
    pool.carved = carved + 1
    _touch_carved(state, stack, number)


@leaf
def _close_pool(state, stack, number):
    """Removes a full pool, which is the first one, from the used list of its class."""
    tally, pool = stack.tally[0], state.pools[number]
    end = state.geometry[0].header + np.int64(pool.carved) * pool.size_bytes
    if end > pool.touched:
        _touch_to(state, stack, number, end)
    following = np.int64(pool.next)
    state.used[np.uint64(pool.index)] = following
    if following != NONE:
        state.pools[np.uint64(following)].prev = NONE
    tally.pools_used -= 1
    tally.pools_full += 1


@cold
def _malloc_from_libc(stack, size):
    """Allocates from libc and returns the complement of its place."""
    return of_libc(lower.malloc(stack.libc, stack, max(size, 1)))


@inlined
def malloc(state, stack, size):
    """Allocates from the first used pool of the class, or from a free pool; from libc if pymalloc does not serve the
    size."""
    # For size 0, the index is the highest uint64.
    index = np.uint64(size - 1) >> np.uint64(state.alignment_shift)
    if index >= np.uint64(state.used.shape[0]):
        return _malloc_from_libc(stack, size)
    number = state.used[index]
    if number == NONE:
        return _open_pool(state, stack, np.int64(index))
    pool = state.pools[np.uint64(number)]
    first = number << state.pool_shift
    place = first + np.int64(pool.list)
    pool.live += 1
    following = state.links[np.uint64(place)]
    pool.list = following
    if following == NO_LINK:
        # The list is empty now: carve the next block in advance, or the pool is full.
        carved = np.int64(pool.carved)
        if carved < pool.ready:
            state.links[np.uint64(first + carved)] = NO_LINK
            pool.list = carved
            pool.carved = carved + 1
        else:
            _carve(state, stack, number)
    return place


@leaf
def calloc(state, stack, size):
    """Allocates as `malloc` does. If pymalloc does not serve the size, calls calloc of libc."""
    if np.uint64(size - 1) >> np.uint64(state.alignment_shift) >= np.uint64(state.used.shape[0]):
        return of_libc(lower.calloc(stack.libc, stack, max(size, 1)))
    return malloc(state, stack, size)


@inlined
def free(state, stack, place):
    """Puts a block at the front of its pool's list. A full pool becomes used; a pool without live blocks becomes
    free."""
    number = place >> state.pool_shift
    pool = state.pools[np.uint64(number)]
    following = pool.list
    state.links[np.uint64(place)] = following
    pool.list = place - (number << state.pool_shift)
    pool.live -= 1  # a pool has at least two blocks, so a full pool does not become free
    if pool.live == 0:
        _free_pool(state, stack, number)
    elif following == NO_LINK:
        tally = stack.tally[0]
        tally.pools_full -= 1
        tally.pools_used += 1
        _link_in_front(state, number, pool.index)


@cold
def _free_pool(state, stack, number):
    """Moves a pool from its used list to its arena's list of free pools. Moves the arena in the usable list, or unmaps
    it."""
    geometry, tally = state.geometry[0], stack.tally[0]
    pools, pool = state.pools, state.pools[number]
    if pool.prev == NONE:
        state.used[pool.index] = pool.next
    else:
        pools[pool.prev].next = pool.next
    if pool.next != NONE:
        pools[pool.next].prev = pool.prev
    index = np.int64(pool.arena)
    arena = state.arenas[index]
    pool.next = arena.free_list
    arena.free_list = number
    tally.pools_used -= 1
    tally.pools_free += 1
    tally.pool_bytes -= geometry.pool_size
    free_before = arena.free
    arena.free = free_before + 1
    last = state.last_with[free_before]  # the last arena with this number of free pools; it may be this one
    if last == index:
        before = arena.prev
        state.last_with[free_before] = before if before != NONE and state.arenas[before].free == free_before else NONE
    if arena.free == arena.pools and (arena.next != NONE or not geometry.keep_last):
        unlink_arena(state, index)
        release_arena(state, stack, index)
        return
    if free_before == 0:
        link_arena_first(state, index)
    elif last != index:
        unlink_arena(state, index)
        link_arena_behind(state, index, last)
    if state.last_with[arena.free] == NONE:
        state.last_with[arena.free] = index


@cold
def realloc(state, stack, place, size):
    """Keeps a block that shrinks by less than a quarter, else allocates, copies and frees."""
    old_size = block_size(state, stack, place)
    if size <= old_size and 4 * size > 3 * old_size:
        return place
    new_place = malloc(state, stack, size)
    free(state, stack, place)
    return new_place


@cold
def adopt(state, stack, address, size):
    """Frees a block of `size` bytes that was allocated before the recording, in a pool that was full then.

    Such pools are grouped by windows of an arena's size. Each window is treated as an arena that was full.
    """
    geometry = state.geometry[0]
    window = address & -geometry.arena_size
    index = np.int64(0)
    while index < geometry.arenas and state.arenas[index].address != window:
        index += 1
    if index == geometry.arenas:
        open_window(state, stack, window)
    number = index * geometry.pools_per_arena + (address - window) // geometry.pool_size
    pool = state.pools[number]
    if pool.index == NO_CLASS:
        pool.index, pool.size_bytes = (size - 1) >> state.alignment_shift, size
        pool.capacity = pool.carved = pool.live = (geometry.pool_size - geometry.header) // size
    block = ((address & (geometry.pool_size - 1)) - geometry.header) // pool.size_bytes
    free(state, stack, number << state.pool_shift | block)


@inlined
def expect(state, place):
    """Prefetches the pool and the link of a block that will be freed."""
    prefetch(state.pools, place >> state.pool_shift)
    prefetch(state.links, place)


@inlined
def block_size(state, stack, place):
    """Returns the bytes of a block: its size class."""
    return np.int64(state.pools[np.uint64(place >> state.pool_shift)].size_bytes)


@inlined
def made_size(state, stack, place, size):
    """Returns the bytes of a block of `size` requested bytes, without reading its pool."""
    shift = np.uint64(state.alignment_shift)
    return np.int64(((np.uint64(size - 1) >> shift) + np.uint64(1)) << shift)


@leaf
def address(state, stack, place):
    """Returns the address of a block."""
    number = place >> state.pool_shift
    block = place - (number << state.pool_shift)
    return _pool_address(state, number) + state.geometry[0].header + block * state.pools[number].size_bytes


def grow(state: State) -> State:
    """Returns the state with room for four times the arenas, and twice the tree nodes."""
    geometry = state.geometry[0]
    room = 4 * max(int(geometry.arenas), MARGIN)
    pools, used = room * int(geometry.pools_per_arena), int(geometry.arenas * geometry.pools_per_arena)
    return state._replace(
        pools=extend(state.pools, pools, used),
        links=extend(state.links, pools << state.pool_shift, used << state.pool_shift),
        arenas=extend(state.arenas, room),
        nodes=extend(state.nodes, 2 * max(int(geometry.nodes), MARGIN)),
    )
