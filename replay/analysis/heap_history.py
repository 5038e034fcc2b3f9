"""The heap map over a run: what each cell of memory held at each of a row of moments.

A *region* is what an allocator maps as a whole: an arena, a heap, a mapping. It is divided into *cells* of equal
length. A cell of an arena is a pool, or several pools if there are many; other cells are a page or more. `HeapHistory`
is a sink of snapshots. It keeps only the cells that changed since the moment before.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from replay.allocators import SpanKind
from replay.jit.arrays import at_places, concatenated, extend, record
from replay.jit.compiling import entry, inlined
from replay.simulation.loop import CLASSES, class_limit
from replay.simulation.snapshots import END, PEAK, Snapshot

ARENA_CELLS_MAX, OTHER_CELLS_MAX, MAPPING_CELLS = 1 << 17, 1 << 15, 64
"""About so many cells of arenas, of heaps, and of one mapping."""
CELL_BYTES_MAX = 1 << 31
LISTED_BLOCKS = 40_000
"""The live blocks of a labelled moment are listed, at most so many: those of the emptiest regions first."""
LISTED_BLOCKS_OF_PHASES = 10 * LISTED_BLOCKS
"""Phases that begin after so many blocks of phases were listed have no list."""
NOTHING = (1 << 16) - 1
"""In place of a code: no live block, or its call site is unknown."""
CELL = record(
    mapped_bytes=np.uint32, live_bytes=np.uint32, free_bytes=np.uint32, resident_bytes=np.uint32, blocks=np.uint32,
    oldest=np.uint32, size_class=np.uint16, site=np.uint16, type=np.uint16,
)  # fmt: skip
"""
    live_bytes, free_bytes   as of SPAN; a span that extends over several cells counts in proportion
    blocks                   live blocks that begin in the cell
    oldest                   time of the oldest allocation that has live bytes here, in units of `HeapHistory.unit_ns`
    size_class, site, type   of most live bytes: an index of CLASS_LIMITS, the code of a call site, the code of a
                             Python type; or NOTHING
"""
CLASS_LIMITS = np.array([class_limit(index) for index in range(CLASSES)], np.int64)
"""The largest block of each size class."""


class RegionKind(IntEnum):
    """What a region is."""

    ARENA = 0
    HEAP = 1
    MAPPING = 2


_KIND_OF_SPAN = {
    SpanKind.POOL: RegionKind.ARENA,
    SpanKind.FREE_POOL: RegionKind.ARENA,
    SpanKind.MAPPING: RegionKind.MAPPING,
    SpanKind.CACHED_MAPPING: RegionKind.MAPPING,
}


@dataclass
class Region:
    """A region that existed at one moment at least. Regions of one process are the same if address, kind and length of
    cells are equal."""

    process: int
    address: int
    """The first byte of its first cell."""
    kind: RegionKind
    cell_bytes: int
    cells: int = 0
    """The most that it had."""
    first: int = 0
    last: int = 0
    """The moments between which it existed."""


@dataclass
class Frame:
    """The changes of cells between a moment and the one before."""

    time_ns: int
    label: str
    """`peak`, `end` or a phase; empty for others."""
    cells: np.ndarray
    """Numbers of cells: the regions' cells one after the other."""
    values: np.ndarray
    """Rows of CELL."""
    blocks: np.ndarray | None = None
    """Some live blocks, rows of LIVE_BLOCK, if the moment has a label."""
    block_cells: np.ndarray | None = None
    """The cell in which each of these begins."""


@dataclass
class HeapMap:
    """The cells of all regions over time."""

    regions: list[Region]
    frames: list[Frame]
    unit_ns: int
    """The unit of `oldest`."""

    @property
    def cells(self) -> int:
        """The number of cells of all regions."""
        return sum(region.cells for region in self.regions)

    def addresses(self) -> np.ndarray:
        """Returns the first byte of each cell."""
        return np.concatenate(
            [np.zeros(0, np.int64)]
            + [region.address + region.cell_bytes * np.arange(region.cells) for region in self.regions]
        )

    def at(self, number: int) -> np.ndarray:
        """Returns a row of CELL for each cell at one of the moments."""
        found = np.zeros(self.cells, CELL)
        for frame in self.frames[: number + 1]:
            found[frame.cells] = frame.values
        return found


