"""Lifetimes of blocks: exact counts and bytes by decade."""

import pytest
from histories import History, cut, histories
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.analysis.lifetimes import block_lifetimes
from replay.reports.html.charts import lifetime_name
from replay.trace import MemoryTrace, Op

DECADES = [10**power for power in range(3, 12)]


def rows(history: History, *cuts: int) -> list[tuple[int | None, int | None, int, int]]:
    return block_lifetimes(MemoryTrace(cut(history.events(), [*cuts]))).rows()


def lived(*pairs: tuple[int, int]) -> History:
    """Blocks of these sizes that are freed after so many nanoseconds, one after the other."""
    history = History()
    for size, nanoseconds in pairs:
        block = history.malloc(size)
        history.at(history.now_ns + nanoseconds).free(block)
    return history


def test_a_lifetime_at_a_limit_belongs_to_the_longer_decade():
    assert rows(lived((10, 0), (20, 999), (40, 1000), (80, 9999), (160, 10_000))) == [
        (0, 1000, 2, 30),
        (1000, 10_000, 2, 120),
        (10_000, 100_000, 1, 160),
    ]


def test_the_longest_lifetimes_have_no_upper_limit():
    assert rows(lived((1, 10**11 - 1), (2, 10**11), (4, 10**13))) == [
        (10**10, 10**11, 1, 1),
        (10**11, None, 2, 6),
    ]


def test_blocks_that_are_never_freed_are_the_last_row():
    history = lived((7, 5))
    history.malloc(100)
    history.malloc(0)
    assert rows(history) == [(0, 1000, 1, 7), (None, None, 2, 100)]


def test_a_realloc_changes_the_size_but_not_the_age():
    history = History()
    freed, kept = history.malloc(10), history.malloc(20)
    history.at(900).realloc(freed, 300)
    history.realloc(kept, 4000)
    history.at(1500).free(freed)
    assert rows(history) == [(1000, 10_000, 1, 300), (None, None, 1, 4000)]


def test_callocs_and_memaligns_count_and_marks_do_not():
    history = History()
    history.mark()
    zeroed, aligned = history.malloc(5, op=Op.CALLOC), history.memalign(64, 6)
    history.at(10).mark(1)
    history.free(zeroed, aligned)
    assert rows(history) == [(0, 1000, 2, 11)]


def test_a_trace_without_blocks_has_no_rows():
    history = History()
    history.mark()
    assert rows(history) == []


@settings(max_examples=30)
@given(
    history=histories(80, with_memalign=True),
    cuts=st.lists(st.integers(0, 80), max_size=4),
    scale=st.integers(1, 10**6),
)
def test_the_counts_are_those_of_a_walk_through_the_trace(history, cuts, scale):
    history.rows = [(time_ns * scale, *rest) for time_ns, *rest in history.rows]
    live: dict[int, list[int]] = {}
    expected = dict.fromkeys([*DECADES, None, "never"], (0, 0))

    def add(key: int | str | None, size: int) -> None:
        expected[key] = (expected[key][0] + 1, expected[key][1] + size)

    for time_ns, _, op, _, block, size in history.rows:
        if op == Op.FREE:
            since, last = live.pop(block)
            add(next((limit for limit in DECADES if time_ns - since < limit), None), last)
        elif op == Op.REALLOC:
            live[block][1] = size
        else:
            live[block] = [time_ns, size]
    for _, size in live.values():
        add("never", size)
    found = [(blocks, size) for _, _, blocks, size in rows(history, *cuts)]
    assert found == [each for each in expected.values() if each[0]]


@pytest.mark.parametrize(
    ("least_ns", "below_ns", "name"),
    [
        (0, 1000, "< 1 µs"),
        (1000, 10_000, "1 µs to 10 µs"),
        (10**9, 10**10, "1 s to 10 s"),
        (10**11, None, "≥ 100 s"),
        (None, None, "never freed"),
    ],
)
def test_names_of_lifetimes(least_ns, below_ns, name):
    assert lifetime_name({"least_ns": least_ns, "below_ns": below_ns}) == name
