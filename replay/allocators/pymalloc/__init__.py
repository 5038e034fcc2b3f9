"""CPython's allocator for small objects, with every block at the address that the real one gives it.

Follows `Objects/obmalloc.c`: 2.7, and 3.6 to 3.15 with the GIL. What differs between versions and builds is a key of
`Config`.

    block   what one request gets: its size rounded up to a multiple of `alignment`, the *size class*
    pool    `pool_size` bytes, aligned to that, cut into blocks of one class behind a header of `pool_header` bytes.
            Freed blocks form a list, last freed first; blocks never handed out are *carved* one at a time, one ahead
            of need. A pool is *used* (some blocks live, some not), *full*, or *free* (none live)
    used    per class, the list of used pools; the first one serves. A full pool leaves it, and enters at the front
            when a block of it is freed
    arena   `arena_size` bytes from mmap, page-aligned only: the pools start at the first multiple of `pool_size`, and
            one fewer fits if that is not the start. Pools are carved too; free ones wait last freed first, and keep
            their class: taken again for it, a pool goes on with its old list
    usable  the list of arenas that have a free pool, fullest first; the first one serves. An arena that gains its
            first free pool enters at the front; one that gains another moves behind the last arena with as many free
            pools as it had
    release an arena whose pools are all free goes back to the kernel: always (`immediate`, to 3.8), or unless it is
            the last of the usable ones (`keep-last`, from 3.9)
    tree    from 3.10 a radix tree finds arenas by address; its nodes come from libc and are never freed. Before, and
            without it, the pool's header points into the arena table, which doubles from 16 by raw realloc

Invariants (`check`):
    a used pool: 0 < live < capacity; a full one: live == capacity == carved, nothing on its list
    live + free list == carved, for every pool that was ever made
    pools_used + pools_full + free ones == pools of all mapped arenas
    usable arenas are sorted by rising number of free pools, and hold all arenas with at least one
    pool_bytes == pool_size * (pools_used + pools_full); arena_bytes == arena_size * arenas

On the path of every event arrays are indexed by np.uint64, because numba looks at signed ones for being negative.

Pages: handing a block out touches it to its last byte (its user fills it) and the link in the block carved ahead.
Both rise within a pool, so a pool's resident part is one stretch from its start; `touched` remembers where it ends.
"""

from typing import NamedTuple

import numpy as np

from replay import allocators as lower
from replay.allocators._stack import MARGIN
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
from replay.allocators.pymalloc.spans import span_changes, spans
from replay.allocators.pymalloc.views import check, observe
from replay.jit.arrays import extend
from replay.jit.compiling import by_reference, cold, inlined, leaf
from replay.jit.cpu_intrinsics import prefetch

__all__ = ["Config", "State", "check", "new_state", "observe", "span_changes", "spans"]

ROLES = ("small",)
LINKS_AT_FIRST = (2 << 20) - 1
"""Room for links that a run starts with. From 4 MiB on NumPy asks for huge pages, and to clear one takes longer than to
play a short trace."""


@by_reference
class State(NamedTuple):
    """`pools[arena * pools_per_arena + i]`; `links[place]`, a place being pool << pool_shift | block; `last_with[n]`:
    the last usable arena with n free pools; `nodes`: those of the radix tree."""

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
    """Sizes of the tree's nodes: three levels share the address bits above an arena, the lowest gets the rest."""
    arena_bits = config.arena_size.bit_length() - 1
    interior = (config.address_bits - arena_bits + 2) // 3
    bottom = config.address_bits - arena_bits - 2 * interior
    geometry.bottom_shift = arena_bits + bottom
    geometry.top_shift = arena_bits + bottom + interior
    geometry.middle_bytes = 8 << interior
    geometry.bottom_bytes = 8 << bottom  # two int32 an arena


def new_state(config: Config) -> State:
    """A process that has not allocated yet: no arena, no table."""
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
    # Where pointers have 32 bits the root is the only node, and static.
    geometry.radix = config.radix_tree and config.word_size == 8
    _lay_out_tree(geometry, config)
    geometry.usable = geometry.unused = NONE
    return state


