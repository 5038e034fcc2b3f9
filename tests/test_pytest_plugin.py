"""The plugin for pytest: markers, options and the fixture, in runs of pytest."""

import json
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from conftest import run_python

from replay.analysis.metrics import Summary
from replay.jit.kernel_cache import cache_root
from replay.pytest_plugin.worker_process import WITH_SITES
from replay.recorder import tap as taps
from replay.support.errors import ReplayError

pytestmark = pytest.mark.system

pytest_plugins = ["pytester"]
if reason := taps.obstacle(clean=True):
    pytest.skip(reason, allow_module_level=True)

needs_sites = pytest.mark.skipif(not WITH_SITES, reason="call sites cannot be recorded")
KERNELS = str(cache_root())
HEAVY = ("numpy", "numba", "polars", "pyarrow", "pydantic", "yaml", "simpy", "typer")


@pytest.fixture(scope="session")
def bytecode(tmp_path_factory):
    """Makes a run write the bytecode of its imports."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_it.py").write_text("import pytest\n@pytest.mark.replay\ndef test_x(): pass\n")
    done = run_python("-m", "pytest", "-p", "no:cacheprovider", cwd=folder)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def project(pytester, monkeypatch, bytecode):
    """Files of a project whose tests run in another process."""
    monkeypatch.setenv("REPLAY_CACHE_DIR", KERNELS)  # pytester moves the home folder, where it would be
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # a file changed within a second could be taken for the old one
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    return pytester


def run(project, *options):
    return project.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest", *options)


def properties(path):
    """Returns the properties of each test in a JUnit file."""
    return {
        case.get("name"): {each.get("name"): each.get("value") for each in case.iter("property")}
        for case in ElementTree.parse(path).iter("testcase")
    }


def metrics_in(path):
    """Returns the metrics of a baseline by test."""
    return {name: case["metrics"] for name, case in json.loads(path.read_text())["cases"].items()}


MARKED = """
    import os, unittest
    import pytest

    KEPT = [None]

    @pytest.mark.replay(max_resident_bytes_peak="1 MiB")
    def test_over():
        blocks = [bytearray(100_000) for _ in range(50)]

    @pytest.mark.replay(
        max_blowup=10, max_arenas_live=1, max_syscalls__mmap=9, min_requested_bytes_at_peak="64 KiB",
        allocator="cpython-3.12", set={"pymalloc.arena_size": "512 KiB"}, env={"MALLOC_ARENA_MAX": 1},
    )
    def test_within():
        blocks = [bytes(1_000) for _ in range(100)]

    @pytest.mark.replay(max_leaked_blocks=0)
    def test_leaves_one_block_behind():
        KEPT[0] = bytes(4_321)

    @pytest.mark.replay(max_leaked_blocks=0, max_leaked_bytes="0 B")
    def test_leaves_only_garbage():
        circle = [None]
        circle[0] = circle

    @pytest.fixture
    def much():
        return bytearray(8_000_000)

    @pytest.mark.replay(max_resident_bytes_peak="1 MiB")
    def test_fixtures_are_set_up_outside(much):
        assert len(much) == 8_000_000

    @pytest.mark.replay(max_resident_bytes_peak=0)
    class TestLimits:
        @pytest.mark.replay(max_resident_bytes_peak="1 MiB")
        def test_the_nearest_marker_counts(self):
            pass

        @pytest.mark.replay(enabled=False)
        def test_not_recorded(self):
            pass

        def test_raises(self):
            raise KeyError("mine")

        def test_skips(self):
            pytest.skip("not today")

        @pytest.mark.xfail
        def test_is_expected_to_be_over(self):
            pass

        @pytest.mark.asyncio
        async def test_waits(self):
            import asyncio
            await asyncio.sleep(0)

    @pytest.mark.replay(max_resident_bytes_peak="1 MiB")
    @pytest.mark.parametrize("size", [10, 5_000_000])
    def test_of_a_size(size):
        bytearray(size)

    class TestOld(unittest.TestCase):
        @pytest.mark.replay(max_resident_bytes_peak=0)
        def test_over(self):
            pass

        @pytest.mark.replay(max_resident_bytes_peak=0)
        def test_fails(self):
            self.assertEqual(1, 2)

    @pytest.mark.replay(max_resident_bytes_peak="1 MiB")
    def test_forks():
        if not os.fork():
            os._exit(0)
        os.wait()

    @pytest.mark.replay
    def test_imports_nothing_of_replays():
        import sys
        assert not {HEAVY} & set(sys.modules)

    def test_plain():
        pass
