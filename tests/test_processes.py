"""Traces of several processes: each has the results that it has alone, and sums equal those of single steps."""

import json
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import output_of
from histories import BOOKKEEPING, SIZES, TINY, WORDS, History, changes, counters, cut, seeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from replay.__main__ import app
from replay.allocators import LEVELS, TIMED
from replay.analysis import frames
from replay.analysis.metrics import metrics_of, summarize
from replay.config import load_config
from replay.gates.causes import live_at_peak
from replay.simulation import multi_process as host
from replay.simulation.clock import Slice
from replay.simulation.run import run
from replay.simulation.simulator import Simulator
from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.support.errors import ReplayError, TraceError
from replay.sweeps.sweep import sweep
from replay.trace import (
    TRIM_MARK,
    Domain,
    Events,
    MemoryTrace,
    Metadata,
    Op,
    Process,
    ProcessMemory,
    Provenance,
    joined,
    trace_digest,
)
from replay.trace.block_numbering import NumberingApart
from replay.trace.editing.cutting import Piece
from replay.trace.editing.cutting import cut as cut_trace
from replay.trace.editing.merging import Part, merged
from replay.trace.editing.scaling import repeated
from replay.trace.editing.selecting import Conditions, FilteredTrace
from replay.trace.processes import Processes
from replay.trace.validation import Validator

