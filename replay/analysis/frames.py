"""polars frames of a RunResult: its samples, phases, size classes, pools, arenas and processes. Pure functions.

`docs/metrics.md` describes every column; a test requires that.
"""

import numpy as np
import polars as pl

from replay.allocators import ARENA_VIEW, CLASS_VIEW, constants_of, shown_fields
from replay.analysis.metrics import ROLES, metrics_of, summarize
from replay.simulation.loop import CLASS, CLASSES, EXACT_CLASSES, ROWS_A_DOMAIN, ROWS_A_ROLE, class_limit
from replay.simulation.result import MEANS, RunResult
from replay.trace import Domain, Op


def timeline(result: RunResult) -> pl.DataFrame:
    """Returns a row for each sample: `time_ns`, levels at that moment, counters and means so far, fragmentation."""
    samples = {name: result.samples[name] for name in _sample_fields(result)}
    means = {f"{name}_mean": _mean_so_far(result, name) for name in MEANS}
    return pl.DataFrame({"time_ns": result.sample_times_ns, **samples, **means}).with_columns(
        internal_fragmentation=_unused_share_column("requested_bytes", "block_bytes"),
        external_fragmentation=_unused_share_column("block_bytes", "mapped_bytes"),
    )


def collections(result: RunResult) -> pl.DataFrame:
    """Returns a row for each garbage collection: when it started, its generation, how long it took, what it visited,
    found and freed. Generation, visited and found objects are null where they are unknown."""
    looks = result.collections
    numbers = np.cumsum(looks["op"] == Op.GC_START) - 1
    starts = np.flatnonzero(looks["op"] == Op.GC_START)
    starts = starts[np.append(looks["op"], 0)[starts + 1] == Op.GC_END]
    before, after = looks[starts], looks[starts + 1]
    origin, visits = result.metadata.origin, result.metadata.visits
    is_known = bool(result.metadata.types) or not origin.cpython_version
    frame = pl.DataFrame(
        {
            "time_ns": before["time_ns"],
            "thread": before["thread"],
            "generation": before["value"],
            "duration_ns": after["time_ns"] - before["time_ns"],
            "visited_objects": pl.Series(
                np.array(visits)[numbers[starts]] if visits else [None] * len(starts), dtype=pl.Int64
            ),
            "found_objects": after["value"],
            "freed_blocks": after["frees"] - before["frees"],
            "freed_bytes": before["requested_bytes"] - after["requested_bytes"],
        }
    )
    known = pl.col("generation", "found_objects")
    return frame if is_known else frame.with_columns(pl.when(False).then(known).name.keep())


def visits_label(result: RunResult) -> str | None:
    """Returns whether the visited objects of collections are exact or an estimate; None if they are unknown."""
    if not result.metadata.visits:
        return None
    return "estimate" if result.metadata.types else "exact"


def collections_by_generation(result: RunResult) -> pl.DataFrame:
    """Returns the number of collections of each generation, and the sums of their columns."""
    sums = ("duration_ns", "visited_objects", "found_objects", "freed_blocks", "freed_bytes")
    grouped = collections(result).group_by("generation")
    found = grouped.agg(pl.len().cast(pl.Int64).alias("collections"), pl.sum(*sums))
    known = pl.col("visited_objects").is_not_null() if result.metadata.visits else pl.lit(False)
    return found.with_columns(pl.when(known).then("visited_objects").alias("visited_objects")).sort("generation")


def _sample_fields(result: RunResult) -> list[str]:
    """Returns the names of the fields of a sample that are levels or counters."""
    return shown_fields(result.samples.dtype)


def _mean_so_far(result: RunResult, level: str) -> np.ndarray:
    """Returns the mean of a level from the first event to each sample."""
    low, high = result.changes(level)
    # The low word is used as a signed integer: a small negative sum would be lost in the rounding of 2^64.
    changes = (high + (low < 0)).astype(np.float64) * 2.0**64 + low
    times_ns = result.sample_times_ns.astype(np.float64)
    mean: np.ndarray = result.samples[level] - np.divide(
        changes, times_ns, out=np.zeros_like(changes), where=times_ns > 0
    )
    return mean


def phases(result: RunResult) -> pl.DataFrame:
    """Returns a row for each mark: `phase`, and levels and counters at its start."""
    marks = result.phases
    return pl.DataFrame(
        {
            "phase": pl.Series([name for name, _, _ in marks], dtype=pl.String),
            "time_ns": np.array([time_ns for _, time_ns, _ in marks], np.int64),
            **{name: np.array([tally[name] for _, _, tally in marks], np.int64) for name in _sample_fields(result)},
        }
    )


def _unused_share_column(used: str, whole: str) -> pl.Expr:
    return pl.when(pl.col(whole) > 0).then(1 - pl.col(used) / pl.col(whole)).otherwise(0.0)


def size_classes(result: RunResult) -> pl.DataFrame:
    """Returns a row for each domain, role and class of block sizes with allocations.

    `block_size` is the largest size in the class. Up to 1,024 bytes, a class has one size, so the waste is known.
    Above, classes end at powers of two, and `block_bytes` and `waste_bytes` are null. For a model that does not round
    sizes up, `block_bytes` is the requested bytes, and `waste_bytes` is 0. A realloc counts as a free and an
    allocation.
    """
    rows = np.flatnonzero(result.classes["blocks"])
    counted = result.classes[rows]
    config = result.config
    stack = {"libc": config.libc_model, "small": config.small_model}
    unrounded = [role for role, model in stack.items() if model and not constants_of(model).ROUNDS_SIZES]
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
    """Returns a row for each size class of pymalloc that has a pool at the end."""
    classes = result.observed.get("classes", np.zeros(0, CLASS_VIEW))
    frame = _to_frame(classes)
    if result.processes:
        frame = frame.group_by("block_size", maintain_order=True).agg(pl.all().sum())
    return frame.filter(pl.col("pools_used") + pl.col("pools_full") > 0)


def arenas(result: RunResult) -> pl.DataFrame:
    """Returns a row for each arena that is mapped at the end, by address. `occupancy` is the share of it in live
    blocks.

    Rows of several processes are grouped by process, with its name as `process`; each process has its own addresses.
    """
    frame = _to_frame(result.observed.get("arenas", np.zeros(0, ARENA_VIEW)))
    arena_bytes = int(result.end.arena_bytes) // max(int(result.end.arenas), 1)
    frame = frame.with_columns(occupancy=pl.col("block_bytes") / max(arena_bytes, 1))
    if not result.processes:
        return frame
    arenas_of = [len(each.observed.get("arenas", ())) for each in result.processes]
    names = np.repeat([process.name for process in result.metadata.processes], arenas_of)
    return frame.with_columns(pl.Series("process", names, dtype=pl.String))


def processes(result: RunResult) -> pl.DataFrame:
    """Returns a row for each of several processes: its `name`, its metrics, and its share of each level at the peak of
    all processes as `…_at_peak_of_all`."""
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
