"""Captures of memray, recorded here: exact events of known calls, call sites, times, and what is refused."""

import builtins
import subprocess
import sys

import numpy as np
import pytest

from replay.errors import TraceError
from replay.sources import open_source
from replay.trace import NO_SITE, Domain, Op
from replay.validation import Validator

memray = pytest.importorskip("memray", reason="memray is not installed: pip install 'alloc-replay[memray]'")

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
with Tracker(destination=FileDestination(sys.argv[1], compress_on_exit=sys.argv[2] == "compressed"), file_format=kind,
             trace_python_allocators=sys.argv[2] == "python"):
    work()
    if sys.argv[2] == "python":
        kept = [str(number) * 3 for number in range(2000)]
    if sys.argv[2] == "killed":
        import os
        os._exit(0)
"""


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Records the program above in the way that is named, once."""
    folder = tmp_path_factory.mktemp("captures")
    (folder / "program.py").write_text(PROGRAM)

    def recorded(kind):
        path = folder / f"{kind}.bin"
        if not path.exists():
            subprocess.run([sys.executable, "program.py", path, kind], cwd=folder, check=True)
        return path

    return recorded


def whole(trace):
    """All events as one batch."""
    batches = list(trace.batches())
    columns = zip(*batches, strict=True)
    return type(batches[0])(*(np.concatenate(column) for column in columns))


def refusal(path, **options):
    with pytest.raises(TraceError) as caught:
        list(open_source(path, **options).batches())
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", ["plain", "compressed", "python"])
def test_known_calls_are_read_as_they_were_made(record, kind):
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
    origin = trace.metadata.origin
    assert int(origin["dropped frees"]) >= 1
    assert int(origin["dropped mappings"]) >= 2
    assert origin["allocator"] == "pymalloc"
    assert "program.py" in origin["command"]


def test_a_capture_agrees_with_memray_record_by_record(record):
    path = record("python")
    with memray.FileReader(path) as reader:
        live, expected, dropped = {}, [], 0
        records = [(each.allocator, each.address, each.size, each.tid) for each in reader.get_allocation_records()]
    for index, (allocator, address, size, thread) in enumerate(records):
        if allocator in (1, 5):
            later = next((each for each in records[index + 1 :] if each[3] == thread), None)
            dropped += address not in live and (later is None or later[0] not in (4, 7))
            live.pop(address, None)
        elif allocator < 14:
            live[address] = size
            expected.append((address, size))
    trace = open_source(path)
    events = whole(trace)
    births = events.op != Op.FREE
    assert list(zip(events.address[births].tolist(), events.size[births].tolist(), strict=True)) == expected
    assert trace.validator.live_blocks == len(live)
    assert trace.validator.live_bytes == sum(live.values())
    assert int(trace.metadata.origin["dropped frees"]) == dropped
    kept = [site for site in trace.metadata.sites if site.file.endswith("program.py")]
    assert PROGRAM.splitlines().index("        kept = [str(number) * 3 for number in range(2000)]") + 1 in {
        site.line for site in kept
    }
    python = events.domain == Domain.OBJ
    assert np.count_nonzero(python & (events.op == Op.MALLOC)) >= 2000


def test_times_lie_between_the_first_snapshot_and_the_last(record):
    path = record("python")
    with memray.FileReader(path) as reader:
        times = [snapshot.time * 10**6 for snapshot in reader.get_memory_snapshots()]
    events = whole(open_source(path))
    assert times[0] <= events.time_ns[0] <= events.time_ns[-1] <= times[-1]


def test_batches_do_not_change_what_is_read(record, monkeypatch):
    path = record("python")
    expected = whole(open_source(path))
    monkeypatch.setattr("replay.sources.memray._ROWS", 640)
    for one, other in zip(whole(open_source(path)), expected, strict=True):
        assert one.tolist() == other.tolist()


def test_an_aggregated_capture_is_refused(record):
    assert refusal(record("aggregated")) == (
        "holds sums only, no single allocations; record it again without `memray run --aggregate`"
    )


@pytest.mark.parametrize("kind", ["plain", "compressed"])
def test_a_capture_that_is_cut_short_is_refused_but_for_lenient_reading(record, tmp_path, kind):
    path = tmp_path / "cut.bin"
    content = record("python").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert refusal(path).startswith("is cut short: it promises ")
    trace = open_source(path, lenient=True)
    Validator().check(whole(trace))
    assert trace.metadata.origin["cut short"].startswith("after ")


def test_a_capture_of_a_program_that_was_killed_is_refused_but_for_lenient_reading(record):
    assert refusal(record("killed")).startswith("is cut short: its program did not end it")
    events = whole(open_source(record("killed"), lenient=True))
    assert 777_400 in events.size.tolist()


def test_a_capture_of_another_version_is_refused(record, tmp_path):
    content = bytearray(record("plain").read_bytes())
    content[7] = 99
    (tmp_path / "newer.bin").write_bytes(content)
    assert refusal(tmp_path / "newer.bin").startswith("was written by another version of memray than ")


def test_a_capture_is_no_capture_without_its_header(record, tmp_path):
    (tmp_path / "tiny.bin").write_bytes(record("plain").read_bytes()[:12])
    assert refusal(tmp_path / "tiny.bin").startswith("is no whole capture of memray")


def test_without_memray_a_sentence_tells_what_to_install(record, monkeypatch):
    path, real = record("plain"), builtins.__import__

    def without(name, *arguments):
        if name == "memray":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    assert refusal(path) == "is a capture of memray, whose library reads it: pip install 'alloc-replay[memray]'"
