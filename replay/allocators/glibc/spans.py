"""glibc's memory at one moment: each chunk, top chunks, mapped chunks, and what of a heap is no chunk."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from replay.allocators._spans import SpanKind, span_rows
from replay.allocators.glibc.arena import FASTBINS
from replay.allocators.glibc.large_cache import following
from replay.allocators.glibc.memory import HEAP_SHIFT, HEAP_UNITS, HEAPS_MAX, IN_HEAP, UNIT_SHIFT, UNSORTED, is_free
from replay.allocators.glibc.system import MAIN_ARENA, MAIN_HEAP, MAPPED_PLACE
from replay.jit.compiling import entry

if TYPE_CHECKING:
    from replay.allocators.glibc import State

LIVE, FREE, CACHED, TOP, INTERNAL = range(5)
"""What a chunk is, in `marks`."""
_KINDS = {
    LIVE: SpanKind.CHUNK,
    FREE: SpanKind.FREE_CHUNK,
    CACHED: SpanKind.CACHED_CHUNK,
    TOP: SpanKind.TOP_CHUNK,
    INTERNAL: SpanKind.INTERNAL,
}


@entry
def walk_chunks(state, marks, mapped_marks, numbers, heap_of):
    """Finds all chunks; writes in place what each is, by its number, and returns how many there are.

    `numbers` becomes the chunks of each heap, by falling address, `heap_of` their heaps. `mapped_marks` becomes CACHED
    for mapped chunks in a thread's cache.
    """
    memory = state.memory
    for slot in range(state.cache.shape[0]):
        place = state.cache[slot].first
        while place:
            if place >= MAPPED_PLACE:
                mapped_marks[place & (MAPPED_PLACE - 1)] = CACHED
            else:
                marks[place] = CACHED
            place = following(state, place)
    for thread in range(state.threads.shape[0]):
        if state.threads[thread].cache_chunk:
            marks[state.threads[thread].cache_chunk] = INTERNAL
    count, number = 0, np.int64(MAIN_ARENA)
    while True:
        arena = state.arenas[number]
        for index in range(FASTBINS):
            chunk = np.int64(state.fastbins[arena.fastbins + index])
            while chunk:
                marks[chunk] = CACHED
                chunk = np.int64(memory[chunk].fd)
        heap, chunk = arena.heap, np.int64(arena.top)
        if chunk != UNSORTED:
            marks[chunk] = TOP
        while heap and chunk != UNSORTED:
            while chunk:
                if is_free(memory, chunk):
                    marks[chunk] = FREE
                numbers[count], heap_of[count] = chunk, heap
                count += 1
                chunk = np.int64(memory[chunk].before)
            heap = state.heaps[heap].previous
            if heap:
                chunk = np.int64(state.heaps[heap].fence)
                marks[chunk] = INTERNAL
        number = arena.next
        if number == MAIN_ARENA:
            return count


def _unused_mappings(state: "State") -> set[int]:
    unused, index = set(), int(state.par[0].unused)
    while index >= 0:
        unused.add(index)
        index = int(state.mapped[index].next)
    return unused


def spans(state: "State", stack: NamedTuple) -> np.ndarray:
    """Rows of SPAN for every heap and mapping, each of which is a region."""
    par = state.par[0]
    marks, mapped_marks = np.zeros(int(par.chunks), np.uint8), np.zeros(int(par.used), np.uint8)
    numbers, heap_of = np.zeros(int(par.chunks), np.int64), np.zeros(int(par.chunks), np.int64)
    count = walk_chunks(state, marks, mapped_marks, numbers, heap_of)
    numbers, heap_of = numbers[:count][::-1], heap_of[:count][::-1]
    address, size_bytes = (
        _addresses(state, numbers),
        (state.memory["head"][numbers].astype(np.int64) >> 1) << UNIT_SHIFT,
    )
    kinds = marks[numbers]
    ends_heap = np.append(heap_of[1:] != heap_of[:-1], True)[:count]
    size_bytes[ends_heap] = state.heaps["end"][heap_of[ends_heap]] - address[ends_heap]
    region = state.heaps["address"][heap_of]
    rows = []
    for mark, kind in _KINDS.items():
        chosen = kinds == mark
        rows.append(
            span_rows(
                kind,
                address[chosen],
                size_bytes[chosen],
                region[chosen],
                live_blocks=int(mark == LIVE),
                live_bytes=size_bytes[chosen] if mark == LIVE else 0,
                free_bytes=size_bytes[chosen] if mark in (FREE, CACHED, TOP) else 0,
            )
        )
    return np.concatenate([*rows, *_around_chunks(state, address, heap_of), *_mappings(state, mapped_marks)])


def _addresses(state: "State", numbers: np.ndarray) -> np.ndarray:
    start = state.memory["start"][numbers].astype(np.int64)
    own = start >= IN_HEAP
    heap = np.where(own, (start >> HEAP_SHIFT) & (HEAPS_MAX - 1), MAIN_HEAP)
    units = np.where(own, start & (HEAP_UNITS - 1), start)
    addresses: np.ndarray = state.heaps["origin"][heap] + (units << UNIT_SHIFT)
    return addresses


def _around_chunks(state: "State", address: np.ndarray, heap_of: np.ndarray) -> list[np.ndarray]:
    """What lies before the first chunk of each heap, and what is still writable behind its end."""
    starts = np.flatnonzero(np.append(True, heap_of[1:] != heap_of[:-1])[: len(heap_of)])
    heaps = state.heaps[heap_of[starts]]
    tail = np.where(heap_of[starts] == MAIN_HEAP, 0, heaps["limit"] - heaps["end"])
    return [
        span_rows(SpanKind.INTERNAL, heaps["address"], address[starts] - heaps["address"], heaps["address"]),
        span_rows(SpanKind.TRIMMED, heaps["end"], tail, heaps["address"]),
    ]


def _mappings(state: "State", marks: np.ndarray) -> list[np.ndarray]:
    live = np.array(sorted(set(range(len(marks))) - _unused_mappings(state)), np.int64)
    rows = []
    for mark, kind in ((LIVE, SpanKind.MAPPING), (CACHED, SpanKind.CACHED_MAPPING)):
        mapped = state.mapped[live[marks[live] == mark]]
        whole = mapped["size_bytes"]
        is_live = mark == LIVE
        rows.append(
            span_rows(
                kind,
                mapped["address"],
                whole,
                mapped["address"],
                live_blocks=int(is_live),
                live_bytes=whole if is_live else 0,
                free_bytes=0 if is_live else whole,
            )
        )
    return rows
