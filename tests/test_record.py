"""A program that records itself: the trace has exactly its events."""

import ctypes
import gc
import os
import signal
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from conftest import events_in, python_api, record, run_python, run_to_the_last

import replay
from replay.recorder import tap as taps
from replay.recorder.growing_file import rescue
from replay.trace import Domain, Events, Op

pytestmark = pytest.mark.system

WITHOUT_GIL = ctypes.CDLL(None)

if reason := taps.obstacle():
    pytest.skip(reason, allow_module_level=True)


def lives(events: Events, sizes: set[int]) -> list[tuple[str, int, int]]:
    """Returns op, domain and size of all events of blocks that were allocated with one of these sizes."""
    followed, found = set(), []
    for op, domain, block, size in zip(events.op, events.domain, events.block, events.size, strict=True):
        if op <= Op.CALLOC and int(size) in sizes:
            followed.add(block)
        if block in followed and op <= Op.FREE:
            found.append((Op(op).name.lower(), int(domain), int(size)))
            if op == Op.FREE:
                followed.discard(block)
    return found


@pytest.mark.parametrize("domain", [Domain.RAW, Domain.MEM, Domain.OBJ])
@pytest.mark.parametrize("size", [331, 33_331, 3_333_331])
def test_known_calls_are_exactly_the_events(tmp_path, domain, size):
    malloc, calloc, realloc, free = (python_api(domain, verb) for verb in ("Malloc", "Calloc", "Realloc", "Free"))
    with replay.record(tmp_path / "trace.parquet"):
        block = malloc(size)
        block = realloc(block, 2 * size)
        zeroed = calloc(7, size)
        from_nothing = realloc(None, size + 2)
        free(block)
        block = realloc(zeroed, size)
        free(from_nothing)
        free(None)
        free(block)
    found = lives(events_in(tmp_path / "trace.parquet"), {size, 7 * size, size + 2})
    assert found == [
        ("malloc", domain, size),
        ("realloc", domain, 2 * size),
        ("calloc", domain, 7 * size),
        ("malloc", domain, size + 2),
        ("free", domain, 0),
        ("realloc", domain, size),
        ("free", domain, 0),
        ("free", domain, 0),
    ]


def test_addresses_are_those_handed_out_and_null_for_frees(tmp_path):
    malloc, free = python_api(Domain.OBJ, "Malloc"), python_api(Domain.OBJ, "Free")
    with replay.record(tmp_path / "trace.parquet"):
        blocks = [malloc(4_441), malloc(443)]
        for block in blocks:
            free(block)
    events = events_in(tmp_path / "trace.parquet")
    assert [int(events.address[events.size == size][0]) for size in (4_441, 443)] == blocks
    assert not events.address[events.op == Op.FREE].any()


def test_without_addresses_the_column_is_not_there(tmp_path):
    with replay.record(tmp_path / "trace.parquet", addresses=False):
        pass
    assert events_in(tmp_path / "trace.parquet").address is None


def test_a_realloc_that_fails_leaves_the_block_live(tmp_path):
    malloc, realloc, free = (python_api(Domain.RAW, verb) for verb in ("Malloc", "Realloc", "Free"))
    with replay.record(tmp_path / "trace.parquet"):
        block = malloc(55_551)
        assert realloc(block, 1 << 60) is None
        assert malloc(1 << 60) is None
        free(block)
    found = lives(events_in(tmp_path / "trace.parquet"), {55_551, 1 << 60})
    assert found == [("malloc", 0, 55_551), ("free", 0, 0)]


def test_blocks_of_before_are_foreign(tmp_path):
    malloc, realloc, free = (python_api(Domain.RAW, verb) for verb in ("Malloc", "Realloc", "Free"))
    freed, moved = malloc(66_661), malloc(66_663)
    with replay.record(tmp_path / "trace.parquet"):
        free(freed)
        moved = realloc(moved, 77_771)
    free(moved)
    events = events_in(tmp_path / "trace.parquet")
    foreign = events.address[events.op == Op.FOREIGN_FREE].tolist()
    assert freed in foreign
    assert lives(events, {77_771}) == [("malloc", 0, 77_771)]
    assert int(replay.open_source(tmp_path / "trace.parquet").metadata.origin.texts()["foreign_reallocs"]) >= 1


