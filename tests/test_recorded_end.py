"""The end of a recorded program is before CPython's finalization, which is a separate phase."""

import re

import numpy as np
import pytest
from conftest import record, recorded
from histories import History, seeded

from replay.analysis import frames, metrics
from replay.config import load_config
from replay.recorder import tap as taps
from replay.simulation.run import run
from replay.trace import TEARDOWN_MARK, MemoryTrace, Op

CONFIG = load_config("cpython-3.9")


def program(teardown, *, rounds=1):
    """A program that leaves blocks for the finalisation to free; `teardown` has it, and its mark, in the trace."""
    history = History()
    for round_ in range(rounds):
        history.at(100 * round_ + 10).mark(0)
        kept = history.mallocs(300, 500)
        history.at(100 * round_ + 50).free(*kept[::3])
        if teardown or round_ + 1 < rounds:
            history.at(100 * round_ + 80).mark(1)
            history.malloc(40_000_000)
            history.free(*(block for number, block in enumerate(kept) if number % 3))
    return history.trace("serve", TEARDOWN_MARK if teardown else "any other mark")


def results(trace, **options):
    recording = run(trace, CONFIG, sample_every_ns=7, **options)
    tables = frames.size_classes, frames.pools, frames.arenas
    return recording, metrics.summarize(recording), [table(recording) for table in tables]


@pytest.mark.parametrize("rounds", [1, 2])
def test_all_figures_are_those_before_the_last_teardown(rounds):
    _, summary, frames = results(program(True, rounds=rounds))
    _, expected, expected_frames = results(program(False, rounds=rounds))
    longer = ("duration_ns", "requested_bytes_mean", "mapped_bytes_mean", "resident_bytes_mean")
    later = {name: getattr(summary, name) for name in longer}  # the mark comes after the last event of the program
    assert summary == expected.model_copy(update=later)
    spans_ns = expected.duration_ns, 30
    held = np.dot(spans_ns, (expected.requested_bytes_mean, expected.requested_bytes_end)) / sum(spans_ns)
    assert summary.requested_bytes_mean == pytest.approx(held, abs=1)
    assert summary.duration_ns == expected.duration_ns + 30
    assert all(mine.equals(other) for mine, other in zip(frames, expected_frames, strict=True))
    assert summary.requested_bytes_end == 200 * 500 + (rounds - 1) * 40_000_000


def test_the_teardown_is_the_last_phase_and_live_blocks_before_it_are_known():
    recording, summary, _ = results(program(True))
    phases = frames.phases(recording)
    assert phases["phase"].to_list() == ["serve", TEARDOWN_MARK]
    assert phases["requested_bytes"].to_list() == [0, summary.requested_bytes_end]
    time_ns, tally = recording.teardown
    assert (time_ns, int(tally.requested_bytes)) == (70, 40_000_000)


def test_the_timeline_ends_with_the_program():
    recording, summary, _ = results(program(True))
    timeline = frames.timeline(recording)
    assert timeline["time_ns"].to_list() == [7, 14, 21, 28, 35, 42, 49, 56, 63, 70]
    assert timeline["requested_bytes"][-1] == summary.requested_bytes_end


def test_where_batches_end_does_not_matter():
    trace = program(True)
    (events,) = trace.events
    for row in (1, 300, 402, 403, 404, 500):
        parts = [events.keep_optional().where(part) for part in (slice(row), slice(row, None))]
        assert results(MemoryTrace(parts, trace.metadata))[1] == results(trace)[1]


def test_a_run_that_may_stop_early_is_not_judged_by_its_teardown():
    trace = program(True)
    (events,) = trace.events
    parts = [events.keep_optional().where(part) for part in (slice(450), slice(450, None))]
    recording, _, _ = results(MemoryTrace(parts, trace.metadata), stop=lambda tally: tally.arenas_unmapped == 0)
    assert int(recording.teardown[1].requested_bytes) == 40_000_000


def test_without_the_mark_the_end_is_the_last_event():
    trace = seeded(3, 400).trace()
    recording, summary, _ = results(trace)
    assert recording.teardown is None
    assert summary.events == trace.events_total


needs_recording = pytest.mark.skipif(taps.obstacle() is not None, reason=str(taps.obstacle()))


KEPT = "kept = [bytes(77_777) for _ in range(3)]\n"


@pytest.mark.system
@needs_recording
@pytest.mark.parametrize(
    "code",
    [
        KEPT,
        KEPT + "import sys; sys.exit(3)",
        KEPT + "1 / 0",
        "import atexit\natexit.register(lambda: globals().update(kept=[bytes(77_777) for _ in range(3)]))",
        "import threading, time\n"
        "def work():\n"
        "    threading.main_thread().join()\n"
        "    globals().update(kept=[bytes(77_777) for _ in range(3)])\n"
        "threading.Thread(target=work).start()",
    ],
    ids=["end", "sys.exit", "exception", "atexit", "thread"],
)
def test_the_end_mark_is_after_the_program_and_before_the_teardown(tmp_path, code):
    trace = recorded(tmp_path, "-c", code)
    assert trace.metadata.phases == (TEARDOWN_MARK,)
    op, size, block = (np.concatenate([batch[at] for batch in trace.batches()]) for at in (2, 5, 4))
    (mark,) = np.flatnonzero(op == Op.MARK).tolist()
    asked = np.flatnonzero((op <= Op.CALLOC) & (size == 77_777 + 33))
    freed = [int(np.flatnonzero((op == Op.FREE) & (block == block[row]))[-1]) for row in asked]
    assert len(asked) == 3
    assert max(asked) < mark < min(freed)


@pytest.mark.system
@needs_recording
@pytest.mark.parametrize("code", ["import os; os._exit(0)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_program_that_is_not_finalised_has_no_mark(tmp_path, code):
    assert recorded(tmp_path, "-c", KEPT + code).metadata.phases == ()


@pytest.mark.system
@needs_recording
def test_the_recorder_reports_live_blocks_at_the_end_of_the_program(tmp_path):
    done = record("-o", tmp_path / "trace.parquet", "-c", "kept = [bytes(100) for _ in range(9_000)]")
    live = re.search(r"([\d,]+) blocks live at the end", done.stderr)
    assert int(live[1].replace(",", "")) > 9_000


@pytest.mark.system
@needs_recording
def test_a_forked_child_marks_nothing_in_the_recording_of_its_parent(tmp_path):
    trace = recorded(tmp_path, "-c", "import os, sys\nif os.fork() == 0: sys.exit()\nos.wait()\n")
    assert sum(int((batch.op == Op.MARK).sum()) for batch in trace.batches()) == 1
