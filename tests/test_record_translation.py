"""Translation of the ring's records to events: rare cases, and cases of several threads."""

import numpy as np
import pytest

from replay.recorder import tap
from replay.recorder.growing_file import GrowingFile
from replay.recorder.growing_file import rescue as rescue_open
from replay.recorder.notes import SiteTable
from replay.recorder.translation import Clock, Translator, count_published
from replay.sources import open_source
from replay.support.errors import TraceError
from replay.trace import NO_SITE, Events, Metadata, Op, Provenance, Site
from replay.trace.validation import Validator

A, B, C = 0x7F0000001000, 0x7F0000002000, 0x7F0000003000
MALLOC, FREE, FROM, TO, FAILED = tap.MALLOC, tap.FREE, tap.REALLOC_FROM, tap.REALLOC_TO, tap.REALLOC_FAILED


def ring_of(*records: tuple[int, int, int, int]) -> np.ndarray:
    """Returns a ring that begins with these records: kind, address, size, thread."""
    ring = np.zeros((1 << tap.RING_BITS, 4), np.uint64)
    for number, (kind, address, size, thread) in enumerate(records):
        lap, domain = 1 << (64 - tap.LAP_BITS), tap.OBJ << (tap.SIZE_BITS + tap.OP_BITS)
        ring[number] = lap | domain | kind << tap.SIZE_BITS | size, number, thread, address
    return ring.view(np.int64)


def translated(
    *records: tuple[int, int, int, int], excluded: tuple[int, ...] = ()
) -> tuple[list[tuple[str, int, int, int]], Translator]:
    """Op, thread, block and size of each row, which keep the contract of a trace."""
    translator = Translator(Clock(False), 1 << 12, excluded=excluded)
    assert translator.translate(ring_of(*records), 0, len(records)) == len(records)
    batch: Events = translator.batch()
    Validator().check(batch)
    columns = zip(batch.op, batch.thread, batch.block, batch.size, strict=True)
    return [
        (Op(op).name.lower(), int(thread), int(block), int(size)) for op, thread, block, size in columns
    ], translator


def test_a_realloc_is_one_row_and_keeps_its_number():
    rows, _ = translated((MALLOC, A, 10, 7), (FROM, A, 0, 7), (TO, B, 20, 7), (FREE, B, 0, 7))
    assert rows == [("malloc", 0, 0, 10), ("realloc", 0, 0, 20), ("free", 0, 0, 0)]


def test_between_the_halves_of_a_realloc_others_may_take_the_old_address():
    rows, _ = translated(
        (MALLOC, A, 10, 7), (FROM, A, 0, 7), (MALLOC, A, 11, 8), (TO, B, 20, 7), (FREE, A, 0, 8), (FREE, B, 0, 7)
    )
    assert rows == [
        ("malloc", 0, 0, 10),
        ("malloc", 1, 1, 11),
        ("realloc", 0, 0, 20),
        ("free", 1, 1, 0),
        ("free", 0, 0, 0),
    ]


def test_two_threads_realloc_at_once_and_change_places():
    rows, _ = translated(
        (MALLOC, A, 10, 7), (MALLOC, B, 11, 8), (FROM, A, 0, 7), (FROM, B, 0, 8), (TO, B, 20, 7), (TO, A, 21, 8)
    )
    assert rows[2:] == [("realloc", 0, 0, 20), ("realloc", 1, 1, 21)]


def test_a_failed_realloc_leaves_the_block_where_it_was():
    rows, _ = translated((MALLOC, A, 10, 7), (FROM, A, 0, 7), (FAILED, A, 0, 7), (FREE, A, 0, 7))
    assert rows == [("malloc", 0, 0, 10), ("free", 0, 0, 0)]


def test_an_unseen_free_is_right_before_the_address_is_allocated_again():
    rows, translator = translated((MALLOC, A, 10, 7), (MALLOC, B, 11, 7), (MALLOC, A, 12, 7))
    assert rows == [("malloc", 0, 0, 10), ("malloc", 0, 1, 11), ("free", 0, 0, 0), ("malloc", 0, 0, 12)]
    assert translator.unseen_frees == 1


