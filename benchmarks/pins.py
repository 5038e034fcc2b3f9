"""Measures what `replay pins` costs: a heap of 1 GiB with 1,000 call sites, from a trace on disk.

    python benchmarks/pins.py             both stacks
    python benchmarks/pins.py --events N  a trace of another length; 20 million by default

Prints for each stack the processor time of a run, of pins at the end, and their ratio: medians, measured in turn, each
in a separate process, after a short run that loads everything.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from snapshots import ROUNDS, STACKS, churn

from replay.analysis.pin_report import find_pins
from replay.config import load_config
from replay.simulation.run import run
from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.trace import NO_SITE, TEARDOWN_MARK, Domain, MemoryTrace, Metadata, Op, Site

SITES = 1_000


def traced(sizes: tuple[int, int], domain: Domain, events: int) -> MemoryTrace:
    """Returns the trace of `benchmarks/snapshots.py` with call sites, some of which allocate most blocks, and with the
    mark of the end that recordings have."""
    random, batches = np.random.default_rng(2), []
    for batch in churn(sizes, domain, events).batches():
        site = (SITES * random.random(batch.rows) ** 3).astype(np.uint32)
        batches.append(batch._replace(site=np.where(batch.op == Op.FREE, NO_SITE, site).astype(np.uint32)))
    end = batches[-1].where(np.array([-1]))
    end.op[:], end.domain[:], end.block[:], end.size[:], end.site[:] = Op.MARK, Domain.RAW, 0, 0, NO_SITE
    sites = tuple(Site(f"function_{number}", "app.py", number) for number in range(SITES))
    return MemoryTrace([*batches, end], Metadata(sites=sites, phases=(TEARDOWN_MARK,)))


def simulate(trace: str, stack: str, pins: bool) -> None:
    """Simulates the trace once, after a short run; prints the seconds."""
    config, source = load_config(stack), open_source(trace)
    beginning = next(iter(source.batches())).where(slice(0, 1000))
    find_pins(MemoryTrace([beginning], source.metadata), config, at=0)
    started = time.process_time()
    find_pins(source, config) if pins else run(source, config)
    print(json.dumps(time.process_time() - started))


def measured(trace: Path, stack: str, pins: bool) -> float:
    command = [sys.executable, __file__, "--simulate", str(trace), stack, str(int(pins))]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--simulate", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.simulate:
        trace, stack, pins = arguments.simulate
        simulate(trace, stack, pins == "1")
        return
    for stack, (sizes, domain) in STACKS.items():
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "churn.parquet"
            rows = write_trace(traced(sizes, domain, arguments.events), trace)
            measured(trace, stack, True)  # compiles
            rounds = [[measured(trace, stack, pins) for pins in (False, True)] for _ in range(ROUNDS)]
            plain, pinned = (statistics.median(each[side] for each in rounds) for side in range(2))
            print(
                f"{stack}, {rows:,} events, 1 GiB, {SITES:,} call sites: run {plain:.2f} s, pins {pinned:.2f} s, which"
                f" cost {pinned / plain - 1:.2f} of the run"
            )


if __name__ == "__main__":
    main()
