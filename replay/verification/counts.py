"""Compares pymalloc's statistics in a recorded program with counts of the model at the same moments.

The real counts include blocks older than the recording. The model knows pools with such blocks only if one was freed.
So the comparison uses the changes between the first count, right after the recording began, and the last one:

    pools, by class     pools with live blocks; an older pool that becomes known to the model is not a change
    blocks, by class    live blocks
    free pools          the number itself, because a clean start leaves none
    arenas              mapped, unmapped, live, and the peak
    free blocks         the number itself, because a clean start leaves none. If the address of a freed older block was
                        not reused, its class is unknown: these free blocks, and missing live ones, can be of any class
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
    """The result of comparing real counts with the model's."""

    row: int
    """Row of the last count."""
    compared: int
    """Number of compared counts."""
    equal: int
    blocks_unplaced: int
    """Number of free blocks whose class the model cannot know."""
    difference: str | None
    """The first difference as text; None without any."""


class _Model(NamedTuple):
    """The model's counts at one moment. Arrays are by size class; the first two do not include older pools."""

    pools: np.ndarray
    blocks: np.ndarray
    blocks_free: np.ndarray
    pools_free: int
    older_frees_unseen: int
    calls: int
    """Number of earlier calls for blocks of pymalloc."""


class Counting:
    """Counts pools and blocks in the model at the moments of the real counts."""

    def __init__(self, stack: Stack) -> None:
        self._sizes: np.ndarray = stack.small.sizes  # type: ignore[attr-defined]
        self._older = np.zeros(self._sizes.shape[0], np.int64)
        self._met: set[int] = set()
        self._counts: list[_Model] = []
        self.older_frees_unseen = 0
        """Number of freed older blocks in pools with an unknown class."""

    def add_older_pool(self, pool: int, block_bytes: int) -> None:
        """Adds a pool that was full of older blocks of this size when the recording began."""
        if pool not in self._met:
            self._met.add(pool)
            self._older[np.searchsorted(self._sizes, block_bytes)] += 1

    def count(self, stack: Stack, calls: int) -> None:
        """Counts now, after `calls` calls for blocks of pymalloc."""
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
        """Compares the first and the last count with the real ones.

        `arenas` has for each arena event the number of earlier calls, and whether the arena was mapped.
        """
        if len(real) != len(self._counts):
            raise ReplayError(
                "pymalloc's counts in the metadata do not belong to this recording: it does not have their rows"
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
        """Yields the counts of each size class, in reality and in the model."""
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
        """Returns the number of free blocks that the model does not have, by class."""
        return self._of(real, "blocks_free") - model.blocks_free

    def _of(self, count: PoolCount, field: str) -> np.ndarray:
        told = {each.block_bytes: getattr(each, field) for each in count.classes}
        return np.array([told.get(size, 0) for size in self._sizes.tolist()], np.int64)


def _rise(mapped: Sequence[bool]) -> list[int]:
    """Returns the difference of the number of arenas to the start: at the start, and after each arena event."""
    return [0, *accumulate(1 if each else -1 for each in mapped)]
