"""Compares the model of Python objects with real interpreters: the same program in both, event by event.

The real interpreter runs the program's twin in plain Python. Both start with empty free lists. Equal are operation,
domain, size and block of every event, in their order, and at the end the collector's counts and statistics.
Collections are events too.

An interpreter allocates some memory on the side, which belongs to no object of the program. Such events are left out of
the comparison and counted:

    bytecode caches    up to 3.10: two blocks for a function that has run 1,024 times
    older blocks       blocks from before the program that are freed while it runs
"""

import re
from dataclasses import dataclass

import numpy as np

from replay.objects import ObjectProgram
from replay.objects.rules import thresholds
from replay.objects.running import Batch, run_program
from replay.objects.twin import INCREMENT, MULTIPLIER, write_twin
from replay.trace import Domain, Op
from replay.verification.object_oracles import OBJECT_EVENT, Region, record_objects
from replay.verification.oracles import Oracle

_CACHES_TO = (3, 10)
_TEXTS_FROM = (3, 12)
"""From this release on, every collection allocates."""
_SCRIPT = """\
from allocation_log import start, stop
import gc
gc.disable()
def choices(seed):
    for _ in range({choices}):
        seed = (seed * {multiplier} + {increment}) & 0xFFFFFFFF
        yield seed >> 24
CHOICES = iter(bytes(choices({seed})))
LETTER, BYTE = "x", b"x"
{twin}
gc.set_threshold({thresholds})
def run():
    gc.collect()
    gc.freeze()
    gc.collect()
    if {is_enabled}:
        gc.enable()
    start()
    main()
    stop()
run()
"""
_SHOWN = 5
_COMPARED = ("count", "collections", "collected")


@dataclass(frozen=True)
class ObjectAgreement:
    """How a program in the model and in a real interpreter compare."""

    program: str
    interpreter: str
    events: int
    """Events of the real program that were compared."""
    aside: int
    """Events of the interpreter that were left out."""
    different: int
    """Number of positions at which the sequences differ."""
    difference: str = ""
    """The first difference."""


def simulate(program: ObjectProgram, release: tuple[int, ...]) -> tuple[np.ndarray, Batch]:
    """Returns a program's events as OBJECT_EVENTs, blocks numbered in order of allocation; and its last batch."""
    batches = list(run_program(program, release))
    events = np.concatenate([batch.events for batch in batches])
    found = np.zeros(len(events), OBJECT_EVENT)
    found["op"], found["domain"] = events["op"], events["domain"]
    numbers: dict[int, tuple[int, int]] = {}
    allocated = 0
    for row, (op, _, block, size, _) in enumerate(events.tolist()):
        if op in (Op.MALLOC, Op.CALLOC):
            allocated += 1
            numbers[block] = allocated, size
        elif op == Op.REALLOC:
            numbers[block] = numbers[block][0], size
        elif op != Op.FREE:
            found["size"][row] = size
            continue
        found["block"][row], found["size"][row] = numbers[block]
    return found, batches[-1]


def verify_objects(program: ObjectProgram, oracle: Oracle) -> ObjectAgreement:
    """Runs a program in the model and in a real interpreter, and compares their events."""
    release = version_of(oracle)
    model, end = simulate(program, release)
    script = _SCRIPT.format(
        twin=write_twin(program.program),
        seed=program.program.seed & 0xFFFFFFFF,
        choices=end.choices,
        multiplier=MULTIPLIER,
        increment=INCREMENT,
        thresholds=", ".join(map(str, program.program.collector.thresholds or thresholds(release))),
        is_enabled=program.program.collector.enabled,
    )
    region = record_objects(oracle, script)[0]
    recorded = region.events
    if release < _TEXTS_FROM:
        model = _with_ordered_collections(model)
    real = _without_older_blocks(recorded)
    if release[:2] <= _CACHES_TO:
        real = _without_caches(real, model)
    aside, shorter = len(recorded) - len(real), min(len(real), len(model))
    unequal = np.flatnonzero(real[:shorter] != model[:shorter])
    different = len(unequal) + max(len(real), len(model)) - shorter
    difference = ""
    if different:
        first = int(unequal[0]) if len(unequal) else shorter
        difference = f"event {first:,}: real {_as_text(real[first:])}; model {_as_text(model[first:])}"
    elif (found := _collector_of(region)) != (expected := end.generations[list(_COMPARED)].tolist()):
        different, difference = 1, f"{', '.join(_COMPARED)} of the collector: real {found}; model {expected}"
    return ObjectAgreement(program.name, oracle.name, len(real), aside, different, difference)


def _collector_of(region: Region) -> list[tuple[int, ...]]:
    """Returns the collector's counts at the end of a region, and its totals since the start, by generation."""
    before, after = region.before, region.after
    totals = [
        (int(now) - int(then) for now, then in zip(getattr(after, name), getattr(before, name), strict=True))
        for name in ("collections", "collected")
    ]
    return list(zip(after.counts, *totals, strict=True))


def version_of(oracle: Oracle) -> tuple[int, ...]:
    """Returns the version of an interpreter, such as (3, 12, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", oracle.version)[:3])


def _without_older_blocks(events: np.ndarray) -> np.ndarray:
    return events[(events["op"] != Op.FREE) | (events["block"] > 0)]


def _with_ordered_collections(events: np.ndarray) -> np.ndarray:
    """Returns the events with adjacent collections without events in order of generation, as the harness records
    them."""
    ordered = events.copy()
    starts = np.flatnonzero((events["op"][:-1] == Op.GC_START) & (events["op"][1:] == Op.GC_END))
    for run in np.split(starts, np.flatnonzero(np.diff(starts) != 2) + 1):
        generations = np.sort(events["size"][run])
        ordered["size"][run], ordered["size"][run + 1] = generations, generations
    return ordered


def _without_caches(real: np.ndarray, model: np.ndarray) -> np.ndarray:
    """Returns the events without those of bytecode caches: callocs that the model does not have, and the next event."""
    while True:
        shorter = min(len(real), len(model))
        unequal = np.flatnonzero(real[:shorter] != model[:shorter])
        first = int(unequal[0]) if len(unequal) else shorter
        while first < len(real) and real["op"][first] in (Op.GC_START, Op.GC_END):
            first += 1
        pair = real[first : first + 2]
        if len(pair) < 2 or not _is_cache(pair, real[first + 2 :]):
            return real
        real = np.delete(real, [first, first + 1])
        blocks = real["block"]
        real["block"] = blocks - sum((blocks > block).astype(blocks.dtype) for block in np.unique(pair["block"]))
        real = _with_ordered_collections(real)


def _is_cache(pair: np.ndarray, later: np.ndarray) -> bool:
    """Whether two events allocate the caches of a function: blocks that live on, or one that is freed at once."""
    if not (pair["domain"] == Domain.MEM).all() or pair["op"][0] != Op.CALLOC:
        return False
    if pair["op"][1] == Op.FREE:
        return bool(pair["block"][0] == pair["block"][1])
    return bool(pair["op"][1] == Op.CALLOC and not np.isin(later["block"], pair["block"]).any())


def _as_text(events: np.ndarray) -> str:
    """Returns the first events as text, such as `obj malloc 56 #3`."""
    if not len(events):
        return "ends"
    return ", ".join(
        f"{Domain(domain).name.lower()} {Op(op).name.lower()} {size} #{block}"
        for op, domain, size, block in events[:_SHOWN].tolist()
    )
