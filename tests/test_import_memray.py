"""Captures of memray, recorded here: exact events of known calls, call sites, times, and what is refused.

They are read by replay itself, and by memray's own library, whose every record the first must give as well.
"""

import ast
import builtins
import importlib.metadata
import itertools
import logging
import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import refusal

from replay.sources import open_source
from replay.sources._logs.log_trace import Findings
from replay.sources.memray import allocator_types
from replay.sources.memray.capture import read_capture
from replay.sources.memray.header import read_header
from replay.sources.memray.line_tables import LineTable
from replay.trace import NO_SITE, Domain, Op, Provenance, joined
from replay.trace.provenance_text import limits
from replay.trace.validation import Validator

pytestmark = pytest.mark.system

memray = pytest.importorskip("memray", reason="memray is not installed: pip install 'alloc-replay[memray]'")
VERSION_AT = 7
"""Offset of the version in an uncompressed capture."""
MMAP = 14
"""From here on, allocators are those of mmap and munmap."""

PROGRAM = """
import sys
from memray import AllocatorType, Destination, FileDestination, FileFormat, Tracker
from memray._test import MemoryAllocator, MmapAllocator

first, second, early = (MemoryAllocator() for _ in range(3))
early.malloc(777_001)

def work():
    first.malloc(777_100)
    second.calloc(777_200)
    first.realloc(777_300)
    early.free()
    second.free()
    MmapAllocator(8192).munmap(8192)
    first.free()
    second.posix_memalign(777_400)

kind = FileFormat.AGGREGATED_ALLOCATIONS if sys.argv[2] == "aggregated" else FileFormat.ALL_ALLOCATIONS
with Tracker(destination=FileDestination(sys.argv[1], compress_on_exit="compressed" in sys.argv[2]), file_format=kind,
             trace_python_allocators=sys.argv[2].split()[-1] in ("python", "threads", "native"),
             native_traces=sys.argv[2] == "native"):
    work()
    if sys.argv[2] == "python":
        kept = [str(number) * 3 for number in range(2000)]
    if sys.argv[2].split()[-1] in ("threads", "native"):
        import json, threading
        def nested(depth):
            return nested(depth - 1) if depth else json.loads(json.dumps({str(each): [each] for each in range(500)}))
        threads = [threading.Thread(target=lambda: [nested(40 * number) for number in range(20)]) for _ in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    if sys.argv[2] == "killed":
        import os
        os._exit(0)
"""


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Records the program above in the named way, once."""
    folder = tmp_path_factory.mktemp("captures")
    (folder / "program.py").write_text(PROGRAM)

    def recorded(kind):
        path = folder / f"{kind}.bin"
        if not path.exists():
            subprocess.run([sys.executable, "program.py", path, kind], cwd=folder, check=True)
        return path

    return recorded


@pytest.fixture(params=["replay", "library"])
def way(request, monkeypatch):
    """The reader: replay itself, or memray's library, for which replay supports no version."""
    if request.param == "library":
        by_library(monkeypatch)
    return request.param


def by_library(monkeypatch):
    monkeypatch.setattr("replay.sources.memray.header.KNOWN_VERSIONS", ())


def plain(path):
    """Returns the decompressed bytes of a capture."""
    content = path.read_bytes()
    return content if content.startswith(b"memray") else pa.input_stream(str(path), compression="lz4").read()


def whole(trace):
    """All events as one batch."""
    return joined(list(trace.batches()))


def assert_equal(events, expected):
    columns = {name: column.tolist() for name, column in events.present().items()}
    assert columns == {name: column.tolist() for name, column in expected.present().items()}


def sites(trace, events):
    return [None if number == NO_SITE else trace.metadata.sites[number] for number in events.site.tolist()]


