"""A sweep from its plan to its rows: columns, outcomes on disk, continuing after an interruption."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from conftest import interrupted_sweep, run_python
from histories import History, seeded

import replay
from replay.analysis.metrics import metric_names, metrics_of
from replay.sources.parquet import write_trace
from replay.support.errors import OutputError, ReplayError, TraceError
from replay.support.version import identity
from replay.sweeps import sweep as sweeps
from replay.sweeps.analysis import ranking
from replay.sweeps.journal import OUTCOMES, Journal
from replay.sweeps.plan import load_plan
from replay.sweeps.results import NOT_COMPARED, read_results
from replay.sweeps.threads import Threads
from replay.sweeps.traces import decode, find_inputs
from replay.trace import trace_digest

VARY = {"allocator": ["cpython-3.8", "cpython-3.12"], "pymalloc.alignment": [8, 16]}
SMALL = {"duration": "1 ms", "streams": {"few": {
    "arrivals": {"kind": "fixed", "rate": "100000/s"}, "size": {"kind": "uniform", "min": 1, "max": 900},
    "lifetime": {"kind": "exponential", "mean": "1 ms"},
}}}  # fmt: skip


@pytest.fixture
def workload(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text(json.dumps(SMALL))
    return str(path)


class Counting(Threads):
    """Counts the requested runs, and raises KeyboardInterrupt after some."""

    def __init__(self, breaks_after=None, error=KeyboardInterrupt):
        super().__init__(1)
        self.asked, self.breaks_after, self.error = 0, breaks_after, error

    def outcomes(self, tasks):
        self.asked += len(tasks)
        for number, outcome in enumerate(super().outcomes(tasks)):
            if number == self.breaks_after:
                raise self.error
            yield outcome


def same(one, other):
    return one.frame.drop(NOT_COMPARED).equals(other.frame.drop(NOT_COMPARED))


def test_a_row_has_parameters_metrics_and_where_it_comes_from(source):
    results = replay.sweep({"sources": [source], "vary": VARY})
    assert results.frame.columns == [
        "run", "configuration", "default", "source", "seed", "status", "error", "allocator", "pymalloc.alignment",
        *metric_names(), "events", "wall_ns", "trace_digest", "replay_version", "python", "stack",
    ]  # fmt: skip
    assert results.frame.select("run", "configuration", "default", "allocator", "pymalloc.alignment").rows() == [
        (0, 0, False, "cpython-3.8", 8), (1, 1, True, "cpython-3.8", 16),
        (2, 2, False, "cpython-3.12", 8), (3, 3, False, "cpython-3.12", 16),
    ]  # fmt: skip
    row = results.frame.row(2, named=True)
    trace = replay.open_source(source)
    config = replay.load_config("cpython-3.12", ["pymalloc.alignment=8"])
    figures = metrics_of(replay.summarize(replay.run(trace, config)))
    assert {name: row[name] for name in figures} == figures
    assert (row["source"], row["seed"], row["status"], row["error"]) == (source, None, "done", None)
    assert (row["events"], row["trace_digest"]) == (trace.events_total, trace_digest(trace))
    assert (row["replay_version"], row["python"]) == (identity(), sys.version.split()[0])
    assert row["wall_ns"] > 0
    assert json.loads(row["stack"]) == config.model_dump(mode="json")


def test_metrics_tell_syscalls_in_all_and_by_kind(source):
    row = replay.sweep({"sources": [source], "vary": {"allocator": ["cpython-3.8"]}}).frame.row(0, named=True)
    kinds = [name for name in row if name.startswith("syscalls.")]
    assert kinds == [f"syscalls.{kind}" for kind in ("mmap", "munmap", "mremap", "brk", "madvise", "mprotect")]
    assert row["syscalls"] == sum(row[kind] for kind in kinds) > 0


def test_any_number_of_threads_gives_the_same_rows(source, workload):
    plan = {"sources": [source, workload], "vary": VARY}
    assert same(replay.sweep(plan, engine=Threads(1)), replay.sweep(plan, engine=Threads(4)))


def test_seeds_are_runs_of_their_own(workload):
    results = replay.sweep({"sources": [workload], "seeds": [1, 2, 3], "vary": {"allocator": ["cpython-3.8"]}})
    assert results.frame["seed"].to_list() == [1, 2, 3]
    assert results.frame["trace_digest"].n_unique() == 3
    alone = replay.sweep({"sources": [workload], "seeds": [2], "vary": {"allocator": ["cpython-3.8"]}})
    assert alone.frame["trace_digest"][0] == results.frame["trace_digest"][1]


def test_a_trace_is_decoded_once_for_all_runs_and_all_generations_of_a_search(source, workload, monkeypatch):
    decoded = []
    monkeypatch.setattr("replay.sweeps.traces.decode", lambda what: decoded.append(what.source) or decode(what))
    plan = {"sources": [source, workload], "vary": {**VARY, "glibc.top_pad": [0, 4096, 65536, 131072, 262144]}}
    replay.sweep(plan, engine=Threads(2))
    assert sorted(decoded) == [source, workload]
    decoded.clear()
    replay.sweep(plan, trials=12, engine=Threads(2))
    assert sorted(decoded) == [source, workload]


def test_the_same_trace_with_two_names_is_run_once_and_reported_twice(source, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    copy = other / "t.parquet"
    copy.write_bytes(Path(source).read_bytes())
    engine = Counting()
    results = replay.sweep({"sources": [source, str(copy)], "vary": VARY}, engine=engine)
    assert engine.asked == 4
    assert results.done.height == 8
    assert results.frame["source"].unique(maintain_order=True).to_list() == [source, str(copy)]


def test_a_trace_that_breaks_off_is_a_row_a_configuration_with_its_error(source, tmp_path):
    history = History()
    history.malloc(1 << 47)
    broken = tmp_path / "broken.parquet"
    write_trace(history.trace(), broken)
    results = replay.sweep({"sources": [str(broken), source], "vary": VARY})
    assert results.frame["status"].to_list() == ["failed", "done"] * 4
    failed = results.frame.filter(status="failed")
    assert all("140737488355328 bytes fit nowhere" in error for error in failed["error"])
    assert results.frame.filter(status="failed")["resident_bytes_peak"].null_count() == 4


def test_a_trace_that_is_changed_under_way_fails_and_is_not_mixed_with_the_first(workload, monkeypatch):
    def change_and_decode(what):
        Path(workload).write_text(json.dumps({**SMALL, "seed": 9}))
        return decode(what)

    monkeypatch.setattr("replay.sweeps.traces.decode", change_and_decode)
    results = replay.sweep({"sources": [workload], "vary": VARY})
    assert results.frame["error"].unique().to_list() == [f"{workload}: has changed since the sweep began"]


def test_urls_are_sources_and_each_is_fetched_once(source, workload, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/one/trace.parquet", Path(source).read_bytes())
    memory.pipe("/two/trace.parquet", b"PAR1 and no more")
    memory.pipe("/two/w.yaml", Path(workload).read_bytes())
    urls = ["memory://one/trace.parquet", "memory://two/w.yaml", Path(source).as_uri()]
    results = replay.sweep({"sources": urls, "vary": {"allocator": ["cpython-3.8"]}})
    plain = replay.sweep({"sources": [source, workload], "vary": {"allocator": ["cpython-3.8"]}})
    assert results.frame["source"].to_list() == urls
    assert results.frame["trace_digest"].to_list()[:2] == plain.frame["trace_digest"].to_list()
    with pytest.raises(ReplayError):
        replay.sweep({"sources": ["memory://two/trace.parquet"], "vary": VARY})


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("memory://no/such.parquet", "the file does not exist"),
        ("file:///no/such.parquet", "the file does not exist"),
        ("nothing://a/b", "cannot be read: Protocol not known: nothing"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_in_a_sentence(url, printed):
    with pytest.raises(TraceError) as refusal:
        find_inputs([url], [])
    assert str(refusal.value) == f"{url}: {printed}"


def test_the_folder_has_the_rows_and_they_are_read_back_equally(source, tmp_path):
    plan = {"sources": [source], "vary": VARY, "objectives": ["syscalls"], "description": "four"}
    results = replay.sweep(plan, out=tmp_path / "out", csv=True)
    back = read_results(tmp_path / "out")
    assert back.frame.equals(results.frame)
    assert (back.parameters, back.objectives) == (("allocator", "pymalloc.alignment"), ("syscalls",))
    assert back.description == "four"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "outcomes.jsonl", "results.csv", "results.parquet", "sweep.json",
    ]  # fmt: skip
    csv = pl.read_csv(tmp_path / "out" / "results.csv")
    assert csv["resident_bytes_peak"].to_list() == results.frame["resident_bytes_peak"].to_list()


def test_runs_before_an_interruption_are_kept_and_only_the_others_are_done(source, tmp_path):
    plan, out = {"sources": [source], "vary": VARY}, tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        replay.sweep(plan, out=out, engine=Counting(breaks_after=2))
    kept = read_results(out)
    assert kept.frame["status"].to_list() == ["done", "done", "missing", "missing"]
    engine = Counting()
    results = replay.sweep(plan, out=out, resume=True, engine=engine)
    assert engine.asked == 2
    assert same(results, replay.sweep(plan))
    assert results.frame["wall_ns"][0] == kept.frame["wall_ns"][0]
    replay.sweep(plan, out=out, resume=True, engine=engine)
    assert engine.asked == 2


def test_a_line_that_was_torn_is_done_again(source, tmp_path):
    plan, out = {"sources": [source], "vary": VARY}, tmp_path / "out"
    replay.sweep(plan, out=out)
    journal = out / OUTCOMES
    journal.write_bytes(journal.read_bytes()[:-10])
    engine = Counting()
    assert replay.sweep(plan, out=out, resume=True, engine=engine).done.height == 4
    assert engine.asked == 1
    assert journal.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"[]", b"{}", b'{"key": 1}', b""])
def test_a_damaged_line_is_reported_with_its_number(source, tmp_path, damage):
    plan, out = {"sources": [source], "vary": VARY}, tmp_path / "out"
    replay.sweep(plan, out=out)
    lines = (out / OUTCOMES).read_bytes().split(b"\n")
    lines[1] = damage
    (out / OUTCOMES).write_bytes(b"\n".join(lines))
    with pytest.raises(ReplayError, match=r"outcomes\.jsonl:2: is damaged; delete that line"):
        replay.sweep(plan, out=out, resume=True)
    del lines[1]
    (out / OUTCOMES).write_bytes(b"\n".join(lines))
    assert same(replay.sweep(plan, out=out, resume=True), replay.sweep(plan))


def test_a_failure_of_the_machine_is_tried_again_and_one_of_the_run_is_not(tmp_path, source):
    history = History()
    history.malloc(1 << 47)
    broken = tmp_path / "broken.parquet"
    write_trace(history.trace(), broken)
    plan, out = {"sources": [str(broken), source], "vary": VARY}, tmp_path / "out"
    content = Path(source).read_bytes()
    inputs = find_inputs([source], [])
    Path(source).unlink()
    import unittest.mock

    real = sweeps.find_inputs
    with unittest.mock.patch.object(sweeps, "find_inputs", lambda names, seeds: [*real([str(broken)], seeds), *inputs]):
        assert replay.sweep(plan, out=out).done.height == 0
    Path(source).write_bytes(content)
    engine = Counting()
    assert replay.sweep(plan, out=out, resume=True, engine=engine).done.height == 4
    assert engine.asked == 4


def test_another_sweep_is_not_continued_unless_forced(source, workload, tmp_path):
    out = tmp_path / "out"
    replay.sweep({"sources": [source], "vary": VARY}, out=out)
    wider = {**VARY, "pymalloc.alignment": [8, 16, 32]}
    with pytest.raises(ReplayError, match="has another sweep, with other vary; add --force"):
        replay.sweep({"sources": [source], "vary": wider}, out=out, resume=True)
    with pytest.raises(ReplayError, match="has another sweep, with other sources"):
        replay.sweep({"sources": [workload], "vary": VARY}, out=out, resume=True)
    engine = Counting()
    results = replay.sweep({"sources": [source], "vary": wider}, out=out, resume=True, force=True, engine=engine)
    assert engine.asked == 2
    assert same(results, replay.sweep({"sources": [source], "vary": wider}))
    other_metric = {"sources": [source], "vary": wider, "objectives": ["syscalls"]}
    replay.sweep(other_metric, out=out, resume=True, engine=engine)
    assert engine.asked == 2


def test_a_trace_that_was_changed_since_is_another_sweep(workload, tmp_path):
    plan, out = {"sources": [workload], "vary": VARY}, tmp_path / "out"
    replay.sweep(plan, out=out)
    Path(workload).write_text(json.dumps({**SMALL, "seed": 9}))
    with pytest.raises(ReplayError, match="the content of the traces"):
        replay.sweep(plan, out=out, resume=True)


def test_a_sweep_of_another_version_is_not_continued(source, tmp_path):
    plan, out = {"sources": [source], "vary": VARY}, tmp_path / "out"
    replay.sweep(plan, out=out)
    about = json.loads((out / "sweep.json").read_text())
    (out / "sweep.json").write_text(json.dumps({**about, "replay_version": "0.0.1+abc"}))
    with pytest.raises(ReplayError, match=r"has a sweep by replay 0\.0\.1\+abc, and this is "):
        replay.sweep(plan, out=out, resume=True, force=True)


@pytest.mark.parametrize("about", ["{}", "[]", '{"replay_version": 1}', "\xff"])
def test_an_invalid_description_is_reported(source, tmp_path, about):
    (tmp_path / "sweep.json").write_text(about, encoding="latin-1")
    with pytest.raises(ReplayError, match="is not a sweep that this version of replay can read"):
        replay.sweep({"sources": [source], "vary": VARY}, out=tmp_path, resume=True)


@pytest.mark.parametrize("name", ["results.parquet", "pareto.png", "results.csv"])
def test_existing_files_in_the_folder_are_not_replaced_without_force(source, tmp_path, name):
    (tmp_path / name).write_text("mine")
    plan = {"sources": [source], "vary": VARY}
    with pytest.raises(OutputError, match=f"already has {name}; choose another folder, or overwrite it with --force"):
        replay.sweep(plan, out=tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    replay.sweep(plan, out=tmp_path, force=True)


def test_two_sweeps_do_not_write_to_one_folder_at_once(source, tmp_path):
    plan, out = {"sources": [source], "vary": VARY}, tmp_path / "out"
    replay.sweep(plan, out=out)
    with Journal(out), pytest.raises(ReplayError, match="another sweep is writing to it"):
        replay.sweep(plan, out=out, resume=True)
    with Journal(out), pytest.raises(ReplayError, match="another sweep is writing to it"):
        replay.sweep(plan, out=out, force=True)
    assert replay.sweep(plan, out=out, resume=True).done.height == 4


def test_a_full_disk_ends_the_sweep_and_its_threads_in_a_sentence(source, tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("replay.sweeps.journal.os.fsync", full)
    with pytest.raises(OutputError, match=r"outcomes\.jsonl: cannot be written: No space left on device"):
        replay.sweep({"sources": [source], "vary": VARY}, out=tmp_path / "out")


KILLED = """
import sys, replay
from replay.sweeps.threads import Threads

