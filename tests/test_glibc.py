"""glibc's malloc: addresses of blocks in short histories, computed by hand from its rules."""

import numpy as np
import pytest
from histories import History, counters, cut, play_rows, single_steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.allocators import SYSCALLS, glibc
from replay.allocators.glibc import RULES
from replay.allocators.glibc.system import MAIN_ARENA
from replay.config import load_config
from replay.config.glibc_environment import overrides_of
from replay.simulation.run import run
from replay.simulation.simulator import Simulator
from replay.support.errors import ConfigError, ReplayError, TraceError
from replay.trace import TRIM_MARK, Domain, MemoryTrace, Metadata, Op

KIB, MIB, PAGE = 1 << 10, 1 << 20, 4096
HEAP, BASE = 0x555555560000, 0x7FFFF7FF1000
FIRST = 0x290 + 16
"""Offset of the first block up to 2.41: after the tcache's own chunk of 656 bytes, and a header."""
every_version = pytest.mark.parametrize("version", RULES)


def config(version="2.36", *overrides):
    return load_config(f"cpython-3.12-malloc-glibc-{version}", overrides)


def play(history, version="2.36", *overrides):
    """Returns offsets of blocks in the heap (0 for a free), and the simulator; checks after every event."""
    parts: list[np.ndarray] = []
    simulator = Simulator(config(version, *overrides), addresses=lambda part, owners: parts.append(part))
    for _ in single_steps(simulator, history.events()):
        simulator.check()
    return [int(address) - HEAP if address else 0 for address in np.concatenate(parts)], simulator


def calls(history, version="2.36", *overrides):
    """(name, address, bytes) of each system call."""
    logged: list[np.ndarray] = []
    run(history.trace(), config(version, *overrides), log=logged.append)
    return [(SYSCALLS[kind], address, length) for part in logged for _, kind, address, length in part.tolist()]


def test_the_heap_starts_with_the_cache_and_132_kib():
    history = History()
    history.malloc(24)
    history.malloc(25)
    assert play(history)[0] == [FIRST, FIRST + 32]
    assert calls(history) == [("brk", HEAP + 33 * PAGE, 33 * PAGE)]


def test_2_43_makes_the_cache_when_something_is_freed():
    history = History()
    first = history.malloc(24)
    history.free(first)
    history.malloc(24)
    history.malloc(24)
    # The tcache's chunk, of 768 bytes, is after the first one.
    assert play(history, "2.43")[0] == [16, 0, 16, 32 + 768 + 16]


@every_version
def test_the_tcache_returns_the_chunk_freed_last(version):
    history = History()
    blocks = history.mallocs(3, 100)
    history.free(*blocks)
    history.mallocs(3, 100)
    offsets = play(history, version)[0]
    assert offsets[6:] == offsets[2::-1]


@pytest.mark.parametrize(("version", "kept"), [("2.36", 7), ("2.41", 7), ("2.43", 16)])
def test_the_tcache_has_a_limit_per_size_and_other_chunks_are_merged_into_top(version, kept):
    history = History()
    history.free(history.malloc(24))  # creates the tcache
    blocks = history.mallocs(20, 1000)
    history.free(*blocks)
    libc = play(history, version)[1].stack.libc
    assert libc.cache["count"].sum() == 1 + kept
    cache_units = 768 // 16 if version == "2.43" else 656 // 16
    assert libc.memory[libc.arenas[MAIN_ARENA].top].start == cache_units + 2 + kept * 63


def test_fastbins_are_not_merged_until_a_large_request_comes():
    history = History()
    blocks = history.mallocs(9, 24)
    history.malloc(24)  # separates the chunk from top
    history.free(*blocks)
    history.malloc(2000)
    history.malloc(40)
    offsets = play(history)[0]
    # Seven are in the tcache; the last two, of 32 bytes, are one chunk of 64, which is used for 48 without a remainder.
    assert offsets[-1] == offsets[7]


@pytest.mark.parametrize(("version", "offset_of"), [("2.36", 0), ("2.41", 1)])
def test_calloc_passes_the_cache_by_up_to_2_40(version, offset_of):
    history = History()
    first = history.malloc(100)
    history.malloc(16)
    history.free(first)
    history.malloc(100, op=Op.CALLOC)
    offsets = play(history, version)[0]
    assert (offsets[-1] == offsets[0]) == bool(offset_of)


