"""Pins: the live blocks that keep memory from being released, and what is released if some of them are gone.

Two kinds of memory are retained by pins:

    arena   a region that is released as a whole. All its live blocks pin it
    heap    a region that is released from its end (`TopRule`). Its last chunk pins all that is free before it, the next
            chunk what is free before that, and so on

Blocks are grouped, for instance by call site. A set of groups releases the arenas in which it has all live blocks, and
of each heap the end in which no other chunk lies. One group can release nothing where two together release much, so
bytes of groups do not add up; `Pins.cover` names sets.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, takewhile
from typing import NamedTuple

import numpy as np

from replay.analysis.retention import CACHED, OF_ALLOCATOR, Heap, Retained

BUDGET = 5
"""The largest set of groups in a cover."""
EXACT_GROUPS = 12
"""Up to so many groups, covers are the best ones; otherwise each set extends the one before it."""
_LIKELY = 48
"""Number of groups that a step of a greedy cover tries."""
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


class Grouping:
    """The blocks of a moment in groups: evaluates which sets of groups release how much."""

    def __init__(self, retained: Retained, codes: np.ndarray, names: Sequence[str]) -> None:
        """`codes`: the group of each block, an index of `names`."""
        self._retained, self._names = retained, names
        self._codes = np.append(codes, (CACHED, OF_ALLOCATOR)).astype(np.int64)  # negative indexes are their own codes
        self._arenas = self._by_groups(codes)
        self._total = {pins: sum(sizes) for pins, sizes in self._arenas.items()}
        self._largest = {pins: max(sizes) for pins, sizes in self._arenas.items()}
        self._heaps = [self._runs(heap) for heap in retained.heaps]

    def _by_groups(self, codes: np.ndarray) -> dict[frozenset[int], list[int]]:
        """Returns the resident bytes of arenas by the set of groups that pin them."""
        retained = self._retained
        found: dict[frozenset[int], list[int]] = {}
        pairs = np.unique(np.stack([retained.arena_of, codes], 1)[retained.arena_of >= 0], axis=0)
        first = np.searchsorted(pairs[:, 0], np.arange(len(retained.arenas) + 1))
        for arena, size_bytes in enumerate(retained.arenas.tolist()):
            found.setdefault(frozenset(pairs[first[arena] : first[arena + 1], 1].tolist()), []).append(size_bytes)
        return found

    def _runs(self, heap: Heap) -> list[tuple[int, int]]:
        """Returns a heap's groups from its end on, and for each the resident bytes released if it is gone, too."""
        codes = self._codes[heap.blocks]
        last = np.flatnonzero(np.append(np.diff(codes) != 0, True))
        runs: list[tuple[int, int]] = []
        for code, chunks in zip(codes[last].tolist(), (last + 1).tolist(), strict=True):
            if code == OF_ALLOCATOR:  # it never goes
                break
            runs.append((code, self._retained.released_from(heap, chunks)))
        return runs

    def released_bytes(self, groups: Iterable[int]) -> int:
        """Returns the resident bytes that are released if all blocks of these groups are gone."""
        gone = {*groups}
        return self._from_arenas(gone) + self._from_heaps(gone)

    def _from_arenas(self, gone: set[int]) -> int:
        freed = [pins for pins in self._total if pins <= gone]
        released = sum(self._total[pins] for pins in freed)
        if freed and self._retained.kept_arenas:  # the order of frees decides which one: assume the largest
            released -= max(self._largest[pins] for pins in freed)
        return released

    def _from_heaps(self, gone: set[int]) -> int:
        released = 0
        for runs in self._heaps:
            free = takewhile(lambda run: run[0] in gone, runs)
            released += max((size_bytes for _, size_bytes in free), default=0)
        return released

    def released_bytes_of(self, names: Iterable[str]) -> int:
        """Returns the same for groups by name."""
        return self.released_bytes(map(self._names.index, names))

    def pins(self) -> Pins:
        """Returns the groups that pin memory, and the sets of them that release most."""
        pinning = self._pinning_blocks()
        groups = np.unique(pinning[0]).tolist()
        rows = [self._group(code, pinning) for code in groups]
        rows.sort(key=lambda row: (-row.pinned_bytes, -row.shared_bytes, row.name))
        codes = [code for code in groups if code != OF_ALLOCATOR]
        is_exact = len(codes) <= EXACT_GROUPS
        cover = self._best_covers(codes) if is_exact else self._greedy_covers()
        return Pins(rows, self.released_bytes(groups), cover, is_exact)

    def _pinning_blocks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns group, block and region of all blocks in arenas, and in the ends of heaps that could be released."""
        retained = self._retained
        in_arena = np.flatnonzero(retained.arena_of >= 0)
        parts = [(self._codes[in_arena], in_arena, retained.arena_of[in_arena])]
        for number, (heap, runs) in enumerate(zip(retained.heaps, self._heaps, strict=True)):
            codes = self._codes[heap.blocks]
            wanted = np.isin(codes, [code for code, _ in runs]) & (codes != OF_ALLOCATOR)
            wanted &= np.cumsum(codes == OF_ALLOCATOR) == 0
            region = np.full(int(wanted.sum()), len(retained.arenas) + number)
            parts.append((codes[wanted], heap.blocks[wanted], region))
        codes, blocks, regions = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return codes, blocks, regions

    def _group(self, code: int, pinning: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Group:
        codes, blocks, regions = pinning
        mine = codes == code
        known = blocks[mine & (blocks >= 0)]
        ages = self._retained.at_ns - self._retained.blocks["allocated_ns"][known]
        pinned = self.released_bytes([code])
        others = self.released_bytes(set(np.unique(codes).tolist()) - {code})
        return Group(
            self.name(code),
            pinned,
            self.released_bytes(np.unique(codes).tolist()) - others - pinned,
            int(mine.sum()),
            len(np.unique(regions[mine])),
            int(ages.max(initial=0)),
        )

    def name(self, code: int) -> str:
        """Returns the name of a group."""
        return _NAMES[code] if code < 0 else self._names[code]

    def heap_ends(self) -> list[HeapEnd]:
        """Returns what keeps the end of each heap from being released."""
        found = []
        for heap, runs in zip(self._retained.heaps, self._heaps, strict=True):
            codes = self._codes[heap.blocks]
            blocks = int(np.argmin(np.append(codes == codes[:1], False))) if len(codes) else 0
            found.append(HeapEnd(self.name(int(codes[0])), blocks, runs[0][1] if runs else 0))
        return found

    def _best_covers(self, codes: list[int]) -> list[Cover]:
        """Returns for each size the set that releases most, until no larger set releases more."""
        found: list[Cover] = []
        for size in range(1, min(BUDGET, len(codes)) + 1):
            best = max(combinations(codes, size), key=self.released_bytes)
            found.append(self._cover(best))
        return _growing(found)

    def _greedy_covers(self) -> list[Cover]:
        """Returns sets, each with one group more, by the better of two rules: the group that releases most now, or the
        one with the largest share of what is not released yet."""
        by_release = self._grown(lambda chosen, code, share: (self.released_bytes([*chosen, code]), share))
        by_share = self._grown(lambda chosen, code, share: (share, self.released_bytes([*chosen, code])))
        return _growing(max(by_release, by_share, key=lambda covers: sum(cover.released_bytes for cover in covers)))

    def _grown(self, rank: Callable[[list[int], int, float], tuple[float, float]]) -> list[Cover]:
        """Returns sets, each with one group more: the one that ranks highest."""
        chosen: list[int] = []
        found: list[Cover] = []
        for _ in range(BUDGET):
            candidates = self._shares(chosen)
            if not candidates:
                break
            likely = sorted(candidates, key=lambda code: (-candidates[code], code))[:_LIKELY]
            chosen.append(max(likely, key=lambda code: rank(chosen, code, candidates[code])))
            found.append(self._cover(chosen))
        return found

    def _shares(self, chosen: list[int]) -> dict[int, float]:
        """Returns for each group its share of the memory that the chosen ones do not release: equal parts of each
        arena, and of each heap's end what its first group that is left pins."""
        gone, shares = {*chosen}, defaultdict[int, float](float)
        for pins, size_bytes in self._total.items():
            left = pins - gone
            for code in left:
                shares[code] += size_bytes / len(left)
        for runs in self._heaps:
            sizes: dict[int, int] = {}
            for code, size_bytes in runs:
                if code not in gone:
                    sizes[code] = size_bytes
            for rank, (code, size_bytes) in enumerate(sizes.items(), 1):
                shares[code] += size_bytes / rank
        return shares

    def _cover(self, groups: Sequence[int]) -> Cover:
        return Cover([self.name(code) for code in groups], self.released_bytes(groups))


def _growing(covers: list[Cover]) -> list[Cover]:
    """Returns the covers that release more than all smaller ones."""
    kept: list[Cover] = []
    for cover in covers:
        if cover.released_bytes > (kept[-1].released_bytes if kept else 0):
            kept.append(cover)
    return kept
