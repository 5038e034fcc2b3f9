"""The contract of a trace: validation, numbers of blocks, and the digest."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.support.errors import TraceError
from replay.trace import (
    NO_SITE,
    NUMBERS,
    REQUIRED,
    Domain,
    Events,
    MemoryTrace,
    Metadata,
    Op,
    Site,
    release_number,
    take_number,
    trace_digest,
)
from replay.trace.block_numbering import Numbering
from replay.trace.validation import Validator

M, C, R, F, MARK = Op.MALLOC, Op.CALLOC, Op.REALLOC, Op.FREE, Op.MARK


def events(*rows, domain=Domain.OBJ, site=None):
    """Events of (op, block, size) tuples, 10 ns apart from 10 ns on; a fourth item is the time."""
    return Events(
        np.array([row[3] if len(row) > 3 else 10 * (index + 1) for index, row in enumerate(rows)], np.int64),
        np.zeros(len(rows), np.uint32),
        np.array([row[0] for row in rows], np.uint8),
        np.full(len(rows), domain, np.uint8),
        np.array([row[1] for row in rows], np.uint32),
        np.array([row[2] for row in rows], np.int64),
        site=None if site is None else np.array(site, np.uint32),
    )


def slices(whole, cuts):
    edges = [0, *sorted(cuts), whole.rows]
    return [whole.keep_optional().where(slice(start, end)) for start, end in pairwise(edges)]


def refusal(*batches, metadata=None):
    validator = Validator("x.parquet", metadata)
    *good, broken = batches
    for batch in good:
        validator.check(batch)
    with pytest.raises(TraceError) as caught:
        validator.check(broken)
    return caught.value


def test_live_blocks_and_bytes_are_counted_with_their_peaks():
    validator = Validator()
    validator.check(events((M, 0, 100), (C, 1, 50), (R, 0, 300), (F, 1, 0), (MARK, 9, 7), (M, 1, 0)))
    assert (validator.live_blocks, validator.live_bytes) == (2, 300)
    assert (validator.blocks_peak, validator.bytes_peak) == (2, 350)
    assert (validator.rows, validator.span_ns) == (6, 50)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((M, 0, 8), "malloc of block 0, which is live"),
        ((C, 0, 8), "calloc of block 0, which is live"),
        ((F, 1, 0), "free of block 1, which is not live"),
        ((F, 4_000_000_000, 0), "free of block 4000000000, which is not live"),
        ((R, 1, 8), "write a realloc of nothing as a malloc"),
        ((M, 1, 8, 19), "time runs back from 20 ns to 19 ns"),
        ((M, 1, (1 << 47) + 1), "size 140737488355329 is out of range"),
        ((M, 1, -1), "size -1 is out of range"),
        ((7, 1, 0), "op 7 is unknown; there are 0 malloc, 1 calloc, 2 realloc, 3 free, 4 memalign, 16 gc_start"),
        ((F, 0, 8), "a free has size 0, not 8"),
        ((R, 1, 0), "write a realloc of nothing as a malloc"),
        ((M, 4 * 2 + (1 << 20), 8), "let `replay import` renumber it"),
    ],
)
def test_a_broken_event_is_refused_with_its_row(row, message):
    error = refusal(events((M, 0, 16), (M, 5, 16)), events(row if len(row) > 3 else (*row, 30)))
    assert error.row == 2
    assert str(error).startswith("x.parquet: row 2: ")
    assert message in str(error)


def test_the_largest_size_and_the_sparsest_number_pass():
    Validator().check(events((M, (1 << 20) - 1, 1 << 47)))


def test_a_negative_time_is_refused():
    assert refusal(events((M, 0, 8, -1))).row == 0


def test_an_unknown_domain_is_refused():
    assert "domain 4 is unknown; there are 0 raw, 1 mem, 2 obj, 3 libc" in str(refusal(events((M, 0, 8), domain=4)))


def test_a_block_may_be_freed_through_another_domain():
    validator = Validator()
    validator.check(events((M, 0, 8), domain=Domain.OBJ))
    validator.check(events((F, 0, 0), domain=Domain.MEM))
    assert validator.live_blocks == 0


def test_a_realloc_to_0_bytes_frees_in_libc_only():
    for domain in (Domain.RAW, Domain.MEM, Domain.OBJ):
        validator = Validator()
        validator.check(events((M, 0, 8), (R, 0, 0), (F, 0, 0), domain=domain))
        assert validator.rows == 3
    error = refusal(events((M, 0, 8), (R, 0, 0), domain=Domain.LIBC))
    assert error.row == 1
    assert "realloc of block 0 to 0 bytes in domain libc frees it; write a free" in str(error)
    assert "is not live" in str(refusal(events((R, 0, 0), domain=Domain.LIBC)))


def test_a_mark_of_an_unnamed_phase_is_refused():
    metadata = Metadata(phases=("load", "serve"))
    error = refusal(events((MARK, 0, 1), (MARK, 0, 2)), metadata=metadata)
    assert (error.row, "names 2 phases" in str(error)) == (1, True)


def test_a_site_past_the_table_is_refused_and_an_unknown_one_is_not():
    metadata = Metadata(sites=(Site("f", "a.py", 1),))
    error = refusal(events((M, 0, 8), (M, 1, 8), (M, 2, 8), site=[0, NO_SITE, 1]), metadata=metadata)
    assert (error.row, "site 1 is past" in str(error)) == (2, True)


@st.composite
def histories(draw):
    """Ops on keys: live blocks have different keys, and only live blocks are freed."""
    live, rows = [], []
    for _ in range(draw(st.integers(0, 80))):
        kind = draw(st.sampled_from([M, C, R, F, MARK]))
        if kind in (R, F) and live:
            key = draw(st.sampled_from(live))
            if kind == F:
                live.remove(key)
            rows.append((kind, key))
        elif kind in (M, C):
            key = draw(st.integers(0, (1 << 64) - 1).filter(lambda key: key not in live))
            live.append(key)
            rows.append((kind, key))
        elif kind == MARK:
            rows.append((kind, draw(st.integers(0, (1 << 64) - 1))))
    return rows


@settings(deadline=None)  # the first call may have to load machine code
@given(histories(), st.lists(st.integers(0, 80), max_size=3))
def test_numbers_follow_the_rule_wherever_batches_are_cut(history, cuts):
    free, used, numbers, expected = [], 0, {}, []
    for op, key in history:
        if op in (M, C):
            if not free:
                free.append(used)
                used += 1
            numbers[key] = free.pop()
        expected.append(0 if op == MARK else numbers[key])
        if op == F:
            free.append(numbers.pop(key))
    op = np.array([row[0] for row in history], np.uint8)
    key = np.array([row[1] for row in history], np.uint64)
    numbering, got = Numbering(), []
    edges = [0, *sorted(min(cut, len(history)) for cut in cuts), len(history)]
    for start, end in pairwise(edges):
        got += numbering.number(op[start:end], key[start:end]).tolist()
    assert got == expected


def test_the_number_released_last_is_reused_first():
    ops = np.array([M, M, M, F, F, M, M, M], np.uint8)
    keys = np.array([160, 320, 480, 160, 480, 7, 8, 9], np.uint64)
    assert Numbering().number(ops, keys).tolist() == [0, 1, 2, 0, 2, 2, 0, 3]


def test_numbering_grows_past_its_first_table_and_finds_every_key_again():
    keys = np.arange(10_000, dtype=np.uint64) * np.uint64(1 << 20)
    numbering = Numbering()
    first = numbering.number(np.zeros(10_000, np.uint8), keys)
    backwards = numbering.number(np.full(10_000, F, np.uint8), keys[::-1].copy())
    assert first.tolist() == list(range(10_000))
    assert backwards.tolist() == list(range(9_999, -1, -1))


@pytest.mark.parametrize(("op", "key"), [(M, 5), (F, 6), (R, 6)])
def test_numbering_refuses_a_live_key_twice_and_a_dead_one_with_its_row(op, key):
    numbering = Numbering("x.csv")
    numbering.number(np.zeros(1, np.uint8), np.array([5], np.uint64))
    with pytest.raises(TraceError, match=f"x.csv: row 1: {op.name.lower()} of block {key}"):
        numbering.number(np.array([op], np.uint8), np.array([key], np.uint64))


def test_the_leaves_number_like_the_class():
    free_numbers, counts = np.zeros(8, np.int64), np.zeros(1, NUMBERS)
    assert [take_number(free_numbers, counts) for _ in range(3)] == [0, 1, 2]
    release_number(free_numbers, counts, 0)
    release_number(free_numbers, counts, 2)
    assert [take_number(free_numbers, counts) for _ in range(3)] == [2, 0, 3]


@given(st.lists(st.integers(0, 5), max_size=4))
def test_the_digest_does_not_see_where_batches_are_cut(cuts):
    whole = events((M, 0, 100), (C, 1, 50), (R, 0, 300), (F, 1, 0), (MARK, 9, 7))
    assert trace_digest(MemoryTrace(slices(whole, cuts))) == trace_digest(MemoryTrace([whole]))


def test_the_digest_sees_every_required_column_and_no_other():
    whole = events((M, 0, 100), (F, 0, 0))
    digests = {trace_digest(MemoryTrace([whole]))}
    for name in REQUIRED:
        changed = getattr(whole, name).copy()
        changed[1] += 1
        digests.add(trace_digest(MemoryTrace([whole._replace(**{name: changed})])))
    assert len(digests) == 7
    with_site = whole._replace(site=np.zeros(2, np.uint32))
    assert trace_digest(MemoryTrace([with_site])) in digests


def first_broken_row(rows, domain):
    """The contract in plain Python: returns the first row of (op, block, size, time) that breaks it, or None."""
    smallest_realloc = 1 if domain == Domain.LIBC else 0
    live, last = set(), 0
    for index, (op, block, size, time) in enumerate(rows):
        known = op in list(Op)
        wrong_block = (block in live) if op in (M, C) else (block not in live) if op in (R, F) else False
        wrong_size = op in (M, C, R, F) and not (
            (smallest_realloc if op == R else 0) <= size <= (0 if op == F else 1 << 47)
        )
        if time < last or not known or wrong_block or wrong_size:
            return index
        last = time
        if op in (M, C):
            live.add(block)
        elif op == F:
            live.remove(block)
    return None


broken_rows = st.lists(
    st.tuples(
        st.sampled_from([M, M, M, C, R, F, F, F, MARK, 5]),
        st.integers(0, 3),
        st.sampled_from([0] * 8 + [16, 1 << 47, (1 << 47) + 1, -1]),
        st.sampled_from([0] + [1] * 20 + [2]),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=300)
@given(broken_rows, st.lists(st.integers(0, 12), max_size=2), st.sampled_from(Domain))
def test_the_first_broken_row_is_named_wherever_batches_are_cut(rows, cuts, domain):
    validator, refused = Validator(), None
    for batch in slices(events(*rows, domain=domain), [min(cut, len(rows)) for cut in cuts]):
        try:
            validator.check(batch)
        except TraceError as error:
            refused = error.row
            break
    assert refused == first_broken_row(rows, domain)
