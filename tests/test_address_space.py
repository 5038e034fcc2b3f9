"""Linux' address space, observed through the system calls of a libc that maps every block separately."""

import numpy as np
import pytest
from histories import History, play_rows, single_steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.allocators import LOG, SYSCALLS, TALLY, Stack, linux
from replay.config import load_config
from replay.simulation.run import run
from replay.simulation.simulator import Simulator
from replay.support.errors import TraceError
from replay.trace import Domain

BASE = 0x7F0000000000
PAGE, MIB = 4096, 1 << 20
HUGE = 2 * MIB
MMAP, MUNMAP, BRK = (SYSCALLS.index(name) for name in ("mmap", "munmap", "brk"))
MAPPING = ("glibc.version=2.43", "glibc.mmap_threshold=0", f"linux.mmap_base={BASE}")
CONFIG = load_config("cpython-3.12-malloc", MAPPING)


def map_bytes(history: History, length: int) -> int:
    """A block whose chunk needs a mapping of `length` bytes, 24 of which are headers."""
    return history.malloc(length - 24)


def system_calls(history: History, config=CONFIG) -> tuple[list[tuple[int, int, int]], Simulator]:
    """Returns (kind, address, bytes) of each system call, and the simulator at the end; checks after every event."""
    parts: list[np.ndarray] = []
    simulator = Simulator(config, log=parts.append)
    for _ in single_steps(simulator, history.events()):
        simulator.check()
    log = np.concatenate([np.zeros(0, LOG), *parts])
    return [(int(entry.kind), int(entry.address), int(entry.bytes)) for entry in log], simulator


def mapped_at(history: History, config=CONFIG) -> list[int]:
    """Returns the addresses of mappings, in order."""
    return [address for kind, address, _ in system_calls(history, config)[0] if kind == MMAP]


def test_each_mapping_is_below_the_previous_one_from_the_base_down():
    history = History()
    for pages in (1, 3, 10):
        map_bytes(history, pages * PAGE)
    calls, simulator = system_calls(history)
    assert calls == [
        (MMAP, BASE - PAGE, PAGE), (MMAP, BASE - 4 * PAGE, 3 * PAGE), (MMAP, BASE - 14 * PAGE, 10 * PAGE)
    ]  # fmt: skip
    space = simulator.stack.linux.space[0]
    assert space.regions == 1  # neighbours merge
    assert tuple(simulator.stack.linux.regions[0]) == (BASE - 14 * PAGE, BASE)
    assert (simulator.tally.mapped_bytes, simulator.tally.resident_bytes) == (14 * PAGE, 14 * PAGE)


def test_the_highest_hole_that_is_large_enough_is_filled_from_its_top():
    history = History()
    blocks = [map_bytes(history, pages * PAGE) for pages in (2, 1, 4, 1, 3, 1)]
    history.free(blocks[0], blocks[2], blocks[4])  # holes of 2, 4 and 3 pages, from the top
    for pages in (3, 1, 2, 5):
        map_bytes(history, pages * PAGE)
    # In pages below the base the holes are 0 … 2, 3 … 7 and 8 … 11. Three go to the top of the second, one to the
    # top of the first, two to the top of the third; five fit none and go below all 12 pages.
    assert mapped_at(history)[6:] == [BASE - pages * PAGE for pages in (6, 1, 10, 17)]


def test_unmapping_in_the_middle_splits_a_region_and_mapping_there_joins_it_again():
    history = History()
    blocks = [map_bytes(history, 2 * PAGE) for _ in range(3)]
    history.free(blocks[1])
    calls, simulator = system_calls(history)
    assert calls[-1] == (MUNMAP, BASE - 4 * PAGE, 2 * PAGE)
    regions = simulator.stack.linux.regions[: simulator.stack.linux.space[0].regions]
    assert [tuple(region) for region in regions] == [
        (BASE - 2 * PAGE, BASE),
        (BASE - 6 * PAGE, BASE - 4 * PAGE),
    ]
    assert simulator.tally.resident_bytes == 4 * PAGE
    map_bytes(history, 2 * PAGE)
    calls, simulator = system_calls(history)
    assert calls[-1] == (MMAP, BASE - 4 * PAGE, 2 * PAGE)
    assert simulator.stack.linux.space[0].regions == 1


