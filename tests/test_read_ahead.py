"""A trace that is read ahead in a thread has the same batches for all its readers, and simulations side by side the
same results as one after the other."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from histories import seeded

from replay.config import load_config
from replay.simulation.run import run
from replay.simulation.side_by_side import run_side_by_side
from replay.support.errors import TraceError
from replay.trace import MemoryTrace, Metadata
from replay.trace.read_ahead import AHEAD, ReadingEnded, read_ahead

ROWS, BATCH_ROWS = 4_000, 250


@dataclass
class Streamed:
    """A trace that is not in memory: yields batches, counts them, and raises an error after some of them."""

    batches_total: int = ROWS // BATCH_ROWS
    error: Exception | None = None
    made: int = 0
    closed: int = 0
    metadata: Metadata = field(default_factory=Metadata)
    duration_ns: int | None = None
    events_total: int | None = None
    events: object = field(default_factory=lambda: seeded(3, ROWS).trace().events[0])

    def batches(self):
        try:
            for number in range(self.batches_total):
                self.made += 1
                yield self.events.where(slice(number * BATCH_ROWS, (number + 1) * BATCH_ROWS))
            if self.error:
                raise self.error
        finally:
            self.closed += 1

    def in_memory(self):
        return MemoryTrace(list(self.batches()))


def same(one, other):
    """Whether two runs have the same counters."""
    return (
        one.end == other.end
        and one.at_peak == other.at_peak
        and np.array_equal(one.samples, other.samples)
        and np.array_equal(one.requested_changes, other.requested_changes)
        and np.array_equal(one.classes, other.classes)
    )


def test_each_reader_receives_all_batches_in_order():
    trace = Streamed()
    with read_ahead(trace, 2) as readers:
        pairs = list(zip(*(reader.batches() for reader in readers), strict=True))
    assert trace.made == len(pairs) == ROWS // BATCH_ROWS
    assert all(one is other for one, other in pairs)
    assert np.array_equal(np.concatenate([batch.size for batch, _ in pairs]), trace.events.size)


def test_the_thread_reads_only_a_few_batches_ahead_of_the_slowest_reader():
    trace = Streamed()
    with read_ahead(trace, 2) as (fast, slow):
        fast, ahead = fast.batches(), []
        for seen, _ in enumerate(slow.batches(), 1):
            next(fast)
            ahead.append(trace.made - seen)
    assert trace.made == ROWS // BATCH_ROWS
    assert max(ahead) <= AHEAD + 1


def test_a_reader_that_ends_early_does_not_hold_up_the_other():
    trace = Streamed()
    with read_ahead(trace, 2) as (short, long):
        batches = short.batches()
        next(batches)
        batches.close()
        assert sum(batch.rows for batch in long.batches()) == ROWS


def test_the_reading_ends_with_the_block():
    trace = Streamed()
    with read_ahead(trace) as (reader,):
        batches = reader.batches()
        next(batches)
    assert trace.closed == 1
    assert trace.made < ROWS // BATCH_ROWS
    with pytest.raises(ReadingEnded):
        list(batches)


def test_an_error_of_the_trace_comes_to_each_reader_after_the_batches_before_it():
    trace = Streamed(AHEAD, TraceError("broken", row=AHEAD * BATCH_ROWS))
    with read_ahead(trace, 2) as readers:
        for reader in readers:
            batches = reader.batches()
            assert [next(batches).rows for _ in range(AHEAD)] == [BATCH_ROWS] * AHEAD
            with pytest.raises(TraceError, match="broken"):
                next(batches)


def test_a_second_reading_reads_the_trace_again():
    trace = Streamed()
    with read_ahead(trace) as (reader,):
        assert [sum(batch.rows for batch in reader.batches()) for _ in range(2)] == [ROWS, ROWS]
    assert trace.closed == 2


def test_a_run_of_a_stream_is_that_of_the_trace_in_memory():
    trace, stack = Streamed(), load_config("cpython-3.12")
    assert same(run(trace, stack, sample_every_ns=1_000), run(trace.in_memory(), stack, sample_every_ns=1_000))
    assert trace.closed == 2


def test_simulations_side_by_side_have_the_results_of_single_runs():
    trace, names = Streamed(), ("cpython-3.12", "ideal", "bump", "cpython-3.8")

    def simulate(name, trace, progress=None):
        return run(trace, load_config(name), sample_every_ns=1_000, progress=progress)

    first, *others = (partial(simulate, name) for name in names)
    result, results = run_side_by_side(trace, first, others)
    assert trace.made == ROWS // BATCH_ROWS
    alone = trace.in_memory()
    for each, name in zip([result, *results], names, strict=True):
        assert same(each, simulate(name, alone))


def test_an_error_of_another_simulation_is_its_result():
    error = TraceError("no address space")

    def fail(trace, progress):
        next(trace.batches())
        raise error

    def simulate(trace, progress):
        return run(trace, load_config("ideal"), progress=progress)

    result, others = run_side_by_side(Streamed(), simulate, [fail, simulate])
    assert (result.events, others[0], others[1].events) == (ROWS, error, ROWS)


@pytest.mark.parametrize("trace", [Streamed(), Streamed().in_memory()], ids=["stream", "memory"])
def test_an_error_of_the_first_simulation_ends_the_others(trace):
    begun, ended = [], []

    def simulate(trace, progress):
        begun.append(trace)
        try:
            while True:
                for _ in trace.batches():
                    progress(0)
        except ReadingEnded:
            ended.append(trace)
            raise

    def fail(trace, progress):
        next(iter(trace.batches()))
        progress(0)
        raise TraceError("wrong")

    with pytest.raises(TraceError, match="wrong"):
        run_side_by_side(trace, fail, [simulate, simulate])
    assert len(begun) == len(ended) == 2


def test_the_others_start_after_the_first_slice_and_after_the_call_before_them():
    seen = []

    def first(trace, progress):
        return run(trace, load_config("bump"), progress=lambda rows: (seen.append(rows), progress(rows)))

    def other(trace, progress):
        seen.append("other")
        return run(trace, load_config("ideal"), progress=progress)

    run_side_by_side(Streamed(), first, [other], lambda: seen.append("before"))
    assert seen[:2] == [BATCH_ROWS, "before"]
    assert seen.count("before") == seen.count("other") == 1
