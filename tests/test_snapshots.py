"""Snapshots: the changes handed to a sink add up to the spans of each moment, and no result depends on them."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from histories import History, counters, cut, fingerprint, seeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_spans import STACKS

from replay.allocators import SPAN, SpanKind, bump, bundled_names
from replay.analysis.frames import timeline
from replay.config import load_config
from replay.reports.snapshot_file import SnapshotFile, new_snapshot_file
from replay.simulation.run import run
from replay.simulation.simulator import Simulator
from replay.simulation.snapshots import Changes, Snapshot, SpanTable, SpanTracker, joined
from replay.support.errors import ReplayError
from replay.trace import TEARDOWN_MARK, Domain, MemoryTrace, Metadata
from replay.trace.editing.merging import Part, merged
from replay.trace.processes import processes_of

CONFIG = load_config("cpython-3.12")
PAGE = (Path(__file__).parents[1] / "docs" / "snapshots.md").read_text(encoding="utf-8")
each_stack = pytest.mark.parametrize(
    ("name", "overrides"), STACKS, ids=lambda each: "+".join([each] if isinstance(each, str) else each)
)
some = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))


class Kept:
    """A sink that keeps what it is handed, and checks that the changes add up to all spans."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self.spans: list[np.ndarray] = []
        self._tables: dict[int, SpanTable] = {}

    def __call__(self, snapshot: Snapshot) -> None:
        table = self._tables.setdefault(snapshot.process, SpanTable())
        table.apply(snapshot.changes)
        spans = snapshot.spans()
        assert table.spans(snapshot.page_bytes).tolist() == spans.tolist()
        assert spans["bytes"].sum() == snapshot.counters.mapped_bytes
        assert spans["resident_bytes"].sum() == snapshot.counters.resident_bytes
        self.snapshots.append(snapshot)
        self.spans.append(spans)

    def moments(self) -> list[tuple[str, int, int]]:
        return [(each.label, each.time_ns, each.rows) for each in self.snapshots]


def outcome(trace, config, **options) -> list[object]:
    """All that a run counted, but for the time it took and what the simulator keeps for itself."""
    result = run(trace, config, sample_every_ns=50, **options)
    records = [result.samples, result.end, result.at_peak, *(part.end for part in result.processes)]
    others = (result.events, result.sample_times_ns.tolist(), result.at_peak_time_ns, result.mean("requested_bytes"))
    phases = [(name, time_ns, counters(record)) for name, time_ns, record in result.phases]
    return [*map(counters, records), *others, phases, result.classes.tolist()]


def three_times() -> History:
    history = History()
    first = history.at(10).malloc(400_000, Domain.RAW)
    history.at(20).mallocs(3, 100)
    history.at(20).free(first)
    history.at(35).malloc(100)
    return history


@each_stack
@some
@given(seed=st.integers(0, 1 << 30), every_ns=st.integers(150, 4_000))
def test_changes_add_up_at_any_moment(name, overrides, seed, every_ns):
    kept = Kept()
    trace = MemoryTrace([seeded(seed, 2_000).events()])
    run(trace, load_config(name, overrides), snapshots=every_ns, sink=kept)
    assert kept.snapshots


