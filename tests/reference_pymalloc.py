"""A reference model: pymalloc in plain Python objects, written to be readable, from the behaviour of real ones alone.

It shares no code and no data structure with the model of this package, so both are unlikely to err alike.
"""

from collections import deque
from dataclasses import dataclass, field

PAGE = 4096
THRESHOLD = 512


@dataclass(frozen=True)
class Geometry:
    alignment: int
    arena: int
    pool: int
    header: int
    keep_last: bool
    node_bytes: tuple[int, ...] = ()
    """Mapped once, right after the first arena: the nodes of the arena tree, as libc maps them."""


GEOMETRIES = {
    (64, "immediate"): Geometry(16, 256 << 10, 4 << 10, 48, False),
    (64, "keep-last"): Geometry(16, 256 << 10, 4 << 10, 48, True),
    (64, "radix-heap"): Geometry(16, 1 << 20, 16 << 10, 48, True),
    (64, "radix-mapped"): Geometry(16, 1 << 20, 16 << 10, 48, True, ((256 << 10) + PAGE, (128 << 10) + PAGE)),
    (32, "keep-last"): Geometry(8, 256 << 10, 4 << 10, 32, True),
}


@dataclass(eq=False)
class Pool:
    address: int
    arena: "Arena"
    size: int = 0
    capacity: int = 0
    live: int = 0
    carved: int = 0
    freed: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Arena:
    address: int
    pools: int
    next_pool: int
    free: int
    free_pools: list[Pool] = field(default_factory=list)


class Reference:
    """Returns the addresses of small blocks; `None` for blocks of libc."""

    def __init__(self, geometry: Geometry, base: int) -> None:
        self.geometry, self.base = geometry, base
        self.holes: list[tuple[int, int]] = [(0, base)]
        self.used: dict[int, deque[Pool]] = {}
        self.usable: list[Arena] = []
        self.pool_at: dict[int, Pool] = {}
        self.arena_events: list[tuple[int, int, int, int]] = []
        self.first = True

    def map(self, size: int) -> int:
        at = max(i for i, (low, high) in enumerate(self.holes) if high - low >= size)
        low, high = self.holes[at]
        self.holes[at : at + 1] = [(low, high - size)] if high - size > low else []
        return high - size

    def unmap(self, address: int, size: int) -> None:
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*self.holes, (address, address + size)]):
            if merged and merged[-1][1] == low:
                merged[-1] = (merged[-1][0], high)
            else:
                merged.append((low, high))
        self.holes = merged

    def new_arena(self, row: int) -> None:
        geometry = self.geometry
        address = self.map(geometry.arena)
        self.arena_events.append((row, 1, address, geometry.arena))
        first_pool = -(-address // geometry.pool) * geometry.pool
        pools = (address + geometry.arena - first_pool) // geometry.pool
        self.usable.append(Arena(address, pools, first_pool, pools))
        if self.first:
            for size in geometry.node_bytes:
                self.map(size)
            self.first = False

    def new_pool(self, size: int, row: int) -> Pool:
        if not self.usable:
            self.new_arena(row)
        arena = self.usable[0]
        arena.free -= 1
        if arena.free_pools:
            pool = arena.free_pools.pop()
        else:
            pool = Pool(arena.next_pool, arena)
            self.pool_at[pool.address] = pool
            arena.next_pool += self.geometry.pool
        if not arena.free:
            self.usable.pop(0)
        if pool.size != size:
            pool.size, pool.carved, pool.freed = size, 0, []
            pool.capacity = (self.geometry.pool - self.geometry.header) // size
        return pool

    def malloc(self, request: int, row: int) -> int | None:
        if not 0 < request <= THRESHOLD:
            return None
        size = -(-request // self.geometry.alignment) * self.geometry.alignment
        used = self.used.setdefault(size, deque())
        if not used:
            used.append(self.new_pool(size, row))
        pool = used[0]
        if pool.freed:
            block = pool.freed.pop()
        else:
            block = pool.address + self.geometry.header + pool.carved * size
            pool.carved += 1
        pool.live += 1
        if pool.live == pool.capacity:
            used.popleft()
        return block

    def pool_of(self, block: int) -> Pool:
        return self.pool_at[block - block % self.geometry.pool]

    def free(self, block: int, row: int) -> None:
        pool = self.pool_of(block)
        used = self.used[pool.size]
        if pool.live == pool.capacity:
            used.appendleft(pool)
        pool.freed.append(block)
        pool.live -= 1
        if not pool.live:
            used.remove(pool)
            self.free_pool(pool, row)

    def free_pool(self, pool: Pool, row: int) -> None:
        arena = pool.arena
        arena.free_pools.append(pool)
        arena.free += 1
        if arena.free == 1:
            self.usable.insert(0, arena)
            return
        is_last = self.usable[-1] is arena
        if arena.free == arena.pools and not (self.geometry.keep_last and is_last):
            self.usable.remove(arena)
            for address in range(arena.address, arena.address + self.geometry.arena, PAGE):
                self.pool_at.pop(address, None)
            self.unmap(arena.address, self.geometry.arena)
            self.arena_events.append((row, 0, arena.address, self.geometry.arena))
            return
        behind = [other.free for other in self.usable if other is not arena]
        self.usable.remove(arena)
        self.usable.insert(sum(free < arena.free for free in behind), arena)

    def realloc(self, block: int, request: int, row: int) -> int | None:
        size = self.pool_of(block).size
        if request <= size and 4 * request > 3 * size:
            return block
        moved = self.malloc(request, row)
        self.free(block, row)
        return moved
