"""Traces in files: reading, writing, and error messages."""

import errno
import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from replay.sources import format_names, open_source
from replay.sources import parquet as parquet_source
from replay.sources.parquet import write_trace
from replay.support.atomic_files import new_file
from replay.support.errors import OutputError, ReplayError, TraceError
from replay.trace import (
    COLUMNS,
    NO_SITE,
    NO_TYPE,
    Events,
    MemoryTrace,
    Metadata,
    Op,
    ProcessMemory,
    Provenance,
    Site,
    trace_digest,
)

METADATA = Metadata(
    origin=Provenance(interpreter="3.12.1", seed=7),
    sites=(Site("parse", "app/parser.py", 12), Site("größe", "b.py", 3)),
    phases=("load", "serve"),
    process=ProcessMemory(4096, 8192, 100),
)


def small_events(**columns):
    """malloc 0, calloc 1, free 0, mark of phase 1."""
    return Events(
        np.array([5, 6, 6, 9], np.int64),
        np.array([1, 1, 2, 1], np.uint32),
        np.array([0, 1, 3, 32], np.uint8),
        np.array([2, 0, 2, 0], np.uint8),
        np.array([0, 1, 0, 0], np.uint32),
        np.array([100, 1 << 47, 0, 1], np.int64),
        **columns,
    )


def sawtooth(rows):
    """Blocks 0 … 99 are allocated, then freed, again and again."""
    index = np.arange(rows)
    frees = index // 100 % 2 == 1
    return Events(
        index * 25,
        np.zeros(rows, np.uint32),
        np.where(frees, 3, 0).astype(np.uint8),
        np.full(rows, 2, np.uint8),
        (index % 100).astype(np.uint32),
        np.where(frees, 0, index % 512),
    )


def write_table(path, columns, metadata=None):
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({"replay": metadata}) if metadata else table, path)
    return path


def good_columns(**changed):
    columns = {"time_ns": [1, 2], "thread": [0, 0], "op": [0, 3], "domain": [2, 2], "block": [0, 0], "size": [16, 0]}
    return columns | changed


def refusal(path):
    with pytest.raises(TraceError) as caught:
        for _ in open_source(path).batches():
            pass
    return str(caught.value)


def test_a_written_trace_is_read_back_with_types_and_metadata(tmp_path):
    address = np.array([0x7F00_0000_0010, 0xFFFF_FFFF_FFFF_FFF0, 0, 0], np.uint64)
    site = np.array([1, 0, NO_SITE, NO_SITE], np.uint32)
    type_ = np.array([NO_TYPE, NO_TYPE, 0, NO_TYPE], np.uint32)
    written = small_events(address=address, site=site, type=type_, alignment=np.zeros(4, np.uint32))
    path = tmp_path / "t.parquet"
    assert write_trace(MemoryTrace([written], METADATA), path) == 4
    trace = open_source(path)
    (read,) = trace.batches()
    assert read.present().keys() == written.present().keys() == COLUMNS.keys()
    for name, expected in written.present().items():
        column = getattr(read, name)
        assert column.tolist() == expected.tolist(), name
        assert column.dtype == expected.dtype, name
        assert column.flags.writeable, name
    assert trace.metadata == METADATA
    assert (trace.events_total, trace.duration_ns) == (4, 9)


def test_an_empty_trace_is_written_and_read(tmp_path):
    path = tmp_path / "t.parquet"
    assert write_trace(MemoryTrace([]), path) == 0
    trace = open_source(path)
    assert (trace.events_total, trace.duration_ns, list(trace.batches())) == (0, 0, [])


def test_the_same_trace_has_the_same_bytes_for_any_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_source, "GROUP_ROWS", 1000)
    whole = sawtooth(3500)
    parts = [whole.where(slice(a, b)) for a, b in [(0, 1), (1, 1), (1, 2999), (2999, 3500)]]
    write_trace(MemoryTrace([whole], METADATA), tmp_path / "a.parquet")
    write_trace(MemoryTrace(parts, METADATA), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(4)] == [1000, 1000, 1000, 500]
    assert trace_digest(open_source(tmp_path / "a.parquet")) == trace_digest(MemoryTrace([whole]))
    assert open_source(tmp_path / "a.parquet").duration_ns == 3499 * 25


def test_metadata_are_read_after_the_last_batch(tmp_path):
    class Growing:
        metadata = Metadata()

        def batches(self):
            yield sawtooth(10)
            self.metadata = Metadata(phases=("met on the way",))

    write_trace(Growing(), tmp_path / "t.parquet")
    assert open_source(tmp_path / "t.parquet").metadata.phases == ("met on the way",)