@pytest.mark.parametrize("kind", ["plain", "compressed", "python"])
def test_known_calls_are_read_as_they_were_made(record, kind, way):
    trace = open_source(record(kind))
    events = whole(trace)
    ours = [row for row in range(events.op.size) if events.size[row] // 1000 == 777]
    assert [(Op(events.op[row]), int(events.size[row])) for row in ours] == [
        (Op.MALLOC, 777_100), (Op.CALLOC, 777_200), (Op.REALLOC, 777_300), (Op.MALLOC, 777_400),
    ]  # fmt: skip
    assert {int(events.domain[row]) for row in ours} == {Domain.LIBC}
    first, moved = (int(events.block[ours[row]]) for row in (1, 2))
    assert (events.op[ours[2] - 1], events.size[ours[2] - 1], events.block[ours[2] - 1]) == (Op.MALLOC, 1, moved)
    between = slice(ours[2] + 1, ours[3])
    frees = events.block[between][events.op[between] == Op.FREE].tolist()
    assert [block for block in frees if block in (first, moved)] == [first, moved]
    places = [trace.metadata.sites[events.site[row]] for row in ours]
    assert [site.function for site in places] == ["malloc", "calloc", "realloc", "posix_memalign"]
    assert all(site.file.endswith("_test.py") and site.line > 0 for site in places)
    assert (events.site[events.op == Op.FREE] == NO_SITE).all()
    origin = trace.metadata.origin.texts()
    assert int(origin["dropped frees"]) >= 1
    assert int(origin["dropped mappings"]) >= 2
    assert origin["allocator"] == "pymalloc"
    assert "program.py" in origin["command"]


def test_a_capture_agrees_with_memray_record_by_record(record, way):
    path = record("python")
    with memray.FileReader(path) as reader:
        live, expected, dropped, mapped_bytes = {}, [], 0, 0
        records = [(each.allocator, each.address, each.size, each.tid) for each in reader.get_allocation_records()]
    for index, (allocator, address, size, thread) in enumerate(records):
        if allocator == MMAP:
            mapped_bytes += size
        elif allocator in (1, 5):
            later = next((each for each in records[index + 1 :] if each[3] == thread), None)
            dropped += address not in live and (later is None or later[0] not in (4, 7))
            live.pop(address, None)
        elif allocator < MMAP:
            live[address] = size
            expected.append((address, size))
    trace = open_source(path)
    events = whole(trace)
    births = events.op != Op.FREE
    assert list(zip(events.address[births].tolist(), events.size[births].tolist(), strict=True)) == expected
    assert trace.validator.live_blocks == len(live)
    assert trace.validator.live_bytes == sum(live.values())
    assert int(trace.metadata.origin.texts()["dropped frees"]) == dropped
    assert int(trace.metadata.origin.texts()["dropped mapping bytes"]) == mapped_bytes >= 8192
    kept = [site for site in trace.metadata.sites if site.file.endswith("program.py")]
    assert PROGRAM.splitlines().index("        kept = [str(number) * 3 for number in range(2000)]") + 1 in {
        site.line for site in kept
    }
    python = events.domain == Domain.OBJ
    assert np.count_nonzero(python & (events.op == Op.MALLOC)) >= 2000


@pytest.mark.parametrize("kind", ["plain", "compressed", "python", "threads", "native"])
def test_replay_and_the_library_read_the_same(record, kind, monkeypatch):
    ours = open_source(record(kind))
    events = whole(ours)
    by_library(monkeypatch)
    theirs = open_source(record(kind))
    expected = whole(theirs)
    for name in ("thread", "op", "domain", "block", "size", "address"):
        assert getattr(events, name).tolist() == getattr(expected, name).tolist()
    assert sites(ours, events) == sites(theirs, expected)
    assert set(ours.metadata.sites) <= set(theirs.metadata.sites)  # the library's are also those of mappings
    assumed = {"assumed time": ours.metadata.origin.texts()["assumed time"]}
    assert ours.metadata.origin.texts() == theirs.metadata.origin.texts() | assumed
    if kind in ("threads", "native"):
        assert len(set(events.thread.tolist())) >= 4
        assert len(ours.metadata.sites) > 20


def test_times_of_records_are_between_the_snapshots_around_them(record):
    """The output of `memray parse` has the order of snapshots and records."""
    path = record("threads")
    command = [sys.executable, "-m", "memray", "parse", str(path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    snapshots, kept = [], 0
    for line in lines:
        if match := re.match(r"MEMORY_RECORD time=(\d+)", line):
            snapshots.append((kept, int(match[1]) * 10**6))
        kept += line.startswith("ALLOCATION ") and "map " not in line
    assert len(snapshots) >= 2
    header = read_header(path)
    time_ns = np.concatenate([calls.time_ns for calls in read_capture(path, header, Findings(), lenient=False)])
    assert time_ns.shape[0] == kept
    rows, stamps = [row for row, _ in snapshots], [stamp for _, stamp in snapshots]
    assert (time_ns[: rows[0]] == stamps[0]).all()
    assert (time_ns[rows[-1] :] == stamps[-1]).all()
    for (start, from_ns), (end, to_ns) in itertools.pairwise(snapshots):
        passed = np.arange(end - start) * (to_ns - from_ns) // max(end - start, 1)
        assert time_ns[start:end].tolist() == (from_ns + passed).tolist()


def test_times_are_between_the_first_and_the_last_snapshot(record, way):
    path = record("python")
    with memray.FileReader(path) as reader:
        times = [snapshot.time * 10**6 for snapshot in reader.get_memory_snapshots()]
    events = whole(open_source(path))
    assert times[0] <= events.time_ns[0] <= events.time_ns[-1] <= times[-1]


def test_batches_do_not_change_what_is_read(record, monkeypatch, way):
    path = record("python")
    expected = whole(open_source(path))
    monkeypatch.setattr("replay.sources.memray.library._ROWS", 640)
    monkeypatch.setattr("replay.sources.memray.capture._ROWS", 640)
    monkeypatch.setattr("replay.sources.memray.capture._PIECE_BYTES", 100)
    assert_equal(whole(open_source(path)), expected)


def test_an_aggregated_capture_is_refused(record, way):
    assert refusal(record("aggregated")) == (
        "has only sums, no single allocations; record it again without `memray run --aggregate`"
    )


@pytest.mark.parametrize("kind", ["plain", "compressed"])
def test_a_capture_that_is_cut_short_is_refused_but_for_lenient_reading(record, tmp_path, kind):
    path = tmp_path / "cut.bin"
    content = record("python" if kind == "plain" else "compressed threads").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert refusal(path).startswith("is incomplete: it should have ")
    trace = open_source(path, lenient=True)
    Validator().check(whole(trace))
    assert trace.metadata.origin.texts()["cut short"].startswith("after ")


def test_wherever_a_capture_is_cut_the_same_records_are_left_as_by_the_library(record, tmp_path):
    content, path, random_ = plain(record("threads")), tmp_path / "cut.bin", random.Random(7)
    memray.set_log_level(logging.CRITICAL)
    for _ in range(40):
        path.write_bytes(content[: random_.randrange(1000, len(content))])
        trace = open_source(path, lenient=True)
        list(trace.batches())
        with memray.FileReader(path) as reader:
            total = reader.metadata.total_allocations
        if total < read_header(path).records:
            assert trace.metadata.origin.texts()["cut short"] == f"after {total:,} records"


def test_a_damaged_capture_never_crashes_the_reader(record, tmp_path):
    content, path, random_ = plain(record("native")), tmp_path / "damaged.bin", random.Random(3)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[random_.randrange(2000, len(damaged))] = random_.randrange(256)
        path.write_bytes(damaged)
        for calls in read_capture(path, read_header(path), Findings(), lenient=True):
            assert calls.op.shape == calls.site.shape


def test_a_capture_of_version_12_is_one_of_13_without_paths(record, tmp_path, monkeypatch):
    content = plain(record("threads"))
    length, command_at = read_header(record("threads")).length, VERSION_AT + 4 + 6 + 32
    paths_at = content.index(b"\0", command_at) + 1 + 4 + 8 + 8 + 3
    older = content[:VERSION_AT] + struct.pack("<i", 12) + content[VERSION_AT + 4 : paths_at] + content[length:]
    (tmp_path / "older.bin").write_bytes(older)
    assert_equal(whole(open_source(tmp_path / "older.bin")), whole(open_source(record("threads"))))


def test_a_capture_of_a_program_that_was_killed_is_refused_but_for_lenient_reading(record):
    assert refusal(record("killed")).startswith("is incomplete: the program did not end it")
    events = whole(open_source(record("killed"), lenient=True))
    assert 777_400 in events.size.tolist()


def of_format(version, record, tmp_path):
    """Returns a capture with this format version."""
    content = bytearray(record("plain").read_bytes())
    content[VERSION_AT] = version
    path = tmp_path / f"format-{version}.bin"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (10, " (memray 1.10 or older), which is not supported; record it again with a newer memray"),
        (11, " (memray 1.11 to 1.18), which only memray 1.12 to 1.18 can read; {}: pip install 'memray>=1.12,<1.19'"),
        (99, ", which only its library can read; {}: install the memray that recorded it"),
    ],
)
def test_a_capture_that_the_installed_memray_cannot_read_is_refused_with_the_versions_that_can(
    record, tmp_path, version, expected
):
    installed = f"memray {importlib.metadata.version('memray')} is installed"
    message = refusal(of_format(version, record, tmp_path))
    assert message == f"is a memray capture in format version {version}{expected.format(installed)}"


def test_a_capture_without_its_header_is_refused(record, tmp_path):
    (tmp_path / "tiny.bin").write_bytes(record("plain").read_bytes()[:12])
    assert refusal(tmp_path / "tiny.bin").startswith("is not a complete capture of memray")


@pytest.fixture
def without_memray(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "memray":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)


def test_known_versions_are_read_without_memray(record, without_memray):
    assert 777_400 in whole(open_source(record("plain"))).size.tolist()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (11, "which only memray 1.12 to 1.18 can read; memray is not installed: pip install 'memray>=1.12,<1.19'"),
        (99, "which only its library can read; memray is not installed: pip install 'alloc-replay[memray]'"),
    ],
)
def test_without_memray_the_error_names_what_to_install_for_other_versions(
    record, tmp_path, without_memray, version, expected
):
    assert refusal(of_format(version, record, tmp_path)).endswith(expected)


