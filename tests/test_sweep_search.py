"""Searches: the same trials for the same seed, runs ended early without loss, and continuing."""

import json

import pytest
from histories import seeded

import replay
from replay.sources import parquet
from replay.sources.parquet import write_trace
from replay.support.errors import ConfigError
from replay.sweeps.analysis import pareto, ranking
from replay.sweeps.journal import OUTCOMES
from replay.sweeps.results import NOT_COMPARED, read_results
from replay.sweeps.threads import Threads

optuna = pytest.importorskip("optuna")

FIXED = {"allocator": "cpython-3.8"}
VARY = {
    "pymalloc.alignment": [8, 16],
    "glibc.top_pad": {"from": 0, "to": "4 MiB"},
    "pymalloc.arena_size": {"from": "32 KiB", "to": "1 MiB", "factor": 2},
}
ROWS = 6000
BATCH_ROWS = 500


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A trace in a dozen batches: between two of them a run can end."""
    monkeypatch.setattr(parquet, "GROUP_ROWS", BATCH_ROWS)
    path = tmp_path / "t.parquet"
    write_trace(seeded(5, ROWS, wave=ROWS).trace(), path)
    return str(path)


def plan_of(source, **more):
    return {"sources": [source], "fixed": FIXED, "vary": VARY, **more}


def rows(results):
    return results.frame.drop(NOT_COMPARED)


def in_full(source, results, metrics):
    """The metrics of all that a search tried, in the same order, each run to its end."""
    tried = results.frame.filter(results.frame["status"] != "skipped")
    points = [{name: row[name] for name in (*VARY, "allocator") if row[name] is not None} for row in tried.to_dicts()]
    everything = replay.sweep({"sources": [source], "configurations": points[1:], "fixed": FIXED})
    assert everything.done.height == len(points)
    return everything, everything.frame.select(metrics)


def test_the_same_seed_tries_the_same_whatever_the_number_of_threads(source):
    one = replay.sweep(plan_of(source), trials=20, engine=Threads(1))
    assert one.frame.height == 20
    assert rows(one).equals(rows(replay.sweep(plan_of(source), trials=20, engine=Threads(4))))
    other = replay.sweep(plan_of(source, choose={"seed": 1}), trials=20)
    assert other.frame["glibc.top_pad"].to_list()[1:] != one.frame["glibc.top_pad"].to_list()[1:]


def test_the_default_is_tried_first(source):
    results = replay.sweep(plan_of(source), trials=9)
    assert results.frame["default"].to_list() == [True] + [False] * 8
    assert results.frame.row(0, named=True)["pymalloc.arena_size"] == 256 << 10


def test_runs_are_ended_early_where_they_cannot_win_and_the_best_is_never_dropped(source):
    results = replay.sweep(plan_of(source), trials=30)
    metric = "resident_bytes_peak"
    _, full = in_full(source, results, [metric])
    stopped, saved = 0, 0
    for row, peak in zip(results.frame.to_dicts(), full[metric], strict=True):
        if row["status"] == "stopped":
            assert min(full[metric]) < row[metric] <= peak
            assert row["events"] % BATCH_ROWS == 0
            assert row["syscalls"] is None
            stopped, saved = stopped + 1, saved + ROWS - row["events"]
        else:
            assert (row["status"], row["events"], row[metric]) == ("done", ROWS, peak)
    assert stopped >= 5
    assert saved >= stopped * BATCH_ROWS
    assert ranking(results, metric)["mean"][0] == min(full[metric])


def test_of_two_objectives_no_member_of_the_front_is_ended_early(source):
    metrics = ["resident_bytes_peak", "syscalls"]
    results = replay.sweep(plan_of(source, objectives=metrics), trials=30)
    everything, _ = in_full(source, results, metrics)
    assert results.count("stopped") > 0
    assert pareto(results, metrics).select(metrics).equals(pareto(everything, metrics).select(metrics))


def test_a_metric_that_may_fall_again_ends_no_run(source):
    assert replay.sweep(plan_of(source, objectives=["resident_bytes_end"]), trials=20).count("done") == 20


def test_with_several_traces_no_run_is_ended_early(source, tmp_path):
    other = tmp_path / "u.parquet"
    write_trace(seeded(6, 2000).trace(), other)
    results = replay.sweep({**plan_of(source), "sources": [source, str(other)]}, trials=10)
    assert (results.frame.height, results.count("done")) == (20, 20)


def test_all_points_are_tried_if_there_are_at_most_as_many_as_trials(source):
    vary = {"pymalloc.alignment": [8, 16], "glibc.top_pad": [0, 4096, 131072]}
    results = replay.sweep({**plan_of(source), "vary": vary, "objectives": ["resident_bytes_end"]}, trials=6)
    assert rows(results).equals(
        rows(replay.sweep({**plan_of(source), "vary": vary, "objectives": ["resident_bytes_end"]}))
    )


def test_points_that_violate_a_constraint_are_reported_once_and_are_no_trials(source):
    plan = plan_of(source, constraints=["alignment == 16"])
    results = replay.sweep(plan, trials=12)
    assert results.frame.height - results.count("skipped") == 12
    skipped = results.frame.filter(results.frame["status"] == "skipped")
    assert set(skipped["error"]) == {"violates the constraint alignment == 16"}
    assert skipped.select(*VARY).is_unique().all()
    with pytest.raises(ConfigError, match="cannot be run: violates the constraint alignment == 16"):
        replay.sweep(plan, trials=12, strict=True)


def test_an_interrupted_search_finds_its_outcomes_again(source, tmp_path):
    class BreaksOff(Threads):
        asked = 0

        def outcomes(self, tasks):
            for outcome in super().outcomes(tasks):
                BreaksOff.asked += 1
                if BreaksOff.asked == 14:
                    raise KeyboardInterrupt
                yield outcome

    whole = replay.sweep(plan_of(source), trials=24)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        replay.sweep(plan_of(source), trials=24, out=out, engine=BreaksOff(1))
    assert read_results(out).done.height + read_results(out).count("stopped") == 13
    assert rows(replay.sweep(plan_of(source), trials=24, out=out, resume=True)).equals(rows(whole))
    keys = [json.loads(line)["key"] for line in (out / OUTCOMES).read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 24


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"vary": {}}, "nothing to search: vary at least one parameter"),
        ({"configurations": [{"glibc.top_pad": 0}]}, "a search chooses its points; remove `configurations`"),
        ({"choose": {"kind": "latin", "runs": 3}}, "a search chooses its points; remove `configurations`"),
    ],
)
def test_an_impossible_search_is_refused(source, more, expected):
    with pytest.raises(ConfigError, match=expected):
        replay.sweep(plan_of(source, **more), trials=5)