def test_the_smallest_fitting_chunk_is_used_and_its_remainder_serves_the_next_request():
    history = History()
    small, _, large, _ = (history.malloc(size) for size in (2000, 16, 4000, 16))
    history.free(large, small)
    history.mallocs(3, 1500)
    offsets = play(history)[0]
    assert offsets[6:] == [offsets[0], offsets[2], offsets[2] + 1520]


def test_realloc_grows_into_top_and_into_a_free_neighbour_and_else_moves():
    history = History()
    first = history.malloc(2000)
    second = history.malloc(2000)
    history.realloc(second, 5000)  # top is behind it
    history.malloc(16)
    history.free(second)
    history.realloc(first, 6000)  # the free chunk is behind it
    history.realloc(first, 9000)
    offsets = play(history)[0]
    assert offsets[2] == offsets[1]
    assert offsets[5] == offsets[0]
    assert offsets[6] == offsets[3] + 32


@every_version
def test_from_128_kib_on_a_block_has_a_mapping_of_its_own_if_top_is_too_small(version):
    history = History()
    history.malloc(24)
    history.malloc(8 * KIB)
    history.free(history.malloc(128 * KIB))
    history.malloc(128 * KIB)
    offsets = play(history, version)[0]
    assert offsets[2] + HEAP == BASE - 33 * PAGE + 16
    # Freeing it raised the threshold to its size; the next block of that size is in the heap.
    assert 0 < offsets[4] < MIB


def test_a_fresh_heap_has_room_for_128_kib():
    history = History()
    history.malloc(128 * KIB)
    assert play(history)[0] == [FIRST]


def test_a_static_threshold_stays_where_it_is():
    history = History()
    history.malloc(8 * KIB)
    history.free(history.malloc(128 * KIB))
    history.malloc(128 * KIB)
    assert play(history, "2.36", "glibc.mmap_threshold=131072")[0][3] > MIB


def test_a_mapped_block_is_resized_where_it_is_or_moved_by_the_kernel():
    history = History()
    lower, upper = (history.malloc(200_000) for _ in range(2))
    history.realloc(upper, 100_000)
    history.realloc(lower, 300_000)
    log = calls(history, "2.36", "glibc.top_pad=0")
    assert [name for name, _, _ in log] == ["brk", "mmap", "mmap", "mremap", "mremap"]
    length = 49 * PAGE
    assert log[3][1:] == (BASE - 2 * length, 25 * PAGE)  # in place
    assert log[4][1:] == (BASE - 2 * length - 74 * PAGE, 74 * PAGE)  # the hole above the lower end is too small


def test_the_pages_of_a_mapping_move_with_it():
    history = History()
    number = history.malloc(200_000)
    history.malloc(200_000)
    history.realloc(number, 900_000)
    tally = play(history)[1].tally
    # The first page of the heap; 49 pages stay; the moved one is filled to its new end.
    assert tally.resident_bytes == PAGE + 49 * PAGE + 220 * PAGE
    assert (tally.mremap, tally.munmap) == (1, 0)


def test_a_free_end_of_128_kib_is_released_except_for_top_pad():
    history = History()
    blocks = history.mallocs(5, 100 * KIB)
    history.free(*blocks[::-1])
    simulator = play(history)[1]
    space = simulator.stack.linux.space[0]
    assert space.brk - HEAP == 33 * PAGE  # 132 KiB: the cache, a smallest chunk and 128 KiB, in whole pages
    assert simulator.tally.resident_bytes <= 33 * PAGE


def test_a_top_of_the_least_size_grows_where_it_should_be_trimmed():
    """glibc compares an area of -1 as unsigned with top_pad, and trims by a negative number of bytes."""
    history = History()
    number = history.malloc(70_000)
    history.malloc(77_824 - 656 - 70_016 - 32 - 8)  # 19 pages in all: top has 32 bytes left
    history.free(number)
    static = ("glibc.trim_threshold=0", "glibc.top_pad=0")
    assert calls(history, "2.36", *static) == [
        ("brk", HEAP + PAGE, PAGE),
        ("brk", HEAP + 18 * PAGE, 17 * PAGE),
        ("brk", HEAP + 19 * PAGE, PAGE),
        ("brk", HEAP + 20 * PAGE, PAGE),
    ]


