"""Estimates the private dirty memory of forked children: the pages that a child writes to after the fork.

Parent and child share their pages until one of them writes to one. A child writes to

    its own blocks     pages of the blocks that it allocates, and those of pymalloc's pools, whose headers have counts
    freed blocks       a free links the block into the free blocks of its pool
    visited objects    a collection writes to the header of each object that it visits

Addresses are those of the recording. Reference counts are written too, but no recording has these writes, so there are
two bounds: none, and those of all objects that live at the fork.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from replay.jit.arrays import record, with_room
from replay.jit.compiling import entry
from replay.trace import FORK_MARK, NO_TYPE, TEARDOWN_MARK, Domain, Events, Op, Trace
from replay.trace.block_ops import FREE, allocates, concerns_block, requests
from replay.trace.typed import ends_of_blocks

PAGE_BITS, POOL_BITS = 12, 14
"""Of Linux on x86-64, and of pymalloc since 3.10."""
PAGE_BYTES = 1 << PAGE_BITS
_POOLED_MOST, _MAPPED_LEAST = 512, 128 << 10
"""The largest block of a pool. glibc maps blocks from 128 KiB on, and unmaps them at their free."""
_GENERATIONS = 3
_BLOCK = record("address", "bytes", "born", "is_live", "domain")
"""By number. `born`: the collections before its allocation."""
_GC_START, _MARK = int(Op.GC_START), int(Op.MARK)
_FREE = int(FREE)


@dataclass(frozen=True)
class ForkedMemory:
    """What a child writes to after a fork, in bytes of whole pages; field names are keys of `replay run --json`."""

    file: str
    """The recording of the child."""
    process: int
    """Its number."""
    fork: str
    """Name of the mark at the fork."""
    label: str
    """That the figures are an estimate."""
    private_dirty_bytes: int
    """Pages that allocations, frees and collections of the child write to: what its private dirty memory grows by."""
    private_dirty_bytes_high: int
    """The same if it also writes to the reference count of each object that lives at the fork."""
    collections_bytes: int
    """Those of the pages that only collections write to."""
    collections: int
    """Of the child."""


@dataclass(frozen=True)
class HeapAtFork:
    """The blocks of a parent that live at a fork, and are newer than its recording. By address."""

    address: np.ndarray
    bytes: np.ndarray
    is_pooled: np.ndarray
    is_object: np.ndarray
    generation: np.ndarray
    """Of a tracked object; -1 for other blocks and frozen objects."""
    older_pages: int
    """Pages with headers of older objects, which are in the oldest generation. Their addresses are unknown."""
    is_frozen: bool
    """Whether the older objects are."""


@entry
def _follow(
    op: np.ndarray,
    domain: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    address: np.ndarray,
    collections: int,
    blocks: np.ndarray,
) -> int:
    """Applies a batch to `blocks`, in place. Returns the number of collections after it."""
    for row in range(op.shape[0]):
        if op[row] == _GC_START:
            collections += 1
        if not concerns_block(op[row]):
            continue
        found = blocks[block[row]]
        if op[row] == _FREE:
            found.is_live = 0
            continue
        if allocates(op[row]):
            found.born, found.is_live, found.domain = collections, 1, domain[row]
        found.address, found.bytes = address[row], size[row]
    return collections


def forks_of(trace: Trace) -> list[str]:
    """Returns the names of the marks at the forks of a recording with types and addresses; empty for others."""
    metadata = trace.metadata
    return [name for name in metadata.phases if name.startswith(FORK_MARK)] if metadata.collector else []


def heap_at_fork(trace: Trace, fork: str, child: Trace, freeze_at: str | None = None) -> HeapAtFork | None:
    """Returns the heap of a recorded parent at a fork; None if the recording has no addresses.

    `freeze_at`: name of the phase at whose start `gc.freeze` would have been called; None: as recorded.
    """
    phases = trace.metadata.phases
    blocks, generations = np.zeros(1024, _BLOCK), list[np.ndarray]()
    collections = row = frozen = 0
    mark, freeze = phases.index(fork), phases.index(freeze_at) if freeze_at in phases else -1
    is_frozen = False
    for events in trace.batches():
        if events.address is None:
            return None
        marks = np.flatnonzero(events.op == Op.MARK)
        places = {int(events.size[at]): int(at) for at in marks[::-1]}
        stops = [places[each] for each in (freeze,) if each in places and not is_frozen]
        ends = [places[mark]] if mark in places else []
        blocks = with_room(blocks, events.highest_block + 1)
        begin = 0
        for stop in sorted({*stops, *ends, events.rows}):
            part = events.where(slice(begin, stop))
            assert part.address is not None
            collections = _follow(
                part.op, part.domain, part.block, part.size, part.address.astype(np.int64), collections, blocks
            )
            generations.append(part.size[part.op == Op.GC_START])
            begin = stop
            if stop in stops:
                is_frozen, frozen = True, 1
                blocks["born"][blocks["is_live"] == 1] = -1  # frozen
            if stop in ends:
                break
        if ends:
            row += ends[0]
            break
        row += events.rows
    older = np.flatnonzero(np.concatenate([*generations, np.zeros(0, np.int64)]))
    return _heap(trace, child, row, blocks, collections, int(older[-1]) if len(older) else -1, frozen)


def _heap(
    trace: Trace, child: Trace, row: int, blocks: np.ndarray, collections: int, last_older: int, frozen: int
) -> HeapAtFork:
    """Returns the heap before a row. `last_older`: the last collection of generation 1 or 2 before it."""
    metadata = trace.metadata
    numbers = np.flatnonzero(blocks["is_live"])
    types, is_untracked = ends_of_blocks(trace, row, numbers)
    found = blocks[numbers]
    is_object = types != NO_TYPE
    collected = np.array([each.collected for each in metadata.types] or [False])
    is_tracked = np.zeros(len(numbers), bool)
    is_tracked[is_object] = collected[types[is_object]]
    is_tracked &= ~is_untracked & (found["born"] >= 0)
    born = found["born"]
    generation = np.where(born == collections, 0, np.where(born <= last_older, 2, 1))
    before, after = metadata.collector, child.metadata.collector
    older_pages = before.pages if before else 0
    if after and after.frozen_objects and not frozen:  # the program itself called gc.freeze
        newest = np.flatnonzero(is_tracked)[np.argsort(born[is_tracked], kind="stable")]
        is_tracked[newest[: max(len(newest) - after.old_objects - after.counts[0], 0)]] = False
        frozen = 1
    order = np.argsort(found["address"], kind="stable")
    return HeapAtFork(
        address=found["address"][order],
        bytes=found["bytes"][order],
        is_pooled=_is_pooled(found["bytes"], found["domain"])[order],
        is_object=is_object[order],
        generation=np.where(is_tracked, generation, -1)[order],
        older_pages=older_pages,
        is_frozen=frozen > 0,
    )


def forked_memory(
    heap: HeapAtFork, child: Trace, collecting: Trace, file: str, process: int, fork: str
) -> ForkedMemory | None:
    """Returns what a child writes to from the fork to its end; None if its recording has no addresses.

    `collecting`: the child's recording under other settings of the collector, or itself.
    """
    written, large = [np.zeros(0, np.int64)], dict[int, np.ndarray]()
    for events in _program(child):
        if events.address is None:
            return None
        written.append(_written_pages(events, events.address.astype(np.int64), heap, large))
    own = np.unique(np.concatenate([*written, *large.values()]))
    generations = [each for events in _program(collecting) for each in events.size[events.op == Op.GC_START].tolist()]
    is_visited = _visited_generations(generations)
    visited = np.flatnonzero((heap.generation >= 0) & is_visited[heap.generation])
    of_collections = np.setdiff1d(heap.address[visited] >> PAGE_BITS, own)
    more = len(of_collections) + (heap.older_pages if is_visited[_GENERATIONS - 1] and not heap.is_frozen else 0)
    counted = np.union1d(own, heap.address[heap.is_object] >> PAGE_BITS)
    return ForkedMemory(
        file=file,
        process=process,
        fork=fork,
        label="estimate",
        private_dirty_bytes=(len(own) + more) * PAGE_BYTES,
        private_dirty_bytes_high=(len(np.union1d(counted, of_collections)) + heap.older_pages) * PAGE_BYTES,
        collections_bytes=more * PAGE_BYTES,
        collections=len(generations),
    )


def _program(trace: Trace) -> Iterator[Events]:
    """Yields the batches of a trace up to the interpreter's teardown."""
    phases = trace.metadata.phases
    teardown = phases.index(TEARDOWN_MARK) if TEARDOWN_MARK in phases else -1
    for events in trace.batches():
        ends = np.flatnonzero((events.op == Op.MARK) & (events.size == teardown))
        yield events.where(slice(0, int(ends[0]))) if len(ends) else events
        if len(ends):
            return


