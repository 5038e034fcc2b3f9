"""Runs one trace on a real glibc and on its model, and compares the two.

Compared are the addresses of all blocks; the system calls that change the address space, with addresses, lengths and
order; and, if asked, resident bytes at ten points. Every domain goes to libc: this is malloc without pymalloc.
CPython's domains ask libc for 1 byte instead of 0, in reality and in the model; domain libc asks for 0, which is the
same size class.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from replay.allocators import SYSCALLS, linux
from replay.allocators.glibc.system import IS_MMAPPED
from replay.config import StackConfig, load_config
from replay.config.glibc_environment import overrides_of
from replay.simulation.clock import Slice
from replay.simulation.simulator import Simulator
from replay.trace import TRIM_MARK, Domain, Events, MemoryTrace, Op, Trace, joined
from replay.trace.block_ops import concerns_block
from replay.trace.validation import validated
from replay.verification.harness import HarnessError
from replay.verification.huge_pages import free_huge_pages, transparent_huge_pages, without_surprises
from replay.verification.libc_oracles import RESIDENT_POINTS, LibcOracle, LibcPlayed, find_strace, play_libc

PRESET = "cpython-3.12-malloc"


@dataclass(frozen=True)
class LibcAgreement:
    """How far model and real malloc agree over one trace."""

    oracle: str
    events: int
    addresses_compared: int
    addresses_equal: int
    system_calls_compared: int
    """0 where strace is missing."""
    system_calls_equal: int
    """Before the first that differs."""
    resident_error: float | None
    """The largest difference of resident bytes, as a part of the real ones; None if they were not compared."""
    seconds: float
    difference: str | None
    """The first, in words."""

    @property
    def exact(self) -> bool:
        return self.difference is None

    @property
    def unequal(self) -> int:
        """Addresses and system calls that differ, together."""
        return self.addresses_compared - self.addresses_equal + self.system_calls_compared - self.system_calls_equal


def verify_libc(
    trace: Trace, oracle: LibcOracle, *, assignments: Sequence[str] = (), resident: bool = False
) -> LibcAgreement:
    """Compares a real glibc, run with these settings in its environment, with its model under the same ones.

    Transparent huge pages are on, as far as this machine's kernel has them, only if a setting has malloc ask for them.
    """
    start = time.perf_counter()
    try:
        find_strace()
        traced = True
    except HarnessError:
        traced = False
    environment = dict(assignment.split("=", 1) for assignment in assignments)
    events = _whole(trace)
    whole = MemoryTrace([events], trace.metadata)
    played = play_libc(whole, oracle, traced=traced, environment=environment)
    makings = _makings_of_threads(events, played.thread_bytes)
    libc = _overrides(oracle, assignments)
    config = _config_behind(events, makings, played, libc)
    addresses, calls, resident_bytes = _play_model(events, config, makings, played)
    blocks = played.addresses != 0
    wrong = np.flatnonzero(blocks & (played.addresses != addresses))
    difference = _address_difference(int(wrong[0]), events, played.addresses, addresses) if len(wrong) else None
    compared = equal = 0
    if played.system_calls is not None:
        compared = max(len(played.system_calls), len(calls))
        pairs = zip(played.system_calls, calls, strict=False)
        shorter = min(len(played.system_calls), len(calls))
        equal = next((number for number, (real, model) in enumerate(pairs) if real != model), shorter)
        if equal < compared and difference is None:
            difference = _call_difference(equal, played.system_calls, calls)
    error = None
    if resident:
        mode = "resident" if config.linux.transparent_huge_pages == "never" else "huge"
        fill = partial(play_libc, whole, oracle, mode=mode, environment=environment)
        filled = without_surprises(fill) if mode == "huge" else fill()
        real = filled.resident
        # Where pages are huge or blocks aligned, it matters where the heap starts: another place in each process.
        if mode == "huge" or events.memalign_rows.size:
            resident_bytes = _play_model(events, _config_behind(events, makings, filled, libc), makings, filled)[2]
        error = float(np.max(np.abs(resident_bytes - real) / np.maximum(real, config.linux.page_size)))
    return LibcAgreement(
        oracle=oracle.name,
        events=events.rows,
        addresses_compared=int(np.count_nonzero(blocks)),
        addresses_equal=int(np.count_nonzero(blocks)) - len(wrong),
        system_calls_compared=compared,
        system_calls_equal=equal,
        resident_error=error,
        seconds=time.perf_counter() - start,
        difference=difference,
    )


def call_lists(
    trace: Trace, oracle: LibcOracle, assignments: Sequence[str]
) -> tuple[int, list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """Where the heap begins, and the system calls of a real glibc under these settings and of its model there."""
    events = _whole(trace)
    environment = dict(assignment.split("=", 1) for assignment in assignments)
    played = play_libc(MemoryTrace([events], trace.metadata), oracle, traced=True, environment=environment)
    assert played.system_calls is not None
    makings = _makings_of_threads(events, played.thread_bytes)
    libc = _overrides(oracle, assignments)
    calls = _play_model(events, _config_behind(events, makings, played, libc), makings, played)[1]
    return played.heap, played.system_calls, calls


def _overrides(oracle: LibcOracle, assignments: Sequence[str]) -> list[str]:
    """What makes a stack like the real process on this machine."""
    overrides = overrides_of(assignments)
    return [
        f"glibc.version={oracle.version}",
        f"glibc.processors={_processors(oracle)}",
        f"linux.transparent_huge_pages={transparent_huge_pages() if 'glibc.hugetlb=1' in overrides else 'never'}",
        f"linux.reserved_huge_pages={free_huge_pages()}",
        *overrides,
    ]


def _processors(oracle: LibcOracle) -> int:
    """What the real malloc takes their number to be: those that may be used in 2.36, those that are there in others."""
    return len(os.sched_getaffinity(0)) if oracle.version == "2.36" else os.cpu_count() or 1


def _whole(trace: Trace) -> Events:
    """All events in one batch; threads are numbered from 0, the main thread, and no number is used again."""
    batches = list(validated(trace, None).batches())
    events = joined([batch.keep_optional("alignment") for batch in batches])
    names = [trace.metadata.phases[number] for number in events.size[events.op == Op.MARK]]
    if (~concerns_block(events.op) & (events.op != Op.MARK) & (events.op != Op.THREAD_END)).any() or set(names) - {
        TRIM_MARK
    }:
        raise HarnessError(f"of marks and collections, only marks named {TRIM_MARK} can be verified")
    distinct, thread = np.unique(events.thread, return_inverse=True)
    main = thread[concerns_block(events.op).argmax()]
    thread = (thread - main).astype(np.uint32) % np.uint32(distinct.shape[0])
    for row in np.flatnonzero(events.op == Op.THREAD_END):
        later = thread[row + 1 :]
        if thread[row] == 0:
            raise HarnessError("the end of the main thread cannot be verified: the program would go with it")
        later[later == thread[row]] = thread.max() + 1
    return events._replace(thread=thread)


def _makings_of_threads(events: Events, thread_bytes: int) -> Events:
    """What the main thread allocates for each other thread that the harness creates, before the trace."""
    count = int(events.thread.max())
    rows = np.zeros(count, np.int64)
    header_bytes = 32 if thread_bytes & IS_MMAPPED else 8
    return Events(
        time_ns=rows,
        thread=rows.astype(np.uint32),
        op=np.full(count, Op.CALLOC, np.uint8),
        domain=np.full(count, Domain.LIBC, np.uint8),
        block=int(events.block.max()) + 1 + np.arange(count, dtype=np.uint32),
        size=np.full(count, (thread_bytes & -8) - header_bytes - 1),  # under MALLOC_CHECK_ a byte more is asked
    )


def _config_behind(events: Events, makings: Events, played: LibcPlayed, libc: Sequence[str]) -> StackConfig:
    """The model's address space is the real one's, whose mappings for `makings` lie elsewhere: here they lie on top.

    Where they are to be of huge pages, they lie at a multiple of these, and as far from a multiple of the largest
    alignment as in reality: other blocks lie in them too.
    """

    def config(base: int) -> StackConfig:
        return load_config(PRESET, (f"linux.mmap_base={base}", f"linux.brk_base={played.heap}", *libc))

    told: list[np.ndarray] = []
    trial = Simulator(config(played.base), addresses=lambda part, owners: told.append(part))
    _play_rows(trial, makings)
    space = trial.stack.linux.space[0]  # type: ignore[attr-defined]
    is_huge = bool(trial.stack.libc.par[0].hp_bytes)  # type: ignore[attr-defined]
    unit = int(space.huge_page_size if is_huge else space.page_size)
    base = (2 * played.base - int(space.lowest) + unit - 1) & -unit
    if is_huge and told and events.alignment is not None and events.alignment.any():
        away = played.thread_place - (int(told[0][0]) + base - played.base)
        base += away % int(events.alignment.max())
    return config(base)


def _play_rows(simulator: Simulator, events: Events) -> None:
    nothing = np.zeros(0, np.int64)
    if events.rows:
        simulator.simulate(Slice(events, 0, 0, events.rows, nothing, nothing))


def _play_model(
    events: Events, config: StackConfig, before: Events, played: LibcPlayed
) -> tuple[np.ndarray, list[tuple[str, int, int]], np.ndarray]:
    """Addresses, system calls, and resident bytes at the points where the harness reads them, behind `before`."""
    told: list[np.ndarray] = []
    logged: list[np.ndarray] = []
    simulator = Simulator(config, addresses=lambda part, owners: told.append(part), log=logged.append)
    points = np.array([events.rows * (point + 1) // RESIDENT_POINTS for point in range(RESIDENT_POINTS)])
    resident: list[int] = []
    _play_rows(simulator, before)
    away = played.thread_place - int(told[0][0]) if before.rows else 0
    told.clear()
    logged.clear()
    _fill(simulator, played.base)
    resident_before = int(simulator.tally.resident_bytes)
    start = 0
    for stop in [*np.flatnonzero(~concerns_block(events.op)).tolist(), events.rows]:
        due = points[(points >= start) & (points <= stop)]
        if stop > start:
            resident += simulator.simulate(Slice(events, 0, start, stop, due, due))["resident_bytes"].tolist()
        else:
            resident += [int(simulator.tally.resident_bytes)] * due.shape[0]
        if stop < events.rows:
            if events.op[stop] == Op.MARK:
                simulator.trim(stop, int(events.time_ns[stop]))
            else:
                simulator.end_thread(int(events.thread[stop]), stop, int(events.time_ns[stop]))
            told.append(np.zeros(1, np.int64))
        start = stop + 1
    calls = [
        (SYSCALLS[kind], address + away * (address >= played.base), 0 if SYSCALLS[kind] == "brk" else length)
        for part in logged
        for _, kind, address, length in part.tolist()
    ]
    addresses = np.concatenate(told)
    addresses[addresses >= played.base] += away
    return addresses, calls, np.array(resident) - resident_before


def _fill(simulator: Simulator, base: int) -> None:
    """The next mapping will end at `base`, and none will lie higher."""
    hole = int(simulator.stack.linux.space[0].lowest) - base  # type: ignore[attr-defined]
    if hole:
        linux.reserve(simulator.stack, hole, base)
        simulator.tally.rows_logged = 0


def _address_difference(row: int, events: Events, real: np.ndarray, model: np.ndarray) -> str:
    op, size = Op(int(events.op[row])).name.lower(), int(events.size[row])
    return f"row {row}: {op} of {size} bytes is at {real[row]:#x} in the real malloc, at {model[row]:#x} in the model"


def _call_difference(number: int, real: list[tuple[str, int, int]], model: list[tuple[str, int, int]]) -> str:
    def tell(calls: list[tuple[str, int, int]]) -> str:
        if number >= len(calls):
            return "no more"
        name, address, length = calls[number]
        return f"{name} {address:#x}" + f" of {length} bytes" * bool(length)

    return f"system call {number}: {tell(real)} in reality, {tell(model)} in the model"
