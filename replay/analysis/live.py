"""Who is live at one moment of a trace: blocks by call site, type, size class, thread and domain.

A moment of a trace depends on no allocator: the peak is that of requested bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from replay.analysis.block_groups import Grouped, by_domain, by_site, by_thread, by_type
from replay.jit.arrays import record, with_room
from replay.jit.compiling import entry
from replay.simulation.snapshots import END, PEAK
from replay.support.errors import ReplayError
from replay.support.names import nearest
from replay.support.units import format_size, format_time
from replay.trace import NO_SITE, TEARDOWN_MARK, Events, Op, Trace
from replay.trace.block_ops import FREE, allocates, concerns_block
from replay.trace.typed import types_of_blocks

_BLOCK = record("bytes", thread=np.uint32, site=np.uint32, domain=np.uint8, is_live=np.bool_)
"""Requested bytes; thread, call site and domain of the allocation."""
_TOTAL = record("bytes", "bytes_peak", "peak_row")
"""Requested bytes of live blocks, their peak, and the row after the event that first reached it."""
_EXACT_BYTES, _STEP_BYTES = 512, 16
"""Size classes are multiples of 16 bytes up to 512, and powers of two above."""


class LiveGroup(NamedTuple):
    """The live blocks of one call site, type, size class, thread or domain."""

    name: str
    blocks: int
    bytes: int
    """As requested."""


@dataclass(frozen=True)
class Live:
    """The live blocks at one moment. Groups are in the order of falling bytes."""

    at_ns: int
    """Since the first event."""
    blocks: int
    bytes: int
    """As requested."""
    by_site: list[LiveGroup]
    """Empty without call sites."""
    by_type: list[LiveGroup]
    """Empty without Python types."""
    by_size_class: list[LiveGroup]
    by_thread: list[LiveGroup]
    by_domain: list[LiveGroup]


@entry
def _follow(
    op: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    thread: np.ndarray,
    domain: np.ndarray,
    site: np.ndarray,
    first_row: int,
    rows: int,
    blocks: np.ndarray,
    total: np.ndarray,
) -> None:
    """Applies the first `rows` events of a batch to `blocks` and `total`, in place. `site` is empty without sites."""
    for row in range(rows):
        if not concerns_block(op[row]):
            continue
        found, sum_ = blocks[np.uint64(block[row])], total[0]
        if allocates(op[row]):
            found.bytes, found.is_live = 0, True
            found.thread, found.domain = thread[row], domain[row]
            found.site = site[row] if site.shape[0] else NO_SITE
        sum_.bytes += size[row] - found.bytes
        found.bytes = size[row]
        if op[row] == FREE:
            found.is_live = False
        if sum_.bytes > sum_.bytes_peak:
            sum_.bytes_peak, sum_.peak_row = sum_.bytes, first_row + row + 1


class _Blocks:
    """Follows the live blocks of a trace, batch by batch."""

    def __init__(self) -> None:
        self._blocks, self._total = np.zeros(1024, _BLOCK), np.zeros(1, _TOTAL)

    def follow(self, events: Events, first_row: int, rows: int) -> None:
        """Applies the first rows of a batch."""
        self._blocks = with_room(self._blocks, events.highest_block + 1)
        site = np.zeros(0, np.uint32) if events.site is None else events.site
        _follow(
            events.op, events.block, events.size, events.thread, events.domain, site, first_row, rows,
            self._blocks, self._total,
        )  # fmt: skip

    @property
    def peak_row(self) -> int:
        return int(self._total[0].peak_row)

    def live(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the live blocks, and their records."""
        numbers = np.flatnonzero(self._blocks["is_live"])
        return numbers, self._blocks[numbers]


def find_live(trace: Trace, at: str | int = END) -> Live:
    """Returns who is live at a moment: `"end"`, `"peak"`, nanoseconds since the first event, or the latest start of a
    phase. The end is before the interpreter's teardown, if the trace has a mark of it."""
    return live_before(trace, *_moment(trace, at), with_types=True)


