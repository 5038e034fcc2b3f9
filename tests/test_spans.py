"""Spans account for every mapped byte, in either role, at any moment."""

from random import Random

import numpy as np
import pytest
from histories import History, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.allocators import SPAN, SpanKind, report_simple, with_items, written
from replay.config import load_config
from replay.simulation.clock import Slice
from replay.simulation.simulator import Simulator
from replay.trace import Domain, Events

STACKS = [
    ("cpython-2.7", ()),
    ("cpython-3.9", ()),
    ("cpython-3.12", ()),
    ("cpython-3.12-glibc-2.31", ("glibc.check=3",)),
    ("cpython-3.12-glibc-2.43", ("glibc.tcache_max=4194280",)),
    ("cpython-3.11-32bit", ()),
    ("cpython-3.15-hugepages", ("linux.transparent_huge_pages=always",)),
    ("cpython-3.12-malloc", ("glibc.mmap_threshold=4096",)),
    ("cpython-3.12-musl", ()),
    ("cpython-3.12-musl-malloc", ("musl.version=1.2.3",)),
    ("bump", ()),
    ("ideal", ()),
    ("cpython-3.12", ("domains.libc=bump",)),
    ("cpython-3.12-malloc", ("glibc.hugetlb=2",)),
    ("cpython-3.12-malloc", ("glibc.hugetlb=2", "glibc.version=2.43", "linux.reserved_huge_pages=3")),
]


def simulated(events: Events, config, rows: int) -> Simulator:
    simulator = Simulator(config)
    none = np.zeros(0, np.int64)
    simulator.simulate(Slice(events, 0, 0, rows, none, none))
    return simulator


def spans_of(spans: np.ndarray, *kinds: SpanKind) -> np.ndarray:
    return spans[np.isin(spans["kind"], kinds)]


def assert_accounts_for_everything(simulator: Simulator) -> None:
    spans, tally = simulator.spans(), simulator.tally
    ends = spans["address"] + spans["bytes"]
    assert (spans["bytes"] > 0).all()
    assert (spans["address"][1:] >= ends[:-1]).all(), "spans overlap"
    assert spans["bytes"].sum() == tally.mapped_bytes
    assert spans["resident_bytes"].sum() == tally.resident_bytes
    assert (spans["resident_bytes"] <= spans["bytes"]).all()
    assert (spans["live_bytes"] + spans["free_bytes"] <= spans["bytes"]).all()
    if simulator.small_model.__name__.endswith("pymalloc"):
        pools = spans_of(spans, SpanKind.POOL)
        assert pools["bytes"].sum() == tally.pool_bytes
        assert pools["live_bytes"].sum() == tally.small_block_bytes
        assert len(np.unique(spans_of(spans, SpanKind.POOL, SpanKind.FREE_POOL)["region"])) == tally.arenas


@pytest.mark.parametrize(
    ("name", "overrides"), STACKS, ids=lambda each: "+".join([each] if isinstance(each, str) else each)
)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1 << 30), share=st.floats(0.01, 1))
def test_spans_add_up_at_any_moment(name, overrides, seed, share):
    events = seeded(seed, 3_000).events()
    simulator = simulated(events, load_config(name, overrides), max(1, int(share * events.rows)))
    assert_accounts_for_everything(simulator)


def threaded(seed: int, count: int, threads: int) -> History:
    """Blocks of any size, allocated and freed by threads in turn, more of them freed towards the end."""
    choice, history, live = Random(seed), History(), []
    for step in range(count):
        history = history.by(choice.randrange(threads))
        if live and choice.random() < 0.3 + 0.5 * step / count:
            history.free(live.pop(choice.randrange(len(live))))
        else:
            size = choice.choice([24, 200, 1_000, 4_000, 70_000, 300_000])
            live.append(history.malloc(choice.randrange(size), choice.choice([Domain.RAW, Domain.OBJ])))
    return history


@pytest.mark.parametrize("version", ["2.31", "2.36", "2.41", "2.43"])
def test_spans_of_several_threads_add_up(version):
    events = threaded(7, 4_000, 5).events()
    config = load_config(f"cpython-3.12-glibc-{version}", ("glibc.trim_threshold=128 KiB",))
    for rows in (500, 1_500, 2_500, events.rows):
        simulator = simulated(events, config, rows)
        assert_accounts_for_everything(simulator)
    assert len(np.unique(simulator.spans()["region"])) > 5


def test_one_block_of_each_kind_has_its_span():
    history = History()
    history.malloc(100, Domain.OBJ)
    kept = history.malloc(2_000, Domain.RAW)
    freed = history.malloc(5_000, Domain.RAW)
    history.malloc(3_000, Domain.RAW)
    history.malloc(1 << 20, Domain.RAW)
    history.free(freed)
    simulator = simulated(history.events(), load_config("cpython-3.8"), history.events().rows)
    spans = simulator.spans()
    (pool,) = spans_of(spans, SpanKind.POOL)
    assert (pool["bytes"], pool["size_class"], pool["live_blocks"], pool["live_bytes"]) == (4 << 10, 112, 1, 112)
    assert pool["free_bytes"] == (4096 - 48) // 112 * 112 - 112
    (mapping,) = spans_of(spans, SpanKind.MAPPING)
    assert (mapping["bytes"], mapping["live_blocks"]) == ((1 << 20) + 4096, 1)
    (free,) = spans_of(spans, SpanKind.FREE_CHUNK)
    assert (free["bytes"], free["free_bytes"]) == (5_008, 5_008)
    address = simulator.stack.libc.heaps[1].address
    assert {int(span["region"]) for span in spans_of(spans, SpanKind.CHUNK, SpanKind.TOP_CHUNK)} == {int(address)}
    assert 2_016 in spans_of(spans, SpanKind.CHUNK)["bytes"]
    assert kept == 1


def test_there_are_no_spans_before_the_first_event():
    assert Simulator(load_config("cpython-3.12")).spans().dtype == SPAN
    assert len(Simulator(load_config("cpython-3.12")).spans()) == 0


def test_a_span_that_is_part_of_another_region_is_reported_again():
    reported = with_items(None, 1)
    for region in (4096, 4096, 8192):
        report_simple(reported, 0, SpanKind.FREE_POOL, 16_384, 4096, region, True)
    changes = written(reported)
    assert changes.rows["region"].tolist() == [4096, 8192]
    assert changes.gone.tolist() == []
