"""Measures the speed of replay on this machine, as ratios and rates.

    python benchmarks/speed.py pymalloc    the model with 1,000 samples, compared with the real pymalloc in C
    python benchmarks/speed.py glibc       the same for glibc, one thread
    python benchmarks/speed.py live        glibc's model and glibc with 10,000 to 10 million live blocks
    python benchmarks/speed.py sampling    SimPy and 1,000 samples, compared with the loop alone
    python benchmarks/speed.py workload    events generated and simulated per second
    python benchmarks/speed.py memory      process peak of a workload, and of 20 and 100 times its length
    python benchmarks/speed.py import      lines of text formats per second
    python benchmarks/speed.py start       `replay --help` and `import typer`; a small workload; first compilation

The load of a shared machine varies: both sides of a ratio are measured in turn, several times; medians are printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from replay.config import load_config
from replay.simulation.clock import Slice
from replay.simulation.run import run
from replay.simulation.simulator import Simulator
from replay.sources import open_source
from replay.support.bundled_files import recorded_names, workload_names
from replay.trace import Domain, Events, MemoryTrace, Op, Trace, joined
from replay.verification.compare import PLACE
from replay.verification.harness import run_trace
from replay.verification.libc_oracles import LibcOracle, run_libc, survey_libcs, survey_musls
from replay.verification.libc_shapes import SHAPES as LIBC_SHAPES
from replay.verification.libc_shapes import build_shape as build_libc_shape
from replay.verification.oracles import find_oracles
from replay.verification.shapes import SHAPES, build_shape

ROUNDS = 5


def medians(*sides: Callable[[], float], rounds_wanted: int = ROUNDS) -> list[float]:
    """Returns the median of each side, measured in turn."""
    rounds = [[side() for side in sides] for _ in range(rounds_wanted)]
    return [statistics.median(side) for side in zip(*rounds, strict=True)]


def in_memory(name: str) -> MemoryTrace:
    source = open_source(name)
    return MemoryTrace(list(source.batches()), source.metadata)


def traces(events: int) -> Iterator[tuple[str, MemoryTrace]]:
    """Returns bundled workloads and recordings, and the shapes of `replay verify`."""
    for name in (*workload_names(), *recorded_names()):
        yield name, in_memory(name)
    for name in SHAPES:
        yield f"shape {name}", build_shape(name, events)


def tell_ratios(times: list[tuple[float, float]]) -> None:
    """Prints the ratio over all traces, from the times of real allocator and model."""
    ratios = [model / real for real, model in times]
    real, model = map(sum, zip(*times, strict=True))
    print(f"together {model / real:.2f}; median ratio {statistics.median(ratios):.2f}, highest {max(ratios):.2f}")


def pymalloc(events: int, version: str) -> None:
    oracle = next((each for each in reversed(find_oracles()) if each.preset == version), None)
    if oracle is None:
        sys.exit(f"no real {version} is available; see `replay verify --list`")
    config = load_config(oracle.preset, oracle.overrides)
    print(f"{oracle.name}, ns an event: real pymalloc in C, model with 1,000 samples, model / real")
    times = []
    for name, trace in traces(events):
        total = trace.events_total or 1
        run(trace, config)  # compiles
        real, model = medians(
            lambda trace=trace: (
                run_trace(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=PLACE, timed=True).run_ns
            ),
            lambda trace=trace: run(trace, config).wall_ns,
        )
        times.append((real, model))
        print(
            f"  {name:22} {total:>9,} events {real / total:7.1f} {model / total:7.1f} {model / real:6.2f}", flush=True
        )
    tell_ratios(times)


def glibc_oracle(version: str) -> LibcOracle:
    """Returns the real glibc of a version; the system's if `version` is that of a CPython."""
    oracles = survey_libcs()[0]
    named = [oracle for oracle in oracles if oracle.version == version]
    own = [oracle for oracle in oracles if not oracle.loader]
    if not named + own:
        sys.exit("no real glibc is available; see `replay verify --libc --list`")
    return (named + own)[0]


def glibc(events: int, version: str) -> None:
    oracle = glibc_oracle(version)
    compare_libc(oracle, f"cpython-3.12-malloc-{oracle.name}", events)


def musl(events: int, version: str) -> None:
    oracles = survey_musls()[0]
    if not oracles:
        sys.exit("no real musl is available; see `replay verify --libc --list`")
    named = [oracle for oracle in oracles if oracle.version == version]
    compare_libc((named or oracles[-1:])[0], "cpython-3.12-musl-malloc", events)