@pytest.mark.parametrize("version", ["2.31", "2.36", "2.41", "2.43"])
def test_changes_of_threads_with_heaps_of_their_own_add_up(version):
    history = History()
    for round_number in range(6):
        blocks = []
        for thread in range(4):
            blocks += history.by(thread).mallocs(60, 1_000 + 300 * thread, Domain.RAW)
            history.at(history.now_ns + 10)
        for thread in range(4):
            history.by(thread).free(*blocks[thread + round_number % 2 :: 5])
            blocks = [each for each in blocks if each in history.domains]
            history.at(history.now_ns + 10)
        history.free(*blocks[: len(blocks) // (1 + round_number % 2)])
    kept = Kept()
    config = load_config(f"cpython-3.12-glibc-{version}", ("glibc.trim_threshold=16 KiB",))
    run(history.trace(), config, snapshots=7, sink=kept)
    assert len(kept.snapshots) > 50
    assert max(len(np.unique(spans["region"])) for spans in kept.spans) >= 3


@some
@given(
    seed=st.integers(0, 1 << 30),
    cuts=st.lists(st.integers(0, 2_000), max_size=5),
    times=st.lists(st.integers(0, 3_000), max_size=6),
)
def test_no_result_depends_on_snapshots_or_batches(seed, cuts, times):
    events = seeded(seed, 2_000).events()
    times = [each for each in times if each <= events.time_ns[-1] - events.time_ns[0]]
    whole, pieces = MemoryTrace([events]), MemoryTrace(cut(events, cuts))
    kept, kept_of_pieces = Kept(), Kept()
    plain = outcome(whole, CONFIG)
    assert outcome(whole, CONFIG, snapshots=[*times, "peak", "end"], sink=kept) == plain
    assert outcome(pieces, CONFIG, snapshots=[*times, "peak", "end"], sink=kept_of_pieces) == plain
    assert kept_of_pieces.moments() == kept.moments()
    assert [spans.tolist() for spans in kept_of_pieces.spans] == [spans.tolist() for spans in kept.spans]


def test_memory_of_a_model_without_spans_is_a_heap(monkeypatch):
    monkeypatch.delattr(bump, "spans")
    for config in (load_config("bump"), load_config("cpython-3.12", ["domains.libc=bump"])):
        kept = Kept()
        run(MemoryTrace([seeded(2, 2_000).events()]), config, snapshots=500, sink=kept)
        assert {int(kind) for spans in kept.spans for kind in spans["kind"]} >= {SpanKind.HEAP}
    assert {int(kind) for kind in kept.spans[-1]["kind"]} > {SpanKind.HEAP}


def test_every_bundled_model_has_spans_that_are_tested():
    names = {name for preset, overrides in STACKS for name in load_config(preset, overrides).models}
    assert names == set(bundled_names())


def timeline_columns(result):
    """The levels and counters that docs/metrics.md describes for the timeline."""
    columns = timeline(result).drop("time_ns", "internal_fragmentation", "external_fragmentation").columns
    return [name for name in columns if not name.endswith("_mean")]


def test_the_counters_of_a_snapshot_are_the_levels_and_counters_of_the_timeline():
    kept = Kept()
    result = run(three_times().trace(), CONFIG, snapshots=["end"], sink=kept)
    (counters_at_end,) = (each.counters for each in kept.snapshots)
    assert list(counters_at_end.dtype.names) == timeline_columns(result)
    assert [counters_at_end[name] for name in counters_at_end.dtype.names] == [
        result.end[name] for name in counters_at_end.dtype.names
    ]


def test_a_snapshot_at_a_time_sees_all_events_of_that_time():
    kept = Kept()
    run(three_times().trace(), CONFIG, snapshots=[9, 10, 0, 25], sink=kept)
    assert kept.moments() == [("", 0, 1), ("", 9, 1), ("", 10, 5), ("", 25, 6)]
    assert [int(each.counters.mallocs) for each in kept.snapshots] == [1, 1, 4, 5]
    assert [int(each.counters.frees) for each in kept.snapshots] == [0, 0, 1, 1]
    mapped = [spans["bytes"][spans["kind"] == SpanKind.MAPPING].max() for spans in kept.spans]
    assert mapped == [401_408, 401_408, 266_240, 266_240]  # at last the largest is a node of pymalloc's tree


def test_the_peak_is_the_moment_right_after_the_event_that_reached_it():
    kept = Kept()
    result = run(three_times().trace(), CONFIG, snapshots=["end", 0, "peak"], sink=kept)
    assert kept.moments() == [("", 0, 1), ("peak", 10, 2), ("end", 25, 6)]
    peak = kept.snapshots[1]
    assert peak.counters.resident_bytes == result.end.resident_bytes_peak == kept.spans[1]["resident_bytes"].sum()
    assert peak.time_ns == result.at_peak_time_ns
    assert peak.counters.resident_bytes > kept.snapshots[2].counters.resident_bytes


def test_snapshots_at_an_interval_come_until_the_end():
    kept = Kept()
    run(three_times().trace(), CONFIG, snapshots=5, sink=kept)
    assert [time_ns for _, time_ns, _ in kept.moments()] == [5, 10, 15, 20, 25]
    assert [rows for _, _, rows in kept.moments()] == [1, 5, 5, 5, 6]


def test_the_marks_of_a_phase_are_moments():
    history = History()
    history.mallocs(2, 100)
    history.at(5).mark(1)
    history.mallocs(3, 100)
    history.at(9).mark(0)
    history.at(12).mark(1)
    kept = Kept()
    run(history.trace("load", "serve"), CONFIG, snapshots=["serve", 9], sink=kept)
    assert kept.moments() == [("serve", 5, 2), ("", 9, 7), ("serve", 12, 7)]


def test_the_end_is_before_the_interpreter_is_finalized():
    history = History()
    kept_blocks = history.mallocs(40, 500)
    history.at(7).mark()
    history.at(8).free(*kept_blocks)
    kept = Kept()
    result = run(history.trace(TEARDOWN_MARK), CONFIG, snapshots=["end", 8], sink=kept)
    assert kept.moments() == [("end", 7, 40), ("", 8, 81)]
    assert kept.snapshots[0].counters.block_bytes == result.end.block_bytes == 40 * 512
    assert kept.snapshots[1].counters.block_bytes == 0


def test_each_process_has_its_own_snapshots():
    parts = [Part(three_times().trace(), name) for name in ("web", "worker")]
    together = merged(parts, "", as_processes=True)
    trace = MemoryTrace(list(together.batches()), together.metadata)
    kept = Kept()
    plain = outcome(trace, CONFIG)
    assert outcome(trace, CONFIG, snapshots=[10, "peak", "end"], sink=kept) == plain
    assert [(each.label, each.process) for each in kept.snapshots] == [
        (label, process) for label in ("peak", "", "end") for process in (0, 1)
    ]
    assert [int(each.counters.mallocs) for each in kept.snapshots][-2:] == [5, 5]
    assert len(processes_of(trace).table) == 2


def test_an_empty_trace_has_an_end_and_a_peak_without_spans():
    kept = Kept()
    run(MemoryTrace([]), CONFIG, snapshots=["peak", "end", 0], sink=kept)
    assert sorted(kept.moments()) == [("", 0, 0), ("end", 0, 0), ("peak", 0, 0)]
    assert not any(len(spans) for spans in kept.spans)


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        (0, "the interval between snapshots must be at least 1 ns, not 0"),
        ([-1], "no snapshot at -1 ns: the trace begins at 0 ns"),
        ([26], "no snapshot at 26 ns: the trace ends 25 ns after its first event"),
        ("peak", "the moments of snapshots are a list, such as ['peak']"),
        (["serv"], "no snapshot at 'serv': the trace has no such phase; did you mean 'serve'?"),
    ],
)
def test_moments_that_do_not_exist_are_refused(moments, message):
    with pytest.raises(ReplayError, match=f"^{re.escape(message)}$"):
        run(three_times().trace("serve"), CONFIG, snapshots=moments, sink=lambda snapshot: None)


