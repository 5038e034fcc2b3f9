"""Compares the model of Python objects with real interpreters: the same program in both, event by event.

The real interpreter runs the program's twin in plain Python. Both start with empty free lists. `main` has no caller in
the model; in the interpreter, its caller's frame object exists before the program starts. Equal are operation, domain,
size and block of every event, in their order, and at the end the collector's counts and statistics. Collections are
events too.

Of programs with threads, the thread of each event is compared too. In the real program they change only where one of
them blocks.

An interpreter allocates some memory on the side, which belongs to no object of the program. Such events are left out of
the comparison and counted:

    bytecode caches    up to 3.10: two blocks for a function that has run 1,024 times
    older blocks       blocks from before the program that are freed while it runs
"""

import re
from dataclasses import dataclass

import numpy as np

from replay.objects import ObjectProgram
from replay.objects.rules import default_thresholds
from replay.objects.running import Batch, run_program
from replay.objects.twin import INCREMENT, MULTIPLIER, write_twin
from replay.trace import Domain, Op
from replay.verification.object_oracles import OBJECT_EVENT, Region, record_objects
from replay.verification.oracles import Oracle

_CACHES_TO = (3, 10)
_TEXTS_FROM = (3, 12)
"""From this release on, every collection allocates."""
_THREADS = """\
from allocation_log import join as _join
from _thread import allocate_lock, start_new_thread
from _queue import SimpleQueue
from time import sleep
import sys
sys.setswitchinterval(1000)
"""
"""What the twin of a program with threads needs. Threads change only where one of them blocks."""
_DELEGATION = """\
from types import coroutine
def delegate(items):
    yield from items
for items in [0], (0,):
    next(delegate(items))
del delegate, items
"""
"""What the twin of a program with coroutines or `yield from` needs. The first end of a generator that waits for an
iterator completes the iterator's type, and creates a name: this is older than the program."""
_SCRIPT = """\
from allocation_log import start as _start, stop as _stop
from _weakref import ref
import gc, sys
{prologue}gc.disable()
sys._getframe()
class Finalized:
    def __del__(self): pass
Finalized()
del Finalized
{imports}\
del sys
def choices(seed):
    for _ in range({choices}):
        seed = (seed * {multiplier} + {increment}) & 0xFFFFFFFF
        yield seed >> 24
CHOICES = iter(bytes(choices({seed})))
LETTER, BYTE = "x", b"x"
{twin}
gc.set_threshold({thresholds})
gc.collect()
gc.freeze()
gc.collect()
if {is_enabled}:
    gc.enable()
_start()
main()
{join}\
_stop()
"""
"""Names with an underscore are no names of a program."""
_NEVER_NS = 1000 * 10**9
_SHOWN = 5
THREADED_EVENT = np.dtype([*((name, OBJECT_EVENT[name]) for name in OBJECT_EVENT.names or ()), ("thread", "<u2")])
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
    found, _, last = simulate_threads(program, release)
    return found, last


def simulate_threads(program: ObjectProgram, release: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, Batch]:
    """The same, with the thread of each event. Ends of threads are no events here."""
    batches = list(run_program(program, release))
    events = np.concatenate([batch.events for batch in batches])
    threads = np.zeros(len(events), np.int64)
    if batches[-1].threads is not None:
        threads = np.concatenate([batch.threads for batch in batches if batch.threads is not None])
    is_event = events["op"] != Op.THREAD_END
    events, threads = events[is_event], threads[is_event]
    found = np.zeros(len(events), OBJECT_EVENT)
    found["op"], found["domain"] = events["op"], events["domain"]
    numbers: dict[int, tuple[int, int]] = {}
    allocated = generation = 0
    for row, (op, _, block, size, _) in enumerate(events.tolist()):
        if op in (Op.MALLOC, Op.CALLOC):
            allocated += 1
            numbers[block] = allocated, size
        elif op == Op.REALLOC:
            numbers[block] = numbers[block][0], size
        elif op != Op.FREE:
            generation = size if op == Op.GC_START else generation
            found["size"][row] = generation if op == Op.GC_END else size
            continue
        found["block"][row], found["size"][row] = numbers[block]
    return found, threads, batches[-1]


def verify_objects(program: ObjectProgram, oracle: Oracle) -> ObjectAgreement:
    """Runs a program in the model and in a real interpreter, and compares their events."""
    release = version_of(oracle)
    program = without_switches(program)
    model, model_threads, end = simulate_threads(program, release)
    has_threads = program.code.has_threads
    region = record_objects(oracle, script_of(program, release, end.choices))[0]
    recorded = region.events
    if release < _TEXTS_FROM:
        model = _with_ordered_collections(model)
    if has_threads:
        model, recorded = (in_threads(*each, release) for each in ((model, model_threads), (recorded, region.threads)))
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


def script_of(program: ObjectProgram, release: tuple[int, ...], choices: int, prologue: str = "") -> str:
    """Returns the script that runs a program with `choices` random choices, after a prologue."""
    has_threads, twin = program.code.has_threads, write_twin(program.program)
    return _SCRIPT.format(
        prologue=prologue,
        twin=twin,
        seed=program.program.seed & 0xFFFFFFFF,
        choices=choices,
        multiplier=MULTIPLIER,
        increment=INCREMENT,
        thresholds=", ".join(map(str, program.program.collector.thresholds or default_thresholds(release))),
        is_enabled=program.program.collector.enabled,
        imports=(_THREADS if has_threads else "")
        + (_DELEGATION if "coroutine" in twin or "yield from" in twin else ""),
        join="_join()\n" if has_threads else "",
    )


def without_switches(program: ObjectProgram) -> ObjectProgram:
    """Returns the program with threads that change only where one of them blocks, as its twin runs."""
    return program._replace(program=program.program.model_copy(update={"switch_interval": _NEVER_NS}))


def in_threads(events: np.ndarray, threads: np.ndarray, release: tuple[int, ...]) -> np.ndarray:
    """Returns the events with their threads, in the order that the GIL determines.

    A thread frees one block before it first takes the GIL, and others after it has dropped it for the last time. Other
    threads run at the same time, so these events are moved next to the thread's others. Threads are numbered in order
    of their first events.
    """
    places = np.arange(len(events), dtype=np.float64)
    is_call = events["op"] < Op.GC_START
    has_callback, last_frees = release[:2] <= (3, 13), 2 if release >= (3, 13) else int(release >= (3, 9))
    for thread in np.unique(threads[threads != threads[:1]]):
        rows = np.flatnonzero((threads == thread) & is_call)
        if has_callback:
            places[rows[0]] = rows[1] - 0.5
        places[rows[len(rows) - last_frees :]] = rows[len(rows) - last_frees - 1] + 0.5
    order = np.argsort(places, kind="stable")
    moved = np.empty(len(events), THREADED_EVENT)
    for name in OBJECT_EVENT.names or ():
        moved[name] = events[name][order]
    numbers = {thread: number for number, thread in enumerate(dict.fromkeys(threads[order][is_call[order]].tolist()))}
    moved["thread"] = [numbers.get(thread, 0) for thread in threads[order].tolist()]
    moved["thread"][moved["op"] >= Op.GC_START] = 0  # the harness notes them in the thread that has the next event
    return moved


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
        f"{Domain(domain).name.lower()} {Op(op).name.lower()} {size} #{block}" + "".join(f" in {it}" for it in thread)
        for op, domain, size, block, *thread in events[:_SHOWN].tolist()
    )
