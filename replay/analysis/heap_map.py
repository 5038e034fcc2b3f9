"""The heap map of a process at one moment: regions, and cells with what lies in them. Made from spans alone.

region   an arena, a heap or a mapping: what is released as a whole, or from its end
cell     a stretch of a region; of an arena, a pool. Its live bytes are exact where it has whole spans or whole chunks;
         of a part of a pool, they are its share
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from replay.allocators import SpanKind, linux
from replay.jit.arrays import record

CELL = record("address", "bytes", "live_bytes", "resident_bytes", "size_class")
"""
    bytes        of merged cells: of all of them, which may have gaps between them
    size_class   bytes of each block of the pool; 0 if there is no pool, or several of different classes
"""
_POOLS = (SpanKind.POOL, SpanKind.FREE_POOL)
_MAPPINGS = (SpanKind.MAPPING, SpanKind.CACHED_MAPPING)


class RegionKind(StrEnum):
    """What a region is."""

    ARENA = "arena"
    HEAP = "heap"
    MAPPING = "mapping"
    WHOLE = "whole heap"
    """A heap whose model does not report its parts."""


class Region(NamedTuple):
    """A region and its spans, by rising address."""

    kind: RegionKind
    address: int
    bytes: int
    live_bytes: int
    resident_bytes: int
    spans: np.ndarray


def regions(spans: np.ndarray) -> list[Region]:
    """Returns the regions of a process, by rising address, from all its spans."""
    first = np.flatnonzero(np.diff(spans["region"], prepend=-1))
    return [_region(part) for part in np.split(spans, first[1:])] if len(spans) else []


def _region(spans: np.ndarray) -> Region:
    kinds = spans["kind"]
    kind = RegionKind.HEAP
    for each, members in (
        (RegionKind.ARENA, _POOLS), (RegionKind.MAPPING, _MAPPINGS), (RegionKind.WHOLE, (SpanKind.HEAP,)),
    ):  # fmt: skip
        if np.isin(kinds, members).any():
            kind = each
    size, live, resident = (int(spans[name].sum()) for name in ("bytes", "live_bytes", "resident_bytes"))
    return Region(kind, int(spans["address"][0]), size, live, resident, spans)


def pool_bytes(arenas: Sequence[Region]) -> int:
    """Returns the size of a pool: the largest that divides all spans of pools, some of which are several pools."""
    sizes = [region.spans["bytes"][np.isin(region.spans["kind"], _POOLS)] for region in arenas]
    return int(np.gcd.reduce(np.concatenate([np.zeros(0, np.int64), *sizes])))


def cells(region: Region, cell_bytes: int, pages: np.ndarray, page_bytes: int) -> np.ndarray:
    """Returns rows of CELL, each of `cell_bytes` except the last one. Those of an arena begin at its first pool.

    `pages`: addresses of the resident pages.
    """
    spans = region.spans
    if region.kind is RegionKind.ARENA:
        spans = spans[np.isin(spans["kind"], _POOLS)]
    end = int(spans["address"][-1] + spans["bytes"][-1])
    starts = np.arange(int(spans["address"][0]), end, cell_bytes)
    ends = np.append(starts[1:], end)
    found = np.zeros(len(starts), CELL)
    found["address"], found["bytes"] = starts, ends - starts
    found["live_bytes"] = np.diff(_live_before(spans, np.append(starts, end)))
    found["resident_bytes"] = linux.resident_bytes(pages, page_bytes, starts, ends)
    place = np.searchsorted(spans["address"], starts, side="right") - 1
    is_within = spans["address"][place] + spans["bytes"][place] >= ends
    found["size_class"] = np.where(is_within, spans["size_class"][place], 0)
    return found


def _live_before(spans: np.ndarray, addresses: np.ndarray) -> np.ndarray:
    """Returns how many live bytes lie below each address."""
    place = np.searchsorted(spans["address"], addresses, side="right") - 1
    live, size_bytes = spans["live_bytes"][place], spans["bytes"][place]
    within = np.minimum(addresses - spans["address"][place], size_bytes)
    share = np.where(within == size_bytes, live, (live / size_bytes * within).astype(np.int64))
    before: np.ndarray = (np.cumsum(spans["live_bytes"]) - spans["live_bytes"])[place]
    return before + np.where(live == size_bytes, within, share)


def merged(found: np.ndarray, count: int) -> np.ndarray:
    """Returns rows of CELL, each the sum of `count` consecutive ones."""
    first = np.arange(0, len(found), count)
    sums = found[first]
    for name in ("bytes", "live_bytes", "resident_bytes"):
        sums[name] = np.add.reduceat(found[name], first)
    is_one = np.minimum.reduceat(found["size_class"], first) == np.maximum.reduceat(found["size_class"], first)
    sums["size_class"][~is_one] = 0
    return sums
