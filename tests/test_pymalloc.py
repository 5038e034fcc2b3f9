"""pymalloc's addresses, computed by hand from obmalloc.c, and compared with a reference model for random histories."""

import numpy as np
import pytest
from histories import TINY, History, histories, played, seeded, single_steps
from hypothesis import HealthCheck, given, settings
from reference_pymalloc import Geometry, Reference

from replay.allocators.glibc.system import MAIN_ARENA
from replay.config import load_config
from replay.simulation.addresses import run_addresses
from replay.simulation.simulator import Simulator
from replay.trace import Domain, Op

BASE, BRK_BASE = 0x7FFFF7FF1000, 0x555555560000
KIB, MIB, PAGE = 1 << 10, 1 << 20, 4096
GLIBC = "domains.libc=glibc"
TCACHE = 656
"""The chunk of the tcache, the first in the heap: 2 and 8 bytes for each of 64 bins, and a word."""
POOL_OF_512 = 7
"""Blocks of 512 bytes in a pool of 4 KiB; 64 such pools make an arena of 256 KiB."""
ARENA_OF_512 = 64 * POOL_OF_512


def config(version: str, *overrides: str):
    return load_config(f"cpython-{version}", [GLIBC, *overrides])


def addresses_of(history: History, version: str, *overrides: str) -> list[int]:
    return played(history, config(version, *overrides))[1].tolist()


def tally_of(history: History, version: str, *overrides: str):
    return played(history, config(version, *overrides))[0].tally


def arena_events(history: History, version: str, *overrides: str) -> list[tuple[int, str, int]]:
    """(row, what, address) of each arena mapped or unmapped."""
    events = run_addresses(history.trace(), config(version, *overrides))[2]
    return [(int(row), "map" if kind else "unmap", int(address)) for row, kind, address, _ in events.tolist()]


# Addresses of blocks


def heap_in_use(simulator):
    """Bytes of the heap below top."""
    libc = simulator.stack.libc
    return 16 * int(libc.memory[libc.arenas[MAIN_ARENA].top].start)


def test_the_first_block_is_after_the_header_of_the_first_aligned_pool():
    history = History()
    history.mallocs(3, 20)
    # 1 MiB below the base, then up to a multiple of 16 KiB, then 48 bytes of header; blocks of 32
    first = BASE - MIB + 0x3000 + 48
    assert first == 0x7FFFF7EF4030
    assert addresses_of(history, "3.11") == [first, first + 32, first + 64]


def test_an_arena_that_is_not_aligned_to_pools_has_one_pool_fewer():
    history = History()
    history.malloc(20)
    simulator = played(history, config("3.11"))[0]
    assert simulator.observe()["arenas"].tolist() == [(BASE - MIB, 63, 62, 1, 32)]
    aligned = played(history, config("3.11", "linux.mmap_base=0x7ffff7ff4000"))[0]
    assert aligned.observe()["arenas"].tolist() == [(0x7FFFF7EF4000, 64, 63, 1, 32)]
    assert (simulator.tally.pools_free, simulator.tally.pools_used) == (62, 1)


def test_8_byte_alignment_makes_twice_as_many_classes():
    history = History()
    for size in (1, 8, 9, 20, 24):
        history.malloc(size)
    pools = [BASE - MIB + 0x3000 + 48 + 16 * KIB * pool for pool in range(3)]
    expected = [pools[0], pools[0] + 8, pools[1], pools[2], pools[2] + 24]
    assert addresses_of(history, "3.11", "pymalloc.alignment=8") == expected
    assert tally_of(history, "3.11", "pymalloc.alignment=8").block_bytes == 8 + 8 + 16 + 24 + 24


def test_the_32_bit_build_has_headers_of_32_bytes_and_blocks_of_8():
    history = History()
    history.mallocs(2, 8)
    history.malloc(9)
    arena = 0xF7FF1000 - 256 * KIB
    assert addresses_of(history, "3.11-32bit") == [arena + 32, arena + 40, arena + PAGE + 32]
    simulator = played(history, config("3.11-32bit"))[0]
    assert simulator.observe()["arenas"].tolist() == [(arena, 64, 62, 3, 32)]
    # the tree's root is static: the arena and libc's heap with the arena table are all that is mapped; the heap takes
    # a second call because its first chunk starts 8 bytes behind the break
    assert (simulator.tally.mmap, simulator.tally.brk) == (1, 2)


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8", "3.9"])
def test_pools_of_4_kib_always_fill_their_arena(version):
    history = History()
    history.malloc(512)
    simulator, addresses = played(history, config(version))
    assert addresses.tolist() == [BASE - 256 * KIB + 48]
    assert simulator.observe()["arenas"]["pools"].tolist() == [64]


