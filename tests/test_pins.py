"""`replay pins`: which blocks keep memory from being released, and whether it is released without them."""

import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from conftest import recorded, run_python
from histories import counters, seeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.allocators import TopRule
from replay.analysis.block_groups import Grouped
from replay.analysis.pin_report import find_pins
from replay.analysis.pins import Grouping
from replay.analysis.removal import matches_site, shortest_pattern
from replay.analysis.retention import Heap, Retained
from replay.config import default_preset, load_config
from replay.simulation.addresses import run_addresses
from replay.simulation.live_blocks import LIVE_BLOCK, LiveBlocks
from replay.simulation.run import run
from replay.sources.parquet import write_trace
from replay.support.errors import ReplayError
from replay.trace import NO_SITE, TRIM_MARK, Domain, Events, MemoryTrace, Metadata, Op, Site
from replay.trace.editing.merging import Part, merged
from replay.trace.provenance import Provenance

few = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
PAGE = (Path(__file__).parents[1] / "docs" / "pins.md").read_text(encoding="utf-8")
SITES = (Site("burst", "app.py", 10), Site("remember", "app.py", 20), Site("name", "app.py", 30))
BURST, REMEMBER, NAME = range(3)


class Script:
    """Writes the events of a trace by hand."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._blocks = 0

    def new(self, size: int, site: int, domain: Domain = Domain.OBJ) -> int:
        self._blocks += 1
        self._rows.append((Op.MALLOC, domain, self._blocks, size, site))
        return self._blocks

    def realloc(self, block: int, size: int, site: int, domain: Domain = Domain.OBJ) -> None:
        self._rows.append((Op.REALLOC, domain, block, size, site))

    def free(self, *blocks: int) -> None:
        self._rows += [(Op.FREE, Domain.OBJ, block, 0, NO_SITE) for block in blocks]

    def mark(self, phase: int) -> None:
        self._rows.append((Op.MARK, Domain.RAW, 0, phase, NO_SITE))

    def trace(self, *phases: str, sites: tuple[Site, ...] = SITES) -> MemoryTrace:
        events = Events.empty(len(self._rows), "site")
        columns = np.array(self._rows, np.int64).T
        events.time_ns[:], events.thread[:] = np.arange(len(self._rows)) * 1000, 0
        for name, column in zip(("op", "domain", "block", "size", "site"), columns, strict=True):
            getattr(events, name)[:] = column
        if not sites:
            events = events.keep_optional()
        return MemoryTrace([events], Metadata(sites=sites, phases=phases))


def pinned_arenas(arenas: int = 6) -> Script:
    """A program that fills arenas and frees all but one small block of each."""
    script, burst = Script(), []
    for _ in range(arenas):
        burst += [script.new(64, BURST) for _ in range(3900)]  # 256 KiB
        script.new(64, REMEMBER)
    script.free(*burst)
    return script


def pinned_heap(*sites: int) -> Script:
    """A program whose heap has one small block of each of these sites behind much free memory."""
    script = Script()
    burst = [script.new(20_000, BURST, Domain.RAW) for _ in range(200)]
    for site in sites or (REMEMBER,):
        script.new(600, site, Domain.RAW)
    script.free(*burst)
    return script


@pytest.mark.parametrize(("script", "stack"), [(pinned_arenas(), "cpython-3.8"), (pinned_heap(), "cpython-3.12")])
def test_the_planted_site_is_first_and_pins_what_a_run_without_it_releases(script, stack):
    report = find_pins(script.trace(), load_config(stack), without="remember")
    assert report.by_site.groups[0].name == "remember (app.py:20)"
    assert report.by_site.groups[0].pinned_bytes > 1 << 20
    assert report.without.released_bytes == report.by_site.groups[0].pinned_bytes
    assert report.without.simulated_bytes == pytest.approx(report.without.released_bytes, abs=4096)


def test_from_3_9_on_the_last_free_arena_is_not_released():
    def pinned(stack):
        report = find_pins(pinned_arenas(30).trace(), load_config(stack, ["pymalloc.arena_size=256 KiB"]))
        return report.by_site.groups[0].pinned_bytes

    one_arena = 256 << 10
    assert pinned("cpython-3.8") - pinned("cpython-3.9") == pytest.approx(one_arena, abs=16 << 10)


def test_sites_that_share_every_arena_pin_nothing_alone_and_all_of_it_together():
    script = pinned_arenas(1)
    script.new(64, NAME)
    report = find_pins(script.trace(), load_config("cpython-3.8"))
    shared = [(group.name, group.pinned_bytes, group.shared_bytes > 0) for group in report.by_site.groups]
    assert shared == [("name (app.py:30)", 0, True), ("remember (app.py:20)", 0, True)]
    assert [cover.groups for cover in report.by_site.cover] == [["name (app.py:30)", "remember (app.py:20)"]] or [
        sorted(cover.groups) for cover in report.by_site.cover
    ] == [["name (app.py:30)", "remember (app.py:20)"]]
    assert report.by_site.cover[0].released_bytes == report.releasable_bytes > 0


def test_a_block_behind_the_pin_keeps_the_end_of_the_heap():
    report = find_pins(pinned_heap(REMEMBER, NAME).trace(), load_config("cpython-3.12"))
    assert report.heap_ends[0].name == "name (app.py:30)"
    by_name = {group.name: group for group in report.by_site.groups}
    assert by_name["remember (app.py:20)"].pinned_bytes == 0
    assert by_name["remember (app.py:20)"].shared_bytes > 1 << 20


@given(st.integers(0, 10_000), st.sampled_from(["cpython-3.12", "cpython-3.12-malloc", "cpython-3.8"]))
@few
def test_live_blocks_are_where_the_run_placed_them(seed, stack):
    trace = seeded(seed, 800).trace()
    events = next(trace.batches())
    addresses, _, _ = run_addresses(trace, load_config(stack))
    live: dict[int, tuple[int, int, int]] = {}
    for row, (op, block, size) in enumerate(
        zip(*(getattr(events, name).tolist() for name in ("op", "block", "size")), strict=True)
    ):
        if op == Op.FREE:
            del live[block]
        elif op <= Op.MEMALIGN:
            live[block] = int(addresses[row]), size, live[block][2] if op == Op.REALLOC else row
    found = []
    run(
        trace,
        load_config(stack),
        snapshots=["end"],
        sink=lambda each: found.append(each.blocks()),
        with_blocks=True,
    )
    rows = zip(*(found[0][name].tolist() for name in ("block", "address", "requested_bytes", "row")), strict=True)
    assert {block: tuple(rest) for block, *rest in rows} == live


@given(st.integers(0, 10_000), st.sampled_from(["cpython-3.12", "cpython-3.12-malloc"]))
@few
def test_pins_release_at_most_what_is_resident_and_larger_sets_release_more(seed, stack):
    report = find_pins(seeded(seed, 1500).trace(), load_config(stack))
    for pins in (report.by_size_class, report.by_thread, report.by_domain):
        assert 0 <= pins.releasable_bytes <= report.resident_bytes
        assert all(group.pinned_bytes <= pins.releasable_bytes for group in pins.groups)
        released = [cover.released_bytes for cover in pins.cover]
        assert released == sorted(set(released))
        for group in pins.groups:
            assert 0 <= group.shared_bytes <= pins.releasable_bytes - group.pinned_bytes
    assert report.retained_bytes == report.resident_bytes - report.requested_bytes


def small_case(arena_groups: list[set[int]], heap: list[int]) -> Grouping:
    """Arenas of 1, 2, 4 … pages with a block of each of some groups; a heap whose chunks have these groups, from its
    end on, one page each."""
    codes, arena_of = [], []
    for arena, groups in enumerate(reversed(arena_groups)):  # the largest is the first
        codes += sorted(groups)
        arena_of += [arena] * len(groups)
    first, page = len(codes), 4096
    codes += heap
    blocks = LiveBlocks(*(np.zeros(len(codes), LIVE_BLOCK[name]) for name in LiveBlocks._fields))
    end = (len(heap) + 1) * page
    ends = end - page * np.arange(len(heap) + 1)
    retained = Retained(
        at_ns=0, row=0, resident_bytes=0, requested_bytes=0, trimmable_bytes=0, blocks=blocks,
        types=np.zeros(0, np.uint32), arenas=page << np.arange(len(arena_groups))[::-1], kept_arenas=0,
        arena_of=np.array([*arena_of, *([-1] * len(heap))], np.int32),
        heaps=[Heap(page, end, TopRule(0, 0, page), np.arange(first, len(codes)), ends[: len(heap)])] if heap else [],
        pages=np.arange(0, end, page), page_bytes=page,
    )  # fmt: skip
    names = [*"abcdefghijklmno"]
    return Grouping(retained, Grouped(np.array(codes, np.uint32), np.arange(len(names)), names))


def released_by_hand(arena_groups: list[set[int]], heap: list[int], gone: set[int]) -> int:
    """In pages: arenas whose groups are all gone, and the chunks at the heap's end."""
    arenas = sum(1 << index for index, groups in enumerate(arena_groups) if groups <= gone)
    return arenas + next((index for index, group in enumerate(heap) if group not in gone), len(heap))