def test_allocators_are_known_by_their_names_in_whatever_numbering():
    newer = {member.name: member.value for member in memray.AllocatorType}
    assert newer == allocator_types.NUMBERS_FROM_FORMAT_12
    older = {"MALLOC": 1, "FREE": 2, "MMAP": 10, "MUNMAP": 11, "PYMALLOC_MALLOC": 12, "PYMALLOC_FREE": 15}
    ops, domains = allocator_types.call_tables(older | {"NEVER_HEARD_OF": 16})
    expected = [
        (Op.MALLOC, Domain.LIBC),
        (Op.FREE, Domain.LIBC),
        (allocator_types.MMAP, Domain.LIBC),
        (allocator_types.MUNMAP, Domain.LIBC),
        (Op.MALLOC, Domain.OBJ),
        (Op.FREE, Domain.OBJ),
    ]
    assert [(ops[number], domains[number]) for number in older.values()] == expected
    assert ops[[0, 3, 16, 255]].tolist() == [allocator_types.UNKNOWN] * 4


def test_a_call_of_an_unknown_allocator_is_refused(record, monkeypatch):
    by_library(monkeypatch)
    monkeypatch.delitem(allocator_types._CALLS, "POSIX_MEMALIGN")
    assert refusal(record("plain")) == ("has calls of memray's allocator 9, which is unknown to this version of replay")


