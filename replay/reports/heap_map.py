"""Text and JSON of `replay map`: arenas as rows of pools, heaps as strips of cells, mappings as lines."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from replay.analysis.heap_map import Region, RegionKind, cells, merged, pool_bytes, regions
from replay.analysis.moments import Memory
from replay.support.names import printable
from replay.support.units import format_count, format_size, format_time

COLUMNS = 64
"""Cells in a row: the pools of an arena, in the default settings of every CPython."""
_ROWS_MAX = 24
"""Without `full`, cells of arenas are merged until there are at most so many rows; the same for each heap."""
_HEAP_ROWS = 8
_HEAPS_SHOWN = 8
_CELL_MIN = 64
_MAPPINGS_SHOWN = 8
_LEVELS = ((0.75, "█", "blue"), (0.5, "▓", "cyan"), (0.25, "▒", "yellow"), (0.0, "░", "red"))
"""Glyphs of cells of which at least this share is allocated."""
_FREE, _NOT_RESIDENT = "·", " "


class Scale(NamedTuple):
    """How large cells are: fixed while a map is animated."""

    merged_pools: int
    """Pools in a cell of arenas."""
    heap_bytes: int
    """Bytes of a cell of a heap."""

    @classmethod
    def of(cls, found: Sequence[Region], *, full: bool, page_bytes: int) -> "Scale":
        """Returns the smallest cells with which the map is short; with `full`, pools and pages."""
        arenas = _of_kind(found, RegionKind.ARENA)
        heap_bytes = max([region.bytes for region in _of_kind(found, RegionKind.HEAP)], default=0)
        pools = sum(region.bytes for region in arenas) // max(pool_bytes(arenas), 1)
        if full:
            return cls(1, page_bytes)
        rows = max(len(arenas), -(-pools // COLUMNS))
        merged_pools = 1 if rows <= _ROWS_MAX else _power_of_2(pools / (COLUMNS * _ROWS_MAX))
        return cls(merged_pools, max(_CELL_MIN, _power_of_2(heap_bytes / (COLUMNS * _HEAP_ROWS))))


def _power_of_2(least: float) -> int:
    """Returns the smallest power of 2 that is not below."""
    return 1 << max(int(np.ceil(least)) - 1, 0).bit_length()


def legend(memory: Memory, scale: Scale) -> list[Text]:
    """Returns the meaning of glyphs, colours and cells; nothing for a map without cells."""
    found = regions(memory.spans)
    arenas = _of_kind(found, RegionKind.ARENA)
    kinds = []
    if arenas:
        pools = "a pool" if scale.merged_pools == 1 else f"{scale.merged_pools} pools"
        kinds.append(f"{pools} of {format_size(pool_bytes(arenas))} in arenas")
    if _of_kind(found, RegionKind.HEAP):
        kinds.append(f"{format_size(scale.heap_bytes)} in heaps")
    if not kinds:
        return []
    text = Text.assemble(("allocated: ", "dim"))
    for (share, glyph, style), sign in zip(_LEVELS, ("≥ ", "≥ ", "≥ ", ""), strict=True):
        text.append(glyph, style).append(f" {sign}{f'{share:.0%}'.replace('%', ' %')}  " if sign else " less  ", "dim")
    text.append(f"{_FREE} nothing  blank: not in memory", "dim")
    return [Text(f"a cell: {', '.join(kinds)}", style="dim"), text]


def map_lines(memory: Memory, scale: Scale, *, fold: bool = True, full: bool = False) -> Iterator[Text]:
    """Yields the lines of the map of a process.

    `fold`: of rows in sequence that look the same, only the first one. `full`: all mappings, not only the largest ones.
    """
    found = regions(memory.spans)
    arenas = _of_kind(found, RegionKind.ARENA)
    if arenas:
        yield _title(format_count(len(arenas), "arena"), arenas)
        yield from _rows(_rows_of_arenas(arenas, scale.merged_pools, memory), fold)
    heaps = sorted(_of_kind(found, RegionKind.HEAP), key=lambda heap: -heap.bytes)
    left = [] if full else heaps[_HEAPS_SHOWN:]
    for region in sorted(heaps[: len(heaps) - len(left)], key=lambda heap: heap.address):
        yield _title(f"heap at {region.address:#x}", [region])
        strip = cells(region, scale.heap_bytes, memory.pages, memory.page_bytes)
        yield from _rows([strip[at : at + COLUMNS] for at in range(0, len(strip), COLUMNS)], fold)
    if left:
        yield _title(format_count(len(left), "smaller heap"), left).append("; --full draws them", "dim")
    for region in _of_kind(found, RegionKind.WHOLE):
        yield _title(f"heap at {region.address:#x}", [region])
        yield Text("  The model of this heap does not report its parts.", style="dim")
    yield from _mappings(_of_kind(found, RegionKind.MAPPING), full)


def _of_kind(found: Sequence[Region], kind: RegionKind) -> list[Region]:
    return [region for region in found if region.kind is kind]


def _title(name: str, found: Sequence[Region]) -> Text:
    size, allocated = sum(each.bytes for each in found), sum(each.live_bytes for each in found)
    resident = format_size(sum(each.resident_bytes for each in found))
    text = Text.assemble("\n", (name, "bold"))
    return text.append(f": {format_size(size)}, {resident} resident, {format_size(allocated)} allocated")


def _rows_of_arenas(arenas: Sequence[Region], count: int, memory: Memory) -> list[np.ndarray]:
    """Returns rows of cells: each arena begins a row if its cells are pools; otherwise arenas follow each other."""
    pool = pool_bytes(arenas)
    pools = [cells(region, pool, memory.pages, memory.page_bytes) for region in arenas]
    parts = pools if count == 1 else [merged(np.concatenate(pools), count)]
    return [part[at : at + COLUMNS] for part in parts for at in range(0, len(part), COLUMNS)]


def _rows(rows: Sequence[np.ndarray], fold: bool) -> Iterator[Text]:
    """Yields a line for each row; with `fold`, rows that look the same are one, and a sentence says how many."""
    shown = [(_glyphs(row), row) for row in rows]
    at = 0
    while at < len(shown):
        glyphs, row = shown[at]
        same = 1
        while fold and at + same < len(shown) and shown[at + same][0].plain == glyphs.plain:
            same += 1
        share = _percent(int(row["live_bytes"].sum()), int(row["bytes"].sum()))
        line = Text.assemble((f"…{int(row['address'][0]) & 0xFFFFFFFF:08x}", "dim"), f" {share:>5} ", glyphs)
        line.rstrip()
        yield line
        if same > 1:
            yield Text(f"{'':16}{format_count(same - 1, 'more row')} like this", style="dim")
        at += same


def _percent(part: int, whole: int) -> str:
    """Returns a share without decimals; 0 % and 100 % only if it is exactly that."""
    rounded = round(100 * part / whole) if whole else 0
    return f"{'<1' if not rounded and part else '>99' if rounded == 100 and part < whole else rounded} %"


def _glyphs(row: np.ndarray) -> Text:
    text = Text()
    for live, size, resident in zip(
        *(row[name].tolist() for name in ("live_bytes", "bytes", "resident_bytes")), strict=True
    ):
        if live:
            share = live / size
            _, glyph, style = next(each for each in _LEVELS if share >= each[0])
            text.append(glyph, style)
        else:
            text.append(_FREE if resident else _NOT_RESIDENT, "dim")
    text.rstrip()
    return text


def _mappings(found: Sequence[Region], full: bool) -> Iterator[Text]:
    if not found:
        return
    yield _title(format_count(len(found), "mapping"), found)
    largest = sorted(found, key=lambda region: -region.bytes)
    shown = largest if full else largest[:_MAPPINGS_SHOWN]
    for region in shown:
        state = "live" if region.live_bytes else "freed, kept in a cache"
        yield Text(f"  {format_size(region.bytes):>10}  {state}, at {region.address:#x}")
    if left := largest[len(shown) :]:
        yield Text(
            f"  and {len(left):,} more, {format_size(sum(region.bytes for region in left))}: --full", style="dim"
        )


def print_map(console: Console, title: str, at: str, processes: Sequence[tuple[str, Memory]], *, full: bool) -> None:
    """Prints the map of each process; the name of the only one is empty."""
    moment = {"end": "at the end", "peak": "at the peak"}.get(at, f"at {at}")
    at_ns = processes[0][1].at_ns
    console.print(Text(f"{printable(title)}, {moment} ({format_time(at_ns)})", style="bold"), soft_wrap=True)
    for name, memory in processes:
        if name:
            console.print(Text(f"\n{printable(name)}", style="bold"))
        console.print(summary_line(memory))
        scale = Scale.of(regions(memory.spans), full=full, page_bytes=memory.page_bytes)
        for line in map_lines(memory, scale, fold=not full, full=full):
            console.print(line, soft_wrap=True)
        for number, line in enumerate(legend(memory, scale)):
            console.print(Text("\n" * (not number)).append_text(line), soft_wrap=True)


def summary_line(memory: Memory) -> Text:
    """Returns resident, live and retained bytes."""
    resident, live = memory.resident_bytes, memory.requested_bytes
    return Text(f"{format_size(resident)} resident: {format_size(live)} live, {format_size(resident - live)} retained")


def map_json(processes: Sequence[tuple[str, Memory]]) -> dict[str, Any]:
    """Returns the map as JSON: cells of arenas are pools; those of heaps have the size of a page or more."""
    return {"at_ns": processes[0][1].at_ns, "processes": [_process_json(*each) for each in processes]}


def _process_json(name: str, memory: Memory) -> dict[str, Any]:
    found = regions(memory.spans)
    pool = pool_bytes(_of_kind(found, RegionKind.ARENA))
    scale = Scale.of(found, full=False, page_bytes=memory.page_bytes)
    cell_bytes = {RegionKind.ARENA: pool, RegionKind.HEAP: max(scale.heap_bytes, memory.page_bytes)}
    listed = []
    for region in found:
        each: dict[str, Any] = {key: value for key, value in region._asdict().items() if key != "spans"}
        if region.kind in cell_bytes:
            rows = cells(region, cell_bytes[region.kind], memory.pages, memory.page_bytes)
            each["cells"] = {key: rows[key].tolist() for key in rows.dtype.names or ()}
        listed.append(each)
    return {
        "name": name,
        "requested_bytes": memory.requested_bytes,
        "resident_bytes": memory.resident_bytes,
        "regions": listed,
    }