CONFIGS = {
    "3.12": load_config("cpython-3.12"),
    "tiny arenas": load_config("cpython-3.9", TINY),
    "bump": load_config("bump"),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
some = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
PHASES = ("work", TRIM_MARK)
MEMORY = ProcessMemory(1000, 200, 30)


def part_of(steps):
    """A history of three threads that also marks phases, calls malloc_trim and ends threads."""
    history, live = History(), []
    for kind, size, which, domain, thread, pause_ns in steps:
        history.at(history.now_ns + pause_ns).by(thread)
        if kind < 5 or (kind < 10 and not live):
            live.append(history.malloc(size, Domain(domain), Op.CALLOC if kind == 3 else Op.MALLOC))
        elif kind < 7:
            history.resize(live[which % len(live)], size)
        elif kind < 10:
            history.free(live.pop(which % len(live)))
        elif kind == 12:
            history.end_thread()
        else:
            history.mark(kind % 2, Op.GC_START if kind == 13 else Op.MARK)
    return history


STEPS = st.tuples(
    st.integers(0, 13), st.sampled_from(SIZES), st.integers(0, 63), st.sampled_from(Domain), st.integers(0, 2),
    st.sampled_from((0, 0, 1, 7)),
)  # fmt: skip
PARTS = st.lists(st.lists(STEPS, min_size=1, max_size=50).map(part_of), min_size=1, max_size=4)


def host_of(parts, offset_ns=0):
    """Returns all of them as one trace in memory, with processes a, b, …"""
    traces = [MemoryTrace([part.events()], Metadata(phases=PHASES, process=MEMORY)) for part in parts]
    trace = merged(
        [Part(each, "abcdefghij"[index], index * offset_ns) for index, each in enumerate(traces)], "", as_processes=True
    )
    events = list(trace.batches())
    return MemoryTrace([joined(events)], trace.metadata)


def recut(trace, cuts):
    return MemoryTrace(cut(trace.events[0], cuts), trace.metadata)


@dataclass
class Brute:
    """Sums from one simulator for each process, in steps of one row."""

    sums: list
    """Levels after each row."""
    peaks: list
    """Peaks of the sums so far, by level."""
    best_row: int
    best: dict
    best_shares: list


def brute(trace, config):
    """The reference. Other processes do not change during an event, so the peak of the sum follows from its own."""
    (events,), metadata = trace.events, trace.metadata
    owner_of = {thread: number for number, each in enumerate(metadata.processes) for thread in each.threads}
    begin_ns = int(events.time_ns[0])
    simulators = [Simulator(config, begin_ns=begin_ns) for _ in metadata.processes]
    none = np.zeros(0, np.int64)
    result = Brute([], [], -1, dict.fromkeys(LEVELS, 0), [])
    peaks = dict.fromkeys(LEVELS, 0)
    for row in range(events.rows):
        simulator = simulators[owner_of[int(events.thread[row])]]
        others = {
            level: sum(int(each.tally[level]) for each in simulators if each is not simulator) for level in LEVELS
        }
        for level in LEVELS:
            simulator.tally[f"{level}_peak"] = simulator.tally[level]
        op = events.op[row]
        if op == Op.MARK and metadata.phases[events.size[row]].endswith(TRIM_MARK):
            simulator.trim(row, int(events.time_ns[row]))
        elif op == Op.THREAD_END:
            simulator.end_thread(int(events.thread[row]), row, int(events.time_ns[row]))
        elif op <= Op.FREE:
            simulator.simulate(Slice(events.where(slice(row, row + 1)), row, 0, 1, none, none))
        within = {level: others[level] + int(simulator.tally[f"{level}_peak"]) for level in LEVELS}
        result.sums.append({level: others[level] + int(simulator.tally[level]) for level in LEVELS})
        if op <= Op.FREE and within["resident_bytes"] > peaks["resident_bytes"]:
            result.best_row, result.best = row, result.sums[-1]
            result.best_shares = [{level: int(each.tally[level]) for level in LEVELS} for each in simulators]
        peaks = {level: max(peaks[level], within[level]) for level in LEVELS}
        result.peaks.append(peaks)
    return result


def levels(record):
    return {level: int(record[level]) for level in LEVELS}


def peaks(record):
    return {level: int(record[f"{level}_peak"]) for level in LEVELS}


def check_sums(recording, trace, config):
    (events,), expected = trace.events, brute(trace, config)
    begin_ns = events.time_ns[0]
    assert (levels(recording.end), peaks(recording.end)) == (expected.sums[-1], expected.peaks[-1])
    assert levels(recording.at_peak) == expected.best
    if expected.best_row >= 0:
        assert recording.at_peak.row == expected.best_row
        assert recording.at_peak_time_ns == events.time_ns[expected.best_row] - begin_ns
        assert [levels(share) for share in recording.shares] == expected.best_shares
    for time_ns, sample in zip(recording.sample_times_ns, recording.samples, strict=True):
        seen = int(np.searchsorted(events.time_ns, time_ns + begin_ns, side="right"))
        if seen:
            assert (levels(sample), peaks(sample)) == (expected.sums[seen - 1], expected.peaks[seen - 1])
    for name in recording.end.dtype.names:
        if name not in (*BOOKKEEPING, *WORDS, "row") and not name.endswith("_peak"):
            assert recording.end[name] == sum(each.end[name] for each in recording.processes), name
    for level in TIMED:
        assert changes(recording.end, level) == sum(changes(each.end, level) for each in recording.processes)


@each_config
@some
@given(parts=PARTS, offset_ns=st.integers(0, 9), every_ns=st.integers(1, 40))
def test_sums_and_their_peaks_are_those_of_single_steps(config, parts, offset_ns, every_ns):
    trace = host_of(parts, offset_ns)
    check_sums(run(trace, config, sample_every_ns=every_ns), trace, config)


@each_config
def test_sums_and_their_peaks_are_those_of_single_steps_in_a_long_trace_too(config):
    trace = host_of([seeded(seed, 4_000, wave=300 + seed) for seed in (1, 2, 3)], 40)
    check_sums(run(trace, config, sample_every_ns=900), trace, config)


def without_row(record):
    """The counters that do not depend on when the process began."""
    names = [name for name in record.dtype.names if name not in (*BOOKKEEPING, *WORDS, "row")]
    return {name: int(record[name]) for name in names}


@each_config
@some
@given(parts=PARTS, offset_ns=st.integers(0, 9))
def test_each_process_has_the_same_results_as_alone(config, parts, offset_ns):
    recording = run(host_of(parts, offset_ns), config)
    for index, (part, mine) in enumerate(zip(parts, recording.processes, strict=True)):
        alone = run(MemoryTrace([part.events()], Metadata(phases=PHASES, process=MEMORY)), config)
        begin_ns = index * offset_ns
        assert metrics_of(summarize(mine)) == metrics_of(summarize(alone))
        assert (mine.events, mine.duration_ns) == (alone.events, alone.duration_ns)
        assert without_row(mine.end) == without_row(alone.end)
        assert without_row(mine.at_peak) == without_row(alone.at_peak)
        if alone.at_peak.page_faults:
            assert mine.at_peak_time_ns == alone.at_peak_time_ns + begin_ns
        assert mine.classes.tolist() == alone.classes.tolist()
        for name, view in alone.observed.items():
            assert mine.observed[name].tolist() == view.tolist()
        assert [(time_ns, without_row(tally)) for _, time_ns, tally in mine.phases] == [
            (time_ns + begin_ns, without_row(tally)) for _, time_ns, tally in alone.phases
        ]


def outcome(recording):
    """Returns the results that must not depend on batches or samples."""
    return (
        counters(recording.end), counters(recording.at_peak), recording.at_peak_time_ns, recording.classes.tolist(),
        recording.events, recording.duration_ns, counters(recording.shares),
        [(name, time_ns, counters(tally)) for name, time_ns, tally in recording.phases],
        {name: view.tolist() for name, view in recording.observed.items()},
        [outcome(each) for each in recording.processes],
    )  # fmt: skip


@each_config
@some
@given(
    parts=PARTS, cuts=st.lists(st.integers(0, 150), max_size=12), intervals=st.tuples(*[st.integers(1, 90)] * 2),
    stints=st.integers(1, 9),
)  # fmt: skip
def test_results_depend_neither_on_batches_nor_on_the_sampling_interval(config, parts, cuts, intervals, stints):
    trace = host_of(parts)
    whole = run(trace, config, sample_every_ns=intervals[0])
    assert outcome(run(recut(trace, cuts), config, sample_every_ns=intervals[1])) == outcome(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "STINTS", stints)
        pieces = run(recut(trace, cuts), config, sample_every_ns=intervals[0])
    assert outcome(pieces) == outcome(whole)
    assert counters(pieces.samples) == counters(whole.samples)


@each_config
@some
@given(part=st.lists(STEPS, min_size=1, max_size=80).map(part_of), every_ns=st.integers(1, 40))
def test_one_process_with_a_table_is_the_same_as_without(config, part, every_ns):
    bare = MemoryTrace([part.events()], Metadata(phases=PHASES, process=MEMORY))
    table = (Process("all", (2, 0, 1), MEMORY),)
    tabled = MemoryTrace(bare.events, replace(bare.metadata, process=ProcessMemory(), processes=table))
    one, other = (run(trace, config, sample_every_ns=every_ns, trim_every_ns=60) for trace in (bare, tabled))
    assert outcome(other)[:6] == outcome(one)[:6]
    assert counters(other.samples) == counters(one.samples)
    assert outcome(other)[7:9] == outcome(one)[7:9]
    assert summarize(other).model_dump(exclude={"processes"}) == summarize(one).model_dump(exclude={"processes"})
    assert outcome(replace(other.processes[0], phases=one.phases))[:6] == outcome(one)[:6]
    for frame in (frames.timeline, frames.size_classes, frames.pools, frames.phases):
        assert frame(other).drop("thread", strict=False).equals(frame(one).drop("thread", strict=False))
    assert frames.arenas(other).drop("process").equals(frames.arenas(one))


def two_workers():
    """Process a frees its 600 bytes at 3, b requests as many at 4: they never have blocks at the same time."""
    parts = []
    for at_ns in (0, 4):
        history = History()
        history.at(at_ns).free(history.at(at_ns).malloc(600))
        parts.append(history)
    parts[1].at(9).malloc(100)
    return host_of(parts, 4)


def test_a_peak_of_the_sum_is_not_the_sum_of_peaks():
    summary = summarize(run(two_workers(), CONFIGS["3.12"]))
    a, b = summary.processes
    assert (a.name, a.requested_bytes_peak, a.requested_bytes_end) == ("a", 600, 0)
    assert (b.name, b.requested_bytes_peak, b.requested_bytes_end) == ("b", 600, 100)
    assert (summary.requested_bytes_peak, summary.requested_bytes_end) == (600, 100)
    assert summary.resident_bytes_peak == a.resident_bytes_peak + b.resident_bytes_peak
    assert [each.at_peak_of_all["requested_bytes"] for each in (a, b)] == [0, 100]
    assert (summary.mallocs, summary.frees, a.events, b.events, summary.events) == (3, 2, 2, 3, 5)
    assert summary.static_bytes == 2 * a.static_bytes == 2000
    assert summary.process_bytes_peak == summary.mapped_bytes_peak + 2000 + 400


def test_a_peak_within_a_realloc_counts_though_the_process_stood_higher_before():
    """b once filled ten pools, which were released with their arena. Now its block moves to libc, which needs a page,
    and then the arena goes, which had one: for a moment, with what a has, more than ever between two events."""
    a, b, page, config = History(), History(), 4096, load_config("cpython-3.8")
    a.at(0).malloc(600)
    a.at(2).malloc(300_000)
    b.at(0).free(*b.mallocs(400, 100))
    moved = b.at(1).malloc(100)
    b.at(3).realloc(moved, 4000)
    trace = host_of([a, b])
    recording, truth = run(trace, config), brute(trace, config)
    check_sums(recording, trace, config)
    between = max(levels["resident_bytes"] for levels in truth.sums)
    assert recording.end.resident_bytes_peak == between + page
    assert recording.at_peak.row == trace.events[0].rows - 1
    mine = recording.processes[1]
    assert mine.end.resident_bytes_peak > mine.end.resident_bytes + page


def test_trimming_by_the_clock_trims_all_processes():
    """Both have the same duration, so that samples of both together are those of each alone."""
    parts = [seeded(seed, 300) for seed in (5, 6)]
    last_ns = max(part.now_ns for part in parts)
    for part in parts:
        part.at(last_ns).malloc(1)
    recording = run(host_of(parts), CONFIGS["3.12"], trim_every_ns=100)
    for part, mine in zip(parts, recording.processes, strict=True):
        alone = run(MemoryTrace([part.events()], Metadata(process=MEMORY)), CONFIGS["3.12"], trim_every_ns=100)
        assert without_row(mine.end) == without_row(alone.end)
        assert mine.end.madvise > 0


# Writing and reading


@pytest.fixture
def parts(tmp_path):
    """Two files, web with a phase and two threads, worker with one of each."""
    web, worker = History(), History()
    web.at(5).mark(0)
    web.by(7).malloc(100)
    web.at(6).by(3).malloc(700)
    web.at(9).free(0)
    worker.at(105).mark(0)
    worker.at(106).malloc(3000)
    for name, history in (("web", web), ("worker", worker)):
        origin = Provenance(notes={"host": "h", "of": name})
        metadata = Metadata(origin, phases=("load",), process=ProcessMemory(4096, 10, 1))
        write_trace(MemoryTrace([history.events()], metadata), tmp_path / f"{name}.parquet")
    return [tmp_path / "web.parquet", tmp_path / "worker.parquet"]


@pytest.fixture
def service(parts, tmp_path):
    out = tmp_path / "service.parquet"
    output_of("trace", "merge", *parts, "-o", out, "--processes")
    return out


def test_merged_files_stay_processes_named_after_them(service):
    metadata = open_source(service).metadata
    memory = ProcessMemory(4096, 10, 1)
    assert metadata.processes == (Process("web", (0, 1, 3), memory), Process("worker", (2,), memory))
    assert (metadata.process, metadata.memory) == (ProcessMemory(), ProcessMemory(8192, 20, 2))
    assert metadata.phases == ("web: load", "worker: load")
    assert metadata.origin.texts() == {"host": "h", "edited": "merge web.parquet worker.parquet --processes"}


def test_a_file_of_processes_is_of_the_newer_version_and_others_of_the_older(service, parts):
    def version(path):
        return json.loads(pq.ParquetFile(path).metadata.metadata[b"replay"])["format_version"]

    assert (version(service), version(parts[0])) == (2, 1)


def test_a_process_is_extracted_as_its_original_trace(service, parts, tmp_path):
    out = tmp_path / "out.parquet"
    output_of("trace", "filter", service, "-o", out, "--process", "web")
    found, was = open_source(out), open_source(parts[0])
    assert (found.metadata.processes, found.metadata.process) == ((), was.metadata.process)
    for config in CONFIGS.values():
        one, other = (metrics_of(summarize(run(trace, config))) for trace in (found, was))
        assert one == other
    with pytest.raises(ReplayError, match="unknown process 'wbe'; did you mean 'web'"):
        output_of("trace", "filter", service, "-o", out, "--process", "wbe", "--force")
    with pytest.raises(ReplayError, match="unknown process 'web'; the trace has no table of processes"):
        output_of("trace", "filter", parts[0], "-o", out, "--process", "web", "--force")


def test_processes_merge_into_more_or_into_one(service, parts, tmp_path):
    out = tmp_path / "out.parquet"
    output_of("trace", "merge", service, parts[1], "-o", out, "--processes")
    assert [each.name for each in open_source(out).metadata.processes] == ["service: web", "service: worker", "worker"]
    output_of("trace", "merge", service, "-o", out, "--force")
    metadata = open_source(out).metadata
    assert (metadata.processes, metadata.process) == ((), ProcessMemory(4096, 20, 2))
    assert json.loads(output_of("run", out, "--json"))["processes"] == []


def test_copies_can_be_processes(parts, tmp_path):
    out = tmp_path / "out.parquet"
    output_of("trace", "scale", parts[0], "-o", out, "--copies", 3, "--processes", "--repeat", 2)
    processes = open_source(out).metadata.processes
    assert [(each.name, len(each.threads)) for each in processes] == [("copy 0", 3), ("copy 1", 3), ("copy 2", 3)]
    alone = tmp_path / "alone.parquet"
    output_of("trace", "scale", parts[0], "-o", alone, "--repeat", 2)
    one, many = (json.loads(output_of("run", path, "--json")) for path in (alone, out))
    assert [each["resident_bytes_peak"] for each in many["processes"]] == [one["resident_bytes_peak"]] * 3


def test_a_piece_begins_with_the_phase_of_each_process(service, tmp_path):
    out = tmp_path / "out.parquet"
    output_of("trace", "cut", service, "-o", out, "--from", "1ns")
    (events,) = open_source(out).batches()
    assert [(int(size), int(thread)) for op, size, thread in zip(events.op, events.size, events.thread, strict=True)
            if op == Op.MARK] == [(0, 3), (1, 2)]  # fmt: skip
    output_of("trace", "cut", service, "-o", out, "--phase", "web: load", "--force")
    assert open_source(out).events_total == 6


def test_blocks_of_an_ended_thread_belong_to_its_process_main_thread():
    """Blocks of process b's second thread, which ended, are allocated and freed by b's first."""
    a, b = History(), History()
    a.at(0).malloc(1)
    b.at(1).malloc(2)
    b.by(5).malloc(3)
    b.end_thread()
    b.by(0).at(9).malloc(4)
    trace = host_of([a, b])
    main = trace.metadata.processes[1].threads[0]
    (piece,) = list(cut_trace(trace, Piece(6), "").batches())[:1]
    assert piece.thread.tolist() == [trace.metadata.processes[0].threads[0], main, main]
    twice = joined(list(repeated(trace, 2, "", keep_live=False).batches()))
    assert set(twice.thread[twice.op == Op.FREE].tolist()) == {0, main}
    Validator(None, trace.metadata).check(twice)


@some
@given(parts=PARTS, at_ns=st.integers(0, 80))
def test_edits_of_processes_are_valid_and_keep_them_separate(parts, at_ns):
    trace = host_of(parts, 3)
    edits = [
        repeated(trace, 2, "", keep_live=False),
        FilteredTrace(trace, Conditions(domain=Domain.OBJ), ""),
        merged([Part(trace, "x"), Part(trace, "y", 5)], "", as_processes=True),
    ]
    if at_ns < int(trace.events[0].time_ns[-1]):
        edits.append(cut_trace(trace, Piece(at_ns), ""))
    for edit in edits:
        batches = list(edit.batches())
        Validator(None, edit.metadata).check(joined(batches))
        run(MemoryTrace(batches, edit.metadata), CONFIGS["tiny arenas"])


def test_info_head_and_reports_tell_processes(service, tmp_path):
    info = json.loads(output_of("trace", "info", service, "--json"))
    memory = {"static_bytes": 4096, "stack_bytes": 10, "stack_resident_bytes": 1}
    assert info["processes"] == [
        {"name": "web", "threads": 3, "events": 4, "memory": memory},
        {"name": "worker", "threads": 1, "events": 2, "memory": memory},
    ]
    assert info["process"]["static_bytes"] == 8192
    assert "worker" in output_of("trace", "info", service)
    assert [row["process"] for row in json.loads(output_of("trace", "head", service, "--json"))].count("worker") == 2
    text = output_of("run", service, "-a", "cpython-3.12", "--full", "--out", tmp_path / "out")
    assert "6 events of 2 processes" in text
    assert "largest process web, " in text
    assert "Processes, by resident memory" in text
    frame = pl.read_parquet(tmp_path / "out" / "processes.parquet")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert frame["name"].to_list() == [each["name"] for each in summary["processes"]] == ["web", "worker"]
    assert frame["resident_bytes_at_peak_of_all"].sum() == summary["resident_bytes_at_peak"]
    assert pl.read_parquet(tmp_path / "out" / "arenas.parquet")["process"].to_list() == ["web"]


def test_results_of_one_process_leave_no_table_of_processes_behind(service, parts, tmp_path):
    output_of("run", service, "-a", "bump", "--out", tmp_path / "out")
    output_of("run", parts[0], "-a", "bump", "--out", tmp_path / "out", "--force")
    assert not (tmp_path / "out" / "processes.parquet").exists()


def test_addresses_and_reality_are_of_one_process(service, tmp_path):
    advice = "select one with `replay trace filter --process NAME`"
    with pytest.raises(ReplayError, match=f"has a table of processes .*each has addresses of its own: {advice}"):
        output_of("run", service, "--addresses", tmp_path / "a.parquet")
    for words in ([], ["--libc"], ["--sweep", "every-cpython"]):
        with pytest.raises(ReplayError, match=f"only one process at a time can be compared .*: {advice}"):
            output_of("verify", service, *words)


def test_a_sweep_simulates_processes_too(service):
    results = sweep({"sources": [str(service)], "vary": {"allocator": ["cpython-3.8", "cpython-3.12"]}})
    expected = [metrics_of(summarize(run(open_source(service), load_config(name))))["resident_bytes_peak"]
                for name in ("cpython-3.8", "cpython-3.12")]  # fmt: skip
    assert sorted(results.frame["resident_bytes_peak"].to_list()) == sorted(expected)


def test_a_gate_judges_all_processes_together_and_names_the_one_that_grew(service, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output_of("baseline", service, "-a", "cpython-3.12")
    assert "1 passed" in output_of("check", service, "-a", "cpython-3.12")
    worker = History()
    worker.at(105).mark(0)
    for _ in range(400):
        worker.at(106).malloc(3000)
    write_trace(MemoryTrace([worker.events()], Metadata(phases=("load",))), parts[1], force=True)
    output_of("trace", "merge", *parts, "-o", "grown.parquet", "--processes")
    result = CliRunner().invoke(app, ["check", "grown.parquet", "--against", str(service)], terminal_width=120)
    assert result.exit_code == 1
    assert "worse   resident_bytes_peak" in result.stdout
    assert "worker: load" in result.stdout


def test_traces_that_differ_in_their_processes_have_other_digests():
    trace = two_workers()
    a, b = trace.metadata.processes
    digests = {
        trace_digest(MemoryTrace(trace.events, replace(trace.metadata, processes=processes)))
        for processes in ((), (a, b), (b, a), (replace(a, threads=(*a.threads, *b.threads)),))
    }
    assert len(digests) == 4


# Errors


def written(path, processes, version=2, **fields):
    """Thread 1 allocates block 0, thread 2 frees it."""
    content = {"format_version": version, "processes": processes, **fields}
    columns = {"time_ns": [1, 2], "thread": [1, 2], "op": [0, 3], "domain": [2, 2], "block": [0, 0], "size": [16, 0]}
    table = pa.table(columns).replace_schema_metadata({"replay": json.dumps(content)})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ([{"name": "a", "threads": [1]}, {"name": "a", "threads": [2]}], "2 processes have the name 'a'"),
        ([{"name": "a", "threads": [1, 2]}, {"name": "b", "threads": [2]}], "thread 2 is listed 2 times"),
        ([{"name": "a", "threads": [1, 1, 2]}], "thread 1 is listed 2 times"),
        ([{"name": "", "threads": [1, 2]}], "a process has no name"),
        ([{"name": "a", "threads": [1, -2]}], "thread -2 of process 'a' is not a UInt32"),
        ([{"name": "a", "threads": [1], "memory": {"static_bytes": -1}}], "negative bytes in process 'a'"),
        ([{"name": "a"}], "threads"),
    ],
)
def test_a_wrong_table_is_refused_before_the_simulation(tmp_path, processes, message):
    with pytest.raises(TraceError, match=f"the metadata under the key `replay` is wrong at `processes.*{message}"):
        open_source(written(tmp_path / "t.parquet", processes))


