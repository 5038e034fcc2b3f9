"""Makes a trace on which a model differs small enough to read.

Delta debugging over the lives of blocks: as long as the difference stays, ever smaller groups of blocks are left out
with all their events. What remains cannot lose a single block.
"""

from collections.abc import Callable

import numpy as np

from replay.trace import Domain, Events, MemoryTrace, Op, joined
from replay.trace.block_ops import allocates, concerns_block
from replay.trace.events import nulls


def shrink(trace: MemoryTrace, differs: Callable[[MemoryTrace], bool]) -> MemoryTrace:
    """The smallest trace found on which `differs` still holds; it must hold on `trace`."""
    events = _joined(trace)
    lives = _lives(events)
    kept = np.unique(lives)
    group = max(1, len(kept) // 2)
    while True:
        before = len(kept)
        start = 0
        while start < len(kept):
            fewer = np.delete(kept, slice(start, start + group))
            if len(fewer) and differs(_only(events, lives, fewer)):
                kept = fewer
            else:
                start += group
        if group == 1 and len(kept) == before:
            return _only(events, lives, kept)
        group = max(1, group // 2)


def describe(trace: MemoryTrace) -> str:
    """One line an event, for a test's message."""
    lines = []
    for batch in trace.batches():
        alignments = nulls("alignment", batch.rows) if batch.alignment is None else batch.alignment
        columns = (batch.op, batch.domain, batch.block, batch.size, alignments)
        for row, (op, domain, block, size, alignment) in enumerate(
            zip(*(each.tolist() for each in columns), strict=True)
        ):
            aligned = f" at a multiple of {alignment}" if alignment else ""
            lines.append(
                f"{row}: {Op(op).name.lower()} {Domain(domain).name.lower()} block {block}, {size} bytes{aligned}"
            )
    return "\n".join(lines)


def _joined(trace: MemoryTrace) -> Events:
    """One batch, without the optional columns but alignments."""
    return joined([batch.keep_optional("alignment") for batch in trace.batches()])


def _lives(events: Events) -> np.ndarray:
    """The life each event belongs to: the row in which its block was born; rows that move none have their own."""
    born: dict[int, int] = {}
    lives = np.arange(events.rows)
    for row, (op, block) in enumerate(zip(events.op.tolist(), events.block.tolist(), strict=True)):
        if allocates(op):
            born[block] = row
        elif concerns_block(op):
            lives[row] = born[block]
    return lives


def _only(events: Events, lives: np.ndarray, kept: np.ndarray) -> MemoryTrace:
    """The events of some lives; blocks keep their numbers."""
    rows = np.isin(lives, kept)
    return MemoryTrace([events.where(rows)])
