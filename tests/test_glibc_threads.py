"""glibc's arenas and tcaches of several threads, computed by hand; test_verify_libc compares them with real ones."""

import numpy as np
import pytest
from histories import History, single_steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_glibc import KIB, MIB, PAGE, calls, config, every_version

from replay.allocators.glibc.system import MAIN_ARENA
from replay.simulation.run import run
from replay.simulation.simulator import Simulator
from replay.support.errors import ConfigError
from replay.trace import Op

SECOND_HEAP = 0x7FFFF0000000
"""The highest multiple of 64 MiB in a mapping of 128 MiB below BASE."""
THIRD_HEAP = SECOND_HEAP - 128 * MIB
"""Where the second mapping of 128 MiB begins, which is such a multiple by itself."""
FIRST = {"2.31": 0x8C0 + 0x290 + 16, "2.36": 0x8D0 + 0x290 + 16, "2.41": 0x8D0 + 0x290 + 16, "2.43": 0x870 + 16}
"""Offset of an arena's first block: after heap_info, malloc_state, up to 2.41 the tcache, and a header."""


def addresses(history, version="2.36", *overrides):
    """Returns addresses of blocks (0 for other events), and the simulator; checks after every event."""
    parts: list[np.ndarray] = []
    simulator = Simulator(config(version, *overrides), addresses=lambda part, owners: parts.append(part))
    events = history.events()
    for row in range(events.rows):
        if events.op[row] == Op.THREAD_END:
            simulator.end_thread(int(events.thread[row]), row, int(events.time_ns[row]))
            parts.append(np.zeros(1, np.int64))
        else:
            next(single_steps(simulator, events.where(slice(row, None))))
        simulator.check()
    return np.concatenate(parts).tolist(), simulator


@every_version
def test_the_second_thread_gets_an_arena_in_a_heap_at_a_multiple_of_64_mib(version):
    history = History()
    history.malloc(24)
    history.by(1).malloc(24)
    history.by(0).malloc(24)
    main, own, again = addresses(history, version)[0]
    assert own == SECOND_HEAP + FIRST[version]
    assert again == main + 32


def test_a_heap_is_cut_out_of_128_mib_and_made_writable_as_far_as_needed():
    history = History()
    history.malloc(24)
    history.by(1).malloc(24)
    log = calls(history)
    start = SECOND_HEAP - 2 * MIB  # whole huge pages, aligned to one
    assert log[1:] == [
        ("mmap", start, 128 * MIB),
        ("munmap", start, 2 * MIB),
        ("munmap", SECOND_HEAP + 64 * MIB, 62 * MIB),
        ("mprotect", SECOND_HEAP, 33 * PAGE),
    ]
    end = run(history.trace(), config()).end
    assert end.mapped_bytes == end.heap_bytes == 33 * PAGE + 33 * PAGE
    assert end.resident_bytes == 2 * PAGE


def test_a_block_goes_into_the_tcache_of_the_thread_that_frees_it():
    history = History()
    block = history.malloc(100)
    history.by(1).malloc(24)
    history.free(block)
    history.by(0).malloc(100)
    history.by(1).malloc(100)
    first, _, _, other, again = addresses(history)[0]
    assert again == first
    assert other == first + 112


def test_a_block_that_no_tcache_takes_returns_to_its_arena():
    history = History()
    blocks = history.mallocs(3, 2_000)
    history.by(1).malloc(24)
    history.free(blocks[0])
    history.by(0).malloc(2_000)
    rows = addresses(history)[0]
    assert rows[-1] == rows[0]


@pytest.mark.parametrize(("most", "arenas"), [(1, 1), (2, 2), (3, 3), (9, 4)])
def test_no_more_arenas_than_arena_max_are_made(most, arenas):
    history = History()
    for thread in range(4):
        history.by(thread).malloc(24)
    assert addresses(history, "2.36", f"glibc.arena_max={most}")[1].stack.libc.par[0].arenas == arenas


def test_threads_beyond_the_limit_cycle_through_arenas_from_main_to_newest_to_oldest():
    history = History()
    for thread in range(7):
        history.by(thread).malloc(24)
    libc = addresses(history, "2.36", "glibc.arena_max=3")[1].stack.libc
    threads = [int(thread.arena) for thread in libc.threads[:6]]
    assert threads == [MAIN_ARENA, 2, 3, MAIN_ARENA, 3, 2]
    assert libc.par[0].arena == MAIN_ARENA


