"""Measures `replay run` from the file to the report, compared with the real pymalloc in C for the same calls.

    python benchmarks/end_to_end.py                    1 M and 4 M events, on two processors and on one
    python benchmarks/end_to_end.py --sizes 5 50       other sizes, in millions of events
    python benchmarks/end_to_end.py --json FILE        also writes the figures
    python benchmarks/end_to_end.py stages             processor time of each stage, in one process
    python benchmarks/end_to_end.py scale --sizes 1 300    a workload that is generated: time an event, and memory

Time an event is the difference between a long and a short trace, divided by the difference in events, so the start of
the program cancels out. Wall time depends on what else the machine does; processor time does so much less. Both sides
are measured in turn, and the lowest of each is printed. The ratio that a free machine has is that of wall times; while
other programs run, the sum of processor times divided by the number of processors is its lower bound.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from replay.commands.run_plan import RunOutputs, RunPlan
from replay.config import load_config
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.sources import open_source
from replay.sources.parquet import GROUP_ROWS, write_trace
from replay.trace import Domain, Events, MemoryTrace, Metadata, Op, Trace
from replay.trace.requested import RequestedChanges
from replay.trace.validation import Validator
from replay.verification.compare import PLACE
from replay.verification.harness import run_trace
from replay.verification.oracles import Oracle, find_oracles

MILLION = 1_000_000
LIVE = 100_000
STACKS = ("ideal", "bump")


@dataclass(frozen=True)
class Random:
    """A trace of so many rows: LIVE blocks of 1 to 512 bytes, then pairs of the free of a random one and a malloc."""

    rows: int
    metadata: Metadata = field(default_factory=Metadata)
    duration_ns: int | None = None
    events_total: int | None = None

    def batches(self) -> Iterator[Events]:
        random, first, now_ns = np.random.default_rng(0), 0, 0
        while first < self.rows:
            rows = min(GROUP_ROWS, self.rows - first)
            events = Events.empty(rows)
            events.thread[:], events.domain[:], events.op[:] = 0, Domain.OBJ, Op.MALLOC
            events.time_ns[:] = now_ns + np.cumsum(random.integers(20, 400, rows))
            events.block[:], events.size[:] = np.arange(rows), random.integers(1, 513, rows)
            filling = LIVE if first == 0 else 0
            events.op[filling::2], events.size[filling::2] = Op.FREE, 0
            events.block[filling::2] = events.block[filling + 1 :: 2] = random.integers(0, LIVE, (rows - filling) // 2)
            yield events
            first, now_ns = first + rows, int(events.time_ns[-1])


def web_service(rows: int) -> Trace:
    """Returns the bundled workload, lengthened to about so many rows."""
    short = open_source("web-service")
    found = sum(events.rows for events in short.batches())
    duration = short.workload.duration * rows // found  # type: ignore[attr-defined]
    return replace(short, workload=short.workload.model_copy(update={"duration": duration}))  # type: ignore


TRACES: dict[str, Callable[[int], Trace]] = {"random": Random, "web-service": web_service}


class Cost(NamedTuple):
    """What a run took: seconds, and bytes."""

    wall_s: float
    cpu_s: float
    rss_bytes: int


def run_command(path: Path, options: list[str], processors: int) -> Cost:
    """Runs `replay run` on so many processors."""
    command = [sys.executable, "-m", "replay", "run", str(path), *options]
    allowed = sorted(os.sched_getaffinity(0))[:processors]
    started_s = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, allowed)
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return Cost(time.perf_counter() - started_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def lowest(costs: list[Cost]) -> Cost:
    return Cost(*map(min, zip(*costs, strict=True)))


def marginal_ns(short: Cost, long: Cost, events: int) -> tuple[float, float]:
    """Returns wall and processor time an event, between two runs with a difference of so many events."""
    return (long.wall_s - short.wall_s) / events * 1e9, (long.cpu_s - short.cpu_s) / events * 1e9


def end_to_end(oracle: Oracle, sizes: list[int], rounds: int, folder: Path) -> list[dict[str, object]]:
    """Prints and returns the figures of each trace, with and without references, on two processors and on one."""
    found: list[dict[str, object]] = []
    print(f"{oracle.name}: ns an event, and times the processor time of the real pymalloc in C")
    for name, make in TRACES.items():
        paths = [folder / f"{name}-{size}.parquet" for size in sizes]
        rows = [write_trace(make(size * MILLION), path) for size, path in zip(sizes, paths, strict=True)]
        events, long = rows[1] - rows[0], open_source(paths[1])
        for options, processors in (([], 2), ([], 1), (["--no-reference"], 2)):
            costs: tuple[list[Cost], list[Cost]] = ([], [])
            real_ns = []
            for _ in range(rounds):
                for path, of_size in zip(paths, costs, strict=True):
                    of_size.append(run_command(path, ["-a", oracle.preset, *options], processors))
                real_ns.append(_real_ns(oracle, long) / rows[1])
            wall_ns, cpu_ns = marginal_ns(*map(lowest, costs), events)
            figures = {
                "trace": name, "events": rows[1], "bytes": paths[1].stat().st_size, "options": " ".join(options),
                "processors": processors, "real_ns": min(real_ns), "wall_ns": wall_ns, "cpu_ns": cpu_ns,
                "peak_bytes": lowest(costs[1]).rss_bytes,
            }  # fmt: skip
            found.append(figures)
            real = min(real_ns)
            print(
                f"  {name:12} {rows[1]:>12,} events  {' '.join(options) or 'with references':16} "
                f"{processors} processors:  real {real:5.1f}  wall {wall_ns:6.1f} = {wall_ns / real:5.2f} x"
                f"  cpu {cpu_ns:6.1f} = {cpu_ns / real:5.2f} x  peak {figures['peak_bytes'] / 2**20:.0f} MiB",  # type: ignore[operator]
                flush=True,
            )
    return found


def _real_ns(oracle: Oracle, trace: Trace) -> int:
    """Returns the processor time of the real pymalloc in C."""
    return run_trace(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=PLACE, timed=True).cpu_ns


def stages(oracle: Oracle, size: int, rounds: int, folder: Path) -> list[dict[str, object]]:
    """Prints and returns the processor time of each stage of a run, an event."""
    found: list[dict[str, object]] = []
    for name, make in TRACES.items():
        path = folder / f"{name}.parquet"
        rows = write_trace(make(size * MILLION), path)
        real_ns = [_real_ns(oracle, open_source(path)) / rows for _ in range(rounds)]
        found.append({"trace": name, "events": rows, "stage": oracle.name, "cpu_ns": min(real_ns)})
        print(f"  {name:12} {oracle.name:24} {min(real_ns):6.1f} ns an event", flush=True)
        for stage, do in _stages(path, oracle.preset):
            times = []
            for _ in range(rounds + 1):
                started_ns = time.process_time_ns()
                do()
                times.append(time.process_time_ns() - started_ns)
            found.append({"trace": name, "events": rows, "stage": stage, "cpu_ns": min(times) / rows})
            print(f"  {name:12} {stage:24} {min(times) / rows:6.1f} ns an event", flush=True)
    return found


def _stages(path: Path, preset: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields each stage of a run on its own."""
    import pyarrow.parquet as pq

    trace = open_source(path)
    batches = list(trace.batches())
    in_memory = MemoryTrace(batches, trace.metadata)

    def decode() -> None:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for _ in file.iter_batches(GROUP_ROWS, columns=trace.columns):  # type: ignore[attr-defined]
                pass

    def validate() -> None:
        validator = Validator(path, trace.metadata)
        for events in batches:
            validator.check(events)

    def read() -> None:
        for _ in trace.batches():
            pass

    def integrate() -> None:
        changes = RequestedChanges(0)
        for events in batches:
            changes.feed(events, 0, np.array([events.rows]))

    def copy() -> None:
        for events in batches:
            for column in events.present().values():
                column.copy()

    plan = RunPlan.of(str(path), preset, None, None, seed=None, sample=None, trim_every=None)
    nothing = RunOutputs(None, None, False)
    yield "file to summary", lambda: plan.simulate(nothing, with_references=True)
    yield "without references", lambda: plan.simulate(nothing, with_references=False)
    yield "copy the columns", copy
    yield "decode", decode
    yield "validate", validate
    yield "decode and validate", read
    yield "mean of requested bytes", integrate
    yield f"simulate {preset}", lambda: run(in_memory, load_config(preset))
    for name in STACKS:
        yield f"simulate {name}", lambda name=name: run(in_memory, load_config(name), sample_every_ns=NO_SAMPLES_NS)


