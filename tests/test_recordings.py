"""Recordings held against the model: by hand, and of programs recorded on the spot."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from replay.commands.verify import verify as verify_command
from replay.config import load_config
from replay.engine import Player
from replay.errors import ReplayError
from replay.sources import open_source
from replay.trace import CLEAN_START, START, Domain, Events, MemoryTrace, Metadata, Op
from replay.verification.recordings import LOW_ADDRESSES, is_recording, verify_recording

MIB, POOL = 1 << 20, 16 << 10
ARENA = 0x7F0000000000
FIRST = ARENA + 48
"""The arena lies on a pool's boundary, so its first pool begins with it."""
OLD_POOL = ARENA - 16 * MIB + 2 * POOL
OLD = OLD_POOL + 48 + 3 * 32
"""The fourth block of 32 bytes in a pool that is older than the recording."""
MAP, UNMAP, OLDER = Op.ARENA_MAPPED, Op.ARENA_UNMAPPED, Op.FOREIGN_FREE


def recording(*rows, start=CLEAN_START, interpreter="cpython 3.11.7", addresses=True):
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
    return MemoryTrace([events], Metadata(origin={START: start, "interpreter": interpreter}))


def test_the_first_block_lies_in_the_arena_that_was_recorded():
    agreement = verify_recording(
        recording((MAP, 0, MIB, ARENA), (Op.MALLOC, 0, 20, FIRST), (Op.MALLOC, 1, 20, FIRST + 32))
    )
    assert agreement.exact
    assert (agreement.preset, agreement.events) == ("cpython-3.11", 3)
    assert (agreement.addresses_compared, agreement.addresses_equal) == (2, 2)
    assert (agreement.arena_events_compared, agreement.arena_events_equal, agreement.releases) == (1, 1, 0)


def test_a_block_that_lies_elsewhere_is_told_with_its_row():
    agreement = verify_recording(
        recording((MAP, 0, MIB, ARENA), (Op.MALLOC, 0, 20, FIRST), (Op.MALLOC, 1, 20, FIRST + 64))
    )
    assert not agreement.exact
    assert agreement.addresses_equal == 1
    assert (
        agreement.difference
        == f"row 2: malloc of 20 bytes was at {FIRST + 64:#x}, in the model it is at {FIRST + 32:#x}"
    )


def test_an_older_block_leaves_its_place_to_the_next_of_its_class():
    agreement = verify_recording(
        recording(
            (OLDER, 0, 0, OLD),
            (Op.MALLOC, 0, 20, OLD),  # which tells that the pool has blocks of 32 bytes
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


def test_an_older_block_whose_place_nobody_takes_is_counted_and_changes_nothing():
    agreement = verify_recording(recording((OLDER, 0, 0, OLD), (MAP, 0, MIB, ARENA), (Op.MALLOC, 0, 20, FIRST)))
    assert agreement.exact
    assert (agreement.older_frees, agreement.older_frees_unseen) == (0, 1)


@pytest.mark.parametrize(("late", "exact"), [(0, False), (1, True)])
def test_an_arena_that_goes_back_is_compared_with_its_moment(late, exact):
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
    # The one that is empty first is kept, as the last of the usable ones; the other then goes.
    frees = [*range(half, 2 * half), *range(half)]
    rows += [(Op.FREE, number, 0, 0) for number in frees]
    rows.insert(len(rows) - 1 + late, (UNMAP, 0, MIB, ARENA))
    agreement = verify_recording(recording(*rows))
    assert agreement.exact == exact
    assert agreement.releases == 1
    assert agreement.addresses_equal == agreement.addresses_compared == 2 * half
    if not exact:
        moment = f"arena {ARENA:#x} unmapped behind call {4 * half - 1}"
        assert agreement.arena_difference == f"arena event 2: {moment} in the recording, {moment} in the model"


def test_what_differs_once_a_pool_of_older_blocks_is_empty_is_no_failure():
    blocks = (POOL - 48) // 512
    places = [OLD_POOL + 48 + 512 * block for block in range(blocks)]
    rows = [(OLDER, 0, 0, places[0]), (Op.MALLOC, 0, 512, places[0]), (Op.FREE, 0, 0, 0)]
    rows += [(OLDER, 0, 0, place) for place in places[1:]]
    elsewhere = (Op.MALLOC, 0, 300, OLD_POOL + 7 * POOL + 48)
    agreement = verify_recording(recording(*rows, elsewhere))
    assert not agreement.exact
    assert agreement.foretold
    assert agreement.foretold_events == len(rows) - 1
    assert not verify_recording(recording(*rows[:-1], elsewhere)).foretold


def test_a_pool_of_older_blocks_can_empty_and_be_taken_for_another_class():
    player = Player(load_config("cpython-3.11", LOW_ADDRESSES))
    for block in range((POOL - 48) // 512):
        player.adopt(OLD_POOL + 48 + 512 * block, 512, block)
        player.check()
    assert (player.tally.pools_free, player.tally.pools_full) == (1, 63)
    assert player.observe()["arenas"]["pools_free"].tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start": "as it was"}, "did not start clean"),
        ({"addresses": False}, "has no addresses"),
        ({"interpreter": "pypy 7.3"}, "models of CPython only"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, sentence):
    with pytest.raises(ReplayError, match=sentence):
        verify_recording(recording((Op.MALLOC, 0, 20, FIRST), **changes))


def test_a_trace_of_another_source_is_no_recording():
    assert not is_recording(MemoryTrace([]))


PROGRAM = """
import json
documents = [{"id": i, "name": "x" * (i % 40), "tags": [str(j) for j in range(i % 7)]} for i in range(4000)]
for _ in range(2):
    texts = [json.dumps(document) for document in documents]
    again = [json.loads(text) for text in texts]
words = {}
for i in range(30000):
    words[f"w{i % 9000}"] = [i] * (i % 20)
    if i % 3 == 0:
        words.pop(f"w{i // 2 % 9000}", None)
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "trace.parquet"
    command = [sys.executable, "-m", "replay", "record", "--clean", "-o", str(path), "-c", PROGRAM]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_every_address_and_arena_of_a_recorded_program_is_where_the_model_has_it(recorded):
    agreement = verify_recording(open_source(recorded))
    assert agreement.exact, (agreement.difference, agreement.arena_difference)
    assert agreement.addresses_compared > 200_000
    assert agreement.arena_events_compared > 5


def test_the_command_tells_it(recorded):
    app = Typer()
    app.command()(verify_command)
    result = CliRunner().invoke(app, [str(recorded), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output[result.output.index("{") :])
    assert told["exact"]
    assert told["addresses_compared"] == told["addresses_equal"]
    assert "0 unequal" in CliRunner().invoke(app, [str(recorded)]).output


def test_a_report_says_that_older_blocks_are_left_out(recorded):
    command = [sys.executable, "-m", "replay", "run", str(recorded), "--no-reference"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    older = int(open_source(recorded).metadata.origin["foreign_frees"])
    assert f"Left out: blocks older than the recording, of which {older:,} were freed" in " ".join(told.split())
