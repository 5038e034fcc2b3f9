"""`replay map`: cells have exactly the bytes of the spans, and the text shows the cells."""

import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios

import numpy as np
import pytest
from histories import History, seeded
from hypothesis import given
from hypothesis import strategies as st

from replay.allocators import SPAN, SpanKind
from replay.analysis.heap_map import RegionKind, cells, merged, pool_bytes, regions
from replay.analysis.moments import memory_at
from replay.config import load_config
from replay.reports.heap_map import Scale, map_lines
from replay.sources.parquet import write_trace
from replay.trace import Domain

POOL = 16_384
STACKS = ("cpython-3.8", "cpython-3.12", "cpython-3.12-malloc", "cpython-2.7", "bump", "ideal")


def memory_of(trace, stack="cpython-3.12", at="end"):
    (memory,) = memory_at(trace, load_config(stack), at)
    return memory


@pytest.mark.parametrize("stack", STACKS)
def test_the_cells_of_every_region_add_up_to_its_spans(stack):
    memory = memory_of(seeded(7, 6_000).trace(), stack, "peak")
    found = regions(memory.spans)
    assert sum(region.bytes for region in found) == memory.spans["bytes"].sum()
    assert sum(region.resident_bytes for region in found) == memory.resident_bytes
    for region in found:
        for cell_bytes in (64, 4_096, 100_000):
            rows = cells(region, cell_bytes, memory.pages, memory.page_bytes)
            assert rows["live_bytes"].sum() == region.live_bytes
            assert (rows["live_bytes"] <= rows["bytes"]).all()
            assert (np.diff(rows["address"]) == cell_bytes).all()
            if region.kind is not RegionKind.ARENA:
                assert rows["bytes"].sum() == region.bytes
                assert rows["resident_bytes"].sum() == region.resident_bytes


@pytest.mark.parametrize("stack", ["cpython-3.8", "cpython-3.12", "cpython-2.7"])
def test_a_cell_of_an_arena_is_a_pool_with_its_size_class(stack):
    memory = memory_of(seeded(3, 6_000).trace(), stack)
    arenas = [region for region in regions(memory.spans) if region.kind is RegionKind.ARENA]
    size = pool_bytes(arenas)
    assert size == {"cpython-3.12": POOL}.get(stack, 4_096)
    found = [cell for arena in arenas for cell in cells(arena, size, memory.pages, memory.page_bytes).tolist()]
    used = [cell for cell in found if cell[2]]
    pools = memory.spans[memory.spans["kind"] == SpanKind.POOL]
    names = ["address", "bytes", "live_bytes", "resident_bytes", "size_class"]
    assert used == [tuple(int(pool[name]) for name in names) for pool in pools]
    assert len(found) * size == sum(
        int(arena.spans["bytes"][arena.spans["kind"] != SpanKind.INTERNAL].sum()) for arena in arenas
    )


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1), st.integers(1, 90))
def test_a_cell_has_the_live_bytes_that_lie_in_it(chunks, cell_bytes):
    """Compared with a list that has every byte."""
    spans = np.zeros(len(chunks), SPAN)
    sizes = np.array([16 * size for size, _ in chunks])
    spans["address"], spans["bytes"] = 4_096 + np.cumsum(sizes) - sizes, sizes
    spans["region"] = 4_096
    spans["live_bytes"] = [size if live else 0 for size, (_, live) in zip(sizes, chunks, strict=True)]
    spans["kind"] = [SpanKind.CHUNK if live else SpanKind.FREE_CHUNK for _, live in chunks]
    bytes_ = np.repeat([live for _, live in chunks], sizes)
    (region,) = regions(spans)
    found = cells(region, cell_bytes, np.zeros(0, np.int64), 4_096)
    assert found["live_bytes"].tolist() == [
        int(bytes_[at : at + cell_bytes].sum()) for at in range(0, len(bytes_), cell_bytes)
    ]
    assert merged(found, 3)["live_bytes"].tolist() == [
        int(bytes_[at : at + 3 * cell_bytes].sum()) for at in range(0, len(bytes_), 3 * cell_bytes)
    ]


def three_pools():
    """Pools with 31 and 17 of 31 blocks of 512 bytes, one with a block of 16; a heap with chunks; a mapping."""
    history = History()
    history.mallocs(31, 512)
    history.mallocs(31, 512)[1:]
    history.malloc(16)
    history.malloc(3_000, Domain.RAW)
    history.free(*range(32, 46))
    history.at(1_000_000).malloc(200_000, Domain.RAW)
    return history.trace()


def lines_of(memory, **options):
    scale = Scale.of(regions(memory.spans), full=options.get("full", False), page_bytes=memory.page_bytes)
    return [line for text in map_lines(memory, scale, **options) for line in text.plain.split("\n") if line]


