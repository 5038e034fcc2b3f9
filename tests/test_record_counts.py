"""pymalloc's statistics in a clean recording: parsed, stored with their row, and missing if they cannot be made."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import record, recorded, run_python

import replay
from replay.recorder import tap as taps
from replay.recorder.counting import read_count
from replay.trace import ClassCount, Domain, Op, PoolCount
from replay.trace.editing.cutting import Piece
from replay.trace.editing.cutting import cut as cut_trace
from replay.verification.recordings import verify_recording

pytestmark = pytest.mark.system

if reason := taps.obstacle(clean=True):
    pytest.skip(reason, allow_module_level=True)

TEXT = """Small block threshold = 512, in 32 size classes.

class   size   num pools   blocks in use  avail blocks
-----   ----   ---------   -------------  ------------
    0     16           1             106           915
    3     64         442          112600           110

# arenas allocated total           =                1,010
# arenas reclaimed                 =                  993
# arenas highwater mark            =                   20
# arenas allocated current         =                   17
17 arenas * 1048576 bytes/arena    =           17,825,792

# bytes in allocated blocks        =            9,896,240
# bytes in available blocks        =              323,680
1,006 unused pools * 16384 bytes   =           16,482,304
"""


def test_pymallocs_statistics_are_parsed():
    classes = (ClassCount(16, 1, 106, 915), ClassCount(64, 442, 112_600, 110))
    assert read_count(TEXT, 7) == PoolCount(7, 1010, 993, 20, 17, 1006, classes)
    assert read_count(TEXT[: TEXT.index("# arenas highwater")], 7) is None
    assert read_count("", 7) is None


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("import os; os._exit(0)", ["--clean"]),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ["--clean"]),
        ("pass", []),
    ],
    ids=["os._exit", "killed", "not clean"],
)
def test_there_are_no_counts_without_an_end_or_a_clean_start(tmp_path, code, options):
    assert recorded(tmp_path, *options, "-c", code).metadata.counts == ()


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "1 / 0", "import atexit; atexit.register(print)"])
def test_a_program_counts_at_every_kind_of_end(tmp_path, code):
    trace = recorded(tmp_path, "--clean", "-c", code)
    first, last = trace.metadata.counts
    assert 0 < first.row < last.row < trace.events_total
    assert verify_recording(trace).counts.difference is None


def test_a_program_has_nothing_to_show_of_the_count(tmp_path):
    """The program's output goes to its own descriptors."""
    code = "import atexit, os; atexit.register(lambda: print(sorted(os.listdir('/proc/self/fd'))))"
    done = record("--clean", "-o", tmp_path / "trace.parquet", "-c", code)
    bare = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == bare.stdout
    assert "class" not in done.stderr


def test_a_forked_child_does_not_count(tmp_path):
    code = "import os, sys\nif os.fork() == 0: sys.exit(0)\nos.wait()\nkept = [bytes(100) for _ in range(9000)]"
    trace = recorded(tmp_path, "--clean", "-c", code)
    _, last = trace.metadata.counts
    assert sum(each.blocks for each in last.classes if each.block_bytes == 144) > 9000
    assert last.row > 9000


def test_each_recording_of_a_process_has_counts_of_its_own(tmp_path):
    script = (
        "import replay\n"
        "for number in range(2):\n"
        "    with replay.record(f'{number}.parquet', clean=True):\n"
        "        kept = [bytes(100) for _ in range(9000 * (number + 1))]\n"
        "with replay.record('2.parquet'): pass\n"
    )
    assert run_python("-c", script, cwd=tmp_path).returncode == 0
    for number in range(2):
        trace = replay.open_source(tmp_path / f"{number}.parquet")
        _, last = trace.metadata.counts
        batches = list(trace.batches())
        op, domain, size = (
            np.concatenate([getattr(batch, name) for batch in batches]) for name in ("op", "domain", "size")
        )
        asked = (op <= Op.CALLOC) & (domain == Domain.OBJ) & (size == 133)
        assert np.count_nonzero(asked[: last.row]) == 9000 * (number + 1)
        assert np.count_nonzero(asked) == 9000 * (number + 1)
    assert replay.open_source(tmp_path / "2.parquet").metadata.counts == ()


def test_an_edited_recording_has_no_counts(tmp_path):
    trace = recorded(tmp_path, "--clean", "-c", "kept = [str(number) for number in range(1000)]")
    assert len(trace.metadata.counts) == 2
    piece = cut_trace(trace, Piece(1000), "cut")
    assert piece.metadata.counts == ()
    replay.write_trace(piece, tmp_path / "piece.parquet")
    assert replay.open_source(tmp_path / "piece.parquet").metadata.counts == ()