"""


def test_marked_tests_are_recorded_and_judged(project):
    project.makepyfile(test_it=MARKED.replace("{HEAVY}", repr(set(HEAVY))))
    result = run(project, "-v", "--junit-xml=junit.xml")
    failing = ["test_over", "test_leaves_one_block_behind", "TestLimits::test_raises", "TestLimits::test_waits",
               "test_of_a_size[[]5000000]", "TestOld::test_over", "TestOld::test_fails"]  # fmt: skip
    result.stdout.fnmatch_lines_random([f"test_it.py::{name} FAILED*" for name in failing])
    result.assert_outcomes(passed=9, failed=7, skipped=1, xfailed=1)
    text = result.stdout.str()
    result.stdout.fnmatch_lines(
        [
            "replay: test_it.py::test_over is outside its memory limits, on cpython-3.*:",
            "  resident_bytes_peak is 4.9* MiB, and at most 1.00 MiB is allowed",
            "  live at the peak, by size class: 128.0 KiB 50 blocks, 4.77 MiB*",
            "  live at the peak, by domain: obj *",
            "  live at the peak, by phase: test *",
            "replay: test_it.py::test_leaves_one_block_behind is outside its memory limits*",
            "  leaked_blocks is 1, and at most 0 is allowed",
            "  leaked, by size class: 8.00 KiB of obj 1 blocks, 4.25 KiB",
            "E * KeyError: 'mine'",
            "E * AssertionError: 1 != 2",
        ]
    )
    assert "test_raises is not" not in text
    assert "test_skips is not" not in text
    assert "pytest_plugin/" not in text.replace(os.sep, "/"), "failures tell nothing of the plugin's own frames"
    result.stdout.fnmatch_lines(
        [
            "*= memory of recorded tests =*",
            "test *requested *resident *blowup *arenas*",
            "test_it.py::test_over *4.77 MiB *4.9* MiB * 1.0* *1 *failed",
            "replay: test_it.py::test_leaves_one_block_behind: leaked_blocks is 1, and *; leaked, *",
            "replay: test_it.py::test_over: resident_bytes_peak is 4.9* MiB, *; live at the peak, by *: *",
            "replay: 7 passed, 6 outside their limits",
        ]
    )
    by_test = properties(project.path / "junit.xml")
    assert by_test["test_plain"] == by_test["test_not_recorded"] == by_test["test_raises"] == {}
    assert by_test["test_within"]["replay.verdict"] == "passed"
    assert by_test["test_within"]["replay.arenas_live"] == "1"
    assert 100 * 1_033 < int(by_test["test_within"]["replay.requested_bytes_peak"]) < 100 * 1_033 + 4_000
    assert set(by_test["test_within"]) == {
        f"replay.{name}"
        for name in ("verdict", "requested_bytes_peak", "resident_bytes_peak", "blowup", "arenas_peak", "arenas_live",
                     "syscalls.mmap", "requested_bytes_at_peak")
    }  # fmt: skip


MISTAKES = {
    "max_blowupp=3": "max_blowupp: unknown metric 'blowupp'; did you mean 'max_blowup'?",
    "min_arena_live=3": "min_arena_live: unknown metric 'arena_live'; did you mean 'min_arenas_live'?",
    "max_syscalls__mmapp=3": "*: unknown metric 'syscalls.mmapp'; did you mean 'max_syscalls__mmap'?",
    "leaked_blocks=0": "leaked_blocks: unknown argument; write max_leaked_blocks",
    "syscalls__mmap=0": "syscalls__mmap: unknown argument; write max_syscalls__mmap",
    "alocator='x'": "alocator: unknown argument; did you mean 'allocator'?",
    "allocator='cpython-9.9'": "cpython-9.9: no bundled config has this name; did you mean 'cpython-3.9'? (*",
    "max_blowup='much'": "max_blowup: 'blowup<=much': 'much' is not a number of at least 0",
    "max_blowup=-1": "max_blowup: 'blowup<=-1': '-1' is not a number of at least 0",
    "max_blowup=None": "max_blowup: None is not a limit; write a number, or text with a unit",
    "max_blowup=float('nan')": "max_blowup: 'blowup<=nan': 'nan' is not a number of at least 0",
    "max_leaked_bytes='4 miles'": "max_leaked_bytes: '4 miles' is not a size; write it like 256 KiB",
    "max_resident_bytes_peak='4 miles'": "max_resident_bytes_peak: *'4 miles' is not a size; write it like 256 KiB",
    "tolerances=['blowup<=2']": "tolerances: 'blowup<=2' is a limit; write it like max_blowup=1.4",
    "tolerances=['blowup:much']": "'blowup:much': 'much' is not a number of at least 0",
    "tolerances='blowup:2%'": "tolerances: write a list of strings, like ['resident_bytes_peak:2%']",
    "tolerances=['blowup:2%', 'blowup:3%']": "blowup: has two tolerances; keep one",
    "set={'pymalloc.alignment': 3}": "*alignment: 3 is not a power of two of at least 8",
    "set='pymalloc.alignment=8'": "set: write a dictionary, like {'pymalloc.arena_size': '256 KiB'}",
    "env={'MALLOC_ARENA_MAXX': 3}": "*MALLOC_ARENA_MAX*",
    "max_pinned='1 MiB'": "max_pinned: write a dictionary, like {'orders.py': '256 KiB'}",
    "max_pinned={'orders.py': 'much'}": "max_pinned: 'much' of 'orders.py' is not a size; write it like '256 KiB'",
    "max_blowup=object()": "arguments must be strings, numbers, lists or dictionaries",
    "3": "write arguments with their names, like max_blowup=1.4",
}


def test_mistakes_in_markers_end_the_run_before_it_begins(project):
    lines = ["import pytest"]
    mistakes = [mistake for mistake in MISTAKES if mistake not in ("max_blowup=object()", "3")]
    for number, arguments in enumerate(mistakes):
        lines += [f"@pytest.mark.replay({arguments})", f"def test_{number}(): print('ran')"]
    project.makepyfile(test_it="\n".join(lines))
    result = run(project)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    for number, arguments in enumerate(mistakes):
        sentence = MISTAKES[arguments].replace("[", "[[]")
        result.stderr.fnmatch_lines_random([f"*test_it.py::test_{number}: @pytest.mark.replay: {sentence}"])
    assert "Traceback" not in result.stderr.str()
    result = run(project, "-n", "2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["test_it.py::test_0: @pytest.mark.replay: max_blowupp: unknown metric *"])


@pytest.mark.parametrize("arguments", ["max_blowup=object()", "3"])
def test_arguments_that_cannot_be_read_end_the_run(project, arguments):
    project.makepyfile(test_it=f"import pytest\n@pytest.mark.replay({arguments})\ndef test_x(): pass")
    result = run(project)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: test_it.py::test_x: @pytest.mark.replay: {MISTAKES[arguments]}"])


def test_a_test_records_itself_or_is_recorded_but_not_both(project):
    project.makepyfile("import pytest\n@pytest.mark.replay\ndef test_x(allocations): pass")
    result = run(project)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*the test records blocks with the fixture allocations, so it cannot be *"])


def test_limits_of_all_tests_have_all_recorded(project):
    project.makeini(
        "[pytest]\nreplay_allocator = cpython-3.8\nreplay_limits =\n  resident_bytes_peak<=1MiB\n  blowup<=999"
    )
    project.makepyfile(
        """
        import pytest

        def test_within(): pass
        def test_over(): bytearray(5_000_000)

        @pytest.mark.replay(max_resident_bytes_peak="8 MiB")
        def test_over_but_allowed(): bytearray(5_000_000)

        @pytest.mark.replay(enabled=False)
        def test_not_recorded(): bytearray(5_000_000)

        def test_records_itself(allocations):
            with allocations() as seen: bytearray(5_000_000)
            assert seen.resident_peak > 5_000_000
        """
    )
    result = run(project)
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(
        ["replay: *::test_over is outside its memory limits, on cpython-3.8:", "replay: 2 passed, 1 *"]
    )
    for limit, sentence in {
        "resident_bytes_peek<=1MiB": "unknown metric 'resident_bytes_peek'; did you mean 'resident_bytes_peak'? *",
        "blowup:2%": "replay_limits: 'blowup:2%' is a tolerance, which belongs to replay_tolerances",
        "much": "'much' is not a rule; write it like *",
        "leaked_bytes<=much": "replay_limits: leaked_bytes<=much: 'much' is not a size; write it like 256 KiB",
    }.items():
        project.makeini(f"[pytest]\nreplay_limits = {limit}")
        result = run(project)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: {sentence}"])


def test_limits_of_all_tests_can_be_about_leaks(project):
    project.makeini("[pytest]\nreplay_limits = leaked_blocks <= 2")
    project.makepyfile(
        """
        KEPT = []

        def test_one(): KEPT.append(bytes(1_000))
        def test_two(): KEPT.extend([bytes(2_000), bytes(3_000), bytes(4_000)])
        """
    )
    result = run(project)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "  leaked_blocks is 3, and at most 2 is allowed",
            "  leaked, by size class: 4.00 KiB of obj 2 blocks, 6.90 KiB; 2.00 KiB of obj 1 blocks, *",
        ]
    )


ORDER = """
    import json
    import pytest

    KEPT = []

    @pytest.mark.parametrize("number", range(6))
    def test_heavy(number):
        KEPT.append([{str(index): [index, str(index)]} for index in range(20_000)])
        if number % 2:
            KEPT.pop(0)

    class Node:
        def __init__(self, value):
            self.value, self.me = value, self

    @pytest.mark.replay
    def test_marked():
        nodes = {index: Node(str(index) * 3) for index in range(10_000)}
        for index in range(0, 10_000, 3):
            del nodes[index]
        json.loads(json.dumps({str(key): node.value for key, node in nodes.items()}))

    @pytest.mark.replay
    def test_empty():
        pass