def live_before(trace: Trace, row: int, at_ns: int, *, with_types: bool = False) -> Live:
    """Returns who is live before a row of a trace, at this time."""
    blocks = _Blocks()
    for events, first_row in _batches(trace):
        if first_row >= row:
            break
        blocks.follow(events, first_row, min(events.rows, row - first_row))
    numbers, live = blocks.live()
    sizes, sites = live["bytes"], trace.metadata.sites
    typed = with_types and trace.metadata.types
    return Live(
        at_ns=at_ns,
        blocks=len(live),
        bytes=int(sizes.sum()),
        by_site=_groups(by_site(live["site"], sites), sizes) if sites else [],
        by_type=_groups(by_type(types_of_blocks(trace, row, numbers), trace.metadata.types), sizes) if typed else [],
        by_size_class=_groups(_by_requested_size(sizes), sizes),
        by_thread=_groups(by_thread(live["thread"]), sizes),
        by_domain=_groups(by_domain(live["domain"]), sizes),
    )


def _batches(trace: Trace) -> Iterator[tuple[Events, int]]:
    """Yields each batch that has rows, and the number of rows before it."""
    first_row = 0
    for events in trace.batches():
        if events.rows:
            yield events, first_row
        first_row += events.rows


def _moment(trace: Trace, at: str | int) -> tuple[int, int]:
    """Returns the row before which a moment is, and its time since the first event."""
    blocks, found, begin_ns, end = _Blocks(), None, None, (0, 0)
    for events, first_row in _batches(trace):
        begin_ns = int(events.time_ns[0]) if begin_ns is None else begin_ns
        times_ns = events.time_ns - begin_ns
        end = first_row + events.rows, int(times_ns[-1])
        if at == PEAK:
            blocks.follow(events, first_row, events.rows)
            if first_row < blocks.peak_row:
                found = blocks.peak_row, int(times_ns[blocks.peak_row - first_row - 1])
        elif isinstance(at, int):
            if times_ns[0] <= at:
                found = first_row + int(np.searchsorted(times_ns, at, side="right")), at
        elif len(marks := _marks(trace, events, TEARDOWN_MARK if at == END else at)):
            found = first_row + int(marks[-1]), int(times_ns[marks[-1]])
    if isinstance(at, int) and at > end[1]:
        raise ReplayError(f"no moment at {format_time(at)}: the trace ends {format_time(end[1])} after its first event")
    if found is None and isinstance(at, str) and at not in (PEAK, END):
        raise ReplayError(f"the trace has no phase {at!r}; {nearest(at, [END, PEAK, *trace.metadata.phases])}")
    return found or (end if at == END else (0, 0))


def _marks(trace: Trace, events: Events, name: str) -> np.ndarray:
    """Returns the rows of a batch that mark a phase; none of the end, which several processes have each."""
    phases = trace.metadata.phases
    if name not in phases or (name == TEARDOWN_MARK and trace.metadata.processes):
        return np.zeros(0, np.int64)
    return np.flatnonzero((events.op == Op.MARK) & (events.size == phases.index(name)))


def _by_requested_size(sizes: np.ndarray) -> Grouped:
    """Returns blocks by size class of their requested bytes."""
    exact = -(-sizes // _STEP_BYTES) * _STEP_BYTES
    above = 1 << np.frexp(np.maximum(sizes - 1, 0).astype(np.float64))[1].astype(np.int64)
    limits, codes = np.unique(np.where(sizes <= _EXACT_BYTES, exact, above), return_inverse=True)
    names = [f"up to {format_size(limit)}" if limit else format_size(0) for limit in limits.tolist()]
    return Grouped(codes.astype(np.uint32), np.arange(len(limits)), names)


def _groups(grouped: Grouped, sizes: np.ndarray) -> list[LiveGroup]:
    codes, names = grouped.of_blocks(), grouped.names
    counts = np.bincount(codes, minlength=len(names)).tolist()
    sums = np.zeros(len(names), np.int64)
    np.add.at(sums, codes, sizes)
    rows = zip(names, counts, sums.tolist(), strict=True)
    groups = [LiveGroup(name, blocks, bytes_) for name, blocks, bytes_ in rows if blocks]
    return sorted(groups, key=lambda group: (-group.bytes, -group.blocks, group.name))