def test_polars_reads_a_written_trace_with_nulls_for_unknown_values(tmp_path):
    address = np.array([16, 32, 0, 0], np.uint64)
    write_trace(MemoryTrace([small_events(address=address)], METADATA), tmp_path / "t.parquet")
    frame = pl.read_parquet(tmp_path / "t.parquet")
    assert frame.schema == {
        "time_ns": pl.Int64,
        "thread": pl.UInt32,
        "op": pl.UInt8,
        "domain": pl.UInt8,
        "block": pl.UInt32,
        "size": pl.UInt64,
        "address": pl.UInt64,
    }
    assert frame["address"].to_list() == [16, 32, None, None]


def test_the_snippet_of_the_format_page_writes_a_trace(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "trace-format.md").read_text()
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        monkeypatch.chdir(tmp_path)
        exec(snippet, {})
    first = open_source(tmp_path / "mine.parquet")
    (events,) = first.batches()
    assert events.op.tolist() == [Op.MALLOC, Op.MALLOC, Op.REALLOC, Op.FREE]
    assert events.block.tolist() == [0, 1, 0, 1]
    assert first.metadata == Metadata()
    third = open_source(tmp_path / "processes.parquet")
    assert [(each.name, each.threads) for each in third.metadata.processes] == [("web", (0, 1)), ("worker", (2,))]
    assert sum(batch.rows for batch in third.batches()) == 4
    second = open_source(tmp_path / "phases.parquet")
    assert second.metadata.phases == ("load", "serve")
    assert sum(batch.rows for batch in second.batches()) == 3


def test_a_parquet_without_our_metadata_and_with_wide_integers_is_read(tmp_path):
    path = write_table(tmp_path / "t.parquet", good_columns())
    trace = open_source(path)
    (events,) = trace.batches()
    assert trace.metadata == Metadata()
    assert (events.op.dtype, events.size.dtype, events.op.tolist()) == (np.uint8, np.int64, [0, 3])


def test_block_keys_that_are_not_uint32_are_renumbered(tmp_path):
    keys = pa.array([2**64 - 16, 2**64 - 16], pa.uint64())
    (events,) = open_source(write_table(tmp_path / "t.parquet", good_columns(block=keys))).batches()
    assert events.block.tolist() == [0, 0]
    keys = pa.array([-1, -1], pa.int64())
    (events,) = open_source(write_table(tmp_path / "signed.parquet", good_columns(block=keys))).batches()
    assert events.block.tolist() == [0, 0]


def test_a_duplicate_column_is_refused_by_name(tmp_path):
    columns = good_columns()
    table = pa.table([*columns.values(), columns["op"]], names=[*columns, "op"])
    pq.write_table(table, tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet") == f"{tmp_path / 't.parquet'}: column `op` occurs twice"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": [16.0, 0.0]}, "column `size` has type double; it must have integers (uint64)"),
        ({"op": ["malloc", "free"]}, "column `op` has type string"),
        ({"thread": [0, None]}, "row 1: `thread` is null"),
        ({"op": [0, 300]}, "row 1: `op` is 300, out of the range of uint8"),
        (
            {"size": pa.array([16, 2**64 - 1], pa.uint64())},
            "row 1: `size` is 18446744073709551615, which exceeds 63 bits",
        ),
        ({"size": [-1, 0]}, "row 0: size -1 is out of range"),
        ({"op": [0, 0]}, "row 1: malloc of block 0, which is live"),
        ({"time_ns": [2, 1]}, "row 1: time decreases"),
    ],
)
def test_a_broken_column_is_refused_with_its_name_or_row(tmp_path, changed, message):
    path = write_table(tmp_path / "t.parquet", good_columns(**changed))
    error = refusal(path)
    assert error.startswith(f"{path}: ")
    assert message in error


def test_a_column_of_nulls_counts_as_missing(tmp_path):
    path = write_table(tmp_path / "t.parquet", good_columns(address=pa.nulls(2), site=pa.nulls(2)))
    (events,) = open_source(path).batches()
    assert events.address is None
    assert events.site is None


