"""Explains why a trace takes more memory than another: compares phases, domains, size classes and call sites.

Two sets of blocks are compared: the live blocks at the peak of resident memory of each trace, and all requests, because
system calls depend on them. The last malloc, calloc or realloc of a block decides its phase, call site and size. Call
sites are compared by function and file name, because lines change with every edit and folders with every machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from replay.config import StackConfig
from replay.gates.requests import LastRequests
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.support.units import format_size
from replay.trace import NO_SITE, Domain, Op, Site, Trace
from replay.trace.block_ops import requests
from replay.trace.processes import processes_of

DIMENSIONS = ("phase", "domain", "size_class", "site")
START = "start"
"""The phase before the first mark."""
UNKNOWN = "unknown"
SHOWN = 4
NEGLIGIBLE = 20
"""Groups that are smaller than the largest by more than this factor are not reported."""


@dataclass(frozen=True)
class Change:
    """The change of a group of blocks between two traces."""

    dimension: str
    group: str
    blocks: int
    bytes: int
    share: float
    """Share of the total difference in bytes; exceeds 1 if other groups became smaller."""


@dataclass(frozen=True)
class Cause:
    """The differences between two traces, the largest first in each dimension."""

    at_peak: tuple[Change, ...]
    """Changes of the live blocks at the peak of resident memory."""
    requested: tuple[Change, ...]
    """Changes of all requests."""
    moved: tuple[str, ...]
    """Sentences about blocks that changed their size class."""


def explain(before: Trace, now: Trace, stack: StackConfig) -> Cause:
    """Compares two traces, both simulated with `stack`."""
    comparable = bool(before.metadata.sites) and bool(now.metadata.sites)
    old_live, old_all = _profile(before, stack, comparable)
    new_live, new_all = _profile(now, stack, comparable)
    places = _places(old_all) | _places(new_all)
    return Cause(
        tuple(_changes(old_live, new_live, places)),
        tuple(_changes(old_all, new_all, places)),
        tuple(_moved(old_all, new_all, places)),
    )


def live_at_peak(trace: Trace, stack: StackConfig) -> tuple[Change, ...]:
    """Returns the largest groups of live blocks at the peak of resident memory, in each dimension."""
    live, _ = _profile(trace, stack, with_sites=True)
    return tuple(_changes(live.clear(), live, _places(live)))


def _profile(trace: Trace, stack: StackConfig, with_sites: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns blocks and bytes by phase, domain, size class and site: those live at the peak, and all requests."""
    peak_row = int(run(trace, stack, sample_every_ns=NO_SAMPLES_NS).at_peak.row)
    requests, of_live_blocks = _requests(trace, peak_row + 1)
    live = requests[of_live_blocks]
    return _grouped(live, trace, with_sites), _grouped(requests, trace, with_sites)


def _requests(trace: Trace, rows_live: int) -> tuple[pl.DataFrame, np.ndarray]:
    """Returns a row for each malloc, calloc and realloc, and the rows of this frame that are the last request of a
    block that is live after `rows_live` rows of the trace."""
    parts: list[pl.DataFrame] = []
    last = LastRequests()
    row = phase = 0
    processes = processes_of(trace)
    current = np.zeros(max(1, len(processes.table)), np.int64)
    for events in trace.batches():
        marks = np.flatnonzero(events.op == Op.MARK)
        phases = _phases(marks, phase, processes.owners(events.thread), current)
        is_request = requests(events.op)
        rows = np.flatnonzero(is_request)
        site = events.site if events.site is not None else np.full(events.rows, NO_SITE, np.uint32)
        parts.append(
            pl.DataFrame(
                {
                    "phase_number": phases[rows],
                    "domain_number": events.domain[rows],
                    "size": events.size[rows],
                    "site_number": site[rows].astype(np.int64),
                }
            )
        )
        last.follow(events, is_request, rows_live - row)
        row, phase = row + events.rows, phase + marks.size
    return pl.concat(parts), last.of_live_blocks()


