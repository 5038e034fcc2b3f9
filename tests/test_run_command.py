"""`replay run` from its arguments to its output and its files, mistakes included."""

import io
import json
import os
import resource
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from histories import History, seeded

from replay.analysis.metrics import summarize
from replay.config import load_config
from replay.reports.console import PlainConsole
from replay.reports.files import new_folder
from replay.reports.text import print_report
from replay.simulation.run import run
from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.support.bundled_files import find_config
from replay.support.errors import OutputError
from replay.trace import Domain, MemoryTrace, Metadata, Op, Provenance, Site

WORKLOAD = """
description: a few hundred blocks
duration: 10 ms
seed: 4
process: {static: 1 MiB, stack_reserved: 64 KiB, stack_touched: 4 KiB}
streams:
  objects:
    arrivals: {kind: fixed, rate: 20000/s}
    size: {kind: uniform, min: 1, max: 900}
    lifetime: {kind: exponential, mean: 1 ms}
phases:
  - {name: second half, start: 5 ms}
"""
RESULTS = {
    "summary.json", "timeline.parquet", "size_classes.parquet", "pools.parquet", "arenas.parquet", "phases.parquet",
    "collections.parquet",
}  # fmt: skip


@pytest.fixture
def workload(tmp_path):
    path = tmp_path / "few.yaml"
    path.write_text(WORKLOAD)
    return path


@pytest.fixture
def trace_file(tmp_path):
    """Rows 0 to 6: malloc, mark, calloc, realloc, free, malloc, and a call past Python's API."""
    history = History()
    first = history.malloc(100)
    history.mark(0)
    second = history.malloc(200, Domain.MEM, Op.CALLOC)
    history.realloc(second, 300)
    history.free(first)
    history.malloc(100)
    history.malloc(100, Domain.LIBC)
    path = tmp_path / "trace.parquet"
    write_trace(history.trace("only"), path)
    return path


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_the_report_answers_in_a_screen_of_text(replay, tmp_path):
    history = History()
    history.at(5_000_000).mark(0)
    small = history.mallocs(3, 100)
    large = history.at(7_500_000).mallocs(2, 200_000, Domain.RAW)
    history.at(8_000_000).free(*large, *small[1:])
    history.at(9_000_000).mark(0)
    trace, path = history.trace("work"), tmp_path / "trace.parquet"
    origin = Provenance(interpreter="cpython 3.9.1", older_frees=7)
    write_trace(MemoryTrace(trace.events, replace(trace.metadata, origin=origin)), path)
    code, out, _ = replay("run", path, "-a", "cpython-3.9", "--set", "glibc.top_pad=0", "--env", "MALLOC_ARENA_MAX=1")
    assert code == 0
    lines = out.splitlines()
    assert (
        lines[:-3]
        == f"""\
{path} on cpython-3.9 with glibc.top_pad=0, MALLOC_ARENA_MAX=1 (pymalloc, glibc 2.36)
11 events in 4.00 ms, recorded with CPython 3.9.1

                   at peak             at end
live             390.9 KiB   98 %       100 B    1 %   requested, not yet freed
retained          9.08 KiB    2 %    7.90 KiB   99 %   resident, but not live
  rounding        1.41 KiB               12 B          size classes and headers
  in pools        3.67 KiB           3.89 KiB          free blocks, pool headers
  in arenas      252.0 KiB          252.0 KiB          free pools
  in libc         4.00 KiB           4.00 KiB          free chunks and tables
  not resident  -252.0 KiB         -252.0 KiB          of these, not in memory
resident         400.0 KiB           8.00 KiB          in memory; peak 2.50 ms

 400 KiB▔                                      ▇▇▇▇▇▇▇▇▇
                                               █████████
 300 KiB▔                                      █████████
                                               █████████
 200 KiB▔                                      █████████
                                               █████████
 100 KiB▔                                      █████████                resident
         ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁█████████▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁ live
       0▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔
    time ╵0             ╵1 ms           ╵2 ms          ╵3 ms          ╵4 ms
  phases ╵work                                                        ╵work

mean over time  57.0 KiB resident, 49.1 KiB live
fragmentation   internal 0.4 % at peak, 10.7 % at end (of allocated bytes)
                external 39.8 % at peak, 100.0 % at end (of mapped bytes)
arenas          1 mapped, 0 released, 1 at end
                emptiest 0.0 % full, pinned by 1 block
system calls    6 (3 mmap, 2 munmap, 1 brk), 100 page faults
ideal           392.0 KiB at peak without waste; this run takes 1.02 times that

exact           requested bytes.
not exact       pymalloc's blocks, pools and arenas, glibc's blocks and system
                calls: 7 blocks older than the recording were freed while it
                ran.
estimate        simulated time, from the configuration's costs.
""".splitlines()
    )


