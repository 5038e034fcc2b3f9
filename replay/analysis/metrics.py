"""What a run cost, out of what it counted: a RunResult goes in, a Summary and polars frames come out. Pure.

`docs/metrics.md` explains every name; a test holds it to that. Sizes are bytes, times nanoseconds of the trace.

    level      how much there is of something now: bytes asked for, mapped, resident …
    _peak      the highest that a level ever was, each at its own moment; requested and block bytes between events, the
               others within events too
    _at_peak   all levels at one moment: after the event that took resident memory to its highest
    _end       after the last event
"""

from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from replay.allocators import ARENA_VIEW, CLASS_VIEW, LEVELS, OWN, SYSCALLS, TALLY
from replay.simulation.loop import CLASS, CLASSES, EXACT_CLASSES, ROWS_A_DOMAIN, ROWS_A_ROLE, class_limit
from replay.simulation.result import RunResult
from replay.support.errors import ReplayError
from replay.support.names import nearest
from replay.trace import Domain

BYTE_LEVELS = tuple(name for name in LEVELS if name.endswith("_bytes"))
SMALL_LEVELS = ("small_requested_bytes", "small_block_bytes")
ROLES = ("libc", "small")
COUNTERS = tuple(name for name in TALLY.names or () if name == "thread" or name not in OWN)
"""What a sample tells: all fields of TALLY but those that only the simulator needs."""
_COUNTS = (
    "mallocs", "callocs", "reallocs", "frees", "page_faults", "huge_pages",
    "arenas_mapped", "arenas_unmapped", "arenas_peak", "pools_used", "pools_full", "pools_free", "pools_made",
)  # fmt: skip
"""What a Summary takes from the last sample under the same name."""


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Bound(_Result):
    """What a reference allocator takes for the same trace."""

    allocator: str
    requested_bytes_peak: int
    mapped_bytes_peak: int
    mapped_bytes_end: int
    resident_bytes_peak: int
    resident_bytes_end: int


class SimulatedTime(_Result):
    """Nanoseconds by cause, from the counts and the configuration's `costs`: an estimate."""

    calls: int
    pools: int
    syscalls: int
    page_faults: int


class _Run(_Result):
    """Which run it was."""

    allocator: str
    libc_model: str
    small_model: str | None
    trace: dict[str, str]


class _Figures(_Result):
    """What one process came to, or all together."""

    events: int
    duration_ns: int
    mallocs: int
    callocs: int
    reallocs: int
    frees: int

    requested_bytes_peak: int
    block_bytes_peak: int
    pool_bytes_peak: int
    arena_bytes_peak: int
    heap_bytes_peak: int
    mapped_bytes_peak: int
    resident_bytes_peak: int

    peak_time_ns: int
    requested_bytes_at_peak: int
    block_bytes_at_peak: int
    pool_bytes_at_peak: int
    arena_bytes_at_peak: int
    heap_bytes_at_peak: int
    mapped_bytes_at_peak: int
    resident_bytes_at_peak: int
    small_requested_bytes_at_peak: int
    small_block_bytes_at_peak: int

    requested_bytes_end: int
    block_bytes_end: int
    pool_bytes_end: int
    arena_bytes_end: int
    heap_bytes_end: int
    mapped_bytes_end: int
    resident_bytes_end: int
    small_requested_bytes_end: int
    small_block_bytes_end: int

    internal_fragmentation: float
    external_fragmentation: float
    internal_fragmentation_end: float
    external_fragmentation_end: float
    blowup: float

    arenas_mapped: int
    arenas_unmapped: int
    arenas_peak: int
    arenas_live: int
    pools_used: int
    pools_full: int
    pools_free: int
    pools_made: int

    syscalls: dict[str, int]
    syscall_bytes: dict[str, int]
    page_faults: int
    huge_pages: int
    simulated_ns: SimulatedTime

    static_bytes: int
    stack_bytes: int
    stack_resident_bytes: int
    process_bytes_peak: int


class _Share(_Result):
    """Which process it was, and what it had of the levels `_at_peak` of all: there, they add up to those."""

    name: str
    at_peak_of_all: dict[str, int]


class ProcessSummary(_Figures, _Share):
    """One process of several: the figures that its part of the trace gives when it is played by itself."""


class Summary(_Figures, _Run):
    """One run in numbers. Two runs of the same trace and configuration give the same one."""

    floor: Bound | None
    ceiling: Bound | None
    processes: tuple[ProcessSummary, ...]
    """Of a trace of several; all else is then of the sums."""


_OF_THE_TRACE = {"events", "duration_ns", "peak_time_ns", "static_bytes", "stack_bytes", "stack_resident_bytes"}
"""Figures that no setting can change."""
_KINDS: dict[str, tuple[str, ...]] = {
    "syscalls": SYSCALLS,
    "syscall_bytes": SYSCALLS,
    "simulated_ns": tuple(SimulatedTime.model_fields),
}
_RISING = {
    *(f"{name}_peak" for name in BYTE_LEVELS),
    "arenas_mapped", "arenas_unmapped", "arenas_peak", "pools_made", "page_faults",
}  # fmt: skip
"""Fields of TALLY that never fall."""


