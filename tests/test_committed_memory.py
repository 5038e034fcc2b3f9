"""Reserved, committed and lazily freed memory far below the heap, under a model and without one."""

from functools import partial

import numpy as np
import pytest
from dist_info import write_dist_info
from histories import seeded
from test_spans import assert_accounts_for_everything, simulated

from replay.allocators import LOG, NO_MEMORY, ROOM, TALLY, Stack, _registry, find_model, linux
from replay.allocators.linux import FIXED, NO_ACCESS
from replay.analysis import metrics
from replay.config import load_config
from replay.simulation.run import run

PAGE, MIB, GIB, TIB = 4096, 1 << 20, 1 << 30, 1 << 40


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """A stack with the model in the place of the C library's, which is installed for the test."""
    write_dist_info(tmp_path, "replay.allocators", {"commit": "commit_model"})
    monkeypatch.syspath_prepend(tmp_path)
    caches = (_registry._third_party, find_model, metrics._usable_own_metrics)
    for each in caches:
        each.cache_clear()
    yield partial(load_config, "cpython-3.12", ["domains.libc=commit"])
    for each in caches:
        each.cache_clear()


@pytest.mark.parametrize("overrides", [(), ("linux.transparent_huge_pages=always",)])
def test_spans_of_a_model_that_commits_and_frees_lazily_add_up(stack, overrides):
    events = seeded(5, 3_000).events()
    config = load_config("cpython-3.12-malloc", ("domains.libc=commit", *overrides))
    for rows in (1, 700, 2_000, events.rows):
        simulator = simulated(events, config, rows)
        assert_accounts_for_everything(simulator)
        simulator.check()
    summary = metrics.summarize(run(seeded(5, 3_000).trace(), config))
    assert summary.counters["commit.lazy_bytes_peak"] > 0


class Space:
    """The model of Linux alone; tables grow as after an event."""

    def __init__(self, transparent_huge_pages: str = "never") -> None:
        config = linux.Config(transparent_huge_pages=transparent_huge_pages)
        state = linux.new_state(config)
        self.stack = Stack(np.zeros(1, TALLY), np.zeros(64, LOG), np.zeros(1, np.int64), state, state, state)

    def do(self, operation, *arguments: int):
        answer = operation(self.stack, *arguments)
        tally = self.tally
        if tally.attention & ROOM:
            self.stack = self.stack._replace(linux=linux.grow(self.stack.linux))
        tally.attention = tally.attention & NO_MEMORY
        tally.rows_logged = 0
        linux.check(self.stack.linux, self.stack)
        return answer

    @property
    def tally(self) -> np.record:
        return self.stack.tally[0]

    @property
    def space(self) -> np.record:
        return self.stack.linux.space[0]


def test_what_is_committed_or_decommitted_twice_counts_once():
    space = Space()
    start = space.do(linux.mmap_at, 0, 64 * PAGE, NO_ACCESS)
    assert (space.tally.mapped_bytes, space.space.reserved_bytes) == (0, 64 * PAGE)
    for first, count, mapped in [(0, 4, 4), (0, 4, 4), (2, 4, 6), (10, 1, 7), (0, 64, 64)]:
        space.do(linux.protect, start + first * PAGE, count * PAGE)
        assert space.tally.mapped_bytes == mapped * PAGE
    space.do(linux.touch, start, start + 64 * PAGE)
    for first, count, mapped in [(0, 4, 60), (2, 4, 58), (2, 4, 58), (60, 4, 54)]:
        space.do(linux.unprotect, start + first * PAGE, count * PAGE)
        assert space.tally.mapped_bytes == mapped * PAGE
    assert space.tally.resident_bytes == 64 * PAGE  # mprotect keeps pages
    space.do(linux.dontneed, start, 6 * PAGE)
    assert space.tally.resident_bytes == 58 * PAGE
    assert space.do(linux.mmap_at, start, 32 * PAGE, FIXED | NO_ACCESS) == start  # a new mapping does not
    assert (space.tally.resident_bytes, space.tally.mapped_bytes) == (32 * PAGE, 28 * PAGE)
    space.do(linux.munmap, start, 64 * PAGE)
    assert (space.tally.resident_bytes, space.tally.mapped_bytes, space.space.reserved_bytes) == (0, 0, 0)
    assert (space.tally.mmap, space.tally.mprotect, space.tally.munmap) == (2, 9, 1)