def test_whole_huge_pages_are_aligned_to_one():
    history = History()
    map_bytes(history, PAGE)
    map_bytes(history, HUGE)  # the hole's top is BASE - 4 KiB: [BASE - 4 MiB, BASE - 2 MiB)
    map_bytes(history, HUGE)  # right below, already aligned
    map_bytes(history, HUGE + PAGE)  # no whole number, and too large for the hole above
    map_bytes(history, 508 * PAGE)  # fits the hole between the page and the first huge page
    assert mapped_at(history) == [
        BASE - PAGE, BASE - 2 * HUGE, BASE - 3 * HUGE, BASE - 4 * HUGE - PAGE, BASE - 509 * PAGE
    ]  # fmt: skip


def test_an_aligned_mapping_needs_a_hole_with_room_for_the_padding():
    history = History()
    hole = map_bytes(history, 3 * MIB)  # [BASE - 3 MiB, BASE)
    map_bytes(history, PAGE)
    history.free(hole)
    map_bytes(history, HUGE)  # BASE - 2 MiB would do, but Linux looks for 4 MiB first
    assert mapped_at(history)[2] == BASE - 6 * MIB


def test_alignment_to_huge_pages_can_be_turned_off():
    history = History()
    map_bytes(history, PAGE)
    map_bytes(history, HUGE)
    config = load_config("cpython-3.12-malloc", [*MAPPING, "linux.huge_page_size=0"])
    assert mapped_at(history, config) == [BASE - PAGE, BASE - PAGE - HUGE]


def test_a_32_bit_process_gets_no_aligned_mappings():
    history = History()
    history.malloc(PAGE - 24, Domain.RAW)
    history.malloc(HUGE - 24, Domain.RAW)
    config = load_config("cpython-3.11-32bit", MAPPING[:2])
    assert mapped_at(history, config) == [0xF7FF0000, 0xF7DF0000]


def test_pages_of_another_size_are_counted_as_such():
    config = load_config("cpython-3.12-malloc", [*MAPPING, "linux.page_size=16 KiB"])
    history = History()
    map_bytes(history, PAGE * 2)
    calls, simulator = system_calls(history, config)
    assert calls == [(MMAP, BASE - 4 * PAGE, 4 * PAGE)]
    assert (simulator.tally.resident_bytes, simulator.tally.page_faults) == (4 * PAGE, 1)


def test_the_heap_grows_upwards_and_shrinks():
    brk_base = 0x555555560000
    config = load_config("cpython-3.12-malloc", ["domains.libc=bump", "bump.top_pad=0", f"linux.brk_base={brk_base}"])
    history = History()
    history.mallocs(2, PAGE)
    calls, simulator = system_calls(history, config)
    assert calls == [(BRK, brk_base + PAGE, PAGE), (BRK, brk_base + 2 * PAGE, PAGE)]
    ideal = load_config("ideal", [f"linux.brk_base={brk_base}"])
    history.free(1)
    calls, simulator = system_calls(history, ideal)
    assert calls == [
        (BRK, brk_base + PAGE, PAGE), (BRK, brk_base + 2 * PAGE, PAGE), (BRK, brk_base + PAGE, -PAGE)
    ]  # fmt: skip
    assert (simulator.tally.mapped_bytes, simulator.tally.resident_bytes) == (PAGE, PAGE)
    assert (simulator.tally.brk, simulator.tally.brk_bytes, simulator.tally.resident_bytes_peak) == (
        3,
        3 * PAGE,
        2 * PAGE,
    )