"""


def test_figures_do_not_depend_on_what_ran_before(project):
    """All figures of a baseline are exact: requested bytes, arenas, pools, system calls, pages."""
    project.makepyfile(test_it=ORDER)
    write = ("--replay-update", "--replay-baseline")
    run(project, *write, "alone.json", "-k", "marked").assert_outcomes(passed=1, deselected=7)
    run(project, *write, "after.json").assert_outcomes(passed=8)
    run(project, *write, "workers.json", "-n", "2").assert_outcomes(passed=8)
    alone, after, workers = (metrics_in(project.path / f"{name}.json") for name in ("alone", "after", "workers"))
    assert list(alone) == ["test_it.py::test_marked"]
    assert alone["test_it.py::test_marked"] == after["test_it.py::test_marked"] == workers["test_it.py::test_marked"]
    assert after == workers
    assert after["test_it.py::test_marked"]["arenas_peak"] >= 3


BESIDE = """
import queue, sys, threading
import pytest

asked, answers = queue.SimpleQueue(), queue.SimpleQueue()
kept = []

def work():
    while (size := asked.get()) is not None:
        kept.append([bytes(size) for _ in range(1_000)])
        answers.put(kept[-1])

sys.modules["beside"] = sys.modules["__main__"]
thread = threading.Thread(target=work)
thread.start()
over = threading.Event()
short = threading.Thread(target=over.wait)
short.start()
code = pytest.main(sys.argv[1:])
asked.put(None)
sys.exit(code)
"""
WITH_THREADS = """
    import os, threading
    import pytest, beside

    def test_a_thread_with_the_number_of_an_earlier_one(allocations):
        native_id = beside.short.native_id
        beside.over.set()
        beside.short.join()
        while os.path.exists(f"/proc/self/task/{native_id}"):  # until then, the kernel does not reuse its number
            pass
        begin, kept = threading.Event(), []
        own = threading.Thread(target=lambda: begin.wait() and kept.append([bytes(2_000) for _ in range(1_000)]))
        own.start()
        with allocations() as seen:
            begin.set()
            own.join()
        assert seen.peak > 2_000_000

    def test_a_block_that_another_thread_records(allocations):
        begun, end, told = threading.Event(), threading.Event(), []

        def record():
            with allocations() as seen:
                begun.set()
                end.wait()
            told.append(seen)

        own = threading.Thread(target=record)
        own.start()
        begun.wait()
        mine = [bytes(2_000) for _ in range(1_000)]
        end.set()
        own.join()
        assert told[0].peak > 2_000_000

    @pytest.mark.replay(max_requested_bytes_peak="20 KiB")
    def test_earlier_thread():
        beside.asked.put(2_000)
        assert len(beside.answers.get()) == 1_000

    @pytest.mark.replay(min_requested_bytes_peak="2 MB")
    def test_own_thread():
        own = threading.Thread(target=lambda: kept.append([bytes(2_000) for _ in range(1_000)]))
        kept = []
        own.start()
        own.join()

    def test_figures(allocations):
        with allocations() as seen:
            beside.asked.put(2_000)
            mine = bytes(10_000)
            beside.answers.get()
        assert 10_000 < seen.peak < 20_000
        assert int(seen.summary.trace["left_out_calls"]) > 1_000
