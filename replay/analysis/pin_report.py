"""Who pins memory at one moment of a run: by call site, size class, thread, phase, domain and age."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from replay.analysis.pins import Grouping, HeapEnd, Pins
from replay.analysis.retention import Retained
from replay.config import StackConfig
from replay.simulation.result import RunResult
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.simulation.snapshots import END, PEAK, Snapshot
from replay.support.errors import ReplayError
from replay.support.units import format_size
from replay.trace import Domain, Site, Trace
from replay.trace.editing.selecting import Conditions, FilteredTrace
from replay.trace.typed import types_of_blocks

UNKNOWN = "unknown"
_NO_PHASE = "before the first phase"
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
class Removal:
    """What a run without the blocks of some call sites has, at the same moment."""

    sites: list[str]
    released_bytes: int
    """As predicted from the pins: what is released if these blocks are gone at this moment."""
    resident_bytes: int
    """Of the run in which these blocks were never allocated."""
    simulated_bytes: int
    """By how much its resident memory is smaller."""


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


def find_pins(trace: Trace, config: StackConfig, *, at: str | int = END, without: str | None = None) -> PinReport:
    """Returns who pins memory at a moment: `"end"`, `"peak"`, nanoseconds since the first event, or the latest start of
    a phase.

    `without`: part of the names of call sites; the trace is simulated again without their blocks.
    """
    retained, result, live_at_end = _retained(trace, config, at)
    sites, blocks = trace.metadata.sites, retained.blocks
    by_site = Grouping(retained, *_by_site(blocks, sites))
    types, type_names = _by_type(trace, retained)
    block_bytes = int(blocks["bytes"].sum())
    pins = by_site.pins()
    return PinReport(
        at_ns=retained.at_ns,
        resident_bytes=retained.resident_bytes,
        block_bytes=block_bytes,
        requested_bytes=(requested_bytes := int(blocks["requested_bytes"].sum())),
        retained_bytes=retained.resident_bytes - requested_bytes,
        releasable_bytes=pins.releasable_bytes,
        trimmable_bytes=retained.trimmable_bytes,
        never_freed_share=_share(blocks, live_at_end) if retained.at_ns <= result.duration_ns else None,
        by_site=pins,
        by_type=Grouping(retained, types, type_names).pins(),
        by_size_class=Grouping(retained, *_by_size_class(blocks, result)).pins(),
        by_thread=Grouping(retained, *_by_thread(blocks, result)).pins(),
        by_phase=Grouping(retained, *_by_phase(blocks, result)).pins(),
        by_domain=Grouping(retained, *_by_domain(blocks, result)).pins(),
        ages=_ages(blocks, retained.at_ns),
        has_types=bool(trace.metadata.types),
        has_sites=bool(sites),
        heap_ends=by_site.heap_ends(),
        without=_removal(trace, config, at, without, retained, by_site) if without is not None else None,
    )


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


def _by_site(blocks: np.ndarray, sites: Sequence[Site]) -> tuple[np.ndarray, list[str]]:
    """Returns the group of each block and the names of groups, by call site. Sites of the same name are one."""
    names = [*dict.fromkeys([site_name(site) for site in sites] + [UNKNOWN])]
    place = {name: index for index, name in enumerate(names)}
    of_site = np.array([*(place[site_name(site)] for site in sites), place[UNKNOWN]])
    return of_site[np.minimum(blocks["site"], len(sites)).astype(np.int64)], names


def _by_type(trace: Trace, retained: Retained) -> tuple[np.ndarray, list[str]]:
    """Returns the group of each block and the names of groups, by Python type."""
    known = [str(each) for each in trace.metadata.types]
    names = [*dict.fromkeys([*known, UNKNOWN])]
    if not known:
        return np.zeros(len(retained.blocks), np.int64), names
    place = {name: index for index, name in enumerate(names)}
    of_type = np.array([*(place[name] for name in known), place[UNKNOWN]])
    types = types_of_blocks(trace, retained.row, retained.blocks["block"])
    return of_type[np.minimum(types, len(known)).astype(np.int64)], names


def site_name(site: Site) -> str:
    """Returns a call site as text: `function (file:line)`."""
    return f"{site.function} ({site.file}:{site.line})"


def _by_size_class(blocks: np.ndarray, result: RunResult) -> tuple[np.ndarray, list[str]]:
    sizes, codes = np.unique(blocks["bytes"], return_inverse=True)
    return codes, [format_size(size) for size in sizes.tolist()]


def _by_thread(blocks: np.ndarray, result: RunResult) -> tuple[np.ndarray, list[str]]:
    threads, codes = np.unique(blocks["thread"], return_inverse=True)
    return codes, [f"thread {thread}" for thread in threads.tolist()]


def _by_domain(blocks: np.ndarray, result: RunResult) -> tuple[np.ndarray, list[str]]:
    return blocks["domain"].astype(np.int64), [domain.name.lower() for domain in Domain]


def _by_phase(blocks: np.ndarray, result: RunResult) -> tuple[np.ndarray, list[str]]:
    names = [*dict.fromkeys([_NO_PHASE, *(name for name, _, _ in result.phases)])]
    starts = np.array([time_ns for _, time_ns, _ in result.phases], np.int64)
    codes = np.array([0, *(names.index(name) for name, _, _ in result.phases)])
    return codes[np.searchsorted(starts, blocks["allocated_ns"], side="right")], names


def _ages(blocks: np.ndarray, at_ns: int) -> list[AgeClass]:
    """Returns the live blocks by age, in decades."""
    classes = np.searchsorted(_DECADES, at_ns - blocks["allocated_ns"], side="right")
    limits = [0, *_DECADES.tolist(), None]
    counts = np.bincount(classes, minlength=len(limits) - 1).tolist()
    sizes = np.bincount(classes, blocks["bytes"], minlength=len(limits) - 1).astype(np.int64).tolist()
    return [AgeClass(limits[at] or 0, limits[at + 1], counts[at], sizes[at]) for at in range(len(counts)) if counts[at]]


def _removal(
    trace: Trace, config: StackConfig, at: str | int, text: str, retained: Retained, grouping: Grouping
) -> Removal:
    """Simulates the trace without the blocks of call sites whose names contain a text."""
    sites = trace.metadata.sites
    chosen = frozenset(index for index, site in enumerate(sites) if text in site_name(site))
    if not chosen:
        what = "no call site has this in its name" if sites else "the trace has no call sites; record it with --sites"
        raise ReplayError(f"--without {text!r}: {what}")
    names = [*dict.fromkeys(site_name(sites[index]) for index in sorted(chosen))]
    rest = FilteredTrace(trace, Conditions(without_sites=chosen), f"pins --without {text}")
    moment = at if at not in (PEAK,) and isinstance(at, str) else retained.at_ns + _begin_ns(trace) - _begin_ns(rest)
    found: list[int] = []
    run(
        rest, config, sample_every_ns=NO_SAMPLES_NS, snapshots=[moment],
        sink=lambda snapshot: found.append(int(snapshot.counters["resident_bytes"])),
    )  # fmt: skip
    return Removal(names, grouping.released_bytes_of(names), found[-1], retained.resident_bytes - found[-1])


def _begin_ns(trace: Trace) -> int:
    """Returns the time of the first event; 0 for an empty trace."""
    return next((int(events.time_ns[0]) for events in trace.batches() if events.rows), 0)