def test_a_page_that_is_mapped_again_faults_again():
    history = History()
    history.free(map_bytes(history, 8 * PAGE))
    map_bytes(history, 8 * PAGE)
    tally = system_calls(history)[1].tally
    assert (tally.page_faults, tally.resident_bytes, tally.resident_bytes_peak) == (16, 8 * PAGE, 8 * PAGE)
    assert (tally.mmap, tally.munmap, tally.mmap_bytes, tally.munmap_bytes) == (2, 1, 16 * PAGE, 8 * PAGE)


def test_thousands_of_regions_and_more_than_a_gibibyte_find_room():
    history = History()
    blocks = [map_bytes(history, (2 + row % 3) * PAGE) for row in range(6000)]
    history.free(*blocks[::2])
    large = [map_bytes(history, 600 * MIB + PAGE) for _ in range(4)]
    simulator = Simulator(CONFIG)
    events = history.events()
    play_rows(simulator, events, 0, events.rows)
    simulator.check()
    left_bytes = sum(2 + row % 3 for row in range(1, 6000, 2)) * PAGE
    assert (
        simulator.stack.linux.space[0].regions == 3000
    )  # the remaining ones are not adjacent; the large ones are adjacent to the last
    assert simulator.tally.mapped_bytes == left_bytes + len(large) * (600 * MIB + PAGE)
    assert simulator.tally.resident_bytes == simulator.tally.mapped_bytes


@pytest.mark.parametrize("size", [43 << 40, 1 << 47])
def test_a_block_larger_than_the_address_space_is_refused_with_its_row(size):
    history = History()
    history.malloc(100)
    history.malloc(size)
    with pytest.raises(TraceError, match=r"row 1: .*fit"):
        run(history.trace(), CONFIG)


def test_a_full_32_bit_address_space_is_refused_with_the_row_that_fills_it():
    history = History()
    history.mallocs(6, 512 * MIB, Domain.RAW)  # 2.5 GiB lie between the heap's start and the first mapping
    with pytest.raises(TraceError, match="row 5: "):
        run(history.trace(), load_config("cpython-3.11-32bit"))


def test_a_large_block_can_reuse_the_address_of_a_freed_one():
    history, config = History(), load_config("cpython-3.11-32bit", ["domains.libc=glibc"])
    for _ in range(3):
        history.free(history.malloc(1230 * MIB, Domain.RAW))  # two would not fit
    assert system_calls(history, config)[1].tally.munmap == 3


ALWAYS = load_config("cpython-3.12-malloc", (*MAPPING, "linux.transparent_huge_pages=always"))


def faults(history: History, config=ALWAYS) -> tuple[int, int, int]:
    """Returns page faults, page faults with a huge page, and resident bytes at the end."""
    tally = system_calls(history, config)[1].tally
    return tally.page_faults, tally.huge_pages, tally.resident_bytes


def test_only_aligned_huge_pages_inside_a_mapping_are_mapped_as_one():
    history = History()
    map_bytes(history, 2 * HUGE)  # [BASE - 4 MiB, BASE)
    assert faults(history) == (2, 2, 2 * HUGE)
    map_bytes(history, 3 * MIB)  # [BASE - 7 MiB, BASE - 4 MiB): its lower MiB is half a huge page
    assert faults(history) == (2 + 1 + 256, 3, 2 * HUGE + 3 * MIB)
    assert faults(history, CONFIG) == (7 * 256, 0, 7 * MIB)


def test_a_touched_block_makes_its_whole_huge_page_resident():
    history = History()
    history.malloc(100)
    overrides = ("glibc.version=2.43", "linux.transparent_huge_pages=always", f"linux.brk_base={BASE - (1 << 40)}")
    assert faults(history, load_config("cpython-3.12-malloc", overrides)) == (1, 0, PAGE)  # the heap is too short
    overrides += ("glibc.top_pad=2 MiB",)
    assert faults(history, load_config("cpython-3.12-malloc", overrides)) == (1, 1, HUGE)


