import os
import re
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from conftest import invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from replay.commands.generate import generate
from replay.config import load_config
from replay.simulation.run import run as run_trace
from replay.sources import open_source
from replay.sources.yaml import open_trace
from replay.support.bundled_files import find_workload, workload_names
from replay.support.errors import WorkloadError
from replay.trace import joined, trace_digest
from replay.trace.validation import Validator
from replay.workload import Workload
from replay.workload.generator.processes import WorkloadTrace

ROOT = Path(__file__).parent.parent
MALLOC, CALLOC, REALLOC, FREE, THREAD_END, MARK = 0, 1, 2, 3, 18, 32
MS = 10**6

GOLDEN = {
    "async-crawler": (89256, "d573aff23d112e1a"),
    "batch-parse": (167393, "d42ece34b7a711a5"),
    "fork-server-warmup": (106560, "0cf046ff11ceec88"),
    "large-buffers": (88120, "d99619d5a1627bc0"),
    "leaky-worker": (104009, "5aa086360a082e16"),
    "pin-every-arena": (111055, "24e4347d6d3f13aa"),
    "sawtooth": (112945, "de0417dd4c36a8d3"),
    "startup-static": (80102, "dc1fbf3a70613c5f"),
    "web-service": (104145, "5874e9e3245c1444"),
}
EVERY_KEY = "d8346687d9582b1822454cc9cd76098679729b293a62913c4d7a910510e70e72"

ENDING_THREADS = "b8fe2bb040f61d8065d51d3202b76c3910d10f360b8b678dfa0882360f30aa19"


def trace_of(text, seed=1, window_rows=1 << 17):
    return WorkloadTrace(Workload.model_validate(yaml.safe_load(text)), "test", seed, window_rows)


def one_batch(trace):
    """The whole trace as one batch."""
    return joined(list(trace.batches()))


def rows(text, *columns):
    events = one_batch(trace_of(text))
    return list(zip(*(getattr(events, name).tolist() for name in columns), strict=True))


def test_even_arrivals_with_one_lifetime_are_as_by_hand():
    """A block each ms from 0 on, for 1.5 ms; two live at a time, and the number freed last is taken first."""
    text = """
    duration: 4 ms
    streams: {a: {arrivals: {kind: fixed, rate: 1/ms}, size: 64, lifetime: 1500 us, domain: mem}}
    """
    assert rows(text, "time_ns", "op", "block", "size", "domain") == [
        (0, MALLOC, 0, 64, 1),
        (1_000_000, MALLOC, 1, 64, 1),
        (1_500_000, FREE, 0, 0, 1),
        (2_000_000, MALLOC, 0, 64, 1),
        (2_500_000, FREE, 1, 0, 1),
        (3_000_000, MALLOC, 1, 64, 1),
        (3_500_000, FREE, 0, 0, 1),
    ]


def test_a_block_grows_by_steps_and_is_freed_before_the_last():
    """88 × 1.5 = 132, × 1.5 = 198; the third step would be at the end, 3 ms after the allocation."""
    text = """
    duration: 9 ms
    streams:
      a:
        arrivals: {kind: fixed, rate: 100/s}
        size: 88
        lifetime: 3 ms
        op: calloc
        grow: {factor: 1.5, steps: 5, spacing: 1 ms}
    """
    assert rows(text, "time_ns", "op", "block", "size") == [
        (0, CALLOC, 0, 88),
        (1 * MS, REALLOC, 0, 132),
        (2 * MS, REALLOC, 0, 198),
        (3 * MS, FREE, 0, 0),
    ]


def test_increments_stop_after_their_steps():
    text = """
    duration: 9 ms
    streams:
      a:
        arrivals: {kind: fixed, rate: 100/s}
        size: 10
        lifetime: forever
        grow: {increment: 6, steps: 2, spacing: 1 ms}
    """
    assert rows(text, "time_ns", "op", "size") == [(0, MALLOC, 10), (MS, REALLOC, 16), (2 * MS, REALLOC, 22)]


def test_bursts_are_spaced_and_each_has_one_thread():
    text = """
    duration: 12 ms
    threads: 2
    streams:
      a:
        arrivals: {kind: bursts, rate: 200/s, count: 3, spacing: 1 us, timing: fixed}
        size: 8
        lifetime: forever
    """
    assert rows(text, "time_ns", "thread", "block") == [
        *((i * 1000, 0, i) for i in range(3)),
        *((5 * MS + i * 1000, 1, 3 + i) for i in range(3)),
        *((10 * MS + i * 1000, 0, 6 + i) for i in range(3)),
    ]


