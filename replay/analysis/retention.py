"""What retains memory at one moment of a simulation: arenas with their live blocks, and heaps with their chunks."""

from typing import NamedTuple

import numpy as np

from replay.allocators import SpanKind, TopRule, linux
from replay.jit.compiling import entry
from replay.simulation.live_blocks import LiveBlocks
from replay.simulation.snapshots import Snapshot

OF_ALLOCATOR = -1
"""In place of a block, for chunks that are no block of the trace: tables of the allocators."""
CACHED = -2
"""The same for chunks that the program freed, and that a cache of libc keeps."""


_PARTS = 1 << 14
_FIELDS = ("address", "bytes", "allocated_ns", "thread", "site", "domain", "is_small")


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
    requested_bytes: int
    """Of the live blocks."""
    trimmable_bytes: int
    """What malloc_trim(0) would release now."""
    blocks: LiveBlocks
    """Size, time, thread, call site and domain of each block; no addresses."""
    types: np.ndarray
    """The type of each block, once the run has ended; NO_TYPE if it is unknown. Empty if the trace has no types."""
    arenas: np.ndarray
    """Resident bytes of each arena that has live blocks, in falling order."""
    kept_arenas: int
    """How many more arenas without live blocks are not released."""
    arena_of: np.ndarray
    """For each block, the index of its arena; -1 for none."""
    heaps: list[Heap]
    pages: np.ndarray
    page_bytes: int

    @classmethod
    def of(cls, snapshot: Snapshot, *fields: str) -> "Retained":
        """Returns what retains memory at the moment of a snapshot with blocks. `fields`: further ones of the blocks."""
        spans, blocks, pages = snapshot.spans(), snapshot.live_blocks(*_FIELDS, *fields), snapshot.resident_pages()
        first = np.flatnonzero(np.diff(spans["region"], prepend=-1))  # spans of a region are neighbours
        last = np.append(first, len(spans))[1:] - 1
        is_heap = np.logical_or.reduceat(spans["kind"] == SpanKind.TOP_CHUNK, first)
        is_arena = np.logical_or.reduceat(np.isin(spans["kind"], (SpanKind.POOL, SpanKind.FREE_POOL)), first) & ~is_heap
        is_live = is_arena & (np.add.reduceat(spans["live_blocks"], first) > 0)
        arenas = np.add.reduceat(spans["resident_bytes"], first)[is_live]
        order = np.argsort(-arenas, kind="stable")
        limits = (spans["address"] + spans["bytes"])[last[is_live]]
        arena_of = _arenas_of(blocks.address, spans["address"][first[is_live]], limits, np.argsort(order))
        heaps, chunk_blocks = [], _ChunkBlocks(blocks)
        for begin, end in zip(first[is_heap].tolist(), last[is_heap].tolist(), strict=True):
            rule = snapshot.top_rule(int(spans["region"][begin]))
            heaps.append(_heap(spans[begin : end + 1], chunk_blocks, rule))
        return cls(
            at_ns=snapshot.time_ns,
            row=snapshot.rows,
            resident_bytes=int(snapshot.counters["resident_bytes"]),
            requested_bytes=int(snapshot.counters["requested_bytes"]),
            trimmable_bytes=snapshot.trimmable_bytes(),
            blocks=blocks._replace(address=blocks.address[:0]),
            types=snapshot.types(),
            arenas=arenas[order],
            kept_arenas=max(0, snapshot.kept_arenas - int(np.count_nonzero(is_arena & ~is_live))),
            arena_of=arena_of,
            heaps=heaps,
            pages=pages,
            page_bytes=snapshot.page_bytes,
        )

    def released_from(self, heap: Heap, chunks: np.ndarray) -> np.ndarray:
        """Returns the resident bytes that a heap releases if its last `chunks` chunks are gone."""
        top_bytes = heap.end - np.append(heap.ends, heap.start)[chunks]
        starts = heap.end - heap.rule.released_bytes(top_bytes)
        return linux.resident_bytes(self.pages, self.page_bytes, starts, np.full(len(chunks), heap.end))


def _heap(region: np.ndarray, blocks: "_ChunkBlocks", rule: TopRule) -> Heap:
    """Returns the heap with these spans."""
    kept = np.isin(region["kind"], (SpanKind.CHUNK, SpanKind.CACHED_CHUNK, SpanKind.INTERNAL))
    chunks = region[kept][::-1]
    ends = chunks["address"] + chunks["bytes"]
    places = np.where(chunks["kind"] == SpanKind.CHUNK, blocks.places(chunks["address"], ends), OF_ALLOCATOR)
    places[chunks["kind"] == SpanKind.CACHED_CHUNK] = CACHED
    top = region[region["kind"] == SpanKind.TOP_CHUNK][-1]
    return Heap(
        int(chunks["address"].min(initial=top["address"])), int(top["address"] + top["bytes"]), rule, places, ends
    )


class _ChunkBlocks:
    """The live blocks that libc has, by rising address."""

    def __init__(self, blocks: LiveBlocks) -> None:
        of_libc = np.flatnonzero(~blocks.is_small)
        self._places = of_libc[np.argsort(blocks.address[of_libc])]
        self._addresses = np.append(blocks.address[self._places], np.iinfo(np.int64).max)

    def places(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Returns for each stretch the index of the first block in it, OF_ALLOCATOR if there is none."""
        found = np.searchsorted(self._addresses, starts)
        is_inside = self._addresses[found] < ends
        return np.where(is_inside, np.append(self._places, OF_ALLOCATOR)[found], OF_ALLOCATOR)


def _arenas_of(addresses: np.ndarray, starts: np.ndarray, limits: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns the number of the arena that each address lies in, -1 if there is none. `starts` and `limits` rise."""
    if not len(starts):
        return np.full(len(addresses), -1, np.int32)
    shift = max(0, int(limits[-1] - starts[0]).bit_length() - _PARTS.bit_length() + 1)
    parts = starts[0] + (np.arange(_PARTS) << shift)
    first = np.searchsorted(starts, parts, side="right") - 1
    found = np.empty(len(addresses), np.int32)
    _find_arenas(addresses, starts, limits, numbers, first, shift, found)
    return found


@entry
def _find_arenas(
    addresses: np.ndarray,
    starts: np.ndarray,
    limits: np.ndarray,
    numbers: np.ndarray,
    first: np.ndarray,
    shift: int,
    found: np.ndarray,
) -> None:
    """Writes the number of the arena that each address lies in. `first`: the arena in or before which each part of
    1 << `shift` bytes begins."""
    arenas, low, high = starts.shape[0], starts[0], limits[-1]
    for at in range(addresses.shape[0]):
        address = addresses[at]
        if not low <= address < high:
            found[at] = -1
            continue
        place = first[(address - low) >> shift]
        while place + 1 < arenas and starts[place + 1] <= address:
            place += 1
        found[at] = numbers[place] if address < limits[place] else -1
