"""Which pages are resident, and how much of a stretch of addresses; plain Python, for reports and checks."""

from typing import TYPE_CHECKING

import numpy as np

from replay.allocators.linux.settings import CHUNK_BYTES, CHUNK_SHIFT

if TYPE_CHECKING:
    from replay.allocators.linux import State


def resident_bytes(state: "State", starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """For each stretch [start, end), how many of its bytes are in resident pages."""
    page, pages = state.space[0].page_size, resident_pages(state)
    resident_ends = np.append(pages, -1) + page
    below = []
    for edges in (starts, ends):
        index = np.searchsorted(pages, edges)  # so many pages begin below the edge, the last of which may end above it
        below.append(index * page - np.where(index > 0, np.maximum(resident_ends[index - 1] - edges, 0), 0))
    counted: np.ndarray = below[1] - below[0]
    return counted


def resident_pages(state: "State") -> np.ndarray:
    """The addresses of all resident pages, sorted."""
    return _marked_pages(state, (state.mmap_pages, state.heap_pages, state.chunk_pages))


def lazy_pages(state: "State") -> np.ndarray:
    """The addresses of all pages that were lazily freed, sorted."""
    return _marked_pages(state, (state.mmap_lazy, state.heap_lazy, state.chunk_lazy))


def _marked_pages(state: "State", tables: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
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
