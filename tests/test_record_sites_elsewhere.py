"""Call sites of programs in other interpreters, compared with those of the programs and of CPython itself.

pytest -m slow tests/test_record_sites_elsewhere.py      every live block against tracemalloc
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import record
from test_record_python import AT_HAND

import replay
from replay.recorder import tap
from replay.trace import NO_SITE, Op

pytestmark = pytest.mark.system

PROGRAMS = Path(__file__).parent / "sites"
WITH_SITES = [version for version in AT_HAND if int(version.split(".")[1]) <= tap.NEWEST_WITH_SITES[1]]
NEWEST = {version.rpartition(".")[0]: version for version in sorted(WITH_SITES, key=lambda each: int(each[5:]))}
"""The newest available interpreter of each minor version."""
WITH_JIT = [version for version in NEWEST.values() if int(version.split(".")[1]) >= 14]
NOWHERE = ("<unknown>", 0)
"""tracemalloc's name for an unknown file."""
BYTES_HEAD = sys.getsizeof(b"")
BEGIN, END = 7_777_001 + BYTES_HEAD, 7_777_003 + BYTES_HEAD


def run(tmp_path, version, program, *arguments, **variables):
    """Records a program with an interpreter; returns its result and the path of the recording."""
    path = tmp_path / "trace.parquet"
    done = record(
        "--sites", "-o", path, "--python", AT_HAND[version], PROGRAMS / program, *arguments,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | variables,
    )  # fmt: skip
    return done, path


def recorded(*arguments, **variables):
    done, path = run(*arguments, **variables)
    assert done.returncode == 0, done.stderr
    return replay.open_source(path)


def sites_of_sizes(trace, sizes):
    """Function, file and line of all allocations of these sizes."""
    found = defaultdict(list)
    wanted = np.array(sorted(sizes))
    for batch in trace.batches():
        for row in np.flatnonzero((batch.op <= Op.REALLOC) & np.isin(batch.size, wanted)):
            site = batch.site[row]
            found[int(batch.size[row])].append(None if site == NO_SITE else list(trace.metadata.sites[site]))
    return found


SETTINGS = {
    "no columns": {"PYTHONNODEBUGRANGES": "1", "PYTHONOPTIMIZE": "2"},
    "development mode": {"PYTHONDEVMODE": "1"},
    "trampolines for perf": {"PYTHONPERFSUPPORT": "1"},
}


@pytest.mark.parametrize(
    "variables", [{}, *(pytest.param(each, marks=pytest.mark.slow) for each in SETTINGS.values())], ids=["", *SETTINGS]
)
@pytest.mark.parametrize("version", NEWEST.values())
def test_sites_are_the_frames_that_the_program_itself_sees(tmp_path, version, variables):
    printed = tmp_path / "told.json"
    trace = recorded(tmp_path, version, "saying.py", printed, **variables)
    expected = {int(size): [where] for size, where in json.loads(printed.read_text()).items()}
    assert sites_of_sizes(trace, expected) == expected
    assert len(expected) > 3_900
    assert len({tuple(where) for (where,) in expected.values()}) > 2_500


def marked_lines(path, minor):
    """By function: the lines that must allocate in that version, and those that may."""
    must, may, function = defaultdict(set), defaultdict(set), ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("def "):
            function = line[4 : line.index("(")]
        since = re.search(r"# here since 3\.(\d+)", line)
        if line.endswith("# here") or (since and minor >= int(since[1])):
            must[function].add(number)
        elif "# or here" in line:
            may[function].add(number)
    return must, may


@pytest.mark.parametrize("version", NEWEST.values())
def test_lines_are_those_of_the_very_instruction_that_allocates(tmp_path, version):
    trace = recorded(tmp_path, version, "spread.py")
    calls = defaultdict(Counter)
    for batch in trace.batches():
        numbers, counts = np.unique(batch.site[batch.op <= Op.REALLOC], return_counts=True)
        for number, count in zip(numbers, counts, strict=True):
            site = trace.metadata.sites[number] if number != NO_SITE else None
            if site and Path(site.file).name == "spread.py":
                calls[site.function.split(".")[0]][site.line] += int(count)
    must, may = marked_lines(PROGRAMS / "spread.py", int(version.split(".")[1]))
    assert len(must) == 25
    for function, lines in must.items():
        often = {line for line, count in calls[function].items() if count > 10}
        assert lines <= often <= lines | may[function], (function, calls[function])
        assert all(calls[function][line] > 15_000 for line in lines), (function, calls[function])


def live_blocks(trace):
    """Returns the number of blocks by size and place that were allocated after one mark and are live at the other."""
    live, inside = {}, False
    for batch in trace.batches():
        columns = (column.tolist() for column in (batch.op, batch.block, batch.size, batch.site))
        for op, block, size, site in zip(*columns, strict=True):
            inside = inside or size == BEGIN
            if inside and op <= Op.REALLOC:
                live[block] = size, site
            elif op == Op.FREE:
                live.pop(block, None)
            if size == END:
                places = [NOWHERE if site == NO_SITE else trace.metadata.sites[site][1:] for _, site in live.values()]
                return Counter((size, *place) for (size, _), place in zip(live.values(), places, strict=True))
    raise AssertionError("the mark at the end is missing")


@pytest.mark.slow
@pytest.mark.parametrize("version", WITH_JIT)
def test_every_live_block_is_where_tracemalloc_saw_it_made(tmp_path, version):
    """From 3.14 on: before, this part of tracemalloc cannot be turned off, or it causes a deadlock."""
    printed = tmp_path / "told.json"
    trace = recorded(tmp_path, version, "keeping.py", printed, PYTHONTRACEMALLOC="1")
    expected = Counter({(size, file, line): count for size, file, line, count in json.loads(printed.read_text())})
    found = live_blocks(trace)
    assert (found - expected, expected - found) == (Counter(), Counter())
    assert expected.total() > 300_000
    assert len(expected) > 10_000


@pytest.mark.parametrize("version", WITH_JIT)
def test_with_a_jit_that_is_on_call_sites_are_refused(tmp_path, version):
    asked = "import sys; print(sys._jit.is_available())"
    if subprocess.check_output([AT_HAND[version], "-c", asked], text=True) != "True\n":
        pytest.skip("that one is built without a JIT")
    done, path = run(tmp_path, version, "spread.py", PYTHON_JIT="1")
    sentence = "CPython's JIT does not keep track of lines, so call sites cannot be recorded: set PYTHON_JIT=0"
    message = f"replay: --python: {AT_HAND[version]} is cpython {version}: {sentence}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert not path.exists()
