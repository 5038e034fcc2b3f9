"""Calls on addresses from the logs of other tools, and the pairing of the two halves of reallocs.

Some tools write a realloc as two records: the old address of the block, and the new one. Records of other threads can
be between them. The second half is the next record of the same thread.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from replay.jit.compiling import entry, leaf
from replay.trace import Domain, Op

MOVE = 4
"""In `Calls.op`: the first half of a realloc, with the old address of the block."""
NO_PARTNER = -1
_APART = 64
"""Maximum number of rows between the halves of a realloc. The last rows of a batch are kept until the next batch.
Halves with more rows in between, because the thread was interrupted, become a free and a malloc."""
_REALLOC, _FREE = int(Op.REALLOC), int(Op.FREE)


class Calls(NamedTuple):
    """One batch of a log: writable columns of equal length."""

    op: np.ndarray
    """uint8: malloc, calloc, realloc or free of `Op`, or `MOVE`."""
    key: np.ndarray
    """uint64: an address, or another key that identifies a live block."""
    size: np.ndarray
    """int64, 0 for free and MOVE."""
    domain: np.ndarray
    """uint8."""
    thread: np.ndarray
    """uint32, small numbers from 0 or 1 on, because they are indexes of tables."""
    time_ns: np.ndarray | None = None
    """int64; None if the log has no times."""
    site: np.ndarray | None = None
    """uint32."""
    partner: np.ndarray | None = None
    """int64: for a realloc, the row of its MOVE in the same batch, or `NO_PARTNER` for a realloc of NULL."""

    def where(self, rows: slice | np.ndarray) -> "Calls":
        """Returns the rows of a slice or mask."""
        return Calls(**{name: column[rows] for name, column in self._asdict().items() if column is not None})


def libc_calls(
    op: np.ndarray, key: np.ndarray, size: np.ndarray, *, time_ns: np.ndarray | None = None,
    site: np.ndarray | None = None, partner: np.ndarray | None = None,
) -> Calls:  # fmt: skip
    """Returns calls of a log without domains and threads: domain libc, one thread. `keys` are int64."""
    rows = op.shape[0]
    domain, thread = np.full(rows, int(Domain.LIBC), np.uint8), np.zeros(rows, np.uint32)
    return Calls(op, key.view(np.uint64), size, domain, thread, time_ns, site, partner)


def joined(first: Calls, second: Calls) -> Calls:
    """Returns two batches as one."""
    columns = zip(Calls._fields, first, second, strict=True)
    return Calls(**{name: np.concatenate([a, b]) for name, a, b in columns if a is not None and b is not None})


def paired(batches: Iterator[Calls], *, has_moves: bool) -> Iterator[Calls]:
    """Yields the same calls with the column `partner`. Changes the batches in place.

    `has_moves`: whether first halves are MOVE; otherwise, the free of a thread right before its realloc is a first
    half.
    """
    pending: Calls | None = None
    for batch in batches:
        calls = joined(pending, batch) if pending is not None else batch
        quotient, end = _paired(calls, has_moves, last=False)
        pending = calls.where(slice(end, None))
        yield quotient
    if pending is not None:
        yield _paired(pending, has_moves, last=True)[0]


def _paired(calls: Calls, has_moves: bool, last: bool) -> tuple[Calls, int]:
    """Returns the rows that no later row can change, and their number."""
    partner = np.full(calls.op.shape[0], NO_PARTNER, np.int64)
    latest = np.full(int(calls.thread.max(initial=0)) + 1, -1, np.int64)
    end = _pair(calls.op, calls.thread, has_moves, last, partner, latest)
    return calls.where(slice(0, end))._replace(partner=partner[:end]), end


@leaf
def _free_the_lonely(op: np.ndarray, partner: np.ndarray, end: int) -> None:
    """Converts each MOVE without a second half to a free, in place."""
    for row in range(end):
        if op[row] == MOVE:
            op[row] = _FREE
    for row in range(end):
        if partner[row] >= 0:
            op[partner[row]] = MOVE


@entry
def _pair(
    op: np.ndarray, thread: np.ndarray, has_moves: bool, last: bool, partner: np.ndarray, latest: np.ndarray
) -> int:
    """Returns the number of final rows, in which every MOVE has its second half. `latest` is -1 for each thread."""
    total = op.shape[0]
    for row in range(total):
        before = latest[thread[row]]
        near = op[row] == _REALLOC and before >= 0 and row - before <= _APART
        if near and (op[before] == MOVE or (op[before] == _FREE and not has_moves)):
            op[before] = MOVE
            partner[row] = before
        latest[thread[row]] = row
    end = total if last else max(total - _APART, 0)
    row = total - 1
    while row >= end:
        if 0 <= partner[row] < end:
            end = partner[row]
        row -= 1
    _free_the_lonely(op, partner, end)
    return end


def spread_times(rows: int, stamp_rows: np.ndarray, stamp_ns: np.ndarray, first: int = 0) -> np.ndarray:
    """Returns the times of `rows` rows from `first` on, spread evenly between time stamps.

    `stamp_rows` has the row that follows each stamp. The first stamp is before row 0, the last one after the last row.
    """
    time_ns = np.empty(rows, np.int64)
    _spread(first, stamp_rows, stamp_ns, time_ns)
    return time_ns


@entry
def _spread(first: int, stamp_rows: np.ndarray, stamp_ns: np.ndarray, time_ns: np.ndarray) -> None:
    """Fills `time_ns`. Divides first, because the product of time and rows can overflow."""
    before, quotient, remainder, between = -1, 0, 0, 0
    for index in range(time_ns.shape[0]):
        row = first + index
        if before < 0 or row >= stamp_rows[before + 1]:
            before = int(np.searchsorted(stamp_rows, row, side="right")) - 1
            between = stamp_rows[before + 1] - stamp_rows[before] if before + 1 < stamp_rows.shape[0] else 1
            span_ns = stamp_ns[min(before + 1, stamp_ns.shape[0] - 1)] - stamp_ns[before]
            quotient, remainder = span_ns // between, span_ns % between
        passed = row - stamp_rows[before]
        time_ns[index] = stamp_ns[before] + quotient * passed + remainder * passed // between
