"""Models with a clock: they get the time of each event, and are woken at the times that they request."""

import re
import sys
from contextlib import contextmanager

import pytest
from dist_info import write_dist_info
from histories import History, counters, cut, histories
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.allocators import _registry, find_model, is_compiled
from replay.config import load_config
from replay.simulation.run import run
from replay.trace import Domain, MemoryTrace, Metadata, Process, ProcessMemory

DELAY_NS = 10
STEP_NS = 3
MODEL = '''
"""Each block has a page of its own; a page of a freed block is released {delay} ns later, one page every {step} ns."""

from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from replay.allocators import MARGIN, Counter, CounterKind, ask_for_room, extend, now_ns, record, wake_at
from replay.allocators.linux import dontneed, mmap
{marks}

COUNTERS = (
    Counter("purges", CounterKind.SUM, "pages released"),
    Counter("late_ns", CounterKind.MAXIMUM, "the longest delay", "ns"),
)
DELAY_NS, STEP_NS = {delay}, {step}
QUEUE = record("first", "end", "blocks")
PAGE = record("address", "freed_ns", "queued")


class Config(BaseModel):
    pass


@by_reference
class State(NamedTuple):
    queue: np.ndarray
    pages: np.ndarray
    waiting: np.ndarray


def new_state(config):
    return State(np.zeros(1, QUEUE), np.zeros(64, PAGE), np.zeros(64, np.int64))


@leaf
def malloc(state, stack, size):
    queue = state.queue[0]
    place = np.int64(queue.blocks)
    queue.blocks += 1
    if queue.blocks + MARGIN > state.pages.shape[0]:
        ask_for_room(stack)
    state.pages[place].address = mmap(stack, 4096)
    return place


@leaf
def memalign(state, stack, alignment, size):
    return malloc(state, stack, size)  # a page is aligned enough here


@leaf
def free(state, stack, place):
    queue = state.queue[0]
    state.waiting[queue.end] = place
    queue.end += 1
    state.pages[place].freed_ns = now_ns(stack)
    wake_at(stack, now_ns(stack) + DELAY_NS)


@leaf
def block_size(state, stack, place):
    return 4096


@leaf
def address(state, stack, place):
    return state.pages[place].address


@leaf
def tick(state, stack, now):
    queue, tally = state.queue[0], stack.tally[0]
    if queue.first == queue.end:
        return
    page = state.pages[state.waiting[queue.first]]
    if page.freed_ns + DELAY_NS <= now:
        dontneed(stack, page.address, 4096)
        tally.{name}_purges += 1
        tally.{name}_late_ns = max(tally.{name}_late_ns, now - page.freed_ns)
        queue.first += 1
        if queue.first < queue.end:
            wake_at(stack, now + STEP_NS)
    else:
        wake_at(stack, page.freed_ns + DELAY_NS)


def grow(state):
    length = 2 * state.pages.shape[0]
    return state._replace(pages=extend(state.pages, length), waiting=extend(state.waiting, length))
'''
PLAIN = "leaf = by_reference = lambda each: each\n"
COMPILED = "from replay.jit.compiling import by_reference, leaf\n"
some = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def installed(folder, models):
    """Installs models (source text by name) for the tests in the block."""
    for name, text in models.items():
        (folder / f"{name}_model.py").write_text(text)
    write_dist_info(folder, "replay.allocators", {name: f"{name}_model" for name in models})
    sys.path.insert(0, str(folder))
    _registry._third_party.cache_clear()
    find_model.cache_clear()
    yield
    sys.path.remove(str(folder))
    _registry._third_party.cache_clear()
    find_model.cache_clear()
    for name in models:
        del sys.modules[f"{name}_model"]


def source(name, marks, delay_ns=DELAY_NS, step_ns=STEP_NS):
    """The model's source text under this name."""
    values = {"name": name, "marks": marks, "delay": delay_ns, "step": step_ns}
    return re.sub(r"{(name|marks|delay|step)}", lambda found: str(values[found[1]]), MODEL)


each_kind = pytest.mark.parametrize("marks", [PLAIN, COMPILED], ids=["plain Python", "compiled"])


@pytest.fixture(scope="module", params=[PLAIN, COMPILED], ids=["plain Python", "compiled"])
def purger(request, tmp_path_factory):
    """A stack with the model, which is installed for the tests."""
    with installed(tmp_path_factory.mktemp("site"), {"purger": source("purger", request.param)}):
        assert is_compiled(find_model("purger")) is (request.param == COMPILED)
        yield load_config("cpython-3.12-malloc", ["domains.libc=purger"])


@each_kind
def test_more_system_calls_than_a_tick_may_make_are_made_before_the_next_event(marks, tmp_path):
    history = History()
    blocks = history.mallocs(6_000, 100)
    history.at(5).free(*blocks)
    history.at(15).malloc(1)
    with installed(tmp_path, {"burst": source("burst", marks, step_ns=0)}):
        logged = []
        config = load_config("cpython-3.12-malloc", ["domains.libc=burst"])
        result = run(history.trace(), config, log=lambda part: logged.append(len(part)))
    assert (result.end["burst_purges"], result.end["burst_late_ns"]) == (6_000, 10)
    assert result.end["resident_bytes"] == 4096
    assert sum(logged) == 6_001 + 6_000