def test_sizes_0_and_513_are_libcs():
    history = History()
    for size in (0, 513, 512, 1):
        history.malloc(size)
    history.malloc(0, op=Op.CALLOC)
    zero, large, small, tiny, zeroed = addresses_of(history, "3.9")
    arena = BASE - 256 * KIB
    assert (small, tiny) == (arena + 48, arena + PAGE + 48)
    assert (zero, large) == (BRK_BASE + TCACHE + 16, BRK_BASE + TCACHE + 16 + 32)
    # 513 bytes and a word: 528; the arena table: 16 entries of 48 bytes, a word, 16-byte steps: 784
    assert zeroed == large + 528 + 784
    assert tally_of(history, "3.9").small_requested_bytes == 513


def test_the_raw_domain_and_calls_past_python_never_reach_it():
    history = History()
    history.malloc(20, Domain.RAW)
    history.malloc(20, Domain.LIBC)
    tally = tally_of(history, "3.12")
    assert (tally.arenas_mapped, tally.requested_bytes, tally.small_requested_bytes) == (0, 40, 0)


def test_the_mem_domain_is_libcs_in_2_7_and_pymallocs_from_3_6():
    history = History()
    history.malloc(20, Domain.MEM)
    assert tally_of(history, "2.7").arenas_mapped == 0
    assert tally_of(history, "3.6").arenas_mapped == 1


# Pools


def test_a_pool_that_was_full_serves_first_once_a_block_of_it_is_free():
    history = History()
    full = history.mallocs(POOL_OF_512, 512)
    history.malloc(512)  # of the next pool
    history.free(full[3])
    history.mallocs(2, 512)
    pool = BASE - 256 * KIB
    addresses = addresses_of(history, "3.9")
    assert addresses[:8] == [*(pool + 48 + 512 * block for block in range(7)), pool + PAGE + 48]
    assert addresses[9:] == [pool + 48 + 512 * 3, pool + PAGE + 48 + 512]


def test_freed_blocks_are_reused_last_first_and_before_new_ones():
    history = History()
    numbers = history.mallocs(4, 100)
    history.free(numbers[0], numbers[2], numbers[1])
    history.mallocs(4, 100)
    block = [BASE - 256 * KIB + 48 + 112 * index for index in range(6)]
    # the fifth block was carved in advance with the fourth, so it is after the freed ones
    assert addresses_of(history, "3.9")[7:] == [block[1], block[2], block[0], block[4]]


def test_an_empty_pool_reused_by_the_same_class_keeps_its_free_list():
    history = History()
    history.free(*history.mallocs(3, 512))
    history.mallocs(3, 512)
    block = [BASE - 256 * KIB + 48 + 512 * index for index in range(3)]
    assert addresses_of(history, "3.9")[6:] == [block[2], block[1], block[0]]


def test_an_empty_pool_reused_by_another_class_has_a_new_free_list():
    history = History()
    history.free(*history.mallocs(3, 512))
    history.mallocs(2, 256)
    first = BASE - 256 * KIB + 48
    assert addresses_of(history, "3.9")[6:] == [first, first + 256]
    assert tally_of(history, "3.9").pools_made == 2


def test_the_pool_freed_last_is_reused_first_and_before_new_ones():
    history = History()
    one, two, three, *_ = (history.malloc(16 * (index + 1)) for index in range(4))
    history.free(two, three, one)
    for size in (480, 496, 512, 464):
        history.malloc(size)
    pool = [BASE - 256 * KIB + 48 + PAGE * index for index in range(5)]
    assert addresses_of(history, "3.9")[7:] == [pool[0], pool[2], pool[1], pool[4]]


# Reallocation


