"""The clock without any allocator: slices, samples, boundaries."""

import numpy as np
import pytest
from histories import History, cut
from hypothesis import given
from hypothesis import strategies as st

from replay.simulation.clock import Clock, find_rows
from replay.support.errors import ReplayError
from replay.trace import Events, Op


def walk(batches: list[Events], every_ns: int):
    """Slices as (start, end, ticks by row, ticks by time), boundaries as (row, time), and the clock."""
    seen: list[tuple] = []

    class Visitor:
        def boundaries(self, events):
            return np.flatnonzero(events.op > Op.FREE).tolist()

        def simulate(self, part):
            first = part.first_row
            ticks = [int(row) + first for row in part.tick_rows]
            seen.append((first + part.start, first + part.end, ticks, part.tick_times_ns.tolist()))

        def pass_boundary(self, events, first_row, row):
            seen.append((first_row + row, clock.now_ns))

    clock = Clock(batches, Visitor(), 0, every_ns)
    clock.run()
    return seen, clock


def history_at(*times_ns: int) -> History:
    history = History()
    for time_ns in times_ns:
        history.at(time_ns).malloc(1)
    return history


def test_one_slice_has_all_rows_between_two_boundaries():
    history = history_at(5, 6)
    history.at(7).mark()
    history.malloc(1)
    history.at(9).mark(op=Op.GC_START)
    history.mark(op=Op.GC_END)
    seen, clock = walk([history.events()], 100)
    assert seen == [(0, 2, [], []), (2, 7), (3, 4, [], []), (4, 9), (5, 9)]
    assert (clock.rows, clock.now_ns) == (6, 9)


def test_a_sample_is_after_all_events_of_its_time():
    seen, _ = walk([history_at(0, 10, 10, 10, 11, 20, 21).events()], 10)
    assert seen == [(0, 7, [4, 6], [10, 20])]


def test_samples_are_taken_without_events_too():
    seen, _ = walk([history_at(1, 35).events()], 10)
    assert seen == [(0, 2, [1, 1, 1], [10, 20, 30])]


@given(data=st.data())
def test_rows_of_ticks_are_those_that_a_search_of_all_rows_finds(data):
    numbers = st.lists(st.integers(0, 60), max_size=40) | st.lists(st.integers(0, 10**15), max_size=40)
    times_ns, ticks_ns = (np.array(sorted(data.draw(numbers)), np.int64) for _ in range(2))
    start = data.draw(st.integers(0, len(times_ns)))
    end = data.draw(st.integers(start, len(times_ns)))
    expected = start + np.searchsorted(times_ns[start:end], ticks_ns, side="right")
    assert find_rows(times_ns, ticks_ns, start, end, np.empty_like(ticks_ns)).tolist() == expected.tolist()


def test_a_tick_at_the_last_moment_of_a_batch_waits_for_the_next_one():
    events = history_at(0, 10, 10, 12).events()
    assert walk([events], 10)[0] == [(0, 4, [3], [10])]
    assert walk(cut(events, [2]), 10)[0] == [(0, 2, [], []), (2, 4, [3], [10])]


def test_a_mark_between_events_of_one_time_does_not_move_the_sample():
    history = history_at(3, 10)
    history.mark()
    history.malloc(1)
    history.at(15).malloc(1)
    assert walk([history.events()], 10)[0] == [(0, 2, [], []), (2, 10), (3, 5, [4], [10])]


def test_time_may_stand_still_and_begin_late():
    seen, clock = walk([history_at(1000, 1000, 1000).events()], 400)
    assert seen == [(0, 3, [0, 0], [400, 800])]
    assert clock.now_ns == 1000


@pytest.mark.parametrize("batches", [[], [History().events()], [History().events(), History().events()]])
def test_nothing_happens_in_an_empty_trace(batches):
    seen, clock = walk(batches, 10)
    assert (seen, clock.rows, clock.now_ns) == ([], 0, 0)


def test_an_empty_batch_between_others_changes_nothing():
    events = history_at(0, 10, 20).events()
    seen, clock = walk([*cut(events, [1])[:1], History().events(), *cut(events, [1])[1:]], 7)
    assert seen == [(0, 1, [], []), (1, 3, [1, 2], [7, 14])]
    assert (clock.rows, clock.now_ns) == (3, 20)


def test_a_tick_at_every_nanosecond_costs_no_event():
    seen, _ = walk([history_at(0, 5000).events()], 1)
    assert np.array(seen[0][3]).tolist() == list(range(1, 5000))


def test_too_many_samples_are_refused_during_the_run():
    with pytest.raises(ReplayError, match="sampling every 1 ns gives more than 1000000 samples"):
        walk([history_at(0, 10**12).events()], 1)
