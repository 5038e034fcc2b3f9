"""One batch of a trace: its columns as NumPy arrays, and operations on whole rows that hold for every column."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from replay.trace.block_ops import MEMALIGN, concerns_block
from replay.trace.columns import COLUMNS, OPTIONAL, REQUIRED, Columns


class Events(Columns):
    """One batch of a trace: columns of equal length, never changed. An optional column may be None.

    Properties are computed once, however many runs simulate the batch.
    """

    @classmethod
    def empty(cls, rows: int, *optional: str) -> "Events":
        """Returns uninitialized columns to write into: all required ones, and the optional ones that are named."""
        return cls(**{name: np.empty(rows, COLUMNS[name].memory_type) for name in (*REQUIRED, *optional)})

    @property
    def rows(self) -> int:
        return int(self.op.shape[0])

    @cached_property
    def idle_rows(self) -> dict[int, list[int]]:
        """Rows that concern no block, by op."""
        rows = np.flatnonzero(~concerns_block(self.op))
        op = self.op[rows]
        return {kind: rows[op == kind].tolist() for kind in np.unique(op).tolist()}

    @cached_property
    def highest_block(self) -> int:
        """The highest block number, of the rows that concern a block."""
        block = self.block[concerns_block(self.op)] if self.idle_rows else self.block
        return int(block.max(initial=0))

    @cached_property
    def memalign_rows(self) -> np.ndarray:
        """Rows that are memaligns."""
        return np.flatnonzero(self.op == MEMALIGN)

    @cached_property
    def highest_thread(self) -> int:
        return int(self.thread.max(initial=0))

    def present(self) -> dict[str, np.ndarray]:
        """The columns that the batch has, by name."""
        return {name: column for name, column in self._asdict().items() if column is not None}

    def optional(self) -> dict[str, np.ndarray]:
        """The optional columns that the batch has, by name."""
        return {name: column for name, column in self.present().items() if name in OPTIONAL}

    def where(self, rows: np.ndarray | slice) -> "Events":
        """Some of the rows: a mask, indexes or a slice."""
        return Events(**{name: column[rows] for name, column in self.present().items()})

    def keep_optional(self, *names: str) -> "Events":
        """The same rows with no other optional columns than these."""
        return Events(**{name: column for name, column in self.present().items() if name in (*REQUIRED, *names)})


def joined(batches: Sequence[Events]) -> Events:
    """One batch of at least one. It has each column that any of them has, with nulls for those that lack it."""
    if len(batches) == 1:
        return batches[0]
    names = dict.fromkeys(name for events in batches for name in events.present())
    return Events(**{name: np.concatenate([_filled(events, name) for events in batches]) for name in names})


def nulls(name: str, rows: int) -> np.ndarray:
    """An optional column in which every value is unknown."""
    return np.full(rows, COLUMNS[name].null, COLUMNS[name].memory_type)


def _filled(events: Events, name: str) -> np.ndarray:
    column: np.ndarray | None = getattr(events, name)
    return nulls(name, events.rows) if column is None else column
