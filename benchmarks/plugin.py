"""Measures the cost of the plugin for pytest, for tests without the marker and for recorded tests.

    python benchmarks/plugin.py                         10,000 empty tests, 9 pairs of runs; 7 rounds of recorded work
    python benchmarks/plugin.py --tests 1000 --pairs 3 --rounds 3

Unmarked tests: processor time of whole runs of pytest with the plugin and without it (`-p no:replay`), in turn. One
pair of runs has many tests and one has a single test, which separates the cost of starting from the cost of a test.
Prints medians of the paired differences with their quartiles, and the time of the plugin's own code.

Recorded tests: seconds of some work in a plain test, in a block of `replay.record` (clean, without
addresses: the recorder alone) and in a marked test, in turn; and the duration of the whole test in each way,
including start, end and verdict of the recording.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORK = """
import json, os, time
import pytest
import replay

DOCUMENTS = [{f"field {at}": [index, str(index) * 4, None] for at in range(6)} for index in range(4_000)]

def work():
    begun = time.perf_counter()
    for _ in range(5):
        for text in [json.dumps(document) for document in DOCUMENTS]:
            json.loads(text)
    with open("seconds", "a") as told:
        told.write(f"{os.environ['WAY']} {time.perf_counter() - begun}\\n")

def first():
    '''Does the work that is done only once, before the measurement.'''
    json.loads(json.dumps(DOCUMENTS[0]))
"""
WAYS = {
    "by itself": "def test_work(turn): work()",
    "recorder": """
def test_work(turn, tmp_path):
    with replay.record(tmp_path / "trace.parquet", clean=True, addresses=False): work()
""",
    "plugin": "@pytest.mark.replay(max_resident_bytes_peak='1 GiB')\ndef test_work(turn): work()",
}
TWICE = "@pytest.mark.parametrize('turn', range(2))\n"
"""Runs each test twice: the second run is a test after other tests."""
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]


def run(folder: Path, *options: str, way: str = "") -> tuple[float, str]:
    """Returns the processor seconds of a whole run, and its output."""
    before = os.times()
    command = [*PYTEST, "--durations=0", "-vv", *options] if way else [*PYTEST, *options]
    done = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, env={**os.environ, "WAY": way}
    )
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, done.stdout


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def unmarked(tests: int, pairs: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_many.py").write_text("\n".join(f"def test_{number}(): pass" for number in range(tests)))
        (folder / "test_one.py").write_text("def test_x(): pass")
        starting, each = [], []
        for pair in range(-1, pairs):
            differences = []
            for file in ("test_one.py", "test_many.py"):
                order = [(), ("-p", "no:replay")] if pair % 2 else [("-p", "no:replay"), ()]
                seconds = {bool(options): run(folder, file, *options)[0] for options in order}
                differences.append(seconds[False] - seconds[True])
            if pair >= 0:  # the first one warms up
                starting.append(1e3 * differences[0])
                each.append(1e6 * (differences[1] - differences[0]) / (tests - 1))
    print(f"unmarked: starting {quartiles(starting)} ms a run, {quartiles(each)} µs a test (median and quartiles)")


def collected(tests: int) -> None:
    """Measures the plugin's only code that runs for each test."""
    code = """
import time, types, pytest
from replay.pytest_plugin import pytest_collection_modifyitems as hook
class Checks:
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        times = []
        for _ in range(21):
            begun = time.perf_counter_ns()
            hook(config, items)
            times.append(time.perf_counter_ns() - begun)
        print("nanoseconds", sorted(times)[10] / len(items))
pytest.main(["-q", "-s", "-p", "no:cacheprovider", "--collect-only", "-qq", "test_many.py"], plugins=[Checks()])
"""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "test_many.py").write_text("\n".join(f"def test_{number}(): pass" for number in range(tests)))
        done = subprocess.run([sys.executable, "-c", code], cwd=name, check=True, capture_output=True, text=True)
    nanoseconds = float(re.search(r"nanoseconds ([\d.]+)", done.stdout)[1])  # type: ignore[index]
    print(
        f"unmarked: the plugin's own code takes {nanoseconds / 1e3:.3f} µs a test, all of it while tests are collected"
    )


def recorded(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inside: dict[str, list[float]] = {way: [] for way in WAYS}
        whole: dict[str, list[float]] = {way: [] for way in WAYS}
        for way, test in WAYS.items():
            (folder / f"test_{way.replace(' ', '_')}.py").write_text(f"{WORK}\nfirst()\n{TWICE}{test.lstrip()}")
        for turn in range(-1, rounds):
            for way in WAYS:
                _, message = run(folder, f"test_{way.replace(' ', '_')}.py", way=way)
                if turn >= 0:
                    call = re.search(r"([\d.]+)s call .*\[1\]", message)
                    whole[way].append(float(call[1]) if call else 0.0)
            if turn < 0:
                (folder / "seconds").unlink()
        for line in (folder / "seconds").read_text().splitlines():
            way, seconds = line.rsplit(" ", 1)
            inside[way].append(float(seconds))
    bare = statistics.median(inside["by itself"])
    for way in WAYS:
        ratio = statistics.median(here / there for here, there in zip(inside[way], inside["by itself"], strict=True))
        print(
            f"{way:10} work {statistics.median(inside[way]):.3f} s, {ratio:.2f} x of {bare:.3f} s; "
            f"the whole test {statistics.median(whole[way]):.2f} s"
        )
    paired = [a / b for a, b in zip(inside["plugin"], inside["recorder"], strict=True)]
    print(f"in a marked test the work takes {statistics.median(paired):.3f} times as long as with the recorder alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    collected(chosen.tests)
    recorded(chosen.rounds)
    unmarked(chosen.tests, chosen.pairs)


if __name__ == "__main__":
    main()
