"""What retains memory at one moment of a simulation: arenas with their live blocks, and heaps with their chunks."""

from typing import NamedTuple

import numpy as np

from replay.allocators import SpanKind, TopRule, linux
from replay.simulation.snapshots import Snapshot

OF_ALLOCATOR = -1
"""In place of a block, for chunks that are no block of the trace: tables of the allocators."""
CACHED = -2
"""The same for chunks that the program freed, and that a cache of libc keeps."""


class Heap(NamedTuple):
    """The chunks of a heap from its end on: the block of each, or OF_ALLOCATOR or CACHED, and where each ends."""

    start: int
    end: int
    rule: TopRule
    blocks: np.ndarray
    ends: np.ndarray


class Retained(NamedTuple):
    """What retains memory at one moment. It does not refer to the simulation."""

    at_ns: int
    row: int
    """The next row of the trace."""
    resident_bytes: int
    trimmable_bytes: int
    """What malloc_trim(0) would release now."""
    blocks: np.ndarray
    """Of type LIVE_BLOCK."""
    arenas: np.ndarray
    """Resident bytes of each arena that has live blocks."""
    kept_arenas: int
    """How many more arenas without live blocks are not released."""
    arena_of: np.ndarray
    """For each block, the index of its arena; -1 for none."""
    heaps: list[Heap]
    pages: np.ndarray
    page_bytes: int

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Retained":
        """Returns what retains memory at the moment of a snapshot with blocks."""
        spans, blocks, pages = snapshot.spans(), snapshot.blocks(), snapshot.resident_pages()
        first = np.flatnonzero(np.diff(spans["region"], prepend=-1))  # spans of a region are neighbours
        ends = np.append(first, len(spans))[1:]
        arenas, starts, limits, heaps, kept_arenas = [], [], [], [], snapshot.kept_arenas
        for begin, end in zip(first.tolist(), ends.tolist(), strict=True):
            region = spans[begin:end]
            if (region["kind"] == SpanKind.TOP_CHUNK).any():
                heaps.append(_heap(region, blocks, snapshot.top_rule(int(region["region"][0]))))
            elif not np.isin(region["kind"], (SpanKind.POOL, SpanKind.FREE_POOL)).any():
                continue
            elif not region["live_blocks"].any():
                kept_arenas = max(0, kept_arenas - 1)
            else:
                arenas.append(int(region["resident_bytes"].sum()))
                starts.append(int(region["address"][0]))
                limits.append(int(region["address"][-1] + region["bytes"][-1]))
        return cls(
            at_ns=snapshot.time_ns,
            row=snapshot.rows,
            resident_bytes=int(snapshot.counters["resident_bytes"]),
            trimmable_bytes=snapshot.trimmable_bytes(),
            blocks=blocks,
            arenas=np.array(arenas, np.int64),
            kept_arenas=kept_arenas,
            arena_of=_places(blocks["address"], np.array(starts, np.int64), np.array(limits, np.int64)),
            heaps=heaps,
            pages=pages,
            page_bytes=snapshot.page_bytes,
        )

    def released_from(self, heap: Heap, chunks: np.ndarray) -> np.ndarray:
        """Returns the resident bytes that a heap releases if its last `chunks` chunks are gone."""
        top_bytes = heap.end - np.append(heap.ends, heap.start)[chunks]
        starts = heap.end - heap.rule.released_bytes(top_bytes)
        return linux.resident_bytes(self.pages, self.page_bytes, starts, np.full(len(chunks), heap.end))


def _heap(region: np.ndarray, blocks: np.ndarray, rule: TopRule) -> Heap:
    """Returns the heap with these spans."""
    kept = np.isin(region["kind"], (SpanKind.CHUNK, SpanKind.CACHED_CHUNK, SpanKind.INTERNAL))
    chunks = region[kept][::-1]
    ends = chunks["address"] + chunks["bytes"]
    places = np.where(
        chunks["kind"] == SpanKind.CHUNK, _blocks_in(blocks["address"], chunks["address"], ends), OF_ALLOCATOR
    )
    places[chunks["kind"] == SpanKind.CACHED_CHUNK] = CACHED
    top = region[region["kind"] == SpanKind.TOP_CHUNK][-1]
    return Heap(
        int(chunks["address"].min(initial=top["address"])), int(top["address"] + top["bytes"]), rule, places, ends
    )


def _blocks_in(addresses: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns for each stretch the index of the block in it, OF_ALLOCATOR if there is none."""
    found = np.searchsorted(addresses, starts)
    is_inside = np.append(addresses, np.iinfo(np.int64).max)[found] < ends
    return np.where(is_inside, found, OF_ALLOCATOR)


def _places(addresses: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns for each address the index of the stretch that it lies in, -1 if there is none."""
    if not len(starts):
        return np.full(len(addresses), -1)
    found = np.searchsorted(starts, addresses, side="right") - 1
    return np.where((found >= 0) & (addresses < ends[found]), found, -1)
