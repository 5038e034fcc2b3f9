"""Who is live at a moment of a trace: `replay trace info --live`, and the table of `replay run`."""

import json
from pathlib import Path

import numpy as np
import pytest
from histories import History, cut, seeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_collector_settings import PAIRS, history
from test_pins import BURST, NAME, REMEMBER, Script, pinned_heap

from replay.analysis.live import LiveGroup, find_live, live_before
from replay.config import load_config
from replay.simulation.run import run
from replay.sources.parquet import write_trace
from replay.support.errors import ReplayError
from replay.trace import TEARDOWN_MARK, Domain, MemoryTrace, Metadata, Op
from replay.trace.editing.merging import Part, merged

few = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
PAGE = (Path(__file__).parents[1] / "docs" / "pins.md").read_text(encoding="utf-8")


def live_by_hand(trace: MemoryTrace, rows: int) -> dict[int, tuple[int, int, int]]:
    """Size, domain and thread of the allocation of each live block, after so many rows."""
    live: dict[int, tuple[int, int, int]] = {}
    events = trace.events[0]
    names = ("op", "block", "size", "domain", "thread")
    columns = (getattr(events, name)[:rows].tolist() for name in names)
    for op, block, size, domain, thread in zip(*columns, strict=True):
        if op == Op.FREE:
            del live[block]
        elif op == Op.REALLOC:
            live[block] = (size, *live[block][1:])
        elif op <= Op.MEMALIGN:
            live[block] = (size, domain, thread)
    return live


@given(st.integers(0, 10_000), st.lists(st.integers(1, 299), max_size=3), st.integers(0, 300))
@few
def test_live_blocks_are_those_that_were_allocated_and_not_freed(seed, cuts, row):
    trace = seeded(seed, 300).trace()
    expected = live_by_hand(trace, row)
    found = live_before(MemoryTrace(cut(trace.events[0], cuts), trace.metadata), row, 0)
    assert (found.blocks, found.bytes) == (len(expected), sum(size for size, _, _ in expected.values()))
    domains = {group.name: group[1:] for group in found.by_domain}
    for domain in Domain:
        sizes = [size for size, of, _ in expected.values() if of == domain]
        assert domains.get(domain.name.lower(), (0, 0)) == (len(sizes), sum(sizes))
    for groups in (found.by_size_class, found.by_thread):
        assert sum(group.blocks for group in groups) == found.blocks
        assert sum(group.bytes for group in groups) == found.bytes
        assert [group.bytes for group in groups] == sorted((group.bytes for group in groups), reverse=True)


@given(st.integers(0, 10_000), st.lists(st.integers(1, 299), max_size=3))
@few
def test_the_peak_is_the_first_moment_with_the_most_requested_bytes(seed, cuts):
    trace = seeded(seed, 300).trace()
    totals = [sum(size for size, _, _ in live_by_hand(trace, rows).values()) for rows in range(301)]
    row = int(np.argmax(totals))
    found = find_live(MemoryTrace(cut(trace.events[0], cuts), trace.metadata), "peak")
    assert found.bytes == max(totals)
    assert found.blocks == len(live_by_hand(trace, row))
    assert found.at_ns == trace.events[0].time_ns[row - 1] - trace.events[0].time_ns[0]


def remembering() -> Script:
    """A program with blocks of two sites, one of which another site reallocates."""
    script = Script()
    script.mark(0)
    first = script.new(600, BURST)
    second = script.new(40, REMEMBER)
    script.mark(1)
    script.new(0, NAME)
    script.realloc(second, 50, NAME)
    script.free(first)
    return script


def test_a_site_stands_for_the_blocks_that_it_allocated():
    found = find_live(remembering().trace("load", "serve"))
    assert found.by_site == [LiveGroup("remember (app.py:20)", 1, 50), LiveGroup("name (app.py:30)", 1, 0)]
    assert found.by_size_class == [LiveGroup("up to 64 B", 1, 50), LiveGroup("0 B", 1, 0)]
    assert (found.at_ns, found.by_type) == (6000, [])


