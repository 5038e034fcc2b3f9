"""Traces that exercise rare rules of the C library's malloc. `shapes` has those for pymalloc."""

from collections.abc import Callable

from replay.trace import Domain, MemoryTrace, Op
from replay.verification.shapes import SHAPES as SMALL_SHAPES
from replay.verification.shapes import History

KIB, MIB = 1 << 10, 1 << 20
BIN_EDGES = (1_024, 3_136, 3_072, 10_752, 10_240, 45_056, 40_960, 163_840, 131_072, 786_432, 524_288)
"""The end of the small bins, and the sizes at which large bins change their width, on both word sizes."""


def _drop_one(history: History, blocks: list[int]) -> None:
    at = history.random.randrange(len(blocks))
    blocks[at], blocks[-1] = blocks[-1], blocks[at]
    history.free(blocks.pop())


def _size_about(history: History, centre: int, spread: int) -> int:
    return max(0, centre + history.random.randint(-spread, spread))


def bimodal(history: History) -> None:
    """Many small blocks between a few large ones, freed at random, which leaves free chunks of every size."""
    small: list[int] = []
    large: list[int] = []
    while not history.full:
        if history.random.random() < 0.9:
            small.append(history.malloc(history.random.randint(1, 96), Domain.LIBC))
        else:
            large.append(history.malloc(history.random.randint(4 * KIB, 64 * KIB), Domain.LIBC))
        if len(small) > history.random.randint(1, 8_000):
            _drop_one(history, small)
        if len(large) > history.random.randint(1, 400):
            _drop_one(history, large)