def test_a_mapping_that_completes_a_huge_page_later_does_not_make_it_huge():
    history = History()
    for _ in range(4):
        map_bytes(history, MIB)
    assert faults(history) == (4 * 256, 0, 4 * MIB)


def test_with_madvise_there_are_no_huge_pages_without_a_request():
    history = History()
    map_bytes(history, 2 * HUGE)
    config = load_config("cpython-3.12-malloc", (*MAPPING, "linux.transparent_huge_pages=madvise"))
    assert faults(history, config) == (1024, 0, 2 * HUGE)


@pytest.mark.parametrize("name", ["cpython-2.7", "cpython-3.8", "cpython-3.12", "cpython-3.15-hugepages"])
def test_invariants_hold_with_huge_pages_under_every_allocator(name):
    config = load_config(name, ["linux.transparent_huge_pages=always", "glibc.top_pad=3 MiB"])
    history = History()
    blocks = [history.malloc(size, Domain.OBJ) for size in [100, 5 * MIB, 300, 512, 40 * 1024, 3 * MIB] * 30]
    for block in blocks[::3]:
        history.realloc(block, 3 * MIB)
    history.free(*blocks[::2], *blocks[1::2])
    tally = system_calls(history, config)[1].tally
    assert tally.huge_pages > 90
    assert tally.resident_bytes <= tally.mapped_bytes


class Space:
    """The address space without allocators; methods return the resident pages."""

    def __init__(self, transparent_huge_pages: str = "always") -> None:
        config = linux.Config(mmap_base=BASE, transparent_huge_pages=transparent_huge_pages)
        state = linux.new_state(config)
        self.stack = Stack(np.zeros(1, TALLY), np.zeros(64, LOG), np.zeros(1, np.int64), state, state, state)

    def do(self, operation, *arguments: int):
        answer = operation(self.stack, *arguments)
        linux.check(self.stack.linux, self.stack)
        return answer

    def touch(self, address: int) -> int:
        self.do(linux.touch, address, address + 1)
        return self.resident

    @property
    def resident(self) -> int:
        return int(self.stack.tally[0].resident_bytes) // PAGE


def test_a_huge_page_released_at_once_is_huge_again_and_one_released_in_parts_is_not():
    space = Space()
    start = space.do(linux.mmap, HUGE)
    assert space.touch(start) == 512
    space.do(linux.dontneed, start, PAGE)
    assert space.resident == 511
    space.do(linux.dontneed, start + PAGE, HUGE - PAGE)
    assert space.resident == 0
    assert space.touch(start) == 1
    space.do(linux.dontneed, start, HUGE)
    assert space.touch(start + 5 * PAGE) == 512


def test_a_page_table_is_freed_with_the_last_mapping_in_its_range():
    space = Space()
    start = space.do(linux.mmap, HUGE - PAGE)
    assert space.touch(start) == 1
    space.do(linux.munmap, start, HUGE - PAGE)
    space.do(linux.mmap, HUGE + MIB)
    assert space.touch(start) == 512
    space = Space()
    start = space.do(linux.mmap, HUGE)
    space.do(linux.munmap, start, MIB)
    assert space.touch(start + MIB) == 1
    space.do(linux.munmap, start + MIB, MIB - PAGE)  # the last page was never touched, but is mapped
    assert space.do(linux.mmap, HUGE - PAGE) == start
    assert space.touch(start) == 1


def test_mappings_that_were_touched_separately_are_not_merged():
    space = Space()
    upper = space.do(linux.mmap, HUGE + MIB)
    between = space.do(linux.mmap, PAGE)
    lower = space.do(linux.mmap, 4 * HUGE + MIB)
    space.do(linux.munmap, between, PAGE)
    assert space.touch(upper + MIB) == 512
    assert space.touch(lower + MIB - PAGE) == 1024
    assert space.do(linux.mmap, PAGE) == between
    assert space.touch(between) == 1025  # the range stays in two areas