@pytest.fixture
def report_of(replay, tmp_path):
    """The report of a history, in one line without line breaks."""

    def report(history, *options):
        write_trace(history.trace(), tmp_path / "trace.parquet", force=True)
        code, out, _ = replay("run", tmp_path / "trace.parquet", "--no-reference", *options)
        assert code == 0
        return " ".join(out.split())

    return report


def test_a_resident_peak_long_after_the_live_peak_is_explained(report_of):
    history = History()
    buffers = history.at(1_000_000).mallocs(10, 100_000)
    history.at(2_000_000).free(*buffers)
    history.at(3_000_000).malloc(49_152)
    line = (
        "live peak 976.6 KiB {}; at the resident peak (2.00 ms), only 48.0 KiB is live and 980.0 KiB is retained, "
        "because freed memory stayed resident"
    )
    assert line.format("at about 2.00 µs") in report_of(history, "-a", "bump")
    assert line.format("by 2.00 ms") in report_of(history, "-a", "bump", "--sample", "9s")


def test_a_resident_peak_before_the_live_peak_is_explained(report_of):
    history = History()
    first = history.at(0).mallocs(1_000, 5_000, Domain.RAW)
    history.free(*first[::2])
    second = history.at(1_000_000).mallocs(300, 10_000, Domain.RAW)
    history.at(2_000_000).free(*first[1::2], *second)
    history.at(3_000_000).mallocs(1_500, 5_000, Domain.RAW)
    report = report_of(history, "-a", "cpython-3.12")
    assert "live peak 7.15 MiB at about 3.00 ms; at the resident peak (1.00 ms), only 5.25 MiB is live" in report


@pytest.mark.parametrize(("size", "explained"), [(90_000, True), (90_001, False)])
def test_a_live_peak_is_not_explained_below_a_difference_of_a_tenth(report_of, size, explained):
    history = History()
    history.free(history.malloc(100_000))
    history.malloc(size)
    assert ("live peak" in report_of(history, "-a", "bump")) == explained


def test_no_figure_is_cut_off_in_a_terminal_of_60_columns(workload):
    trace, stack = open_source(str(workload)), load_config("cpython-3.9")
    result = run(trace, stack)
    console = PlainConsole(width=60, file=io.StringIO())
    print_report(console, "few", result, summarize(result), full=True)
    out = console.file.getvalue()
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 60
    assert "peak at " in out


def test_empty_arenas_are_not_reported_as_pinned(replay, tmp_path):
    history = History()
    history.free(*history.mallocs(5_000, 512)[1:])
    write_trace(history.trace(), tmp_path / "trace.parquet")
    _, out, _ = replay("run", tmp_path / "trace.parquet", "-a", "cpython-3.12", "--no-reference")
    assert (
        "3 mapped, 1 released, 2 at end\n                1 empty; emptiest in use 0.0 % full, pinned by 1 block\n"
        in out
    )


def test_all_tables_are_printed_on_request(replay, workload):
    code, out, _ = replay("run", workload, "-a", "cpython-3.9", "--full")
    assert code == 0
    assert f"{workload} on cpython-3.9 (pymalloc, glibc 2.36)" in out
    for section in (
        "Memory by layer",
        "Mapped memory at the peak",
        "Arenas and pools",
        "Counters of",
        "Size classes",
        "each phase",
    ):
        assert section in out
    assert "second half" in out
    assert "static 1.00 MiB" in out
    assert out.splitlines()[-1] == f"next: replay run {workload} -a cpython-3.9 --out results"
    assert max(map(len, out.splitlines()[1:-1])) <= 80


