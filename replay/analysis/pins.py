"""Pins: the live blocks that keep memory from being released, and what is released if some of them are gone.

Two kinds of memory are retained by pins:

    arena   a region that is released as a whole. All its live blocks pin it
    heap    a region that is released from its end (`TopRule`). Its last chunk pins all that is free before it, the next
            chunk what is free before that, and so on

Blocks are grouped, for instance by call site. A set of groups releases the arenas in which it has all live blocks, and
of each heap the end in which no other chunk lies. One group can release nothing where two together release much, so
bytes of groups do not add up; `Pins.cover` names sets.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from replay.analysis.block_groups import Grouped, group_of
from replay.analysis.retention import CACHED, OF_ALLOCATOR, Heap, Retained
from replay.jit.compiling import entry

BUDGET = 5
"""The largest set of groups in a cover."""
EXACT_GROUPS = 12
"""Up to so many groups, covers are the best ones; otherwise each set extends the one before it."""
_SHIFT = 2
_NAMES = {CACHED: "freed blocks in a cache of libc", OF_ALLOCATOR: "tables of the allocators"}


def is_no_call_site(name: str) -> bool:
    """Returns whether the name of a group stands for blocks of the allocators, not of the program."""
    return name in _NAMES.values()


class Group(NamedTuple):
    """The pins of one call site, size class, thread, phase or domain."""

    name: str
    pinned_bytes: int
    """Resident bytes that are released if the group's blocks are gone, and no others."""
    shared_bytes: int
    """Resident bytes that are released if the group's blocks and those of certain other groups are gone."""
    blocks: int
    spans: int
    """Number of arenas and heaps with pins of the group."""
    oldest_ns: int
    """Age of the oldest pin."""


class HeapEnd(NamedTuple):
    """The last chunks of a heap that belong to one group."""

    name: str
    blocks: int
    released_bytes: int
    """What is released if they are gone."""


class Cover(NamedTuple):
    """A set of groups, and what is released if all of them are gone."""

    groups: list[str]
    released_bytes: int


class Pins(NamedTuple):
    """The pins at one moment, by group."""

    groups: list[Group]
    """By falling pinned bytes, then shared bytes."""
    releasable_bytes: int
    """What is released if all groups are gone."""
    cover: list[Cover]
    """The sets of 1 to BUDGET groups that release most."""
    is_exact: bool
    """Whether the sets are the best ones. Otherwise each adds one group to the set before it."""


@entry
def _gather(
    numbers: np.ndarray,
    codes: np.ndarray,
    arena_of: np.ndarray,
    allocated_ns: np.ndarray,
    is_in: np.ndarray,
    blocks: np.ndarray,
    first_ns: np.ndarray,
) -> None:
    """Counts the blocks in arenas by group, in place: by index, the arenas of each group, and the first allocation.

    `numbers` and `codes` are those of `Grouped`. `arena_of`: the arena of each block, -1 for none.
    """
    for at in range(numbers.shape[0]):
        if arena_of[at] >= 0:
            index = group_of(numbers, codes, at) + _SHIFT
            is_in[index, arena_of[at]] = True
            blocks[index] += 1
            first_ns[index] = min(first_ns[index], allocated_ns[at])


@entry
def _gather_chunks(
    numbers: np.ndarray,
    codes: np.ndarray,
    places: np.ndarray,
    allocated_ns: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    blocks: np.ndarray,
    first_ns: np.ndarray,
) -> tuple[int, int]:
    """Counts the chunks at the end of a heap, up to the first one of an allocator, by group, in place.

    Writes the groups into `order` as they occur, and where each starts into `starts`, which is -1 by index at first.
    Returns the number of groups, and of chunks.
    """
    groups = 0
    for at in range(places.shape[0]):
        place = places[at]
        if place == OF_ALLOCATOR:  # it never goes
            return groups, at
        index = place + _SHIFT if place < 0 else group_of(numbers, codes, place) + _SHIFT
        if starts[index] < 0:
            starts[index] = at
            order[groups] = index
            groups += 1
        blocks[index] += 1
        if place >= 0:
            first_ns[index] = min(first_ns[index], allocated_ns[place])
    return groups, places.shape[0]


@entry
def _count_left(group: np.ndarray, arena: np.ndarray, gone: np.ndarray, left: np.ndarray) -> None:
    """Counts the groups of each arena that are not gone, in place."""
    for at in range(group.shape[0]):
        if not gone[group[at]]:
            left[arena[at]] += 1


@entry
def _share_arenas(
    group: np.ndarray,
    arena: np.ndarray,
    gone: np.ndarray,
    sizes: np.ndarray,
    left: np.ndarray,
    freed: np.ndarray,
    largest: np.ndarray,
    share: np.ndarray,
) -> None:
    """Adds to each group that is not gone its equal share of each arena, and what it would free as the last one: the
    sum and the largest arena. Changes the last three arrays in place.

    `left`: the number of groups of each arena that are not gone.
    """
    for at in range(group.shape[0]):
        index, size, groups = group[at], sizes[arena[at]], left[arena[at]]
        if gone[index]:
            continue
        share[index] += size / groups
        if groups == 1:
            freed[index] += size
            largest[index] = max(largest[index], size)