def test_32_bit_chunks_are_multiples_of_16_after_headers_of_8():
    history = History()
    for size in (1, 12, 13):
        history.malloc(size, Domain.RAW)
    parts: list[np.ndarray] = []
    run(history.trace(), load_config("cpython-3.11-32bit"), addresses=lambda part, owners: parts.append(part))
    first = 0x56560000 + 8 + 400 + 8  # 64 counts of 2 bytes, 64 pointers of 4, a word: 400
    assert np.concatenate(parts).tolist() == [first, first + 16, first + 32]


def test_a_heap_beyond_32_gib_is_refused_with_the_row_that_requests_it():
    history = History()
    history.mallocs(40, 1 << 30, Domain.RAW)
    with pytest.raises(TraceError, match="row 31: no address space"):
        run(history.trace(), config("2.36", "glibc.mmap_max=0"))


def test_small_mappings_are_no_chunks_of_the_cache():
    """Pages of 1 KiB, which do not exist on x86-64, make mappings as small as chunks of the tcache."""
    history = History()
    history.free(*history.mallocs(3, 900))
    play(history, "2.43", "linux.page_size=1024", "glibc.mmap_threshold=0")


@pytest.mark.parametrize("live", [1_000, 30_000])
def test_many_chunks_find_room(live, monkeypatch):
    monkeypatch.setattr(glibc, "CHUNKS_AT_FIRST", 1024)
    history = History()
    blocks = history.mallocs(live, 40)
    history.free(*blocks[::2])
    history.mallocs(live, 2_000)
    simulator = Simulator(config())
    play_rows(simulator, history.events(), 0, history.events().rows)
    simulator.check()


@pytest.mark.parametrize("version", RULES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_random_short_history_preserves_every_invariant(version, data):
    sizes = st.one_of(st.integers(0, 1_100), st.sampled_from([1_032, 1_033, 4_000, 60_000, 131_047, 131_049, 300_000]))
    history, live = History(), []
    for _ in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.integers(0, 3)) if live else 0
        if action <= 1:
            live.append(history.malloc(data.draw(sizes), op=Op(action)))
        elif action == 2:
            history.realloc(data.draw(st.sampled_from(live)), data.draw(sizes))
        else:
            history.free(live.pop(data.draw(st.integers(0, len(live) - 1))))
    play(history, version)


def test_settings_in_the_environments_spelling():
    text = "GLIBC_TUNABLES=glibc.malloc.tcache_count=0:glibc.malloc.mxfast=010"
    assert overrides_of(["MALLOC_TOP_PAD_=0x10", text]) == [
        "glibc.top_pad=16", "glibc.tcache_count=0", "glibc.mxfast=8"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("MALLOC_TOP_PAD=1", "MALLOC_TOP_PAD is not modelled; did you mean 'MALLOC_TOP_PAD_'?"),
        ("MALLOC_TOP_PAD_", "write it like MALLOC_TOP_PAD_=0"),
        ("GLIBC_TUNABLES=glibc.malloc.mxfst=1", "mxfst is not modelled; did you mean 'glibc.malloc.mxfast'?"),
        ("MALLOC_TOP_PAD_=-1", "'-1' is not an integer of at least 0"),
        ("MALLOC_ARENA_MAX=0", "'0' is not an integer of at least 1"),
        ("PYTHONMALLOC=malloc", "PYTHONMALLOC chooses an allocator; use -a cpython-3.12-malloc"),
    ],
)
def test_settings_that_glibc_would_ignore_silently_are_refused(assignment, sentence):
    with pytest.raises(ConfigError) as refusal:
        overrides_of([assignment])
    assert sentence in str(refusal.value)
    assert str(refusal.value).startswith(f"--env {assignment}: ")


def test_a_presets_name_may_end_in_a_version_of_glibc():
    stack = load_config("cpython-3.9-glibc-2.41")
    assert (stack.name, stack.libc.version, stack.pymalloc.release) == ("cpython-3.9-glibc-2.41", "2.41", "keep-last")
    with pytest.raises(ConfigError, match="should be '2.31'".replace(".", r"\.")):
        load_config("cpython-3.9-glibc-2.9")


