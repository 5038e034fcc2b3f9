"""Checks an installed replay that has machine code: python kernels/check.py REPLAY, in an empty folder.

REPLAY is the Python of an environment with only replay, which has run nothing yet. Reports seconds of processor time,
and fails if a limit is exceeded, numba or llvmlite is imported, or results differ from those of numba's code.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

PYTHON = sys.argv[1]
LIBRARIES = "import numpy, polars, pyarrow.parquet, simpy, typer"
FIRST, LATER, CHECK = 10, 4, 10
"""Limits of the processor time of commands, as multiples of what importing the libraries takes on the same machine."""
PROGRAM = """
import sys
from replay.__main__ import main
try:
    main()
finally:
    compilers = {"numba", "llvmlite"} & set(sys.modules)
    assert not compilers or "CAN_COMPILE" in __import__("os").environ, f"{compilers} imported"
"""
CASES = ("web-service", "leaky-worker", "pin-every-arena", "startup-static", "large-buffers")
STACKS = ("cpython-3.12", "cpython-3.8", "cpython-3.12-malloc", "cpython-2.7")
COMPARED = [
    *(("run", "web-service", "--json", "-a", stack) for stack in STACKS),
    *(("run", name, "--json") for name in ("dict-growth", "thread-handover", "json-roundtrip", "fork-server-warmup")),
    ("pins", "leaky-worker", "--json"),
    ("map", "web-service", "--at", "peak", "--json"),
]
RECORDED = "record --types -o app.parquet -c pass"


def replay(*arguments: str, **environment: str) -> tuple[str, float]:
    """Runs a command; returns its output and the processor time of it and of its children."""
    return run(PROGRAM, *arguments, **environment)


def run(program: str, *arguments: str, **environment: str) -> tuple[str, float]:
    """Runs a Python program in the environment that is checked; returns its output and processor time."""
    before = processor_seconds()
    done = subprocess.run(
        [PYTHON, "-c", program, *arguments], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: exit code {done.returncode}")
    return done.stdout, processor_seconds() - before


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def expect_at_most(limit: float, *arguments: str) -> None:
    """Exits if a command takes longer than `limit` times the imports of libraries."""
    unit = min(run(LIBRARIES)[1] for _ in range(4))
    _, seconds = replay(*arguments)
    print(f"{seconds:5.2f} s, {seconds / unit:4.1f} of {limit} imports  replay {' '.join(arguments)[:60]}", flush=True)
    if seconds > limit * unit:
        sys.exit("this is too slow")


def main() -> None:
    expect_at_most(FIRST, "run", "web-service")
    expect_at_most(LATER, "run", "web-service")
    replay("baseline", *CASES, "-a", ",".join(STACKS))
    expect_at_most(CHECK, "check", *CASES, "-a", ",".join(STACKS))
    replay(*RECORDED.split())
    replay("run", "app.parquet")
    replay("report", "app.parquet", "-o", "app.html", "--no-remedies")
    processors = ["x86-64"] + ["x86-64-v3"] * ("avx2" in Path("/proc/cpuinfo").read_text())
    for arguments in COMPARED:
        expected, _ = replay(*arguments, REPLAY_MACHINE_CODE="none", CAN_COMPILE="1")
        for processor in processors:
            if json.loads(replay(*arguments, REPLAY_MACHINE_CODE=processor)[0]) != json.loads(expected):
                sys.exit(f"replay {' '.join(arguments)}: {processor} differs from numba")
    print(f"{len(COMPARED)} results are the same as numba's")


if __name__ == "__main__":
    assert not list(Path.cwd().iterdir()), "run this in an empty folder"
    main()
