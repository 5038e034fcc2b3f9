"""Who pins memory at one moment of a run: by call site, size class, thread, phase, domain and age."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from replay.analysis.block_groups import by_domain, by_phase, by_site, by_size_class, by_thread, by_type, site_name
from replay.analysis.pins import Grouping, HeapEnd, Pins
from replay.analysis.removal import OPTION, Removal, simulate_removal, sites_matching
from replay.analysis.retention import Retained
from replay.config import StackConfig
from replay.jit.compiling import entry
from replay.simulation.live_blocks import LiveBlocks
from replay.simulation.result import RunResult
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.simulation.snapshots import END, Snapshot
from replay.trace import NO_TYPE, Trace
from replay.trace.processes import refuse_processes

_DECADES = 10 ** np.arange(6, 13)  # 1 ms to 1000 s
_LIFE = ("block", "row")
"""The fields of a live block that tell whether it still lives later."""


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
    of_sites = Grouping(retained, by_site(retained.blocks.site, trace.metadata.sites))
    return replace(report, without=simulate_removal(trace, config, at, patterns, retained, of_sites))


def report_of(trace: Trace, retained: Retained, result: RunResult, live_at_end: LiveBlocks | None = None) -> PinReport:
    """Returns the pins at the moment of `retained`. `live_at_end`: the blocks that live at the end, if it is later."""
    sites, blocks = trace.metadata.sites, retained.blocks
    of_sites = Grouping(retained, by_site(blocks.site, sites))
    pins = of_sites.pins()
    types = retained.types if len(retained.types) else np.full(len(blocks.site), NO_TYPE, np.uint32)
    return PinReport(
        at_ns=retained.at_ns,
        resident_bytes=retained.resident_bytes,
        block_bytes=int(blocks.bytes.sum()),
        requested_bytes=retained.requested_bytes,
        retained_bytes=retained.resident_bytes - retained.requested_bytes,
        releasable_bytes=pins.releasable_bytes,
        trimmable_bytes=retained.trimmable_bytes,
        never_freed_share=_share(blocks, live_at_end) if retained.at_ns <= result.duration_ns else None,
        by_site=pins,
        by_type=Grouping(retained, by_type(types, trace.metadata.types)).pins(),
        by_size_class=Grouping(retained, by_size_class(blocks.bytes)).pins(),
        by_thread=Grouping(retained, by_thread(blocks.thread)).pins(),
        by_phase=Grouping(retained, by_phase(blocks.allocated_ns, result)).pins(),
        by_domain=Grouping(retained, by_domain(blocks.domain)).pins(),
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
    grouping, found = Grouping(retained, by_site(retained.blocks.site, sites)), {}
    for pattern in patterns:
        names = [*dict.fromkeys(site_name(sites[index]) for index in sorted(sites_matching(trace, [pattern])))]
        found[pattern] = grouping.released_bytes_of(names), names
    return found


def _retained(trace: Trace, config: StackConfig, at: str | int) -> tuple[Retained, RunResult, LiveBlocks | None]:
    """Returns what retains memory at a moment, the result of the run, and the blocks that live at its end; None if the
    moment is the end."""
    found: list[Retained] = []
    at_end: list[LiveBlocks] = []

    def sink(snapshot: Snapshot) -> None:
        if snapshot.label == END and at != END:
            at_end.append(snapshot.live_blocks(*_LIFE))
        else:
            found[:] = [Retained.of(snapshot, *(_LIFE if at != END else ()))]

    moments = [at] if at == END else [at, END]
    result = run(trace, config, sample_every_ns=NO_SAMPLES_NS, snapshots=moments, sink=sink, with_blocks=True)
    return found[0], result, at_end[0] if at_end else None


def _share(blocks: LiveBlocks, live_at_end: LiveBlocks | None) -> float | None:
    """Returns the share of bytes of the blocks that are among those at the end."""
    if live_at_end is None:
        return None
    row_at_end = np.full(int(blocks.block.max(initial=0)) + 1, -1)
    is_known = live_at_end.block < len(row_at_end)
    row_at_end[live_at_end.block[is_known]] = live_at_end.row[is_known]
    lasting = row_at_end[blocks.block] == blocks.row
    total = int(blocks.bytes.sum())
    return int(blocks.bytes[lasting].sum()) / total if total else 0.0


def _ages(blocks: LiveBlocks, at_ns: int) -> list[AgeClass]:
    """Returns the live blocks by age, in decades."""
    limits = [0, *_DECADES.tolist(), None]
    found = np.zeros((2, len(limits) - 1), np.int64)
    _count_ages(blocks.allocated_ns, blocks.bytes, at_ns, _DECADES, found)
    counts, sizes = found.tolist()
    return [AgeClass(limits[at] or 0, limits[at + 1], counts[at], sizes[at]) for at in range(len(counts)) if counts[at]]


@entry
def _count_ages(
    allocated_ns: np.ndarray, block_bytes: np.ndarray, at_ns: int, decades: np.ndarray, found: np.ndarray
) -> None:
    """Adds up blocks and their bytes by decade of age, in place."""
    for at in range(allocated_ns.shape[0]):
        age_ns, decade = at_ns - allocated_ns[at], 0
        while decade < decades.shape[0] and decades[decade] <= age_ns:
            decade += 1
        found[0, decade] += 1
        found[1, decade] += block_bytes[at]