def test_the_last_line_is_a_command_for_the_same_run(replay, workload, tmp_path, monkeypatch):
    stack = tmp_path / "my stack.yaml"
    stack.write_text(find_config("cpython-3.9").read_text())
    options = ("--set", "pymalloc.arena_size=1 MiB", "--env", "MALLOC_TOP_PAD_=0", "--trim-every", "2ms", "--seed", 5)
    _, out, _ = replay("run", workload, "-a", stack, *options)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(out.splitlines()[-1].removeprefix("next: "))
    assert (words[0], words[-1]) == ("replay", "--full")
    code, out, _ = replay(*words[1:])
    assert code == 0
    words = shlex.split(out.splitlines()[-1].removeprefix("next: "))
    assert replay(*words[1:])[0] == 0
    printed = json.loads(replay("run", workload, "-a", stack, *options, "--json")[1])
    assert json.loads((tmp_path / "results" / "summary.json").read_text()) == printed


def test_results_and_addresses_of_one_name_are_refused_and_nothing_is_left(refused, workload, tmp_path):
    both = tmp_path / "both"
    assert "is in the folder of --out" in refused("run", workload, "--out", both, "--addresses", both)
    assert names(tmp_path) == {workload.name}


def test_an_empty_folder_name_is_refused(refused, workload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "the name of the folder is missing" in refused("run", workload, "--out", "")
    assert names(tmp_path) == {workload.name}


@pytest.mark.system
def test_a_full_disk_is_reported_in_a_sentence_and_leaves_no_file(workload, tmp_path):
    """A limit of the file size has the same effect as a full disk: the write fails."""
    command = [sys.executable, "-m", "replay", "run", str(workload), "--no-reference", "--out", "results"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, resource.RLIM_INFINITY))

    subprocess.run([*command[:-2], "--json"], cwd=tmp_path, check=True, capture_output=True)  # compiles kernels
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert (done.returncode, done.stderr) == (2, "replay: results: cannot be written: File too large\n")
    assert names(tmp_path) == {workload.name}


@pytest.mark.parametrize("name", ["語" * 80, "x" * 248], ids=["of wide characters", "of narrow ones"])
def test_names_of_results_can_have_the_maximum_length(replay, workload, tmp_path, name):
    out, addresses = tmp_path / name, tmp_path / f"{name}.parq"
    assert len(os.fsencode(addresses.name)) <= 255
    assert replay("run", workload, "--no-reference", "--out", out, "--addresses", addresses)[0] == 0
    assert names(out) == RESULTS
    assert names(tmp_path) == {workload.name, out.name, addresses.name}


def test_names_from_a_trace_cannot_steer_the_terminal(replay, tmp_path):
    history = History()
    history.mark(0)
    history.malloc(1)
    trace, path = history.trace("red\x1b[31m\nline\u202e"), tmp_path / "trace.parquet"
    site = Site("f\x1b[2J", "a.py", 1)
    events = [batch._replace(site=np.zeros(batch.rows, np.uint32)) for batch in trace.events]
    metadata = replace(trace.metadata, origin=Provenance(notes={"by": "\x07me"}), sites=(site,))
    write_trace(MemoryTrace(events, metadata), path)
    report = replay("run", path, "--no-reference", "--full")[1]
    shown = report, replay("trace", "info", path, "--full")[1], replay("trace", "head", path)[1]
    assert not any(each in text for text in shown for each in "\x1b\x07\u202e")
    assert all("red\\x1b[31m\\nline\\u202e" in text for text in shown[:2])
    assert "\\x07me" in shown[1]
    assert "f\\x1b[2J (a.py:1)" in shown[2]