def test_a_table_in_an_older_version_or_beside_the_memory_of_one_process_is_refused(tmp_path):
    table = [{"name": "a", "threads": [1, 2]}]
    with pytest.raises(TraceError, match="format version 1 has no processes; write version 2"):
        open_source(written(tmp_path / "t.parquet", table, version=1))
    with pytest.raises(TraceError, match="`process` and `processes` exclude each other"):
        open_source(written(tmp_path / "t.parquet", table, process={"static_bytes": 1}))


@pytest.mark.parametrize(
    ("processes", "row", "message"),
    [
        ([{"name": "a", "threads": [1]}], 1, "thread 2 belongs to none of the processes in the metadata"),
        ([{"name": "a", "threads": [2]}], 0, "thread 1 belongs to none of the processes"),
        ([{"name": "a", "threads": [1]}, {"name": "b", "threads": [2, 1 << 31]}], 1,
         "free of block 0 by process 'b', but 'a' allocated it; processes share no blocks"),
    ],
)  # fmt: skip
def test_a_row_of_no_process_or_with_anothers_block_is_refused(tmp_path, processes, row, message):
    with pytest.raises(TraceError, match=message) as caught:
        list(open_source(written(tmp_path / "t.parquet", processes)).batches())
    assert caught.value.row == row


