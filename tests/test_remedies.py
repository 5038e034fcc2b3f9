"""Remedies: each has the results of `run` with its options, and a contradicting setting of the user leaves it out."""

import pytest
from test_pins import pinned_arenas, pinned_heap

from replay.analysis.metrics import summarize
from replay.analysis.remedies import Remedy, is_worthwhile, saving, try_remedies
from replay.commands.run_plan import RunPlan
from replay.config import load_config
from replay.simulation.run import run
from replay.sources.parquet import write_trace

SCRIPTS = {"cpython-3.8": pinned_arenas, "cpython-3.12": pinned_heap, "cpython-3.12-malloc": pinned_heap}


def tried(trace, stack, overrides=(), env=(), *, has_several_heaps=True, **options) -> list[Remedy]:
    duration_ns = run(trace, load_config(stack, overrides, env)).duration_ns
    return try_remedies(
        trace, stack, overrides, env, has_several_heaps=has_several_heaps, duration_ns=duration_ns, **options
    )


@pytest.mark.parametrize("stack", SCRIPTS)
def test_each_remedy_equals_a_run_with_its_options(stack, tmp_path):
    trace, path = SCRIPTS[stack]().trace(), str(tmp_path / "t.parquet")
    write_trace(trace, path)
    remedies = tried(trace, stack)
    assert len(remedies) == (5 if "malloc" not in stack else 3)
    for remedy in remedies:
        words = list(remedy.options)
        values = {name: words[at + 1] for at, name in enumerate(words) if name == "--trim-every"}
        given = {name: [words[at + 1] for at, word in enumerate(words) if word == name] for name in ("--set", "--env")}
        plan = RunPlan.of(
            path, stack, given["--set"], given["--env"], seed=None, sample=None, trim_every=values.get("--trim-every")
        )
        result = run(plan.trace, plan.stack, trim_every_ns=plan.trim_every_ns)
        assert remedy.resident_bytes_mean == result.mean("resident_bytes")
        assert remedy.resident_bytes_end == result.end.resident_bytes
        assert remedy.resident_bytes_peak == result.end.resident_bytes_peak
    assert [each.resident_bytes_mean for each in remedies] == sorted(each.resident_bytes_mean for each in remedies)


def test_malloc_trim_every_twentieth_of_the_run_is_named_as_its_option():
    trace = pinned_heap().trace()  # 402 events, 1 µs apart: 401 µs
    (remedy,) = (each for each in tried(trace, "cpython-3.12-malloc") if "trim(0)" in each.name)
    assert remedy.name == "malloc_trim(0) every 20 µs"
    assert remedy.options == ("--trim-every", "20us")


def test_arena_max_is_tried_only_with_several_heaps():
    trace = pinned_heap().trace()
    names = [each.name for each in tried(trace, "cpython-3.12-malloc", has_several_heaps=False)]
    assert len(names) == 2
    assert "MALLOC_ARENA_MAX=1" not in names


@pytest.mark.parametrize("stack", ["ideal", "bump"])
def test_without_glibc_there_are_no_remedies(stack):
    assert tried(pinned_heap().trace(), stack) == []


def test_a_user_who_trims_gets_no_other_interval():
    trace = pinned_heap().trace()
    remedies = tried(trace, "cpython-3.12", trim_every_ns=7_000)
    assert len(remedies) == 3
    assert not any("trim(0)" in each.name for each in remedies)
    (routed,) = (each for each in remedies if each.name == "PYTHONMALLOC=malloc")
    result = run(trace, load_config("cpython-3.12", ["domains.mem=glibc", "domains.obj=glibc"]), trim_every_ns=7_000)
    assert routed.resident_bytes_end == result.end.resident_bytes


def test_settings_of_the_user_stay():
    trace = pinned_heap().trace()
    settings = ["glibc.mmap_threshold=4 KiB"]
    (alone,) = (each for each in tried(trace, "cpython-3.12", settings) if each.name == "PYTHONMALLOC=malloc")
    result = run(trace, load_config("cpython-3.12", [*settings, "domains.mem=glibc", "domains.obj=glibc"]))
    assert alone.resident_bytes_mean == result.mean("resident_bytes")


ARENAS, THRESHOLDS = "MALLOC_ARENA_MAX=1", "MALLOC_MMAP_THRESHOLD_=131072 MALLOC_TRIM_THRESHOLD_=131072"


@pytest.mark.parametrize(
    ("overrides", "env", "expected"),
    [
        ([], [], {ARENAS, THRESHOLDS}),
        (["glibc.mmap_threshold=64 KiB"], [], {ARENAS}),
        (["glibc.trim_threshold=64 KiB"], [], {ARENAS}),
        (["glibc.arena_max=2"], [], {THRESHOLDS}),
        ([], ["MALLOC_ARENA_MAX=2"], {ARENAS, THRESHOLDS}),
        ([], ["MALLOC_ARENA_MAX=1"], {THRESHOLDS}),
    ],
)
def test_a_remedy_that_a_setting_of_the_user_overrides_or_contains_is_left_out(overrides, env, expected):
    remedies = tried(pinned_heap().trace(), "cpython-3.12", overrides, env)
    assert {each.name for each in remedies if each.name.startswith("MALLOC_")} == expected
    assert len(remedies) == 3 + len(expected)


def test_savings_are_shares_of_the_larger_of_mean_and_end():
    trace = pinned_heap().trace()
    result = run(trace, load_config("cpython-3.12"))
    summary = summarize(result)
    mean, end = summary.resident_bytes_mean, summary.resident_bytes_end
    assert saving(summary, Remedy("", (), mean, end, 0)) == 0
    assert saving(summary, Remedy("", (), mean // 2, end, 0)) == pytest.approx(0.5, abs=1e-6)
    assert saving(summary, Remedy("", (), mean, end // 4, 0)) == pytest.approx(0.75, abs=1e-6)
    assert is_worthwhile(summary, Remedy("", (), mean, end - (1 << 20), 0))
    assert not is_worthwhile(summary, Remedy("", (), mean, end - (1 << 20) + 1, 0))
