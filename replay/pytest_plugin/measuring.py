"""Measures a recorded block or test: its simulation on a stack, and what it allocated and never freed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from replay.analysis.metrics import Summary, metrics_of, summarize
from replay.config import StackConfig
from replay.gates.causes import site_key, site_place, size_class
from replay.gates.requests import LastRequests
from replay.pytest_plugin.worker_process import AFTER, OVER, TEST
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.support.errors import TraceError
from replay.trace import NO_SITE, Domain, Op, Trace
from replay.trace.block_ops import requests

_CLASS_BITS = 58
"""A domain and a class of sizes in one number; the class takes so many bits."""


@dataclass(frozen=True)
class Asked:
    """Blocks of one domain and size class that the test requested, and those of them that it left live."""

    domain: str
    size: int
    blocks: int
    bytes: int
    leaked_blocks: int
    leaked_bytes: int


@dataclass(frozen=True)
class Left:
    """Blocks of one call site that were left live."""

    site: str
    place: str
    """With the line that left most."""
    blocks: int
    bytes: int


@dataclass(frozen=True)
class Look:
    """The results of a recording."""

    summary: Summary
    classes: tuple[Asked, ...]
    left: tuple[Left, ...]
    """By call site, if the recording has them."""

    @property
    def figures(self) -> dict[str, int | float]:
        """All metrics, and what was left behind."""
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


def look(trace: Trace, stack: StackConfig) -> Look:
    """Simulates a recording that has the marks of a test."""
    recording = run(trace, stack, sample_every_ns=NO_SAMPLES_NS)
    domains, sizes, sites, is_left = _requests(trace)
    left = _by_site(trace, sizes[is_left], sites[is_left])
    return Look(summarize(recording), _by_class(domains, sizes, is_left), left)


def _requests(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each request between the marks the domain, the size, the site, and whether its block was left behind."""
    begin, after, over = _marks(trace)
    domains, sizes, sites = ([np.zeros(0, np.int64)] for _ in range(3))
    last = LastRequests()
    first = 0
    for events in trace.batches():
        rows = np.arange(first, first + events.rows)
        asked = requests(events.op) & (begin < rows) & (rows < after)
        last.follow(events, asked, over - first)
        domains.append(events.domain[asked].astype(np.int64))
        sizes.append(events.size[asked])
        sites.append(np.full(asked.sum(), NO_SITE) if events.site is None else events.site[asked].astype(np.int64))
        first += events.rows
    is_left = np.zeros(last.count, bool)
    is_left[last.of_live_blocks()] = True
    return np.concatenate(domains), np.concatenate(sizes), np.concatenate(sites), is_left


def _by_class(domains: np.ndarray, sizes: np.ndarray, is_left: np.ndarray) -> tuple[Asked, ...]:
    keys, at = np.unique(domains << _CLASS_BITS | size_class(sizes), return_inverse=True)
    columns = [np.bincount(at, weights, len(keys)) for weights in (None, sizes, is_left, sizes * is_left)]
    return tuple(
        Asked(
            Domain(key >> _CLASS_BITS).name.lower(), key & (1 << _CLASS_BITS) - 1, *(int(sum_[row]) for sum_ in columns)
        )
        for row, key in enumerate(keys.tolist())
    )


def _by_site(trace: Trace, sizes: np.ndarray, numbers: np.ndarray) -> tuple[Left, ...]:
    """Lines of one function are one site."""
    lines: dict[str, list[tuple[int, int, str]]] = {}
    known, at = np.unique(numbers, return_inverse=True)
    blocks, size_bytes = np.bincount(at), np.bincount(at, sizes)
    for row, number in enumerate(known.tolist()):
        if number < len(trace.metadata.sites):
            site = trace.metadata.sites[number]
            lines.setdefault(site_key(site), []).append((int(size_bytes[row]), int(blocks[row]), site_place(site)))
    return tuple(
        Left(site, max(found)[2], sum(count for _, count, _ in found), sum(size for size, _, _ in found))
        for site, found in lines.items()
    )


def _marks(trace: Trace) -> tuple[int, int, int]:
    """The rows of the first TEST and of the last AFTER and OVER."""
    names = trace.metadata.phases
    rows: dict[str, list[int]] = {TEST: [], AFTER: [], OVER: []}
    first = 0
    for events in trace.batches():
        for row in np.flatnonzero(events.op == Op.MARK).tolist():
            rows.get(names[int(events.size[row])], []).append(first + row)
        first += events.rows
    if not all(rows.values()):
        raise TraceError("is not a recording of a test: it lacks the marks that pytest's plugin makes")
    return rows[TEST][0], rows[AFTER][-1], rows[OVER][-1]
