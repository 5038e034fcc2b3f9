"""Provenance: its fields, their names in files, and texts of other programs."""

from dataclasses import fields, replace

import pytest

from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.trace import MemoryTrace, Metadata, Provenance
from replay.trace.provenance import common_provenance

RECORDED = {
    "interpreter": "cpython 3.12.1",
    "command": "python app.py",
    "start": "clean",
    "foreign_frees": "7",
    "foreign_reallocs": "0",
    "unseen_frees": "2",
    "left_out_calls": "5",
    "sites": "every call",
}


def test_texts_of_a_file_become_fields_and_the_same_texts_again():
    origin = Provenance.from_texts(RECORDED)
    assert origin == Provenance(
        interpreter="cpython 3.12.1", command="python app.py", start="clean", older_frees=7, older_reallocs=0,
        unseen_frees=2, left_out_calls=5, sites="every call",
    )  # fmt: skip
    assert origin.texts() == RECORDED
    assert (origin.implementation, origin.cpython_version) == ("cpython", "3.12")


def test_every_field_has_one_name_of_its_own_in_files():
    values = {each.name: 3 if each.type == int | None else "x" for each in fields(Provenance) if each.name != "notes"}
    whole = Provenance(**values)
    assert len(whole.texts()) == len(values)
    assert Provenance.from_texts(whole.texts()) == whole
    assert {"traced allocators", "cut short", "assumed time", "born by realloc", "dropped mapping bytes"} <= set(
        whole.texts()
    )


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "007", "", "٣", "1" * 5000])
def test_a_count_that_is_no_number_is_kept_as_a_note(text):
    origin = Provenance.from_texts({"dropped frees": text})
    assert (origin.dropped_frees, origin.notes) == (None, {"dropped frees": text})
    assert origin.texts() == {"dropped frees": text}


def test_a_note_does_not_replace_a_field():
    assert Provenance(seed=3, notes={"seed": "x", "by": "me"}).texts() == {"seed": "3", "by": "me"}


def test_an_edit_is_noted_after_earlier_ones_and_drops_facts_about_the_whole_recording():
    edited = Provenance.from_texts(RECORDED).edited_by("cut --to 1s").edited_by("scale --repeat 2")
    assert edited.texts() == {
        "interpreter": "cpython 3.12.1",
        "command": "python app.py",
        "sites": "every call",
        "edited": "cut --to 1s; scale --repeat 2",
    }


def test_traces_have_in_common_what_all_agree_on():
    first = Provenance(interpreter="cpython 3.12.1", seed=1, notes={"host": "h", "of": "a"})
    second = replace(first, seed=2, notes={"host": "h", "of": "b"})
    assert common_provenance([first, second]) == Provenance(interpreter="cpython 3.12.1", notes={"host": "h"})


def test_a_parquet_file_preserves_the_provenance(tmp_path):
    origin = Provenance(source="csv", dropped_lines=3, notes={"host": "h"})
    write_trace(MemoryTrace([], Metadata(origin)), tmp_path / "t.parquet")
    assert open_source(tmp_path / "t.parquet").metadata.origin == origin
