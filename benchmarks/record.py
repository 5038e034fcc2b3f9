"""Measures the cost of recording: a program that makes and parses JSON, alone, recorded, and under memray if installed.

    python benchmarks/record.py                  20,000 documents, several times
    python benchmarks/record.py --fields 6       smaller documents: more calls per second

Prints the calls per second of the program alone, the time of its work in each way, and the size of the file. The
program measures its own work, and the processor time of its thread, which excludes waiting for the writer. Starting
and completing the file are included in the times of whole commands. All ways are measured in turn, several times,
and medians are printed. Needs one more idle processor than the program.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

PROGRAM = """
import json, sys, time
documents, fields, rounds = map(int, sys.argv[1:4])
made = [
    {f"field {at}": f"{index} {'text ' * 40}" if at % 3 else [index, index / 2, None] for at in range(fields)}
    for index in range(documents)
]
started, busy = time.perf_counter(), time.thread_time()
for _ in range(rounds):
    for text in [json.dumps(document) for document in made]:
        json.loads(text)
print(time.perf_counter() - started, time.thread_time() - busy, file=open(sys.argv[4], "w"))
"""
RECORD = ["-m", "replay", "record", "--force", "-o", "trace.parquet"]
WAYS = {
    "by itself": [],
    "recorded": RECORD,
    "recorded without addresses": [*RECORD, "--no-addresses"],
    "recorded with all sites": [*RECORD, "--sites"],
    "recorded with some sites": [*RECORD, "--sites-every", "64KiB"],
    "recorded with types": [*RECORD, "--types"],
    "memray": ["-m", "memray", "run", "-q", "-f", "--trace-python-allocators", "-o", "memray.bin"],
}


def measure(way: list[str], arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Returns seconds of the program's work, of its thread's processor time, and of the whole command."""
    started = time.perf_counter()
    command = [sys.executable, *way, "program.py", *arguments, "seconds"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    command_s = time.perf_counter() - started
    work, busy = map(float, (folder / "seconds").read_text().split())
    return work, busy, command_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--fields", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=5, help="how often each document is made and parsed")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured")
    chosen = parser.parse_args()
    ways = {name: way for name, way in WAYS.items() if name != "memray" or importlib.util.find_spec("memray")}
    arguments = [str(number) for number in (chosen.documents, chosen.fields, chosen.repeat)]
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    notes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "program.py").write_text(PROGRAM)
        for way in ways.values():
            measure(way, ["1", "1", "1"], folder)  # compiles
        for _ in range(chosen.rounds):
            for way, options in ways.items():
                times[way].append(measure(options, arguments, folder))
                if way.startswith("recorded"):
                    notes[way] = size_of(folder / "trace.parquet")
    report({way: [statistics.median(side) for side in zip(*times[way], strict=True)] for way in ways}, notes)


def size_of(path: Path) -> str:
    rows = pq.read_metadata(path).num_rows
    return f", {rows:,} events, {path.stat().st_size / rows:.2f} bytes each"


def report(medians: dict[str, list[float]], notes: dict[str, str]) -> None:
    bare, bare_busy, _ = medians["by itself"]
    events = int(notes["recorded"].split()[1].replace(",", ""))
    print(f"about {events / bare / 1e6:.1f} M calls per second alone")
    for way, (work, busy, command) in medians.items():
        note = notes.get(way, "")
        ratios = f"{work / bare:.2f} x, of processor time {busy / bare_busy:.2f} x"
        print(f"  {way:27} {work:6.2f} s, {ratios}; whole command {command:.2f} s{note}")
    if "memray" in medians:
        share = (medians["recorded"][0] - bare) / (medians["memray"][0] - bare)
        print(f"recording adds {share:.2f} of what memray adds")


if __name__ == "__main__":
    main()
