"""The heap map of a run: its cells hold exactly what the spans and live blocks of each moment hold."""

from collections import Counter, defaultdict
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from histories import TINY, History, seeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.allocators import SPAN, SpanKind
from replay.analysis.heap_history import (
    CELL,
    CELL_BYTES_MAX,
    CLASS_LIMITS,
    LISTED_BLOCKS,
    MAPPING_CELLS,
    NOTHING,
    Frame,
    HeapHistory,
    HeapMap,
    Region,
    RegionKind,
)
from replay.analysis.pin_report import find_pins
from replay.analysis.pins import is_no_call_site
from replay.config import load_config
from replay.reports.html.map_payload import map_payload
from replay.simulation.run import run
from replay.simulation.snapshots import Snapshot
from replay.sources import open_source
from replay.trace import NO_TYPE, Domain, Events, MemoryTrace, Metadata, ObjectType, Op, Site, Trace
from replay.trace.editing.merging import Part, merged

SITES = 5
CODES = np.array([2, 0, 1, 1, NOTHING, NOTHING])
"""Two of the five call sites have one name, one has none; the last code is that of blocks without a call site."""
SIZES = (0, 16, 17, 48, 100, 512, 513, 4096, 20_000, 131_072, 150_000)
STACKS = [
    ("cpython-2.7", ()),
    ("cpython-3.8", ()),
    ("cpython-3.9", TINY),
    ("cpython-3.12", ()),
    ("cpython-3.12", ("glibc.mmap_threshold=4096", "glibc.trim_threshold=4096")),
    ("cpython-3.12-malloc", ()),
    ("cpython-3.12", ("domains.libc=bump",)),
    ("ideal", ()),
    ("bump", ()),
]
each_stack = pytest.mark.parametrize(
    ("name", "overrides"), STACKS, ids=lambda each: "+".join([each] if isinstance(each, str) else each)
)
some = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))


def sited(events: Events, seed: int) -> Events:
    """The events with call sites."""
    sites = np.random.default_rng(seed).integers(0, SITES + 1, events.rows).astype(np.uint32)
    columns = {name: getattr(events, name) for name in Events.empty(0)._fields}
    return Events(**columns | {"site": sites})


TYPES = (ObjectType("app", "Node", True), ObjectType("", "", False), ObjectType("", "dict", True))
TYPE_CODES = [1, NOTHING, 0, NOTHING]
"""The second type has no name; the last code is that of blocks whose type is unknown."""


def typed_trace(seed: int, count: int = 800) -> MemoryTrace:
    """A trace with call sites, and with the types of most blocks that are freed."""
    (events,), metadata = (trace := sited_trace(seed, count)).events, trace.metadata
    types = np.random.default_rng(seed).integers(0, len(TYPES) + 1, events.rows)
    known = (events.op == Op.FREE) & (types < len(TYPES))
    return MemoryTrace(
        [events._replace(type=np.where(known, types, NO_TYPE).astype(np.uint32))], replace(metadata, types=TYPES)
    )


def types_by_row(trace: MemoryTrace) -> dict[int, int]:
    """The type of the block that each row allocates; len(TYPES) for blocks whose free has none, or that stay."""
    (events,), found, row_of = trace.events, {}, {}
    for row, (op, block, type_) in enumerate(
        zip(*(getattr(events, name).tolist() for name in ("op", "block", "type")), strict=True)
    ):
        if op in (Op.MALLOC, Op.CALLOC, Op.MEMALIGN):
            row_of[block], found[row] = row, len(TYPES)
        elif op == Op.FREE:
            found[row_of[block]] = min(type_, len(TYPES))
    return found


def sited_trace(seed: int, count: int = 800) -> MemoryTrace:
    """A trace that grows and shrinks, with call sites."""
    sites = tuple(Site(f"f{number}", "app.py", number) for number in range(SITES))
    return MemoryTrace([sited(seeded(seed, count, sizes=SIZES).events(), seed)], Metadata(sites=sites))


class Observed:
    """A sink that passes snapshots on to a history, to a new one for each moment, and keeps them for a comparison."""

    def __init__(self, *given: object, **options: object) -> None:
        self.history = HeapHistory(*given, **options)
        self.alone: list[HeapHistory] = []
        self.moments: list[list[tuple[np.ndarray, np.ndarray | None]]] = []
        """Spans and live blocks of each process at each moment."""
        self._given, self._has_blocks = given, len(self.history.site_codes) > 0

    def __call__(self, snapshot: Snapshot) -> None:
        if not snapshot.process:
            self.alone.append(HeapHistory(*self._given))
            self.moments.append([])
        self.history(snapshot)
        self.alone[-1](snapshot)
        self.moments[-1].append((snapshot.spans(), snapshot.blocks() if self._has_blocks else None))


