"""Recordings compared with the model: hand-made ones, and new ones of programs."""

import json

import numpy as np
import pytest
from conftest import ALLOCATING_PROGRAM, invoke, output_of, record

from replay.config import load_config
from replay.simulation.simulator import Simulator
from replay.sources import open_source
from replay.support.errors import ReplayError
from replay.trace import CLEAN_START, ClassCount, Domain, Events, MemoryTrace, Metadata, Op, PoolCount, Provenance
from replay.verification.recordings import LOW_ADDRESSES, is_recording, verify_recording

MIB, POOL = 1 << 20, 16 << 10
ARENA = 0x7F0000000000
FIRST = ARENA + 48
"""The arena is aligned to pools, so its first pool begins with it."""
OLD_POOL = ARENA - 16 * MIB + 2 * POOL
OLD = OLD_POOL + 48 + 3 * 32
"""The fourth block of 32 bytes in a pool that is older than the recording."""
MAP, UNMAP, OLDER = Op.ARENA_MAPPED, Op.ARENA_UNMAPPED, Op.FOREIGN_FREE


def recording(*rows, start=CLEAN_START, interpreter="cpython 3.11.7", addresses=True, counts=()):
    """Rows of op, block, size, address: all of the domain obj."""
    op, block, size, address = (np.array(column) for column in zip(*rows, strict=True))
    count = len(rows)
    events = Events(
        time_ns=np.arange(count),
        thread=np.zeros(count, np.uint32),
        op=op.astype(np.uint8),
        domain=np.full(count, Domain.OBJ, np.uint8),
        block=block.astype(np.uint32),
        size=size.astype(np.int64),
        address=address.astype(np.uint64) if addresses else None,
    )
    return MemoryTrace([events], Metadata(Provenance(start=start, interpreter=interpreter), counts=counts))


def test_the_first_block_is_in_the_recorded_arena():
    agreement = verify_recording(
        recording((MAP, 0, MIB, ARENA), (Op.MALLOC, 0, 20, FIRST), (Op.MALLOC, 1, 20, FIRST + 32))
    )
    assert agreement.exact
    assert (agreement.preset, agreement.events) == ("cpython-3.11", 3)
    assert (agreement.addresses_compared, agreement.addresses_equal) == (2, 2)
    assert (agreement.arena_events_compared, agreement.arena_events_equal, agreement.releases) == (1, 1, 0)


def test_a_block_at_another_address_is_reported_with_its_row():
    agreement = verify_recording(
        recording((MAP, 0, MIB, ARENA), (Op.MALLOC, 0, 20, FIRST), (Op.MALLOC, 1, 20, FIRST + 64))
    )
    assert not agreement.exact
    assert agreement.addresses_equal == 1
    assert (
        agreement.difference
        == f"row 2: malloc of 20 bytes was at {FIRST + 64:#x}, in the model it is at {FIRST + 32:#x}"
    )


def test_the_address_of_an_older_block_is_reused_by_its_class():
    agreement = verify_recording(
        recording(
            (OLDER, 0, 0, OLD),
            (Op.MALLOC, 0, 20, OLD),  # shows that the pool has blocks of 32 bytes
            (OLDER, 0, 0, OLD + 64),
            (OLDER, 0, 0, OLD + 32),
            (Op.MALLOC, 1, 17, OLD + 32),
            (Op.MALLOC, 2, 32, OLD + 64),
            (MAP, 0, MIB, ARENA),
            (Op.MALLOC, 3, 32, FIRST),
        )
    )
    assert agreement.exact, agreement.difference
    assert (agreement.older_frees, agreement.older_frees_unseen) == (3, 0)


def test_an_older_block_whose_address_is_not_reused_is_only_counted():
    agreement = verify_recording(recording((OLDER, 0, 0, OLD), (MAP, 0, MIB, ARENA), (Op.MALLOC, 0, 20, FIRST)))
    assert agreement.exact
    assert (agreement.older_frees, agreement.older_frees_unseen) == (0, 1)