@pytest.mark.parametrize(("size", "stays"), [(512, True), (385, True), (384, False), (500, True), (1, False)])
def test_realloc_stays_while_more_than_three_quarters_of_the_class_are_used(size, stays):
    history = History()
    number = history.malloc(512)
    history.realloc(number, size)
    first, second = addresses_of(history, "3.9")
    assert (second == first) is stays
    assert tally_of(history, "3.9").requested_bytes == size


def test_a_block_that_grows_beyond_its_class_moves():
    history = History()
    number = history.malloc(17)
    history.realloc(number, 32)
    history.realloc(number, 33)
    arena = BASE - 256 * KIB
    assert addresses_of(history, "3.9") == [arena + 48, arena + 48, arena + PAGE + 48]


def test_a_block_that_libc_owns_stays_libcs_however_small_it_gets():
    history = History()
    number = history.malloc(300)
    history.realloc(number, 513)
    history.realloc(number, 10)
    small, large, again = addresses_of(history, "3.9")
    assert small == BASE - 256 * KIB + 48
    assert BRK_BASE <= large < BRK_BASE + MIB
    assert BRK_BASE <= again < BRK_BASE + MIB
    tally = tally_of(history, "3.9")
    assert (tally.small_requested_bytes, tally.requested_bytes, tally.pools_used) == (0, 10, 0)


def test_realloc_to_nothing_moves_a_block_to_libc():
    history = History()
    history.realloc(history.malloc(16), 0)
    assert BRK_BASE <= addresses_of(history, "3.9")[1] < BRK_BASE + MIB


# Arenas


@pytest.mark.parametrize(
    ("version", "unmapped"),
    [(version, 1) for version in ("2.7", "3.6", "3.7", "3.8")]
    + [(version, 0) for version in ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "3.11-32bit")],
)
def test_the_only_arena_is_released_at_once_up_to_3_8_and_never_since(version, unmapped):
    history = History()
    history.free(history.malloc(100))
    tally = tally_of(history, version)
    assert (tally.arenas_mapped, tally.arenas_unmapped, tally.arenas_peak) == (1, unmapped, 1)


def test_an_arena_that_is_not_the_last_usable_one_is_released_with_its_last_block():
    history = History()
    numbers = history.mallocs(ARENA_OF_512 + 1, 512)
    history.free(*numbers)
    first, second = BASE - 256 * KIB, BASE - 512 * KIB
    assert arena_events(history, "3.9") == [
        (0, "map", first), (ARENA_OF_512, "map", second), (2 * ARENA_OF_512, "unmap", first)
    ]  # fmt: skip
    assert arena_events(history, "3.8") == [
        *arena_events(history, "3.9"),
        (2 * ARENA_OF_512 + 1, "unmap", second),
    ]


def test_a_new_pool_comes_from_the_fullest_arena_that_has_one():
    history = History()
    arenas = [history.mallocs(ARENA_OF_512, 512) for _ in range(3)]
    history.free(*arenas[0][: 3 * POOL_OF_512], *arenas[1][:POOL_OF_512], *arenas[2][: 2 * POOL_OF_512])
    history.mallocs(6 * POOL_OF_512, 16 * 16)  # 15 blocks a pool: three pools
    addresses = addresses_of(history, "3.9")[-6 * POOL_OF_512 :: 15]
    bases = [BASE - 256 * KIB * (index + 1) for index in range(3)]
    # of the second arena the only free pool, then of the third first the one freed last, then the other
    assert addresses == [bases[1] + 48, bases[2] + PAGE + 48, bases[2] + 48]


def test_the_next_arena_reuses_the_address_of_a_released_one():
    history = History()
    numbers = history.mallocs(2 * ARENA_OF_512 + 1, 512)
    history.free(*numbers[:ARENA_OF_512])
    history.mallocs(ARENA_OF_512, 512)
    first = BASE - 256 * KIB
    rows = arena_events(history, "3.9")
    # 63 pools of the third arena are free: they serve before a fourth is mapped, where the first was
    assert rows[3:] == [(3 * ARENA_OF_512, "unmap", first), (4 * ARENA_OF_512, "map", first)]