def observed(trace: Trace, stack, moments: list[int | str] | int, codes: np.ndarray = CODES, **options) -> Observed:
    """The heap map of a run at some moments, beside the snapshots that it was made from."""
    first = run(trace, stack)
    lengths = int(first.end.arena_bytes_peak), int(first.end.mapped_bytes_peak), first.duration_ns
    found = Observed(*lengths, codes, **options)
    run(trace, stack, snapshots=moments, sink=found, with_blocks=len(codes) > 0, first_run=first)
    return found


def kind_of(group: np.ndarray) -> RegionKind:
    """The kind of a region, from its spans."""
    kinds = set(group["kind"].tolist()) - {SpanKind.INTERNAL}
    if kinds & {SpanKind.POOL, SpanKind.FREE_POOL}:
        return RegionKind.ARENA
    return RegionKind.HEAP if kinds - {SpanKind.MAPPING, SpanKind.CACHED_MAPPING} else RegionKind.MAPPING


def overlap(start: int, end: int, first: int, length: int) -> int:
    return min(end, first + length) - max(start, first)


def assert_cell(cell: np.record, start: int, end: int, spans: list[np.record]) -> None:
    """Compares the measures of a cell with the spans that are at least partly in it."""
    parts = [(overlap(start, end, each.address, each.bytes), each) for each in spans]
    assert cell.mapped_bytes == sum(length for length, _ in parts)
    assert cell.blocks == sum(each.live_blocks for _, each in parts if start <= each.address)
    for name in ("live_bytes", "free_bytes", "resident_bytes"):
        expected = sum(each[name] * length / each.bytes for length, each in parts)
        is_whole = all(length == each.bytes for length, each in parts)
        assert abs(int(cell[name]) - expected) <= (0 if is_whole else 1)
    weights: Counter[int] = Counter()
    for length, each in parts:
        if each.size_class or each.live_blocks == 1:
            size = each.size_class or each.live_bytes
            weights[next(code for code, limit in enumerate(CLASS_LIMITS.tolist()) if limit >= size)] += length
    assert_most(weights, cell.size_class)


def assert_most(weights: "Counter[int]", code: int) -> None:
    if weights:
        assert weights[int(code)] == max(weights.values())
    else:
        assert code == NOTHING


def assert_origins(
    cell: np.record, start: int, end: int, blocks: list[np.record], codes: list[int], unit_ns: int
) -> None:
    """Compares call site and oldest allocation of a cell with the blocks that are at least partly in it."""
    weights: Counter[int] = Counter()
    for each in blocks:
        weights[codes[min(int(each.site), len(codes) - 1)]] += overlap(start, end, each.address, each.bytes)
    assert_most(weights, cell.site)
    assert cell.oldest == min((int(each.allocated_ns) for each in blocks), default=0) // unit_ns


def within(items: np.ndarray, start: int, end: int) -> list[np.record]:
    """The items that are at least partly between two addresses."""
    return list(items[(items["address"] < end) & (items["address"] + items["bytes"] > start)])


def assert_moment(heap: HeapMap, number: int, process: int, spans: np.ndarray, blocks: np.ndarray | None, codes) -> int:
    """Compares the cells of a process at a moment with its spans and live blocks; returns how many cells there are."""
    cells, firsts = heap.at(number), np.cumsum([0, *(region.cells for region in heap.regions)]).tolist()
    groups = defaultdict(list)
    for span in spans:
        groups[int(span.region)].append(span)
    total = 0
    for rows in groups.values():
        group = np.array(rows, spans.dtype).view(np.recarray)
        start, end = int(group[0].address), int(group[-1].address + group[-1].bytes)
        found = [
            (region, first)
            for region, first in zip(heap.regions, firsts, strict=False)
            if (region.process, region.kind) == (process, kind_of(group))
            and region.address <= start < region.address + region.cell_bytes
            and cells[first]["mapped_bytes"]
        ]
        ((region, first),) = found
        own = cells[first : first + region.cells].view(np.recarray)
        for name, level in {"mapped_bytes": "bytes"}.items() | {
            (name, name) for name in ("live_bytes", "free_bytes", "resident_bytes")
        }:
            assert own[name].sum(dtype=np.int64) == group[level].sum()
        assert own["blocks"].sum() == group["live_blocks"].sum()
        assert region.first <= number <= region.last
        if region.kind is RegionKind.MAPPING:
            assert region.cells <= MAPPING_CELLS
        for place, cell in enumerate(own):
            low = max(start, region.address + place * region.cell_bytes)
            high = min(end, region.address + (place + 1) * region.cell_bytes)
            if low >= high:
                assert cell == np.zeros((), CELL)
                continue
            total += 1
            assert_cell(cell, low, high, within(group, low, high))
            if blocks is not None:
                assert_origins(cell, low, high, within(blocks, low, high), codes, heap.unit_ns)
    return total


