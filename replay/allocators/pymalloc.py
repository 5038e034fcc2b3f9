"""CPython's allocator for small objects, block by block where the real one puts it.

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

from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from replay import allocators as lower
from replay.allocators.kernel import mmap, mmap_huge_pages, munmap, touch
from replay.allocators.stack import (
    ARENA_MAPPED,
    ARENA_UNMAPPED,
    ARENA_VIEW,
    CLASS_VIEW,
    MARGIN,
    ask_for_room,
    extend,
    log,
    record,
)
from replay.by_reference import by_reference
from replay.compiled import cold, inlined, leaf
from replay.processor import prefetch
from replay.units import Size

ROLES = ("pymalloc",)

NONE = -1
NO_LINK = 0xFFFF
"""End of a pool's list of free blocks; also why a pool may hold no more blocks than that."""
NO_CLASS = 0xFFFF
BLOCK_BITS = 16
"""place = pool << BLOCK_BITS | block."""
LINKS_AT_FIRST = 32 << 20
"""Room for links that a run starts with; it takes memory only where pools are."""
ARENA_BYTES_MAX = 64 << 20
"""Far above any build's, and within what the kernel keeps free for one event (`kernel.SLACK_BYTES`)."""
HUGE_PAGE_BYTES = 2 << 20
"""Of x86-64."""
INITIAL_ARENA_OBJECTS = 16
"""Entries of the arena table when it is first made (obmalloc.c)."""