def test_a_burst_waits_for_the_one_before():
    """Bursts of 3 at 1 ms would begin each 2 ms; they take 3 ms and follow each other without a gap."""
    text = """
    duration: 9 ms
    streams:
      a:
        arrivals: {kind: bursts, rate: 500/s, count: 3, spacing: 1 ms, timing: fixed}
        size: 8
        lifetime: forever
    """
    assert rows(text, "time_ns") == [(i * MS,) for i in range(9)]


def test_on_off_makes_blocks_only_while_busy():
    text = """
    duration: 100 ms
    streams:
      a: {arrivals: {kind: on-off, rate: 50000/s, busy: 2 ms, idle: 8 ms}, start: 1 ms, size: 8, lifetime: forever}
    """
    times = np.array([time for (time,) in rows(text, "time_ns")])
    assert ((times - MS) % (10 * MS) < 2 * MS).all()
    assert abs(len(times) - 1000) < 140  # 20 ms of busy time; standard deviation 32
    assert len(set((times // (10 * MS)).tolist())) == 10


def test_poisson_gaps_are_exponential():
    """Of 20,000 gaps with mean 1 us: their mean within 4 of 7 ns, 36.8 % above it within 4 of 68."""
    text = "{duration: 20 ms, streams: {a: {arrivals: {kind: poisson, rate: 1000/ms}, size: 8, lifetime: forever}}}"
    gaps = np.diff([time for (time,) in rows(text, "time_ns")])
    assert abs(len(gaps) - 20_000) < 4 * 142
    assert abs(gaps.mean() - 1000) < 29
    assert abs((gaps > 1000).mean() - 0.368) < 0.014


def test_until_next_frees_a_generation_at_once_in_the_order_of_birth():
    text = """
    duration: 9 ms
    streams: {a: {arrivals: {kind: fixed, rate: 1/ms}, size: 8, lifetime: {kind: until-next, every: 4 ms}}}
    """
    freed = [(time, block) for time, op, block in rows(text, "time_ns", "op", "block") if op == FREE]
    assert freed == [
        (4 * MS, 0), (4 * MS, 1), (4 * MS, 2), (4 * MS, 3),
        (8 * MS, 3), (8 * MS, 2), (8 * MS, 1), (8 * MS, 0),
    ]  # fmt: skip


def test_a_set_is_built_and_then_each_new_block_frees_an_old_one_after_it():
    text = "{duration: 10 ms, sets: {s: {blocks: 3, size: 8, spacing: 1 us, churn: 1/ms}}}"
    events = rows(text, "time_ns", "op", "block")
    assert events[:3] == [(0, MALLOC, 0), (1000, MALLOC, 1), (2000, MALLOC, 2)]
    churned = events[3:]
    assert len(churned) > 4
    for made, freed in zip(churned[::2], churned[1::2], strict=True):
        assert made[0] == freed[0]
        assert (made[1], freed[1]) == (MALLOC, FREE)
        assert made[2] != freed[2]


def test_phases_mark_and_free_their_groups_before_anything_else_at_that_instant():
    text = """
    duration: 4 ms
    streams:
      a: {arrivals: {kind: fixed, rate: 1/ms}, size: 8, lifetime: forever, group: cache}
      b: {arrivals: {kind: fixed, rate: 1/ms}, size: 16, lifetime: forever}
    phases: [{name: drop, start: 2 ms, free: [cache]}]
    """
    assert rows(text, "time_ns", "op", "block", "size") == [
        (0, MALLOC, 0, 8), (0, MALLOC, 1, 16),
        (1 * MS, MALLOC, 2, 8), (1 * MS, MALLOC, 3, 16),
        (2 * MS, MARK, 0, 0),
        (2 * MS, FREE, 0, 0), (2 * MS, FREE, 2, 0),
        (2 * MS, MALLOC, 2, 8), (2 * MS, MALLOC, 0, 16),
        (3 * MS, MALLOC, 4, 8), (3 * MS, MALLOC, 5, 16),
    ]  # fmt: skip
    assert trace_of(text).metadata.phases == ("drop",)


def test_a_fraction_of_a_group_is_freed():
    text = """
    duration: 2 ms
    sets: {s: {blocks: 2000, size: 8, group: g}}
    phases: [{name: drop, start: 1 ms, free: [g], fraction: 0.25}]
    """
    freed = sum(op == FREE for (op,) in rows(text, "op"))
    assert abs(freed - 500) < 4 * 19.4  # the standard deviation of that binomial count


def test_an_emptied_set_fills_up_again_by_its_churn():
    text = """
    duration: 100 ms
    sets: {s: {blocks: 10, size: 8, group: g, churn: 10/ms}}
    phases: [{name: drop, start: 1 ms, free: [g]}]
    """
    ops = [op for (op,) in rows(text, "op")]
    assert ops.count(MALLOC) - ops.count(FREE) == 10


def test_a_phase_multiplies_a_rate_and_restores_it():
    """1 a ms, from 10 ms on 4 a ms, from 20 ms on 1 a ms again: 10 + 40 + 10."""
    text = """
    duration: 30 ms
    streams: {a: {arrivals: {kind: fixed, rate: 1/ms}, size: 8, lifetime: forever}}
    phases: [{name: rush, start: 10 ms, duration: 10 ms, rates: {a: 4}}]
    """
    times = [time for time, op in rows(text, "time_ns", "op") if op == MALLOC]
    assert len(times) == 60
    assert times[8:13] == [8 * MS, 9 * MS, 10 * MS, 10_250_000, 10_500_000]
    assert times[-11:-8] == [19_750_000, 20 * MS, 21 * MS]


def test_overlapping_phases_multiply_for_groups_and_all():
    """For 10 ms: 1 a ms times 2 (its group) times 3 (all)."""
    text = """
    duration: 10 ms
    streams: {a: {arrivals: {kind: fixed, rate: 1/ms}, size: 8, lifetime: forever, group: g}}
    phases: [{name: one, start: 0, rates: {g: 2}}, {name: two, start: 0, rates: {all: 3}}]
    """
    assert sum(op == MALLOC for (op,) in rows(text, "op")) == 60


def test_a_ramp_makes_half_of_what_the_full_rate_would():
    """0 to 1 over 100 ms at 10 a ms: 500 blocks, the fourth quarter has seven times those of the first."""
    text = """
    duration: 100 ms
    warm_up: 99 ms
    streams: {a: {arrivals: {kind: fixed, rate: 10/ms}, size: 8, lifetime: forever}}
    """
    events = rows(text, "time_ns", "op", "size")
    times = np.array([time for time, op, _size in events if op == MALLOC])
    before_end = times[times < 99 * MS]
    assert abs(len(before_end) - 495) <= 1
    assert abs((before_end >= 74_250_000).sum() / (before_end < 24_750_000).sum() - 7) < 0.3
    assert [(time, size) for time, op, size in events if op == MARK] == [(0, 0), (99 * MS, 1)]


def test_the_process_has_static_memory_and_a_stack_for_each_thread():
    text = """
    duration: 1 ms
    threads: 3
    process: {static: 1 MiB, stack_reserved: 8 MiB, stack_touched: 64 KiB}
    sets: {s: {blocks: 1, size: 1}}
    """
    process = trace_of(text).metadata.process
    assert (process.static_bytes, process.stack_bytes, process.stack_resident_bytes) == (1 << 20, 24 << 20, 192 << 10)


def test_another_stream_leaves_the_others_as_they_were():
    one = "{arrivals: {kind: poisson, rate: 5/ms}, size: {kind: uniform, min: 1, max: 99}, lifetime: 1 ms}"
    other = "{arrivals: {kind: poisson, rate: 9/ms}, size: 1000, lifetime: 2 ms}"
    alone = rows(f"{{duration: 50 ms, streams: {{a: {one}}}}}", "time_ns", "op", "size")
    both = rows(f"{{duration: 50 ms, streams: {{b: {other}, a: {one}}}}}", "time_ns", "op", "size")
    assert [event for event in alone if event[1] == MALLOC] == [
        event for event in both if event[1] == MALLOC and event[2] < 1000
    ]


def test_seeds_change_the_trace_and_repeated_generation_does_not():
    text = (ROOT / "workloads" / "leaky-worker.yaml").read_text().replace("duration: 20 s", "duration: 1 s")
    trace = trace_of(text)
    assert trace_digest(trace) == trace_digest(trace)
    assert trace_digest(trace) != trace_digest(trace_of(text, seed=2))


PERIODS = st.integers(1, 3000).map(lambda us: f"{us} us")
LAWS = st.one_of(
    PERIODS,
    st.just({"kind": "until-next", "every": "700 us"}),
    st.just({"kind": "lognormal", "median": "300 us", "sigma": 2}),
    st.just({"kind": "mixture", "parts": [{"weight": 1, "of": "forever"}, {"weight": 3, "of": "20 us"}]}),
)
ARRIVALS = st.one_of(
    st.just({"kind": "poisson", "rate": "200/ms"}),
    st.just({"kind": "fixed", "rate": "30/ms"}),
    st.just({"kind": "bursts", "rate": "2/ms", "count": {"kind": "uniform", "min": 0, "max": 90}, "spacing": "1 us"}),
    st.just({"kind": "bursts", "rate": "1/ms", "count": 40, "spacing": 0, "timing": "fixed"}),
    st.just({"kind": "on-off", "rate": "300/ms", "busy": "300 us", "idle": "900 us"}),
)
STREAMS = st.fixed_dictionaries(
    {"arrivals": ARRIVALS, "size": st.integers(0, 4000), "lifetime": LAWS, "group": st.sampled_from(["g", "h"])},
    optional={"grow": st.just({"factor": 1.3, "steps": 4, "spacing": "30 us"}), "start": PERIODS, "stop": PERIODS},
)
PHASES = st.fixed_dictionaries(
    {"name": st.just("p"), "start": PERIODS},
    optional={
        "duration": PERIODS,
        "rates": st.dictionaries(st.sampled_from(["all", "g"]), st.sampled_from([0, 0.3, 5])),
        "free": st.just(["g"]),
        "fraction": st.sampled_from([0.4, 1.0]),
    },
)
WORKLOADS = st.fixed_dictionaries(
    {
        "duration": st.just("5 ms"),
        "threads": st.integers(1, 3),
        "streams": st.fixed_dictionaries({"a": STREAMS, "b": STREAMS}),
        "sets": st.just({"s": {"blocks": 50, "size": 48, "churn": "90/ms", "group": "g"}}),
        "phases": st.lists(PHASES, max_size=3),
    },
    optional={"warm_up": st.just("2 ms")},
)


@settings(max_examples=60, deadline=None)
@given(WORKLOADS, st.sampled_from([3, 20, 150]))
def test_windows_do_not_change_the_trace_and_every_trace_is_valid(form, window_rows):
    workload = Workload.model_validate(form)
    whole = WorkloadTrace(workload, "w", 5)
    validator = Validator("w", whole.metadata)
    for events in whole.batches():
        validator.check(events)
    assert trace_digest(whole) == trace_digest(WorkloadTrace(workload, "w", 5, window_rows))


@pytest.mark.system
@pytest.mark.parametrize(("name", "digest"), [("every-key", EVERY_KEY), ("ending-threads", ENDING_THREADS)])
def test_plain_python_and_machine_code_agree(name, digest):
    """Every kind of distribution, arrival and phase, generated in plain Python."""
    path = ROOT / "tests" / f"{name}.yaml"
    program = (
        "import sys, warnings; warnings.simplefilter('error'); from pathlib import Path; "
        "from replay.sources.yaml import open_trace; from replay.trace import trace_digest; "
        "print(trace_digest(open_trace(Path(sys.argv[1]))))"
    )
    plain = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert plain.stdout.strip() == trace_digest(open_trace(path)) == digest


def test_a_thread_ends_after_the_mark_and_its_blocks_belong_to_the_main_thread():
    """A block each ms by the threads in turns, for 2.5 ms; from the end at 3 ms on, 1 is another thread."""
    text = """
    duration: 6 ms
    threads: 2
    streams: {a: {arrivals: {kind: fixed, rate: 1/ms}, size: 64, lifetime: 2500 us}}
    phases: [{name: end, start: 3 ms, end_threads: [1]}]
    """
    assert rows(text, "time_ns", "op", "thread", "block", "size") == [
        (0, MALLOC, 0, 0, 64),
        (1_000_000, MALLOC, 1, 1, 64),
        (2_000_000, MALLOC, 0, 2, 64),
        (2_500_000, FREE, 0, 0, 0),
        (3_000_000, MARK, 0, 0, 0),
        (3_000_000, THREAD_END, 1, 0, 0),
        (3_000_000, MALLOC, 1, 0, 64),
        (3_500_000, FREE, 0, 1, 0),
        (4_000_000, MALLOC, 0, 1, 64),
        (4_500_000, FREE, 0, 2, 0),
        (5_000_000, MALLOC, 1, 2, 64),
        (5_500_000, FREE, 1, 0, 0),
    ]


def test_a_block_of_an_ended_thread_grows_and_is_replaced_by_the_main_one():
    text = """
    duration: 4 ms
    threads: 3
    streams:
      main: {arrivals: {kind: fixed, rate: 0.1/ms}, size: 5, lifetime: forever, threads: [0]}
      a: {arrivals: {kind: fixed, rate: 0.1/ms}, size: 10, lifetime: forever, threads: [2],
          grow: {increment: 1, steps: 3, spacing: 1 ms}}
    sets: {b: {blocks: 1, size: 20, threads: [1], group: b}}
    phases:
      - {name: first, start: 1500 us, end_threads: [2, 1]}
      - {name: second, start: 2500 us, free: [b], end_threads: [1]}
    """
    assert rows(text, "time_ns", "op", "thread", "size") == [
        (0, MALLOC, 0, 5),
        (0, MALLOC, 2, 10),
        (0, MALLOC, 1, 20),
        (1_000_000, REALLOC, 2, 11),
        (1_500_000, MARK, 0, 0),
        (1_500_000, THREAD_END, 2, 0),
        (1_500_000, THREAD_END, 1, 0),
        (2_000_000, REALLOC, 0, 12),
        (2_500_000, MARK, 0, 1),
        (2_500_000, FREE, 0, 0),
        (2_500_000, THREAD_END, 1, 0),
        (3_000_000, REALLOC, 0, 13),
    ]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("1 ms", "thread 1 cannot end at 1.00 ms: no block was allocated yet"),
        ("3 ms", "3.00 ms: thread 1 allocated the first block"),
    ],
)
def test_the_thread_that_counts_as_the_main_one_cannot_end(start, message, tmp_path):
    text = f"""
    duration: 6 ms
    threads: 2
    streams: {{a: {{arrivals: {{kind: fixed, rate: 1/ms}}, size: 64, lifetime: 1 ms, threads: [1], start: 2 ms}}}}
    phases: [{{name: end, start: {start}, end_threads: [1]}}]
    """
    with pytest.raises(WorkloadError, match=f"{message}, and the thread of the first block is the main one"):
        one_batch(trace_of(text))
    path = tmp_path / "w.yaml"
    path.write_text(textwrap.dedent(text).strip().replace("duration: 6 ms", "duration: 6 ms\nwarm_up: 100 us"))
    with pytest.raises(WorkloadError) as caught:
        one_batch(open_trace(path))
    assert str(caught.value).startswith(f"{path}:5: phases.0.end_threads.0: thread 1 cannot end at ")


def test_a_workload_is_not_written_over_by_its_own_trace(tmp_path):
    path = tmp_path / "w.yaml"
    text = "{duration: 1 ms, sets: {a: {blocks: 1, size: 1}}}"
    path.write_text(text)
    app = typer.Typer()
    app.command()(generate)
    result = CliRunner().invoke(app, [str(path), "-o", str(path), "--force"])
    assert (str(result.exception), path.read_text()) == (f"-o {path}: is the input file; choose another name", text)


def test_ends_of_threads_change_no_time_and_no_size():
    text = (ROOT / "tests" / "ending-threads.yaml").read_text()
    whole = one_batch(trace_of(text))
    without = one_batch(trace_of(re.sub(r"end_threads: \[[0-9, ]*\](, )?", "", text).replace(", }", "}")))
    ends = whole.op == THREAD_END
    assert whole.thread[ends].tolist() == [1, 3, 1, 2]
    for name in ("time_ns", "op", "domain", "block", "size"):
        assert getattr(whole, name)[~ends].tolist() == getattr(without, name).tolist()
    births = without.op <= CALLOC
    assert whole.thread[~ends][births].tolist() == without.thread[births].tolist()
    changed = whole.thread[~ends] != without.thread
    assert changed.any()
    assert not whole.thread[~ends][changed].any()


def test_the_arena_of_an_ended_thread_is_reused_by_others():
    """With ends, glibc's next thread takes the arena of the last one; without them it makes one for each."""
    text = """
    duration: 9 ms
    threads: 9
    streams: {{
      main: {{arrivals: {{kind: fixed, rate: 1/ms}}, size: 10, lifetime: forever, domain: libc, threads: [0]}},
      {streams}
    }}
    phases: [{phases}]
    """
    streams = ", ".join(
        f"s{thread}: {{arrivals: {{kind: fixed, rate: 10/ms}}, size: 100, lifetime: 200 us, domain: libc, "
        f"threads: [{thread}], start: {thread} ms, stop: {thread}500 us}}"
        for thread in range(1, 9)
    )
    phases = ", ".join(f"{{name: p{at}, start: {at + 1} ms, end_threads: [{at}]}}" for at in range(1, 8))
    config = load_config("cpython-3.12-malloc")
    calls = [
        run_trace(trace_of(text.format(streams=streams, phases=each)), config).end["mmap"] for each in (phases, "")
    ]
    assert calls[1] - calls[0] == 7


def test_memory_is_proportional_to_live_blocks_not_to_the_length():
    def peak_bytes(duration):
        text = f"""
        duration: {duration}
        streams: {{a: {{arrivals: {{kind: poisson, rate: 1000/ms}}, size: 64, lifetime: 1 ms}}}}
        """
        trace = trace_of(text)
        tracemalloc.start()
        count = sum(events.rows for events in trace.batches())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return count, peak

    peak_bytes("300 ms")  # loads everything that is loaded once
    (short, peak_short), (long, peak_long) = peak_bytes("300 ms"), peak_bytes("1500 ms")
    assert long > 4.9 * short
    assert peak_long < 1.1 * peak_short


def test_batches_hold_about_a_quarter_of_a_million_events():
    text = "{duration: 500 ms, streams: {a: {arrivals: {kind: poisson, rate: 1000/ms}, size: 64, lifetime: 1 ms}}}"
    sizes = [events.rows for events in trace_of(text).batches()]
    assert all(1 << 16 < size <= 1 << 18 for size in sizes[:-1])


@pytest.mark.parametrize("name", workload_names())
def test_a_bundled_workload_generates_the_same_bits_as_before(name):
    trace = open_trace(find_workload(name))
    validator = Validator(name, trace.metadata)
    for events in trace.batches():
        validator.check(events)
    assert 50_000 <= validator.rows <= 300_000
    assert (validator.rows, trace_digest(trace)[:16]) == GOLDEN[name]


def test_the_documentations_example_runs(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "workloads.md").read_text(), re.DOTALL)
    assert example
    (tmp_path / "w.yaml").write_text(example[1])
    trace = open_trace(tmp_path / "w.yaml")
    assert trace.metadata.phases == ("warm-up", "steady", "rush", "drop the cache")
    assert sum(events.rows for events in trace.batches()) > 5000


