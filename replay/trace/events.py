"""One batch of a trace: its columns as NumPy arrays, and operations on rows of all columns."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from replay.trace.block_ops import MEMALIGN, concerns_block
from replay.trace.columns import COLUMNS, OPTIONAL, REQUIRED, Columns


class Events(Columns):
    """One batch of a trace: columns of equal length. An optional column may be None.

    Columns are not changed after their creation, because properties are computed once and cached for later runs.
    """

    @classmethod
    def empty(cls, rows: int, *optional: str) -> "Events":
        """Returns uninitialized columns: all required ones, and these optional ones."""
        return cls(**{name: np.empty(rows, COLUMNS[name].memory_type) for name in (*REQUIRED, *optional)})

    @property
    def rows(self) -> int:
        return int(self.op.shape[0])

    @cached_property
    def idle_rows(self) -> dict[int, list[int]]:
        """Indexes of the rows that concern no block, by op."""
        rows = np.flatnonzero(~concerns_block(self.op))
        op = self.op[rows]
        return {kind: rows[op == kind].tolist() for kind in np.unique(op).tolist()}

    @cached_property
    def highest_block(self) -> int:
        """The highest block number among the rows that concern a block; 0 if there are none."""
        block = self.block[concerns_block(self.op)] if self.idle_rows else self.block
        return int(block.max(initial=0))

    @cached_property
    def memalign_rows(self) -> np.ndarray:
        """Indexes of the memaligns."""
        return np.flatnonzero(self.op == MEMALIGN)

    @cached_property
    def highest_thread(self) -> int:
        return int(self.thread.max(initial=0))

    def present(self) -> dict[str, np.ndarray]:
        """Returns the columns that are not None, by name."""
        return {name: column for name, column in self._asdict().items() if column is not None}

    def optional(self) -> dict[str, np.ndarray]:
        """Returns the optional columns that are not None, by name."""
        return {name: column for name, column in self.present().items() if name in OPTIONAL}

    def where(self, rows: np.ndarray | slice) -> "Events":
        """Returns the rows that a mask, an array of indexes or a slice selects."""
        return Events(**{name: column[rows] for name, column in self.present().items()})

    def keep_optional(self, *names: str) -> "Events":
        """Returns the same rows without all optional columns but these."""
        return Events(**{name: column for name, column in self.present().items() if name in (*REQUIRED, *names)})


def joined(batches: Sequence[Events]) -> Events:
    """Concatenates at least one batch. Columns that are missing in some of the batches are filled with nulls."""
    if len(batches) == 1:
        return batches[0]
    names = dict.fromkeys(name for events in batches for name in events.present())
    return Events(**{name: np.concatenate([_filled(events, name) for events in batches]) for name in names})


def nulls(name: str, rows: int) -> np.ndarray:
    """Returns an optional column that has only nulls."""
    return np.full(rows, COLUMNS[name].null, COLUMNS[name].memory_type)


def _filled(events: Events, name: str) -> np.ndarray:
    column: np.ndarray | None = getattr(events, name)
    return nulls(name, events.rows) if column is None else column