def summarize(result: RunResult, *, floor: RunResult | None = None, ceiling: RunResult | None = None) -> Summary:
    """The run in numbers; `floor` and `ceiling` are runs of the same trace through reference allocators."""
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
                    **_figures(of_it),
                    "name": process.name,
                    "at_peak_of_all": {name: int(share[name]) for name in (*BYTE_LEVELS, *SMALL_LEVELS)},
                }
                for process, of_it, share in zip(
                    result.metadata.processes, result.processes, result.shares, strict=True
                )
            ],
        }
    )


def _figures(result: RunResult) -> dict[str, Any]:
    """The fields of _Figures."""
    end, at_peak, process = result.end, result.at_peak, result.metadata.memory
    return {
        **{name: int(end[name]) for name in _COUNTS},
        **{f"{name}_peak": int(end[f"{name}_peak"]) for name in BYTE_LEVELS},
        **{f"{name}_at_peak": int(at_peak[name]) for name in (*BYTE_LEVELS, *SMALL_LEVELS)},
        **{f"{name}_end": int(end[name]) for name in (*BYTE_LEVELS, *SMALL_LEVELS)},
        "events": result.events,
        "duration_ns": result.duration_ns,
        "peak_time_ns": result.at_peak_time_ns,
        "internal_fragmentation": _lost(at_peak.requested_bytes, at_peak.block_bytes),
        "external_fragmentation": _lost(at_peak.block_bytes, at_peak.mapped_bytes),
        "internal_fragmentation_end": _lost(end.requested_bytes, end.block_bytes),
        "external_fragmentation_end": _lost(end.block_bytes, end.mapped_bytes),
        "blowup": float(end.resident_bytes_peak / end.requested_bytes_peak) if end.requested_bytes_peak else 0.0,
        "arenas_live": int(end.arenas),
        "syscalls": {kind: int(end[kind]) for kind in SYSCALLS},
        "syscall_bytes": {kind: int(end[f"{kind}_bytes"]) for kind in SYSCALLS},
        "simulated_ns": _simulate_time(result),
        "static_bytes": process.static_bytes,
        "stack_bytes": process.stack_bytes,
        "stack_resident_bytes": process.stack_resident_bytes,
        "process_bytes_peak": int(end.mapped_bytes_peak) + process.static_bytes + process.stack_bytes,
    }


def metrics_of(summary: Summary | ProcessSummary) -> dict[str, int | float]:
    """The figures of a Summary that a setting can change, by name: `syscalls` in all, `syscalls.mmap` by kind."""
    figures: dict[str, int | float] = {}
    for name, value in summary.model_dump(include={*_Figures.model_fields} - _OF_THE_TRACE).items():
        if isinstance(value, dict):
            figures |= {name: sum(value.values())} | {f"{name}.{kind}": each for kind, each in value.items()}
        else:
            figures[name] = value
    return figures


def metric_names() -> list[str]:
    """The names that `metrics_of` gives, in its order."""
    names = []
    for name, field in _Figures.model_fields.items():
        if name not in _OF_THE_TRACE:
            kinds = _KINDS.get(name, ())
            names += [name, *(f"{name}.{kind}" for kind in kinds)]
            assert kinds or field.annotation in (int, float)
    return names


def check_metric(name: str) -> str:
    """The name, if there is such a metric."""
    if name not in metric_names():
        raise ReplayError(f"there is no metric {name!r}; {nearest(name, metric_names())} (docs/metrics.md lists them)")
    return name


def so_far(tally: np.record, name: str) -> int | None:
    """What a metric has come to in the middle of a run, if it can only rise from there."""
    if name in _RISING:
        return int(tally[name])
    if name == "syscalls":
        return sum(int(tally[kind]) for kind in SYSCALLS)
    kind = name.removeprefix("syscalls.")
    return int(tally[kind]) if kind in SYSCALLS and kind != name else None


def _lost(used: int, whole: int) -> float:
    """The part of `whole` that is not used; 0 of nothing."""
    return float(1 - used / whole) if whole else 0.0