def test_arenas_are_those_of_the_real_allocator(tmp_path):
    malloc, free = python_api(Domain.OBJ, "Malloc"), python_api(Domain.OBJ, "Free")
    blocks = (ctypes.c_void_p * 20_000)()
    with replay.record(tmp_path / "trace.parquet", clean=True):
        for index in range(len(blocks)):
            blocks[index] = malloc(512)
        for block in blocks:
            free(block)
    events = events_in(tmp_path / "trace.parquet")
    mapped = events.op == Op.ARENA_MAPPED
    arenas = events.address[mapped & (events.size == 1 << 20)].tolist()
    # 31 blocks a pool, 63 or 64 pools an arena: 10.1 to 10.3 arenas, and a little for Python itself.
    assert len(arenas) == 11
    for start in arenas:
        assert any(start <= block < start + (1 << 20) for block in blocks)
    assert (events.op == Op.ARENA_UNMAPPED).sum() >= len(arenas) // 2


def test_raw_calls_from_threads_without_the_gil_are_all_there(tmp_path):
    malloc, realloc, free = (python_api(Domain.RAW, verb, WITHOUT_GIL) for verb in ("Malloc", "Realloc", "Free"))
    rounds, together = 3_000, threading.Barrier(4)  # consecutive threads could have the same identity

    def work(size):
        together.wait()
        for _ in range(rounds):
            free(realloc(malloc(size), size + 10_000))

    sizes = [70_001, 70_002, 70_003, 70_004]
    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    with replay.record(tmp_path / "trace.parquet"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = events_in(tmp_path / "trace.parquet")
    numbers = set()
    for size in sizes:
        assert lives(events, {size}) == [("malloc", 0, size), ("realloc", 0, size + 10_000), ("free", 0, 0)] * rounds
        numbers.add(tuple(np.unique(events.thread[events.size == size])))
    assert len({number for (number,) in numbers}) == len(sizes)


def test_a_ring_that_wraps_around_loses_nothing(tmp_path):
    rounds = 2_500_000
    with replay.record(tmp_path / "trace.parquet") as recording:
        for _ in range(rounds):
            kept = [None]
    assert recording.rows > 1 << taps.RING_BITS
    events = events_in(tmp_path / "trace.parquet")
    asked = int(((events.op <= Op.CALLOC) & (events.size == len(kept) * 8)).sum())
    assert rounds <= asked < rounds + 100


def test_live_bytes_at_the_end_agree_with_tracemalloc(tmp_path):
    with replay.record(tmp_path / "trace.parquet"):
        tracemalloc.start()
        kept = [bytes(index % 700) for index in range(30_000)]
        traced, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    events = events_in(tmp_path / "trace.parquet")
    live = {}
    for op, domain, block, size in zip(events.op, events.domain, events.block, events.size, strict=True):
        if op in (Op.MALLOC, Op.CALLOC, Op.REALLOC):
            live[block] = (int(domain), int(size))
        elif op == Op.FREE:
            del live[block]
    recorded = sum(size for domain, size in live.values() if domain != Domain.RAW)
    assert abs(recorded - traced) < 20_000
    assert len(kept) == 30_000


def test_live_blocks_agree_with_what_pymalloc_counts(tmp_path):
    with replay.record(tmp_path / "trace.parquet"):
        replay.mark("counting")
        before = sys.getallocatedblocks()
        kept = [bytes(100) for _ in range(10_000)]
        more = sys.getallocatedblocks() - before
        replay.mark("counted")
    events = events_in(tmp_path / "trace.parquet")
    rows = slice(*np.flatnonzero(events.op == Op.MARK).tolist())
    op, pymalloc = events.op[rows], events.domain[rows] != Domain.RAW
    grown = (op[pymalloc] <= Op.CALLOC).sum() - np.isin(op[pymalloc], (Op.FREE, Op.FOREIGN_FREE)).sum()
    assert abs(int(grown) - more) < 10  # allocations of the counts and of the marks
    assert len(kept) == 10_000


def test_collections_and_marks_are_among_the_events(tmp_path):
    with replay.record(tmp_path / "trace.parquet"):
        replay.mark("first")
        gc.collect()
        replay.mark("second")
        replay.mark("first")
    events = events_in(tmp_path / "trace.parquet")
    collections = [
        (Op(op).name, int(size))
        for op, size in zip(events.op, events.size, strict=True)
        if op in (Op.MARK, Op.GC_START, Op.GC_END)
    ]
    collected = [("MARK", 0), ("GC_START", 0), ("GC_END", 0), ("MARK", 1), ("MARK", 0)]
    assert collections == collected
    assert replay.open_source(tmp_path / "trace.parquet").metadata.phases == ("first", "second")


def test_a_recording_is_simulated(tmp_path):
    with replay.record(tmp_path / "trace.parquet"):
        kept = [str(index) * 30 for index in range(5_000)]
    played = replay.run(replay.open_source(tmp_path / "trace.parquet"), replay.load_config("cpython-3.12"))
    assert replay.summarize(played).events > len(kept)


def test_recordings_one_after_the_other_leave_the_allocators_as_they_were(tmp_path):
    def allocators():
        found = []
        for domain in (taps.RAW, taps.MEM, taps.OBJ):
            allocator = taps._Allocator()
            ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(allocator))
            found.append(bytes(allocator))
        return found, list(gc.callbacks)

    before = allocators()
    for number in range(4):
        with replay.record(tmp_path / f"{number}.parquet") as recording:
            replay.mark(f"round {number}")
        assert allocators() == before
        assert replay.open_source(recording.path).metadata.phases == (f"round {number}",)
        assert recording.rows == events_in(recording.path).rows


