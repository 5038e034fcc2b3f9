"""Measures the recording of a test or block: simulates it, and counts the blocks that it did not free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from replay.analysis.metrics import Summary, metrics_of, summarize
from replay.analysis.pin_report import pinned_by
from replay.config import StackConfig
from replay.gates.causes import site_key, site_place, size_class
from replay.gates.requests import LastRequests
from replay.pytest_plugin.worker_process import AFTER, OVER, TEST
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.support.errors import ReplayError, TraceError
from replay.trace import NO_SITE, Domain, Op, Trace
from replay.trace.block_ops import requests

_CLASS_BITS = 58
"""A number has the domain and the size class; the class takes this many low bits."""


@dataclass(frozen=True)
class ClassCount:
    """The requests of one domain and size class, and their blocks that are still live at the end of the test."""

    domain: str
    size: int
    blocks: int
    bytes: int
    leaked_blocks: int
    leaked_bytes: int


@dataclass(frozen=True)
class SiteLeak:
    """The blocks of one call site that are still live at the end of the test."""

    site: str
    place: str
    """The call site with the line that leaked the most bytes."""
    blocks: int
    bytes: int


@dataclass(frozen=True)
class Results:
    """The measurements of a recording."""

    summary: Summary
    classes: tuple[ClassCount, ...]
    leaks: tuple[SiteLeak, ...]
    """By call site; empty if the recording has no call sites."""

    @property
    def figures(self) -> dict[str, int | float]:
        """All metrics of the simulation, and the leaked blocks and bytes."""
        return {
            **metrics_of(self.summary),
            "leaked_blocks": sum(each.leaked_blocks for each in self.classes),
            "leaked_bytes": sum(each.leaked_bytes for each in self.classes),
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "summary": self.summary.model_dump(mode="json"),
            "figures": self.figures,
            "classes": [tuple(vars(each).values()) for each in self.classes],
        }


def measure_recording(trace: Trace, stack: StackConfig) -> Results:
    """Simulates a recording with the marks of a test, and returns its measurements."""
    result = run(trace, stack, sample_every_ns=NO_SAMPLES_NS)
    domains, sizes, sites, is_leaked = _requests(trace)
    leaks = _by_site(trace, sizes[is_leaked], sites[is_leaked])
    return Results(summarize(result), _by_class(domains, sizes, is_leaked), leaks)


def measure_pins(trace: Trace, stack: StackConfig, patterns: Sequence[str]) -> dict[str, tuple[int, list[str]]]:
    """Returns the resident bytes that the call sites of each pattern pin after the test and the garbage collection,
    and the names of these sites."""
    if patterns and not trace.metadata.sites:
        raise ReplayError("pins of call sites need a recording with call sites: CPython 3.11 to 3.15 without its JIT")
    return pinned_by(trace, stack, patterns, at=OVER) if patterns else {}


def _requests(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns domain, size, site and whether the block leaked, for each request between the marks."""
    begin, after, over = _marks(trace)
    domains, sizes, sites = ([np.zeros(0, np.int64)] for _ in range(3))
    last = LastRequests()
    first = 0
    for events in trace.batches():
        rows = np.arange(first, first + events.rows)
        is_request = requests(events.op) & (begin < rows) & (rows < after)
        last.follow(events, is_request, over - first)
        domains.append(events.domain[is_request].astype(np.int64))
        sizes.append(events.size[is_request])
        site = np.full(events.rows, NO_SITE) if events.site is None else events.site
        sites.append(site[is_request].astype(np.int64))
        first += events.rows
    is_leaked = np.zeros(last.count, bool)
    is_leaked[last.of_live_blocks()] = True
    return np.concatenate(domains), np.concatenate(sizes), np.concatenate(sites), is_leaked


def _by_class(domains: np.ndarray, sizes: np.ndarray, is_leaked: np.ndarray) -> tuple[ClassCount, ...]:
    keys, at = np.unique(domains << _CLASS_BITS | size_class(sizes), return_inverse=True)
    columns = [np.bincount(at, weights, len(keys)) for weights in (None, sizes, is_leaked, sizes * is_leaked)]
    return tuple(
        ClassCount(
            Domain(key >> _CLASS_BITS).name.lower(), key & (1 << _CLASS_BITS) - 1, *(int(sum_[row]) for sum_ in columns)
        )
        for row, key in enumerate(keys.tolist())
    )


def _by_site(trace: Trace, sizes: np.ndarray, numbers: np.ndarray) -> tuple[SiteLeak, ...]:
    """Returns the leaks by call site; all lines of a function are one site."""
    lines: dict[str, list[tuple[int, int, str]]] = {}
    known, at = np.unique(numbers, return_inverse=True)
    blocks, size_bytes = np.bincount(at), np.bincount(at, sizes)
    for row, number in enumerate(known.tolist()):
        if number < len(trace.metadata.sites):
            site = trace.metadata.sites[number]
            lines.setdefault(site_key(site), []).append((int(size_bytes[row]), int(blocks[row]), site_place(site)))
    return tuple(
        SiteLeak(site, max(found)[2], sum(count for _, count, _ in found), sum(size for size, _, _ in found))
        for site, found in lines.items()
    )


def _marks(trace: Trace) -> tuple[int, int, int]:
    """Returns the rows of the first TEST mark and of the last AFTER and OVER marks."""
    names = trace.metadata.phases
    rows: dict[str, list[int]] = {TEST: [], AFTER: [], OVER: []}
    first = 0
    for events in trace.batches():
        for row in np.flatnonzero(events.op == Op.MARK).tolist():
            rows.get(names[int(events.size[row])], []).append(first + row)
        first += events.rows
    if not all(rows.values()):
        raise TraceError("is not a recording of a test: the marks of the pytest plugin are missing")
    return rows[TEST][0], rows[AFTER][-1], rows[OVER][-1]
