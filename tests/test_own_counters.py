"""Counters that models declare: summary, timeline, metrics and sums of processes have them without listing them."""

import json
import sys

import pytest
from dist_info import write_dist_info
from histories import History
from typer.testing import CliRunner

from replay.__main__ import app
from replay.allocators import _registry, find_model, layout_of
from replay.allocators._contract import find_mistakes
from replay.analysis import frames, metrics
from replay.analysis.metrics import is_neutral
from replay.config import load_config
from replay.gates.baselines import Figure, Measured, without_details
from replay.gates.cases import Case
from replay.gates.judging import judge
from replay.gates.tolerances import parse_rule
from replay.simulation.run import run
from replay.sources.parquet import write_trace
from replay.sweeps.results import read_results
from replay.trace import MemoryTrace, Metadata, Process, ProcessMemory

SHELF = '''
"""A model in plain Python: each block has a mapping of its own."""

from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from replay.allocators import Counter, CounterKind, record
from replay.allocators.linux import mmap, munmap

COUNTERS = (
    Counter("mappings", CounterKind.LEVEL, "blocks with a mapping"),
    Counter("calls", CounterKind.SUM, "calls of malloc", more_is_worse=False),
    Counter("largest_bytes", CounterKind.MAXIMUM, "the largest mapping", "bytes"),
)
BLOCK = record("address", "bytes")


class Config(BaseModel):
    pass


class State(NamedTuple):
    blocks: np.ndarray


def new_state(config):
    return State(np.zeros(100, BLOCK))


def malloc(state, stack, size):
    tally = stack.tally[0]
    place = int(np.flatnonzero(state.blocks["bytes"] == 0)[0])
    state.blocks[place].bytes = (size + 4095) & -4096
    state.blocks[place].address = mmap(stack, size)
    tally.shelf_mappings += 1
    tally.shelf_mappings_peak = max(tally.shelf_mappings_peak, tally.shelf_mappings)
    tally.shelf_calls += 1
    tally.shelf_largest_bytes = max(tally.shelf_largest_bytes, state.blocks[place].bytes)
    return place


def free(state, stack, place):
    munmap(stack, state.blocks[place].address, state.blocks[place].bytes)
    state.blocks[place].bytes = 0
    stack.tally[0].shelf_mappings -= 1


def block_size(state, stack, place):
    return state.blocks[place].bytes


def address(state, stack, place):
    return state.blocks[place].address
'''


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A stack with the model, which is installed for the test."""
    (tmp_path / "shelf_model.py").write_text(SHELF)
    write_dist_info(tmp_path, "replay.allocators", {"shelf": "shelf_model"})
    monkeypatch.syspath_prepend(tmp_path)
    caches = (_registry._third_party, find_model, metrics._usable_own_metrics)
    for each in caches:
        each.cache_clear()
    yield load_config("cpython-3.12-malloc", ["domains.libc=shelf"])
    for each in caches:
        each.cache_clear()
    sys.modules.pop("shelf_model", None)


def two_processes() -> MemoryTrace:
    """The first has two blocks, of 1 and 3 pages; the second one of 2, while the first has one."""
    history = History()
    first = history.malloc(4096)
    second = history.at(10).malloc(3 * 4096)
    history.at(20).free(first)
    third = history.by(1).at(30).malloc(2 * 4096)
    history.at(40).by(0).free(second)
    history.at(50).by(1).free(third)
    history.at(60).malloc(1)
    processes = tuple(Process(str(number), (number,), ProcessMemory()) for number in (0, 1))
    return MemoryTrace([history.events()], Metadata(processes=processes))


def test_a_counter_is_in_summary_metrics_and_timeline(shelf):
    history = History()
    first = history.malloc(5000)
    history.at(10).malloc(10)
    history.at(20).free(first)
    result = run(history.trace(), shelf, sample_every_ns=10)
    summary = metrics.summarize(result)
    assert summary.counters == {
        "shelf.mappings_peak": 2, "shelf.mappings_at_peak": 2, "shelf.mappings_end": 1,
        "shelf.calls": 2,
        "shelf.largest_bytes": 8192,
    }  # fmt: skip
    assert metrics.metrics_of(summary)["shelf.calls"] == 2
    assert {*summary.counters} <= {*metrics.known_metrics()}
    assert frames.timeline(result)["shelf_mappings"].to_list() == [2, 1]
    assert (is_neutral("shelf.calls"), is_neutral("shelf.largest_bytes")) == (True, False)


def test_an_installed_model_adds_its_counters_only_to_the_metrics_of_stacks_that_use_it(shelf):
    history = History()
    history.malloc(1)
    without, with_shelf = (metrics.summarize(run(history.trace(), stack)) for stack in (load_config("ideal"), shelf))
    assert without.counters == {}
    assert metrics.metrics_of(without)["glibc.top_trims"] == 0
    assert [*metrics.metrics_of(without)] == metrics.metric_names()
    assert [*metrics.metrics_of(with_shelf)] == [*metrics.metric_names(), *with_shelf.counters]
    assert metrics.known_metrics() == [*metrics.metric_names(), *with_shelf.counters]


def test_a_rule_may_name_a_counter_of_an_installed_model_that_is_not_in_the_stack(shelf):
    assert judge({}, None, [parse_rule("shelf.calls<=0")])[0].status == "within"
    measured = Measured(case=Case(source="large-buffers"), trace=None, stack="", figures={})
    assert without_details(measured).figures == {}
    assert without_details(measured, ["shelf.calls"]).figures == {"shelf.calls": Figure(value=0, low=0, high=0)}


def test_a_sweep_has_the_counters_of_a_model_that_some_of_its_runs_use(shelf, tmp_path):
    history = History()
    history.malloc(5000)
    write_trace(history.trace(), tmp_path / "trace.parquet")
    arguments = ["--grid", "domains.libc=shelf,ideal", "-a", "cpython-3.12-malloc", "--out", str(tmp_path / "sweep")]
    done = CliRunner().invoke(app, ["sweep", str(tmp_path / "trace.parquet"), *arguments])
    assert done.exit_code == 0, done.output
    results = read_results(tmp_path / "sweep")
    assert "shelf.calls" not in results.parameters
    calls = dict(results.done.select("domains.libc", "shelf.calls").rows())
    assert calls == {"shelf": 1, "ideal": 0, "glibc": 0}


def test_levels_sums_and_maxima_of_several_processes_add_up(shelf):
    result = run(two_processes(), shelf)
    counted = metrics.summarize(result).counters
    each = [dict(part.counters) for part in metrics.summarize(result).processes]
    assert [part["shelf.mappings_peak"] for part in each] == [2, 1]
    assert counted["shelf.mappings_peak"] == 2  # 1 + 1 later, never 3
    assert counted["shelf.mappings_end"] == 1
    assert [part["shelf.calls"] for part in each] == [2, 2]
    assert counted["shelf.calls"] == 4
    assert [part["shelf.largest_bytes"] for part in each] == [3 * 4096, 2 * 4096]
    assert counted["shelf.largest_bytes"] == 3 * 4096


def test_glibc_counts_arenas_of_threads_and_mapped_chunks():
    history = History()
    large = history.malloc(1 << 20)
    history.by(1).malloc(100)
    history.by(2).malloc(100)
    history.by(0).free(large)
    summary = metrics.summarize(run(history.trace(), load_config("cpython-3.12-malloc")))
    assert summary.counters["glibc.thread_arenas"] == 2
    assert summary.counters["glibc.mapped_chunks_peak"] == 1
    assert summary.counters["glibc.mapped_chunks_end"] == 0


def test_glibc_counts_what_it_releases_from_the_end_of_its_heap():
    history = History()
    numbers = history.mallocs(200, 1000)
    history.free(*numbers)
    summary = metrics.summarize(run(history.trace(), load_config("cpython-3.12-malloc")))
    assert summary.counters["glibc.top_trims"] == 1
    assert summary.counters["glibc.top_trims"] == summary.syscalls["brk"] - 2


def test_a_rule_and_a_sweep_take_a_counter_by_name(tmp_path):
    arguments = [
        "sweep",
        "large-buffers",
        "--grid",
        "glibc.mmap_threshold=65536,1048576",
        "--by",
        "glibc.mapped_chunks_peak",
    ]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert "glibc.mapped_chunks_peak" in json.dumps(json.loads(done.stdout))


def mistakes(*declared: str) -> list[str]:
    """Returns the mistakes of a model with these counters."""
    source = (
        SHELF[: SHELF.index("COUNTERS")] + f"COUNTERS = ({', '.join(declared)},)\n" + SHELF[SHELF.index("BLOCK =") :]
    )
    module = type(sys)("shelf_model")
    module.__dict__["__name__"] = "shelf_model"
    exec(compile(source, "shelf_model.py", "exec"), module.__dict__)
    return find_mistakes(module)


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        (["Counter('a', CounterKind.SUM, '')", "Counter('a', CounterKind.SUM, '')"], "COUNTERS declares 'a' twice"),
        (["Counter('a b', CounterKind.SUM, '')"], "the name of a counter, 'a b', is not an identifier"),
        (["Counter('a', 'total', '')"], "the kind of counter 'a' is 'total'; use one of level, sum, maximum"),
        (["'a'"], "COUNTERS has 'a', which is not a Counter"),
    ],
)
def test_a_wrong_declaration_breaks_the_contract(declared, sentence):
    assert mistakes(*declared) == [sentence]


def test_the_layout_has_fields_for_the_models_of_the_stack_only():
    assert "glibc_top_trims" in (layout_of(["glibc", "pymalloc"]).dtype.names or ())
    assert layout_of(["ideal"]).dtype == layout_of(["bump", "pymalloc"]).dtype
