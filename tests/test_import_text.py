"""Logs of mtrace and traces of the malloc lab: exact events of small files, real logs, and what is refused."""

import bz2
import gzip
import lzma
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import event_rows, refusal, written

from replay.sources import open_source
from replay.trace import NO_SITE, Op, Site

MTRACE = """= Start
@ ./a.out:(main+0x1d)[0x401156] + 0x4052a0 0x10
@ ./a.out:[0x401166] + 0x4052c0 0x20
@ /lib/x y.so:(foo+0x1)[0x7f] < 0x4052a0
@ /lib/x y.so:(foo+0x1)[0x7f] > 0x4052f0 0x100
@ ./a.out:[0x401166] - 0x4052c0
@ ./a.out:[0x401166] - 0xdead
+ (nil) 0xffffffffffffffff
@ ./a.out:(main+0x1d)[0x401156] + 0x4052a0 0
@ ./a.out:[0x401177] ! 0x4052a0 0x7fffffffffffff
- 0x4052a0
= End
"""
REP = "20000\n3\n9\n1\na 0 512\na 1 128\nr 0 640\na 2 128\nf 1\nr 0 768\nf 0\nf 2\nf -1\n"
CSV = "time_ns,op,block,size\n0,malloc,7,16\n1,free,7,\n"
ORIGIN = {"assumed time": "an event a microsecond", "assumed thread": "0", "assumed domain": "libc"}


def rows(trace):
    return event_rows(trace, "op", "block", "size")


def test_an_mtrace_log_is_read_call_by_call(tmp_path):
    trace = open_source(written(tmp_path, MTRACE, "log.mtrace"))
    (events,) = (batch for batch in trace.batches() if batch.rows)
    assert events.op.tolist() == [Op.MALLOC, Op.MALLOC, Op.REALLOC, Op.FREE, Op.MALLOC, Op.FREE]
    assert events.block.tolist() == [0, 1, 0, 1, 1, 1]
    assert events.size.tolist() == [16, 32, 256, 0, 0, 0]
    assert events.address.tolist() == [0x4052A0, 0x4052C0, 0x4052F0, 0x4052C0, 0x4052A0, 0x4052A0]
    assert events.time_ns.tolist() == [0, 1000, 2000, 3000, 4000, 5000]
    assert events.site.tolist() == [0, 1, 2, NO_SITE, 0, NO_SITE]
    assert (set(events.thread.tolist()), set(events.domain.tolist())) == ({0}, {3})
    assert trace.metadata.sites == (
        Site("main", "./a.out", 0),
        Site("[0x401166]", "./a.out", 0),
        Site("foo", "/lib/x y.so", 0),
    )
    counted = {"dropped frees": "1", "failed calls": "2"}
    assert trace.metadata.origin.texts() == {"source": "mtrace", "file": "log.mtrace"} | ORIGIN | counted


def test_the_offset_of_a_caller_does_not_belong_to_its_function(tmp_path):
    text = "@ /lib/a.so:(f+0x2f0)[0x1] + 0x10 0x1\n@ /lib/a.so:(f+2f0)[0x1] + 0x20 0x1\n@ b:(g)[0x1] + 0x30 0x1\n"
    trace = open_source(written(tmp_path, text, "log.mtrace"))
    rows(trace)
    assert trace.metadata.sites == (Site("f", "/lib/a.so", 0), Site("f", "/lib/a.so", 0), Site("g", "b", 0))


def test_a_trace_of_the_malloc_lab_is_read_request_by_request(tmp_path):
    trace = open_source(written(tmp_path, REP, "short.rep"))
    assert rows(trace) == [
        ("malloc", 0, 512), ("malloc", 1, 128), ("realloc", 0, 640), ("malloc", 2, 128),
        ("free", 1, 0), ("realloc", 0, 768), ("free", 0, 0), ("free", 2, 0),
    ]  # fmt: skip
    assert trace.metadata.origin.texts() == {"source": "rep", "file": "short.rep"} | ORIGIN


