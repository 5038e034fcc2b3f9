"""How pymalloc counted itself in a recorded program, held against the model's count of the same moments.

The real one counts older blocks too, of whose pools the model knows only those in which one was freed. So what is
compared is what changed between the first count, right after the recording began, and the last one:

    pools, by class     those with live blocks; a pool of older blocks that the model comes to know changes nothing
    blocks, by class    live ones
    free pools          as they are: a clean start leaves none
    arenas              mapped, unmapped, there, and the most there ever were
    free blocks         as they are: a clean start leaves none. Where an older block was freed and its place never used
                        again, its class is not known: so many free blocks, and so many live ones less, may be in any
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from replay.allocators import Stack
from replay.allocators.pymalloc import observe
from replay.support.errors import ReplayError
from replay.trace import PoolCount


@dataclass(frozen=True)
class CountAgreement:
    """How far real and model agree."""

    row: int
    """Of the last count."""
    compared: int
    """Numbers."""
    equal: int
    blocks_unplaced: int
    """Free blocks whose class the model cannot know."""
    difference: str | None
    """The first number that differs, in words."""


class _Model(NamedTuple):
    """What the model has at a count; arrays go by size class, and older pools are not in the first two."""

    pools: np.ndarray
    blocks: np.ndarray
    blocks_free: np.ndarray
    pools_free: int
    older_frees_unseen: int
    calls: int
    """For blocks of pymalloc's, before it."""


class Counting:
    """Counts in the model as the real pymalloc did, at the same moments."""

    def __init__(self, stack: Stack) -> None:
        self._sizes: np.ndarray = stack.small.sizes  # type: ignore[attr-defined]
        self._older = np.zeros(self._sizes.shape[0], np.int64)
        self._met: set[int] = set()
        self._counts: list[_Model] = []
        self.older_frees_unseen = 0
        """Frees of older blocks in pools whose class is not known."""

    def meet(self, pool: int, block_bytes: int) -> None:
        """The model has come to know that pool of older blocks, which was full of blocks of that size."""
        if pool not in self._met:
            self._met.add(pool)
            self._older[np.searchsorted(self._sizes, block_bytes)] += 1

    def take(self, stack: Stack, calls: int) -> None:
        """Counts; so many calls were made for blocks of pymalloc's."""
        classes = observe(stack.small)["classes"]  # type: ignore[arg-type]
        geometry = stack.small.geometry[0]  # type: ignore[attr-defined]
        full = (geometry.pool_size - geometry.header) // self._sizes
        pools, blocks = classes["pools_full"] + classes["pools_used"], classes["blocks"]
        self._counts.append(
            _Model(
                pools - self._older, blocks - full * self._older, classes["blocks_capacity"] - blocks,
                int(stack.tally[0].pools_free), self.older_frees_unseen, calls,
            )
        )  # fmt: skip

    def compare(self, real: Sequence[PoolCount], arenas: Sequence[tuple[int, bool]]) -> CountAgreement:
        """Holds the first count and the last one against the real ones.

        `arenas` are calls before an arena was mapped (or unmapped), and which of the two.
        """
        if len(real) != len(self._counts):
            raise ReplayError(
                "the counts of pymalloc in the metadata are not of this recording: their rows are not in it"
            )
        (first, last), (model_first, model_last) = (real[0], real[-1]), (self._counts[0], self._counts[-1])
        between = [mapped for calls, mapped in arenas if model_first.calls <= calls < model_last.calls]
        numbers = [
            *self._numbers_of_classes(first, last, model_first, model_last),
            ("free pools", last.pools_free, model_last.pools_free),
            ("arenas mapped", last.arenas_mapped - first.arenas_mapped, sum(between)),
            ("arenas unmapped", last.arenas_unmapped - first.arenas_unmapped, len(between) - sum(between)),
            ("arenas", last.arenas, first.arenas + _rise(between)[-1]),
            ("most arenas", last.arenas_highest, max(first.arenas_highest, first.arenas + max(_rise(between)))),
        ]
        differing = [f"{what}: {a:,} in the program, {b:,} in the model" for what, a, b in numbers if a != b]
        unplaced = self._unplaced(last, model_last)
        difference = differing[0] if differing else None
        return CountAgreement(last.row, len(numbers), len(numbers) - len(differing), int(unplaced.sum()), difference)

    def _numbers_of_classes(
        self, first: PoolCount, last: PoolCount, model_first: _Model, model_last: _Model
    ) -> Iterator[tuple[str, int, int]]:
        """What there is of each size class, really and in the model."""
        unplaced, unplaced_before = self._unplaced(last, model_last), self._unplaced(first, model_first)
        pools = self._of(last, "pools") - self._of(first, "pools")
        blocks = self._of(last, "blocks") - self._of(first, "blocks") + unplaced - unplaced_before
        for what, a, b in (
            ("pools", pools, model_last.pools - model_first.pools),
            ("live blocks", blocks, model_last.blocks - model_first.blocks),
            ("free blocks", self._of(last, "blocks_free"), model_last.blocks_free + np.maximum(unplaced, 0)),
        ):
            for size, really, modelled in zip(self._sizes.tolist(), a.tolist(), b.tolist(), strict=True):
                yield f"{what} of {size} bytes", really, modelled
        yield "free blocks of unknown class", int(unplaced.sum()), model_last.older_frees_unseen

    def _unplaced(self, real: PoolCount, model: _Model) -> np.ndarray:
        """Free blocks that the model has not."""
        return self._of(real, "blocks_free") - model.blocks_free

    def _of(self, count: PoolCount, field: str) -> np.ndarray:
        told = {each.block_bytes: getattr(each, field) for each in count.classes}
        return np.array([told.get(size, 0) for size in self._sizes.tolist()], np.int64)


def _rise(mapped: Sequence[bool]) -> list[int]:
    """Arenas more than at the start: at first, and behind each that was mapped or unmapped."""
    return [0, *accumulate(1 if each else -1 for each in mapped)]
