"""The memory of a process as a snapshot of PyTorch's memory visualizer (https://pytorch.org/memory_viz).

    segment   an arena, a heap or a mapping. Its blocks follow each other, so their sizes add up to its own
    block     `active_allocated`: a live block, with its call site as the frame; `inactive`: all memory between two

A block of glibc begins with its header, as its chunk does. The visualizer reads no other types than dict, list, str and
int.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from replay.allocators import SpanKind
from replay.analysis.moments import Memory
from replay.support.errors import ReplayError
from replay.trace import Site

PROTOCOL = 4
"""Of pickle: the latest that the visualizer reads."""
_SMALL = (SpanKind.POOL, SpanKind.FREE_POOL)
_CHUNKS = (SpanKind.CHUNK, SpanKind.MAPPING)
"""Kinds of spans that are one block with its header."""
Record = dict[str, Any]


def snapshot(processes: Sequence[Memory], sites: Sequence[Site]) -> Record:
    """Returns the object to pickle. Each process, whose `blocks` must be known, is a device."""
    frames = [[{"name": site.function, "filename": site.file, "line": site.line}] for site in sites]
    segments = [segment for memory in processes for segment in _segments(memory, [*frames, []])]
    return {"segments": segments, "device_traces": [[] for _ in processes]}


def _segments(memory: Memory, frames: list[list[Record]]) -> Iterator[Record]:
    """Yields a segment for each region; several for a region with gaps."""
    spans, blocks = memory.spans, _placed(memory)
    ends = spans["address"] + spans["bytes"]
    is_first = np.append(True, (np.diff(spans["region"]) != 0) | (spans["address"][1:] != ends[:-1]))[: len(spans)]
    first = np.flatnonzero(is_first)
    for begin, end in zip(first.tolist(), [*first[1:].tolist(), len(spans)], strict=True):
        start, stop = int(spans["address"][begin]), int(ends[end - 1])
        low, high = np.searchsorted(blocks["address"], (start, stop))
        mine = blocks[low:high]
        yield {
            "device": memory.process,
            "address": start,
            "total_size": stop - start,
            "allocated_size": int(mine["bytes"].sum()),
            "active_size": int(mine["bytes"].sum()),
            "requested_size": int(mine["requested_bytes"].sum()),
            "stream": 0,
            "segment_type": "small" if np.isin(spans["kind"][begin:end], _SMALL).any() else "large",
            "blocks": [*_tiled(mine, start, stop, frames)],
        }


def _placed(memory: Memory) -> np.ndarray:
    """Returns the live blocks with their headers. Raises ReplayError if they lie outside of all spans."""
    assert memory.blocks is not None
    blocks, spans = memory.blocks.copy(), memory.spans
    places = np.searchsorted(spans["address"], blocks["address"], side="right") - 1
    inside = places >= 0
    inside[inside] = blocks["address"][inside] < (spans["address"] + spans["bytes"])[places[inside]]
    if not inside.all():
        raise ReplayError("memory_viz needs the addresses of blocks, which the model `ideal` does not have; choose -a")
    is_chunk = np.isin(spans["kind"][places], _CHUNKS)
    for name in ("address", "bytes"):
        blocks[name][is_chunk] = spans[name][places[is_chunk]]
    return blocks


def _tiled(blocks: np.ndarray, start: int, stop: int, frames: list[list[Record]]) -> Iterator[Record]:
    """Yields the live blocks, and what lies between them, from `start` to `stop`."""
    at = start
    sites = np.minimum(blocks["site"], len(frames) - 1).tolist()
    rows = zip(*(blocks[name].tolist() for name in ("address", "bytes", "requested_bytes")), sites, strict=True)
    for address, size_bytes, requested_bytes, site in rows:
        if address > at:
            yield _block(at, address - at, 0, "inactive", frames[-1])
        yield _block(address, size_bytes, requested_bytes, "active_allocated", frames[site])
        at = address + size_bytes
    if at < stop:
        yield _block(at, stop - at, 0, "inactive", frames[-1])


def _block(address: int, size_bytes: int, requested_bytes: int, state: str, frames: list[Record]) -> Record:
    sizes = {"address": address, "size": size_bytes, "requested_size": requested_bytes}
    return {**sizes, "state": state, "frames": frames}