def test_foreign_blocks_are_observed_and_a_foreign_realloc_becomes_a_malloc():
    rows, translator = translated((FREE, A, 0, 7), (FROM, B, 0, 7), (TO, C, 30, 7), (FREE, C, 0, 7), (FROM, A, 0, 7))
    # A realloc that moves a block allocates first and then frees.
    assert rows == [("foreign_free", 0, 0, 0), ("malloc", 0, 0, 30), ("foreign_free", 0, 0, 0), ("free", 0, 0, 0)]
    assert (translator.foreign_frees, translator.foreign_reallocs) == (1, 1)


def test_a_foreign_realloc_in_place_frees_its_address_before_it_allocates_it():
    rows, translator = translated((FROM, A, 0, 7), (TO, A, 30, 7))
    assert rows == [("foreign_free", 0, 0, 0), ("malloc", 0, 0, 30)]
    assert (translator.foreign_frees, translator.foreign_reallocs) == (0, 1)


def test_blocks_of_an_excluded_thread_are_left_out():
    rows, translator = translated(
        (MALLOC, A, 10, 8), (MALLOC, B, 11, 7), (FROM, A, 0, 8), (TO, C, 20, 8), (FREE, C, 0, 8), (MALLOC, A, 12, 8),
        (MALLOC, C, 13, 7), excluded=(9, 8),
    )  # fmt: skip
    assert rows == [("malloc", 1, 0, 11), ("malloc", 1, 1, 13)]
    assert (translator.excluded_calls, translator.foreign_frees, translator.foreign_reallocs) == (4, 0, 0)


def test_calls_of_an_excluded_thread_for_blocks_of_others_are_recorded():
    rows, translator = translated(
        (MALLOC, A, 10, 7), (FROM, A, 0, 8), (TO, B, 20, 8), (FROM, B, 0, 8), (FAILED, B, 0, 8), (FREE, B, 0, 8),
        (MALLOC, C, 11, 7), (MALLOC, C, 12, 8), excluded=(8,),
    )  # fmt: skip
    assert rows == [
        ("malloc", 0, 0, 10), ("realloc", 1, 0, 20), ("free", 1, 0, 0), ("malloc", 0, 0, 11), ("free", 1, 0, 0),
    ]  # fmt: skip
    assert (translator.excluded_calls, translator.unseen_frees) == (1, 1)


def test_a_block_of_an_excluded_thread_that_another_thread_reallocates_is_foreign():
    rows, translator = translated(
        (MALLOC, A, 10, 8), (MALLOC, B, 11, 8), (FREE, A, 0, 7), (FROM, B, 0, 7), (TO, C, 30, 7), excluded=(8,)
    )
    assert rows == [("foreign_free", 1, 0, 0), ("malloc", 1, 0, 30), ("foreign_free", 1, 0, 0)]
    assert (translator.excluded_calls, translator.foreign_frees, translator.foreign_reallocs) == (2, 1, 1)


def test_tables_grow_with_threads_and_live_blocks():
    records = [(MALLOC, A + 16 * number, 16, 100 + number % 300) for number in range(100_000)]
    translator, ring, done, rows = Translator(Clock(False), 1 << 12), ring_of(*records), 0, 0
    validator = Validator()
    while done < len(records):
        done += translator.translate(ring, done, len(records) - done)
        batch = translator.batch()
        validator.check(batch)
        rows += batch.rows
    assert (rows, translator.live_blocks, validator.live_blocks) == (100_000, 100_000, 100_000)
    assert int(batch.thread.max()) == 299


def test_a_call_site_is_in_the_top_of_two_words():
    """The trace without these rows equals the one without the excluded thread."""
    records = [(MALLOC, A, 10, 7), (FROM, A, 0, 7), (TO, B, 20, 7), (FREE, B, 0, 7)]
    ring, sites = ring_of(*records), [0xFEDC_BA98, 0, 0x1_0000, 0]
    for row, site in enumerate(sites):
        low, high = site & 0xFFFF, site >> 16
        ring.view(np.uint64)[row, 2:] |= np.array([low << 48, high << 48], np.uint64)
    translator = Translator(Clock(False), 1 << 12, sites=True)
    assert translator.translate(ring, 0, len(records)) == len(records)
    batch = translator.batch()
    assert batch.site.tolist() == [0xFEDC_BA98, 0x1_0000, 0]
    for column, without in zip(batch[1:7], plain(records)[1:7], strict=True):
        assert column.tolist() == without.tolist()


def plain(records) -> Events:
    translator = Translator(Clock(False), 1 << 12)
    translator.translate(ring_of(*records), 0, len(records))
    batch = translator.batch()
    assert batch.site is None
    return batch