@pytest.mark.parametrize(("late", "exact"), [(0, False), (1, True)])
def test_a_released_arena_is_compared_with_its_moment(late, exact):
    """Two arenas of blocks of 512 bytes are filled and emptied."""
    per_pool, pools = (POOL - 48) // 512, 64
    place = [
        base + pool * POOL + 48 + block * 512
        for base in (ARENA, ARENA - MIB)
        for pool in range(pools)
        for block in range(per_pool)
    ]
    rows = [(Op.MALLOC, number, 512, address) for number, address in enumerate(place)]
    half = len(rows) // 2
    rows = [(MAP, 0, MIB, ARENA), *rows[:half], (MAP, 0, MIB, ARENA - MIB), *rows[half:]]
    # The first empty one is kept as the last usable arena; then the other one is unmapped.
    frees = [*range(half, 2 * half), *range(half)]
    rows += [(Op.FREE, number, 0, 0) for number in frees]
    rows.insert(len(rows) - 1 + late, (UNMAP, 0, MIB, ARENA))
    agreement = verify_recording(recording(*rows))
    assert agreement.exact == exact
    assert agreement.releases == 1
    assert agreement.addresses_equal == agreement.addresses_compared == 2 * half
    if not exact:
        moment = f"arena {ARENA:#x} unmapped after call {4 * half - 1}"
        assert agreement.arena_difference == f"arena event 2: {moment} in the recording, {moment} in the model"


def test_differences_after_a_pool_of_older_blocks_is_empty_are_no_failure():
    blocks = (POOL - 48) // 512
    places = [OLD_POOL + 48 + 512 * block for block in range(blocks)]
    rows = [(OLDER, 0, 0, places[0]), (Op.MALLOC, 0, 512, places[0]), (Op.FREE, 0, 0, 0)]
    rows += [(OLDER, 0, 0, place) for place in places[1:]]
    elsewhere = (Op.MALLOC, 0, 300, OLD_POOL + 7 * POOL + 48)
    agreement = verify_recording(recording(*rows, elsewhere))
    assert not agreement.exact
    assert agreement.prediction_agrees
    assert agreement.predictable_events == len(rows) - 1
    assert not verify_recording(recording(*rows[:-1], elsewhere)).prediction_agrees