def test_missing_columns_are_named(tmp_path):
    columns = good_columns()
    del columns["op"], columns["size"]
    assert "has no column `op` and `size`" in refusal(write_table(tmp_path / "t.parquet", columns))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"format_version": 3}', "has format version 3; this version of replay reads up to 2"),
        ('{"format_version": 1, "phases": 3}', "wrong at `phases`"),
        ('{"format_version": 1, "process": {"static_bytes": -1}}', "wrong at `process`: negative bytes"),
        ('{"phases": []}', "not a JSON object with a format_version"),
        ("[1]", "not a JSON object with a format_version"),
        ("{", "not a JSON object with a format_version"),
    ],
)
def test_metadata_that_cannot_be_read_are_refused(tmp_path, metadata, message):
    assert message in refusal(write_table(tmp_path / "t.parquet", good_columns(), metadata))


def test_an_error_in_a_later_batch_has_its_absolute_row(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_source, "GROUP_ROWS", 1000)
    events = sawtooth(2500)
    events.op[2150] = Op.MALLOC
    events.block[2150] = 99
    write_trace(MemoryTrace([events]), tmp_path / "t.parquet")
    assert "row 2150: " in refusal(tmp_path / "t.parquet")


@pytest.mark.parametrize("keep", [4, 20, 2000, -1])
def test_a_truncated_parquet_is_refused(tmp_path, keep):
    path = tmp_path / "t.parquet"
    write_trace(MemoryTrace([sawtooth(2500)]), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "is not a complete Parquet file" in refusal(path)


def test_a_parquet_with_a_damaged_page_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(MemoryTrace([sawtooth(2500)]), path)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    assert "is not a complete Parquet file" in refusal(path)


def test_content_counts_more_than_the_suffix(tmp_path):
    write_trace(MemoryTrace([sawtooth(10)]), tmp_path / "t.csv")
    assert open_source(tmp_path / "t.csv").events_total == 10


def test_a_file_of_no_known_format_names_the_formats(tmp_path):
    (tmp_path / "t.xyz").write_text("hello")
    error = refusal(tmp_path / "t.xyz")
    assert "no format that replay can read" in error
    assert all(name in error for name in format_names())
    assert {"csv", "parquet"} <= set(format_names())


def test_an_empty_parquet_file_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"")
    assert "is not a complete Parquet file" in refusal(tmp_path / "t.parquet")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "the file does not exist, and no bundled workload" in refusal("nowhere.parquet")
    assert "is a folder" in refusal(tmp_path)


HEADER = "time_ns,op,block,size\n"


def csv_file(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    return path


def test_a_csv_is_read_by_names_in_any_order_and_renumbered(tmp_path):
    text = (
        "size,op,domain,block,time_ns,thread,site,address\n"
        "16,malloc,obj,0x7fffffffffff0010,5,3,2,0x10\n"
        "8,1,RAW,18446744073709551615,5,3,,\n"
        ",free,2,0x7fffffffffff0010,6,4,,\n"
        "32, realloc ,raw,18446744073709551615,7,4,0,32\n"
        "9,malloc,mem,12,7,4,0,48\n"
    )
    trace = open_source(csv_file(tmp_path, text))
    (events,) = trace.batches()
    expected = {
        "time_ns": [5, 5, 6, 7, 7],
        "thread": [3, 3, 4, 4, 4],
        "op": [0, 1, 3, 2, 0],
        "domain": [2, 0, 2, 0, 1],
        "block": [0, 1, 0, 1, 0],
        "size": [16, 8, 0, 32, 9],
        "address": [16, 0, 0, 32, 48],
        "site": [2, NO_SITE, NO_SITE, 0, 0],
    }
    assert {name: column.tolist() for name, column in events.present().items()} == expected
    assert trace.metadata.origin.texts() == {"source": "csv", "file": "t.csv"}


def test_missing_columns_of_a_csv_are_assumed_and_in_the_origin(tmp_path):
    trace = open_source(csv_file(tmp_path, HEADER + "5,malloc,7,16\n"))
    (events,) = trace.batches()
    assert (events.thread.tolist(), events.domain.tolist()) == ([0], [2])
    assert trace.metadata.origin.texts()["assumed thread"] == "0"
    assert trace.metadata.origin.texts()["assumed domain"] == "obj"


def test_the_phases_of_a_csv_are_met_on_the_way(tmp_path):
    trace = open_source(csv_file(tmp_path, HEADER + "1,mark,0,0\n2,mark,0,1\n3,mark,0,0\n"))
    list(trace.batches())
    assert trace.metadata.phases == ("phase 0", "phase 1")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,malloc,5,16\n2,fre,5,\n", "line 3: `op` is 'fre', not one of malloc (0), calloc (1)"),
        ("1,malloc,5,16\n2,free,6,\n", "line 3: free of block 6, which is not live"),
        ("1,malloc,5,16\n2,calloc,5,1\n", "line 3: calloc of block 5, which is live"),
        ("1,malloc,5,16\n2,free,5\n", "line 3: expected 4 columns, got 3"),
        ("1,malloc,5.0,16\n", "line 2: `block` is '5.0', which is not a valid uint64"),
        ("1,allocate,x,16\n", "line 2: `op` is 'allocate', not one of malloc (0), calloc (1)"),
        ("1,malloc,x,16\n2,allocate,5,1\n", "line 2: `block` is 'x', which is not a valid uint64"),
        ("1,malloc,5,16\n\n2,free,5,\n", "line 3: `op` is empty"),
        ("1,malloc,5,\n", "line 2: `size` is empty"),
        (",malloc,5,1\n", "line 2: `time_ns` is empty"),
        ("3,malloc,5,4\n1,calloc,6,4\n", "line 3: time decreases from 3 ns to 1 ns"),
        ("1,malloc,5,-4\n", "line 2: size -4 is out of range"),
        ("1,malloc,5,140737488355329\n", "line 2: size 140737488355329 is out of range"),
        ("1,mark,0,1\n", "line 2: mark of phase 1 after only 0 phases"),
    ],
)
def test_a_broken_csv_is_refused_with_its_line(tmp_path, rows, message):
    path = csv_file(tmp_path, HEADER + rows)
    error = refusal(path)
    assert error.startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("time_ns,op,block", "line 1: the header lacks `size`"),
        (
            "time_ns,op,block,size,thred",
            "line 1: column `thred` is unknown; `replay import --lenient` leaves it out; did you mean 'thread'?",
        ),
        ("time_ns,op,block,size,op", "line 1: column `op` occurs twice"),
    ],
)
def test_a_broken_csv_header_is_refused(tmp_path, header, message):
    assert message in refusal(csv_file(tmp_path, header + "\n"))


