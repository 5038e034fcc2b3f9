"""Who pins memory at one moment of a run: by call site, size class, thread, phase, domain and age."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from replay.analysis.block_groups import by_domain, by_phase, by_site, by_size_class, by_thread, by_type, site_name
from replay.analysis.pins import Grouping, HeapEnd, Pins
from replay.analysis.removal import OPTION, Removal, simulate_removal, sites_matching
from replay.analysis.retention import Retained
from replay.config import StackConfig
from replay.simulation.result import RunResult
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.simulation.snapshots import END, Snapshot
from replay.trace import Trace
from replay.trace.processes import refuse_processes

_DECADES = 10 ** np.arange(6, 13)  # 1 ms to 1000 s


@dataclass(frozen=True)
class AgeClass:
    """The live blocks of one range of ages."""

    least_ns: int
    below_ns: int | None
    """None: no limit."""
    blocks: int
    block_bytes: int


@dataclass(frozen=True)
class PinReport:
    """The pins at one moment. Names of fields are keys of `replay pins --json`."""

    at_ns: int
    resident_bytes: int
    block_bytes: int
    """Live blocks, with rounding and headers."""
    requested_bytes: int
    """Live blocks, as the program requested them."""
    retained_bytes: int
    """Resident bytes that are not requested ones."""
    releasable_bytes: int
    """Resident bytes, of live blocks too, that are released if all pins are gone."""
    trimmable_bytes: int
    """What malloc_trim(0) would release now."""
    never_freed_share: float | None
    """Share of the live blocks' bytes that are still live at the end of the program; None from then on."""
    by_site: Pins
    by_type: Pins
    by_size_class: Pins
    by_thread: Pins
    by_phase: Pins
    by_domain: Pins
    ages: list[AgeClass]
    has_sites: bool
    has_types: bool
    heap_ends: list[HeapEnd]
    """By call site: what keeps the ends of libc's heaps from being released."""
    without: Removal | None = None


def find_pins(
    trace: Trace, config: StackConfig, *, at: str | int = END, without: str | Sequence[str] = ()
) -> PinReport:
    """Returns who pins memory at a moment: `"end"`, `"peak"`, nanoseconds since the first event, or the latest start of
    a phase.

    `without`: parts of the names of call sites (`matches_site`); the trace is simulated again without their blocks.
    """
    refuse_processes(trace, None, "pins are found in one process")
    patterns = [without] if isinstance(without, str) else without
    if trace.metadata.sites:  # else they may become known while the trace is read
        sites_matching(trace, patterns, OPTION)
    retained, result, live_at_end = _retained(trace, config, at)
    report = report_of(trace, retained, result, live_at_end)
    if not patterns:
        return report
    of_sites = Grouping(retained, *by_site(retained.blocks, trace.metadata.sites))
    return replace(report, without=simulate_removal(trace, config, at, patterns, retained, of_sites))


def report_of(trace: Trace, retained: Retained, result: RunResult, live_at_end: np.ndarray | None = None) -> PinReport:
    """Returns the pins at the moment of `retained`. `live_at_end`: the blocks that live at the end, if it is later."""
    sites, blocks = trace.metadata.sites, retained.blocks
    of_sites = Grouping(retained, *by_site(blocks, sites))
    pins = of_sites.pins()
    requested_bytes = int(blocks["requested_bytes"].sum())
    return PinReport(
        at_ns=retained.at_ns,
        resident_bytes=retained.resident_bytes,
        block_bytes=int(blocks["bytes"].sum()),
        requested_bytes=requested_bytes,
        retained_bytes=retained.resident_bytes - requested_bytes,
        releasable_bytes=pins.releasable_bytes,
        trimmable_bytes=retained.trimmable_bytes,
        never_freed_share=_share(blocks, live_at_end) if retained.at_ns <= result.duration_ns else None,
        by_site=pins,
        by_type=Grouping(retained, *by_type(trace, retained.row, blocks["block"])).pins(),
        by_size_class=Grouping(retained, *by_size_class(blocks)).pins(),
        by_thread=Grouping(retained, *by_thread(blocks)).pins(),
        by_phase=Grouping(retained, *by_phase(blocks, result)).pins(),
        by_domain=Grouping(retained, *by_domain(blocks)).pins(),
        ages=_ages(blocks, retained.at_ns),
        has_types=bool(trace.metadata.types),
        has_sites=bool(sites),
        heap_ends=of_sites.heap_ends(),
    )


def pinned_by(
    trace: Trace, config: StackConfig, patterns: Sequence[str], *, at: str | int = END
) -> dict[str, tuple[int, list[str]]]:
    """Returns for each pattern (`matches_site`) the resident bytes that the blocks of its call sites pin together, and
    the names of these sites. Raises ReplayError if a pattern matches none."""
    retained = _retained(trace, config, at)[0]
    sites = trace.metadata.sites
    grouping, found = Grouping(retained, *by_site(retained.blocks, sites)), {}
    for pattern in patterns:
        names = [*dict.fromkeys(site_name(sites[index]) for index in sorted(sites_matching(trace, [pattern])))]
        found[pattern] = grouping.released_bytes_of(names), names
    return found


def _retained(trace: Trace, config: StackConfig, at: str | int) -> tuple[Retained, RunResult, np.ndarray | None]:
    """Returns what retains memory at a moment, the result of the run, and the blocks that live at its end; None if the
    moment is the end."""
    found: list[Retained] = []
    at_end: list[np.ndarray] = []

    def sink(snapshot: Snapshot) -> None:
        if snapshot.label == END and at != END:
            at_end.append(snapshot.blocks()[["block", "row"]])
        else:
            found[:] = [Retained.of(snapshot)]

    moments = [at] if at == END else [at, END]
    result = run(trace, config, sample_every_ns=NO_SAMPLES_NS, snapshots=moments, sink=sink, with_blocks=True)
    return found[0], result, at_end[0] if at_end else None


def _share(blocks: np.ndarray, live_at_end: np.ndarray | None) -> float | None:
    """Returns the share of bytes of the blocks that are among those at the end."""
    if live_at_end is None:
        return None
    lasting = np.isin(blocks["row"], live_at_end["row"])
    total = int(blocks["bytes"].sum())
    return int(blocks["bytes"][lasting].sum()) / total if total else 0.0


def _ages(blocks: np.ndarray, at_ns: int) -> list[AgeClass]:
    """Returns the live blocks by age, in decades."""
    classes = np.searchsorted(_DECADES, at_ns - blocks["allocated_ns"], side="right")
    limits = [0, *_DECADES.tolist(), None]
    counts = np.bincount(classes, minlength=len(limits) - 1).tolist()
    sizes = np.bincount(classes, blocks["bytes"], minlength=len(limits) - 1).astype(np.int64).tolist()
    return [AgeClass(limits[at] or 0, limits[at + 1], counts[at], sizes[at]) for at in range(len(counts)) if counts[at]]