def test_a_second_recording_at_once_is_refused(tmp_path):
    with (
        replay.record(tmp_path / "one.parquet"),
        pytest.raises(replay.ReplayError, match="is being recorded already"),
        replay.record(tmp_path / "two.parquet"),
    ):
        pass
    assert not (tmp_path / "two.parquet").exists()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("abiflags", "t", "a free-threaded CPython cannot be recorded"),
        ("platform", "darwin", "recording needs 64-bit Linux on x86-64"),
        ("version_info", (3, 10, 13), "only CPython 3.11 and newer can be recorded"),
    ],
)
def test_interpreters_that_cannot_be_recorded_are_refused(tmp_path, monkeypatch, name, value, sentence):
    monkeypatch.setattr(sys, name, value)
    with pytest.raises(replay.ReplayError, match=sentence):
        replay.record(tmp_path / "trace.parquet").start()


def test_a_clean_start_is_refused_where_pymalloc_is_not_plain(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONMALLOC", "malloc")
    with pytest.raises(replay.ReplayError, match="unset PYTHONMALLOC"):
        replay.record(tmp_path / "trace.parquet", clean=True).start()


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "there.parquet").write_text("mine")
    with pytest.raises(replay.ReplayError, match="already exists"):
        replay.record(tmp_path / "there.parquet").start()
    with pytest.raises(replay.ReplayError, match="does not exist; make it first"):
        replay.record(tmp_path / "no" / "trace.parquet").start()
    assert (tmp_path / "there.parquet").read_text() == "mine"
    assert not taps.tap.active


def test_the_writer_is_not_a_child_of_the_program(tmp_path):
    code = """if True:
        import os, replay
        with replay.record("trace.parquet"):
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("no child")
    """
    assert run_python("-c", code, cwd=tmp_path).stdout == "no child\n"


def test_a_forked_child_is_not_recorded_and_may_leave_the_block(tmp_path):
    malloc = python_api(Domain.OBJ, "Malloc")
    with replay.record(tmp_path / "trace.parquet") as recording:
        child = os.fork()
        if child == 0:
            malloc(88_881)
            replay.mark("never")
            recording.stop()
            os._exit(0 if not taps.tap.active else 1)
        assert os.waitpid(child, 0)[1] == 0
        malloc(88_883)
    events = events_in(tmp_path / "trace.parquet")
    assert (lives(events, {88_881}), lives(events, {88_883})) == ([], [("malloc", 2, 88_883)])


