"""Measures the time to check a suite of twenty bundled cases with the installed command.

    python benchmarks/check.py --rounds 3

Prints the median of whole seconds, from starting the command to its end, with a warm cache of machine code.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from replay.support.bundled_files import recorded_names, workload_names

CASES = 20
ALLOCATORS = ("cpython-3.12", "cpython-3.9")


def suite() -> str:
    """Returns a suite of all bundled workloads and recordings with one CPython, and some with another."""
    names = [*workload_names(), *recorded_names()]
    pairs = [(name, allocator) for allocator in ALLOCATORS for name in names][:CASES]
    return "\n".join(
        f'[cases."{name} {allocator}"]\nsource = "{name}"\nallocator = "{allocator}"' for name, allocator in pairs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "replay.toml").write_text(suite())

        def call(*words: str) -> float:
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", "replay", *words], cwd=folder, check=True, capture_output=True)
            return time.perf_counter() - begun

        call("baseline")
        seconds = [call("check") for _ in range(rounds)]
    print(
        f"{CASES} cases checked in {statistics.median(seconds):.2f} s (median of {rounds}, {min(seconds):.2f} at best)"
    )


if __name__ == "__main__":
    main()
