"""Trace formats of other packages: found by entry point, recognized by content or suffix, validated, refused."""

import sys

import pytest
from dist_info import write_dist_info
from typer.testing import CliRunner

from replay.__main__ import app
from replay.sources import find_format, format_names, open_source
from replay.support.errors import ReplayError, TraceError
from replay.trace import Op

TALLY = '''
"""A log with one event a line: op, block, size."""

import numpy as np

from replay.trace import Events, MemoryTrace, Metadata, Op, Provenance

SUFFIXES = (".tally",)


def sniff(head):
    return head.startswith(b"TALLY\\n")


def open_trace(path):
    rows = [line.split() for line in path.read_text().splitlines()[1:]]
    events = Events.empty(len(rows))
    events.time_ns[:] = np.arange(len(rows))
    events.thread[:], events.domain[:] = 0, 3
    events.op[:] = [Op[name.upper()] for name, _, _ in rows]
    events.block[:] = [int(block) for _, block, _ in rows]
    events.size[:] = [int(size) for _, _, size in rows]
    return MemoryTrace([events], Metadata(Provenance(source="tally", notes={"author": "me"})))
'''
MODULES = {
    "clumsy": TALLY.replace('return head.startswith(b"TALLY\\n")', "return head[1 << 20] == 0").replace(
        '".tally"', '".clumsy"'
    ),
    "tally": TALLY,
    "crash": "import no_such_thing\n",
    "closed": "SUFFIXES = ('.closed',)\n",
    "suffixed": "SUFFIXES = '.log'\ndef open_trace(path): ...\n",
}
LOG = "TALLY\nmalloc 0 100\nmalloc 1 50\nrealloc 0 300\nfree 1 0\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Returns a function that installs a package with these formats for the test."""

    def install(*names):
        site = tmp_path / "site"
        site.mkdir()
        for name in names:
            (site / f"toy_format_{name}.py").write_text(MODULES[name])
            monkeypatch.delitem(sys.modules, f"toy_format_{name}", raising=False)
        write_dist_info(site, "replay.formats", {name: f"toy_format_{name}" for name in names})
        monkeypatch.syspath_prepend(site)

    return install


def write_log(folder, name="a.log", text=LOG):
    (folder / name).write_text(text)
    return folder / name


def test_a_format_of_another_package_is_listed_and_recognized_by_content(install, tmp_path):
    install("tally")
    assert "tally" in format_names()
    trace = open_source(write_log(tmp_path))
    (events,) = trace.batches()
    assert events.op.tolist() == [Op.MALLOC, Op.MALLOC, Op.REALLOC, Op.FREE]
    assert trace.metadata.origin.texts() == {"source": "tally", "author": "me"}


def test_a_format_of_another_package_is_recognized_by_suffix_and_found_by_name(install, tmp_path):
    install("tally")
    for path, name in ((write_log(tmp_path, "a.tally", LOG.lower()), None), (write_log(tmp_path, "b", ""), "tally")):
        assert open_source(path, name).metadata.origin.texts() == {"source": "tally", "author": "me"}
    with pytest.raises(TraceError, match=r"tally \(\.tally\)"):
        open_source(write_log(tmp_path, "c.unknown", "hello"))


def test_a_format_that_fails_in_sniff_is_named_and_does_not_hide_others(install, tmp_path):
    install("clumsy", "tally")
    assert open_source(write_log(tmp_path)).metadata.origin.source == "tally"
    assert open_source(write_log(tmp_path, "a.clumsy")).metadata.origin.source == "tally"
    with pytest.raises(TraceError) as refused:
        open_source(write_log(tmp_path, "c.unknown", "hello"))
    assert str(refused.value).endswith("; trace format 'clumsy' failed in sniff(): IndexError: index out of range")


def test_a_trace_of_another_package_is_validated(install, tmp_path):
    install("tally")
    path = write_log(tmp_path, text="TALLY\nmalloc 0 100\nfree 1 0\n")
    with pytest.raises(TraceError, match=r"a\.log: row 1: free of block 1, which is not live"):
        list(open_source(path).batches())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("events.op.astype(np.int64)", "has 4 values of type int64, not 4 of type uint8"),
        ("events.op[:3]", "`time_ns` has 4 values of type int64, not 3 of type int64"),
    ],
)
def test_columns_of_a_wrong_type_or_length_are_refused_before_a_kernel_reads_them(
    install, tmp_path, monkeypatch, broken, message
):
    text = TALLY.replace("MemoryTrace([events]", f"MemoryTrace([events._replace(op={broken})]")
    monkeypatch.setitem(MODULES, "tally", text)
    install("tally")
    with pytest.raises(TraceError, match=message):
        list(open_source(write_log(tmp_path)).batches())


def test_a_format_of_another_package_is_imported_by_the_command(install, tmp_path):
    install("tally")
    path, output = write_log(tmp_path), tmp_path / "a.parquet"
    done = CliRunner().invoke(app, ["import", str(path), "--format", "tally", "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert open_source(output).events_total == 4


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("crash", r"^trace format 'crash' \(toy_format_crash\) cannot be imported: No module named 'no_such_thing'$"),
        (
            "closed",
            r"^trace format 'closed' \(.*/toy_format_closed\.py\) cannot be used: it lacks the function open_tr",
        ),
        ("suffixed", r"^trace format 'suffixed' \(.*\) cannot be used: SUFFIXES must be a tuple of file suffixes"),
        ("tali", r"^unknown trace format 'tali'; did you mean 'tally'\?$"),
    ],
)
def test_a_format_that_cannot_be_used_is_refused_by_name(install, tmp_path, name, sentence):
    install("tally", "crash", "closed", "suffixed")
    with pytest.raises(ReplayError, match=sentence):
        open_source(write_log(tmp_path), name)


def test_a_broken_format_is_reported_for_unrecognized_files_and_stops_no_other_format(install, tmp_path):
    install("crash", "tally")
    assert sum(events.rows for events in open_source(write_log(tmp_path)).batches()) == 4
    assert open_source("web-service").metadata.phases
    with pytest.raises(
        TraceError, match=r"no format that replay can read; .*; trace format 'crash' .* cannot be imported"
    ):
        open_source(write_log(tmp_path, text="hello"))


def test_a_format_of_another_package_does_not_replace_a_bundled_one(install, monkeypatch):
    monkeypatch.setitem(MODULES, "csv", TALLY)
    install("csv")
    assert find_format("csv").__name__ == "replay.sources.csv"
