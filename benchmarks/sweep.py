"""Measures the speed and memory of a sweep: 64 configurations of one trace, on one processor and on all.

    python benchmarks/sweep.py --events 5000000 --rounds 3

Prints the speed-up, the time per configuration compared with a single warm run of the same configuration in another
process, and the peak of memory compared with that process. Each side is a separate process, in turn; medians.
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

from replay import load_config, open_source, run, write_trace
from replay.sweeps.plan import Plan
from replay.sweeps.sweep import sweep
from replay.sweeps.threads import Threads, processors
from replay.sweeps.traces import decode, find_inputs
from replay.verification.shapes import build_shape

NO_SAMPLES_NS = 1 << 62
VARY = {
    "pymalloc.alignment": [8, 16],
    "pymalloc.arena_size": [256 << 10, 512 << 10, 1 << 20, 2 << 20],
    "pymalloc.pool_size": [4 << 10, 16 << 10],
    "pymalloc.small_threshold": [128, 256, 384, 512],
}


def sweep_once(trace: str, jobs: int) -> dict[str, float]:
    plan = Plan.model_validate({"sources": [trace], "fixed": {"allocator": "cpython-3.11"}, "vary": VARY})
    begun = time.perf_counter()
    results = sweep(plan, engine=Threads(jobs))
    assert results.done.height == results.frame.height == 64
    return {"seconds": time.perf_counter() - begun, "run_seconds": sum(results.frame["wall_ns"]) / 1e9}


def run_alone(trace: str) -> dict[str, float]:
    """Measures the mean time of the same 64 configurations, one after the other, each warm and alone."""
    held = decode(find_inputs([trace], [])[0]).trace
    config = load_config("cpython-3.11")
    run(held, config, sample_every_ns=NO_SAMPLES_NS)
    plan = Plan.model_validate({"sources": [trace], "fixed": {"allocator": "cpython-3.11"}, "vary": VARY})
    from replay.sweeps.configurations import Configuration, Resolver, configurations

    stacks = [each.stack for each in configurations(Resolver(plan)) if isinstance(each, Configuration)]
    walls = [run(held, stack, sample_every_ns=NO_SAMPLES_NS).wall_ns / 1e9 for stack in stacks]
    return {"run_seconds": sum(walls)}


def run_one(trace: str) -> dict[str, float]:
    """Measures one run with the trace in memory, whose memory is compared with that of a sweep."""
    held = decode(find_inputs([trace], [])[0]).trace
    return {"run_seconds": run(held, load_config("cpython-3.11"), sample_every_ns=NO_SAMPLES_NS).wall_ns / 1e9}


def measure(kind: str, trace: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", kind, "--trace", trace]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--trace", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kinds = {
            "one": lambda: sweep_once(options.trace, 1),
            "all": lambda: sweep_once(options.trace, processors()),
            "alone": lambda: run_alone(options.trace),
            "single": lambda: run_one(options.trace),
        }
        figures = kinds[options.measure]()
        figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as folder:
        trace = str(Path(folder) / "trace.parquet")
        write_trace(build_shape("churn", options.events, 0), trace)
        print(f"{open_source(trace).events_total:,} events, 64 configurations, {processors()} processors")
        measure("all", trace)  # compiles
        rounds = [
            {kind: measure(kind, trace) for kind in ("one", "all", "alone", "single")} for _ in range(options.rounds)
        ]

    def median(of):  # type: ignore[no-untyped-def]
        return statistics.median(of(each) for each in rounds)

    print(
        f"one thread {median(lambda r: r['one']['seconds']):.2f} s, all {median(lambda r: r['all']['seconds']):.2f} s"
    )
    print(f"speed-up                          {median(lambda r: r['one']['seconds'] / r['all']['seconds']):.2f}")
    print(
        f"a run, one thread / alone         {median(lambda r: r['one']['run_seconds'] / r['alone']['run_seconds']):.3f}"
    )
    print(
        f"a run, all threads / alone        {median(lambda r: r['all']['run_seconds'] / r['alone']['run_seconds']):.3f}"
    )
    print(
        f"memory, all threads / a lone run  {median(lambda r: r['all']['peak_bytes'] / r['single']['peak_bytes']):.2f}"
    )


if __name__ == "__main__":
    main()