def test_the_first_of_several_mistakes_is_reported():
    """A realloc by another process, followed by a free of a missing block."""
    history = History()
    number = history.by(1).malloc(10)
    history.by(2).realloc(number, 20)
    history.rows.append((0, 1, Op.FREE, 0, 9, 0))
    metadata = Metadata(processes=(Process("a", (1,)), Process("b", (2,))))
    with pytest.raises(TraceError, match="realloc of block 0 by process 'b'") as caught:
        Validator(None, metadata).check(history.events())
    assert caught.value.row == 1


@given(numbers=st.sets(st.integers(0, (1 << 32) - 1), min_size=1, max_size=20), others=st.lists(st.integers(0, 99)))
def test_threads_are_found_whatever_their_numbers(numbers, others):
    threads = sorted(numbers)
    table = (Process("a", tuple(threads[::2])), Process("b", tuple(threads[1::2])))
    asked = np.array([*threads, *others], np.uint32)
    owner, place = Processes(lambda: table).find(asked)
    for thread, number, at in zip(asked.tolist(), owner.tolist(), place.tolist(), strict=True):
        if thread in numbers:
            assert table[number].threads[at] == thread
        else:
            assert number == -1


@some
@given(parts=PARTS)
def test_blocks_are_numbered_for_each_process_as_if_it_were_alone(parts):
    trace = host_of(parts)
    (events,) = trace.events
    owner = Processes(lambda: trace.metadata.processes).owners(events.thread)
    own = NumberingApart(len(parts)).number(events, owner)
    for number, part in enumerate(parts):
        alone = part.events()
        assert own[owner == number].tolist() == np.where(alone.op <= Op.FREE, alone.block, 0).tolist()