def test_a_lenient_csv_leaves_out_unknown_columns_and_lines_that_cannot_be_read(tmp_path):
    text = (
        "time_ns,op,label,block,size,domain\n"
        "1,malloc,a,0x5,16,obj\n"
        "2,malloc,a,6,x,obj\n"  # no number
        "2,fre,a,5,,obj\n"  # no op
        "2,malloc,a,7,,obj\n"  # no size
        ",malloc,a,7,1,obj\n"  # no time
        "2,malloc,a,7,1\n"  # a value too few
        "2,malloc,a,7,1,heap\n"  # no domain
        "3,malloc,,18446744073709551616,1,obj\n"  # more than 64 bits
        "\n"
        "4, FREE ,b,5,,2\n"
    )
    path = csv_file(tmp_path, text)
    assert "column `label` is unknown" in refusal(path)
    trace = open_source(path, lenient=True)
    (events,) = trace.batches()
    rows = [events.time_ns, events.op, events.block, events.size, events.domain]
    assert [column.tolist() for column in rows] == [[1, 4], [0, 3], [0, 0], [16, 0], [2, 2]]
    assert trace.metadata.origin == Provenance(
        source="csv", file="t.csv", assumed_thread="0", dropped_lines=8, dropped_columns="label"
    )


def test_a_lenient_csv_still_refuses_events_that_contradict_each_other(tmp_path):
    path = csv_file(tmp_path, HEADER + "1,fre,5,\n2,malloc,5,16\n3,free,6,\n")
    with pytest.raises(TraceError) as refused:
        list(open_source(path, lenient=True).batches())
    assert str(refused.value).startswith(f"{path}: row 1: free of block 6, which is not live")


def test_the_threads_that_read_a_csv_need_no_gil(tmp_path, monkeypatch):
    """A thread that waits for the GIL when the process ends would abort it."""
    streams = []

    def open_csv(stream, **options):
        streams.append(stream)
        return opened(stream, **options)

    opened = pyarrow.csv.open_csv
    monkeypatch.setattr("pyarrow.csv.open_csv", open_csv)
    list(open_source(csv_file(tmp_path, HEADER + "1,malloc,5,16\n")).batches())
    assert [type(stream) for stream in streams] == [pa.OSFile]


def test_a_lenient_csv_in_pieces_counts_each_line_once_whenever_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("replay.sources.csv._READ_BYTES", 4096)
    rows = "".join(f"{n},malloc,{n},{16 if n % 10 else 'x'}\n" for n in range(2000))
    trace = open_source(csv_file(tmp_path, HEADER + rows), lenient=True)
    for _ in range(2):
        assert sum(events.rows for events in trace.batches()) == 1800
        assert trace.metadata.origin.dropped_lines == 200


