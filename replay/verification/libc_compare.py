"""Runs one trace on a real glibc and on its model, and compares the two.

The comparison has the addresses of all blocks; the sequence of system calls that change the address space, with
addresses and lengths; and, optionally, resident bytes at ten points. Every domain uses libc, as in CPython without
pymalloc. CPython's domains request 1 byte from libc instead of 0, in reality and in the model; domain libc requests 0
bytes, which has the same size class.
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
from replay.verification.libc_oracles import RESIDENT_POINTS, LibcOracle, LibcRun, find_strace, run_libc

PRESET = "cpython-3.12-malloc"


@dataclass(frozen=True)
class LibcAgreement:
    """The result of comparing model and real malloc for one trace."""

    oracle: str
    events: int
    addresses_compared: int
    addresses_equal: int
    system_calls_compared: int
    """0 if strace is missing."""
    system_calls_equal: int
    """Number of equal system calls before the first difference."""
    resident_error: float | None
    """The largest difference of resident bytes, as a share of the real ones; None if they were not compared."""
    seconds: float
    difference: str | None
    """The first difference as text; None without any."""

    @property
    def exact(self) -> bool:
        return self.difference is None

    @property
    def unequal(self) -> int:
        """Number of addresses and system calls that differ."""
        return self.addresses_compared - self.addresses_equal + self.system_calls_compared - self.system_calls_equal


def verify_libc(
    trace: Trace, oracle: LibcOracle, *, assignments: Sequence[str] = (), resident: bool = False
) -> LibcAgreement:
    """Compares a real glibc with its model, both with the settings of `environment`.

    Transparent huge pages are on only if a setting makes malloc request them and this machine's kernel supports them.
    """
    start = time.perf_counter()
    try:
        find_strace()
        traced = True
    except HarnessError:
        traced = False
    environment = dict(assignment.split("=", 1) for assignment in assignments)
    events = _as_one_batch(trace)
    whole = MemoryTrace([events], trace.metadata)
    real = run_libc(whole, oracle, traced=traced, environment=environment)
    before = _thread_allocations(events, real.thread_bytes)
    libc = _overrides(oracle, assignments)
    config = _config_after(events, before, real, libc)
    addresses, calls, resident_bytes, _ = _run_model(events, config, before, real)
    blocks = real.addresses != 0
    wrong = np.flatnonzero(blocks & (real.addresses != addresses))
    difference = _address_difference(int(wrong[0]), events, real.addresses, addresses) if len(wrong) else None
    compared = equal = 0
    if real.system_calls is not None:
        compared = max(len(real.system_calls), len(calls))
        pairs = zip(real.system_calls, calls, strict=False)
        shorter = min(len(real.system_calls), len(calls))
        equal = next((number for number, (one, other) in enumerate(pairs) if one != other), shorter)
        if equal < compared and difference is None:
            difference = _call_difference(equal, real.system_calls, calls)
    error = None
    if resident:
        mode = "resident" if config.linux.transparent_huge_pages == "never" else "huge"
        fill = partial(run_libc, whole, oracle, mode=mode, environment=environment)
        filled = without_surprises(fill) if mode == "huge" else fill()
        real_bytes = filled.resident
        # Where pages are huge or blocks aligned, the start of the heap matters, which differs in each process.
        if mode == "huge" or events.memalign_rows.size:
            resident_bytes = _run_model(events, _config_after(events, before, filled, libc), before, filled)[2]
        error = float(np.max(np.abs(resident_bytes - real_bytes) / np.maximum(real_bytes, config.linux.page_size)))
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
    """Returns the start of the heap, and the system calls of a real glibc and of its model with these settings."""
    events = _as_one_batch(trace)
    environment = dict(assignment.split("=", 1) for assignment in assignments)
    real = run_libc(MemoryTrace([events], trace.metadata), oracle, traced=True, environment=environment)
    assert real.system_calls is not None
    before = _thread_allocations(events, real.thread_bytes)
    libc = _overrides(oracle, assignments)
    calls = _run_model(events, _config_after(events, before, real, libc), before, real)[1]
    return real.heap, real.system_calls, calls


def _overrides(oracle: LibcOracle, assignments: Sequence[str]) -> list[str]:
    """Returns overrides for a stack that is equal to a real process on this machine."""
    overrides = overrides_of(assignments)
    if oracle.model == "musl":
        return ["domains.libc=musl", f"musl.version={oracle.version}"]
    return [
        f"glibc.version={oracle.version}",
        f"glibc.processors={_processors(oracle)}",
        f"linux.transparent_huge_pages={transparent_huge_pages() if 'glibc.hugetlb=1' in overrides else 'never'}",
        f"linux.reserved_huge_pages={free_huge_pages()}",
        *overrides,
    ]


def _processors(oracle: LibcOracle) -> int:
    """Returns the number of processors as the real malloc counts them: usable ones in 2.36, existing ones in others."""
    return len(os.sched_getaffinity(0)) if oracle.version == "2.36" else os.cpu_count() or 1


def _as_one_batch(trace: Trace) -> Events:
    """Returns all events in one batch. Threads are numbered from 0, the main thread; no number is reused."""
    batches = list(validated(trace, None).batches())
    events = joined([batch.keep_optional("alignment") for batch in batches])
    names = [trace.metadata.phases[number] for number in events.size[events.op == Op.MARK]]
    if (~concerns_block(events.op) & (events.op != Op.MARK) & (events.op != Op.THREAD_END)).any() or set(names) - {
        TRIM_MARK
    }:
        raise HarnessError(f"only marks named {TRIM_MARK} can be verified, no other marks or collections")
    distinct, thread = np.unique(events.thread, return_inverse=True)
    main = thread[concerns_block(events.op).argmax()]
    thread = (thread - main).astype(np.uint32) % np.uint32(distinct.shape[0])
    for row in np.flatnonzero(events.op == Op.THREAD_END):
        later = thread[row + 1 :]
        if thread[row] == 0:
            raise HarnessError("the end of the main thread cannot be verified, because it ends the program")
        later[later == thread[row]] = thread.max() + 1
    return events._replace(thread=thread)


def _thread_allocations(events: Events, thread_bytes: int) -> Events:
    """Returns the allocation of the main thread for each other thread that the harness creates before the trace."""
    count = int(events.thread.max()) if thread_bytes else 0
    rows = np.zeros(count, np.int64)
    header_bytes = 32 if thread_bytes & IS_MMAPPED else 8
    return Events(
        time_ns=rows,
        thread=rows.astype(np.uint32),
        op=np.full(count, Op.CALLOC, np.uint8),
        domain=np.full(count, Domain.LIBC, np.uint8),
        block=int(events.block.max()) + 1 + np.arange(count, dtype=np.uint32),
        size=np.full(count, (thread_bytes & -8) - header_bytes - 1),  # MALLOC_CHECK_ adds a byte to each request
    )


def _config_after(events: Events, before: Events, real: LibcRun, libc: Sequence[str]) -> StackConfig:
    """Returns a configuration with the real address space, but with the mappings for `before` above all others.

    With huge pages, these mappings are aligned to the size of a huge page, and their distance from a multiple of the
    largest alignment is the real one, because other blocks lie in them too.
    """

    def config(base: int) -> StackConfig:
        return load_config(PRESET, (f"linux.mmap_base={base}", f"linux.brk_base={real.heap}", *libc))

    addresses: list[np.ndarray] = []
    trial = Simulator(config(real.base), addresses=lambda part, owners: addresses.append(part))
    _run_rows(trial, before)
    space = trial.stack.linux.space[0]  # type: ignore[attr-defined]
    is_huge = config(real.base).libc_model == "glibc" and bool(trial.stack.libc.par[0].hp_bytes)  # type: ignore[attr-defined]
    unit = int(space.huge_page_size if is_huge else space.page_size)
    base = (2 * real.base - int(space.lowest) + unit - 1) & -unit
    if is_huge and addresses and events.alignment is not None and events.alignment.any():
        distance = real.thread_place - (int(addresses[0][0]) + base - real.base)
        base += distance % int(events.alignment.max())
    return config(base)


def _run_rows(simulator: Simulator, events: Events) -> None:
    nothing = np.zeros(0, np.int64)
    if events.rows:
        simulator.simulate(Slice(events, 0, 0, events.rows, nothing, nothing))


def _run_model(
    events: Events, config: StackConfig, before: Events, real: LibcRun
) -> tuple[np.ndarray, list[tuple[str, int, int]], np.ndarray, Simulator]:
    """Returns addresses, system calls, resident bytes at the points of the harness, and the process at the end. The
    events `before` come first."""
    moved: list[np.ndarray] = []
    logged: list[np.ndarray] = []
    simulator = Simulator(config, addresses=lambda part, owners: moved.append(part), log=logged.append)
    points = np.array([events.rows * (point + 1) // RESIDENT_POINTS for point in range(RESIDENT_POINTS)])
    resident: list[int] = []
    _run_rows(simulator, before)
    away = real.thread_place - int(moved[0][0]) if before.rows else 0
    moved.clear()
    logged.clear()
    _fill(simulator, real.base)
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
            moved.append(np.zeros(1, np.int64))
        start = stop + 1
    calls = [
        (SYSCALLS[kind], address + away * (address >= real.base), 0 if SYSCALLS[kind] == "brk" else length)
        for part in logged
        for _, kind, address, length in part.tolist()
    ]
    addresses = np.concatenate(moved)
    addresses[addresses >= real.base] += away
    return addresses, calls, np.array(resident) - resident_before, simulator


def _fill(simulator: Simulator, base: int) -> None:
    """Fills the address space, so that the next mapping ends at `base` and none is above it."""
    hole = int(simulator.stack.linux.space[0].lowest) - base  # type: ignore[attr-defined]
    if hole:
        linux.reserve(simulator.stack, hole, base)
        simulator.tally.rows_logged = 0


def _address_difference(row: int, events: Events, real: np.ndarray, model: np.ndarray) -> str:
    op, size = Op(int(events.op[row])).name.lower(), int(events.size[row])
    return f"row {row}: {op} of {size} bytes is at {real[row]:#x} in the real malloc, at {model[row]:#x} in the model"


def _call_difference(number: int, real: list[tuple[str, int, int]], model: list[tuple[str, int, int]]) -> str:
    def describe(calls: list[tuple[str, int, int]]) -> str:
        if number >= len(calls):
            return "no more"
        name, address, length = calls[number]
        return f"{name} {address:#x}" + f" of {length} bytes" * bool(length)

    return f"system call {number}: {describe(real)} in reality, {describe(model)} in the model"