def test_a_pool_of_older_blocks_emptied_by_the_program_is_found_at_the_next_row_without_a_block():
    places = [OLD_POOL + 48 + 512 * number for number in range((POOL - 48) // 512)]
    rows = [(OLDER, 0, 0, places[0]), (Op.MALLOC, 0, 512, places[0]), *((OLDER, 0, 0, place) for place in places[1:])]
    rows += [(Op.FREE, 0, 0, 0), (Op.GC_START, 0, 0, 0), (Op.MALLOC, 0, 300, OLD_POOL + 7 * POOL + 48)]
    agreement = verify_recording(recording(*rows))
    assert agreement.difference
    assert agreement.prediction_agrees
    assert agreement.predictable_events == len(rows) - 2


def test_a_pool_of_older_blocks_can_be_reused_by_another_class():
    simulator = Simulator(load_config("cpython-3.11", LOW_ADDRESSES))
    for block in range((POOL - 48) // 512):
        simulator.adopt(OLD_POOL + 48 + 512 * block, 512, block, 0)
        simulator.check()
    assert (simulator.tally.pools_free, simulator.tally.pools_full) == (1, 63)
    assert simulator.observe()["arenas"]["pools_free"].tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start": "as it was"}, "did not start clean"),
        ({"addresses": False}, "has no addresses"),
        ({"interpreter": "pypy 7.3"}, "only CPython has models"),
    ],
)
def test_recordings_that_cannot_be_compared_are_refused(changes, sentence):
    with pytest.raises(ReplayError, match=sentence):
        verify_recording(recording((Op.MALLOC, 0, 20, FIRST), **changes))


def test_a_trace_of_another_source_is_not_a_recording():
    assert not is_recording(MemoryTrace([]))


def counted(last_classes, **changes):
    """A recording of five blocks of 32 bytes, two of them at addresses of older ones, and its counts: 3 older
    arenas."""
    first = PoolCount(0, 3, 0, 3, 3, 0, (ClassCount(32, 7, 3570, 0), ClassCount(64, 2, 510, 0)))
    last = {"row": 9, "arenas_mapped": 4, "arenas_unmapped": 0, "arenas_highest": 4, "arenas": 4, "pools_free": 63}
    return recording(
        (OLDER, 0, 0, OLD),
        (OLDER, 0, 0, OLD_POOL + 8 * POOL + 48),  # in another pool, whose class stays unknown
        (Op.MALLOC, 0, 20, OLD),
        (OLDER, 0, 0, OLD + 32),
        (Op.MALLOC, 1, 20, OLD + 32),
        (MAP, 0, MIB, ARENA),
        (Op.MALLOC, 2, 20, FIRST),
        (Op.MALLOC, 3, 20, FIRST + 32),
        (Op.FREE, 2, 0, 0),
        (Op.MALLOC, 4, 20, FIRST),
        counts=(first, PoolCount(**(last | changes), classes=last_classes)),
    )


def test_pymallocs_own_counts_are_compared_by_what_changed():
    agreement = verify_recording(counted((ClassCount(32, 8, 3571, 509), ClassCount(64, 2, 509, 1))))
    assert agreement.counts.difference is None
    assert agreement.exact
    assert (agreement.counts.compared, agreement.counts.equal) == (3 * 32 + 6, 3 * 32 + 6)
    assert (agreement.counts.row, agreement.counts.blocks_unplaced) == (9, 1)


@pytest.mark.parametrize(
    ("classes", "changes", "difference"),
    [
        ((ClassCount(32, 9, 3571, 509), ClassCount(64, 2, 509, 1)), {}, "pools of 32 bytes: 2 in the program, 1 in"),
        ((ClassCount(32, 8, 3572, 509), ClassCount(64, 2, 509, 1)), {}, "live blocks of 32 bytes: 2 in the program, 1"),
        ((ClassCount(32, 8, 3572, 508), ClassCount(64, 2, 509, 1)), {}, "free blocks of 32 bytes: 508 in"),
        ((ClassCount(32, 8, 3571, 509), ClassCount(64, 2, 508, 2)), {}, "free blocks of unknown class: 2 in"),
        (None, {"pools_free": 62}, "free pools: 62 in the program, 63 in the model"),
        (None, {"arenas_mapped": 5}, "arenas mapped: 2 in the program, 1 in the model"),
        (None, {"arenas_unmapped": 1}, "arenas unmapped: 1 in the program, 0 in the model"),
        (None, {"arenas_highest": 5}, "most arenas: 5 in the program, 4 in the model"),
        (None, {"arenas": 3}, "arenas: 3 in the program, 4 in the model"),
    ],
)  # fmt: skip
def test_a_different_count_is_reported_and_a_failure(classes, changes, difference):
    classes = classes or (ClassCount(32, 8, 3571, 509), ClassCount(64, 2, 509, 1))
    agreement = verify_recording(counted(classes, **changes))
    assert agreement.counts.difference.startswith(difference)
    assert agreement.counts.equal < agreement.counts.compared
    assert not agreement.exact
    assert not agreement.prediction_agrees


def test_counts_of_missing_rows_are_refused():
    with pytest.raises(ReplayError, match="do not belong to this recording"):
        verify_recording(counted((ClassCount(32, 8, 3571, 509),), row=99))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "trace.parquet"
    record("--clean", "-o", path, "-c", ALLOCATING_PROGRAM, check=True)
    return path


@pytest.mark.system
def test_every_address_and_arena_of_a_recorded_program_equals_the_model(recorded):
    agreement = verify_recording(open_source(recorded))
    assert agreement.exact, (agreement.difference, agreement.arena_difference)
    assert agreement.addresses_compared > 200_000
    assert agreement.arena_events_compared > 5


@pytest.mark.system
def test_pymalloc_of_a_recorded_program_counts_as_the_model_does(recorded):
    trace = open_source(recorded)
    first, last = trace.metadata.counts
    assert first.row < 300 < 100_000 < last.row < trace.events_total
    assert {each.block_bytes for each in last.classes} == set(range(16, 513, 16))
    agreement = verify_recording(trace)
    assert agreement.counts.difference is None
    assert agreement.counts.compared == agreement.counts.equal == 102


@pytest.mark.system
def test_the_command_prints_the_comparison(recorded):
    result = invoke("verify", recorded, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.output[result.output.index("{") :])
    assert document["exact"]
    assert document["addresses_compared"] == document["addresses_equal"]
    assert document["counts"]["difference"] is None
    output = invoke("verify", recorded).output
    assert "0 unequal" in output
    assert "counts        102 compared, 0 unequal: pools and blocks by size class, arenas;" in output


@pytest.mark.system
def test_a_report_says_that_older_blocks_are_left_out(recorded):
    printed = output_of("run", recorded, "--no-reference")
    older = int(open_source(recorded).metadata.origin.texts()["foreign_frees"])
    assert f"{older:,} blocks older than the recording were freed while it ran" in " ".join(printed.split())
