"""Measures the machine of object programs, each figure in one run on this machine.

    python benchmarks/objects.py    steps and events per second of the bundled programs; memory of a million objects

A step is an instruction, or the end of one reference. Medians of five runs.
"""

import resource
import statistics
import tempfile
import time
from pathlib import Path

from replay.objects import ObjectProgram, load_objects
from replay.objects.running import run_program
from replay.support.bundled_files import find_workload, object_program_names

ROUNDS = 5
RELEASE = (3, 12)
OBJECTS = 1_000_000
MANY = f"""\
kind: objects
main:
  - bind: {{objects: {{list: []}}}}
  - repeat: {OBJECTS}
    as: i
    do:
      - append: {{tuple: [i]}}
        to: objects
"""


def run(program: ObjectProgram) -> tuple[int, int, float]:
    """Returns steps, events and seconds of one run."""
    started = time.perf_counter()
    steps = events = 0
    for batch in run_program(program, RELEASE):
        events += len(batch.events)
        steps = int(batch.events["step"].max(initial=steps))
    return steps, events, time.perf_counter() - started


def main() -> None:
    print(f"CPython {RELEASE[0]}.{RELEASE[1]}: millions of steps and of events per second")
    for name in object_program_names():
        program = load_objects(find_workload(name))
        run(program)  # compiles
        runs = [run(program) for _ in range(ROUNDS)]
        steps, events, _ = runs[0]
        seconds = statistics.median(taken for _, _, taken in runs)
        print(f"  {name:15} {steps / seconds / 1e6:6.1f} {events / seconds / 1e6:6.1f}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.yaml"
        path.write_text(MANY, encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run(load_objects(path))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{OBJECTS:,} tuples and their integers live: {(after - before) / 1024:.0f} MiB more at peak")


if __name__ == "__main__":
    main()