"""


def test_threads_that_ran_before_pytest_are_left_out_and_those_of_tests_are_not(project):
    project.makepyfile(test_it=WITH_THREADS)
    project.makepyfile(main=BESIDE)
    result = project.run(sys.executable, "main.py", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=5)


CLOSING = """
    import os
    import pytest

    @pytest.mark.replay
    def test_closes():
        links = {int(file): f"/proc/self/fd/{file}" for file in os.listdir("/proc/self/fd")}
        for file, link in links.items():
            if os.path.islink(link) and "memfd:" in os.readlink(link):
                os.close(file)

    @pytest.mark.replay(max_resident_bytes_peak="1 MiB")
    def test_is_large():
        bytearray(5_000_000)
"""


def test_a_test_that_closes_the_files_of_its_recording_fails_and_the_next_is_recorded(project):
    project.makepyfile(test_it=CLOSING)
    result = run(project)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*replay: test_it.py::test_closes: it closed the files of the recording",
            "*replay: test_it.py::test_is_large is outside its memory limits*",
        ]
    )


def test_a_forked_child_that_leaves_a_recorded_block_sends_no_request(project):
    project.makepyfile(
        test_it="""
        import os
        import pytest

        def test_forks(allocations):
            with allocations() as seen:
                child = os.fork()
                kept = bytearray(5_000_000)
            if not child:
                os._exit(0 if "not recorded yet" in repr(seen) else 3)
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
            assert seen.peak > 5_000_000
        """
    )
    run(project).assert_outcomes(passed=1)


CHANGING = """
    import pytest

    @pytest.mark.replay
    def test_steady():
        blocks = [bytes(1_000) for _ in range(1_000)]

    @pytest.mark.replay
    def test_changes():
        blocks = [bytes(SIZE - 33) for _ in range(50_000)]