@given(
    st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), max_size=5), st.lists(st.integers(0, 5), max_size=6)
)
def test_of_few_groups_the_best_sets_are_found(arena_groups, heap):
    grouping = small_case(arena_groups, heap)
    groups = sorted({*heap, *(group for each in arena_groups for group in each)})
    for size in range(len(groups) + 1):
        for gone in combinations(groups, size):
            assert grouping.released_bytes(gone) == 4096 * released_by_hand(arena_groups, heap, {*gone})
    pins = grouping.pins()
    assert pins.is_exact
    for cover in pins.cover:
        best = max(released_by_hand(arena_groups, heap, {*gone}) for gone in combinations(groups, len(cover.groups)))
        assert cover.released_bytes == 4096 * best


def test_of_many_groups_two_that_pin_much_together_come_before_one_that_pins_little_alone():
    arenas = [{0}, *({group, group + 1} for group in range(3, 15, 2)), {1, 2}]  # of 1, 2 to 64, and 128 pages
    pins = small_case(arenas, []).pins()
    assert not pins.is_exact
    first = pins.cover[0]
    assert (sorted(first.groups), first.released_bytes) == (["b", "c"], 128 * 4096)


def freed_small_chunks() -> Script:
    """A program without pymalloc that frees 120,000 small blocks before a live one. Their chunks are in fastbins."""
    script = Script()
    burst = [script.new(64, BURST) for _ in range(120_000)]
    script.new(64, REMEMBER)
    script.free(*burst)
    return script