def mapped(history: History) -> None:
    """Sizes around the mmap threshold, which each freed mapping raises up to its maximum; some mappings are resized."""
    blocks: list[int] = []
    centres = (128 * KIB, 128 * KIB, 256 * KIB, MIB, 4 * MIB, 32 * MIB)
    while not history.full:
        chance = history.random.random()
        if chance < 0.3 and blocks:
            block = history.random.choice(blocks)
            size = history.live[block]
            history.realloc(
                block, _size_about(history, history.random.choice((size, size // 2, 2 * size)), 5_000) % (40 * MIB)
            )
        elif chance < 0.5:
            blocks.append(history.malloc(history.random.randint(1, 2_000), Domain.LIBC))
        else:
            # Larger sizes are rare, because each one raises the threshold for later requests.
            centre = centres[min(int(history.random.expovariate(1.2)), len(centres) - 1)]
            op = history.random.choice((Op.MALLOC, Op.CALLOC))
            blocks.append(history.malloc(_size_about(history, centre, 5_000), Domain.LIBC, op))
        while len(blocks) > history.random.randint(1, 60):
            _drop_one(history, blocks)


def large_bins(history: History) -> None:
    """Sizes at the edges of the large bins, a few of each: skip lists with runs of one size and gaps between."""
    blocks: list[int] = []
    while not history.full:
        edge = history.random.choice(BIN_EDGES)
        size = (
            _size_about(history, edge, 80) if history.random.random() < 0.5 else history.random.randint(1_000, 120_000)
        )
        blocks.append(history.malloc(size, Domain.LIBC))
        if history.random.random() < 0.4:  # prevents neighbours from being merged
            blocks.append(history.malloc(history.random.randint(1, 40), Domain.LIBC))
        while len(blocks) > history.random.randint(1, 1_500):
            _drop_one(history, blocks)


def stretch(history: History) -> None:
    """Buffers that grow by realloc: in place, into the next chunk, into top, and by moving; then they shrink."""
    blocks = [history.malloc(history.random.randint(1, 200), Domain.LIBC) for _ in range(200)]
    while not history.full:
        block = history.random.choice(blocks)
        size = history.live[block]
        if size > 200_000 or history.random.random() < 0.1:
            wanted = history.random.randint(0, size)
        else:
            wanted = history.random.choice((size + 16, size * 9 // 8 + 6, size * 2, _size_about(history, size, 40)))
        history.realloc(block, wanted)
        if history.random.random() < 0.1:
            _drop_one(history, blocks)
            blocks.append(history.malloc(history.random.randint(1, 3_000), Domain.LIBC))


def towers(history: History) -> None:
    """The heap grows and shrinks by more than the trim threshold, with and without a live block at its end."""
    tower: list[int] = []
    while not history.full:
        size = history.random.choice((24, 100, 1_000, 5_000, 30_000, 100_000))
        height = history.random.randint(0, 4 * MIB) // max(size, 500)
        while len(tower) < height and not history.full:
            tower.append(history.malloc(_size_about(history, size, size // 4), Domain.LIBC))
        kept = history.random.randint(0, len(tower)) if tower else 0
        while len(tower) > kept and not history.full:
            history.free(tower.pop())


def bursts(history: History) -> None:
    """One size after the other fills and empties the tcache, fastbins and small bins; large requests in between
    consolidate them."""
    while not history.full:
        size = history.random.randint(0, 1_100)
        blocks = [history.malloc(size, Domain.LIBC) for _ in range(history.random.randint(1, 40))]
        history.random.shuffle(blocks)
        history.free_all(blocks)
        if history.random.random() < 0.2:
            history.free(history.malloc(history.random.randint(1_100, 90_000), Domain.LIBC))
        if history.random.random() < 0.3:
            history.malloc(history.random.randint(0, 300), Domain.LIBC)


def first_large(history: History) -> None:
    """Large blocks before the first small one is freed: the tcache is created by another request."""
    blocks = [history.malloc(history.random.randint(1_100, 3_000), Domain.LIBC) for _ in range(60)]
    history.free_all(blocks[::2])
    again = [history.malloc(history.random.randint(900, 3_000), Domain.LIBC) for _ in range(60)]
    history.free_all(blocks[1::2])
    bursts(history)
    history.free_all(again)


def trims(history: History) -> None:
    """malloc_trim at times, over a heap with free chunks of whole pages, which are then reused."""
    blocks: list[int] = []
    while not history.full:
        size = history.random.choice((40, 600, 5_000, 20_000, 90_000))
        op = history.random.choice((Op.MALLOC, Op.CALLOC))
        blocks.append(history.malloc(_size_about(history, size, size // 3), Domain.LIBC, op))
        if history.random.random() < 0.1:
            history.realloc(blocks[-1], history.random.randint(0, 60_000))
        while len(blocks) > history.random.randint(1, 1_000):
            _drop_one(history, blocks)
        if history.random.random() < 0.001:
            history.trim()


def threads(history: History) -> None:
    """More threads than arenas, which free their own blocks and those of others; threads end, and new ones start."""
    blocks: list[int] = []
    born, alive = 1, [0]
    while not history.full:
        if history.random.random() < 0.02:
            history.thread = history.random.choice(alive)
        chance = history.random.random()
        if chance < 0.001 and len(alive) < 30 and born < 900:
            history.thread = born
            alive.append(born)
            born += 1
        elif chance < 0.0018 and history.thread:
            history.end_thread()
            alive.remove(history.thread)
            history.thread = history.random.choice(alive)
        elif chance < 0.1 and blocks:
            block = history.random.choice(blocks)
            history.realloc(block, history.random.choice((history.any_size(), history.live[block] * 2 % (256 * KIB))))
        elif chance < 0.6:
            op = history.random.choice((Op.MALLOC, Op.MALLOC, Op.CALLOC))
            blocks.append(history.malloc(history.any_size(), Domain.LIBC, op))
        while len(blocks) > history.random.randint(1, 4_000):
            _drop_one(history, blocks)


def full_heaps(history: History) -> None:
    """Threads that fill more than one heap of 64 MiB with blocks below the mmap threshold, and empty them again."""
    towers: list[list[int]] = [[], [], []]
    # Raises the threshold, so that blocks of megabytes are in heaps too.
    for size in (200 * KIB, 3 * MIB, 20 * MIB):
        history.free(history.malloc(size, Domain.LIBC))
    while not history.full:
        history.thread = history.random.randrange(3)
        tower = towers[history.thread]
        size = history.random.choice((5 * KIB, 100 * KIB, 120 * KIB, 2 * MIB, 18 * MIB))
        height = history.random.randint(0, 150 * MIB) // (2 * size)
        while len(tower) < height and not history.full:
            tower.append(history.malloc(_size_about(history, size, size // 4), Domain.LIBC))
        kept = history.random.choice((0, 0, height // 4, height))
        while len(tower) > kept and not history.full:
            if history.random.random() < 0.8:
                history.free(tower.pop())
            else:
                _drop_one(history, tower)


def handover(history: History) -> None:
    """One thread allocates, another frees, through full tcaches; both request the same sizes again."""
    queue: list[int] = []
    while not history.full:
        history.thread = history.random.randint(1, 2)
        for _ in range(history.random.randint(1, 60)):
            queue.append(history.malloc(_size_about(history, history.random.choice((40, 300, 2_000)), 30), Domain.LIBC))
        history.thread = history.random.randint(2, 4)
        for _ in range(history.random.randint(1, len(queue))):
            history.free(queue.pop(0))
        if history.random.random() < 0.02:
            history.trim()


def _alignment(history: History, largest: int) -> int:
    """A power of two up to the largest; small ones are the most frequent."""
    return min(8 << int(history.random.expovariate(0.3)), largest)


def aligned(history: History) -> None:
    """memalign of all alignments and sizes among other calls, over a live set that swells and shrinks."""
    blocks: list[int] = []
    while not history.full:
        chance = history.random.random()
        size = history.random.choice((40, 40, 300, 1_000, 1_050, 5_000, 30_000))
        size = _size_about(history, size, size // 3)
        if chance < 0.1 and blocks:
            block = history.random.choice(blocks)
            history.realloc(block, history.random.choice((size, history.live[block] + 16, history.live[block] * 2)))
        elif chance < 0.5:
            blocks.append(history.memalign(_alignment(history, 64 * KIB), size))
        else:
            blocks.append(history.malloc(size, Domain.LIBC, history.random.choice((Op.MALLOC, Op.CALLOC))))
        while len(blocks) > history.random.randint(1, history.random.choice((10, 400, 4_000))):
            _drop_one(history, blocks)


def aligned_alike(history: History) -> None:
    """Few sizes and alignments: caches and fastbins hold chunks that are aligned, and ones that are not."""
    blocks: list[int] = []
    while not history.full:
        size = history.random.randint(1, history.random.choice((60, 1_100)))
        alignment = 32 << history.random.randint(0, 3)
        for _ in range(history.random.randint(1, 40)):
            if history.random.random() < 0.6:
                blocks.append(history.memalign(alignment, size))
            else:
                blocks.append(history.malloc(size, Domain.LIBC))
        kept = history.random.randint(0, len(blocks))
        while len(blocks) > kept:
            _drop_one(history, blocks)
        if history.random.random() < 0.2:
            blocks.append(history.malloc(history.random.randint(1_100, 9_000), Domain.LIBC))


def aligned_large(history: History) -> None:
    """memalign around the mmap threshold and with alignments of megabytes; some blocks are resized."""
    blocks: list[int] = []
    while not history.full:
        chance = history.random.random()
        if chance < 0.2 and blocks:
            block = history.random.choice(blocks)
            wanted = history.random.choice((history.live[block] // 2, 2 * history.live[block], 100, 140 * KIB))
            history.realloc(block, _size_about(history, wanted, 5_000) % (8 * MIB))
        elif chance < 0.4:
            blocks.append(history.malloc(history.any_size(), Domain.LIBC))
        else:
            size = history.random.choice((100, 5_000, 60 * KIB, 128 * KIB, 300 * KIB, MIB))
            alignment = _alignment(history, 4 * MIB) if history.random.random() < 0.7 else 2 * MIB
            blocks.append(history.memalign(alignment, _size_about(history, size, size // 4)))
        while len(blocks) > history.random.randint(1, 60):
            _drop_one(history, blocks)
        if history.random.random() < 0.002:
            history.trim()


def aligned_threads(history: History) -> None:
    """Threads whose first call is a memalign; they free each other's blocks, and end."""
    blocks: list[int] = []
    born, alive = 1, [0]
    while not history.full:
        chance = history.random.random()
        if chance < 0.005 and len(alive) < 20 and born < 900:
            history.thread = born
            alive.append(born)
            born += 1
        elif chance < 0.008 and history.thread:
            history.end_thread()
            alive.remove(history.thread)
            history.thread = history.random.choice(alive)
        elif chance < 0.03:
            history.thread = history.random.choice(alive)
        if chance < 0.3:
            blocks.append(history.memalign(_alignment(history, 16 * KIB), history.any_size()))
        elif chance < 0.5:
            blocks.append(history.malloc(history.any_size(), Domain.LIBC))
        while len(blocks) > history.random.randint(1, 3_000):
            _drop_one(history, blocks)


SHAPES: dict[str, Callable[[History], None]] = {
    **SMALL_SHAPES,
    **{shape.__name__: shape for shape in (bimodal, mapped, large_bins, stretch, towers, bursts, first_large, trims)},
    **{shape.__name__: shape for shape in (threads, full_heaps, handover)},
    **{shape.__name__: shape for shape in (aligned, aligned_alike, aligned_large, aligned_threads)},
}


def build_shape(name: str, events: int, seed: int = 0) -> MemoryTrace:
    """Returns the trace of a shape with exactly `events` events."""
    history = History(events, seed)
    SHAPES[name](history)
    return history.trace(name)