class Slow(Threads):
    def outcomes(self, tasks):
        for outcome in super().outcomes(tasks):
            yield outcome
            print("one", flush=True)
            sys.stdin.readline()

replay.sweep({plan!r}, out={out!r}, engine=Slow(1))
"""


@pytest.mark.system
def test_after_a_kill_every_run_occurs_once(source, tmp_path):
    plan, out = {"sources": [source], "vary": VARY}, str(tmp_path / "out")
    program = KILLED.replace("{plan!r}", repr(plan)).replace("{out!r}", repr(out))
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdin.write(b"\n")
    process.stdin.flush()
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with pytest.raises(ReplayError, match="the sweep was interrupted with 2 runs done; finish it with --resume"):
        read_results(Path(out))
    engine = Counting()
    results = replay.sweep(plan, out=out, resume=True, engine=engine)
    assert engine.asked == 2
    assert same(results, replay.sweep(plan))
    keys = [json.loads(line)["key"] for line in (Path(out) / OUTCOMES).read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 4


INTERRUPTED = """
import random, signal, time
from contextlib import closing
from replay.sweeps import outcomes, threads
from replay.sweeps.traces import Input

def do(task, get, is_cancelled):
    end_ns = time.monotonic_ns() + 500_000
    while time.monotonic_ns() < end_ns:  # works
        pass
    return task