def test_a_program_whose_writer_dies_continues_unrecorded_and_the_file_is_rescued(tmp_path):
    path = tmp_path / "trace.parquet"
    script = (
        "import os, signal, replay\n"
        f"recording = replay.record({str(path)!r}).start()\n"
        "from replay.recorder.tap import tap, _word, AT_WRITER\n"
        "kept = [bytes(77_777) for _ in range(3)]\n"
        "recording.flush()\n"
        "os.kill(_word(tap._context + AT_WRITER).value, signal.SIGKILL)\n"
        "for _ in range(2_000_000): [None]\n"
        "try: recording.stop()\n"
        "except replay.ReplayError as error: print(error)\n"
    )
    done = run_python("-c", script)
    assert done.stdout == f"{path}: the writer died; `replay record --rescue {path}` saves the events that it wrote\n"
    assert "events saved" in record("--rescue", path).stdout
    events = events_in(path)
    assert np.count_nonzero((events.op <= Op.CALLOC) & (events.size == sys.getsizeof(bytes(77_777)))) == 3


def test_after_a_flush_a_rescue_finds_all_that_was_recorded_before_it(tmp_path):
    malloc, path = python_api(Domain.OBJ, "Malloc"), tmp_path / "trace.parquet"
    with replay.record(path) as recording:
        recording.flush()
        malloc(99_991)
        recording.flush()
        flushed = (tmp_path / "trace.parquet.part").read_bytes()
        malloc(99_993)
    assert lives(events_in(path), {99_991, 99_993}) == [("malloc", 2, 99_991), ("malloc", 2, 99_993)]
    path.write_bytes(flushed)
    with path.open("r+b", buffering=0) as file:
        rescue(file, path)
    assert lives(events_in(path), {99_991, 99_993}) == [("malloc", 2, 99_991)]


def test_a_clean_start_makes_addresses_follow_one_another(tmp_path):
    """After the filled pools, blocks of a class come from new pools, one after the other."""
    script = (
        "import ctypes, sys, replay\n"
        "malloc = ctypes.pythonapi.PyObject_Malloc\n"
        "malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]\n"
        f"with replay.record({str(tmp_path / 'trace.parquet')!r}, clean=True):\n"
        "    for _ in range(10): malloc(497)\n"
    )
    assert run_python("-c", script).returncode == 0
    events = events_in(tmp_path / "trace.parquet")
    assert (np.diff(events.address[events.size == 497].astype(np.int64)) == 512).all()


def test_a_recording_survives_a_crash_of_the_program(tmp_path):
    path = tmp_path / "trace.parquet"
    script = (
        "import os, signal, replay\n"
        f"replay.record({str(path)!r}).start()\n"
        "replay.mark('the end')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run_to_the_last(sys.executable, "-c", script).returncode == -signal.SIGKILL
    events = events_in(path)
    assert (events.op == Op.MARK).sum() == 1


@pytest.mark.parametrize("reused", [False, True])
def test_a_program_that_closes_the_recorders_pipe_gets_an_error_and_its_file_is_completed(tmp_path, reused):
    """Daemons close all descriptors. Another file with the same number must not be closed."""
    path = tmp_path / "trace.parquet"
    script = (
        "import os, replay\n"
        f"recording = replay.record({str(path)!r}).start()\n"
        "replay.mark('working')\n"
        "os.closerange(3, 100)\n"
        f"path, again = {str(tmp_path / 'other')!r}, {20 if reused else 0}\n"
        "files = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(again)]\n"
        "for file in files: os.write(file, b'{}\\n')\n"
        "try: recording.stop()\n"
        "except replay.ReplayError as error: print(error)\n"
        "for file in files: os.fstat(file)\n"
    )
    done = run_to_the_last(sys.executable, "-c", script)
    what = "the program closed the pipe on which the writer reports its end; the writer completes the file anyway"
    assert done.stdout == f"{path}: {what}\n"
    assert replay.open_source(path).metadata.phases == ("working",)
    assert events_in(path).rows > 0
