"""Spans: what a model holds at one moment, as rows that together account for every byte it has mapped.

Heap maps, pins and tables are made from spans alone. Reports see the names of `SpanKind`, not the numbers.

A model describes all its spans (`spans`), and may also describe which of them changed since the last call
(`span_changes`). A snapshot then costs one pass over the model's tables, and a row for each change. Such a model
numbers the spans that it can have, for instance by the numbers of its chunks: these are the *items*. A table of SEEN
remembers what was reported last of each item. `report` and `retract` compare it with the present, and write what
differs.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from replay.jit.arrays import copied, record, with_room
from replay.jit.compiling import by_reference, inlined, leaf


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


SPAN = record(
    "address", "bytes", "region", "size_class", "live_blocks", "live_bytes", "free_bytes", "resident_bytes",
    kind=np.uint8,
)  # fmt: skip
"""
    region          address of the arena, heap or mapping that the span is part of: what can be released as a whole
    size_class      bytes of each block of a pool; 0 elsewhere
    live_bytes      allocated, rounding and headers of blocks included
    free_bytes      that the model can hand out again; the rest of `bytes` is overhead
    resident_bytes  in memory; filled in by `Simulator.spans`
"""


NEVER = 1 << 62
"""A threshold that no heap reaches."""


class TopRule(NamedTuple):
    """When a heap's free end is released: from `threshold_bytes` on all but `kept_bytes`, in multiples of `step`."""

    threshold_bytes: int
    kept_bytes: int
    step: int

    def released_bytes(self, top_bytes: np.ndarray) -> np.ndarray:
        """Returns how many bytes are released if so many are free at the end of the heap."""
        released = np.maximum(0, (top_bytes - self.kept_bytes) & -self.step)
        return np.where(top_bytes < self.threshold_bytes, 0, released)


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


SEEN = record("address", "region", "content")
"""What was last reported of an item: its address, 0 if nothing; its region; all else that can change, as one number."""


class SpanChanges(NamedTuple):
    """How a model's spans changed: those at the addresses `gone` are no more; those in `rows` are new, or replace the
    one at the same address. `seen` is what the model wants back when it is asked again."""

    seen: Any
    gone: np.ndarray
    rows: np.ndarray


@by_reference
class Reported(NamedTuple):
    """SEEN by item; room for rows of SPAN and for addresses; `counts`: how many of both are written."""

    seen: np.ndarray
    rows: np.ndarray
    gone: np.ndarray
    counts: np.ndarray


def with_items(reported: Reported | None, items: int) -> Reported:
    """A table of at least so many items, in which nothing is written yet; of what was reported before, if anything."""
    if reported is None:
        reported = Reported(np.zeros(0, SEEN), np.zeros(0, SPAN), np.zeros(0, np.int64), np.zeros(2, np.int64))
    reported.counts[:] = 0
    if items <= reported.seen.shape[0]:
        return reported
    seen = with_room(reported.seen, items)
    return Reported(seen, np.empty(len(seen), SPAN), np.empty(len(seen), np.int64), reported.counts)


def written(reported: Reported) -> SpanChanges:
    """A copy of what a kernel wrote."""
    rows, gone = reported.counts
    return SpanChanges(reported, reported.gone[:gone].copy(), copied(reported.rows[:rows]))


@inlined
def report(reported, item, content, kind, address, size_bytes, region, size_class, live_blocks, live_bytes, free_bytes):
    """The item has this span now: writes a row unless it was reported just so.

    `content` differs wherever another argument does, besides address and region.
    """
    known = reported.seen[np.uint64(item)]
    if known.address == address and known.content == content and known.region == region:
        return
    if known.address != address:
        retract(reported, item)
    known.address, known.region, known.content = address, region, content
    span = reported.rows[reported.counts[0]]
    reported.counts[0] += 1
    span.kind, span.address, span.bytes, span.region = kind, address, size_bytes, region
    span.size_class, span.live_blocks = size_class, live_blocks
    span.live_bytes, span.free_bytes, span.resident_bytes = live_bytes, free_bytes, 0


@leaf
def report_simple(reported, item, kind, address, size_bytes, region, is_free):
    """The same for a span without live blocks: all of it is free, or none; without bytes it is no span."""
    if size_bytes > 0:
        free_bytes = size_bytes if is_free else 0
        report(reported, item, size_bytes << 8 | kind, kind, address, size_bytes, region, 0, 0, 0, free_bytes)
    else:
        retract(reported, item)


@inlined
def retract(reported, item):
    """The item has no span now."""
    known = reported.seen[np.uint64(item)]
    if known.address:
        reported.gone[reported.counts[1]] = known.address
        reported.counts[1] += 1
        known.address = 0


def differing(before: np.ndarray, now: np.ndarray) -> SpanChanges:
    """The changes from all spans of one moment to all of another; `seen` is the latter, by rising address."""
    now = now[np.argsort(now["address"])]
    place = np.searchsorted(before["address"], now["address"])
    is_same = np.append(before, np.zeros(1, SPAN))[place] == now
    return SpanChanges(now, np.setdiff1d(before["address"], now["address"]), now[~is_same])
