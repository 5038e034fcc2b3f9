"""Metrics of short runs, computed by hand, with cpython-3.9: pools of 4 KiB, arenas of 256 KiB."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from histories import History

from replay.analysis import frames, metrics
from replay.config import load_config
from replay.simulation.run import run
from replay.trace import Domain, MemoryTrace, Metadata, ProcessMemory

DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"
HEAP_BYTES = 33 * 4096
"""768 bytes of arena table make a chunk of 784; with top_pad, 131,072, and 32 for top it takes 33 pages of heap."""
ARENA_BYTES = 256 << 10


def four_events():
    """100 and 24 bytes for pymalloc (classes 112 and 32), 600 for libc (a chunk of 608); then the 100 are freed."""
    history = History()
    first = history.at(10).malloc(100)
    history.at(20).malloc(600)
    history.at(30).malloc(24, Domain.MEM)
    history.at(40).free(first)
    return history.trace()


def summarize(trace, preset="cpython-3.9", *overrides):
    return metrics.summarize(run(trace, load_config(preset, overrides)))


@pytest.fixture(scope="module")
def recording():
    return run(four_events(), load_config("cpython-3.9"))


@pytest.fixture(scope="module")
def summary(recording):
    trace = four_events()
    floor, ceiling = (run(trace, load_config(name)) for name in ("ideal", "bump"))
    return metrics.summarize(recording, floor=floor, ceiling=ceiling)


def test_events_and_calls_are_those_of_the_trace(summary):
    assert (summary.events, summary.duration_ns) == (4, 30)
    assert (summary.mallocs, summary.callocs, summary.reallocs, summary.frees) == (3, 0, 0, 1)
    assert (summary.allocator, summary.libc_model, summary.small_model) == ("cpython-3.9", "glibc", "pymalloc")


def test_a_pymalloc_without_domains_is_not_in_the_summary():
    summary = summarize(four_events(), "cpython-3.12-malloc")
    assert (summary.libc_model, summary.small_model, summary.arenas_peak) == ("glibc", None, 0)


def test_each_level_has_its_peak(summary):
    assert summary.requested_bytes_peak == 100 + 600 + 24
    assert summary.block_bytes_peak == 112 + 608 + 32
    assert summary.pool_bytes_peak == 2 * 4096
    assert summary.arena_bytes_peak == ARENA_BYTES
    assert summary.heap_bytes_peak == HEAP_BYTES
    assert summary.mapped_bytes_peak == ARENA_BYTES + HEAP_BYTES
    assert summary.resident_bytes_peak == 3 * 4096  # a page of the heap, the first page of two pools


def test_all_levels_are_taken_at_the_moment_of_the_resident_peak(summary):
    assert summary.peak_time_ns == 20
    assert summary.requested_bytes_at_peak == 724
    assert summary.block_bytes_at_peak == 752
    assert summary.small_requested_bytes_at_peak == 124
    assert summary.small_block_bytes_at_peak == 144
    assert summary.resident_bytes_at_peak == 3 * 4096


def test_the_end_is_after_the_last_event(summary):
    assert summary.requested_bytes_end == 624
    assert summary.block_bytes_end == 608 + 32
    assert summary.pool_bytes_end == 4096
    assert summary.small_requested_bytes_end == 24
    assert summary.small_block_bytes_end == 32
    assert summary.mapped_bytes_end == ARENA_BYTES + HEAP_BYTES
    assert summary.resident_bytes_end == 3 * 4096


def test_fragmentation_is_the_share_lost_in_blocks_and_between_them(summary):
    assert summary.internal_fragmentation == 1 - 724 / 752
    assert summary.external_fragmentation == 1 - 752 / (ARENA_BYTES + HEAP_BYTES)
    assert summary.internal_fragmentation_end == 1 - 624 / 640
    assert summary.external_fragmentation_end == 1 - 640 / (ARENA_BYTES + HEAP_BYTES)
    assert summary.blowup == 12288 / 724


PARTS = ("rounding", "free_in_pools", "free_pools", "free_in_libc", "not_resident")


def retained(summary, moment):
    return tuple(getattr(summary, f"{name}_bytes_{moment}") for name in ("retained", *PARTS))


def test_retained_bytes_are_split_by_layer_at_peak_and_at_end(summary):
    mapped_but_not_resident = ARENA_BYTES + HEAP_BYTES - 3 * 4096
    assert retained(summary, "at_peak") == (
        3 * 4096 - 724,
        752 - 724,
        2 * 4096 - (112 + 32),
        ARENA_BYTES - 2 * 4096,
        HEAP_BYTES - 608,
        mapped_but_not_resident,
    )
    assert retained(summary, "end") == (
        3 * 4096 - 624,
        640 - 624,
        4096 - 32,
        ARENA_BYTES - 4096,
        HEAP_BYTES - 608,
        mapped_but_not_resident,
    )


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("cpython-2.7", ()), ("cpython-3.11-32bit", ()), ("cpython-3.12", ()), ("cpython-3.12-malloc", ()),
        ("cpython-3.15-hugepages", ()), ("bump", ()), ("ideal", ()), ("cpython-3.12", ("domains.libc=ideal",)),
    ],
)  # fmt: skip
def test_the_parts_of_retained_bytes_are_never_negative_and_add_up(preset, overrides):
    history = History()
    history.free(*history.mallocs(2_000, 480)[::3])
    history.free(*history.mallocs(20, 50_000)[1:])
    history.malloc(300_000)
    summary = summarize(history.trace(), preset, *overrides)
    for moment in ("at_peak", "end"):
        whole, *parts, not_resident = retained(summary, moment)
        assert min(parts) >= 0 <= not_resident
        assert sum(parts) - not_resident == whole
        live, resident = (getattr(summary, f"{level}_bytes_{moment}") for level in ("requested", "resident"))
        assert whole == resident - live > 0


def test_a_small_model_without_pools_and_arenas_leaves_its_free_memory_to_the_rest_that_is_mapped(recording):
    end = recording.end.copy()
    end.pool_bytes = end.arena_bytes = 0
    summary = metrics.summarize(replace(recording, end=end))
    mapped = ARENA_BYTES + HEAP_BYTES
    assert retained(summary, "end") == (3 * 4096 - 624, 640 - 624, 0, 0, mapped - 608 - 32, mapped - 3 * 4096)


def test_the_peak_of_requested_bytes_is_between_two_samples():
    history = History()
    kept = history.at(0).malloc(100)
    more = history.at(34).malloc(1_000)
    history.at(36).free(more)
    history.at(90).free(kept)
    result = run(history.trace(), load_config("cpython-3.9"), sample_every_ns=10)
    assert metrics.requested_peak_ns(result) == (30, 40)
    assert metrics.requested_peak_ns(run(history.trace(), load_config("cpython-3.9"), sample_every_ns=1_000)) == (0, 90)


def test_arenas_pools_and_system_calls_are_counted(summary):
    assert (summary.arenas_mapped, summary.arenas_unmapped, summary.arenas_peak, summary.arenas_live) == (1, 0, 1, 1)
    assert (summary.pools_used, summary.pools_full, summary.pools_free, summary.pools_made) == (1, 0, 63, 2)
    assert summary.syscalls == {"mmap": 1, "munmap": 0, "mremap": 0, "brk": 1, "madvise": 0, "mprotect": 0}
    assert summary.syscall_bytes == {
        "mmap": ARENA_BYTES,
        "munmap": 0,
        "mremap": 0,
        "brk": HEAP_BYTES,
        "madvise": 0,
        "mprotect": 0,
    }
    assert summary.page_faults == 3


def test_simulated_time_is_counts_times_costs():
    costs = ("costs.call=10", "costs.pool=100", "costs.syscall=1000", "costs.page_fault=0.5")
    times = summarize(four_events(), "cpython-3.9", *costs).simulated_ns
    assert times.model_dump() == {"calls": 4 * 10, "pools": 2 * 100, "syscalls": 2 * 1000, "page_faults": 2}


def test_floor_and_ceiling_are_in_the_summary(summary):
    assert summary.floor.model_dump() == {
        "allocator": "ideal",
        "requested_bytes_peak": 724,
        "mapped_bytes_peak": 4096,
        "mapped_bytes_end": 4096,
        "resident_bytes_peak": 4096,
        "resident_bytes_end": 4096,
    }
    assert summary.ceiling.allocator == "bump"
    assert summary.ceiling.resident_bytes_peak == 4096
    assert summary.ceiling.mapped_bytes_peak == HEAP_BYTES  # 112 bytes and top_pad, in whole pages


def test_the_process_is_mapped_memory_with_static_and_stacks():
    process = ProcessMemory(static_bytes=5000, stack_bytes=70_000, stack_resident_bytes=8192)
    trace = MemoryTrace(four_events().events, Metadata(process=process))
    summary = summarize(trace)
    assert summary.process_bytes_peak == ARENA_BYTES + HEAP_BYTES + 5000 + 70_000
    assert (summary.static_bytes, summary.stack_bytes, summary.stack_resident_bytes) == (5000, 70_000, 8192)


def test_a_trace_without_events_has_zeros_and_no_nan():
    summary = summarize(MemoryTrace([]), "cpython-3.12")
    numbers = [value for value in summary.model_dump().values() if isinstance(value, (int, float))]
    assert len(numbers) > 40
    assert set(numbers) == {0}
    assert not any(math.isnan(value) for value in numbers)


def test_a_summary_survives_json(summary):
    text = summary.model_dump_json()
    assert metrics.Summary.model_validate_json(text) == summary
    assert list(json.loads(text)) == list(metrics.Summary.model_fields)


def test_the_timeline_follows_the_levels(recording):
    fine = run(four_events(), load_config("cpython-3.9"), sample_every_ns=10)
    frame = frames.timeline(fine)
    assert frame["time_ns"].to_list() == [10, 20, 30]
    assert frame["requested_bytes"].to_list() == [700, 724, 624]
    assert frame["block_bytes"].to_list() == [720, 752, 640]
    assert frame["mallocs"].to_list() == [2, 3, 3]
    assert frame["internal_fragmentation"].to_list() == [1 - 700 / 720, 1 - 724 / 752, 1 - 624 / 640]
    assert not {"row", "attention", "rows_logged"} & set(frame.columns)


def test_a_timeline_of_nothing_has_no_nan():
    frame = frames.timeline(run(MemoryTrace([]), load_config("cpython-3.9")))
    assert frame["internal_fragmentation"].to_list() == [0.0]


def test_size_classes_have_requested_and_wasted_bytes(recording):
    frame = frames.size_classes(recording).sort("block_size")
    columns = ("domain", "role", "block_size", "blocks", "requested_bytes", "block_bytes", "waste_bytes", "live_blocks")
    assert frame.select(columns).rows() == [
        ("mem", "small", 32, 1, 24, 32, 8, 1),
        ("obj", "small", 112, 1, 100, 112, 12, 0),
        ("obj", "libc", 608, 1, 600, 608, 8, 1),
    ]
    assert frame["waste_share"].to_list() == [8 / 28, 12 / 28, 8 / 28]
    assert frame["live_waste_bytes"].to_list() == [8, 0, 8]
    assert frame["live_waste_share"].to_list() == [0.5, 0.0, 0.5]


def test_a_realloc_counts_as_a_freed_and_an_allocated_block():
    history = History()
    history.realloc(history.malloc(100), 300)
    frame = frames.size_classes(run(history.trace(), load_config("cpython-3.9"))).sort("block_size")
    assert frame.select("block_size", "blocks", "live_blocks").rows() == [(112, 1, 0), (304, 1, 1)]


def test_the_waste_of_large_blocks_is_unknown_by_class():
    history = History()
    history.malloc(5000)
    frame = frames.size_classes(run(history.trace(), load_config("cpython-3.9")))
    assert frame.select("block_size", "requested_bytes", "block_bytes", "waste_bytes").rows() == [
        (8192, 5000, None, None)
    ]


def test_an_allocator_that_rounds_nothing_up_wastes_nothing_in_blocks():
    frame = frames.size_classes(run(four_events(), load_config("ideal")))
    assert frame["waste_bytes"].to_list() == [0, 0, 0]
    assert frame["waste_share"].to_list() == [0.0, 0.0, 0.0]


def test_pools_and_arenas_are_those_at_the_end(recording):
    assert frames.pools(recording).rows(named=True) == [
        {
            "block_size": 32,
            "pools_used": 1,
            "pools_full": 0,
            "blocks": 1,
            "blocks_carved": 2,
            "blocks_capacity": (4096 - 48) // 32,
        }
    ]
    assert frames.arenas(recording).rows(named=True) == [
        {
            "address": 0x7FFFF7FF1000 - ARENA_BYTES,
            "pools": 64,
            "pools_free": 63,
            "blocks": 1,
            "block_bytes": 32,
            "occupancy": 32 / ARENA_BYTES,
        }
    ]


def test_without_pymalloc_its_frames_are_empty_but_have_their_columns(recording):
    bare = run(four_events(), load_config("cpython-3.12-malloc"))
    for frame in (frames.pools, frames.arenas):
        assert frame(bare).height == 0
        assert frame(bare).schema == frame(recording).schema


def test_phases_have_the_levels_at_their_start():
    history = History()
    history.at(5).malloc(100)
    history.at(7).mark(0)
    history.at(9).malloc(200)
    history.at(11).mark(1)
    trace = MemoryTrace(history.trace().events, Metadata(phases=("fill", "drop")))
    frame = frames.phases(run(trace, load_config("cpython-3.9")))
    assert frame.select("phase", "time_ns", "requested_bytes").rows() == [("fill", 2, 100), ("drop", 6, 300)]
    bare = frames.phases(run(four_events(), load_config("cpython-3.9")))
    assert bare.height == 0
    assert bare.schema == frame.schema


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("cpython-2.7", ()), ("cpython-3.11-32bit", ()), ("cpython-3.12", ()), ("cpython-3.12-malloc", ()),
        ("bump", ()), ("ideal", ()), ("cpython-3.12", ("domains.libc=ideal",)),
    ],
)  # fmt: skip
def test_size_classes_add_up_to_the_live_bytes(preset, overrides):
    random = np.random.default_rng(3)
    history = History()
    least = int(
        load_config(preset, overrides).libc_model == "ideal"
    )  # a block of 0 bytes takes one byte, which is not counted
    for number in history.mallocs(300, least)[::3]:
        history.free(number)
    for size in random.integers(least, 1000, 500).tolist():
        history.malloc(size, Domain(size % 4))
    recording = run(history.trace(), load_config(preset, overrides))
    frame = frames.size_classes(recording)
    assert frame["live_blocks"].sum() == 700
    assert frame["live_requested_bytes"].sum() == recording.end.requested_bytes
    assert frame["live_block_bytes"].sum() == recording.end.block_bytes
    small = frame.filter(pl.col("role") == "small")
    assert small["live_block_bytes"].sum() == recording.end.small_block_bytes


def test_every_name_is_documented(recording):
    documented = set(re.findall(r"`([a-z_]+)`", DOCS.read_text(encoding="utf-8")))
    names = {*metrics.Summary.model_fields, *metrics.Bound.model_fields, *metrics.SimulatedTime.model_fields}
    for frame in (frames.size_classes, frames.pools, frames.arenas):
        names |= set(frame(recording).columns)
    assert names - documented == set()
