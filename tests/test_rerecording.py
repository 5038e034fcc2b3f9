"""Notes about recordings that are simulated with another CPython."""

import json

import pytest
from histories import History

from replay.commands.rerecording import requests_note
from replay.sources.parquet import write_trace
from replay.trace import MemoryTrace, Metadata, Provenance

ORIGIN = Provenance(interpreter="cpython 3.11.7", command="python3 'my job.py' --fast")


@pytest.fixture
def noted(replay):
    """Calls `replay`, which must succeed; returns standard output, and notes on standard error."""

    def call(*arguments):
        code, out, err = replay(*arguments)
        assert code == 0
        return out, err[err.find("note: ") :] if "note: " in err else ""

    return call


@pytest.fixture
def recording(tmp_path):
    history = History()
    history.malloc(100)
    path = tmp_path / "job.parquet"
    write_trace(MemoryTrace([history.events()], Metadata(origin=ORIGIN)), path)
    return path


def test_a_run_with_another_version_has_a_note_with_the_record_command(noted, recording):
    out, note = noted("run", recording, "-a", "cpython-3.12", "--json", "--no-reference")
    assert json.loads(out)["events"] == 1
    assert note == (
        f"note: {recording} was recorded with CPython 3.11; its requests are those of that version,\n"
        "      and CPython 3.12 would request other sizes. To record them:\n"
        "      replay record --python python3.12 -o job-3.12.parquet 'my job.py' --fast\n"
    )
    assert noted("run", recording, "-a", "cpython-3.11", "--no-reference")[1] == ""


def test_a_sweep_over_versions_has_one_note_for_each_recording(noted, recording):
    _, note = noted("sweep", recording, "-a", "cpython-3.8,cpython-3.11,cpython-3.12")
    assert note.count("was recorded with") == 1
    assert (
        "and other versions would request other sizes. To record them:\n      replay record --python python3.12 "
        in note
    )
    assert noted("sweep", recording, "-a", "cpython-3.11", "--grid", "pymalloc.alignment=8,16")[1] == ""


def test_no_command_is_offered_for_a_version_that_cannot_be_recorded():
    note = requests_note("job.parquet", ORIGIN, ["cpython-3.8-glibc-2.41"])
    assert note.endswith("and CPython 3.8 would request other sizes (CPython 3.8 cannot be recorded)")


@pytest.mark.parametrize(
    "origin",
    [
        Provenance(),
        Provenance(workload="w", seed=1),
        Provenance(interpreter="pypy 3.11.0"),
        Provenance(interpreter="cpython 3.12.1"),
    ],
)
def test_other_traces_and_the_same_version_have_no_note(origin):
    assert requests_note("t.parquet", origin, ["cpython-3.12", "cpython-3.12-malloc", "ideal", "my stack"]) is None


def test_an_origin_that_anybody_wrote_cannot_steer_the_terminal_or_break_the_note():
    origin = Provenance(interpreter="cpython 3.11.7", command="python 'open \x1b[31m")
    note = requests_note("a\x1b.parquet", origin, ["cpython-3.13"])
    assert note.replace("\n", "").isprintable()
    assert note.endswith("replay record --python python3.13 -o 'a\\x1b-3.13.parquet' SCRIPT")
