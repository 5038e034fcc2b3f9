"""glibc's settings: environment variables, refused values, and effects that are computed by hand."""

import numpy as np
import pytest
from histories import History, single_steps
from typer.testing import CliRunner

from replay.__main__ import app
from replay.allocators import SYSCALLS
from replay.allocators.glibc import RULES
from replay.config import load_config
from replay.config.glibc_environment import overrides_of
from replay.simulation.run import run
from replay.simulation.simulator import Simulator
from replay.support.errors import ConfigError
from replay.trace import TRIM_MARK, MemoryTrace, Metadata

KIB, MIB, PAGE = 1 << 10, 1 << 20, 4096
HUGE = 2 * MIB
HEAP, BASE = 0x555555560000, 0x7FFFF7FF1000
BELOW = 0x7FFFF7C00000
"""The highest address below BASE for a huge page, except the incomplete one directly below BASE."""
of_huge_pages = pytest.mark.parametrize("version", [version for version in RULES if RULES[version].has_hugetlb])


def config(version, *overrides):
    return load_config(f"cpython-3.12-malloc-glibc-{version}", overrides)


def play(history, version, *overrides):
    """Returns addresses of blocks (0 for a free), and the simulator; checks after every event."""
    parts: list[np.ndarray] = []
    simulator = Simulator(config(version, *overrides), addresses=lambda part, owners: parts.append(part))
    for _ in single_steps(simulator, history.events()):
        simulator.check()
    return np.concatenate(parts).tolist(), simulator


def calls(history, version, *overrides):
    """(name, address, bytes) of each system call."""
    logged: list[np.ndarray] = []
    run(history.trace(), config(version, *overrides), log=logged.append)
    return [(SYSCALLS[kind], address, length) for part in logged for _, kind, address, length in part.tolist()]


@pytest.mark.parametrize(
    ("assignments", "overrides"),
    [
        (["MALLOC_TRIM_THRESHOLD_=-1"], ["glibc.trim_threshold=9223372036854775807"]),
        (["MALLOC_MMAP_THRESHOLD_=18446744073709551615"], ["glibc.mmap_threshold=9223372036854775807"]),
        (["MALLOC_ARENA_MAX=-1"], ["glibc.arena_max=2147483647"]),
        (["MALLOC_TOP_PAD_= \t+010"], ["glibc.top_pad=8"]),
        (["MALLOC_TOP_PAD_=0XfF"], ["glibc.top_pad=255"]),
        (["MALLOC_PERTURB_=255", "MALLOC_CHECK_=3"], ["glibc.perturb=255", "glibc.check=3"]),
        (["GLIBC_TUNABLES=glibc.malloc.hugetlb=0x200000"], ["glibc.hugetlb=2097152"]),
        (["GLIBC_TUNABLES=glibc.malloc.top_pad=1::glibc.malloc.top_pad=2"], ["glibc.top_pad=2"]),
        (["GLIBC_TUNABLES=glibc.malloc.top_pad=1", "GLIBC_TUNABLES=glibc.malloc.mxfast=0"], ["glibc.mxfast=0"]),
        (["GLIBC_TUNABLES=glibc.malloc.top_pad=1", "MALLOC_TOP_PAD_=2"], ["glibc.top_pad=1"]),
        (["GLIBC_TUNABLES="], []),
    ],
)
def test_numbers_and_lists_are_read_as_the_loader_reads_them(assignments, overrides):
    assert overrides_of(assignments) == overrides


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("MALLOC_PERTURB_=256", "'256' is not an integer from 0 to 255"),
        ("MALLOC_CHECK_=-1", "'-1' is not an integer from 0 to 3"),
        ("MALLOC_MMAP_MAX_=2147483648", "'2147483648' is not an integer from 0 to 2147483647"),
        ("MALLOC_TOP_PAD_=64k", "'64k' is not an integer of at least 0"),
        ("MALLOC_TOP_PAD_=08", "'08' is not an integer of at least 0"),
        ("MALLOC_TOP_PAD_=1_000", "'1_000' is not an integer of at least 0"),
        ("MALLOC_TOP_PAD_=0b1", "'0b1' is not an integer of at least 0"),
        ("MALLOC_TOP_PAD_=1 ", "'1 ' is not an integer of at least 0"),
        ("MALLOC_TOP_PAD_=18446744073709551616", "'18446744073709551616' is not an integer of at least 0"),
        ("MALLOC_TOP_PAD_=", "'' is not an integer of at least 0"),
        ("GLIBC_TUNABLES=glibc.malloc.top_pad=1=2", "'1=2' is not an integer of at least 0"),
        ("GLIBC_TUNABLES=glibc.malloc.top_pad", "'' is not an integer of at least 0"),
        (
            "GLIBC_TUNABLES=glibc.malloc.top_pad=1:",
            "ends with a colon; glibc 2.39 and later then ignore the whole variable",
        ),
    ],
)
def test_settings_that_a_glibc_ignores_or_reads_in_part_are_refused(assignment, sentence):
    with pytest.raises(ConfigError) as refusal:
        overrides_of([assignment])
    assert str(refusal.value) == f"--env {assignment}: {sentence}"