def test_places_are_numbered_as_they_are_met():
    class Places:
        def read(self):
            pass

        def site(self, number):
            return Site("function", "file.py", number // 10)

    table = SiteTable(Places())
    column = np.array([0, 500_000, 500_009, 70, 0, 500_001, 79, 80], np.uint32)
    table.number(column)
    assert column.tolist() == [NO_SITE, 0, 0, 1, NO_SITE, 0, 1, 2]
    assert [site.line for site in table.sites] == [50_000, 7, 8]


def test_only_complete_records_are_handed_out():
    ring = ring_of((MALLOC, A, 10, 7), (MALLOC, B, 10, 7), (MALLOC, C, 10, 7))
    assert count_published(ring, 0, 10) == 3
    ring[1, 0] = 0
    assert count_published(ring, 0, 10) == 1
    assert count_published(ring, 2, 10) == 1
    assert count_published(ring, 1 << tap.RING_BITS, 10) == 0


def cut_off(path):
    """Writes a file of three batches of 1000 events, as while a program runs; returns the end of each batch."""
    file, ends = GrowingFile(path.open("xb", buffering=0), addresses=True), []
    for first in (0, 1000, 2000):
        numbers = np.arange(first, first + 1000)
        zeros = np.zeros(1000, np.uint8)
        file.append(
            Events(numbers, numbers.astype(np.uint32) % 2, zeros, zeros + 2, numbers.astype(np.uint32), numbers,
                   address=numbers.astype(np.uint64)),
            Metadata(Provenance(notes={"first": str(first)})),
        )  # fmt: skip
        ends.append(path.stat().st_size)
    return ends


def rescue(path):
    """Completes a file; returns the number of rows."""
    with path.open("r+b", buffering=0) as file:
        return rescue_open(file, path)


def check_rescued(path, batches):
    """The file has the first batches, complete."""
    trace = open_source(path)
    sizes = np.concatenate([batch.size for batch in trace.batches()])
    assert (trace.metadata.origin.texts(), trace.events_total) == ({"first": str(1000 * (batches - 1))}, 1000 * batches)
    assert sizes.tolist() == list(range(1000 * batches))


@pytest.mark.parametrize("cut", [1, 100])
def test_a_file_that_was_cut_off_is_rescued_up_to_its_last_batch(tmp_path, cut):
    path = tmp_path / "trace.parquet"
    cut_off(path)
    with path.open("r+b") as opened:
        opened.truncate(path.stat().st_size - cut)
    assert rescue(path) == 2000
    check_rescued(path, 2)


def test_a_file_truncated_anywhere_is_rescued_up_to_its_last_complete_batch(tmp_path):
    path = tmp_path / "trace.parquet"
    ends = cut_off(path)
    content = path.read_bytes()
    for end in sorted({*ends, *(end + more for end in ends[:2] for more in (-1, 1, 7, 8, 9, 500)), ends[2] - 1}):
        path.write_bytes(content[:end])
        whole = sum(end >= each for each in ends)
        if whole:
            assert rescue(path) == 1000 * whole
            check_rescued(path, whole)
        else:
            with pytest.raises(TraceError, match="has no complete batch, so nothing can be rescued"):
                rescue(path)


@pytest.mark.parametrize("at", ["length", "footer length", "footer", "mark"])
def test_damage_in_a_batch_leaves_those_before_it(tmp_path, at):
    path = tmp_path / "trace.parquet"
    ends = cut_off(path)
    content = bytearray(path.read_bytes())
    place = {"length": ends[0] + 7, "footer length": ends[1] - 5, "footer": ends[1] - 9, "mark": ends[1] - 1}[at]
    content[place] ^= 0xFF
    if at == "footer":
        content[place - 60 : place] = bytes(range(200, 260 - 4)) + bytes(4)
    path.write_bytes(content)
    assert rescue(path) == 1000
    check_rescued(path, 1)


def test_a_file_that_is_not_a_recording_is_not_rescued(tmp_path):
    path = tmp_path / "trace.parquet"
    for content, sentence in (
        (b"", "is not an interrupted recording"),
        (b"PAR0" + bytes(99), "is not an interrupted recording"),
        (b"PAR1", "has no complete"),
    ):
        path.write_bytes(content)
        with pytest.raises(TraceError, match=sentence):
            rescue(path)
        assert path.read_bytes() == content