@pytest.mark.parametrize(
    ("script", "stack"),
    [
        (pinned_heap(), "cpython-3.12"),
        (freed_small_chunks(), "cpython-3.12-malloc"),
        (freed_small_chunks(), "cpython-3.12-malloc-glibc-2.43"),
    ],
)
def test_malloc_trim_releases_what_is_said(script, stack):
    before = find_pins(script.trace(), load_config(stack))
    script.mark(0)
    after = find_pins(script.trace(TRIM_MARK), load_config(stack))
    assert before.resident_bytes - after.resident_bytes == before.trimmable_bytes > 1 << 20
    assert after.trimmable_bytes == 0


@given(st.integers(0, 10_000), st.sampled_from(["cpython-3.12", "cpython-3.12-malloc", "cpython-2.7", "ideal", "bump"]))
@few
def test_to_ask_what_malloc_trim_would_release_does_not_change_the_run(seed, stack):
    trace, config, found = seeded(seed, 900).trace(), load_config(stack), []
    every_ns = max(1, trace.duration_ns // 7)

    def sink(snapshot):
        found.append((snapshot.rows, int(snapshot.counters["resident_bytes"]), snapshot.trimmable_bytes()))

    asked = run(trace, config, snapshots=every_ns, sink=sink)
    assert counters(asked.end) == counters(run(trace, config, snapshots=every_ns, sink=lambda snapshot: None).end)
    for rows, resident_bytes, trimmable_bytes in found:
        trimmed = next(trace.batches()).where(slice(rows))
        mark = trimmed.where(np.array([-1]))
        mark.op[:], mark.size[:] = Op.MARK, 0
        after = run(MemoryTrace([trimmed, mark], Metadata(phases=(TRIM_MARK,))), config)
        assert int(after.end.resident_bytes) == resident_bytes - trimmable_bytes


def test_blocks_are_counted_by_phase_and_age_and_by_whether_they_are_ever_freed():
    script = Script()
    script.mark(0)
    first = script.new(64, BURST)
    script.mark(1)
    script.new(64, REMEMBER)
    script.free(first)
    report = find_pins(script.trace("load", "serve"), load_config("cpython-3.8"), at="serve")
    assert [(group.name, group.blocks) for group in report.by_phase.groups] == [("load", 1)]
    assert report.never_freed_share == 0.0
    report = find_pins(script.trace("load", "serve"), load_config("cpython-3.8"), at=3000)
    assert report.never_freed_share == 0.5
    assert [(age.blocks, age.block_bytes) for age in report.ages] == [(2, 128)]


# The real process


@pytest.mark.slow
def test_the_memory_of_the_real_process_falls_as_predicted(tmp_path):
    program = (tmp_path / "loader.py").resolve()
    text = next(body for body in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S) if "loader.py" in body)
    # Whether the end of glibc's heap is released, 2 MiB here, depends on the process's environment: pin far more.
    text = text.replace("load(1000)", "load(4000)")
    program.write_text(text, encoding="utf-8")
    trace = recorded(tmp_path, "--sites", program)
    report = find_pins(trace, load_config(default_preset(trace.metadata)), without="loader.py:10")
    assert report.by_site.groups[0].name == f"remember ({program}:10)"
    bare = text.replace("    SEEN[len(SEEN)] = record[0]", "    record[0]")
    assert bare != text
    with_pins, without = (median(resident_at_end(source) for _ in range(5)) for source in (text, bare))
    assert with_pins - without == pytest.approx(report.without.released_bytes, rel=0.1)