@pytest.mark.parametrize(
    ("version", "override", "sentence"),
    [
        ("2.36", "glibc.mxfast=161", "mxfast: 161 is more than 160, and glibc 2.36 ignores that"),
        ("2.31", "glibc.mmap_threshold=33554433", "33554433 is more than 33554432, and glibc 2.31 ignores that"),
        ("2.43", "glibc.tcache_max=4194281", "tcache_max: 4194281 is more than 4194280, and glibc 2.43 ignores that"),
        ("2.36", "glibc.tcache_count=65536", "should be less than or equal to 65535"),
        ("2.31", "glibc.hugetlb=2", "hugetlb: glibc 2.31 has no such tunable; it came with 2.35"),
        ("2.36", "glibc.perturb=256", "should be less than or equal to 255"),
        ("2.36", "glibc.check=4", "should be less than or equal to 3"),
    ],
)
def test_settings_that_this_glibc_ignores_are_refused(version, override, sentence):
    with pytest.raises(ConfigError) as refusal:
        config(version, override)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("version", "override", "notes"),
    [
        ("2.31", "glibc.check=1", []),
        ("2.36", "glibc.check=1", ["check: glibc 2.36 checks nothing unless libc_malloc_debug.so is preloaded"]),
        ("2.43", "glibc.mxfast=500", ["mxfast: glibc 2.43 has no fastbins"]),
        ("2.41", "glibc.tcache_max=1032", []),
        ("2.41", "glibc.tcache_max=1033", ["tcache_max: the cache of glibc 2.41 serves up to 1032 bytes"]),
        ("2.43", "glibc.tcache_max=1033", []),
    ],
)
def test_settings_with_no_or_less_effect_have_a_note(version, override, notes):
    assert config(version, override).libc.notes == notes


