"""Measures the machine of object programs, each figure in one run on this machine.

    python benchmarks/objects.py    steps and events per second of the bundled programs; memory of a million objects;
                                    cost of a collection

A step is an instruction, or the end of one reference, or what a collection visits. Medians of five runs.
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
COLLECTIONS = 10
CHAIN = """\
kind: objects
collector: {{enabled: false}}
classes:
  Node: {{slots: [next]}}
main:
  - bind: {{head: 0}}
  - repeat: {objects}
    as: i
    do:
      - bind: {{node: {{new: Node}}}}
      - set: {{node.next: head}}
      - bind: {{head: node}}
  - repeat: {collections}
    as: i
    do:
      - collect: 2
"""
"""All objects remain reachable, so each collection visits all of them and frees none."""


def run(program: ObjectProgram) -> tuple[int, int, float]:
    """Returns steps, events and seconds of one run."""
    started = time.perf_counter()
    steps = events = 0
    for batch in run_program(program, RELEASE):
        events += len(batch.events)
        steps = int(batch.events["step"].max(initial=steps))
    return steps, events, time.perf_counter() - started


def written(text: str) -> ObjectProgram:
    """Returns the program of a text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.yaml"
        path.write_text(text, encoding="utf-8")
        return load_objects(path)


def collection_ns(objects: int) -> float:
    """Returns the time of a collection for each object that it visits, in nanoseconds."""
    without, collecting = (
        statistics.median(run(written(CHAIN.format(objects=objects, collections=count)))[2] for _ in range(ROUNDS))
        for count in (0, COLLECTIONS)
    )
    return (collecting - without) * 1e9 / (COLLECTIONS * objects)


def main() -> None:
    print(f"CPython {RELEASE[0]}.{RELEASE[1]}: millions of steps and of events per second")
    for name in object_program_names():
        program = load_objects(find_workload(name))
        run(program)  # compiles
        runs = [run(program) for _ in range(ROUNDS)]
        steps, events, _ = runs[0]
        seconds = statistics.median(taken for _, _, taken in runs)
        print(f"  {name:15} {steps / seconds / 1e6:6.1f} {events / seconds / 1e6:6.1f}")
    many = written(MANY)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(many)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{OBJECTS:,} tuples and their integers live: {(after - before) / 1024:.0f} MiB more at peak")
    for objects in (OBJECTS // 10, OBJECTS):
        print(f"a collection that visits {objects:,} objects: {collection_ns(objects):.1f} ns an object")


if __name__ == "__main__":
    main()