@cold
def _touch_to(state, stack, number, end):
    """The pool is resident up to offset `end` at least."""
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
    """The pool becomes the first of its class's used pools."""
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
    """The block carved last is resident up to its link; how many more are is noted."""
    geometry, pool = state.geometry[0], state.pools[number]
    first_link_end, size = geometry.header + geometry.word_size, np.int64(pool.size_bytes)
    _touch_to(state, stack, number, first_link_end + (np.int64(pool.carved) - 1) * size)
    pool.ready = min(np.int64(pool.capacity), 1 + (pool.touched - first_link_end) // size)


@cold
def _carve(state, stack, number):
    """Carves the next block ahead in another page; or the pool is full."""
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
    """The pool, first of its class's used ones, is full and leaves them."""
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
def _pass_on(stack, size):
    """The block is libc's; from the simulator itself its malloc is near, from here it is a call."""
    return ~lower.malloc(stack.libc, stack, max(size, 1))


@inlined
def malloc(state, stack, size):
    """From the first used pool of the class, or from a free pool; libc's block where it is none of pymalloc's."""
    # Of no bytes at all it would be the highest.
    index = np.uint64(size - 1) >> np.uint64(state.alignment_shift)
    if index >= np.uint64(state.used.shape[0]):
        return _pass_on(stack, size)
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
        # The list ran dry with this block: carve the next one ahead, or the pool is full.
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
    """Malloc and a memset; libc's own calloc where the block is libc's."""
    if np.uint64(size - 1) >> np.uint64(state.alignment_shift) >= np.uint64(state.used.shape[0]):
        return ~lower.calloc(stack.libc, stack, max(size, 1))
    return malloc(state, stack, size)


@inlined
def free(state, stack, place):
    """To the front of its pool's list; the pool may become used again, or free."""
    number = place >> state.pool_shift
    pool = state.pools[np.uint64(number)]
    following = pool.list
    state.links[np.uint64(place)] = following
    pool.list = place - (number << state.pool_shift)
    pool.live -= 1  # a pool has two blocks at least: one that was full is not free now
    if pool.live == 0:
        _free_pool(state, stack, number)
    elif following == NO_LINK:
        tally = stack.tally[0]
        tally.pools_full -= 1
        tally.pools_used += 1
        _link_in_front(state, number, pool.index)


@cold
def _free_pool(state, stack, number):
    """The pool leaves its class and goes to the front of its arena's free pools; the arena may move or go back."""
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
    had = arena.free
    arena.free = had + 1
    last = state.last_with[had]  # of the arenas with as many free pools as this one had; itself or one behind it
    if last == index:
        before = arena.prev
        state.last_with[had] = before if before != NONE and state.arenas[before].free == had else NONE
    if arena.free == arena.pools and (arena.next != NONE or not geometry.keep_last):
        unlink_arena(state, index)
        release_arena(state, stack, index)
        return
    if had == 0:
        link_arena_first(state, index)
    elif last != index:
        unlink_arena(state, index)
        link_arena_behind(state, index, last)
    if state.last_with[arena.free] == NONE:
        state.last_with[arena.free] = index


@cold
def realloc(state, stack, place, size):
    """In place unless the block grows or loses a quarter or more; then malloc, copy, free."""
    have = block_size(state, stack, place)
    if size <= have and 4 * size > 3 * have:
        return place
    new_place = malloc(state, stack, size)
    free(state, stack, place)
    return new_place


@cold
def adopt(state, stack, address, size):
    """A block of `size` bytes is freed that is older than all here, in a pool that was full.

    Such pools are kept together by windows of an arena's size, as if each were an arena full of unknown blocks.
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
    """Its pool, and its own link."""
    prefetch(state.pools, place >> state.pool_shift)
    prefetch(state.links, place)


@inlined
def block_size(state, stack, place):
    """Bytes of the size class."""
    return np.int64(state.pools[np.uint64(place >> state.pool_shift)].size_bytes)


@inlined
def made_size(state, stack, place, size):
    """The same, without a look at the pool."""
    shift = np.uint64(state.alignment_shift)
    return np.int64(((np.uint64(size - 1) >> shift) + np.uint64(1)) << shift)


@leaf
def address(state, stack, place):
    """Where the block starts."""
    number = place >> state.pool_shift
    block = place - (number << state.pool_shift)
    return _pool_address(state, number) + state.geometry[0].header + block * state.pools[number].size_bytes


def grow(state: State) -> State:
    """The same pymalloc with room for four times the arenas, and twice the tree nodes."""
    geometry = state.geometry[0]
    room = 4 * max(int(geometry.arenas), MARGIN)
    pools, used = room * int(geometry.pools_per_arena), int(geometry.arenas * geometry.pools_per_arena)
    return state._replace(
        pools=extend(state.pools, pools, used),
        links=extend(state.links, pools << state.pool_shift, used << state.pool_shift),
        arenas=extend(state.arenas, room),
        nodes=extend(state.nodes, 2 * max(int(geometry.nodes), MARGIN)),
    )