def resident_at_end(source: str) -> int:
    """Anonymous resident bytes of a process at the end of a program."""
    ending = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('RssAnon')))"
    return int(run_python("-S", "-c", f"{source}\n{ending}").stdout) << 10


@pytest.mark.slow
def test_a_recording_with_types_names_the_type_of_the_pins(tmp_path):
    program = tmp_path / "typed.py"
    program.write_text(
        """
class Session:
    __slots__ = ("user",)
kept, burst = [], []
for number in range(30):
    burst += [bytes(12) for _ in range(30_000)]
    kept.append(Session())
burst.clear()
""",
        encoding="utf-8",
    )
    trace = recorded(tmp_path, "--types", program)
    report = find_pins(trace, load_config(default_preset(trace.metadata)))
    assert report.has_types
    assert report.by_type.groups[0].name == "__main__.Session"
    assert report.by_type.groups[0].pinned_bytes > 10 << 20
    early = find_pins(trace, load_config(default_preset(trace.metadata)), at="peak")
    assert {group.name for group in early.by_type.groups} >= {"__main__.Session", "bytes"}


# The command


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    path = tmp_path / "app.parquet"
    write_trace(pinned_heap().trace(), path)
    return path


def test_json_has_the_documented_keys(replay, traced):
    _, text, _ = replay("pins", traced, "-a", "cpython-3.12", "--json", "--without", "app.py:20")
    found = json.loads(text)
    assert [key for key in found if f"`{key}`" not in PAGE] == []
    assert found["by_site"][0]["name"] == "remember (app.py:20)"
    assert set(found["by_site"][0]) == {"name", "pinned_bytes", "shared_bytes", "blocks", "spans", "oldest_ns"}
    assert found["cover"][0] == {"groups": ["remember (app.py:20)"], "released_bytes": found["releasable_bytes"]}
    assert found["without"]["sites"] == ["remember (app.py:20)"]


def test_the_text_names_the_site_and_suggests_the_proof(replay, traced):
    _, text, _ = replay("pins", traced, "-a", "cpython-3.12")
    assert "1 block: remember (app.py:20); without it" in text.replace("\n                ", " ")
    assert text.rstrip().endswith(f"next: replay pins {traced} -a cpython-3.12 --without app.py:20")


def test_the_suggested_proof_names_all_sites_of_the_largest_set(replay, tmp_path):
    path = tmp_path / "app.parquet"
    write_trace(pinned_heap(REMEMBER, NAME).trace(), path)
    _, text, _ = replay("pins", path, "-a", "cpython-3.12")
    assert text.splitlines()[-1].endswith("-a cpython-3.12 --without app.py:20 --without app.py:30")
    found = json.loads(
        replay("pins", path, "-a", "cpython-3.12", "--json", "--without", "app.py:30", "--without", "remember")[1]
    )
    assert found["without"]["sites"] == ["remember (app.py:20)", "name (app.py:30)"]
    assert found["without"]["released_bytes"] == found["cover"][-1]["released_bytes"] > 1 << 20
    assert found["without"]["simulated_bytes"] == pytest.approx(found["without"]["released_bytes"], abs=4096)


