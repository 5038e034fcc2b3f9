"""Records the allocations of Python scripts in real interpreters, with `object_harness.c`.

The model of Python objects is compared with these recordings, event by event. `object_harness.c` documents what a
script can call, and how events are recorded.

A script must not use `gc.callbacks`: they run partly outside what is recorded as the collection.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replay.verification.harness import EVENT, HarnessError, compile_program, library_environment, run_program
from replay.verification.oracles import Oracle, choose_oracles, find_oracles, unavailable

SOURCE = Path(__file__).with_name("object_harness.c")
FIRST, LAST = (3, 8), (3, 15)
"""Range of the releases whose collector the harness can read."""
OBJECT_EVENT = np.dtype([("op", "u1"), ("domain", "u1"), ("size", "<u8"), ("block", "<u4")])
"""An event of a region.

`op`: an `Op`. `domain`: a `Domain`. `size`: requested bytes; of a free, those of the freed block, 0 if unknown; of a
mark, its number; of a collection, its generation, UNKNOWN_GENERATION if it had not ended in the region.
`block`: number of the block in the region, from 1 in order of allocation; 0 if it was allocated before.
"""
UNKNOWN_GENERATION = 255
_MAX_REGIONS = 1024
_COLLECTOR = [(name, "<i8", 3) for name in ("counts", "collections", "collected", "uncollectable")]
_REGION = np.dtype([("first", "<u8"), ("end", "<u8"), ("before", _COLLECTOR), ("after", _COLLECTOR)])
_HEADER = np.dtype([(name, "<u8") for name in ("events", "regions", "ended")])
_SECONDS = 120


@dataclass(frozen=True)
class Collector:
    """State of the cyclic garbage collector. Each tuple has a value for each generation, the youngest first."""

    counts: tuple[int, ...]
    """The counts of gc.get_count(), which the thresholds limit."""
    collections: tuple[int, ...]
    """Total number of collections, as in gc.get_stats()."""
    collected: tuple[int, ...]
    uncollectable: tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """A part of a script: from start() to stop()."""

    events: np.ndarray
    """`OBJECT_EVENT`s in order."""
    threads: np.ndarray
    """The thread of each event, numbered in order of their first events in the process."""
    before: Collector
    after: Collector


def find_object_oracles() -> dict[str, Oracle]:
    """Returns the interpreters that can run scripts, by version such as `3.11.7`, in order of version."""
    return {oracle.version: oracle for oracle in find_oracles() if _runs_scripts(oracle)}


def choose_interpreters(choice: str) -> list[Oracle]:
    """Returns the interpreters of a release or version such as `3.11` or `3.11.7`, or `all`."""
    if choice == "all":
        found = list(find_object_oracles().values())
        if not found:
            raise unavailable("interpreter", choice, [], "replay verify --list")
        return found
    chosen = choose_oracles(choice)
    refused = [oracle for oracle in chosen if not _runs_scripts(oracle)]
    if refused:
        raise HarnessError(
            f"{refused[0].name}: objects are simulated for 64-bit CPython {_text(FIRST)} to {_text(LAST)} only"
        )
    return chosen


def _text(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))


def _runs_scripts(oracle: Oracle) -> bool:
    release = (int(oracle.version.split(".")[0]), _minor(oracle))
    return FIRST <= release <= LAST and oracle.library.bits == 64 and oracle.library.home is not None


def _minor(oracle: Oracle) -> int:
    return int(oracle.version.split(".")[1])


def record_objects(oracle: Oracle, script: str) -> list[Region]:
    """Runs a script and returns its regions. Raises HarnessError with the last line of its error if it fails."""
    return run_script(oracle, script)[0]


def run_script(oracle: Oracle, script: str) -> tuple[list[Region], str]:
    """The same, with the standard output."""
    library = oracle.library
    program = compile_program(SOURCE, ("-O2",), "object-harness", "-ldl")
    environment = {**library_environment(library), "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory(prefix="replay-verify-") as folder:
        path, result = Path(folder) / "script", Path(folder) / "result"
        path.write_text(script, encoding="utf-8")
        arguments = [str(library.path), str(_minor(oracle)), str(path), str(result)]
        output = run_program([*library.loader, str(program), *arguments], environment, _SECONDS, oracle.name)
        return _read_regions(result, oracle.name), output


def _read_regions(path: Path, name: str) -> list[Region]:
    header = np.fromfile(path, _HEADER, 1)[0]
    if not header["ended"]:
        raise HarnessError(f"{name} failed: the script ended the process without finalizing the interpreter")
    rows = np.fromfile(path, _REGION, int(header["regions"]), offset=_HEADER.itemsize)
    logged = np.fromfile(path, EVENT, offset=_HEADER.itemsize + _MAX_REGIONS * _REGION.itemsize)
    events = np.empty(logged.shape, OBJECT_EVENT)
    for column in OBJECT_EVENT.names or ():
        events[column] = logged[column]
    return [
        Region(
            events[row["first"] : row["end"]],
            logged["thread"][row["first"] : row["end"]],
            _collector(row["before"]),
            _collector(row["after"]),
        )
        for row in rows
    ]


def _collector(row: np.void) -> Collector:
    return Collector(*(tuple(row[name].tolist()) for name in row.dtype.names or ()))