"""


def test_a_baseline_is_written_compared_and_kept_up(project):
    project.makepyfile(test_it=CHANGING.replace("SIZE", "96"))
    result = run(project, "--replay-baseline", "b.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *b.json: the baseline does not exist; --replay-update writes it"])
    with_traces = ("--replay-baseline=b.json", "--replay-traces=kept")
    result = run(project, *with_traces, "--replay-update", "-k", "changes")
    result.stdout.fnmatch_lines(["replay: *b.json: 1 new"])
    before = json.loads((project.path / "b.json").read_text())
    assert before["cases"]["test_it.py::test_changes"]["case"] == {
        "record": ["-m", "pytest", "test_it.py::test_changes"], "recordings": 1
    }  # fmt: skip
    assert [path.name[:24] for path in (project.path / "kept").iterdir()] == ["test_it.py.test_changes-"]

    result = run(project, *with_traces, "-n", "2")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "replay: test_it.py::test_steady is not in the baseline; --replay-update adds it",
            "replay: 1 passed, 1 new",
            "replay: 1 without baseline, so not compared; *",
        ]
    )
    result = run(project, *with_traces, "--replay-update", "-n", "2", "-k", "steady")
    result.stdout.fnmatch_lines(["replay: *b.json: 1 new"])
    run(project, *with_traces).assert_outcomes(passed=2)

    project.makepyfile(test_it=CHANGING.replace("SIZE", "104"))
    result = run(project, *with_traces)
    result.assert_outcomes(passed=1, failed=1)
    lines = [
        "replay: test_it.py::test_changes is outside its memory limits, on cpython-3.*:",
        "  resident_bytes_peak: 5.* MiB -> 6.* MiB (+*; allowed: +*)",
        "  50,000 blocks of domain obj in phase test*have size class 112 B instead of 96 B",
        "  live bytes at the peak grew by * in size class 112 B and fell by * in size class 96 B",
        "replay: *::test_changes: resident_bytes_peak: *; 50,000 blocks of domain obj in phase test*have size *",
        "replay: 1 passed, 1 outside their limits",
    ]
    result.stdout.fnmatch_lines(lines)
    run(project, "-n", "2", *with_traces).stdout.fnmatch_lines(lines)
    result = run(project, "--replay-baseline=b.json", "-k", "changes")
    result.stdout.fnmatch_lines(
        [
            "  live at the peak, by size class: 112 B 49,9?? blocks, *",
            "  to see what changed, use --replay-traces DIR *",
            "replay: *::test_changes: resident_bytes_peak: *; live at the peak, by *: *",
        ]
    )
    result = run(project, "--replay-baseline=b.json", "--replay-update", "-n", "2")
    result.stdout.fnmatch_lines(["replay: *b.json: 1 changed, 1 same"])

    project.makepyfile(test_it=CHANGING.replace("SIZE", "128"))
    result = run(project, *with_traces, "-k", "changes")
    result.stdout.fnmatch_lines(["  test_it.py.test_changes-*.parquet is not the recording of the baseline, so *"])


def test_baselines_that_cannot_be_compared_are_reported(project):
    project.makepyfile(test_it=CHANGING.replace("SIZE", "96"))
    file = project.path / "b.json"
    run(project, "--replay-baseline=b.json", "--replay-update").assert_outcomes(passed=2)
    good = json.loads(file.read_text())
    name = "test_it.py::test_steady"

    def answer(change, *options):
        bad = json.loads(json.dumps(good))
        change(bad, bad["cases"][name])
        file.write_text(json.dumps(bad))
        return run(project, "--replay-baseline=b.json", *options)

    whole_file = {
        "*b.json: was written by replay 0.0.1; *; check the old commit with this version, or remove it, *": (
            lambda bad, case: bad.update(replay="0.0.1")
        ),
        "*b.json: has format 99; this version of replay reads 1": lambda bad, case: bad.update(format=99),
        "unknown metric 'blowupp'; did you mean 'blowup'? *": lambda bad, case: case["metrics"].update(blowupp=1),
        "*b.json: is not a baseline that replay wrote (*": lambda bad, case: bad.pop("cases"),
    }
    for sentence, change in whole_file.items():
        for options in ((), ("--replay-update",)):
            result = answer(change, *options)
            assert result.ret == pytest.ExitCode.USAGE_ERROR, sentence
            result.stderr.fnmatch_lines([f"ERROR: {sentence}"])
    one_test = {
        "the baseline has another configuration; --replay-update replaces it": (
            lambda bad, case: case.update(stack="0")
        ),
        "the baseline was measured with a trace; --replay-update replaces it": lambda bad, case: case.update(trace="0"),
        "the baseline has no page_faults; --replay-update adds it": (
            lambda bad, case: case["metrics"].pop("page_faults")
        ),
    }
    for sentence, change in one_test.items():
        result = answer(change)
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines([f"replay: {name}: {sentence}"])
        assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_options_that_make_no_sense_are_reported(project):
    project.makepyfile("def test_x(): pass")
    (project.path / "b.json").write_text('{"cases": {}, "format": 1, "replay": "0.1.0"}')
    for options, sentence in {
        ("--replay-update",): "--replay-update and --replay-traces require --replay-baseline FILE",
        ("--replay-traces=x",): "--replay-update and --replay-traces require --replay-baseline FILE",
        ("--replay-baseline=b.json", "--replay-traces=nowhere"): (
            "*nowhere: the folder does not exist; --replay-update writes it"
        ),
    }.items():
        result = run(project, *options)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: {sentence}"])
    result = run(project, "--replay-baseline=b.json")
    result.stdout.fnmatch_lines(["replay: no test was recorded, so none was compared with *b.json"])


def test_unrecordable_tests_have_a_warning_that_can_be_an_error(project, monkeypatch):
    project.makepyfile(
        """
        import pytest

        @pytest.mark.replay(max_blowup=0)
        def test_x(): pass

        def test_y(allocations):
            with allocations(): pass
        """
    )
    monkeypatch.setenv("PYTHONMALLOC", "malloc")
    result = run(project)
    result.assert_outcomes(passed=1, skipped=1, warnings=1)
    result.stdout.fnmatch_lines(["*PytestWarning: replay: not recorded, so not judged: a clean start needs plain *"])
    result.stdout.fnmatch_lines(["replay: 1 not recorded", "replay: a clean start needs plain pymalloc: *"])
    result = run(project, "-W", "error:replay")
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["E *PytestWarning: replay: not recorded, so not judged: a clean start needs *"])


BUSY = """
    import multiprocessing, os, subprocess, sys, threading
    import pytest
    import replay

    @pytest.mark.replay
    def test_records_itself(tmp_path):
        with replay.record(tmp_path / "trace.parquet"):
            pass

    @pytest.mark.replay(max_resident_bytes_peak=1)
    def test_fails_by_itself():
        assert False

    @pytest.mark.replay
    def test_starts_a_program():
        assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout == b"1\\n"

    def fill(queue):
        queue.put(len([bytes(100) for _ in range(1_000)]))

    @pytest.mark.replay
    def test_starts_a_forked_worker():
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        worker = context.Process(target=fill, args=(queue,))
        worker.start()
        assert queue.get() == 1_000
        worker.join()
        assert worker.exitcode == 0

    LATER = threading.Event()

    @pytest.mark.replay
    def test_leaves_a_thread():
        threading.Thread(target=LATER.wait).start()

    class TestOfAClass:
        def setup_method(self):
            self.much = bytes(5_000_000)

        @pytest.mark.replay(max_resident_bytes_peak="1 MiB")
        def test_has_it_set_up_outside(self):
            assert len(self.much) == 5_000_000

    def test_ends_the_thread_and_records_a_block(tmp_path):
        LATER.set()
        with replay.record(tmp_path / "trace.parquet", clean=True) as recording:
            kept = [str(number) for number in range(1_000)]
        assert recording.rows > 1_000

    @pytest.mark.replay
    def test_is_recorded_after_that():
        pass