def test_trace_cut_accepts_the_time_of_the_peak(replay, tmp_path):
    history = History()
    history.at(1_700_000_000_000_000_000).malloc(64)
    large = history.at(1_700_000_000_040_000_000).malloc(1_000_000, Domain.RAW)
    history.at(1_700_000_000_050_000_000).free(large)
    history.at(1_700_000_000_055_000_000).malloc(64)
    path, piece = tmp_path / "trace.parquet", tmp_path / "piece.parquet"
    write_trace(history.trace(), path)
    _, out, _ = replay("run", path, "--no-reference")
    assert "40.00 ms" in out
    assert json.loads(replay("run", path, "--no-reference", "--json")[1])["peak_time_ns"] == 40_000_000
    rows = json.loads(replay("trace", "head", path, "--json")[1])
    assert [row["time_ns"] for row in rows] == [0, 40_000_000, 50_000_000, 55_000_000]
    assert replay("trace", "cut", path, "-o", piece, "--to", "40.01ms")[0] == 0
    assert json.loads(replay("trace", "info", piece, "--json")[1])["events"] == 2


def test_an_invalid_number_in_an_origin_is_not_shown(replay, tmp_path):
    """Metadata can have any text; a recorder writes the number of excluded calls."""
    origin = {"foreign_frees": "many", "left_out_calls": "-1", "dropped mapping bytes": "1.5"}
    trace, path = seeded(3, 100).trace(), tmp_path / "trace.parquet"
    numbers = {"foreign_frees": "5", "left_out_calls": "6", "dropped mapping bytes": "36700160"}
    for expected, printed in ((origin, False), (numbers, True)):
        write_trace(MemoryTrace(trace.events, Metadata(Provenance.from_texts(expected))), path, force=True)
        code, out, _ = replay("run", path, "--no-reference")
        text = " ".join(out.split())
        assert code == 0
        assert ("6 calls of other threads were not recorded" in text) == printed
        assert ("5 blocks older than the recording were freed while it ran" in text) == printed
        assert ("35.0 MiB that the process mapped with mmap are not included" in text) == printed


def test_the_last_lines_have_the_throughput_of_the_simulation(replay, workload):
    replay("run", workload, "-a", "cpython-3.9")  # compiles kernels
    _, out, err = replay("run", workload, "-a", "cpython-3.9")
    line = out.splitlines()[-2]
    assert line.startswith("simulated in ")
    assert line.endswith(" events/s")
    assert err == ""


def test_without_a_preset_it_is_the_running_python(replay, workload):
    summary = json.loads(replay("run", workload, "--json")[1])
    assert summary["allocator"] == f"cpython-3.{sys.version_info.minor}"


def test_json_has_the_floor_and_the_ceiling_unless_left_out(replay, workload):
    summary = json.loads(replay("run", workload, "--json")[1])
    assert summary["floor"]["allocator"] == "ideal"
    assert summary["ceiling"]["allocator"] == "bump"
    assert summary["floor"]["resident_bytes_peak"] <= summary["resident_bytes_peak"]
    alone = json.loads(replay("run", workload, "--json", "--no-reference")[1])
    assert alone == {**summary, "floor": None, "ceiling": None}


def test_a_bundled_workload_is_found_by_name(replay):
    summary = json.loads(replay("run", "startup-static", "--json", "--no-reference")[1])
    assert summary["trace"]["workload"] == "startup-static"
    assert summary["static_bytes"] == 96 << 20


def test_overrides_change_the_stack(replay, workload):
    settings = ("--set", "pymalloc.arena_size=64 KiB", "--set", "pymalloc.small_threshold=16")
    common = ("run", workload, "--json", "--no-reference", "-a", "cpython-3.9")
    changed = json.loads(replay(*common, *settings)[1])
    assert changed["arena_bytes_peak"] == 64 << 10
    assert changed["requested_bytes_peak"] == json.loads(replay(*common)[1])["requested_bytes_peak"]


def test_a_seed_takes_the_place_of_the_files(replay, workload):
    default = replay("run", workload, "--json", "--no-reference")[1]
    assert replay("run", workload, "--json", "--no-reference", "--seed", "4")[1] == default
    other = json.loads(replay("run", workload, "--json", "--no-reference", "--seed", "5")[1])
    assert other["trace"]["seed"] == "5"
    assert other["requested_bytes_peak"] != json.loads(default)["requested_bytes_peak"]


