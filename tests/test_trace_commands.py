"""`replay trace info`, `replay trace head` and `replay import`, through Typer's runner."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import output_of
from histories import History

from replay.commands import trace as trace_commands
from replay.config import load_config
from replay.simulation.run import run as simulate
from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.support.errors import OutputError, TraceError
from replay.trace import NO_SITE, TEARDOWN_MARK, Domain, Events, MemoryTrace, Metadata, Op, Site
from replay.trace.validation import Validator

ROOT = Path(__file__).parents[1]

CSV = """time_ns,thread,op,domain,block,size,address,site
0,1,mark,obj,0,0,,
10,1,malloc,obj,100,16,0x1000,
20,1,malloc,mem,200,17,0x2000,
30,2,calloc,raw,300,513,0x3000,
40,2,realloc,mem,200,1024,0x4000,
50,1,free,obj,100,,,
60,1,malloc,libc,400,0,0x5000,
1500000,1,mark,obj,0,1,,
"""


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    return path


def test_info_counts_what_is_in_a_trace(csv):
    info = json.loads(output_of("trace", "info", csv, "--json"))
    digest = info.pop("digest")
    assert info == {
        "events": 8,
        "duration_ns": 1_500_000,
        "threads": 2,
        "events_by_op": {
            "malloc": 3,
            "calloc": 1,
            "realloc": 1,
            "free": 1,
            "memalign": 0,
            "gc_start": 0,
            "gc_end": 0,
            "thread_end": 0,
            "mark": 2,
            "arena_mapped": 0,
            "arena_unmapped": 0,
            "foreign_free": 0,
            "live_object": 0,
        },
        "events_by_domain": {"raw": 1, "mem": 2, "obj": 2, "libc": 1},
        "requests_by_size": {"0": 1, "16": 1, "32": 1, "1024": 2},
        "live_blocks": 3,
        "live_bytes": 513 + 1024,
        "live_blocks_after_teardown": None,
        "live_bytes_after_teardown": None,
        "live_blocks_peak": 3,
        "live_bytes_peak": 16 + 1024 + 513,
        "phases": ["phase 0", "phase 1"],
        "sites": 0,
        "calls_with_site": 0,
        "bytes_with_site": 0,
        "sites_by_bytes": [],
        "sites_by_calls": [],
        "types": 0,
        "calls_with_type": 0,
        "bytes_with_type": 0,
        "types_by_bytes": [],
        "types_by_calls": [],
        "collections": {},
        "collected": 0,
        "origin": {"source": "csv", "file": "t.csv"},
        "process": {"static_bytes": 0, "stack_bytes": 0, "stack_resident_bytes": 0},
        "processes": [],
    }
    assert (
        output_of("trace", "info", csv)
        == f"""\
{csv}
8 events in 1.50 ms

live at peak    1.52 KiB; at most 3 blocks
live at end     1.50 KiB; 3 blocks
calls           3 malloc, 1 calloc, 1 realloc, 1 free
domains         mem 33.3 %, obj 33.3 %, raw 16.7 %, libc 16.7 %
sizes           half up to 32 B, 90 % up to 1.00 KiB, largest up to 1.00 KiB
threads         2
phases          phase 0, phase 1
call sites      none