def compare_libc(oracle: LibcOracle, preset: str, events: int) -> None:
    config = load_config(preset, [f"{oracle.model}.version={oracle.version}"])
    print(f"{oracle.name}, ns an event: real malloc in C, model with 1,000 samples, model / real")
    times = []
    for name in LIBC_SHAPES:
        trace = build_libc_shape(name, events)
        if any(batch.thread.any() for batch in trace.events):
            continue  # switching threads would be most of the measured time
        run(trace, config)  # compiles
        real, model = medians(
            lambda trace=trace: run_libc(trace, oracle, mode="time").run_ns,
            lambda trace=trace: run(trace, config).wall_ns,
        )
        times.append((real, model))
        print(f"  {name:22} {real / events:7.1f} {model / events:7.1f} {model / real:6.2f}", flush=True)
    tell_ratios(times)


def steady(live: int, pairs: int) -> tuple[MemoryTrace, MemoryTrace]:
    """Returns a trace with `live` blocks of 1 to 2,000 bytes, and one with additional random `pairs` of free and
    malloc."""
    random = np.random.default_rng(0)
    rows = live + 2 * pairs
    op, block, size = np.zeros(rows, np.uint8), np.zeros(rows, np.uint32), random.integers(1, 2_000, rows)
    block[:live] = np.arange(live)
    block[live::2] = block[live + 1 :: 2] = random.integers(0, live, pairs)
    op[live::2], size[live::2] = Op.FREE, 0
    domain = np.full(rows, Domain.LIBC, np.uint8)
    thread = np.zeros(rows, np.uint32)
    events = Events(time_ns=np.arange(rows), thread=thread, op=op, domain=domain, block=block, size=size)
    return MemoryTrace([events.where(slice(0, live))]), MemoryTrace([events])


def live(events: int, version: str) -> None:
    oracle = glibc_oracle(version)
    config = load_config(f"cpython-3.12-malloc-{oracle.name}")
    pairs = max(events, 2_000_000)
    print(f"{oracle.name}, ns per event by number of live blocks: real malloc in C, model")
    for number in (10_000, 100_000, 1_000_000, 10_000_000):
        filled, churned = steady(number, pairs)
        run(filled, config)

        def difference(run_ns: Callable[[Trace], int], filled: Trace = filled, churned: Trace = churned) -> float:
            return run_ns(churned) - run_ns(filled)

        real, model = medians(
            lambda difference=difference: difference(lambda trace: run_libc(trace, oracle, mode="time").run_ns),
            lambda difference=difference: difference(lambda trace: run(trace, config).wall_ns),
            rounds_wanted=3,
        )
        print(f"  {number:>10,} {real / (2 * pairs):7.1f} {model / (2 * pairs):7.1f}", flush=True)


