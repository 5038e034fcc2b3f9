"""glibc's memory at one moment: each chunk, top chunks, mapped chunks, and what of a heap is no chunk.

A region is a heap or a mapping. A main heap of several mappings (`hugetlb`) is one region, by the address of its units.
A mapping that glibc unmaps, but Linux keeps because that would cut a huge page, is in no span: glibc has forgotten it.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from replay.allocators._spans import (
    NEVER,
    Reported,
    SpanChanges,
    SpanKind,
    TopRule,
    report,
    report_simple,
    retract,
    with_items,
    written,
)
from replay.allocators.glibc.bins import FASTBINS
from replay.allocators.glibc.large_cache import following
from replay.allocators.glibc.memory import HEAP_SHIFT, HEAPS_MAX, IN_HEAP, NBINS, UNIT_SHIFT, UNSORTED
from replay.allocators.glibc.system import MAIN_ARENA, MAIN_HEAP, MAPPED_PLACE, address_of, heap_step
from replay.allocators.linux.areas import is_hugetlb
from replay.jit.arrays import concatenated
from replay.jit.compiling import entry, inlined, leaf

if TYPE_CHECKING:
    from replay.allocators.glibc import State

CHUNK, FREE_CHUNK, CACHED_CHUNK, TOP_CHUNK = (
    int(kind) for kind in (SpanKind.CHUNK, SpanKind.FREE_CHUNK, SpanKind.CACHED_CHUNK, SpanKind.TOP_CHUNK)
)
MAPPING, CACHED_MAPPING = int(SpanKind.MAPPING), int(SpanKind.CACHED_MAPPING)
INTERNAL, TRIMMED = int(SpanKind.INTERNAL), int(SpanKind.TRIMMED)
UNMARKED, FENCE, UNUSED = 0, 254, 255
"""Marks besides kinds of span: live or free, as the record says; the end of a full heap; a record without a mapping."""


class Seen(NamedTuple):
    """What was reported of chunks, of mappings, of the memory around the chunks of each heap, and of what is left of
    huge pages behind the main heap's mappings."""

    chunks: Reported
    mappings: Reported
    heaps: Reported
    tails: Reported


def spans(state: "State", stack: NamedTuple) -> np.ndarray:
    """Rows of SPAN for every heap and mapping, each of which is a region."""
    return span_changes(state, stack, None).rows


def span_changes(state: "State", stack: NamedTuple, seen: Seen | None) -> SpanChanges:
    """What changed since `seen` was returned."""
    par, space = state.par[0], stack.linux  # type: ignore[attr-defined]
    known = seen or Seen(None, None, None, None)  # type: ignore[arg-type]
    now = Seen(
        with_items(known.chunks, int(par.chunks)),
        with_items(known.mappings, 2 * int(par.used)),
        with_items(known.heaps, 2 * HEAPS_MAX),
        with_items(known.tails, int(par.chunks) if par.hp_bytes else 0),
    )
    marks, mapped_marks = np.zeros(int(par.chunks), np.uint8), np.zeros(int(par.used), np.uint8)
    mark_chunks(state, marks, mapped_marks)
    report_chunks(state, space, marks, now.chunks, now.heaps, now.tails, np.zeros(HEAPS_MAX, np.uint8))
    report_mappings(state, space, mapped_marks, now.mappings)
    gone, rows = zip(*(written(each)[1:] for each in now), strict=True)
    return SpanChanges(now, np.concatenate(gone), concatenated(rows))


def top_rule(state: "State", stack: NamedTuple, region: int) -> TopRule:
    """Returns when systrim or heap_trim releases the free end of a heap, and how much of it."""
    par = state.par[0]
    step = int(heap_step(state, stack, region == state.heaps[MAIN_HEAP].address))
    kept_bytes = (int(par.min_units) << UNIT_SHIFT) + 1 + int(par.top_pad)
    return TopRule(NEVER if par.hp_bytes else int(par.trim_threshold), kept_bytes, step)


@entry
def mark_chunks(state, marks, mapped_marks):
    """Writes the kinds of chunks that their records do not tell: cached ones, top chunks, glibc's own."""
    memory = state.memory
    for slot in range(state.cache.shape[0]):
        place = state.cache[slot].first
        while place:
            if place >= MAPPED_PLACE:
                mapped_marks[place & (MAPPED_PLACE - 1)] = CACHED_MAPPING
            else:
                marks[place] = CACHED_CHUNK
            place = following(state, place)
    for thread in range(state.threads.shape[0]):
        if state.threads[thread].cache_chunk:
            marks[state.threads[thread].cache_chunk] = INTERNAL
    index = state.par[0].unused
    while index >= 0:
        mapped_marks[index] = UNUSED
        index = state.mapped[index].next
    number = np.int64(MAIN_ARENA)
    while True:
        arena = state.arenas[number]
        for index in range(FASTBINS):
            chunk = np.int64(state.fastbins[arena.fastbins + index])
            while chunk:
                marks[chunk] = CACHED_CHUNK
                chunk = np.int64(memory[chunk].fd)
        if arena.top != UNSORTED:
            marks[arena.top] = TOP_CHUNK
            heap = state.heaps[arena.heap].previous
            while heap:
                marks[state.heaps[heap].fence] = FENCE
                heap = state.heaps[heap].previous
        number = arena.next
        if number == MAIN_ARENA:
            return


