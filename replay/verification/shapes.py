"""Traces that exercise rules of pymalloc that ordinary programs rarely reach. Each shape is for some rules.

Each trace begins with a block of one byte that is never freed: it maps the first arena and the nodes of the arena tree
before other requests reach libc's heap. All requests are below 100 KiB, so that libc maps nothing in between. Equal
number of events and seed produce the same trace.
"""

import random
from collections.abc import Callable, Iterable

import numpy as np

from replay.trace import NO_ALIGNMENT, TRIM_MARK, Domain, Events, MemoryTrace, Metadata, Op, Provenance

SMALL_BYTES = 512
LARGE_BYTES = 99 << 10
POOLS = ((4 << 10, 48), (16 << 10, 48), (4 << 10, 32))
"""Bytes of a pool and its header: 64-bit builds up to 3.9, from 3.10 on, and 32-bit builds."""
EDGES = (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257, 495, 496, 497, 504, 505, 511, 512, 513, 520, 4096)


class History:
    """A trace that is being built: its rows so far, and the live blocks (block -> requested size)."""

    def __init__(self, events: int, seed: int) -> None:
        self.wanted = events
        self.random = random.Random(seed)
        self.live: dict[int, int] = {}
        self._free_numbers: list[int] = []
        self._numbers_used = 0
        self._columns: tuple[list[int], ...] = ([], [], [], [], [], [])
        self.thread = 0
        """The thread of the following events."""
        self._domains: dict[int, Domain] = {}
        self.malloc(1)

    @property
    def full(self) -> bool:
        """Whether the trace has the wanted number of events."""
        return len(self._columns[0]) >= self.wanted

    def malloc(self, size: int, domain: Domain = Domain.OBJ, op: Op = Op.MALLOC) -> int:
        """Adds a malloc or calloc; returns the number of the new block."""
        if self._free_numbers:
            block = self._free_numbers.pop()
        else:
            block = self._numbers_used
            self._numbers_used += 1
        self.live[block] = size
        self._domains[block] = domain
        self._append(op, block, size)
        return block

    def memalign(self, alignment: int, size: int) -> int:
        """The number of a new block of the C library at a multiple of `alignment`."""
        block = self.malloc(size, Domain.LIBC, Op.MEMALIGN)
        self._columns[-1][-1] = alignment
        return block

    def realloc(self, block: int, size: int) -> None:
        """Adds a realloc; in domain libc to at least 1 byte, because realloc(p, 0) is a free there."""
        if self._domains[block] == Domain.LIBC:
            size = max(size, 1)
        self.live[block] = size
        self._append(Op.REALLOC, block, size)

    def free(self, block: int) -> None:
        del self.live[block]
        self._append(Op.FREE, block, 0)
        self._free_numbers.append(block)

    def free_all(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.free(block)

    def trim(self) -> None:
        """Adds a mark at which malloc_trim(0) is called."""
        self._write(Op.MARK, Domain.RAW, 0, 0)

    def end_thread(self) -> None:
        """Adds the end of the current thread."""
        self._write(Op.THREAD_END, Domain.RAW, 0, 0)

    def trace(self, name: str) -> MemoryTrace:
        """Returns the trace, cut to the wanted number of events."""
        op, domain, block, size, thread, alignment = (column[: self.wanted] for column in self._columns)
        rows = len(op)
        events = Events(
            time_ns=np.arange(rows, dtype=np.int64) * 100,
            thread=np.array(thread, np.uint32),
            op=np.array(op, np.uint8),
            domain=np.array(domain, np.uint8),
            block=np.array(block, np.uint32),
            size=np.array(size, np.int64),
            alignment=np.array(alignment, np.uint32) if any(alignment) else None,
        )
        return MemoryTrace([events], Metadata(Provenance(notes={"shape": name}), phases=(TRIM_MARK,)))

    def _append(self, op: Op, block: int, size: int) -> None:
        self._write(op, self._domains[block], block, size)

    def _write(self, op: Op, domain: Domain, block: int, size: int) -> None:
        for column, value in zip(self._columns, (op, domain, block, size, self.thread, NO_ALIGNMENT), strict=True):
            column.append(value)

    def any_small(self) -> int:
        return self.random.randint(1, SMALL_BYTES)

    def any_size(self) -> int:
        """Returns a size: mostly small, sometimes at an edge or large."""
        chance = self.random.random()
        if chance < 0.85:
            return self.any_small()
        return self.random.choice(EDGES) if chance < 0.95 else self.random.randint(513, LARGE_BYTES)

    def any_domain(self) -> Domain:
        return self.random.choice((Domain.OBJ, Domain.OBJ, Domain.OBJ, Domain.MEM, Domain.RAW, Domain.LIBC))


def churn(history: History) -> None:
    """Random events in every domain, with a number of live blocks that grows and shrinks."""
    blocks: list[int] = []
    while not history.full:
        target = history.random.randint(0, 30_000)
        while abs(len(blocks) - target) > 100 and not history.full:
            chance = history.random.random()
            if chance < 0.1 and blocks:
                history.realloc(history.random.choice(blocks), history.any_size())
            elif (chance < 0.7) == (len(blocks) < target) or not blocks:
                op = Op.CALLOC if chance < 0.2 else Op.MALLOC
                blocks.append(history.malloc(history.any_size(), history.any_domain(), op))
            else:
                _swap_out(history, blocks)


def _swap_out(history: History, blocks: list[int]) -> None:
    """Frees a random one of `blocks` and removes it from the list."""
    at = history.random.randrange(len(blocks))
    blocks[at], blocks[-1] = blocks[-1], blocks[at]
    history.free(blocks.pop())


def release(history: History) -> None:
    """A sawtooth: groups of a few MiB fill arenas; then one group or all groups are freed, in some order."""
    groups: list[list[int]] = []
    while not history.full:
        low = history.random.choice((1, 449, 497, 497))
        blocks = history.random.randint(4_000, 12_000)
        groups.append([history.malloc(history.random.randint(low, SMALL_BYTES)) for _ in range(blocks)])
        if len(groups) < history.random.randint(1, 3):
            continue
        at = history.random.randrange(len(groups))
        # If only single groups were freed, the next group would fill the holes, and no arena would become empty.
        dropped = [groups.pop(at)] if history.random.random() < 0.5 else [groups.pop() for _ in range(len(groups))]
        for group in dropped:
            if history.random.random() < 0.3:
                history.random.shuffle(group)
            history.free_all(group if history.random.random() < 0.5 else reversed(group))


def regrow(history: History) -> None:
    """Realloc: small steps around three quarters of a class, and back and forth across the small threshold."""
    domains = (Domain.OBJ, Domain.MEM)
    blocks = [history.malloc(history.any_small(), history.random.choice(domains)) for _ in range(2_000)]
    while not history.full:
        block = history.random.choice(blocks)
        size = history.live[block]
        size_class = -(-size // 16) * 16
        around = history.random.choice((size_class * 3 // 4, size_class, SMALL_BYTES, size // 2, size * 9 // 8, 0))
        history.realloc(block, min(LARGE_BYTES, max(0, around + history.random.randint(-9, 9))))
        if history.random.random() < 0.1:
            _swap_out(history, blocks)
            blocks.append(history.malloc(history.any_small()))


def zeroed(history: History) -> None:
    """Calloc of every size with random lifetimes, in reused blocks."""
    blocks: list[int] = []
    while not history.full:
        blocks.append(history.malloc(history.any_size(), history.any_domain(), Op.CALLOC))
        if history.random.random() < len(blocks) / 8_000:
            _swap_out(history, blocks)


def pins(history: History) -> None:
    """A few long-lived blocks pin arenas that are otherwise empty; other classes then use the free pools."""
    pinned: list[int] = []
    while not history.full:
        size = history.any_small()
        filling = [history.malloc(size) for _ in range(max(200, (2 << 20) // size))]
        history.random.shuffle(filling)
        kept = history.random.randint(1, 4)
        pinned += filling[:kept]
        history.free_all(filling[kept:])
        while len(pinned) > 40:
            _swap_out(history, pinned)


def hops(history: History) -> None:
    """Empty pools are reused: by the same class, which finds the old free list, or by another."""
    sizes = [history.any_small() for _ in range(3)]
    while not history.full:
        size = history.random.choice(sizes)
        if history.random.random() < 0.2:
            sizes[history.random.randrange(3)] = history.any_small()
        blocks = [history.malloc(size) for _ in range(history.random.randint(1, 1_500))]
        history.random.shuffle(blocks)
        history.free_all(blocks[: len(blocks) // 2])
        again = [history.malloc(size) for _ in range(history.random.randint(0, len(blocks)))]
        history.free_all(again)
        history.free_all(blocks[len(blocks) // 2 :])


def brims(history: History) -> None:
    """Bursts that fill pools exactly, then free the first, the last or another block, so pools are full or nearly
    full."""
    kept: list[int] = []
    while not history.full:
        size = history.any_small()
        pool_bytes, header_bytes = history.random.choice(POOLS)
        alignment = 8 if header_bytes == 32 else 16
        capacity = (pool_bytes - header_bytes) // (-(-size // alignment) * alignment)
        blocks = [history.malloc(size) for _ in range(capacity * history.random.randint(1, 3))]
        for _ in range(history.random.randint(1, 6)):
            history.free(blocks.pop(history.random.choice((0, -1, len(blocks) // 2))))
            if history.random.random() < 0.6 or not blocks:
                blocks.append(history.malloc(size))
        if history.random.random() < 0.7:
            history.free_all(blocks)
        else:
            kept += blocks
        while len(kept) > 20_000:
            _swap_out(history, kept)


def thrash(history: History) -> None:
    """Fills and empties an arena's last pool repeatedly, so that arenas are mapped and unmapped all the time."""
    stack: list[int] = []
    while not history.full:
        target = history.random.choice((0, 250, 255, 500, 505, 510, 1_940, 1_945, 1_955, 1_985, 3_900, 4_000))
        while len(stack) < target:
            stack.append(history.malloc(SMALL_BYTES))
        while len(stack) > target:
            history.free(stack.pop())


SHAPES: dict[str, Callable[[History], None]] = {
    shape.__name__: shape for shape in (churn, release, regrow, zeroed, pins, hops, brims, thrash)
}


def build_shape(name: str, events: int, seed: int = 0) -> MemoryTrace:
    """Returns the trace of a shape with exactly `events` events."""
    history = History(events, seed)
    SHAPES[name](history)
    return history.trace(name)