def sampling(events: int, version: str) -> None:
    """Compares the clock with 1,000 samples with one call of the loop over the same rows."""
    rows = build_shape("release", events).events
    batch = joined([part.keep_optional() for part in rows])
    trace, config = MemoryTrace([batch]), load_config(version)
    every_ns = max(1, int(batch.time_ns[-1] - batch.time_ns[0]) // 1000)
    no_ticks = np.zeros(0, np.int64)

    def bare() -> float:
        simulator = Simulator(config)
        started = time.perf_counter_ns()
        simulator.simulate(Slice(batch, 0, 0, batch.rows, no_ticks, no_ticks))
        return time.perf_counter_ns() - started

    run(trace, config)
    base, sampled = medians(
        bare, lambda: run(trace, config, sample_every_ns=every_ns).wall_ns, rounds_wanted=10 * ROUNDS
    )
    print(f"{batch.rows:,} events: bare loop {base / 1e6:.2f} ms, SimPy and 1,000 samples {sampled / base - 1:+.1%}")


def memory(events: int, version: str) -> None:
    """Prints the peak memory of processes that simulate a workload, and multiples of its length."""
    script = (
        "import resource, sys; from dataclasses import replace; from replay.config import load_config;"
        "from replay.simulation.run import run; from replay.sources import open_source;"
        "trace = open_source('web-service');"
        "longer = trace.workload.model_copy(update={'duration': trace.workload.duration * int(sys.argv[1])});"
        f"played = run(replace(trace, workload=longer), load_config({version!r})).events;"
        "print(played, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    for times in ("1", "20", "100"):
        done = subprocess.run([sys.executable, "-c", script, times], check=True, capture_output=True, text=True)
        played, peak_kib = map(int, done.stdout.split())
        print(f"  web-service x {times:3} {played:>11,} events, process peak {peak_kib / 1024:.0f} MiB", flush=True)


def workload(events: int, version: str) -> None:
    """Prints the speed of bundled workloads, lengthened to about the wanted number of events."""
    config = load_config(version)
    for name in workload_names():
        short = open_source(name)
        made = run(short, config).events
        last_ns = short.workload.duration * max(1, events // made)
        trace = replace(short, workload=short.workload.model_copy(update={"duration": last_ns}))

        def rate(trace: Trace = trace) -> float:
            started = time.perf_counter()
            return run(trace, config).events / (time.perf_counter() - started)

        print(f"  {name:22} generated and simulated: {medians(rate)[0] / 1e6:5.1f} M events/s", flush=True)


def import_(events: int, version: str) -> None:
    """Prints the speed of text formats. `benchmarks/import_memray.py` measures captures of memray."""
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in text_logs(events):
            path = Path(folder) / name
            path.write_text(lines)

            def seconds(path: Path = path) -> float:
                started = time.perf_counter()
                for _ in open_source(path).batches():
                    pass
                return time.perf_counter() - started

            print(f"{name}: {lines.count(chr(10)) / medians(seconds)[0] / 1e6:.2f} M lines/s", flush=True)


def text_logs(events: int) -> Iterator[tuple[str, str]]:
    """Returns lines of the text formats, with waves of a thousand blocks."""
    waves = [(number % 2000 < 1000, number % 1000) for number in range(events)]
    yield (
        "mtrace",
        "= Start\n"
        + "".join(
            f"@ /usr/lib/libfoo.so.1:(function_{block % 50}+0x1f)[0x7f001f{block % 50:02x}] "
            + (f"+ {0x55550000 + 64 * block:#x} {block:#x}\n" if begins else f"- {0x55550000 + 64 * block:#x}\n")
            for begins, block in waves
        ),
    )
    yield (
        "heaptrack",
        "v 10400 3\ns 4 main\ni 1 1 1\nt 1 0\n"
        + "".join(f"a {block:x} 1\n" for block in range(1000))
        + "".join(f"{'+' if begins else '-'} {block:x}\n" for begins, block in waves),
    )
    yield (
        "rep",
        f"0\n1000\n{events}\n1\n"
        + "".join(f"a {block} {block}\n" if begins else f"f {block}\n" for begins, block in waves),
    )
    owner = '"string_args":{"allocator_ref":"0x1","pointer"'
    yield (
        "umpire",
        "".join(
            f'{{"category":"operation","name":"allocate","numeric_args":{{"size":{block}}},{owner}:"{block + 16:#x}"}},'
            f'"tags":{{"replay":"true"}},"timestamp":{number}}}\n'
            if begins
            else f'{{"category":"operation","name":"deallocate",{owner}:"{block + 16:#x}"}},'
            f'"tags":{{"replay":"true"}},"timestamp":{number}}}\n'
            for number, (begins, block) in enumerate(waves)
        ),
    )


def start(events: int, version: str) -> None:
    def seconds(*arguments: str) -> Callable[[], float]:
        def measure() -> float:
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            return time.perf_counter() - started

        return measure

    typer, answer = medians(seconds("-c", "import typer"), seconds("-m", "replay", "--help"))
    print(f"replay --help {answer * 1e3:.0f} ms, import typer {typer * 1e3:.0f} ms: {answer / typer:.1f} x")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REPLAY_CACHE_DIR"] = folder
        command = ("-m", "replay", "run", "web-service", "-a", version, "--json")
        first = seconds(*command)()
        print(f"run web-service: {first:.1f} s with all compiling, {medians(seconds(*command))[0]:.2f} s after")


FIGURES = {
    "pymalloc": pymalloc,
    "glibc": glibc,
    "musl": musl,
    "live": live,
    "sampling": sampling,
    "workload": workload,
    "memory": memory,
    "import": import_,
    "start": start,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=list(FIGURES))
    parser.add_argument("--events", type=int, default=1_000_000, help="length of the built-in shapes")
    parser.add_argument("--version", default="cpython-3.11", help="preset to measure")
    chosen = parser.parse_args()
    FIGURES[chosen.figure](chosen.events, chosen.version)


if __name__ == "__main__":
    main()