def test_the_output_has_the_memory_that_was_mapped_outside_the_trace():
    origin = Provenance(dropped_mappings=1400, dropped_mapping_bytes=35 << 20)
    assert limits(origin) == "mmap and munmap calls left out: 1,400; memory mapped by them, left out: 35.0 MiB"


def functions():
    def short(x):
        return x

    def long(x):
        total = [x for x in range(10) if x]

        for each in total:
            print(each)
            print(
                x,
                short(each),
            )
        try:
            return {
                "a": short(x),
            }
        finally:
            total.clear()

    async def other(x):
        async with x as y, y:
            yield await x

    return [short, long, other, whole, plain, re.compile, subprocess.run, random.Random.shuffle]


@pytest.mark.parametrize("function", functions(), ids=lambda function: function.__name__)
def test_line_tables_have_the_same_lines_as_python(function):
    code = function.__code__
    table = LineTable(code.co_linetable, code.co_firstlineno, sys.hexversion)
    found = 0
    for start, end, line in code.co_lines():
        for offset in range(start, end, 2):
            if line is not None:
                assert table.line(offset) == line
                found += 1
    assert found >= 3
    assert table.line(len(code.co_code)) == table.line(-1) == 0


SOURCE = (
    "def f(x):\n    y = [\n        x,\n\n        x + 1]\n    if y:\n        return 0\n" + "\n" * 300 + "    return y\n"
)
TELL = f"""
import dis
exec({SOURCE!r})
code = f.__code__
table = code.co_linetable if hasattr(code, "co_linetable") else code.co_lnotab
lines = dict(dis.findlinestarts(code))
at = code.co_firstlineno
for offset in range(0, len(code.co_code), 2):
    lines[offset] = at = lines.get(offset, at)
print([table.hex(), code.co_firstlineno, sorted(lines.items())])
"""


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10"])
def test_line_tables_of_older_pythons_tell_their_lines(version):
    root = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    python = next(iter(sorted(root.glob(f"versions/{version}.*/bin/python"))), None)
    if python is None:
        pytest.skip(f"no Python {version} among pyenv's")
    printed = subprocess.run([python, "-c", TELL], check=True, capture_output=True, text=True).stdout
    table, first_line, lines = ast.literal_eval(printed)
    major, minor = map(int, version.split("."))
    found = LineTable(bytes.fromhex(table), first_line, major << 24 | minor << 16)
    unit = 2 if version == "3.10" else 1
    assert [found.line(offset // unit) for offset, _ in lines] == [line for _, line in lines]
    assert lines[-1][1] > 300