def test_a_lenient_csv_of_which_nothing_is_left_is_refused(tmp_path):
    path = csv_file(tmp_path, HEADER + "1,fre,5,\n")
    with pytest.raises(TraceError, match="no event remains: 1 unknown line was left out"):
        list(open_source(path, lenient=True).batches())


def test_a_csv_that_ends_with_its_header_is_a_trace_of_nothing(tmp_path):
    for text in (HEADER, HEADER.rstrip("\n")):
        assert sum(events.rows for events in open_source(csv_file(tmp_path, text)).batches()) == 0


def test_a_csv_in_another_encoding_is_refused_with_its_line(tmp_path):
    path = csv_file(tmp_path, HEADER)
    path.write_bytes(path.read_bytes() + b"1,malloc,5,16\n2,fr\xe9e,5,\n")
    assert refusal(path) == f"{path}: line 3: `op` is not text in UTF-8"


def test_a_wrong_value_is_shown_as_far_as_fits_a_line(tmp_path):
    for row, shown in ((f"1,malloc,5,{'9' * 5000}\n", "9" * 80), (f"1,{'x' * 5000},5,1\n", "x" * 80)):
        error = refusal(csv_file(tmp_path, HEADER + row))
        assert shown in error
        assert len(error) < 420


def test_lines_are_counted_across_pieces_of_a_csv(tmp_path, monkeypatch):
    monkeypatch.setattr("replay.sources.csv._READ_BYTES", 4096)
    rows = "".join(f"{n},malloc,{n},16\n" for n in range(2000))
    assert "line 2002: free of block 9999" in refusal(csv_file(tmp_path, HEADER + rows + "2000,free,9999,\n"))
    assert "line 2002: `block` is 'x'" in refusal(csv_file(tmp_path, HEADER + rows + "2000,free,x,\n"))
    assert "line 2002: time decreases" in refusal(csv_file(tmp_path, HEADER + rows + "5,free,0,\n"))


def test_an_existing_output_is_kept_unless_forced(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"out\.txt: already exists; .* --force"), new_file(path):
        pass
    assert path.read_text() == "old"
    with new_file(path, force=True) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("has_links", [True, False], ids=["with hard links", "without, as on FAT"])
def test_of_two_that_write_one_new_file_the_later_one_is_refused(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr("os.link", refuse)
    path = tmp_path / "out.txt"

    def write(text):
        with new_file(path) as temporary:
            temporary.write_text(text)
            if text == "later":
                write("first")

    with pytest.raises(OutputError, match=r"out\.txt: already exists; .* --force"):
        write("later")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_output_leaves_nothing_behind(tmp_path):
    class Failing:
        metadata = Metadata()

        def batches(self):
            yield sawtooth(1 << 18)
            raise TraceError("broken")

    with pytest.raises(TraceError, match="broken"):
        write_trace(Failing(), tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["folder", "missing/out.parquet"])
def test_an_output_that_cannot_be_written_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder"):
        write_trace(MemoryTrace([]), tmp_path / name, force=True)


def test_written_metadata_are_plain_json(tmp_path):
    write_trace(MemoryTrace([small_events()], METADATA), tmp_path / "t.parquet")
    assert json.loads(pq.read_metadata(tmp_path / "t.parquet").metadata[b"replay"]) == {
        "format_version": 1,
        "origin": {"interpreter": "3.12.1", "seed": "7"},
        "sites": [["parse", "app/parser.py", 12], ["größe", "b.py", 3]],
        "phases": ["load", "serve"],
        "process": {"static_bytes": 4096, "stack_bytes": 8192, "stack_resident_bytes": 100},
    }


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt8, pl.Int32, pl.UInt32, pl.Int64])
def test_a_column_of_sites_may_be_of_any_integer_width(tmp_path, kind):
    columns = {"time_ns": [0, 1], "thread": [0, 0], "op": [0, 3], "domain": [2, 2], "block": [0, 0], "size": [8, 0]}
    frame = pl.DataFrame(columns).with_columns(site=pl.Series([5, None], dtype=kind))
    frame.write_parquet(tmp_path / "sites.parquet")
    (events,) = open_source(tmp_path / "sites.parquet").batches()
    assert events.site.tolist() == [5, NO_SITE]


@pytest.mark.parametrize("target", ["link", "missing"])
def test_a_link_that_leads_to_no_file_is_refused_as_such(tmp_path, target):
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(ReplayError, match="is a symbolic link to itself or to a file that does not exist"):
        open_source(tmp_path / "link")
