"""The model compared with every real pymalloc of this machine, and the comparison itself with hand-made cases."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import invoke
from reference_pymalloc import GEOMETRIES, Geometry, Reference

from replay.config import load_config
from replay.support.errors import ReplayError, TraceError
from replay.trace import Domain, Events, MemoryTrace, Op
from replay.trace.validation import Validator
from replay.verification import harness
from replay.verification.compare import PLACE, ArenaDifference, verify
from replay.verification.harness import HarnessError, run_trace
from replay.verification.oracles import Oracle, choose_oracles, find_oracles, survey
from replay.verification.shapes import LARGE_BYTES, SHAPES, build_shape
from replay.verification.shrinking import describe, shrink

ORACLES = find_oracles()
TREE_LEAF_EDGES = (4 << 10, 3 << 20)
"""Bases modulo 16 GiB for which the first or the third arena is in two leaves of the arena tree."""

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not ORACLES, reason="no libpython on this machine: see `replay verify --list` for where they are looked for"
    ),
]
each_oracle = pytest.mark.parametrize("oracle", ORACLES, ids=[oracle.name for oracle in ORACLES])
each_shape = pytest.mark.parametrize("shape", SHAPES)
shape_of = cache(build_shape)


def trace_of(*rows: tuple[Op, Domain, int, int]) -> MemoryTrace:
    """From (op, domain, block, size)."""
    op, domain, block, size = zip(*rows, strict=True)
    count = len(rows)
    return MemoryTrace(
        [
            Events(
                np.arange(count, dtype=np.int64),
                np.zeros(count, np.uint32),
                np.array(op, np.uint8),
                np.array(domain, np.uint8),
                np.array(block, np.uint32),
                np.array(size, np.int64),
            )
        ]
    )


def release_of(oracle: Oracle) -> tuple[int, int]:
    major, minor = oracle.version.split(".")[:2]
    return int(major), int(minor)


def geometry_of(oracle: Oracle) -> Geometry:
    """Returns the settings of the reference model for a real pymalloc, from its version alone."""
    if oracle.library.bits == 32:
        return GEOMETRIES[32, "keep-last"]
    release = release_of(oracle)
    if release < (3, 9):
        return GEOMETRIES[64, "immediate"]
    if release < (3, 10):
        return GEOMETRIES[64, "keep-last"]
    return GEOMETRIES[64, "radix-mapped" if release == (3, 11) else "radix-heap"]


def play_reference(trace: MemoryTrace, oracle: Oracle, base: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """Returns addresses of small blocks (0 for others) and arena events."""
    reference = Reference(geometry_of(oracle), base)
    served = {Domain.OBJ} if release_of(oracle) < (3, 6) else {Domain.OBJ, Domain.MEM}
    blocks: dict[int, int | None] = {}
    addresses = []
    columns = (trace.events[0].op, trace.events[0].domain, trace.events[0].block, trace.events[0].size)
    for row, (op, domain, block, size) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        if op in (Op.MALLOC, Op.CALLOC):
            blocks[block] = reference.malloc(size, row) if domain in served else None
        elif (address := blocks[block]) is not None:
            if op == Op.REALLOC:
                blocks[block] = reference.realloc(address, size, row)
            else:
                reference.free(address, row)
        addresses.append(0 if op == Op.FREE else blocks[block] or 0)
    return addresses, reference.arena_events


@each_shape
@each_oracle
def test_every_block_of_the_model_has_the_address_of_the_real_pymalloc(oracle: Oracle, shape: str) -> None:
    agreement = verify(shape_of(shape, 100_000), oracle)
    assert agreement.exact, f"{agreement.difference}; {agreement.arena_difference}"
    assert agreement.unequal == 0
    assert agreement.addresses_compared > 25_000
    assert agreement.arena_events_compared >= 1


@each_oracle
def test_arenas_with_a_pool_more_are_filled_as_the_real_ones_are(oracle: Oracle) -> None:
    agreement = verify(shape_of("release", 100_000), oracle, place=8 << 30)
    assert agreement.exact, f"{agreement.difference}; {agreement.arena_difference}"
    assert agreement.releases >= 5


@pytest.mark.parametrize("place", TREE_LEAF_EDGES)
@each_oracle
def test_an_arena_across_two_leaves_of_the_arena_tree_moves_what_is_mapped_after_it(oracle: Oracle, place: int) -> None:
    agreement = verify(shape_of("thrash", 60_000), oracle, place=place)
    assert agreement.exact, f"{agreement.difference}; {agreement.arena_difference}"
    assert agreement.arena_events_compared >= 3


@each_shape
@each_oracle
def test_a_second_model_written_for_reading_agrees_with_the_real_pymalloc(oracle: Oracle, shape: str) -> None:
    trace = shape_of(shape, 20_000)
    played = run_trace(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=PLACE)
    addresses, arena_events = play_reference(trace, oracle, played.base)
    assert np.where(played.owners == 1, played.addresses, 0).tolist() == addresses
    assert played.arena_events.tolist() == arena_events


@each_oracle
def test_random_short_traces_agree_and_a_difference_is_shrunk(oracle: Oracle) -> None:
    for seed in range(8):
        shape = list(SHAPES)[seed % len(SHAPES)]
        trace = build_shape(shape, 3_000, seed + 1)
        place = PLACE + seed * 4096
        agreement = verify(trace, oracle, place=place)
        if not agreement.exact:
            smallest = shrink(trace, lambda less, place=place: not verify(less, oracle, place=place).exact)
            pytest.fail(f"{shape}, seed {seed + 1}: {agreement.difference}; smallest:\n{describe(smallest)}")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["churn", "regrow", "zeroed", "pins", "hops", "brims", "thrash"])
@each_oracle
def test_a_million_events_agree(oracle: Oracle, shape: str) -> None:
    agreement = verify(shape_of(shape, 1_000_000, 7), oracle)
    assert agreement.exact, f"{agreement.difference}; {agreement.arena_difference}"
    assert agreement.events == 1_000_000


@pytest.mark.slow
@each_oracle
def test_hundreds_of_released_arenas_agree(oracle: Oracle) -> None:
    agreement = verify(shape_of("release", 2_500_000, 7), oracle)
    assert agreement.exact, f"{agreement.difference}; {agreement.arena_difference}"
    assert agreement.releases >= 200


@each_oracle
def test_the_first_blocks_of_a_new_pool_are_one_class_apart_after_its_header(oracle: Oracle) -> None:
    trace = trace_of(*((Op.MALLOC, Domain.OBJ, block, 20) for block in range(3)))
    played = run_trace(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=PLACE)
    header, size_class = (32, 24) if oracle.library.bits == 32 else (48, 32)
    assert (played.addresses % oracle.pool_bytes).tolist() == [header, header + size_class, header + 2 * size_class]
    assert played.base % (2 << 20) == 4096
    assert played.arena_events["row"].tolist() == [0]
    assert played.arena_events["address"] + played.arena_events["bytes"] == played.base


@each_oracle
def test_nothing_and_more_than_the_threshold_belong_to_libc_and_stay_there(oracle: Oracle) -> None:
    trace = trace_of(
        (Op.MALLOC, Domain.OBJ, 0, 0),
        (Op.MALLOC, Domain.OBJ, 1, 513),
        (Op.CALLOC, Domain.OBJ, 2, 512),
        (Op.REALLOC, Domain.OBJ, 1, 8),
        (Op.REALLOC, Domain.OBJ, 2, 513),
        (Op.REALLOC, Domain.OBJ, 0, 0),
        (Op.FREE, Domain.OBJ, 2, 0),
    )
    played = run_trace(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=PLACE)
    assert played.owners.tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert verify(trace, oracle).exact


@each_oracle
def test_a_wrong_setting_is_found_at_the_first_row_that_shows_it(oracle: Oracle) -> None:
    wrong = 32
    config = load_config(oracle.preset, [*oracle.overrides, f"pymalloc.alignment={wrong}", "pymalloc.pool_header=64"])
    trace = trace_of((Op.MALLOC, Domain.OBJ, 0, 1), (Op.MALLOC, Domain.OBJ, 1, 1), (Op.FREE, Domain.OBJ, 0, 0))
    agreement = verify(trace, oracle, config)
    header = 32 if oracle.library.bits == 32 else 48
    assert not agreement.exact
    assert agreement.difference is not None
    assert (agreement.difference.row, agreement.difference.op, agreement.difference.size_bytes) == (0, Op.MALLOC, 1)
    assert agreement.difference.model - agreement.difference.real == 64 - header
    assert (agreement.addresses_compared, agreement.addresses_equal) == (2, 0)
    assert (agreement.arena_events_compared, agreement.arena_events_equal) == (1, 1)
    assert agreement.unequal == 2
    assert "in the real allocator" in str(agreement.difference)


@each_oracle
def test_another_rule_of_release_is_detected_by_the_first_different_arena_event(oracle: Oracle) -> None:
    is_immediate = release_of(oracle) < (3, 9)
    other = "keep-last" if is_immediate else "immediate"
    config = load_config(oracle.preset, [*oracle.overrides, f"pymalloc.release={other}"])
    trace = trace_of((Op.MALLOC, Domain.OBJ, 0, 1), (Op.FREE, Domain.OBJ, 0, 0))
    agreement = verify(trace, oracle, config)
    assert agreement.difference is None
    assert isinstance(agreement.arena_difference, ArenaDifference)
    assert agreement.arena_difference.number == 1
    unmapped = agreement.arena_difference.real if is_immediate else agreement.arena_difference.model
    assert unmapped is not None
    assert unmapped[:2] == (1, 0)
    assert "arena event 1: " in str(agreement.arena_difference)
    assert "no more" in str(agreement.arena_difference)


@each_oracle
def test_a_timed_run_measures_time_and_has_the_same_arenas(oracle: Oracle) -> None:
    trace = shape_of("release", 20_000)
    timed = run_trace(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=PLACE, timed=True)
    looked_at = run_trace(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=PLACE)
    assert 20_000 < timed.run_ns < 10**9
    assert timed.addresses.shape == (0,)
    assert timed.arena_events["kind"].tolist() == looked_at.arena_events["kind"].tolist()


@each_oracle
def test_only_an_interpreter_that_had_to_be_initialised_is_drained(oracle: Oracle) -> None:
    trace = trace_of((Op.MALLOC, Domain.OBJ, 0, 1))
    played = run_trace(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=PLACE)
    assert (played.drained_blocks > 0) == (release_of(oracle) >= (3, 12))


@each_shape
def test_a_shape_is_a_valid_trace_of_the_requested_length(shape: str) -> None:
    trace = build_shape(shape, 5_000, 3)
    validator = Validator("shape")
    for batch in trace.batches():
        validator.check(batch)
        assert batch.size.max() <= LARGE_BYTES
    assert trace.events_total == 5_000
    assert np.array_equal(trace.events[0].size, build_shape(shape, 5_000, 3).events[0].size)
    assert not np.array_equal(trace.events[0].size, build_shape(shape, 5_000, 4).events[0].size)


def test_shrinking_leaves_the_two_blocks_that_make_the_difference() -> None:
    trace = build_shape("churn", 2_000, 5)

    def differs(less: MemoryTrace) -> bool:
        events = less.events[0]
        regrown = events.size[events.op == Op.REALLOC]
        return bool((regrown > 512).any()) and bool((events.domain[events.op == Op.CALLOC] == Domain.RAW).any())

    smallest = shrink(trace, differs).events[0]
    assert np.unique(smallest.block[smallest.op <= Op.CALLOC]).size == 2
    assert sorted(smallest.op[smallest.op <= Op.REALLOC].tolist()).count(Op.REALLOC) >= 1
    assert differs(MemoryTrace([smallest]))


def test_a_described_trace_reads_event_by_event() -> None:
    trace = trace_of((Op.MALLOC, Domain.OBJ, 0, 24), (Op.FREE, Domain.OBJ, 0, 0))
    assert describe(trace) == "0: malloc obj block 0, 24 bytes\n1: free obj block 0, 0 bytes"


@pytest.fixture
def fresh_build() -> Iterator[None]:
    harness.build.cache_clear()
    yield
    harness.build.cache_clear()


@pytest.mark.usefixtures("fresh_build")
def test_the_harness_is_compiled_once_into_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_CACHE_DIR", str(tmp_path))
    program = harness.build(64)
    stamp = program.stat().st_mtime_ns
    harness.build.cache_clear()
    assert harness.build(64) == program
    assert program.stat().st_mtime_ns == stamp
    assert list(tmp_path.rglob("*")) == [tmp_path / "harness", program]


@pytest.mark.usefixtures("fresh_build")
def test_a_compiler_that_fails_is_reported_in_a_sentence_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLAY_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(HarnessError, match=r"/bin/false cannot build harness\.c"):
        harness.build(64)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_library_that_is_not_an_interpreter_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "libpython3.11.so.1.0"
    path.write_bytes(b"nothing of the kind")
    library = harness.Library(path, 64, needs_init=False)
    with pytest.raises(HarnessError, match=r"libpython3\.11\.so\.1\.0 failed: .*too short"):
        harness.probe(library)


def test_an_empty_trace_cannot_be_verified() -> None:
    with pytest.raises(TraceError, match="has no events to verify"):
        verify(MemoryTrace([]), ORACLES[0])


def test_a_library_that_cannot_be_an_oracle_is_listed_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("libpython3.13t.so.1.0", "libpython3.11d.so.1.0", "libpypy3.10-c.so", "libpython3.10.so.1.0"):
        (tmp_path / name).write_bytes(b"text")
    monkeypatch.setenv("REPLAY_LIBPYTHON_PATH", str(tmp_path))
    reasons = {Path(absence.name).name: absence.reason for absence in survey()[1]}
    assert "free-threaded" in reasons["libpython3.13t.so.1.0"]
    assert "debug build" in reasons["libpython3.11d.so.1.0"]
    assert reasons["libpypy3.10-c.so"] == "PyPy has no pymalloc"
    assert "no ELF file" in reasons["libpython3.10.so.1.0"]


def test_a_preset_without_a_real_allocator_is_refused_with_what_to_do() -> None:
    with pytest.raises(ReplayError, match="no real allocator is available for 'cpython-1-5'"):
        choose_oracles("cpython-1-5")


def test_the_command_runs_every_shape_and_prints_one_object_for_each() -> None:
    oracle = ORACLES[-1]
    result = invoke("verify", "-a", oracle.name, "--events", "500", "--json")
    code, output = result.exit_code, result.stdout
    results = json.loads(output)
    assert code == 0
    assert [result["trace"] for result in results] == list(SHAPES)
    assert {result["oracle"] for result in results} == {oracle.name}
    assert all(result["exact"] and result["events"] == 500 for result in results)


def test_the_command_prints_a_row_for_each_oracle() -> None:
    result = invoke("verify", "--events", "200")
    code, output = result.exit_code, result.stdout
    assert code == 0
    for oracle in ORACLES:
        row = next(line for line in output.splitlines() if line.split()[:1] == [oracle.name])
        assert row.split()[1] == f"{200 * len(SHAPES):,}"
        assert row.split()[-2] == "0"


def test_the_command_prints_a_difference_and_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from replay.sources.parquet import write_trace

    path = tmp_path / "large.parquet"
    write_trace(trace_of((Op.MALLOC, Domain.OBJ, 0, 1 << 20), (Op.MALLOC, Domain.OBJ, 1, 64)), path)
    wrong = [Oracle(**{**vars(oracle), "overrides": ("pymalloc.release=keep-last", "pymalloc.pool_header=64",
             "pymalloc.alignment=32")}) for oracle in ORACLES[:1]]  # fmt: skip
    monkeypatch.setattr("replay.verification.oracles.choose_oracles", lambda choice: wrong)
    result = invoke("verify", str(path))
    code, output = result.exit_code, result.stdout
    assert code == 1
    assert f"{wrong[0].name}, {path}: row 1: malloc of 64 bytes" in output
    assert "128 KiB or more" in output


def test_the_list_names_each_oracle_with_the_options_that_model_it() -> None:
    result = invoke("verify", "--list")
    code, output = result.exit_code, result.stdout
    assert code == 0
    for oracle in ORACLES:
        assert f"  {oracle.name:<22} -a {oracle.preset}" in output