def test_out_writes_the_summary_and_the_tables(replay, workload, tmp_path):
    out = tmp_path / "results"
    code, text, _ = replay("run", workload, "--json", "--out", out, "--sample", "1ms")
    assert code == 0
    assert names(out) == RESULTS
    assert json.loads((out / "summary.json").read_text()) == json.loads(text)
    timeline = pl.read_parquet(out / "timeline.parquet")
    assert timeline["time_ns"].to_list()[:9] == [1_000_000 * tick for tick in range(1, 10)]
    assert pl.read_parquet(out / "phases.parquet")["phase"].to_list() == ["second half"]
    assert names(tmp_path) == {"few.yaml", "results"}


def test_addresses_are_those_of_each_block_made_or_moved(replay, trace_file, tmp_path):
    out = tmp_path / "addresses.parquet"
    replay("run", trace_file, "-a", "cpython-3.9", "--addresses", out, "--no-reference")
    frame = pl.read_parquet(out)
    assert frame.schema == {"event": pl.UInt64, "address": pl.UInt64}
    arena, heap = 0x7FFFF7FF1000 - (256 << 10), 0x555555560000
    assert frame.rows() == [
        (0, arena + 48),  # the first block of the first pool, of class 112
        (2, arena + 4096 + 48),  # the second pool, of class 208
        (3, arena + 8192 + 48),  # the third, of class 304
        (5, arena + 48),  # what was freed last
        (6, heap + 656 + 784 + 16),  # after the tcache and the arena table
    ]


def test_there_is_an_address_for_each_malloc_calloc_and_realloc(replay, tmp_path):
    out = tmp_path / "addresses.parquet"
    command = ("run", "startup-static", "-a", "cpython-3.9", "--addresses", out, "--no-reference", "--json")
    summary = json.loads(replay(*command)[1])
    made = summary["mallocs"] + summary["callocs"] + summary["reallocs"]
    assert 0 < made < summary["events"]
    assert pl.read_parquet(out).height == made


def test_a_trace_that_begins_at_the_epoch_is_sampled_over_its_own_time(replay, tmp_path):
    begin_ns = 1_700_000_000_000_000_005
    rows = "".join(f"{begin_ns + 1000 * number},malloc,{number},16\n" for number in range(100))
    path = tmp_path / "t.csv"
    path.write_text("time_ns,op,block,size\n" + rows)
    out = tmp_path / "results"
    command = ("run", path, "-a", "cpython-3.9", "--sample", "10us", "--out", out, "--json", "--no-reference")
    assert json.loads(replay(*command)[1])["duration_ns"] == 99_000
    assert pl.read_parquet(out / "timeline.parquet").height == 10


def test_mmap_base_lays_the_first_mapping_below_an_address(replay, trace_file, tmp_path):
    out = tmp_path / "addresses.parquet"
    replay("run", trace_file, "-a", "cpython-3.9", "--set", "linux.mmap_base=0x7f0000100000", "--addresses", out)
    assert pl.read_parquet(out)["address"][0] == 0x7F0000100000 - (256 << 10) + 48


def test_addresses_are_the_same_in_one_group_and_in_many(replay, workload, tmp_path, monkeypatch):
    replay("run", workload, "--addresses", tmp_path / "one.parquet", "--no-reference")
    monkeypatch.setattr("replay.reports.files.GROUP_ROWS", 7)
    replay("run", workload, "--addresses", tmp_path / "many.parquet", "--no-reference")
    one, many = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "many"))
    assert one.height > 190
    assert one.equals(many)