@pytest.mark.parametrize(
    ("at", "blocks", "at_ns"),
    [("load", 0, 0), ("serve", 2, 3000), (2000, 2, 2000), (4999, 3, 4999), ("peak", 3, 5000), ("end", 2, 6000)],
)
def test_moments_are_those_of_snapshots(at, blocks, at_ns):
    trace = remembering().trace("load", "serve")
    found, taken = find_live(trace, at), []
    run(trace, load_config("cpython-3.12"), snapshots=[at], sink=lambda each: taken.append(each.blocks()),
        with_blocks=True)  # fmt: skip
    assert (found.blocks, found.at_ns) == (blocks, at_ns)
    assert at == "peak" or len(taken[-1]) == blocks


def test_the_end_is_before_the_teardown():
    script = remembering()
    script.mark(2)
    script.free(2, 3)
    assert find_live(script.trace("load", "serve", TEARDOWN_MARK)).blocks == 2


def test_types_are_those_of_the_later_frees_and_live_objects():
    found = find_live(history(PAIRS), at=2)
    assert found.by_type == [LiveGroup("m.Node", 3, 192)]


def test_blocks_of_several_processes_are_counted_together():
    trace = remembering().trace("load", "serve")
    both = merged([Part(trace, "a"), Part(trace, "b")], "", as_processes=True)
    assert (find_live(both).blocks, find_live(both, "peak").bytes) == (4, 1300)


def test_an_empty_trace_has_nothing_live():
    for at in ("end", "peak"):
        assert find_live(MemoryTrace([], Metadata()), at).blocks == 0


@pytest.mark.parametrize(
    ("at", "message"),
    [(7000, r"no moment at 7.00 µs: the trace ends 6.00 µs"), ("idle", "the trace has no phase 'idle'")],
)
def test_a_moment_that_does_not_exist_is_refused(at, message):
    with pytest.raises(ReplayError, match=message):
        find_live(remembering().trace("load", "serve"), at)


# The commands


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    path = tmp_path / "app.parquet"
    write_trace(pinned_heap().trace(), path)
    return path


def test_the_text_has_the_sites_at_the_moment(replay, traced):
    code, text, _ = replay("trace", "info", traced, "--live", "--at", "peak")
    assert code == 0
    assert text.startswith(f"{traced}, live at the peak (200.00 µs): 3.82 MiB; 201 blocks\n")
    assert "  burst (app.py:10)        200  3.81 MiB  100.0 %" in text
    assert "  remember (app.py:20)       1     600 B    0.0 %" in text
    assert text.endswith(f"next: replay pins {traced} --at peak\n")


def test_json_of_live_blocks_has_the_documented_keys(replay, traced):
    found = json.loads(replay("trace", "info", traced, "--live", "--json")[1])
    assert [key for key in found if f"`{key}`" not in PAGE] == []
    assert found["by_site"] == [{"name": "remember (app.py:20)", "blocks": 1, "bytes": 600}]


def test_a_trace_without_sites_has_the_other_tables(replay, tmp_path):
    path = tmp_path / "bare.parquet"
    write_trace(pinned_heap().trace(sites=()), path)
    text = replay("trace", "info", path, "--live")[1]
    assert "Live by call site" not in text
    assert "Live by size class" in text


def test_a_moment_needs_the_option_live(refused, traced):
    assert "--at peak requires --live" in refused("trace", "info", traced, "--at", "peak")


def test_a_run_shows_who_is_live_at_the_resident_peak(replay, traced):
    arguments = ("run", traced, "-a", "cpython-3.12", "--no-reference")
    text = replay(*arguments)[1].partition("Live at the peak of resident memory, by call site\n")[2]
    summary = json.loads(replay(*arguments, "--json")[1])
    live = summary["live_at_peak"]
    blocks = live["blocks"]
    assert live["by_site"] == [{"name": "burst (app.py:10)", "blocks": blocks, "bytes": blocks * 20_000}]
    assert text.splitlines()[1].split() == f"burst (app.py:10) {blocks} 3.81 MiB 100.0 %".split()
    assert (live["bytes"], live["at_ns"]) == (summary["requested_bytes_at_peak"], summary["peak_time_ns"])


def test_a_run_of_a_trace_without_sites_does_not_read_it_again(replay, tmp_path):
    path = tmp_path / "bare.parquet"
    write_trace(History().trace(), path)
    assert "live_at_peak" not in json.loads(replay("run", path, "-a", "cpython-3.12", "--no-reference", "--json")[1])