def test_the_arena_table_doubles_with_the_17th_arena():
    history = History()
    history.mallocs(16 * ARENA_OF_512, 512)
    assert heap_in_use(played(history, config("3.9"))[0]) == TCACHE + 784  # 16 entries of 48 bytes and a word
    history.malloc(512)
    simulator, addresses = played(history, config("3.9"))
    # 32 entries and a word: nothing lies behind the old table, so it grows where it is, into top
    assert heap_in_use(simulator) == TCACHE + 1552
    assert addresses[-1] == BASE - 17 * 256 * KIB + 48
    assert simulator.tally.arenas == 17


def test_hundreds_of_arenas_find_room():
    history = History()
    history.mallocs(200 * ARENA_OF_512 - 100, 512)
    tally = tally_of(history, "3.9")
    assert (tally.arenas_mapped, tally.arenas_peak, tally.pools_free) == (200, 200, 14)


# The tree


def test_the_trees_nodes_come_from_libcs_heap_in_3_10():
    history = History()
    history.mallocs(63 * 31 + 1, 512)
    simulator = played(history, config("3.10"))[0]
    assert [address for _, what, address in arena_events(history, "3.10")] == [BASE - MIB, BASE - 2 * MIB]
    # the table; 8,192 bytes and a word; 2,048 bytes and a word
    assert heap_in_use(simulator) == TCACHE + 784 + 8208 + 2064
    assert simulator.tally.mmap == 2


@pytest.mark.parametrize(("kept", "in_heap"), [(1, True), (2 * PAGE, False)])
def test_the_trees_nodes_are_mapped_between_the_first_arena_and_the_second_in_3_11(kept, in_heap):
    """The smaller one has 131,072 bytes, which fit into a nearly empty heap."""
    history = History()
    history.malloc(kept, Domain.RAW)
    history.mallocs(63 * 31 + 1, 512)
    nodes = 0x41000 if in_heap else 0x41000 + 0x21000
    assert [address for _, what, address in arena_events(history, "3.11")] == [BASE - MIB, BASE - MIB - nodes - MIB]
    tally = tally_of(history, "3.11")
    assert (tally.mmap, tally.heap_bytes) == (3 if in_heap else 4, nodes + 33 * PAGE)


@pytest.mark.parametrize(("version", "mmaps"), [("3.9", 1), ("3.10", 1), ("3.11", 2), ("3.15-hugepages", 2)])
def test_the_first_block_costs_one_mapping_for_the_arena_and_one_for_each_large_node(version, mmaps):
    history = History()
    history.malloc(16)
    assert tally_of(history, version).mmap == mmaps
    assert tally_of(history, version, "pymalloc.radix_tree=false").mmap == 1


# Pages


@pytest.mark.parametrize(
    ("blocks", "pages"), [(1, 1), (7, 1), (8, 2), (15, 2), (16, 3), (23, 3), (24, 4), (31, 4), (32, 5)]
)
def test_a_pool_is_resident_as_far_as_it_was_carved(blocks, pages):
    history = History()
    history.malloc(16)
    before = tally_of(history, "3.11").resident_bytes
    history.mallocs(blocks, 512)
    # block n ends at 48 + 512 n; the link carved ahead lies in the eight bytes behind it
    assert tally_of(history, "3.11").resident_bytes - before == pages * PAGE


def test_freed_blocks_and_pools_stay_resident_until_their_arena_is_released():
    history = History()
    numbers = history.mallocs(ARENA_OF_512 + 1, 512)
    grown = tally_of(history, "3.9").resident_bytes
    history.free(*numbers[:-2])
    assert tally_of(history, "3.9").resident_bytes == grown == 66 * PAGE  # 65 pools, the arena table
    history.free(numbers[-2])
    assert tally_of(history, "3.9").resident_bytes == 2 * PAGE


def test_a_huge_page_arena_is_aligned_and_resident_as_a_whole():
    history = History()
    history.malloc(100)
    huge = config("3.15-hugepages")
    simulator, addresses = played(history, huge)
    arena = 0x7FFFF7C00000  # the highest multiple of 2 MiB that Linux finds below the base
    assert addresses.tolist() == [arena + 48]
    assert simulator.observe()["arenas"].tolist() == [(arena, 128, 127, 1, 112)]
    plain = tally_of(history, "3.15-hugepages", "pymalloc.huge_pages=false")
    assert simulator.tally.resident_bytes - plain.resident_bytes == 2 * MIB - PAGE


