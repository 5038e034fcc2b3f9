"""Spans: what a model holds at one moment, as rows that together account for every byte it has mapped.

Heap maps, pins and tables are made from spans alone. Reports see the names of `SpanKind`, not the numbers.
"""

from enum import IntEnum

import numpy as np


class SpanKind(IntEnum):
    """What a stretch of mapped memory is to the model that holds it."""

    POOL = 0
    """A pool with live blocks of one size class."""
    FREE_POOL = 1
    """A pool, or several never used ones in a row, without a live block."""
    CHUNK = 2
    """A live block with its header."""
    FREE_CHUNK = 3
    """Free, merged with its neighbours and in a bin."""
    CACHED_CHUNK = 4
    """Freed by the program and kept in a fastbin or a thread's cache."""
    TOP_CHUNK = 5
    """Free memory at the end of a heap."""
    MAPPING = 6
    """A live block in a mapping of its own."""
    CACHED_MAPPING = 7
    """Such a mapping, freed by the program and kept in a thread's cache."""
    INTERNAL = 8
    """Headers and tables of the allocator itself, and padding."""
    TRIMMED = 9
    """Past the end of a heap that became shorter: released, but still mapped."""
    HEAP = 10
    """All of a heap whose model does not report its parts."""


SPAN = np.dtype(
    [
        ("address", np.int64),
        ("bytes", np.int64),
        ("kind", np.uint8),
        ("region", np.int64),
        ("size_class", np.int64),
        ("live_blocks", np.int64),
        ("live_bytes", np.int64),
        ("free_bytes", np.int64),
        ("resident_bytes", np.int64),
    ]
)
"""
    region          address of the arena, heap or mapping that the span is part of: what can be released as a whole
    size_class      bytes of each block of a pool; 0 elsewhere
    live_bytes      allocated, rounding and headers of blocks included
    free_bytes      that the model can hand out again; the rest of `bytes` is overhead
    resident_bytes  in memory; filled in by `Simulator.spans`
"""


def span_rows(
    kind: SpanKind,
    address: np.ndarray,
    size_bytes: np.ndarray,
    region: np.ndarray,
    *,
    live_blocks: np.ndarray | int = 0,
    live_bytes: np.ndarray | int = 0,
    free_bytes: np.ndarray | int = 0,
    size_class: np.ndarray | int = 0,
) -> np.ndarray:
    """Rows of SPAN of one kind; spans of no bytes are left out."""
    rows = np.zeros(len(address), SPAN)
    rows["kind"] = kind
    rows["address"], rows["bytes"], rows["region"] = address, size_bytes, region
    rows["live_blocks"], rows["live_bytes"], rows["free_bytes"] = live_blocks, live_bytes, free_bytes
    rows["size_class"] = size_class
    return rows[rows["bytes"] > 0]
