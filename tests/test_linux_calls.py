"""System calls that allocators of other kinds make, in the model and in the Linux that runs the tests.

Mappings at hints and over others, memory committed and decommitted, lazily freed pages, holes in what is unmapped.
"""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from address_spaces import (
    HUGE,
    HUGE_PAGES,
    MIB,
    NEEDS_LINUX,
    PAGE,
    PLACES,
    Both,
    beside_each_other,
    compiled,
    needs_huge_pages,
)
from compiled_linux import call
from conftest import skipped_where_disturbed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.allocators.linux import FIXED, NO_ACCESS, NO_REPLACE, NOT_RESERVED
from replay.allocators.linux.areas import WRITABLE
from replay.verification.huge_pages import without_surprises

pytestmark = NEEDS_LINUX
GIB, TIB = 1 << 30, 1 << 40
FLAGS = (0, NO_ACCESS, NOT_RESERVED, NO_ACCESS | NOT_RESERVED)
SIZES = (PAGE, 3 * PAGE, 64 * PAGE, MIB, HUGE - PAGE, HUGE, HUGE + PAGE, 2 * HUGE, 5 * MIB, 3 * HUGE)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return compiled(tmp_path_factory.mktemp("linux"))


@pytest.fixture
def start(program):
    return partial(beside_each_other, program)


