"""Which pages are resident and which memory is in no span, as snapshots, reports and checks see it; plain Python."""

from typing import TYPE_CHECKING

import numpy as np

from replay.allocators.linux.settings import CHUNK_BYTES, CHUNK_SHIFT

if TYPE_CHECKING:
    from replay.allocators.linux import State


def resident_pages(state: "State") -> np.ndarray:
    """The addresses of all resident pages, sorted."""
    return _marked_pages(state, [state.mmap_pages, state.heap_pages, state.chunk_pages])


def lazy_pages(state: "State") -> np.ndarray:
    """The addresses of all pages that were lazily freed, sorted."""
    return _marked_pages(state, [state.mmap_lazy, state.heap_lazy, state.chunk_lazy])


def toggled_pages(state: "State", before: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Copies of the tables of resident pages, and the sorted addresses of pages that became resident, or ceased to be,
    since the copies `before` were made. At first, `before` is an empty list."""
    tables = [state.mmap_pages.copy(), state.heap_pages.copy(), state.chunk_pages.copy()]
    toggled = [table.copy() for table in tables]
    for table, old in zip(toggled, before, strict=False):
        table[: len(old)] ^= old
    pages, times = np.unique(_marked_pages(state, toggled), return_counts=True)
    return tables, pages[times == 1]  # twice: a mark that went from one table to another


def resident_bytes(pages: np.ndarray, page_bytes: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """For each stretch [start, end), how many of its bytes lie in the sorted `pages`."""
    return _resident_below(pages, page_bytes, ends) - _resident_below(pages, page_bytes, starts)


def _resident_below(pages: np.ndarray, page_bytes: int, addresses: np.ndarray) -> np.ndarray:
    page = addresses & -page_bytes
    below = np.searchsorted(pages, page)
    is_resident = np.append(pages, -1)[below] == page
    counted: np.ndarray = below * page_bytes + is_resident * (addresses - page)
    return counted


def uncovered(state: "State", starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The starts and ends of all stretches that are mapped, and not only reserved, and lie in no [start, end)."""
    space = state.space[0]
    regions, reserves = state.regions[: space.regions], state.reserves[: space.reserves]
    rising = np.concatenate([regions["start"], [space.brk_base], reserves["end"], ends])
    falling = np.concatenate([regions["end"], [space.brk], reserves["start"], starts])
    edges, steps = np.concatenate([rising, falling]), np.repeat([1, -1], [len(rising), len(falling)])
    order = np.argsort(edges, kind="stable")
    edges, levels = edges[order], np.cumsum(steps[order])
    is_free = (levels[:-1] == 1) & (edges[:-1] < edges[1:])
    return edges[:-1][is_free], edges[1:][is_free]


def _marked_pages(state: "State", tables: list[np.ndarray]) -> np.ndarray:
    """The addresses of pages marked in the tables of mappings, heap and chunks, sorted."""
    space = state.space[0]
    mapped, heap, chunked = (_marked_bits(table) << space.page_shift for table in tables)
    stretches = np.flatnonzero(state.directory) if space.chunks else np.zeros(0, np.int64)
    starts = np.zeros(1 + len(stretches), np.int64)
    starts[state.directory[stretches]] = stretches << CHUNK_SHIFT
    in_chunks = starts[(chunked >> CHUNK_SHIFT) + 1] + (chunked & (CHUNK_BYTES - 1))
    return np.sort(np.concatenate([in_chunks, space.brk_base + heap, space.mmap_base - space.page_size - mapped]))


def _marked_bits(words: np.ndarray) -> np.ndarray:
    """The numbers of the bits that are set, sorted."""
    used = np.flatnonzero(words)
    bits = np.flatnonzero(np.unpackbits(words[used].view(np.uint8), bitorder="little"))
    return used[bits >> 6] * 64 + (bits & 63)
