"""Compares the ranking of a sweep with reality: a real allocator runs the configurations that it supports.

    pymalloc  an unchanged preset, and a real libpython of that version. Metrics: peak of arena bytes, and system calls
              that map and unmap arenas. libc is not compared, because its heap is not empty in that process
    glibc     a stack without pymalloc, with settings that the environment can set, and a real glibc of that version,
              with strace. Metrics: number of system calls, and peak of the bytes that they mapped

A real process with threads begins with blocks of these threads in its heap. So for a trace with threads, glibc's model
is run again with the heap of the real process, and these figures replace the sweep's, which begin with an empty heap.

Ranks are dense: configurations with equal figures have equal ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from replay.config import StackConfig, load_config
from replay.config.glibc_environment import TUNABLES, VARIABLES, overrides_of
from replay.sources import open_source
from replay.sweeps.configurations import Configuration, Resolver, Skipped, configurations, stack_key
from replay.sweeps.plan import Plan
from replay.sweeps.sweep import sweep
from replay.sweeps.threads import Threads
from replay.sweeps.traces import Input, decode, fetch, find_inputs
from replay.trace import TEARDOWN_MARK, TRIM_MARK, Events, MemoryTrace, Op, Trace
from replay.trace.block_ops import concerns_block
from replay.trace.processes import refuse_processes
from replay.verification import ONE_PROCESS, harness
from replay.verification.compare import PLACE
from replay.verification.harness import HarnessError
from replay.verification.libc_compare import PRESET, call_lists
from replay.verification.libc_oracles import LibcOracle, survey_libcs, survey_musls
from replay.verification.oracles import Oracle, find_oracles

Figures = dict[str, int]
_ARENAS = ("arena_bytes_peak", "arena_calls")
_LIBC = ("mapped_bytes_peak", "syscalls")


@dataclass(frozen=True)
class Compared:
    """The figures of one configuration and trace, in the sweep and in reality."""

    source: str
    real_allocator: str
    parameters: dict[str, Any]
    model: Figures
    real: Figures


@dataclass(frozen=True)
class Ranking:
    """The ranks of all configurations of a kind in one metric, for one trace, in the order of `Compared`."""

    source: str
    kind: str
    metric: str
    model: tuple[int, ...]
    real: tuple[int, ...]
    figures_equal: int
    """Number of configurations with equal figures."""

    @property
    def same(self) -> bool:
        return self.model == self.real


@dataclass(frozen=True)
class Verdict:
    compared: tuple[Compared, ...]
    rankings: tuple[Ranking, ...]
    left_out: dict[str, int]
    """Number of configurations that no real allocator supports, by reason."""

    @property
    def same(self) -> bool:
        return bool(self.rankings) and all(ranking.same for ranking in self.rankings)


class Reality:
    """The real allocators of this machine."""

    def __init__(self) -> None:
        self._pymallocs = {oracle.preset: oracle for oracle in find_oracles()}
        found = (*survey_libcs()[0], *survey_musls()[0])
        self._libcs = {(oracle.model, oracle.version): oracle for oracle in found}

    def figures(self, stack: StackConfig, trace: Trace, row: dict[str, Any]) -> tuple[str, str, Figures, Figures]:
        """Returns kind, name of the real allocator, and the figures of model and reality.

        `row` is the run's row in the results of the sweep. Raises HarnessError if no real allocator supports the stack.
        """
        if stack.small_model is None:
            libc, environment = self._libc_for(stack)
            heap, *calls = call_lists(trace, libc, environment)
            real, model = (_of_calls(each, heap) for each in calls)
            if not _has_threads(trace):
                model = {metric: row[metric] for metric in real}
            return libc.model, libc.name, model, real
        oracle = self._pymalloc_for(stack)
        model = {"arena_bytes_peak": row["arena_bytes_peak"]}
        model["arena_calls"] = row["arenas_mapped"] + row["arenas_unmapped"]
        return "pymalloc", oracle.name, model, _run_pymalloc(oracle, trace)

    def _pymalloc_for(self, stack: StackConfig) -> Oracle:
        alike = [each for each in self._pymallocs.values() if stack_key(load_config(each.preset)) == stack_key(stack)]
        named = [each for each in alike if each.preset == stack.name]
        if not named and stack.name in self._pymallocs and load_config(stack.name).small == stack.small:
            raise HarnessError("settings of libc are compared only without pymalloc: -a cpython-3.12-malloc")
        if not named:
            raise HarnessError(f"no available CPython is like {stack.name}, or a setting exists in no build")
        if any(not name.startswith("pymalloc.radix_tree") for name in named[0].overrides):
            raise HarnessError(f"{named[0].name} differs from {stack.name}: {', '.join(named[0].overrides)}")
        return named[0]

    def _libc_for(self, stack: StackConfig) -> tuple[LibcOracle, list[str]]:
        model, version = stack.libc_model, getattr(stack.libc, "version", "")
        if (model, version) not in self._libcs:
            raise HarnessError(f"{stack.title(model)} is not available")
        environment = _environment_of(stack) if model == "glibc" else []
        own = [f"domains.libc={model}", f"{model}.version={version}"]
        alike = load_config(PRESET, [*own, *overrides_of(environment)])
        if stack_key(alike) != stack_key(stack):
            raise HarnessError("a setting cannot be made in the environment of a real process")
        return self._libcs[model, version], environment


def _environment_of(stack: StackConfig) -> list[str]:
    """Returns the environment variables that set a real glibc like the stack's."""
    plain = load_config(PRESET).libc
    names = {key: variable for variable, key in VARIABLES.items()}
    changed = {
        key: getattr(stack.libc, key)
        for key in type(stack.libc).model_fields
        if key not in ("model", "version") and getattr(stack.libc, key) != getattr(plain, key)
    }
    assignments = [f"{names[key]}={value}" for key, value in changed.items() if key in names]
    tunables = [f"{name}={changed[key]}" for name, key in TUNABLES.items() if key in changed and key not in names]
    return assignments + ([f"GLIBC_TUNABLES={':'.join(tunables)}"] if tunables else [])


