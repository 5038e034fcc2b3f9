"""Reduces a trace on which a model differs, until a person can read it.

Delta debugging over blocks: removes smaller and smaller groups of blocks with all their events, while the difference
remains. At the end, no single block can be removed.
"""

from collections.abc import Callable

import numpy as np

from replay.trace import Domain, Events, MemoryTrace, Op, joined
from replay.trace.block_ops import allocates, concerns_block
from replay.trace.events import nulls


def shrink(trace: MemoryTrace, differs: Callable[[MemoryTrace], bool]) -> MemoryTrace:
    """Returns a minimal trace for which `differs` is True; it must be True for `trace`."""
    events = _joined(trace)
    allocation_rows = _allocation_rows(events)
    kept = np.unique(allocation_rows)
    group = max(1, len(kept) // 2)
    while True:
        before = len(kept)
        start = 0
        while start < len(kept):
            fewer = np.delete(kept, slice(start, start + group))
            if len(fewer) and differs(_only(events, allocation_rows, fewer)):
                kept = fewer
            else:
                start += group
        if group == 1 and len(kept) == before:
            return _only(events, allocation_rows, kept)
        group = max(1, group // 2)


def describe(trace: MemoryTrace) -> str:
    """Returns one line for each event, for messages of tests."""
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
    """Returns the trace as one batch, without optional columns except alignments."""
    return joined([batch.keep_optional("alignment") for batch in trace.batches()])


def _allocation_rows(events: Events) -> np.ndarray:
    """Returns for each event the row of its block's allocation; for rows without a block, the row itself."""
    born: dict[int, int] = {}
    allocation_rows = np.arange(events.rows)
    for row, (op, block) in enumerate(zip(events.op.tolist(), events.block.tolist(), strict=True)):
        if allocates(op):
            born[block] = row
        elif concerns_block(op):
            allocation_rows[row] = born[block]
    return allocation_rows


def _only(events: Events, allocation_rows: np.ndarray, kept: np.ndarray) -> MemoryTrace:
    """Returns the events of some blocks, by the row of the allocation. Blocks keep their numbers."""
    rows = np.isin(allocation_rows, kept)
    return MemoryTrace([events.where(rows)])
