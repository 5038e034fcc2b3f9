"""Calls on addresses, as the logs of other tools hold them, and the pairing of reallocs that come in two halves.

Some tools write a realloc as two records: the address that the block leaves, and the one at which it arrives. Records
of other threads may stand between them. The second half is the next record of the thread after the first.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from replay.jit.compiling import entry, leaf
from replay.trace import Domain, Op

MOVE = 4
"""In `Calls.op`: the first half of a realloc, which names the address that the block leaves."""
NO_PARTNER = -1
_APART = 64
"""Rows at most between the halves of a realloc; so many are held back at the end of a batch. Halves that are further
apart, because a thread lost its processor between two instructions, are a free and a malloc."""
_REALLOC, _FREE = int(Op.REALLOC), int(Op.FREE)


class Calls(NamedTuple):
    """One batch of a log: columns of equal length, which kernels may write to."""

    op: np.ndarray
    """uint8: an `Op` that moves a block, or `MOVE`."""
    key: np.ndarray
    """uint64: an address, or what else names a live block."""
    size: np.ndarray
    """int64, 0 for free and MOVE."""
    domain: np.ndarray
    """uint8."""
    thread: np.ndarray
    """uint32, counted from 0 or 1 on: tables are indexed by them."""
    time_ns: np.ndarray | None = None
    """int64; None where the log has no times."""
    site: np.ndarray | None = None
    """uint32."""
    partner: np.ndarray | None = None
    """int64: for a realloc the row of its MOVE in the same batch, or `NO_PARTNER`: a realloc of nothing."""

    def where(self, rows: slice | np.ndarray) -> "Calls":
        """Some of the rows: a slice or a mask."""
        return Calls(**{name: column[rows] for name, column in self._asdict().items() if column is not None})


def libc_calls(
    op: np.ndarray, key: np.ndarray, size: np.ndarray, *, time_ns: np.ndarray | None = None,
    site: np.ndarray | None = None, partner: np.ndarray | None = None,
) -> Calls:  # fmt: skip
    """Calls of a log without domains and threads: of the C library, by one thread; keys are int64."""
    rows = op.shape[0]
    domain, thread = np.full(rows, int(Domain.LIBC), np.uint8), np.zeros(rows, np.uint32)
    return Calls(op, key.view(np.uint64), size, domain, thread, time_ns, site, partner)


def joined(first: Calls, second: Calls) -> Calls:
    """One batch of two."""
    columns = zip(Calls._fields, first, second, strict=True)
    return Calls(**{name: np.concatenate([a, b]) for name, a, b in columns if a is not None and b is not None})


def paired(batches: Iterator[Calls], *, has_moves: bool) -> Iterator[Calls]:
    """The same calls with `partner` filled in, in place.

    `has_moves`: first halves are MOVE already; else the free of a thread right before its realloc is one.
    """
    held: Calls | None = None
    for batch in batches:
        calls = joined(held, batch) if held is not None else batch
        whole, end = _paired(calls, has_moves, last=False)
        held = calls.where(slice(end, None))
        yield whole
    if held is not None:
        yield _paired(held, has_moves, last=True)[0]


def _paired(calls: Calls, has_moves: bool, last: bool) -> tuple[Calls, int]:
    """The rows that no later row can change, and where they end."""
    partner = np.full(calls.op.shape[0], NO_PARTNER, np.int64)
    latest = np.full(int(calls.thread.max(initial=0)) + 1, -1, np.int64)
    end = _pair(calls.op, calls.thread, has_moves, last, partner, latest)
    return calls.where(slice(0, end))._replace(partner=partner[:end]), end


@leaf
def _free_the_lonely(op: np.ndarray, partner: np.ndarray, end: int) -> None:
    """Makes a MOVE without a second half a free, in place."""
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
    """Gives the number of rows that are final; among them no MOVE is left alone. `latest` is -1 for each thread."""
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
    """Times of so many rows from `first` on, spread evenly between stamps; `stamp_rows` are the rows that follow each.

    The first stamp is that of row 0, the last one is not before the last row.
    """
    time_ns = np.empty(rows, np.int64)
    _spread(first, stamp_rows, stamp_ns, time_ns)
    return time_ns


@entry
def _spread(first: int, stamp_rows: np.ndarray, stamp_ns: np.ndarray, time_ns: np.ndarray) -> None:
    """Fills `time_ns`. The division comes first, because a product of time and rows need not fit."""
    before, whole, rest, between = -1, 0, 0, 0
    for index in range(time_ns.shape[0]):
        row = first + index
        if before < 0 or row >= stamp_rows[before + 1]:
            before = int(np.searchsorted(stamp_rows, row, side="right")) - 1
            between = stamp_rows[before + 1] - stamp_rows[before] if before + 1 < stamp_rows.shape[0] else 1
            span_ns = stamp_ns[min(before + 1, stamp_ns.shape[0] - 1)] - stamp_ns[before]
            whole, rest = span_ns // between, span_ns % between
        passed = row - stamp_rows[before]
        time_ns[index] = stamp_ns[before] + whole * passed + rest * passed // between
