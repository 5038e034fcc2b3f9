"""Groups of live blocks: by call site, type, size class, thread, domain, and phase of the allocation."""

from collections.abc import Sequence

import numpy as np

from replay.simulation.result import RunResult
from replay.support.units import format_size
from replay.trace import Domain, Site, Trace
from replay.trace.typed import types_of_blocks

UNKNOWN = "unknown"
_LOOKED_UP = 1 << 20
_NO_PHASE = "before the first phase"
Grouped = tuple[np.ndarray, list[str]]
"""The group of each block, and the names of the groups."""


def site_name(site: Site) -> str:
    """Returns a call site as text: `function (file:line)`."""
    return f"{site.function} ({site.file}:{site.line})"


def by_site(blocks: np.ndarray, sites: Sequence[Site]) -> Grouped:
    """Returns the blocks by call site. Sites of the same name are one group."""
    names = [*dict.fromkeys([site_name(site) for site in sites] + [UNKNOWN])]
    place = {name: index for index, name in enumerate(names)}
    of_site = np.array([*(place[site_name(site)] for site in sites), place[UNKNOWN]])
    return of_site[np.minimum(blocks["site"], len(sites)).astype(np.int64)], names


def by_type(trace: Trace, row: int, numbers: np.ndarray) -> Grouped:
    """Returns the blocks with these numbers, which are live before a row of the trace, by Python type."""
    known = [str(each) for each in trace.metadata.types]
    names = [*dict.fromkeys([*known, UNKNOWN])]
    if not known:
        return np.zeros(len(numbers), np.int64), names
    place = {name: index for index, name in enumerate(names)}
    of_type = np.array([*(place[name] for name in known), place[UNKNOWN]])
    types = types_of_blocks(trace, row, numbers)
    return of_type[np.minimum(types, len(known)).astype(np.int64)], names


def by_size_class(blocks: np.ndarray) -> Grouped:
    """Returns the blocks by size class."""
    sizes, codes = _distinct(blocks["bytes"])
    return codes, [format_size(size) for size in sizes.tolist()]


def by_thread(blocks: np.ndarray) -> Grouped:
    """Returns the blocks by thread."""
    threads, codes = _distinct(blocks["thread"])
    return codes, [f"thread {thread}" for thread in threads.tolist()]


def by_domain(blocks: np.ndarray) -> Grouped:
    """Returns the blocks by domain."""
    return blocks["domain"].astype(np.int64), [domain.name.lower() for domain in Domain]


def by_phase(blocks: np.ndarray, result: RunResult) -> Grouped:
    """Returns the blocks by the phase of their allocation."""
    names = [*dict.fromkeys([_NO_PHASE, *(name for name, _, _ in result.phases)])]
    starts = np.array([time_ns for _, time_ns, _ in result.phases], np.int64)
    codes = np.array([0, *(names.index(name) for name, _, _ in result.phases)])
    if not len(starts):
        return np.zeros(len(blocks), np.int64), names
    return codes[np.searchsorted(starts, blocks["allocated_ns"], side="right")], names


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct values, and the index of each value among them. Small ones are looked up, not sorted."""
    if int(values.max(initial=0)) >= _LOOKED_UP:
        return np.unique(values, return_inverse=True)
    values = values.astype(np.int64)
    found = np.flatnonzero(np.bincount(values))
    index = np.zeros(_LOOKED_UP, np.int64)
    index[found] = np.arange(len(found))
    return found, index[values]