@entry
def _prevailing(
    starts: np.ndarray, ends: np.ndarray, address: np.ndarray, length: np.ndarray, codes: np.ndarray,
    times: np.ndarray, counts: np.ndarray, found: np.ndarray, earliest: np.ndarray,
) -> None:  # fmt: skip
    """Writes for each cell the code of most bytes of the items in it, and the earliest time of the items. Cells and
    items rise by address.

    `counts`: zeros, for each code; they are zero again afterwards. Cells without items stay as they are.
    """
    first = 0
    for cell in range(starts.shape[0]):
        while first < address.shape[0] and address[first] + length[first] <= starts[cell]:
            first += 1
        at = first
        best = np.int64(-1)
        while at < address.shape[0] and address[at] < ends[cell]:
            end, begin = min(address[at] + length[at], ends[cell]), max(address[at], starts[cell])
            code = np.int64(codes[at])
            counts[code] += end - begin
            if best < 0 or counts[code] > counts[best]:
                best = code
            if at == first or times[at] < earliest[cell]:
                earliest[cell] = times[at]
            at += 1
        if best >= 0:
            found[cell] = best
        for each in range(first, at):
            counts[np.int64(codes[each])] = 0


@inlined
def _share(level: int, offset: int, length: int) -> np.int64:
    """What a part of a span counts of its level; shares of adjacent parts add up."""
    return np.int64(level if offset == length else np.rint(level * (offset / length)))


@entry
def _add_up(spans: np.ndarray, starts: np.ndarray, ends: np.ndarray, values: np.ndarray) -> None:
    """Writes the levels of spans and the number of blocks to rows of CELL. Cells and spans rise by address."""
    first = 0
    for number in range(starts.shape[0]):
        start, end, cell = starts[number], ends[number], values[number]
        while first < spans.shape[0] and spans[first].address + spans[first].bytes <= start:
            first += 1
        mapped_bytes = live_bytes = free_bytes = resident_bytes = blocks = np.int64(0)
        at = first
        while at < spans.shape[0] and spans[at].address < end:
            span = spans[at]
            length = span.bytes
            low, high = max(start - span.address, 0), min(end - span.address, length)
            mapped_bytes += high - low
            live_bytes += _share(span.live_bytes, high, length) - _share(span.live_bytes, low, length)
            free_bytes += _share(span.free_bytes, high, length) - _share(span.free_bytes, low, length)
            resident_bytes += _share(span.resident_bytes, high, length) - _share(span.resident_bytes, low, length)
            blocks += span.live_blocks if span.address >= start else 0
            at += 1
        cell.mapped_bytes, cell.live_bytes, cell.free_bytes = mapped_bytes, live_bytes, free_bytes
        cell.resident_bytes, cell.blocks = resident_bytes, blocks