def test_pools_chunks_and_mappings_are_drawn_with_what_is_allocated_in_them():
    assert lines_of(memory_of(three_pools())) == [
        "1 arena: 1.00 MiB, 36.0 KiB resident, 24.0 KiB allocated",
        "…f7ef4000   2 % █▓░",
        "heap at 0x555555560000: 264.0 KiB, 136.0 KiB resident, 131.7 KiB allocated",
        "…55560000  99 % ▒" + 63 * "█",
        "…55570000 100 % " + 64 * "█",
        "…55580000   7 % ████▒···",
        "…55590000   0 %",
        "                1 more row like this",
        "2 mappings: 456.0 KiB, 204.0 KiB resident, 456.0 KiB allocated",
        "   260.0 KiB  live, at 0x7ffff7eb0000",
        "   196.0 KiB  live, at 0x7ffff7e7f000",
    ]


def test_full_draws_every_page_of_the_heap_and_folds_no_row():
    lines = lines_of(memory_of(three_pools()), fold=False, full=True)
    assert lines[3:5] == ["…55560000  51 % " + 33 * "█" + "░", "…555a0000   0 %"]
    assert not [line for line in lines if "more row" in line]


@pytest.mark.parametrize("stack", ["bump", "ideal"])
def test_a_model_that_does_not_report_its_parts_is_named_as_one(stack):
    lines = lines_of(memory_of(three_pools(), stack))
    assert lines[0].startswith("heap at 0x555555560000: ")
    assert lines[1:] == ["  The model of this heap does not report its parts."]


def test_many_arenas_are_merged_into_at_most_24_rows():
    history = History()
    history.mallocs(100_000, 512)
    memory = memory_of(history.trace())
    found = regions(memory.spans)
    scale = Scale.of(found, full=False, page_bytes=memory.page_bytes)
    arenas = [region for region in found if region.kind is RegionKind.ARENA]
    assert len(arenas) == 51
    assert scale.merged_pools == 4
    assert [line.split(" ", 1)[1].strip() for line in lines_of(memory, fold=False)[2:12]] == ["97 % " + 64 * "█"] * 10
    assert len([line for line in lines_of(memory, fold=False, full=True) if "█" in line]) >= 51


def test_of_many_heaps_the_largest_are_drawn():
    history = History()
    for thread in range(10):
        history.by(thread).mallocs(thread + 1, 50_000, Domain.LIBC)
    memory = memory_of(history.trace(), "cpython-3.12-malloc")
    lines = lines_of(memory)
    assert len([line for line in lines if line.startswith("heap at")]) == 8
    (heaps,) = [line for line in lines if "smaller heaps" in line]
    assert heaps.startswith("2 smaller heaps: 264.0 KiB, ")
    assert heaps.endswith("; --full draws them")
    assert len([line for line in lines_of(memory, full=True) if line.startswith("heap at")]) == 10


# The command


@pytest.fixture
def trace_file(tmp_path):
    path = tmp_path / "pools.parquet"
    write_trace(three_pools(), path)
    return path


def test_the_map_ends_with_a_legend_and_the_next_command(replay, trace_file):
    code, out, _ = replay("map", trace_file, "-a", "cpython-3.12", "--set", "pymalloc.alignment=8", "--at", "0s")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{trace_file} on cpython-3.12, at 0s (0 ns)"
    assert lines[-4:] == [
        "a cell: a pool of 16.0 KiB in arenas, 1.00 KiB in heaps",
        "allocated: █ ≥ 75 %  ▓ ≥ 50 %  ▒ ≥ 25 %  ░ less  · nothing  blank: not in memory",
        "",
        f"next: replay pins {trace_file} -a cpython-3.12 --set pymalloc.alignment=8 --at 0s",
    ]
    assert max(map(len, lines[1:-1])) <= 80
    assert "196.0 KiB" not in out


def test_json_has_the_cells(replay, trace_file):
    code, out, _ = replay("map", trace_file, "-a", "cpython-3.12", "--json")
    assert code == 0
    found = json.loads(out)
    (process,) = found["processes"]
    assert (found["at_ns"], process["name"]) == (1_000_000, "")
    heap, first, _, arena = process["regions"]
    assert [region["kind"] for region in process["regions"]] == ["heap", "mapping", "mapping", "arena"]
    assert arena["cells"]["size_class"][:4] == [512, 512, 16, 0]
    assert arena["cells"]["live_bytes"][:4] == [15_872, 8_704, 16, 0]
    assert sum(heap["cells"]["live_bytes"]) == heap["live_bytes"] == 784 + 131_088 + 3_008
    assert "cells" not in first


def test_an_animation_needs_a_terminal_and_one_process(refused, trace_file):
    assert "--play: needs a terminal" in refused("map", trace_file, "--play")
    assert "--play: needs a terminal" in refused("map", trace_file, "--play", "--json")


@pytest.mark.system
def test_an_animation_is_stopped_by_ctrl_c_with_the_cursor_shown_again(trace_file):
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "xterm-256color"
        command = ["-m", "replay", "map", str(trace_file), "-a", "cpython-3.12", "--play"]
        os.execv(sys.executable, [sys.executable, *command])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    shown = b""
    while b"1 arena" not in shown:
        shown += os.read(terminal, 65_536)
    os.kill(process, signal.SIGINT)
    try:
        while part := os.read(terminal, 65_536):
            shown += part
    except OSError:  # the terminal has no other end any more
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert b"Traceback" not in shown
