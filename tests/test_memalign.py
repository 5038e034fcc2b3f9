"""memalign as an operation of a trace: validated, kept by formats and edits, and simulated."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from histories import History, counters, cut, played, seeded, single_steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_allocator_contract import Witness, each_stack, load
from test_glibc import HEAP, KIB, MIB, PAGE, calls, config, every_version, play
from test_snapshots import Kept

from replay.allocators import bump, find_model
from replay.analysis.metrics import summarize
from replay.config import load_config
from replay.simulation.run import run
from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.support.errors import TraceError
from replay.trace import Domain, Events, MemoryTrace, Metadata, Op, trace_digest
from replay.trace.editing.cutting import Piece
from replay.trace.editing.cutting import cut as cut_trace
from replay.trace.editing.merging import Part, merged
from replay.trace.editing.scaling import repeated
from replay.trace.editing.selecting import Conditions, FilteredTrace
from replay.trace.validation import validated
from replay.verification.compare import verify
from replay.verification.harness import HarnessError, Library
from replay.verification.oracles import Oracle

a_few = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def aligned(history: History, block: int, alignment: int) -> Events:
    """The events with another alignment in the row that allocated a block."""
    events = history.events()
    changed = events.alignment.copy()
    changed[[row for row in range(events.rows) if events.block[row] == block]] = alignment
    return events._replace(alignment=changed)


# By hand, from glibc's rules. 112 bytes and a header are asked for as 112 + 64 + 32 bytes, a chunk of 224: the block
# moves from 16 to 64, a lead of 48 bytes and a tail of 64 are freed.


@pytest.mark.parametrize("version", ["2.31", "2.36"])
def test_lead_and_tail_go_to_the_fastbins_of_a_thread_without_a_cache(version):
    history = History()
    history.memalign(64, 100)
    history.malloc(40, Domain.LIBC)  # makes the cache, from top
    history.malloc(56, Domain.LIBC)
    assert play(history, version)[0] == [64, 16, 64 + 112]


@pytest.mark.parametrize("version", ["2.31", "2.36"])
def test_lead_and_tail_go_to_the_cache_if_there_is_one(version):
    history = History()
    kept = history.malloc(24, Domain.LIBC)
    history.memalign(64, 100)
    lead, tail = history.malloc(24, Domain.LIBC), history.malloc(72, Domain.LIBC)
    offsets, simulator = play(history, version)
    # The cache takes 656 bytes and the first block 32: the padded block would lie at 704, a multiple of 64 itself.
    assert offsets[:2] == [672, 704]
    assert (kept, lead, tail) == (0, 2, 3)
    # The tail of 224 - 112 bytes serves the last request but for a header.
    assert offsets[2:] == [704 + 224, 960]
    assert simulator.stack.libc.cache[(112 >> 4) - 2].count == 1


@pytest.mark.parametrize("version", ["2.41", "2.43"])
def test_lead_and_tail_are_merged_at_once_in_later_versions(version):
    history = History()
    history.memalign(64, 100)
    history.malloc(8000, Domain.LIBC)
    assert play(history, "2.43")[0] == [64, 64 + 112]  # the tail is top again
    simulator = play(history, version)[1]
    assert not simulator.stack.libc.fastbins.any()


@every_version
def test_an_alignment_up_to_16_bytes_is_a_malloc(version):
    history, plain = History(), History()
    for alignment in (1, 2, 8, 16):
        history.memalign(alignment, 100)
        plain.malloc(100, Domain.LIBC)
    assert play(history, version)[0] == play(plain, version)[0]
    assert play(history, version)[1].tally.memaligns == 4


@pytest.mark.parametrize(("version", "offset"), [("2.31", 64), ("2.36", 64), ("2.41", 64), ("2.43", 32)])
def test_a_mapped_block_moves_within_its_mapping(version, offset):
    history = History()
    block = history.memalign(32, 200 * KIB)
    history.realloc(block, 300 * KIB)
    history.free(block)
    addresses = [address + HEAP for address in play(history, version)[0][:2]]
    # Up to 2.41 a lead of less than a chunk is passed over; the mapping holds padding and a header.
    assert [address % PAGE for address in addresses] == [offset, offset]
    names = [name for name, _, _ in calls(history, version)]
    assert names == ["mmap", "mremap", "munmap"]
    mapped, moved, gone = (length for _, _, length in calls(history, version))
    assert mapped == 200 * KIB + PAGE
    assert moved == gone == 300 * KIB + PAGE


def test_the_first_aligned_block_of_the_cache_serves_a_memalign_from_2_38_on():
    history = History()
    blocks = history.mallocs(5, 24, Domain.LIBC)
    history.free(blocks[1], blocks[3], blocks[2])
    history.memalign(64, 24)
    history.mallocs(2, 24, Domain.LIBC)
    offsets = play(history, "2.41")[0]
    assert offsets[:5] == [672, 704, 736, 768, 800]
    assert offsets[-3:] == [768, 736, 704]
    assert play(history, "2.36")[0][-3:] == [832, 736, 768]


def test_a_gap_before_a_block_is_not_resident():
    history = History()
    history.memalign(MIB, 100)
    simulator = play(history)[1]
    assert simulator.tally.heap_bytes > MIB
    # The lead's header, the block, and what was top's header behind the padding.
    assert simulator.tally.resident_bytes <= 4 * PAGE


@every_version
def test_the_arena_of_a_thread_serves_it(version):
    history = History()
    history.malloc(24, Domain.LIBC)
    history.by(1).memalign(256, 1000)
    simulator = play(history, version)[1]
    assert simulator.tally.glibc_thread_arenas == 1


def test_bump_loses_what_lies_before_an_aligned_block():
    history = History()
    history.malloc(100, Domain.LIBC)
    history.memalign(PAGE, 100)
    history.memalign(8, 1)
    simulator, addresses = played(history, load_config("bump"))
    start = int(simulator.stack.linux.space[0].brk_base)
    assert [int(each) - start for each in addresses] == [0, PAGE, PAGE + 112]


# Simulation


@each_stack
def test_blocks_are_aligned_and_counted(stack):
    if not hasattr(find_model(load(stack).libc_model), "memalign"):
        pytest.skip("the model has no memalign")
    history, source = History(), np.random.default_rng(1)
    live = []
    for _ in range(600):
        kind, size = source.integers(0, 5), int(source.choice((0, 1, 40, 700, 5000, 140_000)))
        if kind < 2 or not live:
            live.append(history.memalign(1 << int(source.integers(0, 17)), size, Domain(int(source.choice((0, 3))))))
        elif kind == 2:
            live.append(history.malloc(size, Domain(int(source.integers(0, 4)))))
        elif kind == 3:
            history.resize(live[int(source.integers(len(live)))], size)
        else:
            history.free(live.pop(int(source.integers(len(live)))))
    witness, events = Witness(load(stack)), history.events()
    for row in single_steps(witness.simulator, events):
        witness.note(events, row)
        if events.op[row] == Op.MEMALIGN:
            assert witness.live[int(events.block[row])][0] % int(events.alignment[row]) == 0
        witness.check_account()
        if row % 20 == 19:
            witness.simulator.check()
            witness.check_layout()
    witness.check_classes()
    simulator = witness.simulator
    assert simulator.spans()["bytes"].sum() == simulator.tally.mapped_bytes
    assert witness.simulator.tally.memaligns == np.count_nonzero(events.op == Op.MEMALIGN)


SOME_STACKS = {name: load_config(name) for name in ("cpython-3.12", "ideal", "bump")} | {
    f"glibc-{version}": config(version) for version in ("2.31", "2.36", "2.41", "2.43")
}
HISTORIES = st.integers(0, 1000).map(lambda seed: mixed(seed))


def mixed(seed: int, count: int = 80) -> History:
    """A history in which about every fourth allocation is a memalign, of three threads."""
    history, source, live = History(), np.random.default_rng(seed), []
    for _ in range(count):
        history.by(int(source.integers(0, 3))).at(history.now_ns + int(source.integers(0, 5)))
        size = int(source.choice((0, 24, 500, 3000, 131_000, 300_000)))
        if source.random() < 0.5 or not live:
            if source.random() < 0.5:
                live.append(history.memalign(8 << int(source.integers(0, 14)), size))
            else:
                live.append(history.malloc(size, Domain(int(source.integers(0, 4)))))
        elif source.random() < 0.2:
            history.resize(live[int(source.integers(len(live)))], size)
        else:
            history.free(live.pop(int(source.integers(len(live)))))
    return history


@pytest.mark.parametrize("stack", SOME_STACKS)
@a_few
@given(history=HISTORIES, cuts=st.lists(st.integers(1, 79), max_size=4), every_ns=st.integers(1, 40))
def test_results_depend_neither_on_batches_nor_on_samples(stack, history, cuts, every_ns):
    events = history.events()
    whole = run(MemoryTrace([events], Metadata()), SOME_STACKS[stack], sample_every_ns=1 << 40)
    parts = run(MemoryTrace(cut(events, cuts), Metadata()), SOME_STACKS[stack], sample_every_ns=every_ns)
    assert counters(parts.end) == counters(whole.end)
    assert counters(parts.at_peak) == counters(whole.at_peak)
    assert parts.classes.tolist() == whole.classes.tolist()
    assert whole.end.memaligns == np.count_nonzero(events.op == Op.MEMALIGN)
    assert whole.end.mallocs == np.count_nonzero(events.op == Op.MALLOC)


@pytest.mark.parametrize("stack", SOME_STACKS)
def test_processes_do_what_they_do_alone(stack):
    parts = [mixed(seed, 60).trace() for seed in (1, 2, 3)]
    whole = merged([Part(part, str(number)) for number, part in enumerate(parts)], "", as_processes=True)
    together = run(whole, SOME_STACKS[stack])
    alone = [run(part, SOME_STACKS[stack]).end for part in parts]
    for name in ("memaligns", "mallocs", "frees", "heap_bytes", "requested_bytes", "libc_block_bytes", "page_faults"):
        assert [int(each.end[name]) for each in together.processes] == [int(end[name]) for end in alone]
        assert together.end[name] == sum(int(end[name]) for end in alone)


@pytest.mark.parametrize("stack", SOME_STACKS)
@a_few
@given(history=HISTORIES)
def test_snapshots_add_up(stack, history):
    kept = Kept()
    run(history.trace(), SOME_STACKS[stack], snapshots=7, sink=kept)
    assert kept.snapshots


def test_a_huge_request_with_a_huge_alignment_is_simulated():
    history = History()
    history.malloc(1, Domain.LIBC)
    history.memalign(1 << 31, 3 << 30)
    history.memalign(1 << 31, 1)
    _, addresses = played(history, config("2.36"))
    assert [int(each) % (1 << 31) for each in addresses[1:]] == [0, 0]


def test_a_request_for_which_no_addresses_are_left_is_refused_with_its_row():
    history = History()
    history.malloc(1, Domain.LIBC)
    history.memalign(64, 1 << 47)
    with pytest.raises(TraceError, match="fit nowhere"):
        run(history.trace(), config("2.36"))


def test_a_model_without_memalign_is_refused_by_name_and_row(monkeypatch):
    monkeypatch.delattr(bump, "memalign")
    history = History()
    history.malloc(1)
    history.memalign(64, 1)
    with pytest.raises(TraceError, match=r"row 1: the model 'bump' has no memalign; choose another for the libc role"):
        run(history.trace(), load_config("bump"))
    assert run(MemoryTrace([history.events().where(slice(0, 1))]), load_config("bump")).end.mallocs == 1


def test_a_comparison_with_pymalloc_refuses_them():
    history = History()
    history.memalign(64, 1)
    library = Library(Path("libpython.so"), bits=64, needs_init=True)  # which is never run
    oracle = Oracle("cpython-3.12", "3.12", "cpython-3.12", (), 16, 16 * KIB, library)
    with pytest.raises(HarnessError, match=r"memaligns are not pymalloc's; `replay verify --libc` compares them"):
        verify(history.trace(), oracle)


def test_the_summary_counts_them():
    history = History()
    history.memalign(64, 1)
    history.free(history.malloc(8))
    summary = summarize(run(history.trace(), load_config("cpython-3.12")))
    assert (summary.mallocs, summary.memaligns, summary.frees) == (1, 1, 1)


# The trace


@pytest.mark.parametrize(
    ("alignment", "domain", "message"),
    [
        (0, Domain.LIBC, "`alignment` of a memalign is empty; write the alignment in bytes, or write a malloc"),
        (48, Domain.LIBC, "`alignment` of a memalign is 48, must be a power of two"),
        (64, Domain.OBJ, "domain obj has no memalign; write it in domain libc"),
        (64, Domain.MEM, "domain mem has no memalign; write it in domain libc"),
    ],
)
def test_a_wrong_memalign_is_refused_with_its_row_and_advice(alignment, domain, message):
    history = History()
    history.memalign(16, 1)
    wrong = history.memalign(64, 1, domain)
    with pytest.raises(TraceError) as refusal:
        [*validated(MemoryTrace([aligned(history, wrong, alignment)]), None).batches()]
    assert str(refusal.value) == f"row 1: {message}"


def test_a_memalign_without_the_column_is_refused():
    history = History()
    history.malloc(1)
    history.memalign(64, 1)
    with pytest.raises(TraceError, match=r"row 1: memalign without the column `alignment`; add the column"):
        [*validated(MemoryTrace([history.events()._replace(alignment=None)]), None).batches()]


def test_an_alignment_of_another_operation_is_refused():
    history = History()
    history.memalign(64, 1)
    block = history.malloc(1)
    with pytest.raises(TraceError, match=r"row 1: `alignment` of a malloc is 32; it must be empty"):
        [*validated(MemoryTrace([aligned(history, block, 32)]), None).batches()]


def test_a_memalign_of_a_live_block_is_refused():
    history = History()
    history.memalign(64, 1)
    events = history.events().where(np.array([0, 0]))
    with pytest.raises(TraceError, match=r"row 1: memalign of block 0, which is live"):
        [*validated(MemoryTrace([events]), None).batches()]


def test_files_keep_memaligns(tmp_path):
    trace = mixed(5).trace()
    write_trace(trace, tmp_path / "t.parquet")
    frame = pl.read_parquet(tmp_path / "t.parquet")
    names = {int(op): op.name.lower() for op in Op}
    frame.with_columns(pl.col("op").replace_strict(names)).write_csv(tmp_path / "t.csv")
    for name in ("t.parquet", "t.csv"):
        assert trace_digest(open_source(tmp_path / name)) == trace_digest(trace)
    assert frame["alignment"].is_null().sum() == frame.filter(pl.col("op") != Op.MEMALIGN).height


def test_a_csv_line_that_lacks_the_alignment_is_named(tmp_path):
    (tmp_path / "t.csv").write_text(
        "time_ns,op,domain,block,size,alignment\n0,malloc,libc,1,8,\n1,memalign,libc,2,8,\n"
    )
    with pytest.raises(TraceError, match=r"line 3: `alignment` of a memalign is empty"):
        [*open_source(tmp_path / "t.csv").batches()]


def test_the_digest_depends_on_alignments_and_not_on_batches():
    history, other, plain = History(), History(), History()
    for each, alignment in ((history, 64), (other, 128)):
        each.malloc(1)
        each.memalign(alignment, 1)
        each.memalign(64, 1)
    plain.malloc(1)
    assert trace_digest(history.trace()) != trace_digest(other.trace())
    assert trace_digest(MemoryTrace(cut(history.events(), [1, 2]))) == trace_digest(history.trace())
    none = plain.events()._replace(alignment=np.zeros(1, np.uint32))
    assert trace_digest(MemoryTrace([none])) == trace_digest(plain.trace())


def rows(trace) -> list[tuple[str, int, int]]:
    """Op, size and alignment of each row."""
    return [
        (Op(op).name.lower(), size, alignment)
        for events in trace.batches()
        for op, size, alignment in zip(events.op.tolist(), events.size.tolist(), events.alignment.tolist(), strict=True)
    ]


def test_edits_keep_memaligns_and_allocate_live_blocks_by_them_again():
    history = History()
    first = history.memalign(64, 10)
    second = history.memalign(128, 20)
    third = history.malloc(30)
    history.realloc(second, 25)
    history.at(10).free(third)
    history.at(20).memalign(256, 40)
    trace = history.trace()
    assert rows(cut_trace(trace, Piece(from_ns=10), "")) == [
        ("memalign", 10, 64), ("malloc", 25, 0), ("malloc", 30, 0), ("free", 0, 0), ("memalign", 40, 256),
    ]  # fmt: skip
    assert rows(FilteredTrace(trace, Conditions(min_size=20, max_size=20), "")) == [
        ("memalign", 20, 128),
        ("realloc", 25, 0),
    ]
    assert rows(repeated(trace, 2, "", keep_live=False)).count(("memalign", 10, 64)) == 2
    plain = seeded(1, 20).trace()
    together = rows(merged([Part(plain, "a"), Part(trace, "b")], ""))
    assert [row for row in together if row[0] == "memalign"] == [row for row in rows(trace) if row[0] == "memalign"]
    assert first == 0
