"""Groups of live blocks: by call site, type, size class, thread, domain, and phase of the allocation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from replay.jit.compiling import inlined
from replay.simulation.result import RunResult
from replay.support.units import format_size
from replay.trace import Domain, ObjectType, Site

UNKNOWN = "unknown"
_LOOKED_UP = 1 << 20
_NO_PHASE = "before the first phase"


class Grouped(NamedTuple):
    """Blocks in groups, by a number that each block has, such as that of its call site."""

    numbers: np.ndarray
    """By block, uint32."""
    codes: np.ndarray
    """The group of each number, int64; the last one is that of all higher numbers, too."""
    names: list[str]
    """Of the groups."""

    def of_blocks(self, blocks: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Returns the group of each block, or of some."""
        return self.codes[np.minimum(self.numbers[blocks], max(0, len(self.codes) - 1))]


@inlined
def group_of(numbers, codes, block):  # type: ignore[no-untyped-def]
    """Returns the group of a block, given two fields of `Grouped`."""
    return codes[min(np.int64(numbers[block]), codes.shape[0] - 1)]


def site_name(site: Site) -> str:
    """Returns a call site as text: `function (file:line)`."""
    return f"{site.function} ({site.file}:{site.line})"


def by_site(numbers: np.ndarray, sites: Sequence[Site]) -> Grouped:
    """Returns blocks by call site, given its number. Sites of the same name are one group."""
    return _by_name(numbers, [site_name(site) for site in sites])


def by_type(numbers: np.ndarray, types: Sequence[ObjectType]) -> Grouped:
    """Returns blocks by Python type, given its number."""
    return _by_name(numbers, [str(each) if each.name else UNKNOWN for each in types])


def by_size_class(block_bytes: np.ndarray) -> Grouped:
    """Returns blocks by size class."""
    sizes, grouped = _distinct(block_bytes)
    return Grouped(*grouped, [format_size(size) for size in sizes.tolist()])


def by_thread(numbers: np.ndarray) -> Grouped:
    """Returns blocks by thread, given its number."""
    threads, grouped = _distinct(numbers)
    return Grouped(*grouped, [f"thread {thread}" for thread in threads.tolist()])


def by_domain(numbers: np.ndarray) -> Grouped:
    """Returns blocks by domain."""
    return Grouped(numbers.astype(np.uint32), np.arange(len(Domain)), [domain.name.lower() for domain in Domain])


def by_phase(allocated_ns: np.ndarray, result: RunResult) -> Grouped:
    """Returns blocks by the phase of their allocation."""
    names = [*dict.fromkeys([_NO_PHASE, *(name for name, _, _ in result.phases)])]
    starts = np.array([time_ns for _, time_ns, _ in result.phases], np.int64)
    codes = np.array([0, *(names.index(name) for name, _, _ in result.phases)])
    return Grouped(np.searchsorted(starts, allocated_ns, side="right").astype(np.uint32), codes, names)


def _by_name(numbers: np.ndarray, known: list[str]) -> Grouped:
    """Returns blocks by the name that belongs to the number of each; higher numbers are unknown."""
    names = [*dict.fromkeys([*known, UNKNOWN])]
    place = {name: index for index, name in enumerate(names)}
    return Grouped(numbers, np.array([place[name] for name in [*known, UNKNOWN]]), names)


def _distinct(values: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Returns the distinct values, and the numbers and codes of `Grouped`. Small values are looked up, not sorted."""
    highest = int(values.max(initial=0))
    if highest >= _LOOKED_UP:
        found, numbers = np.unique(values, return_inverse=True)
        return found, (numbers.astype(np.uint32), np.arange(len(found)))
    is_found = np.zeros(highest + 1, bool)
    is_found[values] = True
    return np.flatnonzero(is_found), (values.astype(np.uint32, copy=False), np.cumsum(is_found) - 1)