def test_a_realloc_to_no_bytes_is_a_free(tmp_path):
    text = "0\n2\n7\n1\na 0 16\nr 0 0\na 0 32\nr 0 0\nr 0 8\nf 0\nr 1 0\n"
    trace = open_source(written(tmp_path, text, "t.rep"))
    assert rows(trace) == [
        ("malloc", 0, 16), ("free", 0, 0), ("malloc", 0, 32), ("free", 0, 0),
        ("malloc", 0, 8), ("free", 0, 0), ("malloc", 0, 0),
    ]  # fmt: skip
    assert "missing frees" not in trace.metadata.origin.texts()


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("\n", " \r\n"),
        lambda text: text.replace(" ", "  "),
        lambda text: text.replace(" ", "\t"),
        lambda text: text.replace("\n", "\n \t"),
        lambda text: text.replace("\n", "\t \v\f\r\n\r\n  \n"),
        lambda text: text.rstrip("\n") + " ",
    ],
    ids=["blank before CRLF", "double blanks", "tabs", "leading blanks", "blank lines", "no last newline"],
)
@pytest.mark.parametrize("lenient", [False, True])
def test_blanks_in_a_trace_of_the_malloc_lab_are_read_as_fscanf_reads_them(tmp_path, edit, lenient):
    plain = rows(open_source(written(tmp_path, REP, "plain.rep")))
    path = tmp_path / "blanks"
    path.write_bytes(edit(REP).encode())
    trace = open_source(path, lenient=lenient)
    assert rows(trace) == plain
    assert "dropped lines" not in trace.metadata.origin.texts()


def test_both_styles_of_header_are_read(tmp_path):
    newer = written(tmp_path, "1\n1\n2\n0\na 0 16\nf 0\n", "newer")
    assert rows(open_source(newer)) == [("malloc", 0, 16), ("free", 0, 0)]


def test_a_realloc_of_an_id_that_is_not_live_is_a_malloc_and_a_second_free_is_dropped(tmp_path):
    trace = open_source(written(tmp_path, "0\n1\n3\n1\nr 7 16\nf 7\nf 7\n", "t.rep"))
    assert rows(trace) == [("malloc", 0, 16), ("free", 0, 0)]
    assert trace.metadata.origin.texts()["born by realloc"] == "1"
    assert trace.metadata.origin.texts()["dropped frees"] == "1"


def zstd_compressed(text):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(text)
    return sink.getvalue().to_pybytes()


COMPRESS = {"gzip": gzip.compress, "zstd": zstd_compressed, "xz": lzma.compress, "bzip2": bz2.compress}
each_compression = pytest.mark.parametrize("compression", COMPRESS)


@each_compression
@pytest.mark.parametrize(("text", "events"), [(MTRACE, 6), (REP, 8), (CSV, 2)], ids=["mtrace", "rep", "csv"])
def test_a_compressed_log_is_recognised_by_its_content_and_read(tmp_path, compression, text, events):
    path = tmp_path / "log"
    path.write_bytes(COMPRESS[compression](text.encode()))
    assert len(rows(open_source(path))) == events


@each_compression
def test_a_log_compressed_in_two_parts_is_read_completely(tmp_path, compression):
    path = tmp_path / "log"
    cut = REP.index("f 1")
    path.write_bytes(b"".join(map(COMPRESS[compression], (REP[:cut].encode(), REP[cut:].encode()))))
    assert len(rows(open_source(path))) == 8


@each_compression
@pytest.mark.parametrize(("text", "name"), [(MTRACE, "mtrace"), (CSV, "csv")], ids=["mtrace", "csv"])
def test_a_compressed_log_that_is_cut_short_is_refused(tmp_path, compression, text, name):
    path = tmp_path / "log"
    path.write_bytes(COMPRESS[compression](text.encode() * 1000)[:-20])
    assert f"the {compression} data is damaged or incomplete" in refusal(path, format_name=name)


@pytest.mark.parametrize("compression", ["gzip", "xz", "bzip2"])
def test_a_damaged_compressed_log_is_refused(tmp_path, compression):
    path = tmp_path / "log"
    content = bytearray(COMPRESS[compression](random.Random(0).randbytes(1 << 16)))
    content[1000:40_000] = bytes(39_000)
    path.write_bytes(content)
    assert f"the {compression} data is damaged or incomplete" in refusal(path, format_name="mtrace")


def test_a_compressed_log_is_recognised_by_the_suffix_before_that_of_its_compression(tmp_path):
    path = tmp_path / "lab.rep.xz"
    path.write_bytes(lzma.compress(b"a 0 512\n"))
    assert "line 1: the header must have four" in refusal(path)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", ["capture.bin.z", "trace.parquet.z", "workload.yaml.z", "log"])
