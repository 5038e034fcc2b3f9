"""How much of a stretch of addresses is resident; plain Python, for reports."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from replay.allocators.linux import State


def resident_bytes(state: "State", starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """For each stretch [start, end) of the heap or of one mapping, how many of its bytes are in resident pages."""
    space = state.space[0]
    counted = np.zeros(len(starts), np.int64)
    is_mapped = (starts >= space.lowest) & (starts < space.mmap_base)
    is_heap = (starts >= space.brk_base) & (starts < space.brk)
    for chosen, base, resident in (
        (is_mapped, space.lowest, _bits(state.mmap_pages, (space.mmap_base - space.lowest) >> space.page_shift)[::-1]),
        (is_heap, space.brk_base, _bits(state.heap_pages, (space.brk - space.brk_base) >> space.page_shift)),
    ):
        below = np.concatenate(([0], np.cumsum(resident, dtype=np.int64)))
        is_resident = np.append(resident, 0)
        edges = [(address[chosen] - base) for address in (starts, ends)]
        first, last = (
            (below[edge >> space.page_shift] << space.page_shift)
            + is_resident[edge >> space.page_shift] * (edge & (space.page_size - 1))
            for edge in edges
        )
        counted[chosen] = last - first
    return counted


def _bits(words: np.ndarray, pages: int) -> np.ndarray:
    """0 or 1 for each of so many pages."""
    return np.unpackbits(words.view(np.uint8), count=int(pages), bitorder="little")
