"""Summaries of a RunResult, and the metrics that are made of them. Pure functions.

`docs/metrics.md` describes every name; a test checks this. Sizes are in bytes, times in nanoseconds of the trace.

    level      a quantity with a value at every moment: requested, mapped, resident bytes …
    _peak      the highest value of a level; each level has its own moment. For requested and block bytes the highest
               value between events; for other levels, values during an event count, too
    _at_peak   the values of all levels at one moment: after the event at which resident memory peaked
    _end       the value after the last event
    _mean      the exact mean over the time of the trace

A model's own counters are called `<model>.<counter>`; a level has `_peak`, `_at_peak` and `_end` as well.

Every summary has these metrics: the figures, and the counters of the bundled models, which are 0 for a model that is
not in the stack. Only a stack with a model of another package adds the counters of that model. So an installed model
that a stack does not use changes neither baselines nor sweeps.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from replay.allocators import (
    LEVELS,
    SYSCALLS,
    Counter,
    CounterKind,
    bundled_names,
    counters_of,
    field_prefix,
    usable_models,
)
from replay.simulation.result import MEANS, RunResult
from replay.support.errors import ReplayError
from replay.support.names import nearest

BYTE_LEVELS = tuple(name for name in LEVELS if name.endswith("_bytes"))
SMALL_LEVELS = ("small_requested_bytes", "small_block_bytes")
ROLES = ("libc", "small")
_COUNTS = (
    "mallocs", "callocs", "reallocs", "memaligns", "frees", "page_faults", "huge_pages",
    "arenas_mapped", "arenas_unmapped", "arenas_peak", "pools_used", "pools_full", "pools_free", "pools_made",
)  # fmt: skip
"""Fields of the last sample that have the same name in a Summary."""


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Bound(_Result):
    """Memory of a reference allocator for the same trace."""

    allocator: str
    requested_bytes_peak: int
    mapped_bytes_peak: int
    mapped_bytes_end: int
    resident_bytes_peak: int
    resident_bytes_end: int


class SimulatedTime(_Result):
    """Estimated nanoseconds by cause: counts multiplied by the `costs` of the configuration."""

    calls: int
    pools: int
    syscalls: int
    page_faults: int


def _figure(meaning: str, **traits: bool) -> Any:
    """Returns a field with a description. `docs/metrics.md` has these, in one row for neighbours with equal ones.
    Traits:

    of_the_trace    the figure depends on the trace only, so it is not a metric
    neutral         a higher value is neither better nor worse
    detail          a baseline stores it only if a rule names it: it explains another figure, or varies from run to run
    detailed_kinds  the same for its values by kind
    rises           a field of the tally that never decreases during a run
    """
    return Field(
        description=meaning, json_schema_extra=dict.fromkeys(name for name, is_set in traits.items() if is_set)
    )


def _with_trait(trait: str) -> set[str]:
    """Returns the names of the figures with this trait."""
    return {
        name for name, field in _Figures.model_fields.items() if trait in cast(dict[str, Any], field.json_schema_extra)
    }


_PEAK = "the highest value of the level: see above"
_AT_PEAK = "the level at the moment of the highest resident memory: see above"
_END = "the level after the last event: see above"
_MEAN = "the mean of the level over time: see above"
_RETAINED_AT_PEAK = "retained bytes and their parts at peak: see above"
_RETAINED_END = "retained bytes and their parts at end: see above"
_REFERENCES = (
    "the same trace with `ideal` (live bytes in whole pages) and `bump` (never frees), or null with `--no-reference`:"
    f" {', '.join(f'`{name}`' for name in Bound.model_fields)}"
)


class _Run(_Result):
    """Allocator stack and trace of a run."""

    allocator: str = _figure("the configuration's name; overrides by `--set` do not change it")
    libc_model: str = _figure("the models in these roles; `small_model` is null if libc serves all requests")
    small_model: str | None = _figure("the models in these roles; `small_model` is null if libc serves all requests")
    trace: dict[str, str] = _figure(
        "the origin of the trace, as text by name: workload and seed, or interpreter, platform, command …"
    )


class _Figures(_Result):
    """The figures of one process, or of all processes together."""

    events: int = _figure("rows of the trace, and time from the first event to the end", of_the_trace=True)
    duration_ns: int = _figure("rows of the trace, and time from the first event to the end", of_the_trace=True)
    mallocs: int = _figure("calls")
    callocs: int = _figure("calls")
    reallocs: int = _figure("calls")
    memaligns: int = _figure("calls")
    frees: int = _figure("calls", neutral=True)

    requested_bytes_peak: int = _figure(_PEAK, rises=True)
    block_bytes_peak: int = _figure(_PEAK, rises=True)
    pool_bytes_peak: int = _figure(_PEAK, rises=True)
    arena_bytes_peak: int = _figure(_PEAK, rises=True)
    heap_bytes_peak: int = _figure(_PEAK, rises=True)
    mapped_bytes_peak: int = _figure(_PEAK, rises=True)
    resident_bytes_peak: int = _figure(_PEAK, rises=True)

    peak_time_ns: int = _figure(
        "the moment of the levels `_at_peak`, since the first event; 0 if no page was ever resident", of_the_trace=True
    )
    requested_bytes_at_peak: int = _figure(_AT_PEAK, detail=True)
    block_bytes_at_peak: int = _figure(_AT_PEAK, detail=True)
    pool_bytes_at_peak: int = _figure(_AT_PEAK, detail=True)
    arena_bytes_at_peak: int = _figure(_AT_PEAK, detail=True)
    heap_bytes_at_peak: int = _figure(_AT_PEAK, detail=True)
    mapped_bytes_at_peak: int = _figure(_AT_PEAK, detail=True)
    resident_bytes_at_peak: int = _figure(_AT_PEAK, detail=True)
    small_requested_bytes_at_peak: int = _figure(_AT_PEAK, detail=True)
    small_block_bytes_at_peak: int = _figure(_AT_PEAK, detail=True)

    requested_bytes_end: int = _figure(_END)
    block_bytes_end: int = _figure(_END)
    pool_bytes_end: int = _figure(_END)
    arena_bytes_end: int = _figure(_END)
    heap_bytes_end: int = _figure(_END)
    mapped_bytes_end: int = _figure(_END)
    resident_bytes_end: int = _figure(_END)
    small_requested_bytes_end: int = _figure(_END)
    small_block_bytes_end: int = _figure(_END)

    requested_bytes_mean: int = _figure(_MEAN, detail=True)
    mapped_bytes_mean: int = _figure(_MEAN, detail=True)
    resident_bytes_mean: int = _figure(_MEAN, detail=True)

    internal_fragmentation: float = _figure("`1 - requested_bytes_at_peak / block_bytes_at_peak`: lost within blocks")
    external_fragmentation: float = _figure("`1 - block_bytes_at_peak / mapped_bytes_at_peak`: lost between blocks")
    internal_fragmentation_end: float = _figure("the same formulas with the levels `_end`")
    external_fragmentation_end: float = _figure("the same formulas with the levels `_end`")
    blowup: float = _figure("`resident_bytes_peak / requested_bytes_peak`")

    retained_bytes_at_peak: int = _figure(_RETAINED_AT_PEAK, detail=True)
    rounding_bytes_at_peak: int = _figure(_RETAINED_AT_PEAK, detail=True)
    free_in_pools_bytes_at_peak: int = _figure(_RETAINED_AT_PEAK, detail=True)
    free_pools_bytes_at_peak: int = _figure(_RETAINED_AT_PEAK, detail=True)
    free_in_libc_bytes_at_peak: int = _figure(_RETAINED_AT_PEAK, detail=True)
    not_resident_bytes_at_peak: int = _figure(_RETAINED_AT_PEAK, neutral=True, detail=True)

    retained_bytes_end: int = _figure(_RETAINED_END)
    rounding_bytes_end: int = _figure(_RETAINED_END)
    free_in_pools_bytes_end: int = _figure(_RETAINED_END)
    free_pools_bytes_end: int = _figure(_RETAINED_END)
    free_in_libc_bytes_end: int = _figure(_RETAINED_END)
    not_resident_bytes_end: int = _figure(_RETAINED_END, neutral=True)

    arenas_mapped: int = _figure("arenas mapped, and arenas released", rises=True)
    arenas_unmapped: int = _figure("arenas mapped, and arenas released", neutral=True, rises=True)
    arenas_peak: int = _figure("peak number of arenas, and arenas at end", rises=True)
    arenas_live: int = _figure("peak number of arenas, and arenas at end")
    pools_used: int = _figure("at end: pools partly used, full, and free, carved or not", neutral=True)
    pools_full: int = _figure("at end: pools partly used, full, and free, carved or not", neutral=True)
    pools_free: int = _figure("at end: pools partly used, full, and free, carved or not", neutral=True)
    pools_made: int = _figure("initialisations of a pool for another size class than before", rises=True)

    syscalls: dict[str, int] = _figure(
        "system calls by kind: `mmap`, `munmap`, `mremap`, `brk`, `madvise`, `mprotect`; refused calls count too"
    )
    syscall_bytes: dict[str, int] = _figure(
        "bytes by the same kinds; for `brk` the distance by which the end of the heap moved, up or down", detail=True
    )
    page_faults: int = _figure(
        "first touches of pages since they were mapped or released; one for a whole huge page", rises=True
    )
    huge_pages: int = _figure(
        "page faults that were served with a huge page; 0 unless `linux.transparent_huge_pages` or"
        " `linux.reserved_huge_pages` is set",
        neutral=True,
    )
    simulated_ns: SimulatedTime = _figure("by cause: `calls`, `pools`, `syscalls`, `page_faults`", detailed_kinds=True)

    static_bytes: int = _figure(
        "static storage that the workload or trace declares: program, libraries, their data", of_the_trace=True
    )
    stack_bytes: int = _figure(
        "automatic storage: reserved for the stacks of all threads, and the part touched", of_the_trace=True
    )
    stack_resident_bytes: int = _figure(
        "automatic storage: reserved for the stacks of all threads, and the part touched", of_the_trace=True
    )
    process_bytes_peak: int = _figure(
        "`mapped_bytes_peak + static_bytes + stack_bytes`: the three storage durations of C together"
    )

    counters: dict[str, int] = _figure("the models' own counters by the name of their metric: see below")


class _Share(_Result):
    """The name of a process, and its share of the levels `_at_peak` of all processes. The sum of all shares is the
    level."""

    name: str
    at_peak_of_all: dict[str, int]


class ProcessSummary(_Figures, _Share):
    """One of several processes. Its figures equal those of a simulation of its part of the trace alone."""


class Summary(_Figures, _Run):
    """All figures of a run. They depend on trace and configuration only."""

    floor: Bound | None = _figure(_REFERENCES)
    ceiling: Bound | None = _figure(_REFERENCES)
    processes: tuple[ProcessSummary, ...] = _figure(
        "only for a trace of several processes; all other figures are then those of the sums: see below"
    )


_OF_THE_TRACE = _with_trait("of_the_trace")
_KINDS: dict[str, tuple[str, ...]] = {
    "syscalls": SYSCALLS,
    "syscall_bytes": SYSCALLS,
    "simulated_ns": tuple(SimulatedTime.model_fields),
}
_NEVER_DECREASING = _with_trait("rises")


def summarize(result: RunResult, *, floor: RunResult | None = None, ceiling: RunResult | None = None) -> Summary:
    """Returns the Summary of a run. `floor` and `ceiling` are runs of the same trace with reference allocators."""
    config = result.config
    return Summary.model_validate(
        {
            **_figures(result),
            "allocator": config.name,
            "libc_model": config.libc_model,
            "small_model": config.small_model,
            "trace": result.metadata.origin.texts(),
            "floor": _bound(floor) if floor else None,
            "ceiling": _bound(ceiling) if ceiling else None,
            "processes": [
                {
                    **_figures(own),
                    "name": process.name,
                    "at_peak_of_all": {name: int(share[name]) for name in (*BYTE_LEVELS, *SMALL_LEVELS)},
                }
                for process, own, share in zip(result.metadata.processes, result.processes, result.shares, strict=True)
            ],
        }
    )


def _figures(result: RunResult) -> dict[str, Any]:
    """Returns the fields of _Figures by name."""
    end, at_peak, process = result.end, result.at_peak, result.metadata.memory
    return {
        **{name: int(end[name]) for name in _COUNTS},
        **{f"{name}_peak": int(end[f"{name}_peak"]) for name in BYTE_LEVELS},
        **{f"{name}_at_peak": int(at_peak[name]) for name in (*BYTE_LEVELS, *SMALL_LEVELS)},
        **{f"{name}_end": int(end[name]) for name in (*BYTE_LEVELS, *SMALL_LEVELS)},
        "events": result.events,
        "duration_ns": result.duration_ns,
        "peak_time_ns": result.at_peak_time_ns,
        "internal_fragmentation": _unused_share(at_peak.requested_bytes, at_peak.block_bytes),
        "external_fragmentation": _unused_share(at_peak.block_bytes, at_peak.mapped_bytes),
        "internal_fragmentation_end": _unused_share(end.requested_bytes, end.block_bytes),
        "external_fragmentation_end": _unused_share(end.block_bytes, end.mapped_bytes),
        "blowup": float(end.resident_bytes_peak / end.requested_bytes_peak) if end.requested_bytes_peak else 0.0,
        **{f"{name}_at_peak": size_bytes for name, size_bytes in _split_retained(at_peak).items()},
        **{f"{name}_end": size_bytes for name, size_bytes in _split_retained(end).items()},
        "arenas_live": int(end.arenas),
        "syscalls": {kind: int(end[kind]) for kind in SYSCALLS},
        "syscall_bytes": {kind: int(end[f"{kind}_bytes"]) for kind in SYSCALLS},
        "simulated_ns": _simulated_time(result),
        "static_bytes": process.static_bytes,
        "stack_bytes": process.stack_bytes,
        "stack_resident_bytes": process.stack_resident_bytes,
        "process_bytes_peak": int(end.mapped_bytes_peak) + process.static_bytes + process.stack_bytes,
        **{f"{name}_mean": result.mean(name) for name in MEANS},
        "counters": {
            metric: int((at_peak if where == "_at_peak" else end)[f"{field}_peak" if where == "_peak" else field])
            for model in result.config.models
            for metric, field, where, _ in _own_metrics(model)
        },
    }


def _own_metrics(model: str) -> Iterator[tuple[str, str, str, Counter]]:
    """Yields the metrics of a model's own counters: name, field of the tally, suffix of the name, counter."""
    prefix = field_prefix(model)
    for counter in counters_of(model):
        for where in ("_peak", "_at_peak", "_end") if counter.kind is CounterKind.LEVEL else ("",):
            yield f"{prefix}.{counter.name}{where}", f"{prefix}_{counter.name}", where, counter


