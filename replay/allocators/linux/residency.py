"""Which pages are resident, as snapshots and reports see it; plain Python."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from replay.allocators.linux import State


def resident_pages(state: "State") -> np.ndarray:
    """Addresses of all resident pages, sorted."""
    return _addresses(state, [state.mmap_pages, state.heap_pages])


def toggled_pages(state: "State", before: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Copies of the marks of resident pages, and the sorted addresses of pages that became resident, or ceased to be,
    since the copies `before` were made; at first that is an empty list."""
    marks = [state.mmap_pages.copy(), state.heap_pages.copy()]
    toggled = [now.copy() for now in marks]
    for now, old in zip(toggled, before, strict=False):
        now[: len(old)] ^= old
    return marks, _addresses(state, toggled)


def _addresses(state: "State", marks: list[np.ndarray]) -> np.ndarray:
    """The addresses of marked pages, sorted: the heap's lie below all mappings."""
    space = state.space[0]
    mapped, heap = (_set_bits(words) for words in marks)
    mapped_addresses = space.mmap_base - (1 + mapped[::-1]) * space.page_size
    return np.concatenate([space.brk_base + heap * space.page_size, mapped_addresses])


def _set_bits(words: np.ndarray) -> np.ndarray:
    """The numbers of the bits that are set; most words have none."""
    used = np.flatnonzero(words)
    place, bit = np.nonzero(np.unpackbits(words[used].view(np.uint8), bitorder="little").reshape(-1, 64))
    numbers: np.ndarray = used[place] * 64 + bit
    return numbers


def resident_bytes(pages: np.ndarray, page_bytes: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """For each stretch [start, end), how many of its bytes lie in the sorted `pages`."""
    return _resident_below(pages, page_bytes, ends) - _resident_below(pages, page_bytes, starts)


def _resident_below(pages: np.ndarray, page_bytes: int, addresses: np.ndarray) -> np.ndarray:
    page = addresses & -page_bytes
    below = np.searchsorted(pages, page)
    is_resident = np.append(pages, -1)[below] == page
    counted: np.ndarray = below * page_bytes + is_resident * (addresses - page)
    return counted