def test_malloc_trim_releases_whole_pages_inside_free_chunks_and_the_end_of_the_heap():
    history = History()
    hole = history.malloc(10 * PAGE)
    history.malloc(16)
    history.free(hole)
    before = run(history.trace(), config()).end
    history.mark(0)
    after = run(MemoryTrace([history.events()], Metadata(phases=(TRIM_MARK,))), config()).end
    # The chunk starts 656 bytes into the heap: its header is in the first page, its end in the eleventh.
    assert (after.madvise, after.madvise_bytes) == (1, 9 * PAGE)
    assert before.resident_bytes - after.resident_bytes == 9 * PAGE
    assert (before.brk, after.brk) == (1, 2)
    assert after.heap_bytes == 11 * PAGE


def test_on_a_timer_malloc_trim_is_called_between_the_events_of_its_time_and_the_next():
    history = History()
    hole = history.at(0).malloc(10 * PAGE)
    history.at(2).malloc(16)
    history.at(10).free(hole)
    history.at(11).malloc(24)
    ends = [run(history.trace(), config(), trim_every_ns=every).end.madvise for every in (10, 11, 5, 2)]
    # At 10: once the block is free. At 11: the last moment, which nothing follows. At 5 and 10. At 2, 4, 6, 8, 10.
    assert ends == [1, 0, 1, 1]


def test_a_timer_with_a_tiny_interval_is_refused_before_it_fills_memory():
    history = History()
    history.at(0).malloc(1)
    history.at(3_000_000_003).malloc(1)
    message = "trimming every 3 ns is more than 1,000,000 times in this trace; choose a longer time"
    with pytest.raises(ReplayError, match=message):
        run(history.trace(), config(), trim_every_ns=3)


@pytest.mark.parametrize("cuts", [[1], [2], [1, 3], [2, 4]])
def test_where_batches_end_does_not_matter_to_the_timer(cuts):
    history = History()
    for time_ns in range(1, 8):
        history.free(history.at(time_ns).malloc(10 * PAGE))
        history.malloc(16 * time_ns)
    events = history.events()
    whole = run(MemoryTrace([events]), config(), trim_every_ns=2).end
    assert counters(run(MemoryTrace(cut(events, cuts)), config(), trim_every_ns=2).end) == counters(whole)


def test_hugetlb_requests_huge_pages_and_moves_the_break_by_whole_huge_pages():
    history = History()
    history.mallocs(23, 100_000)
    block = history.malloc(5_000_000)
    history.realloc(block, 7_000_000)
    huge, mapped, moved = 2 * MIB, 5_001_216, 7_000_064
    overrides = ("glibc.hugetlb=1", "linux.transparent_huge_pages=madvise")
    edge = HEAP // huge * huge + 2 * huge
    mappings = [
        ("mmap", BASE - mapped, mapped), ("madvise", BASE - mapped, mapped),
        ("mremap", BASE - mapped - moved, moved), ("madvise", BASE - mapped - moved, moved),
    ]  # fmt: skip
    # The first time malloc takes the break for 0; then it grows to a boundary, by too little to ask.
    assert calls(history, "2.41", *overrides) == [
        ("brk", HEAP + huge, huge), ("madvise", HEAP, huge), ("brk", edge, edge - HEAP - huge), *mappings
    ]  # fmt: skip
    assert calls(history, "2.43", *overrides) == [
        ("brk", edge - huge, edge - huge - HEAP), ("brk", edge, huge), ("madvise", edge - huge, huge), *mappings[:3]
    ]  # fmt: skip


@pytest.mark.parametrize(("version", "step"), [("2.36", PAGE), ("2.41", PAGE), ("2.43", 2 * MIB)])
def test_hugetlb_requests_nothing_if_huge_pages_are_always_on(version, step):
    history = History()
    history.mallocs(30, 100_000)
    for mode, unit in (("always", step), ("never", PAGE)):
        made = calls(history, version, "glibc.hugetlb=1", f"linux.transparent_huge_pages={mode}")
        assert {name for name, _, _ in made} == {"brk"}
        assert all(address % unit == 0 for _, address, _ in made)