def _visited_generations(collections: list[int]) -> np.ndarray:
    """Returns whether these collections visit the objects that are in each generation before them."""
    place, is_visited = np.arange(_GENERATIONS), np.zeros(_GENERATIONS, bool)
    for generation in collections:
        is_examined = place <= generation
        is_visited |= is_examined
        place[is_examined] = min(generation + 1, _GENERATIONS - 1)
    return is_visited


def _is_pooled(sizes: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Whether pymalloc has the block in a pool."""
    return (sizes <= _POOLED_MOST) & ((domain == Domain.MEM) | (domain == Domain.OBJ))


def _written_pages(events: Events, addresses: np.ndarray, heap: HeapAtFork, large: dict[int, np.ndarray]) -> np.ndarray:
    """Returns the pages that a batch of a child writes to. Those of mapped blocks are in `large`, by block, while they
    live."""
    is_request = requests(events.op) & (addresses > 0)
    is_mapped = is_request & (events.size >= _MAPPED_LEAST)
    candidates = np.concatenate([events.block[is_mapped], np.array(list(large), np.uint32)])
    for row in np.flatnonzero(concerns_block(events.op) & np.isin(events.block, candidates)):
        large.pop(int(events.block[row]), None)
        if is_mapped[row]:
            last = int(addresses[row] + events.size[row] - 1) >> PAGE_BITS
            large[int(events.block[row])] = np.arange(int(addresses[row]) >> PAGE_BITS, last + 1)
    rows = np.flatnonzero(is_request & ~is_mapped)
    address, sizes = addresses[rows], events.size[rows]
    pooled = address[_is_pooled(sizes, events.domain[rows])]
    freed = addresses[(events.op == Op.FOREIGN_FREE) & (addresses > 0)]
    places = np.minimum(np.searchsorted(heap.address, freed), max(len(heap.address) - 1, 0))
    if len(places):
        pooled = np.concatenate([pooled, freed[(heap.address[places] == freed) & heap.is_pooled[places]]])
    first, last = address >> PAGE_BITS, (address + np.maximum(sizes, 1) - 1) >> PAGE_BITS
    spans = np.unique(np.stack([first, last], axis=1), axis=0)
    lengths = spans[:, 1] - spans[:, 0] + 1
    inside = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    pools = pooled >> POOL_BITS << (POOL_BITS - PAGE_BITS)
    return np.unique(np.concatenate([np.repeat(spans[:, 0], lengths) + inside, pools, freed >> PAGE_BITS]))
