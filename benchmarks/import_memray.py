"""Compares the import of a memray capture with a loop over the records of memray's own reader.

    python benchmarks/import_memray.py                   records a program with about two million records
    python benchmarks/import_memray.py --capture FILE    an existing capture
    python benchmarks/import_memray.py --events 20000000

Both sides are measured in turn, several times, each from opening the file; medians are quoted, and the ratio of each
round. The bare loop does nothing with a record; reading as a trace pairs reallocs, numbers blocks, finds call sites and
holds all to the contract of a trace; importing also writes the Parquet file. Exit code 1 if an import is slower than
`BOUND` of the bare loop.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import memray

from replay.sources import open_source
from replay.sources.parquet import write_trace

BOUND = 0.6
ALLOCATES = """
import sys
kept = []
for number in range(int(sys.argv[1]) // 12):
    kept.append({str(number): [float(number), str(number) * 3]})
    if number % 3 == 0 and len(kept) > 50_000:
        kept.pop(number % 50_000)
"""


def record(events: int, folder: Path) -> Path:
    program, capture = folder / "program.py", folder / "capture.bin"
    program.write_text(ALLOCATES)
    command = [sys.executable, "-m", "memray", "run", "-q", "--trace-python-allocators", "-o", capture, program]
    subprocess.run([*command, str(events)], check=True)
    return capture


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(capture: Path, out: Path, rounds: int) -> None:
    reader = memray.FileReader(capture)
    records = reader.metadata.total_allocations

    def yielded() -> None:
        for _ in reader.get_allocation_records():
            pass

    def read() -> None:
        for _ in open_source(capture).batches():
            pass

    def imported() -> None:
        write_trace(open_source(capture), out, force=True)

    imported()  # compiles
    times = [[seconds(work) for work in (yielded, read, imported)] for _ in range(rounds)]
    bare, reading, importing = (statistics.median(side) for side in zip(*times, strict=True))
    ratios = [round_[0] / round_[2] for round_ in times]
    print(f"{records:,} records; the bare loop of memray {memray.__version__} yields {records / bare / 1e6:.2f} M/s")
    print(f"  read as a trace {records / reading / 1e6:6.2f} M/s: {bare / reading:.0%} of that")
    print(f"  imported        {records / importing / 1e6:6.2f} M/s: {bare / importing:.0%} of that")
    print(f"  rounds          {' '.join(f'{ratio:.0%}' for ratio in sorted(ratios))}")
    if bare / importing < BOUND:
        sys.exit(f"an import is slower than {BOUND:.0%} of the bare loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capture", type=Path, help="a capture that is there already")
    parser.add_argument("--events", type=int, default=2_000_000, help="about so many records in the one made here")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        capture = chosen.capture or record(chosen.events, Path(folder))
        measure(capture, Path(folder) / "out.parquet", chosen.rounds)


if __name__ == "__main__":
    main()