def test_the_default_limit_is_8_arenas_per_processor_for_more_than_8_threads():
    history = History()
    for thread in range(40):
        history.by(thread).malloc(24)
    for processors, arenas in ((1, 9), (2, 16), (4, 32)):
        assert addresses(history, "2.36", f"glibc.processors={processors}")[1].stack.libc.par[0].arenas == arenas


@every_version
def test_a_thread_that_ends_leaves_its_arena_to_the_next(version):
    history = History()
    history.malloc(24)
    for thread in (1, 2):
        history.by(thread).malloc(24)
    for thread in (1, 2):
        history.by(thread).end_thread()
    for thread in (3, 4, 5):
        history.by(thread).malloc(24)
    libc = addresses(history, version)[1].stack.libc
    assert [int(thread.arena) for thread in libc.threads[3:5]] == [3, 2]
    assert libc.par[0].arena == 4


def test_a_thread_that_ends_frees_its_tcache():
    history = History()
    history.malloc(24)
    history.by(1)
    blocks = history.mallocs(5, 1_000)
    history.free(*blocks)
    history.end_thread()
    simulator = addresses(history)[1]
    libc = simulator.stack.libc
    # Nothing is left in the arena: top begins right behind malloc_state.
    assert libc.memory[libc.arenas[2].top].start & 0xFFFF == 0x8D0 >> 4


def test_the_same_number_is_a_new_thread_after_its_end():
    history = History()
    history.malloc(24)
    history.by(1).malloc(24)
    history.end_thread()
    history.by(2).malloc(24)
    history.by(1).malloc(24)
    rows = addresses(history)[0]
    assert rows[3] == rows[1] + 32  # the arena was free, the block was not
    assert rows[4] == THIRD_HEAP + FIRST["2.36"]


def test_an_arena_continues_in_another_heap_and_releases_it_when_empty():
    history = History()
    history.malloc(24)
    history.by(1)
    blocks = history.mallocs(600, 120 * KIB)
    history.free(*blocks[:499:-1])
    history.free(*blocks[499::-1])
    uncached = ("glibc.tcache_count=0",)  # else what is left at the end of the full heap is kept there
    simulator = addresses(history, "2.36", *uncached)[1]
    log = calls(history, "2.36", *uncached)
    # The first search began between two multiples of 64 MiB and left nothing over for a second heap.
    assert [name for name, _, length in log if length == 128 * MIB] == ["mmap", "mmap"]
    assert ("munmap", THIRD_HEAP, 64 * MIB) in log
    assert simulator.stack.libc.arenas[2].heap == 2
    assert simulator.tally.madvise > 0


def test_trimming_reaches_every_arena():
    history = History()
    history.malloc(24)
    history.by(1)
    hole = history.malloc(10 * PAGE)
    history.malloc(16)
    history.free(hole)
    simulator = addresses(history)[1]
    before = int(simulator.tally.resident_bytes)
    simulator.trim(5, 0)
    simulator.check()
    assert before - simulator.tally.resident_bytes == 9 * PAGE
    assert simulator.tally.madvise == 1


@pytest.mark.parametrize("value", ["0", "-1", "many", "99999999999999999999"])
def test_an_impossible_number_of_arenas_is_refused(value):
    with pytest.raises(ConfigError, match="arena_max"):
        config("2.36", f"glibc.arena_max={value}")


@every_version
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_random_short_history_of_threads_preserves_every_invariant(version, data):
    sizes = st.one_of(st.integers(0, 1_100), st.sampled_from([1_033, 4_000, 60_000, 131_047, 300_000, 30 * MIB]))
    history, live = History(), []
    for _ in range(data.draw(st.integers(1, 60))):
        history.by(data.draw(st.integers(0, 5)))
        action = data.draw(st.integers(0, 4))
        if action <= 1 or not live:
            live.append(history.malloc(data.draw(sizes), op=Op(action & 1)))
        elif action == 2:
            history.realloc(data.draw(st.sampled_from(live)), data.draw(sizes))
        elif action == 3:
            history.free(live.pop(data.draw(st.integers(0, len(live) - 1))))
        else:
            history.end_thread()
    addresses(history, version, "glibc.arena_max=4")
