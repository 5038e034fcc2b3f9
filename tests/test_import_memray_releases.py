"""Captures of four releases of memray, each with its own numbers of allocators, compared with that memray's statistics.

Each release is installed into a folder of its own under replay's cache, from which its Python modules take the place of
the memray beside replay. Where the package index has no wheel for this Python or cannot be reached, tests are skipped.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from replay.jit.kernel_cache import cache_root
from replay.sources import open_source
from replay.trace import Domain, Op

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
]

memray = pytest.importorskip("memray", reason="the releases need what memray depends on: pip install memray")

RELEASES = ("1.14.0", "1.18.0", "1.19.3", "1.20.0")
RECORDS_AT, END_AT = 13, 37
"""Offset of the numbers of records and frames, and the time of the end, in a capture of format version 11."""

PROGRAM = """
from threading import Thread

from memray._test import MemoryAllocator, MmapAllocator

def work():
    native = [MemoryAllocator() for _ in range(6)]
    native[0].malloc(777_000)
    native[1].calloc(777_001)
    native[0].realloc(777_002)
    native[2].posix_memalign(777_008)
    native[3].memalign(777_016)
    native[4].valloc(777_024)
    native[5].aligned_alloc(777_216)
    for each in native[:3]:
        each.free()
    MmapAllocator(5 << 20).munmap(5 << 20)
    return [MmapAllocator(3 << 20), [str(number) * 3 for number in range(5000)], bytearray(1 << 20), native]

thread = Thread(target=work)
thread.start()
thread.join()
kept = work()
growing = []
for number in range(10_000):
    growing.append([number])
"""


@pytest.fixture(scope="module")
def install():
    """Returns the folder with a release of memray, which is installed at most once."""

    def installed(release):
        folder = cache_root() / "memray" / f"{release}-{sys.implementation.cache_tag}"
        if folder.exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix="unfinished."))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        result = subprocess.run(
            [*pip, "--target", unfinished, f"memray=={release}"], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            shutil.rmtree(unfinished)
            pytest.skip(f"memray {release} cannot be installed: {(result.stderr.splitlines() or ['no reason'])[-1]}")
        try:
            unfinished.rename(folder)
        except OSError:  # another worker was first
            shutil.rmtree(unfinished)
        return folder

    return installed


@pytest.fixture(scope="module")
def run_with(install):
    """Runs a Python module with a release of memray instead of the installed one."""

    def run(release, *arguments):
        command = [sys.executable, "-m", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(install(release))}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def capture(run_with, tmp_path_factory):
    """Returns a capture of the program above by a release of memray, and that release's statistics."""
    folder = tmp_path_factory.mktemp("releases")
    (folder / "program.py").write_text(PROGRAM)

    def captured(release):
        path, statistics = folder / f"{release}.bin", folder / f"{release}.json"
        if not statistics.exists():
            recording = ["memray", "run", "--quiet", "--no-compress", "--trace-python-allocators", "--output", path]
            for command in ([*recording, folder / "program.py"], ["memray", "stats", "--json", "-o", statistics, path]):
                result = run_with(release, *command)
                assert result.returncode == 0, result.stderr
        return path, json.loads(statistics.read_text())

    return captured


def requests(trace):
    """Returns the number of requests and bytes by call and domain."""
    calls, requested_bytes = Counter(), 0
    for events in trace.batches():
        births = events.op != Op.FREE
        requested_bytes += int(events.size[births].sum())
        for domain, op in zip(events.domain[births].tolist(), events.op[births].tolist(), strict=True):
            calls[Domain(domain), "calloc" if op == Op.CALLOC else "malloc or realloc"] += 1
    return calls, requested_bytes


def check_totals(trace, statistics):
    """A realloc of nothing is a malloc in a trace, so these two are compared together."""
    calls, requested_bytes = requests(trace)
    expected = Counter()
    kinds = Counter(statistics["allocator_type_distribution"])
    mappings = kinds.pop("MMAP")
    for name, count in kinds.items():
        domain = Domain.OBJ if name.startswith("PYMALLOC_") else Domain.LIBC
        expected[domain, "calloc" if name.endswith("CALLOC") else "malloc or realloc"] += count
    assert calls == expected
    origin = trace.metadata.origin.texts()
    assert calls.total() + mappings == statistics["total_num_allocations"]
    assert requested_bytes + int(origin["dropped mapping bytes"]) == statistics["total_bytes_allocated"]
    assert int(origin["dropped mapping bytes"]) >= 16 << 20
    assert int(origin["dropped mappings"]) >= mappings + 2
    assert "missing frees" not in origin


@pytest.mark.parametrize("release", RELEASES)
def test_an_import_has_the_totals_that_the_memray_of_the_capture_counts(capture, run_with, tmp_path, release):
    path, statistics = capture(release)
    result = run_with(release, "replay", "import", path, "-o", tmp_path / "trace.parquet")
    assert result.returncode == 0, result.stderr
    trace = open_source(tmp_path / "trace.parquet")
    check_totals(trace, statistics)
    (events,) = trace.batches()
    native = events.size[events.domain == Domain.LIBC]
    ours = native[native // 1000 == 777]
    once = [777_000, 777_001, 777_002, 777_008, 777_016, 777_024, 777_216]
    assert sorted(ours.tolist()) == sorted(2 * once)
    assert np.count_nonzero(events.domain == Domain.OBJ) > 50_000


def test_run_simulates_an_old_capture_with_all_its_calls(capture, run_with):
    path, statistics = capture("1.18.0")
    result = run_with("1.18.0", "replay", "run", "--json", path)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    mappings = statistics["allocator_type_distribution"]["MMAP"]
    calls = summary["mallocs"] + summary["callocs"] + summary["reallocs"]
    assert calls + mappings == statistics["total_num_allocations"]


def test_a_capture_is_read_by_its_own_numbering_whatever_memray_is_installed(capture, run_with, tmp_path):
    path, statistics = capture("1.19.3")
    result = run_with("1.18.0", "replay", "import", path, "-o", tmp_path / "trace.parquet")
    assert result.returncode == 0, result.stderr
    check_totals(open_source(tmp_path / "trace.parquet"), statistics)
    path, statistics = capture("1.18.0")
    result = run_with("1.19.3", "replay", "import", path, "-o", tmp_path / "other.parquet")
    assert (result.returncode, result.stdout) == (2, "")
    assert "(memray 1.11 to 1.18), which only memray 1.12 to 1.18 can read; memray 1.19.3 is installed" in result.stderr


def torn(content):
    return content[: len(content) // 2]


def killed(content):
    """A capture of a killed program: the header has zeros for the numbers that are written at the end."""
    return content[:RECORDS_AT] + bytes(16) + content[RECORDS_AT + 16 : END_AT] + bytes(8) + content[END_AT + 8 :]


@pytest.mark.parametrize(("damage", "expected"), [(torn, "it should have "), (killed, "the program did not end it")])
def test_an_old_capture_that_is_cut_short_is_refused_but_for_lenient_reading(
    capture, run_with, tmp_path, damage, expected
):
    path, output = tmp_path / "cut.bin", tmp_path / "trace.parquet"
    path.write_bytes(damage(capture("1.18.0")[0].read_bytes()))
    result = run_with("1.18.0", "replay", "import", path, "-o", output)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"is incomplete: {expected}" in result.stderr
    result = run_with("1.18.0", "replay", "import", "--lenient", path, "-o", output)
    assert result.returncode == 0, result.stderr
    assert open_source(output).metadata.origin.texts()["cut short"].startswith("after ")
