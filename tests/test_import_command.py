"""`replay import`: detection of formats, --format and --lenient, and messages about unknown data."""

import gzip
import json
import re

import pytest
from conftest import output_of
from typer.testing import CliRunner

from replay.__main__ import app
from replay.sources import bundled_names, find_format, open_source
from replay.support.errors import ReplayError

SAMPLES = {
    "csv": b"time_ns,op,block,size\n0,malloc,1,16\n",
    "heaptrack": b"v 10400 3\nX ./h\n+ 10 0 abc\n",
    "memray": b"memray\0\x0d\0\0\0" + bytes(60),
    "mtrace": b"= Start\n@ a:[0x1] + 0x10 0x10\n",
    "parquet": b"PAR1" + bytes(60),
    "rep": b"20000\n1\n1\n1\na 0 512\n",
    "umpire": b'{"category":"operation","name":"release","string_args":{},"tags":{},"timestamp":1}\n',
}
VARIANTS = [
    ("memray", b"\x04\x22\x4d\x18\x40\x40\xc0\x80\x4d\x00\x00\xf9\x05memray\0\x0d"),
    ("mtrace", b"@ /a b:(f+0x1)[0x1] - 0x10\n"),
    ("mtrace", b"+ 0x10 0\n"),
    ("rep", b"1\r\n1\r\n1\r\n0\r\na 0 5\r\n"),
    ("umpire", b'hello\n{ "kind":"replay", "uid":7, "timestamp":10, "event": "version" }\n'),
    ("heaptrack", b"v 10000\n+ 10 0 abc\n"),
    *((name, gzip.compress(SAMPLES[name], mtime=0)) for name in ("csv", "heaptrack", "mtrace", "rep", "umpire")),
]


def run(*arguments):
    return output_of("import", *arguments).splitlines()


def takers(head):
    """Returns the formats that recognize a file with this beginning."""
    formats = {name: find_format(name) for name in bundled_names()}
    return [name for name, known in formats.items() if hasattr(known, "sniff") and known.sniff(head)]


@pytest.mark.parametrize(("name", "head"), [*SAMPLES.items(), *VARIANTS])
def test_each_sample_is_recognized_by_exactly_one_format(name, head):
    assert takers(head) == [name]


def test_every_format_that_looks_at_content_has_a_sample():
    assert set(SAMPLES) == {name for name in bundled_names() if hasattr(find_format(name), "sniff")}


@pytest.mark.parametrize(
    "head", [b"", b"\n", b"hello\n", b"1,2\n", b"v\n", b"{}\n", b"+ 1\n", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"]
)
def test_content_of_no_format_is_recognized_by_none(head):
    assert takers(head) == []


def test_the_help_lists_every_bundled_format():
    help_text = CliRunner().invoke(app, ["import", "--help"]).stdout
    assert set(bundled_names()) <= set(re.findall(r"\w+", help_text))


def test_assumptions_about_a_log_are_printed_on_one_line(tmp_path):
    (tmp_path / "log").write_bytes(SAMPLES["mtrace"] + b"@ a:[0x2] - 0x99\n- 0x10\n")
    lines = run(tmp_path / "log", "-o", tmp_path / "t.parquet")
    assert lines[0].startswith("2 events over 1.00 µs, 0 blocks (0 B) live at the end; ")
    assert lines[1:] == [
        "unknown, so assumed: time: an event a microsecond, thread: 0, domain: libc; "
        "frees of blocks older than the log, left out: 1",
        f"next: replay run {tmp_path / 't.parquet'}",
    ]
    assert open_source(tmp_path / "t.parquet").metadata.origin.texts()["dropped frees"] == "1"


def test_a_named_format_is_used_for_any_content(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"\n" + SAMPLES["mtrace"])
    assert run(tmp_path / "log.csv", "--format", "mtrace", "-o", tmp_path / "t.parquet")[0].startswith("1 events")
    with pytest.raises(ReplayError, match=r"line 1: the header must have four numbers"):
        run(tmp_path / "log.csv", "--format", "rep", "-o", tmp_path / "u.parquet")
    with pytest.raises(ReplayError, match=r"unknown trace format 'mtrase'; did you mean 'mtrace'\?"):
        run(tmp_path / "log.csv", "--format", "mtrase", "-o", tmp_path / "u.parquet")
    with pytest.raises(ReplayError, match="the file does not exist"):
        run("web-service", "--format", "yaml", "-o", tmp_path / "u.parquet")


def test_unknown_lines_are_refused_unless_reading_is_lenient(tmp_path):
    (tmp_path / "log").write_bytes(SAMPLES["mtrace"] + b"noise\n")
    with pytest.raises(ReplayError, match="line 3: 'noise' is not a line of an mtrace log"):
        run(tmp_path / "log", "-o", tmp_path / "t.parquet")
    lines = run(tmp_path / "log", "--lenient", "-o", tmp_path / "t.parquet")
    assert lines[1].endswith("; unknown lines, left out: 1")


def test_formats_that_cannot_be_read_leniently_say_so(tmp_path):
    able = "csv, heaptrack, memray, mtrace, parquet, rep, umpire$"
    with pytest.raises(ReplayError, match=f"has the format yaml, .*; formats with --lenient: {able}"):
        run("web-service", "--lenient", "-o", tmp_path / "t.parquet")


def test_a_source_is_not_overwritten_by_its_import(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(SAMPLES["csv"])
    with pytest.raises(ReplayError, match=r"t\.csv: is the input file; choose another name"):
        run(path, "-o", path, "--force")
    assert path.read_bytes() == SAMPLES["csv"]


def test_an_imported_trace_is_simulated(tmp_path):
    (tmp_path / "t.rep").write_bytes(SAMPLES["rep"])
    run(tmp_path / "t.rep", "-o", tmp_path / "t.parquet")
    played = CliRunner().invoke(app, ["run", str(tmp_path / "t.parquet"), "--json", "--no-reference"])
    assert json.loads(played.stdout)["requested_bytes_peak"] == 512
