"""Everything that a report about one run shows, from a handful of simulations of the same trace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from replay.analysis.block_groups import site_name
from replay.analysis.heap_history import NOTHING, HeapHistory, HeapMap, RegionKind
from replay.analysis.lifetimes import block_lifetimes
from replay.analysis.metrics import Summary, summarize
from replay.analysis.pin_report import PinReport, report_of
from replay.analysis.remedies import Remedy, try_remedies
from replay.analysis.retention import Retained
from replay.config import StackConfig, load_config
from replay.simulation.result import RunResult
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.simulation.side_by_side import run_side_by_side
from replay.simulation.snapshots import END, PEAK, Snapshot
from replay.support.errors import ReplayError
from replay.trace import TEARDOWN_MARK, Trace
from replay.trace.typed import types_of_allocations

MOMENTS = 200
"""Moments of the heap map by default."""
_BLOCKS_READ = 20_000_000
"""Call sites and ages of blocks are read from snapshots until about so many blocks were read."""
_CELLS_READ = 12_000_000
"""The default number of moments is lower in heaps with so many cells that more were read."""
_MOMENTS_MIN = 24
_TYPED_ROWS_MAX = 1 << 27
"""In longer traces, cells have no types: the table of types by row would take too much memory."""
_PHASES_MAX = 200
"""The starts of phases are moments of the heap map, too, unless there are more of them."""
_CELL_BYTES = 4096


@dataclass(frozen=True)
class ReportData:
    """The results of the simulations."""

    result: RunResult
    summary: Summary
    floor: RunResult
    """The run with `ideal`, with samples at the same times."""
    heap: HeapMap
    sites: list[str]
    """Names of call sites, by their code in the heap map."""
    site_codes: np.ndarray
    """The code of each call site of the trace, and of unknown ones."""
    types: list[str]
    """Names of Python types, by their code in the heap map."""
    pins: PinReport | None
    """At the end; None for a trace of several processes."""
    lifetimes: pl.DataFrame
    remedies: list[Remedy]


def gather(
    trace: Trace,
    stack: StackConfig,
    *,
    chosen: str,
    overrides: Sequence[str] = (),
    env: Sequence[str] = (),
    moments: int | None = None,
    trim_every_ns: int | None = None,
    with_remedies: bool = True,
    progress: Callable[[int], None] = lambda steps: None,
) -> ReportData:
    """Simulates a trace, and returns what a report shows.

    `chosen`, `overrides` and `env` are what `stack` was loaded from; remedies change these. `progress` is called with
    the number of steps done.
    """
    progress(0)
    result, (floor, ceiling) = run_side_by_side(
        trace,
        lambda reading, step: run(reading, stack, trim_every_ns=trim_every_ns, progress=step),
        [
            lambda reading, step: run(reading, load_config("ideal"), progress=step, requested_mean=False),
            lambda reading, step: run(
                reading, load_config("bump"), sample_every_ns=NO_SAMPLES_NS, progress=step, requested_mean=False
            ),
        ],
    )
    progress(1)
    if isinstance(floor, ReplayError):
        raise floor
    # `bump` never frees, so it may run out of memory.
    summary = summarize(result, floor=floor, ceiling=None if isinstance(ceiling, ReplayError) else ceiling)
    progress(2)
    names, codes = _site_codes(trace, result)
    types, type_codes = _type_codes(trace, result)
    heap, retained = _heap_map(trace, stack, result, codes, type_codes, moments, trim_every_ns)
    progress(3)
    pins = report_of(trace, retained, result) if retained else None
    lifetimes = block_lifetimes(trace)
    heaps = sum(region.kind is RegionKind.HEAP for region in heap.regions)
    remedies = []
    if with_remedies and result.events:
        progress(4)
        remedies = try_remedies(
            trace, chosen, overrides, env,
            has_several_heaps=heaps > 1, duration_ns=result.duration_ns, trim_every_ns=trim_every_ns,
        )  # fmt: skip
    sites, ranks = _by_rank(heap, "site", names, _listed_sites(heap, codes))
    types, _ = _by_rank(heap, "type", types, np.zeros(NOTHING + 1, bool))
    return ReportData(result, summary, floor, heap, sites, ranks[codes], types, pins, lifetimes, remedies)


def _site_codes(trace: Trace, result: RunResult) -> tuple[list[str], np.ndarray]:
    """Returns names of call sites, and the code of each; sites of the same name are one. Unknown ones are NOTHING."""
    if trace.metadata.processes:
        return [], np.zeros(0, np.int64)
    names = [*dict.fromkeys(map(site_name, trace.metadata.sites))][:NOTHING]
    place = {name: code for code, name in enumerate(names)}
    return names, np.array([*(place.get(site_name(site), NOTHING) for site in trace.metadata.sites), NOTHING], np.int64)


def _heap_map(
    trace: Trace,
    stack: StackConfig,
    result: RunResult,
    codes: np.ndarray,
    type_codes: np.ndarray | None,
    moments: int | None,
    trim_every_ns: int | None,
) -> tuple[HeapMap, Retained | None]:
    """Returns the heap map, and what retains memory at the end; None of several processes."""
    cells = max(1, int(result.end.mapped_bytes_peak) // _CELL_BYTES)
    count = moments or max(_MOMENTS_MIN, min(MOMENTS, _CELLS_READ // cells))
    history = HeapHistory(
        int(result.end.arena_bytes_peak), int(result.end.mapped_bytes_peak), result.duration_ns, codes, type_codes,
        origins_every=max(1, count * _most_live(result) // _BLOCKS_READ),
    )  # fmt: skip
    times = {result.duration_ns * number // count for number in range(1, count)} if result.duration_ns else set()
    phases = {name for name, _, _ in result.phases} - {TEARDOWN_MARK} if len(result.phases) <= _PHASES_MAX else set()
    at_end: list[Retained] = []

    def sink(snapshot: Snapshot) -> None:
        history(snapshot)
        if snapshot.label == END and not trace.metadata.processes:
            at_end.append(Retained.of(snapshot))

    run(
        trace, stack, sample_every_ns=NO_SAMPLES_NS, trim_every_ns=trim_every_ns, first_run=result,
        snapshots=[*sorted(times), *phases, PEAK, END], sink=sink, with_blocks=not trace.metadata.processes,
    )  # fmt: skip
    return history.finish(), at_end[0] if at_end else None


def _most_live(result: RunResult) -> int:
    """Returns about the highest number of live blocks."""
    allocated = sum(result.samples[name].astype(np.int64) for name in ("mallocs", "callocs", "memaligns"))
    return int((allocated - result.samples["frees"]).max(initial=0))


def _type_codes(trace: Trace, result: RunResult) -> tuple[list[str], np.ndarray | None]:
    """Returns names of types, and the code of the type that each row of the trace allocates; None without types."""
    if not trace.metadata.types or trace.metadata.processes or result.events > _TYPED_ROWS_MAX:
        return [], None
    codes = types_of_allocations(trace)
    names = [str(each) for each in trace.metadata.types]  # complete only after the trace was read
    known = np.array([code if name and code < NOTHING else NOTHING for code, name in enumerate(names)] + [NOTHING])
    return names, known[np.minimum(codes, len(names))].astype(np.uint16)


def _by_rank(heap: HeapMap, field: str, names: list[str], listed: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Renumbers the codes of a field by the memory that they take over time; drops those in no cell and not listed.

    Returns the names by their new codes, and the new code of each old one.
    """
    weights = np.zeros(NOTHING + 1)
    for frame in heap.frames:
        weights += np.bincount(frame.values[field], frame.values["live_bytes"], minlength=NOTHING + 1)
    used = np.flatnonzero((weights[:NOTHING] > 0) | listed[:NOTHING])
    order = used[np.argsort(-weights[used], kind="stable")]
    ranks = np.full(NOTHING + 1, NOTHING, np.int64)
    ranks[order] = np.arange(len(order))
    for frame in heap.frames:
        frame.values[field] = ranks[frame.values[field]]
    return [names[code] for code in order], ranks


def _listed_sites(heap: HeapMap, codes: np.ndarray) -> np.ndarray:
    """Returns for each code of a call site whether a list of blocks has it."""
    listed = np.zeros(NOTHING + 1, bool)
    for frame in heap.frames:
        if frame.blocks is not None:
            listed[codes[np.minimum(frame.blocks["site"], len(codes) - 1).astype(np.int64)]] = True
    return listed