def test_a_line_number_stands_for_one_line():
    names = ["f (a/x.py:1)", "g (b/x.py:1)", "h (b/x.py:10)", "k (b/x.py:1)"]
    assert [name for name in names if matches_site("x.py:1", name)] == [names[0], names[1], names[3]]
    assert [name for name in names if matches_site("x.py", name)] == names
    shortest = ["a/x.py:1", "g (b/x.py:1)", "x.py:10", "k (b/x.py:1)"]
    assert [shortest_pattern(name, names) for name in names] == shortest


def test_a_trace_may_end_before_the_moment_without_the_blocks_of_a_site():
    script = Script()
    script.new(600, REMEMBER, Domain.RAW)
    script.new(600, NAME, Domain.RAW)
    report = find_pins(script.trace(), load_config("cpython-3.12"), at="peak", without="name")
    assert report.without.resident_bytes == report.resident_bytes > 0


def test_the_heading_has_the_settings(replay, traced):
    changed = ["--set", "glibc.top_pad=0", "--env", "MALLOC_ARENA_MAX=1"]
    _, text, _ = replay("pins", traced, "-a", "cpython-3.12", *changed)
    settings = "glibc.top_pad=0, MALLOC_ARENA_MAX=1"
    assert text.startswith(f"{traced} on cpython-3.12 with {settings}, at the end (400.00 µs)\n")


@pytest.mark.parametrize("stack", ["bump", "ideal"])
def test_a_stack_without_arenas_and_heaps_is_said_to_have_none(replay, traced, stack):
    _, text, _ = replay("pins", traced, "-a", stack)
    assert f"nothing: {stack} has no arena and no end of a heap that a live block keeps" in " ".join(text.split())
    assert "Pinned by" not in text
    assert text.rstrip().endswith(f"next: replay run {traced} -a {stack}")


def test_without_call_sites_the_answer_is_by_size_class_and_says_how_to_get_them(replay, tmp_path):
    path = tmp_path / "bare.parquet"
    trace = pinned_heap().trace(sites=())
    origin = Provenance(interpreter="cpython 3.12.1")
    write_trace(MemoryTrace([*trace.batches()], replace(trace.metadata, origin=origin)), path)
    _, text, _ = replay("pins", path, "-a", "cpython-3.12")
    assert "Pinned by call site" not in text
    assert "Pinned by size class" in text
    assert "replay record --sites" in text
    assert json.loads(replay("pins", path, "-a", "cpython-3.12", "--json")[1])["by_site"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "idel"], "--at idel: is neither a time such as 1.5s nor a phase"),
        (["--at", "900s"], "the trace ends"),
        (["--without", "nowhere.py"], "--without 'nowhere.py': no call site has this in its name"),
        (
            ["--without", "app.py:20", "--without", "app.py:2"],
            "--without 'app.py:2': no call site has this in its name",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(refused, traced, arguments, message):
    assert message in refused("pins", traced, "-a", "cpython-3.12", *arguments)


def test_an_empty_trace_has_no_pins(replay, tmp_path):
    path = tmp_path / "empty.parquet"
    write_trace(MemoryTrace([], Metadata()), path)
    found = json.loads(replay("pins", path, "-a", "cpython-3.12", "--json")[1])
    assert (found["resident_bytes"], found["by_size_class"], found["ages"]) == (found["retained_bytes"], [], [])
    _, text, _ = replay("pins", path, "-a", "cpython-3.12")
    assert "nothing: no block is live at this moment" in text
    assert "Live blocks by age" not in text


def test_several_processes_are_refused_with_the_command_that_selects_one(refused, tmp_path):
    path = tmp_path / "app.parquet"
    trace = pinned_heap().trace()
    write_trace(merged([Part(trace, "a"), Part(trace, "b")], "", as_processes=True), path)
    message = refused("pins", path, "-a", "cpython-3.12")
    assert f"{path}: has a table of processes ('a' and others)" in message
    assert "replay trace filter --process NAME" in message


def test_blocks_of_a_snapshot_need_the_option():
    with pytest.raises(ReplayError, match="with_blocks=True"):
        run(pinned_heap().trace(), load_config("cpython-3.12"), snapshots=["end"], sink=lambda each: each.blocks())