next: replay run {csv}
"""
    )
    screen = output_of("trace", "info", csv, "--full")
    assert "up to 16 B" in screen
    assert digest[:16] in screen
    assert digest not in screen


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_trace_lasts_from_its_first_event_to_its_last(csv, tmp_path, suffix):
    begin_ns = 1_700_000_000_000_000_000
    csv.write_text(f"time_ns,op,block,size\n{begin_ns},malloc,0,16\n{begin_ns + 250},free,0,\n")
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        assert output_of("import", csv, "-o", path).startswith("2 events over 250 ns, ")
    assert json.loads(output_of("trace", "info", path, "--json"))["duration_ns"] == 250
    assert "2 events in 250 ns" in output_of("trace", "info", path)


@pytest.mark.parametrize(
    ("size", "limit"),
    [(0, 0), (1, 16), (16, 16), (17, 32), (512, 512), (513, 1024), (1024, 1024), (1025, 2048), (1 << 47, 1 << 47)],
)
def test_sizes_fall_into_their_classes(tmp_path, size, limit):
    path = tmp_path / "t.csv"
    path.write_text(f"time_ns,op,block,size\n0,malloc,0,{size}\n")
    assert json.loads(output_of("trace", "info", path, "--json"))["requests_by_size"] == {str(limit): 1}


def test_an_empty_trace_has_info_and_no_rows(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("time_ns,op,block,size\n")
    assert json.loads(output_of("trace", "info", path, "--json"))["events"] == 0
    assert "0 events in 0 ns" in output_of("trace", "info", path)
    assert json.loads(output_of("trace", "head", path, "--json")) == []
    output_of("trace", "head", path)


SITES = (Site("parse", "json/decoder.py", 337), Site("<module>", "main.py", 3), Site("never", "x.py", 1))


@pytest.fixture
def with_sites(tmp_path):
    """Ten small blocks of one site, a large block of another that the first one reallocates, one without a site."""
    site = np.array([0] * 10 + [1, NO_SITE, 0] + [NO_SITE] * 12, np.uint32)
    rows = site.shape[0]
    events = Events(
        time_ns=np.arange(rows),
        thread=np.zeros(rows, np.uint32),
        op=np.array([Op.MALLOC] * 12 + [Op.REALLOC] + [Op.FREE] * 12, np.uint8),
        domain=np.full(rows, Domain.OBJ, np.uint8),
        block=np.array([*range(12), 10, *range(12)], np.uint32),
        size=np.array([16] * 10 + [5_000, 32, 10_000] + [0] * 12, np.int64),
        site=site,
    )
    path = tmp_path / "sites.parquet"
    write_trace(MemoryTrace([events], Metadata(sites=SITES)), path)
    return path


def test_info_shows_the_call_sites_that_allocate_most(with_sites):
    info = json.loads(output_of("trace", "info", with_sites, "--json"))
    parse = {"function": "parse", "file": "json/decoder.py", "line": 337, "calls": 11, "bytes": 10_160}
    module = {"function": "<module>", "file": "main.py", "line": 3, "calls": 1, "bytes": 5_000}
    assert (info["sites"], info["calls_with_site"], info["bytes_with_site"]) == (3, 12, 15_160)
    assert info["sites_by_bytes"] == info["sites_by_calls"] == [parse, module]
    screen = output_of("trace", "info", with_sites)
    assert "3, known for 92.3 % of the calls" in screen
    for shown, times in ((screen, 1), (output_of("trace", "info", with_sites, "--full"), 2)):
        lines = [line.split() for line in shown.splitlines()]
        assert lines.count(["parse", "(json/decoder.py:337)", "11", "91.7%", "9.92", "KiB", "67.0%"]) == times


def test_head_names_the_call_sites(with_sites, monkeypatch):
    for columns in ("120", "40"):
        monkeypatch.setenv("COLUMNS", columns)
        lines = output_of("trace", "head", with_sites, "-n", "1").splitlines()
        assert lines[1].split() == ["0", "0", "0", "malloc", "obj", "0", "16", "parse", "(json/decoder.py:337)"]
        assert len(lines) == 2


@pytest.mark.parametrize(
    "edit",
    [
        ("cut", "--from", "0", "--to", "1s"),
        ("filter", "--domain", "obj"),
        ("scale", "--repeat", "2"),
        ("merge",),
    ],
)
def test_edits_keep_call_sites(with_sites, tmp_path, edit):
    name, *options = edit
    inputs = [with_sites, with_sites] if name == "merge" else [with_sites]
    out = tmp_path / "out.parquet"
    output_of("trace", name, *inputs, "-o", out, *options)
    info = json.loads(output_of("trace", "info", out, "--json"))
    times = 2 if name in ("merge", "scale") else 1
    printed_text = [(site["function"], site["calls"], site["bytes"]) for site in info["sites_by_bytes"]]
    assert printed_text == [("parse", 11 * times, 10_160 * times), ("<module>", times, 5_000 * times)]


def test_head_shows_the_first_rows_by_name(csv):
    rows = json.loads(output_of("trace", "head", csv, "-n", "3", "--json"))
    assert rows[:2] == [
        {
            "row": 0,
            "time_ns": 0,
            "thread": 1,
            "op": "mark",
            "domain": "obj",
            "block": 0,
            "size": 0,
            "address": None,
            "site": None,
            "type": None,
            "alignment": None,
        },
        {
            "row": 1,
            "time_ns": 10,
            "thread": 1,
            "op": "malloc",
            "domain": "obj",
            "block": 0,
            "size": 16,
            "address": 4096,
            "site": None,
            "type": None,
            "alignment": None,
        },
    ]
    assert len(rows) == 3
    lines = output_of("trace", "head", csv, "-n", "3").splitlines()
    assert lines[0].split() == ["row", "time_ns", "thread", "op", "domain", "block", "size", "address"]
    assert lines[2].split() == ["1", "10", "1", "malloc", "obj", "0", "16", "0x1000"]
    assert len(lines) == 4


def test_head_stops_where_the_trace_ends(csv):
    assert len(json.loads(output_of("trace", "head", csv, "-n", "100", "--json"))) == 8


class Endless:
    """A trace with endless batches; `taken` counts those that were read."""

    metadata, duration_ns, events_total, taken = Metadata(), None, None, 0

    def batches(self):
        while True:
            zeros = np.zeros(1500, np.uint8)
            numbers = np.arange(1500 * self.taken, 1500 * (self.taken + 1))
            self.taken += 1
            yield Events(numbers, zeros.astype(np.uint32), zeros, zeros, numbers.astype(np.uint32), numbers)


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_head_prints_rows_while_it_reads(monkeypatch, option):
    """At most one batch is in memory: each piece is printed before the next batch is read."""
    trace = Endless()
    taken = []
    monkeypatch.setattr("replay.sources.open_source", lambda _: trace)

    def noting(show):
        return lambda *text, **how: (taken.append(trace.taken), show(*text, **how))

    monkeypatch.setattr(trace_commands, "say", noting(trace_commands.say))
    shown = output_of("trace", "head", "endless", "-n", "4000", *option)
    assert trace.taken == 3
    assert {1, 2, 3} <= set(taken)
    if option:
        assert [row["block"] for row in json.loads(shown)] == list(range(4000))
        assert shown == json.dumps(json.loads(shown), indent=2) + "\n"
    else:
        lines = shown.splitlines()
        assert [line.split()[0] for line in lines] == ["row", *map(str, range(4000))]
        assert lines[1].split() == ["0", "0", "0", "malloc", "raw", "0", "0"]


def test_import_writes_parquet_and_prints_the_next_command(csv, tmp_path):
    out = tmp_path / "t.parquet"
    lines = output_of("import", csv, "-o", out).splitlines()
    assert lines[0].startswith("8 events over 1.50 ms, 3 blocks (1.50 KiB) live at the end; ")
    assert lines[1] == f"next: replay run {out}"
    before, after = (json.loads(output_of("trace", "info", path, "--json")) for path in (csv, out))
    assert before == after
    (events,) = open_source(out).batches()
    assert events.block.tolist() == [0, 0, 1, 2, 1, 0, 0, 0]


def test_import_keeps_an_existing_output_unless_forced(csv, tmp_path):
    out = tmp_path / "t.parquet"
    out.write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        output_of("import", csv, "-o", out)
    assert out.read_text() == "mine"
    output_of("import", csv, "-o", out, "--force")
    assert open_source(out).events_total == 8


def test_import_of_a_broken_trace_leaves_nothing_behind(csv, tmp_path):
    csv.write_text(CSV + "1500001,1,free,obj,100,,,\n")
    with pytest.raises(TraceError, match="line 10: free of block 100, which is not live"):
        output_of("import", csv, "-o", tmp_path / "t.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("command", [("trace", "info"), ("trace", "head"), ("import",)])
def test_every_command_shows_an_example_in_its_help(command):
    assert f"Example: replay {' '.join(command)} trace." in output_of(*command, "--help")


@pytest.mark.system
def test_compiling_is_announced_once_on_standard_error(csv, tmp_path):
    environment = {**os.environ, "REPLAY_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "replay", "trace", "info", csv, "--json"]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True) for _ in range(2)
    )
    assert [line for line in first.stderr.splitlines() if line.startswith("compiling (first run only; cached)")] != []
    assert len(first.stderr.splitlines()) == 1
    assert second.stderr == ""
    assert first.stdout == second.stdout


@pytest.mark.system
def test_an_unwritable_cache_is_announced_with_its_folder(csv, tmp_path):
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    command = [sys.executable, "-m", "replay", "trace", "info", csv, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "REPLAY_CACHE_DIR": str(cache)}
    )
    where = f"because the result cannot be cached: {cache}/kernels: Not a directory"
    advice = "set REPLAY_CACHE_DIR to a writable folder"
    assert (done.returncode, done.stderr) == (0, f"compiling (on every run, {where}; {advice}) …\n")


def test_an_import_validates_a_trace_once(csv, monkeypatch, tmp_path):
    checked = []
    check = Validator.check

    def count(validator, events):
        checked.append(events.rows)
        check(validator, events)

    monkeypatch.setattr(Validator, "check", count)
    output_of("import", csv, "-o", tmp_path / "t.parquet")
    output_of("trace", "info", tmp_path / "t.parquet")
    assert checked == [8, 8]
    checked.clear()
    lines = output_of("import", "startup-static", "-o", tmp_path / "w.parquet").splitlines()
    assert lines[0].startswith(f"{sum(checked):,} events over ")


def test_live_blocks_at_the_programs_end_differ_from_those_after_teardown(tmp_path):
    history = History()
    first, second = history.malloc(100), history.malloc(50)
    history.free(second)
    history.mark(1)
    history.malloc(7)
    history.free(first)
    trace = history.trace("load", TEARDOWN_MARK)
    write_trace(trace, tmp_path / "t.parquet")
    contents = json.loads(output_of("trace", "info", tmp_path / "t.parquet", "--json"))
    names = ("live_blocks", "live_bytes", "live_blocks_after_teardown", "live_bytes_after_teardown")
    assert [contents[name] for name in names] == [1, 100, 1, 7]
    assert simulate(trace, load_config("bump")).end["requested_bytes"] == 100
    lines = output_of("trace", "info", tmp_path / "t.parquet").splitlines()
    assert [" ".join(line.split()) for line in lines[4:6]] == [
        "live at end 100 B; 1 block",
        "7 B; 1 block after the interpreter's teardown",
    ]
