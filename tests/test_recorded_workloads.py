"""The bundled recordings: small, described, and exact in every address."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from replay.__main__ import app
from replay.sources import open_source
from replay.support.bundled_files import find_program, find_workload, recorded_names, workload_names
from replay.trace import Op
from replay.verification.recordings import verify_recording

FOLDER = Path(__file__).parents[1] / "workloads" / "recorded"
RECORDED = recorded_names()
FILE_BYTES, ALL_BYTES, EVENTS = 2_000_000, 8_000_000, 600_000
COMPARED = {
    "async-tree": (217_327, 8, 0),
    "deltablue": (238_202, 6, 0),
    "flask-requests": (123_759, 2, 0),
    "jinja2-pages": (179_696, 7, 2),
    "json-roundtrip": (135_526, 4, 1),
    "numpy-columns": (159_522, 2, 0),
    "raytrace": (61_166, 1, 0),
    "sqlalchemy-orders": (109_353, 2, 0),
}
"""Numbers of compared addresses, arena events and releases: later comparisons must not compare less."""


def test_there_are_at_least_six_and_a_program_of_each():
    assert len(RECORDED) >= 6
    assert [path.stem for path in sorted((FOLDER / "programs").iterdir()) if path.suffix == ".py"] == RECORDED
    assert not set(RECORDED) & set(workload_names())


@pytest.mark.parametrize("name", RECORDED)
def test_every_address_and_arena_is_where_it_was(name):
    agreement = verify_recording(open_source(name))
    assert (agreement.difference, agreement.arena_difference) == (None, None)
    assert agreement.addresses_equal == agreement.addresses_compared
    assert agreement.arena_events_equal == agreement.arena_events_compared
    counts = agreement.addresses_compared, agreement.arena_events_compared, agreement.releases
    assert counts == COMPARED[name]


@pytest.mark.parametrize("name", RECORDED)
def test_it_is_small(name):
    assert find_workload(name).stat().st_size <= FILE_BYTES
    assert open_source(name).events_total <= EVENTS


def test_all_of_them_are_small():
    assert sum(find_workload(name).stat().st_size for name in RECORDED) <= ALL_BYTES


@pytest.mark.parametrize("name", RECORDED)
def test_its_origin_has_no_folders_of_the_machine(name):
    metadata = open_source(name).metadata
    program, file = f"workloads/recorded/programs/{name}.py", f"workloads/recorded/{name}.parquet"
    assert re.fullmatch(rf"python[0-9.]* {program}( {file})?", metadata.origin.texts()["command"])
    assert re.fullmatch(r"cpython 3\.11\.\d+", metadata.origin.texts()["interpreter"])
    assert metadata.origin.texts()["platform"].startswith("Linux-")
    assert metadata.origin.texts()["start"] == "clean"
    texts = [value for key, value in metadata.origin.texts().items() if key != "command"]
    assert not [text for text in (*texts, *metadata.phases, *metadata.sites) if "/" in text]


@pytest.mark.parametrize("name", RECORDED)
def test_its_phases_are_those_of_its_program_and_each_has_events(name):
    trace = open_source(name)
    marks = np.concatenate([events.op == Op.MARK for events in trace.batches()])
    assert list(trace.metadata.phases) == re.findall(r'replay\.mark\("(.*)"\)', find_program(name).read_text())
    assert len(trace.metadata.phases) >= 2
    assert np.diff(np.append(np.flatnonzero(marks), len(marks))).min() > 50


@pytest.mark.parametrize("name", RECORDED)
def test_its_program_has_a_docstring_of_one_sentence(name):
    text = ast.get_docstring(ast.parse(find_program(name).read_text()))
    assert len(text) > 60
    assert text.endswith(".")
    assert ". " not in text.replace("\n", " ")


def test_a_recording_is_listed_among_the_workloads():
    result = CliRunner().invoke(app, ["workloads"], terminal_width=100)
    assert "json-roundtrip" in result.stdout
    assert "Recorded. " in result.stdout


def test_a_recording_cannot_be_generated(tmp_path):
    result = CliRunner().invoke(app, ["generate", "json-roundtrip", "-o", str(tmp_path / "t.parquet")])
    assert str(result.exception).startswith("json-roundtrip: is a recording, which is a trace already: ")
    assert list(tmp_path.iterdir()) == []