@dataclass
class HeapHistory:
    """A sink of snapshots that follows the cells of one run."""

    arena_bytes: int
    """The most that arenas took; it decides the length of cells."""
    mapped_bytes: int
    """The same for all that was mapped."""
    duration_ns: int
    site_codes: np.ndarray
    """The code of each call site of the trace, and at the end that of unknown ones; empty without blocks."""
    type_codes: np.ndarray | None = None
    """The code of the type of the block that each row of the trace allocates."""
    origins_every: int = 1
    """Call sites and ages are measured at every so many moments, and at those with a label."""
    frames: list[Frame] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    _numbers: dict[tuple[int, int, int, int], int] = field(default_factory=dict)
    _slots: list[tuple[int, int, int]] = field(default_factory=list)
    """Region, first cell and number of cells of each stretch of `_present`. A region that outgrows one gets another."""
    _slot_of: list[int] = field(default_factory=list)
    _present: np.ndarray = field(default_factory=lambda: np.zeros(0, CELL))
    _room: int = 0
    _listed_of_phases: int = 0
    _active: dict[int, np.ndarray] = field(default_factory=dict)
    """Cells by process, at the moment before."""

    @property
    def unit_ns(self) -> int:
        """The unit of `oldest`."""
        return self.duration_ns // (1 << 31) + 1

    def __call__(self, snapshot: Snapshot) -> None:
        """Adds a moment. Snapshots of several processes at one moment are one."""
        spans = snapshot.spans()
        firsts = np.flatnonzero(np.diff(spans["region"], prepend=-1))  # spans of a region are neighbours
        numbers = self._regions_of(snapshot.process, spans, firsts)
        ids, starts, ends = self._cells_of(numbers, spans, firsts)
        values = _measured(spans, starts, ends)
        has_blocks = len(self.site_codes) > 0 and (bool(snapshot.label) or len(self.frames) % self.origins_every == 0)
        blocks = snapshot.blocks() if has_blocks else None
        if blocks is not None:
            self._add_origins(values, blocks, starts, ends)
        elif len(self.site_codes):
            self._keep_origins(values, ids, snapshot.time_ns)
        if not snapshot.process:
            self.frames.append(Frame(snapshot.time_ns, snapshot.label, np.zeros(0, np.int64), np.zeros(0, CELL)))
        frame = self.frames[-1]
        gone = np.setdiff1d(self._active.get(snapshot.process, ids), ids, assume_unique=True)
        changed = (_words(at_places(self._present, ids)) != _words(values)).any(axis=1)
        _words(self._present)[ids], _words(self._present)[gone] = _words(values), 0
        self._active[snapshot.process] = ids
        frame.cells = np.concatenate([frame.cells, ids[changed], gone])
        frame.values = concatenated([frame.values, at_places(values, changed), np.zeros(len(gone), CELL)])
        is_phase = snapshot.label not in (PEAK, END)
        if (
            snapshot.label
            and blocks is not None
            and not (is_phase and self._listed_of_phases > LISTED_BLOCKS_OF_PHASES)
        ):
            frame.blocks = _listed(blocks, spans)
            frame.block_cells = ids[_cells_with(starts, frame.blocks["address"])]
            self._listed_of_phases += len(frame.blocks) if is_phase else 0

    def _regions_of(self, process: int, spans: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        """Returns the number of each region of the moment, new ones included."""
        kinds = np.full(max(SpanKind) + 1, RegionKind.HEAP, np.int64)
        kinds[[*_KIND_OF_SPAN]] = [*_KIND_OF_SPAN.values()]
        kinds[SpanKind.INTERNAL] = len(RegionKind)
        found = np.minimum.reduceat(kinds[spans["kind"]], firsts) if len(firsts) else firsts
        found = np.minimum(found, RegionKind.MAPPING)
        ends = np.append(firsts, len(spans))[1:]
        lengths = spans["address"][ends - 1] + spans["bytes"][ends - 1] - spans["address"][firsts]
        lengths = np.where(found == RegionKind.MAPPING, _doubled(4096, lengths, MAPPING_CELLS), 0)
        numbers = np.zeros(len(firsts), np.int64)
        keys = zip(spans["region"][firsts].tolist(), found.tolist(), lengths.tolist(), strict=True)
        for place, (address, kind, cell_bytes) in enumerate(keys):
            key = process, address, kind, cell_bytes
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self.regions)
                region = self._new_region(process, spans, int(firsts[place]), RegionKind(kind), cell_bytes)
                self.regions.append(region)
                self._slot_of.append(-1)
            self.regions[number].last = len(self.frames) - (process > 0)
            numbers[place] = number
        return numbers

    def _new_region(self, process: int, spans: np.ndarray, first: int, kind: RegionKind, cell_bytes: int) -> Region:
        address = int(spans["address"][first])
        if kind is RegionKind.ARENA:
            is_pool = _is_pool(spans)
            cell_bytes = int(_doubled(int(spans["bytes"][is_pool].min()), self.arena_bytes, ARENA_CELLS_MAX))
            pool = int(spans["address"][first + np.argmax(is_pool[first:])])
            address -= (address - pool) % cell_bytes
        elif kind is RegionKind.HEAP:
            cell_bytes = int(_doubled(4096, self.mapped_bytes, OTHER_CELLS_MAX))
        number = len(self.frames) - (process > 0)
        return Region(process, address, kind, cell_bytes, first=number)

    def _cells_of(
        self, numbers: np.ndarray, spans: np.ndarray, firsts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns for each cell of the moment its place in `_present`, its first byte and its end."""
        lasts = np.append(firsts, len(spans))[1:] - 1
        ends = spans["address"][lasts] + spans["bytes"][lasts]
        regions = [self.regions[number] for number in numbers.tolist()]
        origins = np.array([region.address for region in regions], np.int64)
        lengths = np.array([region.cell_bytes for region in regions], np.int64)
        counts = -(-(ends - origins) // lengths)
        bases = np.array(
            [self._base(number, count) for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)],
            np.int64,
        )
        places = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(origins, counts) + places * np.repeat(lengths, counts)
        limits = np.minimum(starts + np.repeat(lengths, counts), np.repeat(ends, counts))
        starts = np.maximum(starts, np.repeat(spans["address"][firsts], counts))
        return np.repeat(bases, counts) + places, starts, limits

    def _base(self, number: int, cells: int) -> int:
        """Returns the place of a region's first cell, with room for so many."""
        region, slot = self.regions[number], self._slot_of[number]
        region.cells = max(region.cells, cells)
        if slot >= 0 and self._slots[slot][2] >= cells:
            return self._slots[slot][1]
        base, room = self._room, cells if slot < 0 else 2 * cells
        self._room += room
        self._present = extend(self._present, self._room)
        if slot >= 0:
            old = slice(self._slots[slot][1], sum(self._slots[slot][1:]))
            self._present[base : base + old.stop - old.start] = self._present[old]
            shift = base - old.start
            active = self._active[region.process]
            active[(active >= old.start) & (active < old.stop)] += shift
        self._slot_of[number] = len(self._slots)
        self._slots.append((number, base, room))
        return base

    def _add_origins(self, values: np.ndarray, blocks: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Adds call sites and ages of the live blocks to cells."""
        sites = self.site_codes[np.minimum(blocks["site"], len(self.site_codes) - 1).astype(np.int64)]
        times = _fill(values["site"], starts, ends, blocks, sites, blocks["allocated_ns"])
        values["oldest"] = np.maximum(times, 0) // self.unit_ns
        if self.type_codes is not None:
            types = self.type_codes[blocks["row"]]
            _fill(values["type"], starts, ends, blocks, types, blocks["allocated_ns"])

    def _keep_origins(self, values: np.ndarray, ids: np.ndarray, time_ns: int) -> None:
        """Adds call sites, types and ages of the moment before. Blocks of cells that were empty then are taken as
        new."""
        before = at_places(self._present, ids)
        is_live = values["live_bytes"] > 0
        was_live = is_live & (before["live_bytes"] > 0)
        values["oldest"][is_live] = time_ns // self.unit_ns
        for name in ("site", "type", "oldest"):
            values[name][was_live] = before[name][was_live]

    def finish(self) -> HeapMap:
        """Returns the map, with regions by kind, process and address."""
        order = sorted(
            range(len(self.regions)),
            key=lambda number: (self.regions[number].kind, self.regions[number].process, self.regions[number].address),
        )
        bases, total = {}, 0
        for number in order:
            bases[number], total = total, total + self.regions[number].cells
        renumbered = np.zeros(self._room, np.int64)
        for number, base, room in self._slots:
            renumbered[base : base + room] = bases[number] + np.arange(room)
        for frame in self.frames:
            cells, places = np.unique(renumbered[frame.cells][::-1], return_index=True)
            frame.cells, frame.values = cells, frame.values[::-1][places]
            if frame.block_cells is not None:
                frame.block_cells = renumbered[frame.block_cells]
        return HeapMap([self.regions[number] for number in order], self.frames, self.unit_ns)


def _is_pool(spans: np.ndarray) -> np.ndarray:
    """Returns for each span whether it is a pool, or several unused ones."""
    return (spans["kind"] == SpanKind.POOL) | (spans["kind"] == SpanKind.FREE_POOL)


def _words(cells: np.ndarray) -> np.ndarray:
    """Returns rows of CELL as rows of integers, which NumPy compares and copies faster."""
    return cells.view(np.uint32).reshape(len(cells), CELL.itemsize // 4)


def _doubled(length: int, whole: int | np.ndarray, count: int) -> np.ndarray:
    """Returns a length, doubled until `whole` has at most so many, or until cells are as long as CELL can express."""
    doublings = np.ceil(np.log2(np.maximum(np.asarray(whole) / (length * count), 1)))
    return np.minimum(np.int64(length) << doublings.astype(np.int64), CELL_BYTES_MAX)


def _cells_with(starts: np.ndarray, addresses: np.ndarray) -> np.ndarray:
    """Returns the place of the cell of each address; cells rise by address."""
    return np.maximum(np.searchsorted(starts, addresses, side="right") - 1, 0)


def _measured(spans: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns a row of CELL for each cell, without call sites and ages."""
    values = np.zeros(len(starts), CELL)
    values["size_class"] = values["site"] = values["type"] = NOTHING
    _add_up(spans, starts, ends, values)
    live = spans[(spans["live_blocks"] == 1) | (spans["size_class"] > 0)]  # of a HEAP, sizes are unknown
    sizes = np.where(live["size_class"] > 0, live["size_class"], live["live_bytes"])
    _fill(values["size_class"], starts, ends, live, np.searchsorted(CLASS_LIMITS, sizes), sizes)
    return values


def _fill(
    found: np.ndarray, starts: np.ndarray, ends: np.ndarray, items: np.ndarray, codes: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Writes the code of most bytes for each cell into `found`; returns the earliest time, 0 without items.

    `items` have `address` and `bytes`.
    """
    prevailing, earliest = np.full(len(found), NOTHING, np.int64), np.zeros(len(found), np.int64)
    starts, ends, address, length, codes, times = (
        np.ascontiguousarray(column, np.int64)
        for column in (starts, ends, items["address"], items["bytes"], codes, times)
    )
    counts = np.zeros(int(codes.max(initial=0)) + 1, np.int64)
    _prevailing(starts, ends, address, length, codes, times, counts, prevailing, earliest)
    found[:] = prevailing
    return earliest


def _listed(blocks: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Returns the blocks of the emptiest regions, by address."""
    if len(blocks) <= LISTED_BLOCKS:
        return blocks
    places = np.unique(spans["region"], return_inverse=True)[1]
    shares = np.bincount(places, spans["live_bytes"]) / np.bincount(places, spans["bytes"])
    of_block = places[np.maximum(np.searchsorted(spans["address"], blocks["address"], side="right") - 1, 0)]
    order = np.argsort(shares[of_block], kind="stable")[:LISTED_BLOCKS]
    return blocks[np.sort(order)]