def scale(oracle: Oracle, sizes: list[int], folder: Path) -> list[dict[str, object]]:
    """Prints and returns time an event and peak memory of a generated workload of each length."""
    found: list[dict[str, object]] = []
    for size in sizes:
        path = folder / "workload.yaml"
        rate_s = 5 * MILLION
        path.write_text(
            f"duration: {size * MILLION / 2 / rate_s} s\n"
            f"streams: {{a: {{arrivals: {{kind: poisson, rate: {rate_s}/s}}, size: 64, lifetime: 1 ms}}}}\n"
        )
        cost = run_command(path, ["-a", oracle.preset], 2)
        found.append({"events": size * MILLION, **cost._asdict()})
        print(
            f"  {size:>5} M events  wall {cost.wall_s / size * 1e3:6.1f}  cpu {cost.cpu_s / size * 1e3:6.1f} ns an"
            f" event  peak {cost.rss_bytes / 2**20:.0f} MiB",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=["end-to-end", "stages", "scale"], nargs="?", default="end-to-end")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4], help="millions of events")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--version", default="cpython-3.11", help="preset to measure")
    parser.add_argument("--json", type=Path, help="file for the figures")
    chosen = parser.parse_args()
    oracle = next((each for each in reversed(find_oracles()) if each.preset == chosen.version), None)
    if oracle is None:
        sys.exit(f"no real {chosen.version} is available; see `replay verify --list`")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.figure == "stages":
            found = stages(oracle, chosen.sizes[-1], chosen.rounds, folder)
        elif chosen.figure == "scale":
            found = scale(oracle, chosen.sizes, folder)
        else:
            found = end_to_end(oracle, chosen.sizes, chosen.rounds, folder)
    if chosen.json:
        machine = {"platform": platform.platform(), "processors": os.cpu_count(), "load": os.getloadavg()}
        chosen.json.write_text(json.dumps({"machine": machine, "figures": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