def test_causes_know_the_phase_of_each_process():
    """b's mark is the last, but later allocations of a belong to a's phase."""
    a, b = History(), History()
    a.at(0).mark(0)
    b.at(0).malloc(5000)
    b.at(1).mark(0)
    a.at(2).malloc(30_000)
    b.at(3).malloc(20_000)
    trace = host_of([a, b])
    groups = live_at_peak(trace, CONFIGS["3.12"])
    found = {change.group: change.bytes for change in groups if change.dimension == "phase"}
    assert found == {"a: work": 30_000, "start": 5000, "b: work": 20_000}
    in_pieces = live_at_peak(recut(trace, [1, 2, 3, 4]), CONFIGS["3.12"])
    assert in_pieces == groups


def test_rows_without_a_block_are_ignored_in_traces_of_processes_too():
    events = two_workers().events[0]
    row = {"op": Op.GC_START, "domain": 0, "block": (1 << 32) - 1, "size": 0}
    row |= {"time_ns": events.time_ns[0], "thread": events.thread[0]}
    wild = Events(**{name: np.insert(getattr(events, name), 1, value) for name, value in row.items()})
    recording = run(MemoryTrace([wild], two_workers().metadata), load_config("cpython-3.12"))
    assert without_row(recording.end) == without_row(run(two_workers(), load_config("cpython-3.12")).end)
    assert recording.processes[0].events + recording.processes[1].events == wild.rows