def test_moving_by_whole_huge_pages_keeps_them_and_other_moves_do_not():
    space = Space()
    start = space.do(linux.mmap, HUGE)
    space.do(linux.mmap, PAGE)
    space.touch(start)
    moved = space.do(linux.mremap, start, HUGE, 2 * HUGE)
    assert moved % HUGE == 0
    assert (space.resident, space.touch(moved + HUGE)) == (512, 1024)
    odd = space.do(linux.mremap, moved, 2 * HUGE, 4 * HUGE + PAGE)
    assert odd % HUGE == HUGE - PAGE
    assert (space.resident, space.touch(odd + 3 * HUGE)) == (1024, 1536)
    assert space.touch(odd + 2 * HUGE) == 1537  # the pages before it were moved, with their page table
    assert space.stack.tally[0].huge_pages == 3


def test_a_heap_that_shrinks_into_a_huge_page_keeps_the_rest_of_it():
    space = Space()
    base = int(space.stack.linux.space[0].brk_base)
    start = (base + HUGE) & -HUGE
    space.do(linux.brk, start + 2 * HUGE)
    assert space.touch(start + HUGE) == 512
    space.do(linux.brk, start + HUGE + 64 * PAGE)
    assert space.resident == 64
    space.do(linux.brk, start + 2 * HUGE)
    assert space.touch(start + 2 * HUGE - 1) == 65
    space.do(linux.brk, start + HUGE)
    space.do(linux.brk, start + 2 * HUGE)
    assert space.touch(start + 2 * HUGE - 1) == 512


def test_madvise_splits_mappings_at_the_requested_range():
    space = Space("madvise")
    start = space.do(linux.mmap, 3 * HUGE)
    assert space.touch(start) == 1
    space.do(linux.advise_huge_pages, start + PAGE, 2 * HUGE - PAGE)
    assert space.touch(start + PAGE) == 2  # it has a page table already
    assert space.touch(start + HUGE) == 514
    assert space.touch(start + 2 * HUGE) == 515
    assert space.stack.linux.space[0].areas == 3


class Holes:
    """A reference model: a list of the free ranges below the base."""

    def __init__(self) -> None:
        self.free = [(0, BASE)]

    def map(self, length: int) -> int:
        padded = length + HUGE if length % HUGE == 0 else length
        low, high = max(hole for hole in self.free if hole[1] - hole[0] >= padded)
        start = high - length
        if length % HUGE == 0:
            start = start // HUGE * HUGE if (high - padded) % HUGE else start
        self.free.remove((low, high))
        self.free += [hole for hole in ((low, start), (start + length, high)) if hole[0] < hole[1]]
        return start

    def unmap(self, start: int, length: int) -> None:
        joined: list[tuple[int, int]] = []
        for low, high in sorted([*self.free, (start, start + length)]):
            if joined and joined[-1][1] == low:
                joined[-1] = (joined[-1][0], high)
            else:
                joined.append((low, high))
        self.free = joined


LENGTHS = st.sampled_from([PAGE, 2 * PAGE, 3 * PAGE, 500 * PAGE, HUGE, HUGE + PAGE, 2 * HUGE, 3 * HUGE - PAGE])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(st.booleans(), LENGTHS, st.integers(0, 63)), max_size=50))
def test_addresses_of_random_mappings_equal_those_of_a_list_of_holes(steps):
    history, holes = History(), Holes()
    live: list[tuple[int, int, int]] = []
    expected = []
    for is_map, length, which in steps:
        if is_map or not live:
            start = holes.map(length)
            live.append((map_bytes(history, length), start, length))
            expected.append((MMAP, start, length))
        else:
            number, start, length = live.pop(which % len(live))
            history.free(number)
            holes.unmap(start, length)
            expected.append((MUNMAP, start, length))
    calls, simulator = system_calls(history)
    assert calls == expected
    assert simulator.tally.resident_bytes == simulator.tally.mapped_bytes == sum(length for _, _, length in live)
