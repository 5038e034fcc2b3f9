"""The registry of columns: unknown columns are refused, one entry is a column."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import replay
from replay.__main__ import app
from replay.sources import open_source
from replay.support.errors import TraceError
from replay.trace import COLUMNS, NO_SITE, OPTIONAL, REQUIRED, Events, Metadata, joined

ROWS = {"time_ns": [1, 2], "thread": [0, 0], "op": [0, 3], "domain": [2, 2], "block": [0, 0], "size": [16, 0]}


def write(path, **more):
    metadata = {"replay": json.dumps({"format_version": 1, "origin": {"seed": "7"}})}
    pl.DataFrame(ROWS | more).write_parquet(path, metadata=metadata)
    return path


def test_required_columns_come_first_and_have_no_null_while_optional_ones_do():
    assert (*REQUIRED, *OPTIONAL) == tuple(COLUMNS) == Events._fields
    assert all(COLUMNS[name].null is None for name in REQUIRED)
    assert all(COLUMNS[name].null is not None for name in OPTIONAL)


def test_each_table_that_a_column_points_into_is_a_field_of_the_metadata():
    tables = [column.table for column in COLUMNS.values() if column.table]
    assert tables == ["sites", "types"]
    assert all(getattr(Metadata(), table) == () for table in tables)


def test_joined_batches_have_nulls_for_columns_that_only_others_have():
    plain = Events(**{name: np.array(values, COLUMNS[name].memory_type) for name, values in ROWS.items()})
    both = joined([plain, plain._replace(site=np.array([4, 5], np.uint32))])
    assert both.site.tolist() == [NO_SITE, NO_SITE, 4, 5]
    assert both.address is None
    assert both.size.tolist() == [16, 0, 16, 0]


def test_an_unknown_column_of_a_parquet_file_is_refused_with_the_nearest_name(tmp_path):
    path = write(tmp_path / "t.parquet", adress=[16, None])
    with pytest.raises(TraceError) as refusal:
        open_source(path)
    advice = "`replay import --lenient` leaves it out; did you mean 'address'?"
    assert str(refusal.value) == f"{path}: column `adress` is unknown; {advice}"


@pytest.mark.parametrize("command", ["cut", "filter", "merge", "scale"])
def test_every_edit_refuses_an_unknown_column(tmp_path, command):
    path = write(tmp_path / "t.parquet", label=["a", "b"])
    sources = [path, path] if command == "merge" else [path]
    done = CliRunner().invoke(app, ["trace", command, *map(str, sources), "-o", str(tmp_path / "o.parquet")])
    assert "column `label` is unknown" in str(done.exception)
    assert not (tmp_path / "o.parquet").exists()


def test_a_lenient_import_leaves_unknown_columns_out_and_names_them_in_the_origin(tmp_path):
    path, output = write(tmp_path / "t.parquet", label=["a", "b"], kind=[1, 2], site=[3, None]), tmp_path / "o.parquet"
    done = CliRunner().invoke(app, ["import", str(path), "--lenient", "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert "unknown columns, left out: label, kind" in done.stdout
    trace = open_source(output)
    assert trace.metadata.origin.texts() == {"seed": "7", "dropped columns": "label, kind"}
    (events,) = trace.batches()
    assert events.present().keys() == {*REQUIRED, "site"}


def test_the_parts_of_a_merged_trace_may_have_different_optional_columns(tmp_path):
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", site=[3, None])
    output = tmp_path / "o.parquet"
    sources = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    done = CliRunner().invoke(app, ["trace", "merge", *sources, "-o", str(output)])
    assert done.exit_code == 0, done.output
    (events,) = open_source(output).batches()
    assert events.present().keys() == {*REQUIRED, "site"}


ENTRY = """
    colour: Annotated[
        np.ndarray | None,
        Column("uint16", "uint16", "the colour of the object; null where unknown", written_by="a test", null=65535),
    ] = None
"""
PROGRAM = """
import sys
from pathlib import Path

import numpy as np
import polars as pl

from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.trace import Events, MemoryTrace, trace_digest
from replay.trace.editing.cutting import Piece, cut
from replay.trace.editing.merging import Part, merged
from replay.trace.editing.scaling import repeated
from replay.trace.editing.selecting import Conditions, FilteredTrace

folder = Path(sys.argv[1])
rows = {
    "time_ns": [0, 10, 20, 30, 40],
    "thread": [0] * 5,
    "op": [0, 0, 0, 3, 2],
    "domain": [2] * 5,
    "block": [0, 1, 2, 1, 2],
    "size": [64, 9, 30, 0, 31],
}
pl.DataFrame(rows).write_parquet(folder / "plain.parquet")
pl.DataFrame(rows | {"colour": [7, 8, 9, None, 10]}).write_parquet(folder / "typed.parquet")
pl.DataFrame(rows | {"colour": [7, 8, 9, None, 10]}).write_csv(folder / "typed.csv")


def types(trace):
    write_trace(trace, folder / "out.parquet", force=True)
    return pl.read_parquet(folder / "out.parquet")["colour"].to_list()


typed, plain = open_source(folder / "typed.parquet"), open_source(folder / "plain.parquet")
assert Events._fields.index("colour") == 6, Events._fields
assert trace_digest(typed) == trace_digest(plain)
assert types(typed) == types(open_source(folder / "typed.csv")) == [7, 8, 9, None, 10]
assert types(cut(typed, Piece(from_ns=35), "")) == [7, 9, 10]
assert types(FilteredTrace(typed, Conditions(min_size=30), "")) == [7, 9, 10]
assert types(merged([Part(plain, "a"), Part(typed, "b", 100)], "")) == [None] * 5 + [7, 8, 9, None, 10]
assert types(repeated(typed, 2, "", keep_live=False)) == [7, 8, 9, None, 10, None, None, 7, 8, 9, None, 10]
"""


@pytest.mark.system
def test_a_further_optional_column_takes_one_entry_in_the_registry_and_no_other_change(tmp_path):
    package = tmp_path / "package"
    shutil.copytree(Path(replay.__file__).parent, package / "replay", ignore=shutil.ignore_patterns("__pycache__"))
    registry = package / "replay" / "trace" / "columns.py"
    text = registry.read_text()
    place = text.index("    address: Annotated[")
    registry.write_text(text[:place] + ENTRY.lstrip("\n") + text[place:])
    environment = os.environ | {"PYTHONPATH": str(package), "NUMBA_DISABLE_JIT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        [sys.executable, "-m", "replay", "trace", "head", "typed.parquet", "--json"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [row["colour"] for row in json.loads(shown.stdout)] == [7, 8, 9, None, 10]
