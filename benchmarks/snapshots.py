"""Measures what snapshots cost: a heap of 1 GiB, from a trace on disk, without and with 500 snapshots to a file.

    python benchmarks/snapshots.py             both stacks
    python benchmarks/snapshots.py --events N  a trace of another length; 20 million by default

Prints for each stack the seconds of both runs (medians, measured in turn, each in a process of its own), their ratio,
the bytes of the file of snapshots, and the peak of the process's memory without, with 50 and with 500 snapshots.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from replay.config import load_config
from replay.reports.snapshot_file import new_snapshot_file
from replay.simulation.run import run
from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.trace import Domain, Events, MemoryTrace, Op

HEAP_BYTES = 1 << 30
BATCH_ROWS = 1 << 18
ROUNDS = 3
STACKS = {
    "cpython-3.12": ((16, 500), Domain.OBJ),
    "cpython-3.12-malloc": ((600, 4_000), Domain.RAW),
}
"""By stack the sizes of its blocks, and who allocates them."""


def churn(sizes: tuple[int, int], domain: Domain, events: int) -> MemoryTrace:
    """Blocks of 1 GiB in all; then, up to so many events, one of them at a time gets another size."""
    random = np.random.default_rng(1)
    live = HEAP_BYTES // (sum(sizes) // 2)
    pairs = max(0, events - live) // 2
    which = random.integers(0, live, pairs)
    block = np.concatenate([np.arange(live), np.repeat(which, 2)]).astype(np.uint32)
    op = np.full(len(block), Op.MALLOC, np.uint8)
    op[live::2] = Op.FREE
    size = np.where(op == Op.FREE, 0, random.integers(*sizes, len(block)))
    rows = Events(
        time_ns=np.arange(len(block)) * 100,
        thread=np.zeros(len(block), np.uint32),
        op=op,
        domain=np.full(len(block), domain, np.uint8),
        block=block,
        size=size,
    )
    return MemoryTrace([rows.where(slice(at, at + BATCH_ROWS)) for at in range(0, len(block), BATCH_ROWS)])


def simulate(trace: str, stack: str, snapshots: int, path: str) -> None:
    """Simulates the trace once, after a short run that loads everything; prints the seconds and the peak of memory."""
    config, source = load_config(stack), open_source(trace)
    with new_snapshot_file(path, force=True) as sink:
        run(MemoryTrace([]), config, snapshots=["end"], sink=sink)
    started = time.perf_counter()
    if snapshots:
        duration_ns = source.duration_ns or 0
        with new_snapshot_file(path, force=True) as sink:
            run(source, config, snapshots=duration_ns // snapshots, sink=sink)
    else:
        run(source, config)
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10]))


def measured(trace: Path, stack: str, snapshots: int, path: Path) -> tuple[float, int]:
    command = [sys.executable, __file__, "--simulate", str(trace), stack, str(snapshots), str(path)]
    seconds, peak_bytes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return seconds, peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--simulate", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.simulate:
        trace, stack, snapshots, path = arguments.simulate
        simulate(trace, stack, int(snapshots), path)
        return
    for stack, (sizes, domain) in STACKS.items():
        with tempfile.TemporaryDirectory() as folder:
            trace, path = Path(folder) / "churn.parquet", Path(folder) / "snapshots.arrow"
            rows = write_trace(churn(sizes, domain, arguments.events), trace)
            measured(trace, stack, 500, path)  # compiles
            rounds = [[measured(trace, stack, count, path) for count in (0, 50, 500)] for _ in range(ROUNDS)]
            seconds = [statistics.median(each[side][0] for each in rounds) for side in range(3)]
            peaks = [statistics.median(each[side][1] for each in rounds) / (1 << 20) for side in range(3)]
            print(
                f"{stack}, {rows:,} events, 1 GiB: run {seconds[0]:.2f} s, with 500 snapshots {seconds[2]:.2f} s, which"
                f" cost {seconds[2] / seconds[0] - 1:.2f} of the run; file {path.stat().st_size / (1 << 20):.0f} MiB;"
                f" process peak {peaks[0]:.0f} MiB, {peaks[1]:.0f} with 50, {peaks[2]:.0f} with 500"
            )


if __name__ == "__main__":
    main()