@cache
def _own_metrics_of_bundled() -> list[str]:
    return [metric for model in bundled_names() for metric, *_ in _own_metrics(model)]


@cache
def _usable_own_metrics() -> dict[str, Counter]:
    """Returns the own counters of all usable models, by the names of their metrics."""
    return {metric: counter for model in usable_models() for metric, _, _, counter in _own_metrics(model)}


def own_counter(metric: str) -> Counter | None:
    """Returns the declaration of a model's own counter; None for other metrics."""
    return _usable_own_metrics().get(metric) if "." in metric else None


def metrics_of(summary: Summary | ProcessSummary) -> dict[str, int | float]:
    """Returns the figures that settings can change, by name: `syscalls` is the total, `syscalls.mmap` one kind."""
    figures: dict[str, int | float] = {}
    for name, value in summary.model_dump(include={*_Figures.model_fields} - _OF_THE_TRACE).items():
        if name == "counters":
            figures |= dict.fromkeys(_own_metrics_of_bundled(), 0) | value
        elif isinstance(value, dict):
            figures |= {name: sum(value.values())} | {f"{name}.{kind}": each for kind, each in value.items()}
        else:
            figures[name] = value
    return figures


def metric_names() -> list[str]:
    """Returns the names of the metrics that every summary has, in the order of `metrics_of`."""
    names: list[str] = []
    for name, field in _Figures.model_fields.items():
        if name == "counters":
            names += _own_metrics_of_bundled()
        elif name not in _OF_THE_TRACE:
            kinds = _KINDS.get(name, ())
            names += [name, *(f"{name}.{kind}" for kind in kinds)]
            assert kinds or field.annotation in (int, float)
    return names