def test_existing_results_are_refused_without_force(replay, refused, workload, tmp_path):
    out = tmp_path / "results"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    replay("run", workload, "--out", out, "--no-reference", "-a", "cpython-3.9")
    before = (out / "summary.json").read_text()
    message = refused("run", workload, "--out", out, "--no-reference", "-a", "cpython-3.8")
    assert message == f"replay: {out}: already has summary.json; choose another folder, or overwrite it with --force\n"
    assert (out / "summary.json").read_text() == before
    assert replay("run", workload, "--out", out, "--force", "--no-reference", "-a", "cpython-3.8")[0] == 0
    assert json.loads((out / "summary.json").read_text())["allocator"] == "cpython-3.8"
    assert names(out) == RESULTS | {"notes.txt"}
    assert names(tmp_path) == {"few.yaml", "results"}


def test_of_two_runs_into_one_empty_folder_the_later_one_is_refused(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()

    def write(text):
        with new_folder(folder) as temporary:
            (temporary / "summary.json").write_text(text)
            if text == "later":
                write("first")

    with pytest.raises(OutputError, match=r"results: already has summary\.json"):
        write("later")
    assert (folder / "summary.json").read_text() == "first"
    assert names(tmp_path) == {"results"}


def test_an_existing_address_file_is_refused_and_nothing_else_written(refused, workload, tmp_path):
    there = tmp_path / "there.parquet"
    there.write_text("mine")
    message = refused("run", workload, "--addresses", there, "--out", tmp_path / "results")
    assert "already exists" in message
    assert there.read_text() == "mine"
    assert names(tmp_path) == {"few.yaml", "there.parquet"}


def test_a_run_that_fails_leaves_nothing_behind(refused, tmp_path):
    history = History()
    history.malloc(100)
    history.malloc(1 << 47)
    source = tmp_path / "huge.parquet"
    write_trace(history.trace(), source)
    message = refused("run", source, "--out", tmp_path / "results", "--addresses", tmp_path / "addresses.parquet")
    assert "140737488355328 bytes fit nowhere in the simulated process" in message
    assert message.startswith(f"replay: {source}: row 1: ")
    assert names(tmp_path) == {"huge.parquet"}


@pytest.mark.parametrize("option", ["--out", "--addresses"])
def test_an_output_that_cannot_be_written_is_refused_with_its_path(refused, workload, tmp_path, option):
    message = refused("run", workload, option, tmp_path / "missing" / "results")
    assert message.startswith(f"replay: {tmp_path / 'missing' / 'results'}: the folder ")
    assert len(message.splitlines()) == 1
    assert "cannot" in refused("run", workload, option, "/proc/results")


def test_a_file_in_the_place_of_the_folder_is_refused(refused, workload):
    assert "is not a folder" in refused("run", workload, "--out", workload)


def test_a_missing_source_is_refused_with_the_nearest_name(refused):
    message = refused("run", "web-servise")
    assert "web-servise" in message
    assert "did you mean 'web-service'?" in message


def test_an_unknown_preset_is_refused_with_the_nearest(refused, workload):
    message = refused("run", workload, "-a", "cpython-3.31")
    assert message.startswith("replay: cpython-3.31: ")
    assert "did you mean 'cpython-3.1" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pymalloc.alignement=8", "did you mean 'alignment'?"),
        ("pymalloc.pool_size=3 KiB", "is not a power of two"),
        ("pymalloc.alignment", "write it like pymalloc.alignment=8"),
        ("domains.libc=simpel", "unknown allocator model 'simpel'"),
    ],
)
def test_an_impossible_override_is_refused_with_what_is_wrong(refused, workload, override, expected):
    message = refused("run", workload, "--set", override)
    assert expected in message


@pytest.mark.parametrize("interval", ["soon", "0", "0.5 ns"])
def test_an_invalid_interval_is_refused(refused, workload, interval):
    message = refused("run", workload, "--sample", interval)
    assert message.startswith("replay: --sample: ")
    assert len(message.splitlines()) == 1


def test_a_seed_for_a_recorded_trace_is_refused(refused, trace_file):
    assert "only YAML workloads have a seed" in refused("run", trace_file, "--seed", "3")


def test_a_truncated_trace_is_refused(refused, trace_file, tmp_path):
    trace_file.write_bytes(trace_file.read_bytes()[:-20])
    assert str(trace_file) in refused("run", trace_file, "--out", tmp_path / "results")
    assert names(tmp_path) == {"trace.parquet"}