def test_a_compressed_file_that_is_no_log_is_refused_with_its_compression(tmp_path, compression, name):
    path = tmp_path / name.replace(".z", {"gzip": ".gz", "zstd": ".zst", "xz": ".xz", "bzip2": ".bz2"}[compression])
    path.write_bytes(COMPRESS[compression](b"PAR1 memray duration: 1 s"))
    assert refusal(path) == (
        f"is compressed with {compression}, and its content is no log that replay can read compressed; "
        "decompress it first"
    )


def test_a_file_of_no_known_format_names_the_compressions(tmp_path):
    assert "compressed with gzip, zstd, xz or bzip2" in refusal(written(tmp_path, "hello", "log.7z"))


def test_an_incompressible_log_is_recognised_though_bzip2_delivers_whole_blocks_only(tmp_path):
    path = tmp_path / "log"
    noise = random.Random(0).randbytes(450_000).hex()
    path.write_bytes(bz2.compress(f"= Start\n@ {noise} + 0x10 0x10\n= End\n".encode()))
    assert path.stat().st_size > 1 << 18
    assert rows(open_source(path)) == [("malloc", 0, 16)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hello", "line 13: 'hello' is not a line of an mtrace log; `replay import --lenient` leaves such lines out"),
        ("@ a + 0x10", "line 13: '@ a + 0x10' is not a line"),
        ("@ a * 0x10 0x10", "line 13: '@ a * 0x10 0x10' is not a line"),
        ("a + 0x10 0x10", "line 13: 'a + 0x10 0x10' is not a line"),
        ("@ a + 0x1g 0x10", "line 13: '@ a + 0x1g 0x10' is not a line"),
        ("@ a + 0x10 0x800000000001", "line 13: the size is out of range; a block has 0 to 2^47 bytes"),
    ],
)
def test_a_broken_mtrace_line_is_refused_with_its_number(tmp_path, line, message):
    assert refusal(written(tmp_path, f"{MTRACE}{line}\n", "log.mtrace")).startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x 1 2", "line 14: 'x 1 2' is not a line of a malloc lab trace"),
        ("a 1", "line 14: 'a 1' is not a line"),
        ("a -1 5", "line 14: 'a -1 5' is not a line"),
        ("a 1 5 7", "line 14: 'a 1 5 7' is not a line"),
        ("f", "line 14: 'f' is not a line"),
        ("a 1 140737488355329", "line 14: the size is out of range"),
        ("f 1", "the header has 9 requests, but 10 follow; is the file complete?"),
    ],
)
def test_a_broken_request_is_refused_with_its_line(tmp_path, line, message):
    assert refusal(written(tmp_path, f"{REP}{line}\n", "t.rep")).startswith(message)


@pytest.mark.parametrize("text", ["", "20000\n3\n", "a 0 512\n"])
def test_a_malloc_lab_trace_without_its_header_is_refused(tmp_path, text):
    assert "line 1: the header must have four" in refusal(written(tmp_path, text, "t.rep"))


def test_lenient_reading_leaves_unknown_lines_out_and_counts_them(tmp_path):
    noisy = MTRACE.replace("= End\n", "oops\n\n@ b + 0x99\n= End\n")
    trace = open_source(written(tmp_path, noisy, "log.mtrace"), lenient=True)
    assert len(rows(trace)) == 6
    assert trace.metadata.origin.texts()["dropped lines"] == "2"
    trace = open_source(written(tmp_path, REP.replace("f 1\n", "g 1\n"), "t.rep"), lenient=True)
    assert ("free", 1, 0) not in rows(trace)
    assert trace.metadata.origin.texts()["dropped lines"] == "1"


@pytest.mark.parametrize(
    ("text", "lines"),
    [("SQLite format 3\0\n\1\2\3", "2 unknown lines were"), ("hello\n= Start\n- 0x10\n", "1 unknown line was")],
)
def test_lenient_reading_that_leaves_nothing_is_refused_and_not_suggested(tmp_path, text, lines):
    path = written(tmp_path, text, "log.mtrace")
    assert refusal(path, lenient=True) == (
        f"no event remains: {lines} left out, and no other line is an event of mtrace; "
        "`--format NAME` names another format"
    )
    assert refusal(path).endswith(
        "is not a line of an mtrace log; "
        "nothing in the file is an event of that format; `--format NAME` names another one"
    )