class _HeapOrder(NamedTuple):
    """The groups at the end of a heap, in the order in which they must go."""

    order: np.ndarray
    """Indexes of groups."""
    released: np.ndarray
    """Resident bytes that are released if the groups up to this one are gone; 0 comes before the first."""

    def value(self, gone: np.ndarray) -> int:
        """Returns what is released without the groups that are gone, a mask by index."""
        return int(self.released[self.first_left(gone)])

    def first_left(self, gone: np.ndarray) -> int:
        """Returns the number of groups before the first one that is not gone."""
        return int(np.argmin(np.append(gone[self.order], False)))


class Grouping:
    """The blocks of a moment in groups: evaluates which sets of groups release how much.

    A group has the index `code + _SHIFT`, so that CACHED has one, too.
    """

    def __init__(self, retained: Retained, grouped: Grouped) -> None:
        self._retained, self._names, self._grouped = retained, grouped.names, grouped
        count, arenas = len(grouped.names) + _SHIFT, len(retained.arenas)
        self._sizes = retained.arenas
        self._blocks, self._first_ns = np.zeros(count, np.int64), np.full(count, retained.at_ns)
        is_in, allocated_ns = np.zeros((count, arenas), bool), retained.blocks.allocated_ns
        numbers, codes, _ = grouped
        _gather(numbers, codes, retained.arena_of, allocated_ns, is_in, self._blocks, self._first_ns)
        self._group, self._arena = np.nonzero(is_in)
        """The groups of arenas, by index and then by arena."""
        self._heaps = [self._order(heap) for heap in retained.heaps]

    def _order(self, heap: Heap) -> _HeapOrder:
        count = len(self._names) + _SHIFT
        order, starts = np.zeros(count, np.int64), np.full(count, -1)
        numbers, codes, _ = self._grouped
        groups, chunks = _gather_chunks(
            numbers, codes, heap.blocks, self._retained.blocks.allocated_ns, order, starts, self._blocks, self._first_ns
        )
        order = order[:groups]
        free = np.append(starts[order], chunks)[1:]  # chunks that are free if this group and all before it are gone
        return _HeapOrder(order, np.append(0, self._retained.released_from(heap, free)))

    def _mask(self, groups: Iterable[int]) -> np.ndarray:
        gone = np.zeros(len(self._blocks), bool)
        gone[[code + _SHIFT for code in groups]] = True
        return gone

    def released_bytes(self, groups: Iterable[int]) -> int:
        """Returns the resident bytes that are released if all blocks of these groups are gone."""
        gone = self._mask(groups)
        freed = self._sizes[self._left(gone) == 0]
        return self._of_arenas(int(freed.sum()), int(freed.max(initial=0))) + sum(
            heap.value(gone) for heap in self._heaps
        )

    def _left(self, gone: np.ndarray) -> np.ndarray:
        """Returns the number of groups of each arena that are not gone."""
        left = np.zeros(len(self._sizes), np.int64)
        _count_left(self._group, self._arena, gone, left)
        return left

    def _of_arenas(self, freed: Any, largest: Any) -> Any:
        """Returns what is released if arenas of so many bytes have no live block. The order of frees decides which one
        is kept: assume the largest."""
        return freed - largest if self._retained.kept_arenas else freed

    def released_bytes_of(self, names: Iterable[str]) -> int:
        """Returns the same for groups by name."""
        return self.released_bytes(map(self._names.index, names))

    def pins(self) -> Pins:
        """Returns the groups that pin memory, and the sets of them that release most."""
        codes = (np.flatnonzero(self._blocks) - _SHIFT).tolist()
        releasable = self.released_bytes(codes)
        rows = self._groups(codes, releasable)
        is_exact = len(codes) <= EXACT_GROUPS
        cover = self._best_covers(codes) if is_exact else self._greedy_covers()
        return Pins(rows, releasable, cover, is_exact)

    def _groups(self, codes: list[int], releasable: int) -> list[Group]:
        """Returns all groups, sorted."""
        pinned = self._with_one_more(np.zeros(len(self._blocks), bool))[0]
        spans, others = self._spans(), self._of_all_others()
        rows = []
        for code in codes:
            at = code + _SHIFT
            alone = int(pinned[at])
            shared = releasable - int(others[at]) - alone
            age_ns = int(self._retained.at_ns - self._first_ns[at])
            rows.append(Group(self.name(code), alone, shared, int(self._blocks[at]), int(spans[at]), age_ns))
        return sorted(rows, key=lambda row: (-row.pinned_bytes, -row.shared_bytes, row.name))

    def _spans(self) -> np.ndarray:
        """Returns the number of arenas and heaps with pins of each group."""
        spans = np.bincount(self._group, minlength=len(self._blocks))
        for heap in self._heaps:
            spans[heap.order] += 1
        return spans

    def _of_all_others(self) -> np.ndarray:
        """Returns for each group what is released if all groups but this one are gone."""
        count, sizes = len(self._blocks), self._sizes
        mine = np.bincount(self._group, sizes[self._arena], count).astype(np.int64)
        # The largest arena without a group is the first one that is missing in the group's arenas.
        of_group = np.bincount(self._group, minlength=count)
        position = np.arange(len(self._group)) - np.repeat(np.cumsum(of_group) - of_group, of_group)
        missing, differs = of_group.copy(), self._arena != position
        np.minimum.at(missing, self._group[differs], position[differs])
        released = self._of_arenas(sizes.sum() - mine, np.append(sizes, 0)[missing])
        for heap in self._heaps:
            of_heap = np.full(count, heap.released[-1])
            of_heap[heap.order] = heap.released[:-1]
            released = released + of_heap
        return np.asarray(released)

    def _with_one_more(self, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each group what is released if it and those in the mask are gone, and its share of the memory
        that is not released yet: equal parts of each arena; and of each heap, for the group that must go first, the
        most bytes per group that are released if it and the next ones go."""
        count, sizes, left = len(self._blocks), self._sizes, self._left(gone)
        freed = np.full(count, sizes[left == 0].sum())
        largest = np.full(count, sizes[left == 0].max(initial=0))
        share = np.zeros(count)
        _share_arenas(self._group, self._arena, gone, sizes, left, freed, largest, share)
        released = self._of_arenas(freed, largest)
        for heap in self._heaps:
            first = heap.first_left(gone)
            of_heap = np.full(count, heap.released[first])
            if first < len(heap.order):
                next_ = heap.order[first]
                more = gone.copy()
                more[next_] = True
                of_heap[next_] = heap.value(more)
                others = np.cumsum(~gone[heap.order[first:]])
                share[next_] += ((heap.released[first + 1 :] - heap.released[first]) / others).max()
            released = released + of_heap
        return released, share

    def name(self, code: int) -> str:
        """Returns the name of a group."""
        return _NAMES[code] if code < 0 else self._names[code]

    def heap_ends(self) -> list[HeapEnd]:
        """Returns what keeps the end of each heap from being released."""
        found = []
        for heap, groups in zip(self._retained.heaps, self._heaps, strict=True):
            codes, is_block = heap.blocks.copy(), heap.blocks >= 0
            codes[is_block] = self._grouped.of_blocks(codes[is_block])
            if len(codes):
                blocks = int(np.argmin(np.append(codes == codes[0], False)))
                found.append(
                    HeapEnd(self.name(int(codes[0])), blocks, int(groups.released[1]) if len(groups.order) else 0)
                )
        return found

    def _best_covers(self, codes: list[int]) -> list[Cover]:
        """Returns for each size the set that releases most, until no larger set releases more."""
        bits = np.zeros(len(self._blocks), np.int64)
        bits[[code + _SHIFT for code in codes]] = 1 << np.arange(len(codes))
        masks = np.zeros(len(self._sizes), np.int64)
        np.bitwise_or.at(masks, self._arena, bits[self._group])
        kinds, first, kind = np.unique(masks, return_index=True, return_inverse=True)
        sums, largest = np.bincount(kind, self._sizes, len(kinds)).astype(np.int64), self._sizes[first]

        def released(chosen: tuple[int, ...]) -> int:
            gone = self._mask(chosen)
            freed = (kinds & ~int(bits[gone].sum())) == 0
            of_arenas = self._of_arenas(int(sums[freed].sum()), int(largest[freed].max(initial=0)))
            return int(of_arenas) + sum(heap.value(gone) for heap in self._heaps)

        best = (max(combinations(codes, size), key=released) for size in range(1, min(BUDGET, len(codes)) + 1))
        return _growing([self._cover(each) for each in best])

    def _greedy_covers(self) -> list[Cover]:
        """Returns sets, each with one group more, by the better of two rules: the group that releases most now, or the
        one with the largest share of what is not released yet."""
        by_release = self._grown(lambda released, share: (-share, -released))
        by_share = self._grown(lambda released, share: (-released, -share))
        return _growing(max(by_release, by_share, key=lambda covers: sum(cover.released_bytes for cover in covers)))

    def _grown(self, keys: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> list[Cover]:
        """Returns sets, each with one group more: the first one if groups are sorted by `keys`, the last key first.

        `keys` is called with what each group releases, and with its share.
        """
        gone, chosen, found = np.zeros(len(self._blocks), bool), list[int](), []
        for _ in range(BUDGET):
            released, share = self._with_one_more(gone)
            share[gone] = 0
            if not share.any():
                break
            candidates = np.flatnonzero(share > 0)
            order = np.lexsort((candidates, *keys(released[candidates], share[candidates])))
            best = candidates[order[0]]
            gone[best] = True
            chosen.append(int(best) - _SHIFT)
            found.append(self._cover(chosen))
        return found

    def _cover(self, groups: Sequence[int]) -> Cover:
        return Cover([self.name(code) for code in groups], self.released_bytes(groups))


def _growing(covers: list[Cover]) -> list[Cover]:
    """Returns the covers that release more than all smaller ones."""
    kept: list[Cover] = []
    for cover in covers:
        if cover.released_bytes > (kept[-1].released_bytes if kept else 0):
            kept.append(cover)
    return kept