def _simulate_time(result: RunResult) -> SimulatedTime:
    costs, end = result.config.costs, result.end
    return SimulatedTime(
        calls=round(costs.call * int(end.mallocs + end.callocs + end.reallocs + end.frees)),
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


def timeline(result: RunResult) -> pl.DataFrame:
    """A row a sample: `time_ns`, all levels and counters so far, and fragmentation at that moment."""
    frame = pl.DataFrame({"time_ns": result.sample_times_ns, **{name: result.samples[name] for name in COUNTERS}})
    return frame.with_columns(
        internal_fragmentation=_lost_column("requested_bytes", "block_bytes"),
        external_fragmentation=_lost_column("block_bytes", "mapped_bytes"),
    )


def phases(result: RunResult) -> pl.DataFrame:
    """A row a mark: `phase`, and as in the timeline what was there when it began."""
    marks = result.phases
    return pl.DataFrame(
        {
            "phase": pl.Series([name for name, _, _ in marks], dtype=pl.String),
            "time_ns": np.array([time_ns for _, time_ns, _ in marks], np.int64),
            **{name: np.array([tally[name] for _, _, tally in marks], np.int64) for name in COUNTERS},
        }
    )


def _lost_column(used: str, whole: str) -> pl.Expr:
    return pl.when(pl.col(whole) > 0).then(1 - pl.col(used) / pl.col(whole)).otherwise(0.0)


def size_classes(result: RunResult) -> pl.DataFrame:
    """A row for each domain, role and class of block sizes that was ever asked for.

    `block_size` is the largest block of the class. Up to 1,024 bytes it is the only one, so that the waste is known;
    above, classes are powers of two and `block_bytes` and `waste_bytes` are null. Of a model that rounds nothing up
    they are what was asked for, and 0. A realloc counts as a block that goes and one that comes.
    """
    rows = np.flatnonzero(result.classes["blocks"])
    counted = result.classes[rows]
    config = result.config
    stack = {"libc": config.libc_model, "small": config.small_model}
    unrounded = [role for role, model in stack.items() if model == "ideal"]
    if result.end.block_bytes_peak == result.end.requested_bytes_peak:  # models of others that round nothing up
        unrounded = list(stack)
    limits = np.array([class_limit(index) for index in range(CLASSES)], np.int64)
    frame = pl.DataFrame(
        {
            "domain": pl.Series([Domain(row // ROWS_A_DOMAIN).name.lower() for row in rows.tolist()], dtype=pl.String),
            "role": pl.Series([ROLES[row // ROWS_A_ROLE % 2] for row in rows.tolist()], dtype=pl.String),
            "block_size": limits[rows % ROWS_A_ROLE],
            **{name: counted[name] for name in CLASS.names or ()},
        }
    )
    for live in ("", "live_"):
        requested, blocks = pl.col(f"{live}requested_bytes"), pl.col(f"{live}blocks") * pl.col("block_size")
        blocks = pl.when(pl.col("role").is_in(unrounded)).then(requested).otherwise(blocks)
        known = pl.when(pl.col("block_size") <= class_limit(EXACT_CLASSES - 1))
        frame = frame.with_columns(known.then(blocks).alias(f"{live}block_bytes"))
        frame = frame.with_columns((pl.col(f"{live}block_bytes") - requested).alias(f"{live}waste_bytes"))
        waste = pl.col(f"{live}waste_bytes")
        share = pl.when(waste.sum() > 0).then(waste / waste.sum()).otherwise(waste * 0.0)
        frame = frame.with_columns(share.alias(f"{live}waste_share"))
    return frame


def pools(result: RunResult) -> pl.DataFrame:
    """A row for each of pymalloc's size classes that has a pool at the end."""
    classes = result.observed.get("classes", np.zeros(0, CLASS_VIEW))
    frame = _to_frame(classes)
    if result.processes:
        frame = frame.group_by("block_size", maintain_order=True).agg(pl.all().sum())
    return frame.filter(pl.col("pools_used") + pl.col("pools_full") > 0)


def arenas(result: RunResult) -> pl.DataFrame:
    """A row for each arena that is mapped at the end, by address; `occupancy` is the part of it in live blocks.

    Of several processes one after the other, with its name as `process`: each has addresses of its own.
    """
    frame = _to_frame(result.observed.get("arenas", np.zeros(0, ARENA_VIEW)))
    arena_bytes = int(result.end.arena_bytes) // max(int(result.end.arenas), 1)
    frame = frame.with_columns(occupancy=pl.col("block_bytes") / max(arena_bytes, 1))
    if not result.processes:
        return frame
    arenas_of = [len(of_it.observed.get("arenas", ())) for of_it in result.processes]
    names = np.repeat([process.name for process in result.metadata.processes], arenas_of)
    return frame.with_columns(pl.Series("process", names, dtype=pl.String))


def processes(result: RunResult) -> pl.DataFrame:
    """A row a process, if there are several: its `name` and metrics, and as `…_at_peak_of_all` its part of those."""
    rows = [
        {
            "name": each.name,
            "events": each.events,
            **metrics_of(each),
            **{f"{level}_at_peak_of_all": size_bytes for level, size_bytes in each.at_peak_of_all.items()},
        }
        for each in summarize(result).processes
    ]
    return pl.DataFrame(rows)


def _to_frame(rows: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()})