def test_a_seed_takes_the_place_of_the_files():
    assert open_trace(find_workload("sawtooth"), 99).metadata.origin.texts() == {"workload": "sawtooth", "seed": "99"}


def test_generate_writes_the_generated_trace(tmp_path):
    path = tmp_path / "t.parquet"
    result = invoke("generate", "sawtooth", "-o", path)
    assert result.exit_code == 0
    count, _digest = GOLDEN["sawtooth"]
    assert result.stdout.startswith(f"{count:,} events over 10.00 s, ")
    assert f"next: replay run {path}" in result.stdout
    assert trace_digest(open_source(path)) == trace_digest(open_trace(find_workload("sawtooth")))


def test_generate_refuses_existing_files_and_removes_incomplete_ones(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_text("precious")
    result = invoke("generate", "sawtooth", "-o", path)
    assert "already exists" in str(result.exception)
    assert path.read_text() == "precious"
    assert invoke("generate", "sawtooth", "-o", path, "--force").exit_code == 0
    bad = tmp_path / "bad.yaml"
    bad.write_text("duration: 1 s")
    assert isinstance(invoke("generate", bad, "-o", tmp_path / "new.parquet").exception, WorkloadError)
    assert {found.name for found in tmp_path.iterdir()} == {"t.parquet", "bad.yaml"}
    assert "did you mean 'sawtooth'" in str(invoke("generate", "sawtoth", "-o", tmp_path / "new.parquet").exception)