def assert_truth(found: Observed) -> HeapMap:
    """Compares every moment of a heap map with the snapshots that it was made from, and with a map of it alone."""
    heap, codes = found.history.finish(), found.history.site_codes.tolist()
    for number, processes in enumerate(found.moments):
        mapped = sum(
            assert_moment(heap, number, process, spans.view(np.recarray), blocks, codes)
            for process, (spans, blocks) in enumerate(processes)
        )
        assert mapped == np.count_nonzero(heap.at(number)["mapped_bytes"])
        assert by_place(heap, number) == by_place(found.alone[number].finish(), 0)
    return heap


def by_place(heap: HeapMap, number: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The mapped cells of a moment, by what does not depend on other moments."""
    places = [
        (region.process, region.kind, region.address, region.cell_bytes, place)
        for region in heap.regions
        for place in range(region.cells)
    ]
    return {place: cell for place, cell in zip(places, heap.at(number).tolist(), strict=True) if cell[0]}


@each_stack
@some
@given(seed=st.integers(0, 1 << 30), every_ns=st.integers(1_000, 4_000))
def test_cells_hold_what_spans_and_blocks_hold(name, overrides, seed, every_ns):
    assert_truth(observed(sited_trace(seed), load_config(name, overrides), every_ns))


def test_a_pool_is_one_cell():
    for name, pool_bytes in {"cpython-3.8": 4096, "cpython-3.12": 16384}.items():
        found = observed(sited_trace(5), load_config(name), 1000)
        heap, pools = found.history.finish(), 0
        starts = set(heap.addresses().tolist())
        assert {each.cell_bytes for each in heap.regions if each.kind is RegionKind.ARENA} == {pool_bytes}
        for ((spans, _),) in found.moments:
            pools += len(own := spans[spans["kind"] == SpanKind.POOL])
            assert (own["bytes"] == pool_bytes).all()
            assert set(own["address"].tolist()) <= starts
        assert pools


def test_cells_of_several_processes_are_apart():
    parts = [Part(sited_trace(seed, 500), name) for seed, name in ((1, "a"), (2, "b"), (3, "c"))]
    trace = merged(parts, "", as_processes=True)
    found = observed(trace, load_config("cpython-3.12", ("glibc.mmap_threshold=8192",)), 500, np.zeros(0, np.int64))
    heap = assert_truth(found)
    assert {region.process for region in heap.regions} == {0, 1, 2}
    assert all((frame.values["site"] == NOTHING)[frame.values["live_bytes"] > 0].all() for frame in heap.frames)
    assert not any(frame.values["oldest"].any() for frame in heap.frames)


def test_a_region_that_vanishes_and_comes_back_is_one_region():
    history = History()
    for size in (200_000, 150_000, 260_000):
        block = history.malloc(size, Domain.RAW)
        history.at(history.now_ns + 10).free(block)
        history.at(history.now_ns + 10)
    history.malloc(1, Domain.RAW)
    heap = assert_truth(
        observed(history.trace(), load_config("cpython-3.12-malloc", ("glibc.mmap_threshold=100000",)), 10)
    )
    mapped = [frame.values["mapped_bytes"].sum() for frame in heap.frames]
    assert len(mapped) == 6
    mappings = [region for region in heap.regions if region.kind is RegionKind.MAPPING]
    assert len(mappings) == len({(each.address, each.cell_bytes) for each in mappings})


def test_a_mapping_where_an_arena_was_is_another_region():
    history, stack = History(), load_config("cpython-3.8")
    small = history.mallocs(2, 100)
    history.at(10).free(*small)  # the arena of 256 KiB is released
    history.at(20).malloc((256 << 10) - 4096, Domain.RAW)
    heap = assert_truth(observed(history.trace(), stack, [5, 20]))
    arena, mapping = (
        next(each for each in heap.regions if each.kind is kind) for kind in (RegionKind.ARENA, RegionKind.MAPPING)
    )
    assert arena.address == mapping.address
    assert (arena.cell_bytes, arena.cells, arena.first, arena.last) == (4096, 64, 0, 0)
    assert (mapping.cell_bytes, mapping.cells, mapping.first, mapping.last) == (4096, 64, 1, 1)


def test_a_mapping_of_terabytes_has_cells_whose_length_fits():
    spans = np.zeros(1, SPAN)
    spans["address"] = spans["region"] = 1 << 40
    spans["bytes"], spans["live_bytes"], spans["live_blocks"], spans["kind"] = 1 << 40, 1 << 39, 1, SpanKind.MAPPING
    history = HeapHistory(0, 1 << 40, 1, np.zeros(0, np.int64))
    history(SimpleNamespace(process=0, time_ns=0, label="end", spans=lambda: spans))
    heap = history.finish()
    assert [(region.cell_bytes, region.cells) for region in heap.regions] == [(CELL_BYTES_MAX, 512)]
    assert heap.at(0)["mapped_bytes"].sum(dtype=np.int64) == 1 << 40
    assert heap.at(0)["live_bytes"].sum(dtype=np.int64) == 1 << 39


def test_a_trace_without_blocks_has_no_cells():
    history = History()
    history.mark()
    history.at(9).mark()
    heap = assert_truth(observed(history.trace("idle"), load_config("ideal"), [0, "end"]))
    assert heap.cells == 0
    assert [frame.time_ns for frame in heap.frames] == [0, 9]


def test_blocks_that_are_not_read_at_every_moment_keep_their_origins():
    source, history, live = Random(4), History(), []
    for step in range(3_000):
        if live and source.random() < 0.3 + 0.4 * (step % 600 > 300):
            history.at(2 * step).free(live.pop(source.randrange(len(live))))
        else:
            live.append(history.at(2 * step).malloc(source.choice([24, 500, 5_000, 200_000])))
    stack, trace = load_config("cpython-3.12"), MemoryTrace([sited(history.events(), 4)])
    every = observed(trace, stack, [*range(500, 5_000, 500), "end"]).history.finish()
    third = observed(trace, stack, [*range(500, 5_000, 500), "end"], origins_every=3).history.finish()
    interval, news = 500, 0
    for number, frame in enumerate(every.frames):
        exact, kept = every.at(number), third.at(number)
        if number % 3 == 0 or frame.label:
            assert exact.tolist() == kept.tolist()
            continue
        same = [name for name in CELL.names if name not in ("oldest", "site", "type")]
        assert exact[same].tolist() == kept[same].tolist()
        was_live = third.at(number - 1)["live_bytes"] > 0
        is_live = kept["live_bytes"] > 0
        assert kept["site"][is_live & was_live].tolist() == third.at(number - 1)["site"][is_live & was_live].tolist()
        new = is_live & ~was_live
        assert (exact["oldest"][new] > frame.time_ns - interval).all()
        news += np.count_nonzero(new)
        assert (kept["oldest"][new] == frame.time_ns).all()
        assert (kept["site"][new] == NOTHING).all()
    assert news


def test_blocks_of_labelled_moments_are_listed_with_their_cells():
    found = observed(sited_trace(6), load_config("cpython-3.12"), [1000, "peak", "end"])
    heap = found.history.finish()
    addresses, lengths = (
        heap.addresses(),
        np.repeat(*(np.array([getattr(region, name) for region in heap.regions]) for name in ("cell_bytes", "cells"))),
    )
    assert [frame.label for frame in heap.frames if frame.blocks is not None] == ["peak", "end"]
    for number, frame in enumerate(heap.frames):
        if frame.blocks is None:
            continue
        assert frame.blocks.tolist() == found.moments[number][0][1].tolist()
        offsets = frame.blocks["address"] - addresses[frame.block_cells]
        assert (offsets >= 0).all()
        assert (offsets < lengths[frame.block_cells]).all()
        assert (heap.at(number)["mapped_bytes"][frame.block_cells] > 0).all()


def test_of_many_blocks_those_in_the_emptiest_regions_are_listed():
    history = History()
    numbers = history.mallocs(70_000, 16)
    history.free(*numbers[20_000:30_000:2])  # from the second arena
    history.at(1).malloc(16)
    found = observed(history.trace(), load_config("cpython-3.8"), ["end"])
    (frame,) = found.history.finish().frames
    ((spans, blocks),) = found.moments[0]
    regions = {}
    for span in spans:
        live, size = regions.get(int(span["region"]), (0, 0))
        regions[int(span["region"])] = live + int(span["live_bytes"]), size + int(span["bytes"])
    starts = sorted(regions)
    of_block = [starts[place - 1] for place in np.searchsorted(starts, blocks["address"], side="right")]
    expected: list[tuple[object, ...]] = []
    for region in sorted(regions, key=lambda each: regions[each][0] / regions[each][1]):
        expected += [block for block, each in zip(blocks.tolist(), of_block, strict=True) if each == region]
    assert len(blocks) > LISTED_BLOCKS
    assert frame.blocks.tolist() == sorted(expected[:LISTED_BLOCKS])


def test_blocks_of_many_phases_are_listed_up_to_a_limit(monkeypatch):
    monkeypatch.setattr("replay.analysis.heap_history.LISTED_BLOCKS_OF_PHASES", 25)
    history = History()
    for number in range(6):
        history.mallocs(10, 100)
        history.mark(number)
        history.at(history.now_ns + 1)
    names = [f"p{number}" for number in range(6)]
    found = observed(history.trace(*names), load_config("cpython-3.12"), [*names, "peak", "end"])
    frames = found.history.finish().frames
    assert [(each.label, len(each.blocks)) for each in frames if each.blocks is not None] == [
        ("p0", 10), ("p1", 20), ("peak", 37), ("end", 60),  # the 37th is the first in the second page
    ]  # fmt: skip


@pytest.mark.parametrize("workload", ["pin-every-arena", "fork-server-warmup"])
def test_the_map_of_a_workload_adds_up(workload):
    trace = open_source(workload)
    stack = load_config("cpython-3.8")
    first = run(trace, stack)
    sums = []

    def note(snapshot: Snapshot) -> None:
        history(snapshot)
        spans = snapshot.spans()
        sums.append(
            [int(spans[name].sum()) for name in ("bytes", "live_bytes", "free_bytes", "resident_bytes", "live_blocks")]
        )

    history = HeapHistory(int(first.end.arena_bytes_peak), int(first.end.mapped_bytes_peak), first.duration_ns, CODES)
    run(
        trace,
        stack,
        snapshots=[*range(0, first.duration_ns, first.duration_ns // 20), "peak", "end"],
        sink=note,
        with_blocks=True,
        first_run=first,
    )
    heap = history.finish()
    names = ("mapped_bytes", "live_bytes", "free_bytes", "resident_bytes", "blocks")
    assert sums == [[int(heap.at(at)[name].sum(dtype=np.int64)) for name in names] for at in range(len(sums))]


def test_the_first_run_given_changes_nothing():
    trace, stack = sited_trace(8), load_config("cpython-3.12")
    first = run(trace, stack)
    codes = CODES
    maps = []
    for options in ({}, {"first_run": first}):
        history = HeapHistory(
            int(first.end.arena_bytes_peak), int(first.end.mapped_bytes_peak), first.duration_ns, codes
        )
        result = run(trace, stack, snapshots=[100, "peak", "end"], sink=history, with_blocks=True, **options)
        heap = history.finish()
        maps.append(
            (
                [(each.time_ns, each.label, each.cells.tolist(), each.values.tolist()) for each in heap.frames],
                heap.regions,
                result.samples.tolist(),
                result.at_peak_time_ns,
                result.events,
            )
        )
    assert maps[0] == maps[1]


def base64_of(heap: HeapMap) -> str:
    """The changes of cells in the page's data."""
    return map_payload(heap, [], [], CODES, [])[1]["map-data"]


def decoded(heap: HeapMap, limit_bytes: int) -> dict[tuple[int, str], list[tuple[int, ...]]]:
    """The cells at each moment of the page's data, as the page reads them."""
    import gzip
    from base64 import b64decode

    meta, data = map_payload(heap, [], [], CODES, [], limit_bytes=limit_bytes)
    raw = gzip.decompress(b64decode(data["map-data"]))
    total, at, columns = sum(frame["changes"] for frame in meta["frames"]), 0, {}
    for name, width in meta["columns"]:
        planes = np.frombuffer(raw, np.uint8, total * width, at).reshape(width, total).astype(np.int64)
        columns[name] = sum(planes[plane] << 8 * plane for plane in range(width))
        at += total * width
    assert at == len(raw)
    state, found, first = np.zeros(heap.cells, CELL), {}, 0
    for frame in meta["frames"]:
        rows = slice(first, first := first + frame["changes"])
        cells = np.cumsum(columns["cell"][rows])
        assert (np.diff(cells) > 0).all()
        for name in CELL.names:
            state[name][cells] = columns[name][rows]
        found[frame["time_ns"], frame["label"]] = state.tolist()
    return found


def test_halving_keeps_labelled_moments_and_the_state_of_those_that_stay():
    heap = observed(
        sited_trace(9), load_config("cpython-3.12"), [*range(100, 4_000, 100), "peak", "end"]
    ).history.finish()
    all_moments = {(frame.time_ns, frame.label): heap.at(number).tolist() for number, frame in enumerate(heap.frames)}
    assert decoded(heap, 1 << 30) == all_moments
    sizes, whole = [], len(base64_of(heap))
    for limit_bytes in (whole // 2, whole // 4, 1):
        fewer = decoded(heap, limit_bytes)
        sizes.append(len(fewer))
        assert fewer.items() <= all_moments.items()
        assert {label for _, label in fewer} >= {"peak", "end"}
    assert len(all_moments) > sizes[0] > sizes[1] > sizes[2] >= 2


def test_halving_ends_where_all_moments_have_labels():
    frames = [Frame(at, f"phase {at}", np.arange(40), np.full(40, at, CELL)) for at in range(1, 8)]
    heap = HeapMap([Region(0, 4096, RegionKind.HEAP, 4096, cells=40)], frames, 1)
    assert list(decoded(heap, 1)) == [(at, f"phase {at}") for at in range(1, 8)]


@given(st.integers(0, 10_000))
@some
def test_the_type_of_a_cell_is_that_of_most_bytes_of_its_blocks(seed):
    trace, stack = typed_trace(seed), load_config("cpython-3.12")
    types = types_by_row(trace)
    codes = np.array([TYPE_CODES[types.get(row, len(TYPES))] for row in range(trace.events[0].rows)], np.uint16)
    found = observed(trace, stack, ["peak", "end"], type_codes=codes)
    heap = found.history.finish()
    starts = heap.addresses()
    lengths = np.repeat([region.cell_bytes for region in heap.regions], [region.cells for region in heap.regions])
    compared = 0
    for number, [(_, blocks)] in enumerate(found.moments):
        assert blocks is not None
        for cell, start, length in zip(heap.at(number), starts.tolist(), lengths.tolist(), strict=True):
            if cell["mapped_bytes"]:
                weights: Counter[int] = Counter()
                end = start + min(length, int(cell["mapped_bytes"]))  # behind it, another region may begin
                for each in within(blocks.view(np.recarray), start, end):
                    weights[TYPE_CODES[types[int(each.row)]]] += overlap(start, end, each.address, each.bytes)
                assert_most(weights, cell["type"])
                compared += len(weights) > 1
    assert compared


@given(st.integers(0, 10_000))
@some
def test_types_of_live_blocks_are_complete_when_the_run_has_ended_and_pins_name_no_type_without_a_name(seed):
    trace, stack, taken = typed_trace(seed), load_config("cpython-3.12"), []
    (events,) = trace.events
    moment, of_rows = int(events.time_ns[events.rows // 2] - events.time_ns[0]), types_by_row(trace)

    def sink(snapshot: Snapshot) -> None:
        taken.append((snapshot.live_blocks("row").row, snapshot.types()))

    run(trace, stack, snapshots=[moment], sink=sink, with_blocks=True)
    ((rows, types),) = taken
    assert np.minimum(types, len(TYPES)).tolist() == [of_rows[row] for row in rows.tolist()]
    names = [group.name for group in find_pins(trace, stack, at=moment).by_type.groups]
    assert len(set(names)) == len(names)
    assert {name for name in names if not is_no_call_site(name)} <= {"app.Node", "dict", "unknown"}
