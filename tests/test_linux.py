"""The kernel model beside the Linux that runs the tests: the same calls, every address and every page compared."""

import errno
import random
from functools import partial
from pathlib import Path

import pytest
from address_spaces import (
    ARENAS,
    GIVE,
    HUGE,
    HUGE_PAGES,
    LENGTHS,
    MIB,
    NEEDS_LINUX,
    PAGE,
    PLACES,
    RESIZE,
    SMALL,
    UNMAP,
    Both,
    beside_each_other,
    compiled,
    needs_alignment,
    needs_huge_pages,
)
from conftest import reserved_pages_alone, skipped_where_disturbed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.allocators import linux
from replay.allocators.linux.areas import NO_RESERVE, WRITABLE
from replay.verification.huge_pages import free_huge_pages, without_surprises

pytestmark = NEEDS_LINUX


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return compiled(tmp_path_factory.mktemp("linux"))


@pytest.fixture
def start(program):
    return partial(beside_each_other, program)


def unmap_some(both: Both, blocks: list[tuple[int, int]], choice: random.Random) -> None:
    """A whole block as it was mapped, or any stretch of a region, whatever blocks it belongs to."""
    if blocks and choice.random() < 0.7:
        start, length = blocks.pop(choice.randrange(len(blocks)))
        if both.is_mapped(start, length):
            both.unmap(start, length)
    elif len(both.regions):
        start, end = (int(edge) for edge in choice.choice(both.regions.tolist()))
        pages = (end - start) // PAGE
        first = choice.choice([0, choice.randrange(pages)])
        count = choice.choice([pages - first, choice.randint(1, pages - first), 1])
        both.unmap(start + first * PAGE, count * PAGE)


def touch_some(both: Both, choice: random.Random) -> None:
    """Any bytes of a region, up to 1 MiB, not only whole pages."""
    if len(both.regions):
        start, end = choice.choice(both.regions.tolist())
        address = choice.randrange(start, end)
        both.touch(address, choice.randint(1, min(end - address, MIB)))


def move_brk_somewhere(both: Both, choice: random.Random) -> None:
    both.move_brk(both.heap + choice.choice([0, 1, 33, 66, 500, choice.randrange(2000)]) * PAGE)
    if both.brk > both.heap:
        address = choice.randrange(both.heap, both.brk)
        both.touch(address, choice.randint(1, both.brk - address))