class Config(BaseModel):
    """CPython's pymalloc."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Literal["pymalloc"] = "pymalloc"
    alignment: Size = 16
    arena_size: Size = 1 << 20
    pool_size: Size = 16 << 10
    small_threshold: Size = Field(512, description="Larger requests, and those of 0 bytes, go to libc.")
    pool_header: Size = 48
    release: Literal["immediate", "keep-last"] = Field("keep-last", description="When a free arena is unmapped.")
    radix_tree: bool = True
    address_bits: int = Field(64, description="Address bits that the radix tree distinguishes: 48 in 3.10, then 64.")
    huge_pages: bool = Field(False, description="Arenas are huge pages: resident as a whole when first touched.")
    word_size: Literal[4, 8] = 8

    @property
    def pool_overhead(self) -> int:
        """Where a pool's first block starts: the header, rounded up to `alignment`."""
        return -(-self.pool_header // self.alignment) * self.alignment

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        if self.alignment < self.word_size or self.alignment & (self.alignment - 1):
            raise ValueError(f"alignment: {self.alignment} is no power of two of at least {self.word_size}")
        if self.pool_size < 256 or self.pool_size & (self.pool_size - 1):
            raise ValueError(f"pool_size: {self.pool_size} is no power of two of at least 256")
        if self.arena_size > ARENA_BYTES_MAX:
            raise ValueError(
                f"arena_size: {self.arena_size} is more than {ARENA_BYTES_MAX}, the largest that is modelled"
            )
        if self.huge_pages and self.arena_size % HUGE_PAGE_BYTES:
            raise ValueError(f"arena_size: {self.arena_size} is no whole number of huge pages, {HUGE_PAGE_BYTES}")
        if self.arena_size % self.pool_size:
            raise ValueError(f"arena_size: {self.arena_size} is not a multiple of pool_size, {self.pool_size}")
        if self.arena_size < 4 * self.pool_size:
            raise ValueError(f"arena_size: {self.arena_size} is less than four pools of {self.pool_size}")
        if self.radix_tree and self.arena_size & (self.arena_size - 1):
            raise ValueError(f"arena_size: {self.arena_size} is no power of two, which a radix tree needs")
        if self.small_threshold < self.alignment or self.small_threshold % self.alignment:
            raise ValueError(
                f"small_threshold: {self.small_threshold} is not a multiple of alignment, {self.alignment}"
            )
        header = 4 * self.word_size + 4 * 4  # struct pool_header: four pointers, four unsigned ints
        if self.pool_header < header:
            raise ValueError(f"pool_header: {self.pool_header} is less than the {header} of struct pool_header")
        blocks = (self.pool_size - self.pool_overhead) // self.small_threshold
        if blocks < 2:
            raise ValueError(
                f"small_threshold: a pool of {self.pool_size} bytes holds fewer than two blocks of "
                f"{self.small_threshold}"
            )
        if (self.pool_size - self.pool_overhead) // self.alignment >= NO_LINK:
            raise ValueError(f"pool_size: a pool of {self.pool_size} bytes holds more than {NO_LINK - 1} blocks")
        if self.address_bits not in (48, 64):
            raise ValueError(f"address_bits: {self.address_bits} is neither 48 nor 64")
        return self


GEOMETRY = record(
    "alignment_shift", "threshold", "header", "pool_size", "arena_size", "pools_per_arena", "stride",
    "keep_last", "radix", "huge", "bottom_shift", "top_shift", "middle_bytes", "bottom_bytes", "word_size",
    "usable", "unused", "arenas", "arena_table", "arena_table_place", "nodes",
)  # fmt: skip
"""Settings, and the scalars: heads of the lists of usable and of unused arenas, arena records ever used, size and place
of libc's arena table, nodes of the radix tree."""

POOL = record(
    list=np.uint16, carved=np.uint16, live=np.uint16, capacity=np.uint16, index=np.uint16,
    size_bytes=np.int32, next=np.int32, prev=np.int32, touched=np.int32, arena=np.int32,
)  # fmt: skip
"""A pool: 32 bytes, two to a cache line.

    list         first free block, or NO_LINK
    carved       blocks ever made available
    index        size class, NO_CLASS before the first; `size_bytes` of its blocks
    next, prev   in the class's used list; `next` also in its arena's free list
    touched      end of its resident part, from its start
"""

ARENA = record("address", "first_pool", "carved", "free_list", "free", "pools", "next", "prev")
"""`first_pool`: address of the first pool; `carved`: pools ever made available; `free`: pools free or not carved."""

NODE = record("key", "address")


@by_reference
class State(NamedTuple):
    """`pools[arena * pools_per_arena + i]`; `links[pool * stride + block]`; `last_with[n]`: the last usable arena with
    n free pools; `nodes`: those of the radix tree."""

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
    stride = (config.pool_size - config.pool_overhead) // config.alignment
    pools_per_arena = config.arena_size // config.pool_size
    classes = config.small_threshold // config.alignment
    room = max(2 * MARGIN, min(256, LINKS_AT_FIRST // (pools_per_arena * stride)))
    state = State(
        geometry=np.zeros(1, GEOMETRY),
        used=np.full(classes, NONE, np.int64),
        sizes=np.arange(1, classes + 1) * config.alignment,
        pools=np.zeros(room * pools_per_arena, POOL),
        links=np.zeros(room * pools_per_arena * stride, np.uint16),
        arenas=np.zeros(room, ARENA),
        last_with=np.full(pools_per_arena + 1, NONE, np.int64),
        nodes=np.zeros(2 * MARGIN, NODE),
    )
    geometry = state.geometry[0]
    geometry.alignment_shift = config.alignment.bit_length() - 1
    geometry.threshold, geometry.header = config.small_threshold, config.pool_overhead
    geometry.pool_size, geometry.arena_size = config.pool_size, config.arena_size
    geometry.pools_per_arena, geometry.stride = pools_per_arena, stride
    geometry.keep_last = config.release == "keep-last"
    geometry.huge, geometry.word_size = config.huge_pages, config.word_size
    # Where pointers have 32 bits the root is the only node, and static.
    geometry.radix = config.radix_tree and config.word_size == 8
    _lay_out_tree(geometry, config)
    geometry.usable = geometry.unused = NONE
    return state


@cold
def _grow_arena_table(state, stack):
    """The table of arena objects, in libc's memory, is made or doubled."""
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
    """Writes an entry of the radix tree's node with this key, which is made if it is not there."""
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
    """Enters `address` into the tree. Keys of the two levels differ in their lowest bit."""
    geometry = state.geometry[0]
    middle, bottom = address >> geometry.bottom_shift, address // geometry.arena_size
    offset = 8 * middle & (geometry.middle_bytes - 1)
    _write_node(state, stack, (address >> geometry.top_shift) << 1, geometry.middle_bytes, offset)
    offset = 8 * bottom & (geometry.bottom_bytes - 1)
    _write_node(state, stack, middle << 1 | 1, geometry.bottom_bytes, offset)


@cold
def _new_arena(state, stack):
    """Maps an arena; it becomes the only usable one."""
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
    address = mmap_huge_pages(stack, geometry.arena_size) if geometry.huge else mmap(stack, geometry.arena_size)
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
    tally.arenas_mapped += 1
    tally.arenas += 1
    tally.arenas_peak = max(tally.arenas_peak, tally.arenas)
    tally.arena_bytes += geometry.arena_size
    tally.arena_bytes_peak = max(tally.arena_bytes_peak, tally.arena_bytes)
    tally.pools_free += arena.pools


@leaf
def _take_pool(state, stack):
    """A free pool of the fullest usable arena: the one freed last, or one never used (its class is then NO_CLASS)."""
    geometry, tally = state.geometry[0], stack.tally[0]
    if geometry.usable == NONE:
        _new_arena(state, stack)
    index = geometry.usable
    arena = state.arenas[index]
    # The arena is the first with its count; it may be the last with it too, and will be the last with one fewer.
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


@cold
def _touch_to(state, stack, number, end):
    """The pool is resident up to offset `end` at least."""
    geometry, pool = state.geometry[0], state.pools[number]
    end = min(end, geometry.pool_size)
    if end > pool.touched:
        begin = _pool_address(state, number)
        touch(stack, begin + pool.touched, begin + end)
        page = stack.kernel.space[0].page_size
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
    number = _take_pool(state, stack)
    pool = state.pools[number]
    _link_in_front(state, number, index)
    if pool.index == index:
        block = np.int64(pool.list)
        pool.live = 1
        pool.list = state.links[number * geometry.stride + block]
        return number << BLOCK_BITS | block
    size = state.sizes[index]
    pool.index, pool.size_bytes = index, size
    pool.capacity = (geometry.pool_size - geometry.header) // size
    pool.live = 1
    pool.carved = 2
    pool.list = 1
    state.links[number * geometry.stride + 1] = NO_LINK
    stack.tally[0].pools_made += 1
    _touch_to(state, stack, number, geometry.header + size + geometry.word_size)
    return number << BLOCK_BITS


@inlined
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


@inlined
def malloc(state, stack, size):
    """From the first used pool of the class, or from a free pool; libc's block where it is none of pymalloc's."""
    geometry = state.geometry[0]
    if size == 0 or size > geometry.threshold:
        return ~lower.malloc(stack.libc, stack, max(size, 1))
    index = (size - 1) >> geometry.alignment_shift
    number = state.used[np.uint64(index)]
    if number == NONE:
        return _open_pool(state, stack, index)
    pool = state.pools[np.uint64(number)]
    links = number * geometry.stride
    block = np.int64(pool.list)
    pool.live += 1
    following = state.links[np.uint64(links + block)]
    pool.list = following
    if following == NO_LINK:
        # The list ran dry with this block: carve the next one ahead, or the pool is full.
        carved = np.int64(pool.carved)
        if carved < pool.capacity:
            state.links[np.uint64(links + carved)] = NO_LINK
            pool.list = carved
            pool.carved = carved + 1
            end = geometry.header + carved * pool.size_bytes + geometry.word_size
            if end > pool.touched:
                _touch_to(state, stack, number, end)
        else:
            _close_pool(state, stack, number)
    return number << BLOCK_BITS | block


@leaf
def calloc(state, stack, size):
    """Malloc and a memset; libc's own calloc where the block is libc's."""
    if size == 0 or size > state.geometry[0].threshold:
        return ~lower.calloc(stack.libc, stack, max(size, 1))
    return malloc(state, stack, size)


@inlined
def free(state, stack, place):
    """To the front of its pool's list; the pool may become used again, or free."""
    number = place >> BLOCK_BITS
    pool = state.pools[np.uint64(number)]
    block = place & NO_LINK
    following = pool.list
    state.links[np.uint64(number * state.geometry[0].stride + block)] = following
    pool.list = block
    pool.live -= 1
    if following == NO_LINK:
        tally = stack.tally[0]
        tally.pools_full -= 1
        tally.pools_used += 1
        _link_in_front(state, number, pool.index)
    elif pool.live == 0:
        _free_pool(state, stack, number)


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
        _unlink_arena(state, index)
        _release_arena(state, stack, index)
        return
    if had == 0:
        _link_arena_first(state, index)
    elif last != index:
        _unlink_arena(state, index)
        _link_arena_behind(state, index, last)
    if state.last_with[arena.free] == NONE:
        state.last_with[arena.free] = index


@leaf
def _link_arena_first(state, index):
    geometry, arenas = state.geometry[0], state.arenas
    arenas[index].prev = NONE
    arenas[index].next = geometry.usable
    if geometry.usable != NONE:
        arenas[geometry.usable].prev = index
    geometry.usable = index


@leaf
def _link_arena_behind(state, index, before):
    arena, previous = state.arenas[index], state.arenas[before]
    arena.prev = before
    arena.next = previous.next
    if previous.next != NONE:
        state.arenas[previous.next].prev = index
    previous.next = index


@leaf
def _unlink_arena(state, index):
    geometry, arena = state.geometry[0], state.arenas[index]
    if arena.prev == NONE:
        geometry.usable = arena.next
    else:
        state.arenas[arena.prev].next = arena.next
    if arena.next != NONE:
        state.arenas[arena.next].prev = arena.prev


@cold
def _release_arena(state, stack, index):
    """Unmaps the arena; its record is the next to be used."""
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


@cold
def realloc(state, stack, place, size):
    """In place unless the block grows or loses a quarter or more; then malloc, copy, free."""
    have = block_size(state, stack, place)
    if size <= have and 4 * size > 3 * have:
        return place
    new_place = malloc(state, stack, size)
    free(state, stack, place)
    return new_place


@inlined
def expect(state, place):
    """Its pool, and its own link."""
    number = place >> BLOCK_BITS
    prefetch(state.pools, number)
    prefetch(state.links, number * state.geometry[0].stride + (place & NO_LINK))


@inlined
def block_size(state, stack, place):
    """Bytes of the size class."""
    return np.int64(state.pools[place >> BLOCK_BITS].size_bytes)


@leaf
def address(state, stack, place):
    """Where the block starts."""
    number = place >> BLOCK_BITS
    header = state.geometry[0].header
    return _pool_address(state, number) + header + (place & NO_LINK) * state.pools[number].size_bytes


def grow(state: State) -> State:
    """The same pymalloc with room for twice the arenas and tree nodes."""
    geometry = state.geometry[0]
    room = 2 * max(int(geometry.arenas), MARGIN)
    pools, used = room * int(geometry.pools_per_arena), int(geometry.arenas * geometry.pools_per_arena)
    return state._replace(
        pools=extend(state.pools, pools, used),
        links=extend(state.links, pools * int(geometry.stride), used * int(geometry.stride)),
        arenas=extend(state.arenas, room),
        nodes=extend(state.nodes, 2 * max(int(geometry.nodes), MARGIN)),
    )


def _live_arenas(state: State) -> np.ndarray:
    arenas = state.arenas[: state.geometry[0].arenas]
    return np.flatnonzero(arenas["address"])


def _made_pools(state: State) -> np.ndarray:
    """Numbers of the pools of mapped arenas that were ever used."""
    per_arena, arenas = int(state.geometry[0].pools_per_arena), _live_arenas(state)
    offsets = np.arange(per_arena)
    numbers = arenas[:, None] * per_arena + offsets
    return numbers[offsets < state.arenas["carved"][arenas][:, None]]


def observe(state: State) -> dict[str, np.ndarray]:
    """`classes`: a row a size class. `arenas`: a row a mapped arena, by address."""
    per_arena = int(state.geometry[0].pools_per_arena)
    numbers = _made_pools(state)
    pools = state.pools[numbers]
    classes = np.zeros(state.sizes.shape[0], CLASS_VIEW)
    classes["block_size"] = state.sizes
    busy = pools["live"] > 0
    index = pools["index"][busy]
    full = pools["list"][busy] == NO_LINK
    np.add.at(classes["pools_full"], index, full)
    np.add.at(classes["pools_used"], index, ~full)
    for name, field in (("blocks", "live"), ("blocks_carved", "carved"), ("blocks_capacity", "capacity")):
        np.add.at(classes[name], index, pools[field][busy])
    slots = _live_arenas(state)
    arenas = np.zeros(slots.shape[0], ARENA_VIEW)
    for name, field in (("address", "address"), ("pools", "pools"), ("pools_free", "free")):
        arenas[name] = state.arenas[field][slots]
    owner = np.searchsorted(slots, numbers[busy] // per_arena)
    np.add.at(arenas["blocks"], owner, pools["live"][busy])
    np.add.at(arenas["block_bytes"], owner, pools["live"][busy] * state.sizes[index])
    return {"classes": classes, "arenas": arenas[np.argsort(arenas["address"])]}


def _chain(first: int, following: np.ndarray, end: int) -> list[int]:
    """The list that starts at `first`; AssertionError if it runs in a circle."""
    found: list[int] = []
    while first != end:
        found.append(int(first))
        assert len(found) <= following.shape[0], "a list runs in a circle"
        first = following[first]
    return found


def check(state: State, stack: NamedTuple) -> None:
    """Raises AssertionError where an invariant of this file does not hold."""
    geometry, tally = state.geometry[0], stack.tally[0]  # type: ignore[attr-defined]
    stride, used, full, free = int(geometry.stride), 0, 0, 0
    for number in _made_pools(state):
        pool = state.pools[number]
        listed = _chain(int(pool.list), state.links[number * stride : (number + 1) * stride], NO_LINK)
        assert len(set(listed)) == len(listed)
        assert pool.live + len(listed) == pool.carved <= pool.capacity
        used += pool.live > 0 and bool(listed)
        full += not listed
        free += pool.live == 0
        assert listed or pool.live == pool.capacity == pool.carved
    linked = [number for head in state.used for number in _chain(int(head), state.pools["next"], NONE)]
    assert len(linked) == len(set(linked)) == used == tally.pools_used
    assert full == tally.pools_full
    slots = _live_arenas(state)
    usable = _chain(int(geometry.usable), state.arenas["next"], NONE)
    counts = state.arenas["free"][usable]
    assert (np.diff(counts) >= 0).all(), "usable arenas are out of order"
    assert set(usable) == {int(slot) for slot in slots if state.arenas[slot].free > 0}
    for count in range(1, int(geometry.pools_per_arena) + 1):
        behind = [slot for slot in usable if state.arenas[slot].free == count]
        assert state.last_with[count] == (behind[-1] if behind else NONE)
    for slot in slots:
        arena = state.arenas[slot]
        freed = _chain(int(arena.free_list), state.pools["next"], NONE)
        assert arena.free == len(freed) + arena.pools - arena.carved
        assert all(state.pools[number].live == 0 for number in freed)
    assert tally.pools_used + tally.pools_full + tally.pools_free == state.arenas["pools"][slots].sum()
    assert tally.pool_bytes == geometry.pool_size * (used + full)
    assert tally.arenas == len(slots) == tally.arenas_mapped - tally.arenas_unmapped
    assert tally.arena_bytes == geometry.arena_size * len(slots)