def rows_of(*rows) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["time_ns", "thread", "op", "domain", "block", "size"], orient="row")


def test_an_output_never_takes_the_place_of_the_trace(replay, tmp_path):
    trace = tmp_path / "trace.parquet"
    rows_of((0, 0, 0, 2, 1, 24)).write_parquet(trace)
    before = trace.read_bytes()
    code, _, printed = replay("run", trace, "--addresses", trace, "--force")
    assert (code, printed) == (2, f"replay: --addresses {trace}: is the input file; choose another name\n")
    assert trace.read_bytes() == before


def test_a_trace_that_exceeds_the_ceiling_model_is_still_simulated(replay, tmp_path):
    sizes = ((time, 0, op, 2, 1, 2**43 if op == 0 else 0) for time in range(12) for op in (0, 3))
    rows_of(*sizes).write_parquet(tmp_path / "large.parquet")
    code, out, _ = replay("run", tmp_path / "large.parquet", "--json")
    summary = json.loads(out)
    assert (code, summary["events"], summary["ceiling"]) == (0, 24, None)
    assert summary["requested_bytes_peak"] == 2**43


def test_brackets_in_names_are_shown_as_they_are(replay, tmp_path):
    workload = tmp_path / "a[red]b.yaml"
    workload.write_text(WORKLOAD.replace("second half", "'[/x] drop [cache]'"))
    code, out, _ = replay("run", workload, "--no-reference", "--full")
    assert code == 0
    assert "[/x] drop [cache]" in out


def test_infinite_costs_are_refused(replay):
    code, _, printed = replay("run", "web-service", "--set", "costs.call=.inf")
    assert (code, printed) == (2, "replay: --set costs.call=.inf: inf should be a finite number\n")


@pytest.mark.parametrize("text", ["duration: \0", "[" * 3000])
def test_yaml_that_cannot_be_parsed_at_all_is_one_sentence(replay, tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    code, _, printed = replay("run", tmp_path / "odd.yaml")
    assert code == 2
    assert printed.startswith(f"replay: {tmp_path / 'odd.yaml'}: is not valid YAML: ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("preset", ["bump", "ideal"])
def test_settings_of_glibc_are_refused_without_glibc(refused, workload, preset):
    expected = refused("run", workload, "-a", preset, "--env", "MALLOC_TOP_PAD_=0")
    assert expected == f"replay: --env MALLOC_TOP_PAD_=0: {preset} does not use glibc, so the variable has no effect\n"


@pytest.mark.parametrize(
    "command",
    [
        ("run", "--env", "MALLOC_CHECK_=3", "--json"),
        ("baseline", "--env", "MALLOC_CHECK_=3"),
        ("check", "--env", "MALLOC_CHECK_=3", "-t", "syscalls<1000000"),
        ("sweep", "--env", "MALLOC_CHECK_=3", "--grid", "glibc.top_pad=0,4096", "--json"),
    ],
    ids=lambda words: words[0],
)
def test_settings_without_effect_are_noted_once_by_every_command(replay, workload, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    name, *options = command
    code, _, printed = replay(name, workload, "-a", "cpython-3.12-glibc-2.36", *options)
    assert code == 0, printed
    note = "note: check: no effect in glibc 2.36 unless libc_malloc_debug.so is preloaded"
    assert [line for line in printed.splitlines() if line.startswith("note")] == [note]


@pytest.mark.system
def test_the_second_process_compiles_the_kernels_of_floor_and_ceiling(workload, tmp_path):
    def call(*words):
        command = [sys.executable, "-m", *map(str, words)]
        environment = os.environ | {"REPLAY_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr

    assert call("replay", "generate", workload, "-o", tmp_path / "t.parquet") != ""  # compiles its own kernels
    assert call("replay.commands.parallel_compilation") == ""
    for preset in ("ideal", "bump"):
        assert call("replay", "run", workload, "-a", preset, "--no-reference") == ""
