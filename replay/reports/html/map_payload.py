"""The heap map as data of a page: JSON about regions and moments, and the changes of cells, compressed.

`heap_map.js` reads it, and explains the layout of the compressed columns.
"""

import gzip
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from replay.analysis.heap_history import CELL, CLASS_LIMITS, NOTHING, Frame, HeapMap, RegionKind

MAP_BYTES_MAX = 24 << 20
"""More compressed bytes than that make a page slow to open: every second moment is then merged with the next one."""
_COLUMNS = (
    "mapped_bytes",
    "live_bytes",
    "free_bytes",
    "resident_bytes",
    "blocks",
    "oldest",
    "size_class",
    "site",
    "type",
)
_KINDS = {
    RegionKind.ARENA: ("Arena", "Arenas"),
    RegionKind.HEAP: ("Heap", "Heaps of the C library"),
    RegionKind.MAPPING: ("Mapping", "Mappings of large blocks"),
}
_BLOCK_COLUMNS = (
    ("cell", 4), ("offset", 4), ("bytes", 4), ("requested", 4), ("since", 4), ("thread", 4), ("site", 2),
)  # fmt: skip


def map_payload(
    found: HeapMap,
    sites: Sequence[str],
    types: Sequence[str],
    codes: np.ndarray,
    processes: Sequence[str],
    *,
    limit_bytes: int = MAP_BYTES_MAX,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the JSON of the map, and compressed data by the name of its element.

    `sites`, `types`: the names of call sites and types by their code in the map; `codes`: the code of each call site
    of the trace.
    """
    frames, data = found.frames, _changes(found.frames)
    while len(data) > limit_bytes and len(fewer := _halved(frames)) < len(frames):
        frames = fewer
        data = _changes(frames)
    payload = {"map-data": b64encode(data).decode()}
    lists = []
    for number, frame in enumerate(frames):
        if frame.blocks is not None and len(frame.blocks):
            lists.append({"frame": number, "length": len(frame.blocks)})
            payload[f"map-blocks-{number}"] = b64encode(_blocks(found, frame, codes)).decode()
    meta = {
        "unit_ns": found.unit_ns,
        "cells": found.cells,
        "columns": [["cell", 4], *([name, CELL[name].itemsize] for name in _COLUMNS)],
        "block_columns": _BLOCK_COLUMNS,
        "class_limits": CLASS_LIMITS.tolist(),
        "has_origins": any(len(frame.values) and frame.values["oldest"].any() for frame in frames),
        "names": [name for name, _ in _KINDS.values()],
        "kinds": [_titled(kind, found) for kind in RegionKind],
        "sites": list(sites),
        "types": list(types),
        "processes": list(processes) if len(processes) > 1 else [""],
        "regions": [
            {
                "process": region.process,
                "address": region.address,
                "kind": int(region.kind),
                "cell_bytes": region.cell_bytes,
                "cells": region.cells,
            }
            for region in found.regions
        ],
        "frames": [{"time_ns": each.time_ns, "label": each.label, "changes": len(each.cells)} for each in frames],
        "lists": lists,
    }
    return meta, payload


def _titled(kind: RegionKind, found: HeapMap) -> str:
    regions = [region for region in found.regions if region.kind is kind]
    lengths = sorted({region.cell_bytes for region in regions})
    title = _KINDS[kind][1]
    if not lengths:
        return title
    cells = f"{lengths[0] // 1024:,} KiB" if len(lengths) == 1 else f"{lengths[0] // 1024:,} KiB or more"
    return f"{title} ({len(regions):,}), {cells} a cell"


def _halved(frames: list[Frame]) -> list[Frame]:
    """Returns every second frame, with the changes of the one before; frames with a label stay."""
    kept: list[Frame] = []
    waiting: list[Frame] = []
    for number, frame in enumerate(frames):
        waiting.append(frame)
        if number % 2 == 0 or frame.label or number == len(frames) - 1:
            cells = np.concatenate([each.cells for each in waiting])[::-1]
            values = np.concatenate([each.values for each in waiting])[::-1]
            cells, places = np.unique(cells, return_index=True)
            kept.append(replace(frame, cells=cells, values=values[places]))
            waiting = []
    return kept


def _changes(frames: Sequence[Frame]) -> bytes:
    cells = [np.diff(frame.cells, prepend=0).astype(np.uint32) for frame in frames]
    columns = [np.concatenate([np.zeros(0, np.uint32), *cells])]
    columns += [
        np.concatenate([np.zeros(0, CELL[name]), *(frame.values[name] for frame in frames)]) for name in _COLUMNS
    ]
    return _packed(columns)


def _blocks(found: HeapMap, frame: Frame, codes: np.ndarray) -> bytes:
    """Returns the columns of the blocks of a moment, by cell."""
    blocks, cells = frame.blocks, frame.block_cells
    assert blocks is not None
    assert cells is not None
    order = np.argsort(cells, kind="stable")
    offsets = blocks["address"] - found.addresses()[cells]
    sites = (
        codes[np.minimum(blocks["site"], len(codes) - 1).astype(np.int64)]
        if len(codes)
        else np.full(len(blocks), NOTHING)
    )
    columns = [
        np.diff(cells[order], prepend=0).astype(np.uint32),
        *(
            np.clip(column[order], 0, (1 << 32) - 1).astype(np.uint32)
            for column in (
                offsets, blocks["bytes"], blocks["requested_bytes"],
                blocks["allocated_ns"] // found.unit_ns, blocks["thread"],
            )
        ),
        sites[order].astype(np.uint16),
    ]  # fmt: skip
    return _packed(columns)


def _packed(columns: Sequence[np.ndarray]) -> bytes:
    """Returns the columns as planes of bytes, compressed."""
    planes = [column.view(np.uint8).reshape(len(column), column.itemsize).T.tobytes() for column in columns]
    return gzip.compress(b"".join(planes), 6, mtime=0)