"""


def test_tests_that_fork_start_threads_or_record_blocks_are_left_in_peace(project):
    project.makepyfile(test_it=BUSY)
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=6, failed=2)
    result.stdout.fnmatch_lines(
        ["E *RecordError: this process is being recorded already; end that recording first", "replay: 5 passed"]
    )
    project.runpytest_subprocess("--lf").assert_outcomes(failed=2)
    project.runpytest_subprocess("-x").assert_outcomes(failed=1)
    result = project.runpytest_subprocess("--collect-only", "-q")
    result.stdout.fnmatch_lines(["8 tests collected *"])
    assert "memory of recorded tests" not in result.stdout.str()


def test_runs_that_record_nothing_import_nothing_and_show_nothing(project):
    project.makepyfile(
        """
        import sys

        def test_x(request):
            assert [name for name in sys.modules if name.split(".")[0] == "replay"] == PLUGIN
            assert "runtest" not in vars(request.node)
        """.replace("PLUGIN", "['replay', 'replay.pytest_plugin']")
    )
    result = run(project)
    result.assert_outcomes(passed=1)
    assert "memory of recorded tests" not in result.stdout.str()
    elsewhere = "import sys, pytest; del sys._current_frames"  # as in some interpreters that are not CPython
    code = f"{elsewhere}; import replay.pytest_plugin; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_quiet_runs_show_only_what_did_not_pass(project):
    project.makepyfile(
        """
        import pytest

        @pytest.mark.replay
        def test_well(): pass

        @pytest.mark.replay(max_arenas_live=0)
        def test_over(): pass
        """
    )
    lines = run(project, "-q").stdout.lines
    table = lines[lines.index(next(line for line in lines if line.startswith("test  "))) :]
    assert [line.split()[0] for line in table[:3]] == [
        "test",
        "test_quiet_runs_show_only_what_did_not_pass.py::test_over",
        "replay:",
    ]


def test_an_empty_block_leaves_nothing_behind(allocations):
    for _ in range(3):
        with allocations() as seen:
            pass
        assert (seen.leaked_blocks, seen.leaked_bytes) == (0, 0)
        assert seen.peak < 1_500  # the end of recording
        assert (seen.arenas, seen.arenas_peak) == (1, 1)


def test_a_block_is_known_to_the_byte(allocations):
    with allocations() as seen:
        held = bytearray(1_000_000)
        passing = bytearray(3_000_000)
        del passing
    object_bytes = sys.getsizeof(bytearray())
    assert (seen.leaked_blocks, seen.leaked_bytes) == (2, 1_000_001 + object_bytes)
    assert 4_000_000 < seen.peak < 4_001_000
    assert seen.resident_peak >= seen.peak
    first, second = seen.by_size_class()[:2]
    assert first == ("obj", 1 << 22, 1, 3_000_001, 0, 0)
    assert second == ("obj", 1 << 20, 1, 1_000_001, 1, 1_000_001)
    assert seen.metrics["resident_bytes_peak"] == seen.resident_peak
    assert seen.metrics["leaked_blocks"] == 2
    assert isinstance(seen.summary, Summary)
    assert seen.summary.requested_bytes_peak == seen.peak
    assert seen.trace.exists()
    assert len(held) == 1_000_000


def test_a_block_can_be_simulated_with_another_allocator(allocations):
    with allocations(allocator="cpython-3.8", set={"pymalloc.alignment": 8}) as small_arenas:
        blocks = [object() for _ in range(100_000)]
    with allocations(allocator="cpython-3.12") as large_arenas:
        others = [object() for _ in range(100_000)]
    assert len(blocks) == len(others)
    assert (small_arenas.arenas_peak, large_arenas.arenas_peak) == (7, 2)


def test_a_block_ended_by_an_exception_has_no_results_and_the_next_one_has(allocations):
    with pytest.raises(KeyError, match="mine"), allocations() as seen:
        raise KeyError("mine")
    with pytest.raises(ReplayError, match="this block has no results"):
        _ = seen.peak
    with allocations() as seen, pytest.raises(ReplayError, match="records one block at a time"), allocations():
        pass
    assert seen.arenas == 1


def test_mistakes_in_a_block_are_sentences(allocations):
    with pytest.raises(ReplayError, match=r"cpython-9\.9: no bundled config"), allocations(allocator="cpython-9.9"):
        pass
    with allocations() as seen:
        pass
    assert seen.leaked_blocks == 0


@needs_sites
def test_a_block_knows_what_its_call_sites_pin(allocations):
    kept = []

    def remember(number):
        kept.append(f"{number} was seen")

    with allocations(allocator="cpython-3.12") as seen:
        burst = []
        for number in range(120_000):
            burst.append([number])
            if number % 2_000 == 0:
                remember(number)
        del burst
    assert seen.pinned_bytes("remember") > 2 << 20
    assert seen.pinned_bytes("remember") <= seen.resident_peak
    with pytest.raises(ReplayError, match="'forget': no call site has this in its name"):
        seen.pinned_bytes("forget")
    with allocations(), pytest.raises(ReplayError, match="call it after all recorded blocks"):
        seen.pinned_bytes("remember")


@needs_sites
def test_a_test_fails_if_a_call_site_pins_more_than_it_may(project):
    project.makepyfile(
        test_it="""
        import pytest

        KEPT = []

        def remember(number):
            KEPT.append(f"{number} was seen")

        def load(keeps):
            burst = []
            for number in range(120_000):
                burst.append([number])
                if number % 2_000 == 0 and keeps:
                    remember(number)

        @pytest.mark.replay(max_pinned={"remember": "1 MiB"}, allocator="cpython-3.12")
        def test_pins():
            load(True)

        @pytest.mark.replay(max_pinned={"load": "64 KiB"}, allocator="cpython-3.12")
        def test_keeps_nothing():
            load(False)

        @pytest.mark.replay(max_pinned={"remembr": "1 MiB"}, allocator="cpython-3.12")
        def test_names_no_site():
            load(False)
        """
    )
    result = run(project)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*remember (*test_it.py:6) pins * MiB, and at most 1.00 MiB is allowed",
         "replay: test_it.py::test_names_no_site: 'remembr': no call site has this in its name"]
    )  # fmt: skip


@pytest.mark.asyncio
async def test_a_block_of_an_async_test_is_recorded(allocations):
    import asyncio

    async def hold(size):
        block = bytearray(size)
        await asyncio.sleep(0)
        return len(block)

    with allocations() as seen:
        assert await asyncio.gather(hold(1_000_000), hold(2_000_000)) == [1_000_000, 2_000_000]
    assert 3_000_000 < seen.peak < 3_050_000


SHOP = {
    "catalog": """
        class Product:
            __slots__ = ("name", "cents", "tags")

            def __init__(self, name, cents, tags):
                self.name, self.cents, self.tags = name, cents, tags

        def load(lines):
            for line in lines:
                name, cents, *tags = line.split(",")
                yield Product(name, int(cents), tuple(tags))

        class Prices:
            def __init__(self):
                self.known = {}

            def of(self, product, amount):
                key = product.name, amount
                if key not in self.known:
                    if len(self.known) >= 100:
                        self.known.clear()
                    self.known[key] = f"{product.cents * amount / 100:.2f} EUR"
                return self.known[key]
        """,
    "log": """
        HISTORY = []

        def note(event, **details):
            HISTORY.append({"event": event, **details})
            del HISTORY[:-50]
        """,
    "sending": """
        BUFFER_BYTES = 100_000

        def send(parts, target):
            buffers = [bytearray(BUFFER_BYTES) for _ in parts]
            for buffer, part in zip(buffers, parts):
                buffer[: len(part)] = part
                target.write(buffer[: len(part)])
        """,
    "records": """
        RECORD_BYTES = 56

        def pack(numbers):
            return [number.to_bytes(RECORD_BYTES, "little") for number in numbers]
        """,
    "test_shop": """
        import io
        import json

        import pytest

        import catalog, log, records, sending

        LINES = [f"product {number},{number * 7 % 1000},tag{number % 5},tag{number % 3}" for number in range(3_000)]
        PRICES = catalog.Prices()

        @pytest.mark.replay
        def test_prices():
            products = catalog.load(LINES)
            assert all(PRICES.of(product, amount) for product in products for amount in (1, 5, 10))

        @pytest.mark.replay
        def test_notes():
            for number in range(5_000):
                log.note("sold", number=number, who=f"customer {number % 100}")
            assert log.HISTORY[-1]["number"] == 4_999

        @pytest.mark.replay
        def test_sending():
            target = io.BytesIO()
            sending.send([b"part"] * 20, target)
            assert target.getvalue() == b"part" * 20

        @pytest.mark.replay
        def test_records():
            assert len(records.pack(range(30_000))) == 30_000

        @pytest.mark.replay
        def test_json(tmp_path):
            (tmp_path / "data.json").write_text(json.dumps({line: line.split(",") for line in LINES}))
            assert len(json.loads((tmp_path / "data.json").read_text())) == 3_000

        @pytest.mark.replay
        @pytest.mark.parametrize("tag", ["tag1", "tag2"])
        def test_tags(tag):
            tags = {}
            for product in catalog.load(LINES):
                for each in product.tags:
                    tags.setdefault(each, set()).add(product.name)
            assert len(tags[tag]) > 500

        def test_unmarked():
            assert records.pack([1])[0][0] == 1
        """,
}
PLANTED = {
    "test_prices": (
        "catalog", ">= 100:", ">= 10**9:",
        "leaked, by call site: Prices.of (catalog.py:21) +1?,??? blocks, +1.0? MiB; *",
        "leaked, by size class: 64 B of obj +2?,??? blocks, +1.1? MiB; *",
        "live bytes at the peak grew by 1.0? MiB (1?,??? more blocks) at Prices.of (catalog.py:21)*",
    ),
    "test_notes": (
        "log", "del HISTORY[:-50]", "pass",
        "leaked, by call site: note (log.py:4) +9,[89]?? blocks, +9??.? KiB; *",
        "leaked, by size class: 64 B of obj +9,8?? blocks, *; 128 B of obj +4,9?? blocks, *",
        "live bytes at the peak grew by 93?.? KiB (9,9?? more blocks) at note (log.py:4)*",
    ),
    "test_sending": (
        "sending", "100_000", "140_000",
        "20 blocks of domain obj in phase test at send.* (sending.py:4) have size class 256.0 KiB instead of 128.0 KiB",
        "system calls: mmap [0-9] -> 2[0-9]; munmap *",
    ),
    "test_records": (
        "records", "56", "64",
        "30,000 blocks of domain obj in phase test at pack.* (records.py:4) have size class 112 B instead of 96 B",
    ),
}  # fmt: skip


def without_site(cause):
    """The pattern of the message without call sites."""
    return "" if "by call site" in cause or "blocks) at " in cause else re.sub(r" at \S+ \(\S+\)", "", cause)


@pytest.mark.slow
def test_planted_regressions_are_reported_by_test_and_cause_and_unchanged_runs_pass(project, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED")
    project.makepyfile(**SHOP)
    compare = ("--replay-baseline=b.json", "--replay-traces=kept")
    run(project, *compare, "--replay-update").assert_outcomes(passed=8)
    for number in range(4):
        workers = ("-n", "2") if number % 2 else ()
        result = run(project, *compare, *workers)
        result.assert_outcomes(passed=8)
        result.stdout.fnmatch_lines(["replay: 7 passed"])
    for test, (module, good, bad, *causes) in PLANTED.items():
        assert SHOP[module].count(good) == 1
        project.makepyfile(**{module: SHOP[module].replace(good, bad)})
        result = run(project, *compare)
        result.assert_outcomes(passed=7, failed=1)
        result.stdout.fnmatch_lines([f"replay: test_shop.py::{test} is outside its memory limits, on *:"])
        causes = [cause if WITH_SITES else without_site(cause) for cause in causes]
        causes = [cause for cause in causes if cause]
        result.stdout.fnmatch_lines([f"  {cause}" for cause in causes])
        result.stdout.fnmatch_lines([f"replay: test_shop.py::{test}: *; {causes[0]}"])
        project.makepyfile(**{module: SHOP[module]})