def known_metrics() -> list[str]:
    """Returns the names of all metrics that a summary can have, and that rules and objectives may name.

    A counter of a model that is not in the stack counts as 0.
    """
    return list(dict.fromkeys([*metric_names(), *_usable_own_metrics()]))


def check_metric(name: str) -> str:
    """Returns the name; raises a ReplayError if it is not a metric."""
    if name not in known_metrics():
        raise ReplayError(f"unknown metric {name!r}; {nearest(name, known_metrics())} (docs/metrics.md lists them)")
    return name


def is_neutral(metric: str) -> bool:
    """Returns whether a higher value of a metric is neither better nor worse."""
    own = own_counter(metric)
    return metric in _with_trait("neutral") or (own is not None and not own.more_is_worse)


def is_detail(metric: str) -> bool:
    """Returns whether a baseline stores a metric only if a rule names it."""
    name, _, kind = metric.partition(".")
    if own_counter(metric):
        return metric.endswith("_at_peak")
    return name in _with_trait("detail") or (bool(kind) and name in _with_trait("detailed_kinds"))


def so_far(tally: np.record, name: str) -> int | None:
    """Returns the value of a metric so far in a run, if it never decreases; else None."""
    if name in _NEVER_DECREASING:
        return int(tally[name])
    if name == "syscalls":
        return sum(int(tally[kind]) for kind in SYSCALLS)
    kind = name.removeprefix("syscalls.")
    return int(tally[kind]) if kind in SYSCALLS and kind != name else None


