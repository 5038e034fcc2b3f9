"""Compares the private dirty memory of forked children with replay's estimate.

    python benchmarks/forks.py [--runs N] [--python PATH]

A program loads objects and forks a child, as a pre-fork server does. It is recorded once at the default settings, with
--types and --follow-fork. Estimated are the pages that the child writes to, also with `gc.freeze()` before the fork and
with the collector disabled. Measured is `Private_Dirty` of the child in /proc/self/smaps_rollup when it has done its
work, of N runs (default: 5) with each setting, without the recorder. It includes what the interpreter and the C library
write to, which is not estimated: up to 0.8 MiB.

    serve     the child allocates and frees; one of its automatic collections is a full one
    collect   the child first calls gc.collect()
    grow      the parent has fewer objects, and the child more
    read      the child also reads all objects of its parent, so the result is between the estimate and its upper bound
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPLAY = Path(sys.executable).with_name("replay")
SETTINGS = {"default": (), "frozen": ("gc.freeze_at=fork 1",), "disabled": ("gc.enabled=false",)}
WORKS = ("serve", "collect", "grow", "read")
PROGRAM = """\
import gc, os, sys
WORK, SETTING = sys.argv[1], sys.argv[2]

class Node:
    __slots__ = ("name", "kids", "data")

    def __init__(self, number):
        self.name, self.kids, self.data = f"node {number}", [], {"id": number, "tags": [number]}

def private_kib():
    file = os.open("/proc/self/smaps_rollup", os.O_RDONLY)
    lines = os.read(file, 8192).splitlines()
    os.close(file)
    return next(int(line.split()[1]) for line in lines if line.startswith(b"Private_Dirty:"))

def serve(entries):
    if WORK == "collect":
        gc.collect()
    cache = {}
    for number in range(entries):
        cache[number] = [str(number), {"id": number}]
    for number in range(300):
        answers = [[number, str(number)] for number in range(200)]
    if WORK == "read":
        for node in nodes:
            node.name, node.kids, node.data
    return cache

if SETTING == "disabled":
    gc.disable()
nodes = [Node(number) for number in range(15_000 if WORK == "grow" else 60_000)]
texts = [f"text {number}" * 4 for number in range(50_000)]
if SETTING == "frozen":
    gc.freeze()
if os.fork():
    os.wait()
    sys.exit()
cache = serve(60_000 if WORK == "grow" else 25_000)
print(private_kib(), flush=True)
"""


def measured_mib(python: str, program: Path, work: str, setting: str) -> float:
    """Returns the private dirty memory of the child of one run, in MiB."""
    command = [python, program, work, setting]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def estimated_mib(recording: Path, settings: tuple[str, ...]) -> tuple[float, float]:
    """Returns the estimate and its upper bound, in MiB."""
    command = [REPLAY, "run", recording, "--json", "--no-reference", *(w for one in settings for w in ("--set", one))]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    (fork,) = found["forks"]
    return fork["private_dirty_bytes"] / 2**20, fork["private_dirty_bytes_high"] / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--python", default=sys.executable)
    chosen = parser.parse_args()
    print(subprocess.run([chosen.python, "-V"], check=True, capture_output=True, text=True).stdout.strip())
    print("| work | setting | measured, MiB | estimated | error | with all references |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "server.py"
        program.write_text(PROGRAM)
        for work in WORKS:
            recording = Path(folder) / f"{work}.parquet"
            record = [REPLAY, "record", "--types", "--follow-fork", "--python", chosen.python, "-o", recording]
            subprocess.run([*record, program, work, "default"], check=True, capture_output=True, env=os.environ)
            for name, settings in SETTINGS.items():
                real = statistics.median(measured_mib(chosen.python, program, work, name) for _ in range(chosen.runs))
                found, high = estimated_mib(recording, settings)
                row = (work, name, f"{real:.1f}", f"{found:.1f}", f"{found / real - 1:+.1%}", f"{high:.1f}")
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