def test_a_note_is_printed_before_the_run():
    arguments = ["run", "startup-static", "-a", "cpython-3.12-glibc-2.36", "--env", "MALLOC_CHECK_=3", "--no-reference"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "note: check: glibc 2.36 checks nothing unless libc_malloc_debug.so is preloaded" in result.stderr


@pytest.mark.parametrize("version", RULES)
def test_perturbing_the_remainder_of_a_realloc_makes_it_resident(version):
    history = History()
    grown = history.malloc(2000)
    hole = history.malloc(30 * PAGE)
    history.malloc(16)
    history.free(hole)
    history.mark(0)
    history.realloc(grown, 10 * PAGE)
    events = history.events()
    ends = [
        run(MemoryTrace([events], Metadata(phases=(TRIM_MARK,))), config(version, f"glibc.perturb={byte}")).end
        for byte in (0, 1, 255)
    ]
    # Of the hole, malloc_trim gave back pages 1 to 29 of the heap; the block ends in page 10, and so does the header of
    # what is left, of which perturbing writes over all the rest.
    assert ends[1] == ends[2]
    assert ends[1].resident_bytes - ends[0].resident_bytes == 19 * PAGE
    assert ends[1].page_faults - ends[0].page_faults == 19


def test_check_requests_one_byte_more_and_has_no_tcache():
    history = History()
    blocks = [history.malloc(size) for size in (23, 24, 8)]
    history.free(*blocks[:2])
    history.malloc(23)
    # Chunks of 32, 48 and 32 bytes from the heap's start on; fastbins hold one size each.
    addresses = play(history, "2.31", "glibc.check=1")[0]
    assert [address - HEAP for address in addresses if address] == [16, 48, 96, 16]


def test_under_check_freed_mappings_raise_no_threshold_and_threads_share_the_heap():
    history = History()
    history.malloc(8)
    for _ in range(2):
        history.free(history.malloc(200 * KIB))
    history.by(1).malloc(8)
    length = 201 * KIB // PAGE * PAGE + PAGE
    assert calls(history, "2.31", "glibc.check=2") == [
        ("brk", HEAP + 33 * PAGE, 33 * PAGE),
        *2 * [("mmap", BASE - length, length), ("munmap", BASE - length, length)],
    ]


def test_check_marks_the_last_page_of_a_mapping():
    history = History()
    history.malloc(8)
    history.malloc(50 * PAGE - 32)
    history.malloc(51 * PAGE - 24)  # with the byte more, of 52 pages
    ends = [run(history.trace(), config("2.31", f"glibc.check={check}")).end.resident_bytes for check in (0, 1)]
    assert ends[0] == ends[1] - PAGE


@of_huge_pages
def test_without_reserved_huge_pages_the_main_heap_is_still_mapped(version):
    history = History()
    history.mallocs(60, 30_000)
    least = MIB if version != "2.36" else 160 * KIB
    made = calls(history, version, "glibc.hugetlb=2")
    # Each time, huge pages are requested first; the first mapping has 1 MiB.
    assert made[:2] == [("mmap", -1, HUGE), ("mmap", BASE - MIB, MIB)]
    assert [name for name, _, _ in made] == ["mmap"] * len(made)
    assert {address for _, address, _ in made[::2]} == {-1}
    ends = [BASE, *(address for _, address, _ in made[1::2])]
    assert all(end - address == length for end, (_, address, length) in zip(ends, made[1::2], strict=False))
    # What 30,000 bytes, top_pad and a smallest chunk take, in pages; but from 2.41 on no less than a MiB.
    assert {length for _, _, length in made[3::2]} == {least if version != "2.36" else 40 * PAGE}


@of_huge_pages
def test_reserved_huge_pages_are_used_up_and_returned(version):
    history = History()
    history.malloc(24)
    first = history.malloc(4 * MIB)
    history.malloc(5 * MIB)
    history.free(first)
    history.malloc(3 * MIB)
    # One for the heap, three for the first block with its header, and none for the second; then two of three again.
    small = 5 * MIB + PAGE
    assert calls(history, version, "glibc.hugetlb=2", "linux.reserved_huge_pages=4") == [
        ("mmap", BELOW, HUGE),
        ("mmap", BELOW - 3 * HUGE, 3 * HUGE),
        ("mmap", -1, 3 * HUGE),
        ("mmap", BELOW - 3 * HUGE - small, small),
        ("munmap", BELOW - 3 * HUGE, 3 * HUGE),
        # In 2.36 the threshold is higher, and the heap is not requested in whole huge pages.
        ("mmap", BELOW - 2 * HUGE, 3 * MIB + 33 * PAGE if version == "2.36" else 2 * HUGE),
    ]
    end = play(history, version, "glibc.hugetlb=2", "linux.reserved_huge_pages=4")[1].tally
    # All that a block touches is one huge page after the other; the one without takes its pages singly.
    assert end.resident_bytes == 3 * HUGE + small
    assert (end.huge_pages, end.page_faults) == (6, 6 + small // PAGE)


@pytest.mark.parametrize(
    ("version", "length"), [("2.36", 3 * MIB + PAGE), ("2.41", 3 * MIB + PAGE), ("2.43", 2 * HUGE)]
)
def test_part_of_a_huge_page_cannot_go(version, length):
    history = History()
    block = history.malloc(7 * MIB)
    history.realloc(block, 3 * MIB)
    history.free(block)
    made = calls(history, version, "glibc.hugetlb=2", "linux.reserved_huge_pages=9")
    # Up to 2.41 the mapping shrinks by small pages, and cannot be unmapped with an end in the middle of a huge one.
    assert made[-2:] == [("mremap", made[-1][1], length), ("munmap", made[-1][1], length)]
    end = run(history.trace(), config(version, "glibc.hugetlb=2", "linux.reserved_huge_pages=9")).end
    # There it stays, beside the heap of a huge page that the cache lies in; 2.43 has neither.
    assert end.mapped_bytes == (0 if version == "2.43" else 3 * HUGE)


@of_huge_pages
def test_a_mapping_of_huge_pages_does_not_grow_but_moves_by_hand(version):
    history = History()
    block = history.malloc(3 * MIB)
    history.realloc(block, 5 * MIB)
    names = [
        (name, address < 0)
        for name, address, _ in calls(history, version, "glibc.hugetlb=2", "linux.reserved_huge_pages=9")
    ]
    assert names[-4:] == [("mmap", False), ("mremap", True), ("mmap", False), ("munmap", False)]


@of_huge_pages
def test_a_size_that_the_kernel_does_not_have_changes_nothing(version):
    history = History()
    history.mallocs(20, 30_000)
    plain = calls(history, version)
    assert calls(history, version, "glibc.hugetlb=1 MiB", "linux.reserved_huge_pages=9") == plain
    assert calls(history, version, "glibc.hugetlb=2", "linux.huge_page_size=0") == plain
    assert calls(history, version, "glibc.hugetlb=2 MiB") == calls(history, version, "glibc.hugetlb=2") != plain
