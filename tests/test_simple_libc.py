"""The simple libc's numbers, worked out from glibc's constants."""

import pytest
from histories import History, played

from replay.config import load_config
from replay.trace import Domain, Op

BRK_BASE, MMAP_BASE = 0x555555560000, 0x7FFFF7FF1000
PAGE, KIB = 4096, 1024
CONFIG = load_config("cpython-3.12-malloc", ["libc.model=simple"])


@pytest.mark.parametrize(
    ("size", "chunk"),
    [(0, 32), (1, 32), (24, 32), (25, 48), (40, 48), (41, 64), (1000, 1008), (1016, 1024), (1017, 1152)],
)
def test_a_chunk_is_the_request_a_word_and_whole_16_bytes(size, chunk):
    history = History()
    history.mallocs(2, size, Domain.RAW)
    player, addresses = played(history, CONFIG)
    assert addresses.tolist() == [BRK_BASE + 16, BRK_BASE + 16 + chunk]
    assert player.tally.block_bytes == 2 * chunk


def test_the_heap_grows_by_the_request_and_top_pad_in_whole_pages():
    history = History()
    history.malloc(1000)
    tally = played(history, CONFIG)[0].tally
    # 1,008 and 131,072 and four words of top: 33 pages
    assert (tally.brk, tally.brk_bytes, tally.heap_bytes, tally.resident_bytes) == (
        1,
        33 * PAGE,
        33 * PAGE,
        PAGE,
    )


def test_a_freed_chunk_is_handed_out_again_last_freed_first():
    history = History()
    first, second, _ = history.mallocs(3, 100)
    history.free(first, second)
    history.mallocs(2, 90)
    addresses = played(history, CONFIG)[1].tolist()
    assert addresses[5:] == [addresses[1], addresses[0]]


def test_a_block_of_the_mmap_threshold_is_mapped_alone_and_raises_the_threshold_when_freed():
    history = History()
    history.free(history.malloc(128 * KIB - 8))  # a chunk of 128 KiB: the smallest that is mapped
    history.malloc(128 * KIB - 8)
    player, addresses = played(history, CONFIG)
    assert addresses.tolist() == [MMAP_BASE - 33 * PAGE + 16, 0, BRK_BASE + 16]
    heap = player.stack.libc.heap[0]
    assert (heap.mmap_threshold, heap.trim_threshold) == (33 * PAGE, 66 * PAGE)
    assert (player.tally.mmap, player.tally.munmap, player.tally.brk) == (1, 1, 1)


def test_a_fixed_mmap_threshold_stays():
    history = History()
    history.free(history.malloc(200_000))
    history.malloc(200_000)
    fixed = load_config("cpython-3.12-malloc", ["libc.model=simple", "libc.mmap_threshold=128 KiB"])
    assert played(history, fixed)[0].tally.mmap == 2


def test_a_block_below_the_threshold_comes_from_the_heap():
    history = History()
    history.malloc(128 * KIB - 24)
    tally = played(history, CONFIG)[0].tally
    assert (tally.mmap, tally.brk) == (0, 1)


def test_a_large_top_is_trimmed_to_its_pad():
    history = History()
    history.free(*history.mallocs(4, 100_000)[::-1])
    tally = played(history, CONFIG)[0].tally
    # 100,000 bytes make a chunk of 106,496 (eighths of 65,536); top_pad and four words are kept: 33 pages,
    # of which only the last page of the first chunk, its padding, was never written to
    assert (tally.heap_bytes, tally.resident_bytes, tally.block_bytes_peak) == (
        33 * PAGE,
        32 * PAGE,
        4 * 106_496,
    )


def test_realloc_stays_while_the_chunk_holds_it_and_is_not_twice_too_large():
    history = History()
    number = history.malloc(1000)
    history.malloc(8)
    for size in (1000, 489, 488):
        history.realloc(number, size)
    addresses = played(history, CONFIG)[1].tolist()
    assert addresses[2:4] == [addresses[0], addresses[0]]  # chunks of 1,008 and 512 bytes: not twice
    assert addresses[4] == addresses[1] + 32  # a chunk of 496 bytes would have stayed in one of 992


def test_calloc_and_malloc_take_the_same_place():
    history = History()
    history.malloc(50, Domain.RAW, Op.CALLOC)
    history.malloc(50, Domain.RAW)
    assert played(history, CONFIG)[1].tolist() == [BRK_BASE + 16, BRK_BASE + 16 + 64]