# Counters and views


def test_counters_of_pools_and_arenas():
    history = History()
    numbers = history.mallocs(POOL_OF_512 + 2, 512)
    history.mallocs(2, 100)
    history.free(numbers[0], numbers[-1], numbers[-2])
    tally = tally_of(history, "3.9")
    assert (tally.pools_full, tally.pools_used, tally.pools_free, tally.pools_made) == (0, 2, 62, 3)
    assert (tally.pool_bytes, tally.pool_bytes_peak, tally.arena_bytes) == (2 * PAGE, 3 * PAGE, 256 * KIB)
    assert (tally.requested_bytes, tally.block_bytes) == (6 * 512 + 200, 6 * 512 + 2 * 112)


def test_observed_counts_of_size_classes():
    history = History()
    numbers = history.mallocs(POOL_OF_512 + 1, 512)
    history.free(numbers[7])
    history.mallocs(3, 20)
    classes = played(history, config("3.9"))[0].observe()["classes"]
    assert len(classes) == 32
    # (size, pools used, full, blocks, carved, capacity): the second pool of 512 is free and counts no more
    assert classes[31].tolist() == (512, 0, 1, 7, 7, 7)
    assert classes[1].tolist() == (32, 1, 0, 3, 4, 126)
    assert classes[["blocks", "pools_used", "pools_full"]].tolist().count((0, 0, 0)) == 30


# The reference model


def second_opinion(
    history: History, geometry: Geometry, base: int
) -> tuple[list[int], list[tuple[int, int, int, int]]]:
    """Returns the addresses and arena events of the reference model for a history of small blocks."""
    reference, places, addresses = Reference(geometry, base), {}, []
    for row, (_, _, op, _, number, size) in enumerate(history.rows):
        if op == Op.FREE:
            reference.free(places.pop(number), row)
            addresses.append(0)
            continue
        places[number] = (
            reference.realloc(places[number], size, row) if op == Op.REALLOC else reference.malloc(size, row)
        )
        addresses.append(places[number])
    return addresses, reference.arena_events


def small_only(history: History) -> History:
    """Returns the same history with only blocks of pymalloc."""
    rows = [
        (time_ns, thread, op, Domain.OBJ, number, 0 if op == Op.FREE else max(1, size % 513))
        for time_ns, thread, op, _, number, size in history.rows
    ]
    history.rows = rows
    return history


TINY_GEOMETRIES = {
    "3.8": Geometry(16, 8192, 2048, 48, keep_last=False),
    "3.9": Geometry(16, 8192, 2048, 48, keep_last=True),
    "3.6": Geometry(8, 8192, 2048, 48, keep_last=False),
}


@pytest.mark.parametrize("version", TINY_GEOMETRIES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories(200).map(small_only))
def test_random_small_blocks_have_the_addresses_of_the_reference_model(version, history):
    addresses, _, events = run_addresses(history.trace(), config(version, *TINY))
    expected, expected_events = second_opinion(history, TINY_GEOMETRIES[version], BASE)
    assert addresses.tolist() == expected
    assert events.tolist() == expected_events


@pytest.mark.parametrize("version", TINY_GEOMETRIES)
def test_a_long_history_of_releases_has_the_addresses_of_the_reference_model(version):
    history = small_only(seeded(11, 40_000, sizes=(1, 30, 64, 100, 170, 256, 300, 385, 400, 512), wave=1200))
    addresses, _, events = run_addresses(history.trace(), config(version, *TINY))
    expected, expected_events = second_opinion(history, TINY_GEOMETRIES[version], BASE)
    assert np.count_nonzero(events["kind"] == 0) > 60
    assert np.flatnonzero(addresses != np.array(expected)).tolist() == []
    assert events.tolist() == expected_events


@pytest.mark.parametrize("version", TINY_GEOMETRIES)
def test_its_invariants_hold_after_every_event_of_a_history_full_of_releases(version):
    simulator = Simulator(config(version, *TINY))
    for _ in single_steps(simulator, small_only(seeded(5, 1200)).events()):
        simulator.check()
    assert simulator.tally.arenas_unmapped >= 5