def _unused_share(used: int, whole: int) -> float:
    """Returns the share of `whole` that is not used; 0 if `whole` is 0."""
    return float(1 - used / whole) if whole else 0.0


def _split_retained(tally: np.record) -> dict[str, int]:
    """Returns retained bytes and their parts by layer. Retained bytes are the sum of the parts, minus
    not_resident_bytes.

    If a model of the small role does not count pools or arenas, their parts are 0.
    """
    requested, block, small_block, mapped, resident = (
        int(tally[name])
        for name in ("requested_bytes", "block_bytes", "small_block_bytes", "mapped_bytes", "resident_bytes")
    )
    pool = max(int(tally.pool_bytes), small_block)
    arena = max(int(tally.arena_bytes), pool)
    return {
        "retained_bytes": resident - requested,
        "rounding_bytes": block - requested,
        "free_in_pools_bytes": pool - small_block,
        "free_pools_bytes": arena - pool,
        "free_in_libc_bytes": mapped - arena - (block - small_block),
        "not_resident_bytes": mapped - resident,
    }


def requested_peak_ns(result: RunResult) -> tuple[int, int]:
    """Returns the times of the last sample before the peak of requested bytes, and of the first one after it."""
    row = int(np.argmax(result.samples["requested_bytes_peak"] == result.end.requested_bytes_peak))
    return int(result.sample_times_ns[row - 1]) if row else 0, int(result.sample_times_ns[row])


def _simulated_time(result: RunResult) -> SimulatedTime:
    costs, end = result.config.costs, result.end
    return SimulatedTime(
        calls=round(costs.call * int(end.mallocs + end.callocs + end.reallocs + end.memaligns + end.frees)),
        pools=round(costs.pool * int(end.pools_made)),
        syscalls=round(costs.syscall * sum(int(end[kind]) for kind in SYSCALLS)),
        page_faults=round(costs.page_fault * int(end.page_faults)),
    )


def _bound(result: RunResult) -> Bound:
    end = result.end
    return Bound(
        allocator=result.config.name,
        requested_bytes_peak=int(end.requested_bytes_peak),
        mapped_bytes_peak=int(end.mapped_bytes_peak),
        mapped_bytes_end=int(end.mapped_bytes),
        resident_bytes_peak=int(end.resident_bytes_peak),
        resident_bytes_end=int(end.resident_bytes),
    )