threads.do = do
signal.signal(signal.SIGALRM, signal.default_int_handler)
chance = random.Random(1)
tasks = [outcomes.Task(str(number), Input("t", "t", None, ""), {}) for number in range(2_000)]
interrupted = 0
for number in range(360):
    come = threads.Threads(2).outcomes(tasks)
    try:
        with closing(come):
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.0009 if number % 6 else 0.1))
            list(come)
    except KeyboardInterrupt:
        interrupted += 1
print(interrupted)
"""


@pytest.mark.parametrize("jobs", [0, -1])
def test_a_sweep_needs_a_thread(jobs):
    with pytest.raises(ReplayError, match="a sweep requires at least 1"):
        Threads(jobs)


@pytest.mark.system
def test_an_interrupt_ends_the_runs_whenever_it_comes():
    done = run_python("-c", INTERRUPTED)
    assert (done.stdout, done.stderr) == ("360\n", "")


@pytest.mark.system
def test_ctrl_c_ends_at_once_and_prints_how_to_continue(tmp_path):
    trace, out = tmp_path / "long.parquet", tmp_path / "out"
    write_trace(seeded(3, 60_000).trace(), trace)
    grid = ("--grid", "glibc.top_pad=0..2000000:+1000")
    code, printed = interrupted_sweep(trace, "-a", "cpython-3.8", *grid, "--out", out)
    assert code == 130
    message = f"interrupted; finished runs are saved in {out}; add --resume to the same command to continue"
    assert printed.splitlines()[-1] == message
    assert 0 < read_results(out).done.height < 2001


BUSY_THEN_IDLE = {
    "duration": "6 s",
    "streams": {
        "requests": {
            "arrivals": {"kind": "poisson", "rate": "20000/s"}, "stop": "3 s",
            "size": {"kind": "choice", "weights": {"64": 4, "200": 3, "460": 1}},
            "lifetime": {"kind": "exponential", "mean": "300 ms"},
        },
        "sessions": {
            "arrivals": {"kind": "poisson", "rate": "20/s"}, "stop": "3 s", "size": 128, "lifetime": "forever",
        },
        "heartbeats": {
            "arrivals": {"kind": "fixed", "rate": "10/s"}, "start": "3 s", "size": 100, "lifetime": "1 ms",
        },
    },
}  # fmt: skip


@pytest.fixture
def service(tmp_path):
    path = tmp_path / "service.yaml"
    path.write_text(json.dumps(BUSY_THEN_IDLE))
    return str(path)


def test_trimming_without_pymalloc_is_best_for_memory_that_stays_after_a_busy_phase(service):
    plan = load_plan("rss-does-not-go-down").model_dump(by_alias=True, exclude_unset=True)
    plan["vary"]["allocator"] = ["cpython-3.12", "cpython-3.12-malloc"]
    results = replay.sweep({**plan, "sources": [service]})
    assert results.objectives == ("resident_bytes_mean", "resident_bytes_end")
    for metric in results.objectives:
        best = ranking(results, metric).row(0, named=True)
        assert (best["allocator"], best["trim_every"]) == ("cpython-3.12-malloc", "1 s")
    default = results.done.filter(pl.col("default")).row(0, named=True)
    best = results.done.sort("resident_bytes_end").row(0, named=True)
    assert best["resident_bytes_end"] < default["resident_bytes_end"] / 3


def test_an_interval_as_a_parameter_trims_like_the_one_of_the_plan(service):
    vary = {"allocator": ["cpython-3.12-malloc"]}
    parameter = replay.sweep({"sources": [service], "vary": {**vary, "trim_every": ["default", "500 ms"]}})
    plan = replay.sweep({"sources": [service], "vary": vary, "trim_every": "500 ms"})
    assert parameter.frame["trim_every"].to_list() == [None, "500 ms"]
    calls = [frame["syscalls.madvise"].to_list() for frame in (parameter.frame, plan.frame)]
    assert calls[0][1] == calls[1][0] > calls[0][0] == 0