def test_lazily_freed_pages_stay_until_they_are_written_to_or_go():
    space = Space()
    start = space.do(linux.mmap, 8 * PAGE)
    space.do(linux.touch, start, start + 6 * PAGE)
    for _ in range(2):
        space.do(linux.free_lazily, start + PAGE, 7 * PAGE)
        assert (space.space.lazy_bytes, space.tally.resident_bytes) == (5 * PAGE, 6 * PAGE)
    space.do(linux.touch, start + PAGE, start + 2 * PAGE)
    assert (space.space.lazy_bytes, space.tally.page_faults) == (4 * PAGE, 6)
    space.do(linux.dontneed, start + 2 * PAGE, PAGE)
    assert (space.space.lazy_bytes, space.tally.resident_bytes) == (3 * PAGE, 5 * PAGE)
    moved = space.do(linux.mremap, start, 8 * PAGE, 32 * PAGE)
    assert (space.space.lazy_bytes, space.tally.resident_bytes) == (3 * PAGE, 5 * PAGE)
    space.do(linux.munmap, moved + 4 * PAGE, PAGE)
    assert (space.space.lazy_bytes, space.space.lazy_bytes_peak) == (2 * PAGE, 5 * PAGE)


def test_a_write_to_a_lazily_freed_huge_page_keeps_all_of_it():
    space = Space("always")
    start = space.do(linux.mmap, 4 * MIB)
    space.do(linux.touch, start, start + 4 * MIB)
    space.do(linux.free_lazily, start, 3 * MIB)  # all of the first huge page, and half of the second
    assert (space.space.lazy_bytes, space.tally.resident_bytes) == (3 * MIB, 4 * MIB)
    space.do(linux.touch, start, start + 1)
    assert space.space.lazy_bytes == MIB
    space.do(linux.touch, start + 2 * MIB, start + 2 * MIB + 1)
    assert space.space.lazy_bytes == MIB - PAGE


@pytest.mark.parametrize("mode", ["never", "always"])
def test_mappings_of_terabytes_far_below_the_heap_take_no_table_of_their_size(mode):
    space = Space(mode)
    start = space.do(linux.mmap_at, 2 * TIB, 4 * TIB, NO_ACCESS)
    assert start == 2 * TIB
    space.do(linux.protect, start, 4 * TIB)
    for number in range(60):
        address = start + number * 3 * GIB + 5 * PAGE
        space.do(linux.touch, address - PAGE, address + PAGE)
    pages = 512 if mode == "always" else 2
    assert space.tally.resident_bytes == 60 * pages * PAGE
    assert (space.space.chunks, space.space.headroom > 0) == (60, True)
    assert sum(array.nbytes for array in space.stack.linux) < 16 * MIB
    edges = np.array([start, start + GIB, start + 3 * GIB + 5 * PAGE + 100])
    counted = linux.resident_bytes(linux.resident_pages(space.stack.linux), PAGE, np.full(3, start), edges)
    expected = [0, pages * PAGE, (pages + 5 if mode == "always" else 3) * PAGE + 100]
    assert counted.tolist() == expected
    space.do(linux.munmap, start, 4 * TIB)
    assert (space.tally.resident_bytes, space.tally.mapped_bytes) == (0, 0)


def test_a_chunk_takes_over_the_pages_of_the_heap_in_it():
    space = Space()
    heap = int(space.space.brk_base)
    space.do(linux.brk, heap + 64 * PAGE)
    space.do(linux.touch, heap, heap + 10 * PAGE)
    space.do(linux.free_lazily, heap, 2 * PAGE)
    below = space.do(linux.mmap_at, heap - 16 * PAGE, 8 * PAGE, 0)
    space.do(linux.touch, below, below + 8 * PAGE)
    assert (space.space.chunks, space.tally.resident_bytes, space.space.lazy_bytes) == (1, 18 * PAGE, 2 * PAGE)
    space.do(linux.touch, heap, heap + 12 * PAGE)
    assert (space.tally.resident_bytes, space.space.lazy_bytes) == (20 * PAGE, 0)
    space.do(linux.brk, heap + PAGE)
    assert space.tally.resident_bytes == 9 * PAGE


def test_the_heap_does_not_grow_into_a_mapping_at_a_hint():
    space = Space()
    heap = int(space.space.brk_base)
    assert space.do(linux.mmap_at, heap + GIB, PAGE, 0) == heap + GIB
    space.do(linux.brk, heap + GIB - 2 * MIB)
    assert not space.tally.attention & NO_MEMORY
    space.do(linux.brk, heap + GIB)
    assert space.tally.attention & NO_MEMORY


def test_a_reservation_beyond_the_tables_is_followed_by_more_room():
    space = Space()
    start = space.do(linux.mmap_at, 0, 100 * GIB, NO_ACCESS)
    space.do(linux.protect, start, PAGE)
    space.do(linux.touch, start, start + PAGE)
    assert space.space.lowest == start
    assert space.space.headroom > 0
    assert space.tally.resident_bytes == PAGE
    lower = space.do(linux.mmap, GIB)
    space.do(linux.touch, lower, start + PAGE)
    assert space.tally.resident_bytes == GIB + PAGE