@entry
def report_chunks(state, space, marks, chunks, heaps, tails, has_chunks):
    """Reports all chunks, by the number of their record, and the rest of each heap; `has_chunks` is zeros by heap."""
    memory, has_tails = state.memory, state.par[0].hp_bytes != 0
    for chunk in range(NBINS, marks.shape[0]):
        found = memory[chunk]
        if found.head == 0:
            retract(chunks, chunk)
            if has_tails:
                retract(tails, chunk)
            continue
        number, address = _heap_of(found), address_of(state, chunk)
        heap = state.heaps[number]
        if has_tails and number == MAIN_HEAP:
            ends = _ends_mapping(memory, found)
            mark = INTERNAL if ends else marks[chunk]
            _report_chunk(chunks, chunk, found, mark, heap.origin, address, heap.end)
            if ends or mark == TOP_CHUNK:
                end = heap.end if mark == TOP_CHUNK else address + _size_bytes(found)
                report_simple(tails, chunk, INTERNAL, end, _left_of_page(space, address, end), heap.origin, False)
            else:
                retract(tails, chunk)
            continue
        _report_chunk(chunks, chunk, found, marks[chunk], heap.address, address, heap.end)
        if found.before == 0:
            has_chunks[number] = 1
            behind_bytes = 0 if number == MAIN_HEAP else heap.limit - heap.end
            report_simple(heaps, 2 * number, INTERNAL, heap.address, address - heap.address, heap.address, False)
            report_simple(heaps, 2 * number + 1, TRIMMED, heap.end, behind_bytes, heap.address, False)
    for number in range(HEAPS_MAX):
        if not has_chunks[number]:
            retract(heaps, 2 * number)
            retract(heaps, 2 * number + 1)


@inlined
def _heap_of(found):
    """The number of the heap that the chunk lies in."""
    start = np.int64(found.start)
    return (start >> HEAP_SHIFT) & (HEAPS_MAX - 1) if start >= IN_HEAP else np.int64(MAIN_HEAP)


@inlined
def _size_bytes(found):
    return np.int64(found.head >> 1) << UNIT_SHIFT


@leaf
def _left_of_page(space, address, end):
    """Bytes of the last huge page behind a mapping that ends there, if it is made of such pages."""
    return -end & (space.space[0].huge_page_size - 1) if is_hugetlb(space, address) else np.int64(0)


@leaf
def _ends_mapping(memory, found):
    """Whether the next chunk of a main heap of several mappings lies in another one."""
    return found.behind != 0 and memory[found.behind].start != found.start + (found.head >> 1)


@inlined
def _report_chunk(chunks, chunk, found, mark, region, address, heap_end):
    """Reports a chunk of a heap that ends at `heap_end`, up to where its last chunk reaches."""
    size_bytes = _size_bytes(found)
    if mark == UNMARKED and found.head & 1 == 0:
        content = size_bytes << 8 | CHUNK
        report(chunks, chunk, content, CHUNK, address, size_bytes, region, 0, 1, size_bytes, 0)
    elif mark == UNMARKED:
        report_simple(chunks, chunk, FREE_CHUNK, address, size_bytes, region, True)
    elif mark == TOP_CHUNK:
        report_simple(chunks, chunk, TOP_CHUNK, address, heap_end - address, region, True)
    elif mark == FENCE:
        report_simple(chunks, chunk, INTERNAL, address, heap_end - address, region, False)
    else:
        report_simple(chunks, chunk, mark, address, size_bytes, region, mark != INTERNAL)


@entry
def report_mappings(state, space, marks, mappings):
    """Reports all mapped chunks, by the number of their record, and what is left of their last huge page."""
    for index in range(marks.shape[0]):
        mapped = state.mapped[index]
        address, size_bytes = mapped.address, mapped.size_bytes
        if marks[index] == UNUSED:
            retract(mappings, 2 * index)
            retract(mappings, 2 * index + 1)
            continue
        if marks[index] == CACHED_MAPPING:
            report_simple(mappings, 2 * index, CACHED_MAPPING, address, size_bytes, address, True)
        else:
            content = size_bytes << 8 | MAPPING
            report(mappings, 2 * index, content, MAPPING, address, size_bytes, address, 0, 1, size_bytes, 0)
        end = address + size_bytes
        report_simple(mappings, 2 * index + 1, INTERNAL, end, _left_of_page(space, address, end), address, False)