def _run_pymalloc(oracle: Oracle, trace: Trace) -> Figures:
    real = harness.run_trace(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=PLACE)
    events = real.arena_events
    levels = np.cumsum(np.where(events["kind"] == 1, events["bytes"], -events["bytes"]))
    return {"arena_bytes_peak": int(max(levels.max(initial=0), 0)), "arena_calls": len(events)}


def _of_calls(calls: Sequence[tuple[str, int, int]], heap: int) -> Figures:
    """Returns the number of calls, and the peak of the bytes that they mapped: the heap and mappings."""
    figures = {"syscalls": len(calls)}
    if any(name == "mremap" for name, _, _ in calls):
        return figures  # the start of the mapping is unknown
    mapped: dict[int, int] = {}
    peak = total = grown = 0
    for name, address, length in calls:
        if name == "brk":
            grown = address - heap
        elif name == "mmap" and address >= 0:
            mapped[address] = length
            total += length
        elif name == "munmap":
            total -= mapped.pop(address, length)
        peak = max(peak, total + grown)
    return figures | {"mapped_bytes_peak": peak}


def _has_threads(trace: Trace) -> bool:
    return len({int(thread) for batch in trace.batches() for thread in np.unique(batch.thread)}) > 1


def _verifiable(trace: Trace) -> Trace:
    """Returns the trace up to the end of the program, without marks and collections, which harnesses do not support."""
    kept: list[Events] = []
    until_end: list[Events] | None = None
    for events in trace.batches():
        is_trim, is_end = (
            (events.op == Op.MARK) & np.isin(events.size, np.flatnonzero(np.array(trace.metadata.phases) == name))
            for name in (TRIM_MARK, TEARDOWN_MARK)
        )
        supported = concerns_block(events.op) | (events.op == Op.THREAD_END) | is_trim
        if is_end.any():
            rows = np.flatnonzero(supported[: np.flatnonzero(is_end)[-1]])
            until_end = [*kept, events.keep_optional().where(rows)]
        kept.append(events.keep_optional().where(supported))
    return MemoryTrace(kept if until_end is None else until_end, trace.metadata)


def verify_ranking(plan: Plan) -> Verdict:
    """Runs the sweep, runs its configurations with real allocators, and compares both rankings."""
    inputs = find_inputs(plan.sources, plan.seeds)
    for trace_input in inputs:
        refuse_processes(open_source(fetch(trace_input.where)), trace_input.label, ONE_PROCESS)
    reality = Reality()
    resolver = Resolver(plan, [trace_input.recorded for trace_input in inputs])
    tried = configurations(resolver)
    results = sweep(plan, engine=Threads())
    rows = {(row["configuration"], row["source"], row["seed"]): row for row in results.frame.iter_rows(named=True)}
    compared: list[tuple[str, Compared]] = []
    left_out: dict[str, int] = {}
    for trace_input in inputs:
        trace = _verifiable(decode(trace_input).trace)
        for number, each in enumerate(tried):
            try:
                found = _compare(
                    reality, each, trace, rows.get((number, trace_input.source, trace_input.seed)), trace_input
                )
            except HarnessError as error:
                left_out[str(error)] = left_out.get(str(error), 0) + 1
                continue
            compared.append(found)
    return Verdict(tuple(each for _, each in compared), tuple(_rankings(compared)), left_out)


def _compare(
    reality: Reality, each: Configuration | Skipped, trace: Trace, row: dict[str, Any] | None, trace_input: Input
) -> tuple[str, Compared]:
    if isinstance(each, Skipped):
        raise HarnessError(each.reason)
    if row is None or row["status"] != "done":
        raise HarnessError("the run failed in the sweep")
    if each.trim_every_ns:
        raise HarnessError("malloc_trim at an interval is not compared: real processes have no simulated time")
    kind, name, model, real = reality.figures(each.stack, trace, row)
    return kind, Compared(trace_input.label, name, dict(each.parameters), model, real)


def _rankings(compared: Sequence[tuple[str, Compared]]) -> Iterator[Ranking]:
    for kind, metrics in (("pymalloc", _ARENAS), ("glibc", _LIBC)):
        for source in dict.fromkeys(each.source for _, each in compared):
            mine = [each for its, each in compared if its == kind and each.source == source]
            for metric in metrics:
                if mine and all(metric in each.real for each in mine):
                    model, real = (
                        [figures[metric] for figures in side]
                        for side in zip(*((e.model, e.real) for e in mine), strict=True)
                    )
                    equal = sum(a == b for a, b in zip(model, real, strict=True))
                    yield Ranking(source, kind, metric, _ranks(model), _ranks(real), equal)


def _ranks(figures: Sequence[int]) -> tuple[int, ...]:
    order = {figure: rank for rank, figure in enumerate(sorted(set(figures)), start=1)}
    return tuple(order[figure] for figure in figures)
