"""Measures the cost of simulating a trace as several processes, compared with the same events as one process.

    python benchmarks/processes.py --preset cpython-3.12 --copies 2 8

Copies of `web-service` take turns at every event or two, or in blocks of a thousand events. Prints nanoseconds an
event, the best of the rounds, with a warm cache of machine code.
"""

import argparse

import numpy as np

from replay.config import load_config
from replay.simulation.run import run
from replay.sources import open_source
from replay.trace import MemoryTrace, Trace
from replay.trace.editing.merging import Part, merged

NO_SAMPLES_NS = 1 << 62
TURNS = (1, 1000)
"""Numbers of consecutive events of one copy."""


def held(trace: Trace) -> MemoryTrace:
    return MemoryTrace(list(trace.batches()), trace.metadata)


def in_turns(trace: MemoryTrace, rows: int) -> MemoryTrace:
    """Returns the trace with this number of events at each time, so that copies alternate after as many events."""
    seen, parts = 0, []
    for events in trace.events:
        parts.append(events._replace(time_ns=(seen + np.arange(events.rows)) // rows))
        seen += events.rows
    return MemoryTrace(parts, trace.metadata)


def best_ns(trace: MemoryTrace, preset: str, rounds: int) -> float:
    config = load_config(preset)
    return min(run(trace, config, sample_every_ns=NO_SAMPLES_NS).wall_ns for _ in range(rounds)) / trace.events_total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpython-3.12")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    base = held(open_source("web-service"))
    print(f"{'copies':>6} {'events a turn':>14} {'as one':>8} {'several':>8}  ns per event")
    for copies in options.copies:
        for turn in TURNS:
            parts = [Part(in_turns(base, turn), f"copy {number}") for number in range(copies)]
            one, apart = (
                best_ns(held(merged(parts, "", as_processes=each)), options.preset, options.rounds)
                for each in (False, True)
            )
            print(f"{copies:>6} {turn:>14,} {one:>8.1f} {apart:>8.1f}")


if __name__ == "__main__":
    main()