@pytest.mark.parametrize("place", PLACES)
def test_mappings_of_all_sizes_come_and_go_as_in_linux(start, place):
    choice = random.Random(place)
    blocks: list[tuple[int, int]] = []
    with start(place) as both:
        for step in range(2500):
            what = choice.random()
            if what < 0.42:
                length = choice.choice(choice.choice([SMALL, LENGTHS]))
                blocks.append((both.map(length), length))
            elif what < 0.8:
                unmap_some(both, blocks, choice)
            elif what < 0.97:
                touch_some(both, choice)
            else:
                move_brk_somewhere(both, choice)
            if step % 25 == 0:
                both.compare_pages()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    place=st.sampled_from(PLACES),
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(LENGTHS), st.integers(0, 1 << 20), st.integers(0, 1 << 20)),
        max_size=40,
    ),
)
def test_any_short_sequence_of_calls_ends_as_in_linux(start, place, steps):
    with start(place) as both:
        for kind, length, which, how_many in steps:
            if kind < 2 or not len(both.regions):
                both.map(length)
                continue
            low, high = both.regions[which % len(both.regions)].tolist()
            first = which % ((high - low) // PAGE)
            stretch = (1 + how_many % ((high - low) // PAGE - first)) * PAGE
            if kind == 2:
                both.unmap(low + first * PAGE, stretch)
            else:
                both.touch(low + first * PAGE, min(stretch, MIB))


@pytest.mark.parametrize("arena", ARENAS)
@pytest.mark.parametrize("place", PLACES)
def test_hundreds_of_arenas_leave_holes_and_fill_them_as_in_linux(start, place, arena):
    choice = random.Random(arena + place)
    with start(place) as both:
        live = [both.map(arena) for _ in range(300)]
        for address in live[::7]:
            both.touch(address, 3 * PAGE)
        for _ in range(4):
            choice.shuffle(live)
            for _ in range(100):
                both.unmap(live.pop(), arena)
            both.compare_pages()
            live += [both.map(arena) for _ in range(60)]
            both.map(choice.choice([PAGE, 2 * arena, arena - PAGE, arena + PAGE]))
            live += [both.map(arena) for _ in range(30)]


def test_a_mapping_goes_to_the_highest_of_hundreds_of_holes_that_holds_it(start):
    choice = random.Random(1)
    with start(PAGE) as both:
        blocks = [(both.map(pages * PAGE), pages) for pages in choice.choices(range(1, 9), k=500)]
        for address, pages in blocks[::2]:
            both.unmap(address, pages * PAGE)
        assert len(both.regions) == 250
        for pages in choice.choices(range(1, 12), k=250):
            both.map(pages * PAGE)


def test_an_unmapping_may_span_mappings_that_lie_next_to_each_other(start):
    with start(0) as both:
        addresses = [both.map(pages * PAGE) for pages in (3, 4, 5)]  # [-3, 0) [-7, -3) [-12, -7)
        for address, pages in zip(addresses, (3, 4, 5), strict=True):
            both.touch(address, pages * PAGE)
        both.unmap(both.base - 9 * PAGE, 8 * PAGE)
        assert both.regions.tolist() == [(both.base - PAGE, both.base), (both.base - 12 * PAGE, both.base - 9 * PAGE)]
        assert both.stack.tally[0].resident_bytes == 4 * PAGE
        both.compare_pages()
        assert both.map(8 * PAGE) == both.base - 9 * PAGE
        assert both.map(PAGE) == both.base - 13 * PAGE


ALIGNED_KINDS = pytest.mark.parametrize("kind", [Both.map, Both.map_hugetlb], ids=["anonymous", "of huge pages"])


@needs_alignment
@ALIGNED_KINDS
def test_holes_that_aligned_mappings_just_fit_or_miss_are_as_in_linux(start, kind):
    for spare in (0, PAGE, HUGE - 2 * PAGE, HUGE - PAGE, HUGE, HUGE + PAGE):
        for hole in (HUGE + spare, 2 * HUGE + spare):
            for shift in (0, PAGE, MIB, MIB + PAGE, HUGE - PAGE):
                with start(0) as both:
                    around = hole + shift + (PAGE if (hole + shift) % HUGE != HUGE - PAGE else 2 * PAGE)
                    both.map(around)  # no whole huge pages: ends at the base
                    both.unmap(both.base - shift - hole, hole)
                    for length in (2 * HUGE, HUGE, HUGE, PAGE):
                        (kind if length >= HUGE else Both.map)(both, length)


@needs_alignment
@ALIGNED_KINDS
def test_the_hole_of_an_aligned_mapping_alone_is_too_small_for_the_same_again(start, kind):
    with start(0) as both:
        addresses = [kind(both, HUGE) for _ in range(4)]
        assert addresses == [both.base - count * HUGE for count in (1, 2, 3, 4)]
        both.unmap(addresses[1], HUGE)
        assert kind(both, HUGE) == both.base - 5 * HUGE
        both.unmap(addresses[2], HUGE)  # together with the first a hole of 4 MiB
        assert kind(both, HUGE) == addresses[1]


def test_the_heap_grows_shrinks_and_comes_back_empty_as_in_linux(start):
    with start(0) as both:
        both.move_brk(both.heap + 33 * PAGE)
        both.touch(both.heap + 1, 20 * PAGE)  # 21 pages
        both.compare_pages()
        both.move_brk(both.heap + 10 * PAGE)
        assert both.stack.tally[0].resident_bytes == 10 * PAGE
        both.compare_pages()
        both.move_brk(both.heap + 50 * PAGE)
        assert both.stack.tally[0].resident_bytes == 10 * PAGE
        both.compare_pages()
        both.move_brk(both.heap)
        both.move_brk(both.heap + 300 * MIB)
        both.touch(both.brk - PAGE, PAGE)


def test_pages_of_a_filled_hole_are_not_resident_until_touched_again(start):
    with start(0) as both:
        address = both.map(8 * PAGE)
        both.touch(address, 8 * PAGE)
        both.touch(address, 8 * PAGE)
        both.unmap(address + 2 * PAGE, 4 * PAGE)
        assert both.map(4 * PAGE) == address + 2 * PAGE
        assert both.stack.tally[0].resident_bytes == 4 * PAGE
        both.compare_pages()
        both.touch(address + 3 * PAGE - 1, 2)  # the last byte of one page and the first of the next
        assert both.stack.tally[0].resident_bytes == 6 * PAGE


CALLS = ("map", "map", "unmap", "unmap", *["touch"] * 4, "advise", "give", "resize", "break", "heap")


def part_of(run: tuple[int, int], choice: random.Random) -> tuple[int, int]:
    """Start and length of some of it, often cut at huge pages."""
    unit = choice.choice([PAGE, PAGE, MIB, HUGE])
    edges = [run[0], run[1], *(choice.randrange(run[0], run[1]) // unit * unit for _ in range(2))]
    start, end = sorted(min(max(edge, run[0]), run[1]) for edge in choice.sample(edges, 2))
    return start, max(end - start, PAGE) if start < run[1] else 0


def do_something(both: Both, heaps: list[list[int]], choice: random.Random) -> None:
    """One call, of those that move page tables, areas or pages."""
    what = choice.choice(CALLS)
    if what == "map":
        length = choice.choice([PAGE, 64 * PAGE, MIB, HUGE - PAGE, HUGE, HUGE + PAGE, 2 * HUGE, 5 * MIB, 3 * HUGE])
        start = both.map(length)
        if choice.random() < 0.8:
            both.advise(start, length)
        return
    if what == "break":
        old = both.brk
        both.move_brk(both.heap + choice.choice([0, PAGE, HUGE, choice.randrange(6 * HUGE) // PAGE * PAGE]))
        if both.brk > old and choice.random() < 0.8:
            both.advise(old, both.brk - old)
        return
    if what == "heap":
        grow_some_heap(both, heaps, choice)
        return
    in_heaps = what in ("touch", "advise", "give") and choice.random() < 0.3
    runs = both.runs(WRITABLE | NO_RESERVE if in_heaps else WRITABLE)
    if what in ("unmap", "resize"):
        runs = [run for run in runs if run[0] >= both.stack.linux.space[0].lowest]
    if not runs:
        return
    start, length = part_of(choice.choice(runs), choice)
    if not length:
        return
    if what == "touch":
        both.touch(start + choice.randrange(length), 1)
        if choice.random() < 0.3:
            both.touch(start, min(length, MIB))
    elif what == "resize":
        resize_some(both, choice)
    else:
        {"unmap": both.unmap, "advise": both.advise, "give": both.give}[what](start, length)


def resize_some(both: Both, choice: random.Random) -> None:
    """A stretch of one area, as mremap wants it."""
    state = both.stack.linux
    areas = [
        (int(area.start), int(area.end))
        for area in state.areas[: state.space[0].areas]
        if area.start >= state.space[0].lowest and not area.kind & NO_RESERVE
    ]
    start, length = part_of(choice.choice(areas), choice)
    new_length = choice.choice([PAGE, length + PAGE, length + HUGE, 2 * length, max(length // 2 // PAGE, 1) * PAGE])
    if length and new_length != length:
        both.resize(start, length, new_length)


def grow_some_heap(both: Both, heaps: list[list[int]], choice: random.Random) -> None:
    """As glibc's arenas: an aligned reserve of which more and more may be written to."""
    most = 8 * HUGE
    if heaps and choice.random() < 0.7:
        heap = choice.choice(heaps)
        length = min(choice.choice([PAGE, MIB, HUGE, 2 * HUGE]), heap[0] + most - heap[1])
        if length:
            both.protect(heap[1], length)
            heap[1] += length
            if choice.random() < 0.5:
                both.advise(heap[0], heap[1] - heap[0])
            both.touch(heap[1] - length, choice.choice([1, length]))
    elif heaps and choice.random() < 0.5:
        start, limit = heaps.pop(choice.randrange(len(heaps)))
        both.unmap_reserve(start, most, start + most - limit)
    else:
        begin = both.reserve(2 * most)
        start = (begin + most - 1) & -most
        if start > begin:
            both.unmap_reserve(begin, start - begin, start - begin)
        both.unmap_reserve(start + most, begin + most - start, begin + most - start)
        heaps.append([start, start])


@needs_huge_pages
@pytest.mark.parametrize("seed", range(12))
def test_huge_pages_come_and_go_as_in_linux(start, seed):
    def compare() -> None:
        choice = random.Random(seed)
        heaps: list[list[int]] = []
        with start(PLACES[seed % len(PLACES)], HUGE_PAGES) as both:
            for _ in range(500):
                do_something(both, heaps, choice)
                both.compare_pages()
            assert both.stack.tally[0].huge_pages > 5

    with skipped_where_disturbed():
        without_surprises(compare)


def whole(length: int) -> int:
    """In whole huge pages."""
    return (length + HUGE - 1) // HUGE * HUGE


def do_something_reserved(both: Both, blocks: list[tuple[int, int]], choice: random.Random) -> None:
    """One order on `blocks` of reserved huge pages, addresses and lengths; some of the orders are refused."""
    pages = choice.choice([1, 200, 256, 512, 513, 1024, 1500])
    if not blocks or choice.random() < 0.3:
        length = pages * PAGE
        if choice.random() < 0.2:
            both.map(length)
        elif (address := both.map_reserved(length)) >= 0:
            blocks.append((address, whole(length)))
        return
    address, length = blocks.pop(choice.randrange(len(blocks)))
    action = choice.randrange(4)
    if action == 0:
        start = choice.randrange(address, address + length)
        both.touch(start, min(choice.randint(1, HUGE + MIB), address + length - start))
    elif action == 1:
        start = choice.choice([address, address + choice.randrange(length // PAGE) * PAGE])
        part = min(pages * PAGE, address + length - start)
        both._model(linux.dontneed, start, part)
        assert both.linux.order(GIVE, start, part) == (-errno.EINVAL if start % HUGE else 0)
    elif action == 2:
        part = min(pages * PAGE, length)
        both._model(linux.munmap, address, part)
        assert both.linux.order(UNMAP, address, part) == (-errno.EINVAL if part % HUGE else 0)
        if part % HUGE == 0:
            address, length = address + part, length - part
    else:
        new_length = pages * PAGE
        moved = int(both._model(linux.mremap, address, length, new_length))
        assert both.linux.order_with(RESIZE, address, length, new_length) == (moved if moved >= 0 else -errno.EINVAL)
        assert (moved < 0) == (whole(new_length) > length)
        length = min(length, whole(new_length))
    if length:
        blocks.append((address, length))


@pytest.mark.skipif(free_huge_pages() < 4, reason="no huge pages are reserved: sysctl vm.nr_hugepages")
@pytest.mark.parametrize("seed", range(6))
def test_reserved_huge_pages_run_out_come_back_and_go_as_a_whole_only(start, seed):
    choice = random.Random(seed)
    with reserved_pages_alone(), start(choice.choice(PLACES), reserved=free_huge_pages()) as both:
        blocks: list[tuple[int, int]] = []
        for _ in range(300):
            do_something_reserved(both, blocks, choice)
            both.compare_pages()