def test_a_phase_that_never_begins_is_an_error_where_phases_are_not_known_before():
    with pytest.raises(ReplayError, match="no snapshot at 'serve': the trace has no mark of such a phase"):
        run(three_times().trace(), CONFIG, snapshots=["serve"], sink=lambda snapshot: None)


def test_snapshots_without_a_sink_are_refused():
    with pytest.raises(ReplayError, match="snapshots need a sink"):
        run(three_times().trace(), CONFIG, snapshots=["end"])


def test_changes_in_a_row_join_to_those_of_one_snapshot():
    tracker, simulator = SpanTracker(), Simulator(CONFIG)
    parts: list[Changes] = []
    run(
        MemoryTrace([seeded(3, 2_000).events()]),
        CONFIG,
        snapshots=400,
        sink=lambda snapshot: parts.append(snapshot.changes),
    )
    one_by_one, at_once = SpanTable(), SpanTable()
    for each in parts:
        one_by_one.apply(each)
    at_once.apply(joined(parts))
    assert at_once.spans(4096).tolist() == one_by_one.spans(4096).tolist()
    assert len(parts) > 10
    assert len(tracker.changes(simulator).spans) == 0


def test_a_file_of_snapshots_has_every_moment_and_its_spans(tmp_path):
    kept, path = Kept(), tmp_path / "run.arrow"
    trace = MemoryTrace([seeded(5, 4_000).events()])
    run(trace, CONFIG, snapshots=200, sink=kept)
    with new_snapshot_file(path) as sink:
        run(trace, CONFIG, snapshots=200, sink=sink)
    file = SnapshotFile(path)
    assert [(each.label, each.time_ns, each.rows) for each in file.moments()] == kept.moments()
    assert file.moments()[3].counters["mapped_bytes"] == kept.snapshots[3].counters.mapped_bytes
    assert [spans.tolist() for _, spans in file] == [spans.tolist() for spans in kept.spans]
    assert list(file.moments()[3].counters) == timeline_columns(run(trace, CONFIG))
    for number in (0, len(file) // 2, len(file) - 1):
        assert file.spans(number).tolist() == kept.spans[number].tolist()
    assert file.spans(0).dtype == SPAN
    with pytest.raises(ReplayError, match="exists"), new_snapshot_file(path):
        pass


def test_the_page_on_snapshots_names_every_column_and_kind():
    tables = re.findall(r"^\| (?:`(\w+)`|(\d+) \| `(\w+)`) \|", PAGE.partition("## Spans")[2], re.MULTILINE)
    assert [column for column, _, _ in tables if column] == list(SPAN.names)
    assert {name: int(number) for column, number, name in tables if not column} == dict(SpanKind.__members__)
    of_sink = PAGE.partition("## The sink")[2].partition("## ")[0]
    attributes = re.findall(r"^\| `(\w+)(?:\(\w*\))?` \|", of_sink, re.MULTILINE)
    assert attributes == [field.name for field in fields(Snapshot)]


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line[0].isalpha()]
    assert [words[0] for words in lines if words[0] != "shape:"] == ["peak", "end"]


def test_a_file_that_has_no_snapshots_is_refused(tmp_path):
    (tmp_path / "other.arrow").write_bytes(b"no Arrow")
    for name in ("other.arrow", "missing.arrow"):
        with pytest.raises(ReplayError, match="not a file of snapshots"):
            SnapshotFile(tmp_path / name)


def test_addresses_and_system_calls_do_not_depend_on_snapshots():
    trace = MemoryTrace([seeded(11, 3_000).events()], Metadata())
    expected = fingerprint(trace, CONFIG)
    run(trace, CONFIG, snapshots=100, sink=Kept())
    assert fingerprint(trace, CONFIG) == expected