def _phases(marks: np.ndarray, before: int, owner: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Returns for each row the number of the latest mark of its process; 0 before the first mark.

    `before` is the number of marks in earlier batches; numbers count from 1. `current` has the latest mark of each
    process and is updated in place.
    """
    phases = np.empty(owner.shape[0], np.int64)
    for process in range(current.shape[0]):
        rows, mine = np.flatnonzero(owner == process), np.flatnonzero(owner[marks] == process)
        numbers = np.append(current[process], before + 1 + mine)
        phases[rows] = numbers[np.searchsorted(marks[mine], rows, side="right")]
        current[process] = numbers[-1]
    return phases


def _grouped(requests: pl.DataFrame, trace: Trace, with_sites: bool) -> pl.DataFrame:
    """Returns the counts and bytes of each group, with names instead of numbers; `place` is the site with its line."""
    grouped = (
        requests.with_columns(size_class=pl.Series(size_class(requests["size"].to_numpy())))
        .group_by("phase_number", "domain_number", "size_class", "site_number")
        .agg(pl.len().cast(pl.Int64).alias("blocks"), pl.col("size").sum().alias("bytes"))
    )
    phases = [START, *_phase_names(trace)]
    known = dict(enumerate(trace.metadata.sites)) if with_sites else {}
    sites = {number: site_key(site) for number, site in known.items()}
    places = {number: site_place(site) for number, site in known.items()}
    return grouped.select(
        pl.col("phase_number").map_elements(lambda number: phases[number], return_dtype=pl.String).alias("phase"),
        pl.col("domain_number")
        .map_elements(lambda number: Domain(number).name.lower(), return_dtype=pl.String)
        .alias("domain"),
        pl.col("size_class").map_elements(format_size, return_dtype=pl.String).alias("size_class"),
        pl.col("site_number")
        .map_elements(lambda number: sites.get(number, UNKNOWN), return_dtype=pl.String)
        .alias("site"),
        pl.col("site_number")
        .map_elements(lambda number: places.get(number, UNKNOWN), return_dtype=pl.String)
        .alias("place"),
        "blocks",
        "bytes",
    )


def _places(requests: pl.DataFrame) -> dict[str, str]:
    """Returns for each site the place with the most bytes."""
    summed = requests.group_by("site", "place").agg(pl.col("bytes").sum()).sort("bytes", "place")
    return dict(summed.select("site", "place").iter_rows())


def site_key(site: Site) -> str:
    """Returns the key that identifies a call site in several traces."""
    return f"{site.function} ({Path(site.file).name})"


def site_place(site: Site) -> str:
    """Returns the site with its line. The path is relative to the current folder if the file is inside it."""
    path, current = Path(site.file), Path.cwd()
    return f"{site.function} ({path.relative_to(current) if path.is_relative_to(current) else path}:{site.line})"


def _phase_names(trace: Trace) -> list[str]:
    names = []
    for events in trace.batches():
        names += [trace.metadata.phases[number] for number in events.size[events.op == Op.MARK].tolist()]
    return names


def size_class(sizes: np.ndarray) -> np.ndarray:
    """Returns the largest size of each request's class: multiples of 16 up to 1,024 bytes, powers of two above."""
    values = np.maximum(sizes.astype(np.int64), 1)
    small = -(-values // 16) * 16
    large = 1 << np.ceil(np.log2(np.maximum(values, 2))).astype(np.int64)
    return np.where(values <= 1024, small, large)


def _changes(old: pl.DataFrame, new: pl.DataFrame, places: dict[str, str]) -> Iterator[Change]:
    total = int(new["bytes"].sum()) - int(old["bytes"].sum())
    for dimension in DIMENSIONS:
        changed = _difference(old, new, [dimension]).filter((pl.col("blocks") != 0) | (pl.col("bytes") != 0))
        if changed[dimension].to_list() == [UNKNOWN]:
            continue
        changed = changed.filter(pl.col("bytes").abs() * NEGLIGIBLE >= pl.col("bytes").abs().max())
        for group, blocks, size in changed.sort(pl.col("bytes").abs(), descending=True).head(SHOWN).iter_rows():
            name = places.get(group, group) if dimension == "site" else group
            yield Change(dimension, name, blocks, size, size / total if total else 0.0)


def _difference(old: pl.DataFrame, new: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    signed = pl.concat([new, old.with_columns(-pl.col("blocks"), -pl.col("bytes"))])
    return signed.group_by(keys).agg(pl.col("blocks").sum(), pl.col("bytes").sum()).sort(keys)


def _moved(old: pl.DataFrame, new: pl.DataFrame, places: dict[str, str]) -> list[str]:
    """Returns sentences about blocks of the same phase, domain and site that changed their size class.

    One class lost about as many blocks as another one gained.
    """
    changed = _difference(old, new, ["phase", "domain", "site", "size_class"]).filter(pl.col("blocks") != 0)
    moves: list[tuple[int, str]] = []
    for (phase, domain, site), group in changed.group_by("phase", "domain", "site", maintain_order=True):
        shrunk = group.filter(pl.col("blocks") < 0).sort("blocks")
        grown = group.filter(pl.col("blocks") > 0).sort("blocks", descending=True)
        if not shrunk.height or not grown.height:
            continue
        lost, gained = -int(shrunk["blocks"][0]), int(grown["blocks"][0])
        if 10 * abs(lost - gained) <= max(lost, gained):
            where = f" at {places[site]}" if site != UNKNOWN else ""
            sentence = (
                f"{min(lost, gained):,} blocks of domain {domain} in phase {phase}{where} "
                f"have size class {grown['size_class'][0]} instead of {shrunk['size_class'][0]}"
            )
            moves.append((int(grown["bytes"][0]), sentence))
    moves.sort(reverse=True)
    return [sentence for size, sentence in moves[:SHOWN] if size * NEGLIGIBLE >= moves[0][0]]
