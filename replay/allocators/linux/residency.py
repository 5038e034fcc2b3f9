"""Queries for snapshots, reports and checks: resident pages, and memory that is in no span. All of it is plain
Python."""

from typing import TYPE_CHECKING

import numpy as np

from replay.allocators.linux.settings import CHUNK_BYTES, CHUNK_SHIFT

if TYPE_CHECKING:
    from replay.allocators.linux import State


def resident_pages(state: "State") -> np.ndarray:
    """Returns the addresses of all resident pages, sorted."""
    return _marked_pages(state, [state.mmap_pages, state.heap_pages, state.chunk_pages])


def lazy_pages(state: "State") -> np.ndarray:
    """Returns the addresses of all lazily freed pages, sorted."""
    return _marked_pages(state, [state.mmap_lazy, state.heap_lazy, state.chunk_lazy])


def toggled_pages(state: "State", before: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns copies of the tables of resident pages, and the sorted addresses of pages that became resident or were
    released since the copies `before`. In the first call, `before` is an empty list."""
    tables = [state.mmap_pages.copy(), state.heap_pages.copy(), state.chunk_pages.copy()]
    toggled = [table.copy() for table in tables]
    for table, old in zip(toggled, before, strict=False):
        table[: len(old)] ^= old
    pages, times = np.unique(_marked_pages(state, toggled), return_counts=True)
    return tables, pages[times == 1]  # a page occurs twice if it moved between tables


def resident_bytes(pages: np.ndarray, page_bytes: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the number of resident bytes of each stretch [start, end). `pages` are sorted addresses of resident
    pages."""
    return _resident_below(pages, page_bytes, ends) - _resident_below(pages, page_bytes, starts)


def _resident_below(pages: np.ndarray, page_bytes: int, addresses: np.ndarray) -> np.ndarray:
    page = addresses & -page_bytes
    below = np.searchsorted(pages, page)
    is_resident = np.append(pages, -1)[below] == page
    counted: np.ndarray = below * page_bytes + is_resident * (addresses - page)
    return counted


def uncovered(state: "State", starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns starts and ends of all committed stretches that are in none of the given [start, end)."""
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
    """Returns the sorted addresses of pages that are marked in the tables of mappings, heap and chunks."""
    space = state.space[0]
    mapped, heap, chunked = (_marked_bits(table) << space.page_shift for table in tables)
    starts = np.zeros(1 + len(state.directory), np.int64)
    starts[state.directory["chunk"]] = state.directory["stretch"] << CHUNK_SHIFT
    in_chunks = starts[(chunked >> CHUNK_SHIFT) + 1] + (chunked & (CHUNK_BYTES - 1))
    return np.sort(np.concatenate([in_chunks, space.brk_base + heap, space.mmap_base - space.page_size - mapped]))


def _marked_bits(words: np.ndarray) -> np.ndarray:
    """Returns the indexes of the set bits, sorted."""
    used = np.flatnonzero(words)
    bits = np.flatnonzero(np.unpackbits(words[used].view(np.uint8), bitorder="little"))
    return used[bits >> 6] * 64 + (bits & 63)
