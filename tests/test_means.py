"""The mean over time of requested, mapped and resident bytes is the exact integral, divided by the trace's time."""

from fractions import Fraction

import pytest
from histories import TINY, History, cut, histories, single_steps
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from replay.analysis.frames import arenas, timeline
from replay.analysis.metrics import summarize
from replay.config import load_config
from replay.jit.cpu_intrinsics import add_product
from replay.reports.overview import overview
from replay.simulation.result import MEANS
from replay.simulation.run import run
from replay.simulation.simulator import Simulator
from replay.trace import TRIM_MARK, Events, MemoryTrace, Metadata

CONFIGS = {"3.12": load_config("cpython-3.12"), "tiny arenas": load_config("cpython-3.9", TINY)}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
some = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def integral(events: Events, config, level: str) -> int:
    """The sum of the level after each event, multiplied by the time until the next one."""
    simulator, total = Simulator(config), 0
    for row in single_steps(simulator, events):
        if row + 1 < events.rows:
            total += int(simulator.tally[level]) * int(events.time_ns[row + 1] - events.time_ns[row])
    return total


@each_config
@some
@given(history=histories(), every_ns=st.integers(1, 40), begin_ns=st.integers(0, 10**18), stretch=st.integers(1, 10**9))
def test_means_are_those_of_single_steps(config, history, every_ns, begin_ns, stretch):
    events = history.events()
    events = events._replace(time_ns=begin_ns + stretch * events.time_ns)
    result = run(MemoryTrace([events]), config, sample_every_ns=stretch * every_ns)
    for level in MEANS:
        exact = Fraction(integral(events, config, level), result.duration_ns) if result.duration_ns else None
        assert result.mean(level) == (result.end[level] if exact is None else round(exact))


class Streamed:
    """A trace that is read batch by batch, like a file."""

    duration_ns = events_total = None

    def __init__(self, events: Events):
        self.metadata, self._events = Metadata(), events

    def batches(self):
        return iter(cut(self._events, [7, 20, 21]))


@some
@given(history=histories())
def test_a_trace_that_is_streamed_has_the_means_of_one_in_memory(history):
    events, config = history.events(), CONFIGS["3.12"]
    streamed, whole = run(Streamed(events), config), run(MemoryTrace([events]), config)
    assert streamed.requested_changes.tolist() == whole.requested_changes.tolist()
    assert streamed.mean("requested_bytes") == whole.mean("requested_bytes")


def test_the_mean_of_a_day_with_a_terabyte_is_exact():
    day_ns, terabyte = 86_400 * 10**9, 10**12
    history = History()
    history.malloc(1)
    number = history.at(day_ns // 4).malloc(terabyte)
    history.at(day_ns).free(number)
    history.at(day_ns + 1).malloc(1)
    result = run(history.trace(), load_config("ideal"))
    held = terabyte * (day_ns - day_ns // 4) + (day_ns + 1)
    assert result.mean("requested_bytes") == round(Fraction(held, day_ns + 1))


def test_memory_that_a_trim_releases_counts_until_then():
    history = History()
    numbers = history.mallocs(100, 10_000)
    history.malloc(5000)  # above the others, so that glibc does not release them by itself
    history.free(*numbers)
    history.at(600).mark()
    history.at(1000).malloc(10)
    result = run(history.trace(TRIM_MARK), load_config("cpython-3.12"), sample_every_ns=100)
    heights = dict(zip(result.sample_times_ns.tolist(), result.samples["resident_bytes"].tolist(), strict=True))
    assert heights[500] > heights[700]
    assert result.mean("resident_bytes") == round((heights[500] * 600 + heights[700] * 400) / 1000)


def test_the_timeline_has_the_mean_until_each_sample():
    history = History()
    first = history.malloc(1000)
    history.at(100).malloc(3000)
    history.at(300).free(first)
    history.at(400).malloc(1)
    result = run(history.trace(), load_config("ideal"), sample_every_ns=100)
    frame = timeline(result)
    assert frame["time_ns"].to_list() == [100, 200, 300, 400]
    assert frame["resident_bytes_mean"].to_list() == pytest.approx([4096, 4096, 4096, 4096])
    assert frame["requested_bytes_mean"].to_list() == pytest.approx([1000, 2500, 3000, 3000])
    assert summarize(result).requested_bytes_mean == (100 * 1000 + 200 * 4000 + 100 * 3000) / 400


@some
@given(history=histories(), every_ns=st.integers(1, 9), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_the_means_of_samples_are_those_of_runs_that_end_there(history, every_ns, cuts):
    events, config = history.events(), CONFIGS["3.12"]
    frame = timeline(run(Streamed(events), config, sample_every_ns=every_ns))
    in_memory = timeline(run(MemoryTrace(cut(events, cuts)), config, sample_every_ns=every_ns))
    for time_ns, of_file, of_memory in zip(
        frame["time_ns"], frame["requested_bytes_mean"], in_memory["requested_bytes_mean"], strict=True
    ):
        rows = int((events.time_ns - events.time_ns[0] <= time_ns).sum())
        last = events.where(slice(rows - 1, rows))
        until = events.where(slice(rows))._replace(time_ns=events.time_ns[:rows])
        held = integral(until, config, "requested_bytes")
        after = run(MemoryTrace([until]), config).end["requested_bytes"]
        held += int(after) * (int(events.time_ns[0]) + time_ns - int(last.time_ns[0]))
        assert of_file == of_memory == pytest.approx(held / time_ns if time_ns else after)


def test_the_report_shows_the_means():
    history = History()
    first = history.malloc(8192)
    history.at(100).free(first)
    history.at(200).malloc(1)
    result = run(history.trace(), load_config("ideal"))
    lines = overview("trace", [], result, summarize(result), arenas(result))
    assert "mean over time  4.00 KiB resident, 4.00 KiB live" in [line.plain for line in lines]


def test_a_trace_of_one_moment_has_its_last_levels_as_means():
    history = History()
    history.malloc(5)
    assert run(history.trace(), load_config("ideal")).mean("requested_bytes") == 5


@given(
    start=st.integers(-(1 << 127), (1 << 127) - 1),
    factor=st.integers(-(1 << 63), (1 << 63) - 1), other=st.integers(-(1 << 63), (1 << 63) - 1),
)  # fmt: skip
@example(start=-1, factor=1, other=1)
def test_products_are_added_in_two_words(start, factor, other):
    low = start & (1 << 64) - 1
    low, high = add_product(low - (low >> 63 << 64), start >> 64, factor, other)
    assert (high << 64) + (low & (1 << 64) - 1) == start + factor * other