class Choices:
    """Numbers that decide what is done: the next one of a list, or any."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers

    def below(self, count: int) -> int:
        return next(self._numbers, 0) % count

    def of(self, sequence):
        return sequence[self.below(len(sequence))]


def drawn(seed: int) -> Choices:
    choice = random.Random(seed)
    return Choices(iter(lambda: choice.randrange(1 << 40), None))


def any_part(stretch: tuple[int, int], choices: Choices) -> tuple[int, int]:
    """Start and length of some of a stretch, in pages, often cut at huge pages."""
    start, end = stretch
    unit = choices.of([PAGE, PAGE, MIB, HUGE])
    first, last = sorted(start + choices.below(end - start) // unit * unit for _ in range(2))
    first = choices.of([start, first, -(-first // HUGE) * HUGE if -(-first // HUGE) * HUGE < end else first])
    last = choices.of([end, max(last, first + PAGE), first + PAGE])
    return first, max(min(last, end) - first, PAGE)


def open_stretches(both: Both) -> list[tuple[int, int]]:
    """What may be touched of the mappings and the heap."""
    reserves = sorted(map(tuple, both.stack.linux.reserves[: both.stack.linux.space[0].reserves].tolist()))
    found = [(both.heap, both.brk)] if both.brk > both.heap else []
    for start, end in both.regions.tolist():
        for closed, opened in reserves:
            if start <= closed < end:
                found.append((start, closed))
                start = opened
        found.append((start, end))
    return [(start, end) for start, end in found if start < end]


def any_hint(both: Both, choices: Choices) -> int:
    """An address near or in other mappings, far below them, or one at which nothing can be mapped."""
    regions = [tuple(region) for region in both.regions.tolist()] or [(both.base - MIB, both.base)]
    start, end = choices.of(regions)
    near = [
        start - choices.below(8 * HUGE) // PAGE * PAGE,
        end,
        start + choices.below(end - start),
        end + HUGE,
        start - HUGE,
    ]
    far = [2 * TIB + choices.below(64) * MIB, 30 * TIB + choices.below(4) * 256 * MIB - PAGE, both.base - 60 * GIB]
    far += [both.heap - 3 * GIB, both.heap + GIB]  # the program itself is up to 1 GiB below its heap
    odd = [1, PAGE, 5 * PAGE + 7, both.base - PAGE, both.base, both.base + 5 * PAGE, (1 << 47) - PAGE, 1 << 47, 1 << 50]
    return choices.of([*near, *near, *far, choices.of(odd)])


def map_somewhere(both: Both, choices: Choices) -> None:
    """A mapping at a hint, over others or without either; huge pages may often be in it."""
    length, flags, hint = choices.of(SIZES), choices.of(FLAGS), any_hint(both, choices)
    match choices.below(7):
        case 0:
            hint = 0
        case 6 if hint < both.base:
            alignment = choices.of([64 * PAGE, MIB, 2 * HUGE])
            padding = alignment - choices.of([0, PAGE])
            both.map_aligned(choices.of([0, hint]), -(-length // PAGE) * PAGE, alignment, padding, flags)
            return
        case 1 | 2 | 3:
            length -= choices.of([0, 0, 1, PAGE - 1])
        case 4:
            hint = (both.base - 9 * HUGE if hint < MIB or hint >= both.base else hint) & -PAGE
            length, flags = min(length, both.base - hint), flags | NO_REPLACE
        case _ if len(both.regions):
            (hint, length), flags = any_part(tuple(choices.of(both.regions.tolist())), choices), flags | FIXED
    address = both.map_at(hint, length, flags)
    if address >= 0 and choices.below(4):
        both.advise(address, length)


def change_something(both: Both, choices: Choices) -> None:
    """One call on a part of what is mapped, or across holes."""
    regions = [tuple(region) for region in both.regions.tolist()]
    match choices.below(12):
        case 0 if len(regions) > 1:
            first, second = sorted([choices.of(regions), choices.of(regions)])
            start, end = first[0] + (first[1] - first[0]) // PAGE // 2 * PAGE, second[1]
            if end - start < 1 << 32 and not start < both.heap < end:
                both.unmap(start, end - start)
        case 0 | 1:
            both.unmap(*any_part(choices.of(regions), choices))
        case 2 | 3:
            both.protect(*any_part(choices.of(regions), choices))
        case 4 | 5:
            both.unprotect(*any_part(choices.of(regions), choices))
        case 6:
            both.give(*any_part(choices.of(regions), choices))
        case 7:
            both.free(*any_part(choices.of(regions), choices))
        case 8:
            both.advise_small(*any_part(choices.of(regions), choices))
        case 9:
            both.advise(*any_part(choices.of(regions), choices))
        case 10:
            resize_something(both, choices)
        case _:
            touch_something(both, choices)


def resize_something(both: Both, choices: Choices) -> None:
    """Part of one area of memory; which areas there are is known only where huge pages may be."""
    state = both.stack.linux
    areas = [
        (int(area.start), int(area.end))
        for area in state.areas[: state.space[0].areas]
        if area.kind & WRITABLE and not both.heap <= area.start < both.brk
    ]
    if areas:
        start, length = any_part(choices.of(areas), choices)
        new_length = choices.of([PAGE, length + PAGE, length + HUGE, 2 * length, max(length // 2 // PAGE, 1) * PAGE])
        if new_length != length:
            both.resize(start, length, new_length)


def touch_something(both: Both, choices: Choices) -> None:
    if stretches := open_stretches(both):
        start, length = any_part(choices.of(stretches), choices)
        both.touch(start + choices.below(length), 1)
        both.touch(start, min(length, choices.of([1, PAGE, MIB])))


def do_something(both: Both, choices: Choices) -> None:
    what = choices.below(20)
    if what == 0:
        both.move_brk(both.heap + choices.of([0, PAGE, HUGE, choices.below(6 * HUGE) // PAGE * PAGE]))
    elif what < 6 or not len(both.regions):
        map_somewhere(both, choices)
    elif what < 10:
        touch_something(both, choices)
    else:
        change_something(both, choices)


@pytest.mark.parametrize("seed", range(8))
def test_memory_is_mapped_committed_freed_and_unmapped_as_in_linux(start, seed):
    choices = drawn(seed)
    with start(PLACES[seed % len(PLACES)]) as both:
        for step in range(600):
            do_something(both, choices)
            if step % 10 == 0:
                both.compare_pages()
                both.compare_lazy()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(PLACES), numbers=st.lists(st.integers(0, 1 << 20), max_size=200))
def test_any_short_history_ends_as_in_linux(start, place, numbers):
    with start(place) as both:
        left = iter(numbers)
        while left.__length_hint__():
            do_something(both, Choices(left))
        both.compare_lazy()


@needs_huge_pages
@pytest.mark.parametrize("seed", range(12))
def test_huge_pages_are_as_in_linux_when_memory_is_committed_and_freed(start, seed):
    # Lazily freed bytes are not compared: a page that mremap moved out of a huge page is unknown to be part of it.
    def compare() -> None:
        choices = drawn(seed)
        with start(PLACES[seed % len(PLACES)], HUGE_PAGES) as both:
            begin = both.map(8 * HUGE)
            both.advise(begin, 8 * HUGE)
            both.touch(begin, 8 * HUGE)
            for _ in range(250):
                do_something(both, choices)
                both.compare_pages()
            assert both.stack.tally[0].huge_pages > 3

    with skipped_where_disturbed():
        without_surprises(compare)


@pytest.mark.parametrize("mode", ["never", pytest.param(HUGE_PAGES, marks=needs_huge_pages)])
def test_the_compiled_model_is_as_linux_too(start, mode):
    def compare() -> None:
        choices = drawn(17)
        with start(PAGE, mode) as both:
            both.call = call
            for step in range(600):
                do_something(both, choices)
                if step % 10 == 0:
                    both.compare_pages()
                    both.compare_lazy()

    with skipped_where_disturbed():
        without_surprises(compare)