@each_kind
def test_two_models_are_both_woken_at_all_times_that_they_request(marks, tmp_path):
    history = History()
    slow = history.malloc(100, Domain.RAW)
    quick = history.malloc(100, Domain.OBJ)
    history.at(1).free(slow, quick)
    history.at(200).malloc(1)
    with installed(
        tmp_path, {"slow": source("slow", marks, delay_ns=110), "quick": source("quick", marks, delay_ns=40)}
    ):
        config = load_config("cpython-3.12", ["domains.libc=slow", "domains.mem=quick", "domains.obj=quick"])
        result = run(history.trace(), config)
    assert (result.end["quick_purges"], result.end["quick_late_ns"]) == (1, 40)
    assert (result.end["slow_purges"], result.end["slow_late_ns"]) == (1, 110)


def test_a_model_is_woken_at_its_time_without_an_event(purger):
    history = History()
    first, second = history.mallocs(2, 100)
    history.at(5).free(first)
    history.at(6).free(second)
    history.at(100).malloc(100)
    result = run(history.trace(), purger, sample_every_ns=1)
    purges = dict(zip(result.sample_times_ns.tolist(), result.samples["purger_purges"].tolist(), strict=True))
    assert (purges[14], purges[15]) == (0, 1)  # 10 ns after it was freed
    assert (purges[17], purges[18]) == (1, 2)  # 3 ns later, though it was free for 10 ns at 16
    resident = dict(zip(result.sample_times_ns.tolist(), result.samples["resident_bytes"].tolist(), strict=True))
    assert [resident[time_ns] for time_ns in (14, 15, 17, 18, 100)] == [8192, 4096, 4096, 0, 4096]
    assert result.mean("resident_bytes") == round((15 * 8192 + 3 * 4096) / 100)
    assert result.end["purger_late_ns"] == 12


def test_a_memalign_passes_its_time_to_models(purger):
    history = History()
    history.free(history.malloc(100))
    history.at(9).memalign(64, 100)
    assert run(history.trace(), purger).end["purger_purges"] == 0
    history.at(10).memalign(64, 100)
    assert run(history.trace(), purger).end["purger_purges"] == 1


def by_hand(history: History) -> list[int]:
    """The times at which pages are released, worked out from the times of frees."""
    freed = [time_ns for time_ns, _, op, *_ in history.rows if op == 3]
    end_ns = history.rows[-1][0]
    times: list[int] = []
    for time_ns in freed:
        earliest = time_ns + DELAY_NS
        times.append(max(earliest, times[-1]) if times else earliest)
    return [time_ns for time_ns in times if time_ns <= end_ns]


@some
@given(
    history=histories(with_realloc=False, with_memalign=True), cuts=st.lists(st.integers(0, 60), max_size=4),
    every_ns=st.integers(1, 9),
)  # fmt: skip
def test_no_result_depends_on_batches_or_samples(purger, history, cuts, every_ns):
    events = history.events()
    whole = run(MemoryTrace([events]), purger, sample_every_ns=1)
    parts = run(MemoryTrace(cut(events, cuts)), purger, sample_every_ns=every_ns)
    assert counters(parts.end) == counters(whole.end)
    assert counters(parts.at_peak) == counters(whole.at_peak)
    seen = dict(zip(whole.sample_times_ns.tolist(), counters(whole.samples), strict=True))
    for time_ns, sample in zip(parts.sample_times_ns.tolist(), counters(parts.samples), strict=True):
        assert sample == seen[time_ns]


@some
@given(history=histories(with_realloc=False), every_ns=st.integers(1, 9))
def test_no_result_depends_on_snapshots_and_these_see_what_is_due(purger, history, every_ns):
    trace, taken = history.trace(), []
    whole = run(trace, purger, sample_every_ns=1)
    seen = dict(zip(whole.sample_times_ns.tolist(), whole.samples, strict=True))
    looked_at = run(trace, purger, sample_every_ns=1, snapshots=every_ns, sink=taken.append)
    for mine, expected in ((looked_at.samples, whole.samples), (looked_at.at_peak, whole.at_peak)):
        assert counters(mine) == counters(expected)
    for snapshot in taken:
        names = snapshot.counters.dtype.names
        assert [int(snapshot.counters[name]) for name in names] == [int(seen[snapshot.time_ns][name]) for name in names]


def test_a_mark_is_after_all_wakes_up_to_its_time(purger):
    history = History()
    block = history.malloc(100)
    history.at(5).free(block)
    history.at(40).mark()
    history.at(41).malloc(1)
    result = run(history.trace("idle"), purger)
    assert [(name, int(tally["purger_purges"])) for name, _, tally in result.phases] == [("idle", 1)]


def test_each_process_has_a_clock_of_its_own(purger):
    history = History()
    block = history.malloc(100)
    other = history.by(1).malloc(100)
    history.at(5).free(other)
    history.by(0).at(8).free(block)
    history.by(1).at(30).malloc(1)
    history.by(0).at(30).malloc(1)
    processes = tuple(Process(str(number), (number,), ProcessMemory()) for number in (0, 1))
    result = run(MemoryTrace([history.events()], Metadata(processes=processes)), purger)
    assert [int(part.end["purger_purges"]) for part in result.processes] == [1, 1]
    assert (result.end["purger_purges"], result.end["purger_late_ns"]) == (2, 10)