@pytest.mark.parametrize(
    ("name", "text", "left_out"),
    [
        ("log.mtrace", "= Start\n- 0x10\n- 0x20\n", "frees of blocks older than the log, left out: 2"),
        ("log.mtrace", "+ (nil) 0x10\n", "calls that failed, left out: 1"),
        ("t.rep", "1\n1\n2\n1\nf 0\nf 1\n", "frees of blocks older than the log, left out: 2"),
    ],
)
@pytest.mark.parametrize("lenient", [False, True])
def test_a_log_of_which_all_is_left_out_is_refused(tmp_path, name, text, left_out, lenient):
    assert refusal(written(tmp_path, text, name), lenient=lenient) == (
        f"no event remains: {left_out}; record the program from its start"
    )


@pytest.mark.parametrize("name", ["log.mtrace", "log.replay"])
def test_a_log_without_bytes_is_refused(tmp_path, name):
    assert refusal(written(tmp_path, "", name)) == "is empty; did the program end before it wrote the log?"


def test_a_log_without_events_and_without_unknown_lines_is_a_trace_of_nothing(tmp_path):
    assert rows(open_source(written(tmp_path, "= Start\n= End\n", "log.mtrace"), lenient=True)) == []


def test_a_log_is_read_equally_in_pieces_of_any_size(tmp_path, monkeypatch):
    lines = [
        f"@ a:(f{n % 700}+0x1)[0x1] + {64 * n + 64:#x} {n:#x}\n@ b < {64 * n + 64:#x}\n@ b > 0x{n:x}8 0x5"
        for n in range(3000)
    ]
    path = written(tmp_path, "\n".join(lines), "log.mtrace")
    trace = open_source(path)
    whole, sites = rows(trace), trace.metadata.sites
    assert len(whole) == 6000
    assert len(sites) == 701
    monkeypatch.setattr("replay.sources._logs.lines._PIECE_BYTES", 1000)
    trace = open_source(path)
    assert rows(trace) == whole
    assert trace.metadata.sites == sites
    path.write_text("\n".join(lines) + "\nx")
    assert "line 9001: 'x' is not a line" in refusal(path)


PROGRAM = """
#include <mcheck.h>
#include <stdlib.h>
int main(void) {
    void *early = malloc(10);
    mtrace();
    void *a = malloc(100), *b = calloc(3, 7);
    a = realloc(a, 5000);
    free(early);
    free(b);
    void *c = realloc(NULL, 40);
    free(c);
    void *d = aligned_alloc(64, 128);
    a = realloc(a, 0);
    muntrace();
    return d == NULL;
}
"""


def compile_or_skip(folder, source, output, *flags):
    """Compiles C source to a program or library; skips the test if that is not possible."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    (folder / f"{output}.c").write_text(source)
    command = [compiler, "-O0", *flags, f"{output}.c", "-o", output]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("gcc cannot compile a call of mtrace()")
    return folder / output


def record_or_skip(program, *preloaded):
    """Returns the log of a program that runs with these libraries; skips the test if the C library writes none."""
    log = program.parent / "log"
    preload = " ".join(["libc_malloc_debug.so.0", *map(str, preloaded)])
    environment = {**os.environ, "MALLOC_TRACE": str(log), "LD_PRELOAD": preload}
    subprocess.run([program], cwd=program.parent, env=environment, capture_output=True, check=True)
    if not log.exists():
        pytest.skip("this C library writes no mtrace log")
    return log


@pytest.mark.system
def test_a_program_that_does_not_call_mtrace_is_recorded_by_a_second_library(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "trace-format.md").read_text()
    (source,) = re.findall(r"^// start_mtrace.c\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    library = compile_or_skip(tmp_path, source, "start_mtrace.so", "-shared", "-fPIC")
    body = "#include <stdlib.h>\nint main(void) { free(realloc(malloc(777), 7777)); return 0; }\n"
    trace = open_source(record_or_skip(compile_or_skip(tmp_path, body, "program"), library))
    assert [(op, size) for op, _, size in rows(trace) if size in (777, 7777)] == [("malloc", 777), ("realloc", 7777)]


@pytest.mark.system
def test_a_real_log_has_the_calls_of_the_program(tmp_path):
    trace = open_source(record_or_skip(compile_or_skip(tmp_path, PROGRAM, "program")))
    assert rows(trace) == [
        ("malloc", 0, 100), ("malloc", 1, 21), ("realloc", 0, 5000), ("free", 1, 0),
        ("malloc", 1, 40), ("free", 1, 0), ("malloc", 1, 128), ("free", 0, 0),
    ]  # fmt: skip
    assert trace.metadata.origin.texts()["dropped frees"] == "1"
