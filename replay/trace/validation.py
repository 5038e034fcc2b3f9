"""Checks a trace against the contract of `replay.trace` once, when it is read. All later code relies on it."""

from collections.abc import Iterator
from typing import Protocol, cast, runtime_checkable

import numpy as np

from replay.jit.arrays import DONE, FULL, call_with_room, extend, record
from replay.jit.compiling import entry, leaf
from replay.support.errors import TraceError
from replay.support.limits import MAX_SIZE
from replay.trace.block_numbering import allocated_twice, not_live
from replay.trace.block_ops import FREE, LAST_BLOCK_OP, MEMALIGN, allocates, concerns_block
from replay.trace.columns import COLUMNS, NO_ALIGNMENT, NO_SITE, Domain, Op
from replay.trace.events import Events
from replay.trace.metadata import Metadata
from replay.trace.processes import Processes, unknown_thread
from replay.trace.traces import Trace

_MARK = int(Op.MARK)
_GC_START, _THREAD_END = int(Op.GC_START), int(Op.THREAD_END)
_DOMAIN_LAST, _DOMAINS = int(max(Domain)), len(Domain)
_LIBC_REALLOC = _DOMAINS * int(Op.REALLOC) + int(Domain.LIBC)
"""A realloc in domain libc, where 0 bytes are a free: op and domain in one number, for one comparison."""
_OBSERVED_FIRST, _OBSERVED_LAST = int(Op.ARENA_MAPPED), int(Op.FOREIGN_FREE)
_MEMALIGN_DOMAINS = (int(Domain.RAW), int(Domain.LIBC))
_SPARSE_ROW, _SPARSE_START = 4, 1 << 20
"""A block's number may reach four times the rows read so far plus a million: room for any dense numbering, while a
table indexed by it stays in proportion to the trace."""

_TIME, _OP, _DOMAIN, _SIZE, _FREE_SIZE, _LIVE, _DEAD, _SPARSE, _PHASE, _SITE, _EMPTIED = range(2, 13)
"""Statuses besides DONE and FULL: what is wrong with an event."""
_STATE = record("last_ns", "blocks", "live_bytes", "blocks_peak", "bytes_peak", "rows", "phases", "sites")
"""`phases` is -1 where their number is not known."""


@leaf
def _judge(code: int, domain: int, number: int, size: int, row: int, sizes: np.ndarray, phases: int) -> int:
    """What is wrong with an event that is not plainly good; `row` counts from the trace's first."""
    if domain > _DOMAIN_LAST:
        return _DOMAIN
    if not concerns_block(code):
        if code == _MARK:
            return _PHASE if phases >= 0 and (size < 0 or size >= phases) else DONE
        return DONE if _GC_START <= code <= _THREAD_END or _OBSERVED_FIRST <= code <= _OBSERVED_LAST else _OP
    if size < 0 or size > MAX_SIZE:
        return _SIZE
    if not allocates(code):
        if number >= sizes.shape[0] or sizes[number] < 0:
            return _DEAD
        return _FREE_SIZE if code == FREE else _EMPTIED
    if number < sizes.shape[0]:
        return _LIVE
    return _SPARSE if number >= _SPARSE_ROW * row + _SPARSE_START else FULL


@entry
def _check_events(
    time_ns: np.ndarray,
    op: np.ndarray,
    domain: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
    site: np.ndarray,
    start: int,
    sizes: np.ndarray,
    state: np.ndarray,
) -> tuple[int, int]:
    """Checks rows from `start` on; returns a status and where it stopped. Changes `sizes` and `state` in place.

    `sizes` holds the bytes of every live block, -1 where none lives. Conditions are joined by `|` and what an op
    does is computed, not branched on: the order of mallocs and frees is noise to a branch predictor, and a miss
    costs as much as the whole row.
    """
    so_far = state[0]
    last_ns, blocks, live = so_far.last_ns, so_far.blocks, so_far.live_bytes
    blocks_peak, live_peak = so_far.blocks_peak, so_far.bytes_peak
    sites, sites_known, length = so_far.sites, site.shape[0] > 0 and so_far.sites > 0, sizes.shape[0]
    status, row = DONE, start
    while row < op.shape[0]:
        code, number, asked = op[row], block[row], size[row]
        begins, ends = allocates(code), code == FREE
        status = DONE
        if time_ns[row] < last_ns:
            status = _TIME
        elif sites_known and site[row] != NO_SITE and site[row] >= sites:
            status = _SITE
        elif (
            (code > LAST_BLOCK_OP) | (domain[row] > _DOMAIN_LAST) | (asked > MAX_SIZE) | (number >= length)
            | (asked < np.int64(_DOMAINS * code + domain[row] == _LIBC_REALLOC))
            or ((sizes[number] < 0) != begins) | (ends & (asked != 0))
        ):  # fmt: skip
            status = _judge(code, domain[row], number, asked, so_far.rows + row, sizes, so_far.phases)
        else:
            before = sizes[number]
            sizes[number] = -1 if ends else asked
            blocks += np.int64(begins) - np.int64(ends)
            live += asked - max(before, 0)
            blocks_peak = max(blocks_peak, blocks)
            live_peak = max(live_peak, live)
        if status != DONE:
            break
        last_ns = time_ns[row]
        row += 1
    so_far.last_ns, so_far.blocks, so_far.live_bytes = last_ns, blocks, live
    so_far.blocks_peak, so_far.bytes_peak = blocks_peak, live_peak
    return status, row


@entry
def _check_owners(op: np.ndarray, block: np.ndarray, owner: np.ndarray, rows: int, owners: np.ndarray) -> int:
    """The first of so many rows that is of no process, or moves a block of another one; -1 if there is none.

    `owner` is the process of each row; `owners`, which changes in place, the one that allocated each block.
    """
    for row in range(rows):
        if owner[row] < 0:
            return row
        if concerns_block(op[row]):
            if allocates(op[row]):
                owners[block[row]] = owner[row]
            elif owners[block[row]] != owner[row]:
                return row
    return -1


class Validator:
    """Checks the batches of one trace against the contract, and counts live blocks and bytes.

    `metadata` bounds the phases and sites that events point to, and says of which process each thread is; without it
    they are not checked.
    """

    def __init__(self, path: object = None, metadata: Metadata | None = None) -> None:
        self._path = path
        self._sizes = np.full(1024, -1, np.int64)
        self._state = np.zeros(1, _STATE)
        self._first_ns = 0
        self._state[0].phases = len(metadata.phases) if metadata else -1
        self._state[0].sites = len(metadata.sites) if metadata else 0
        self._processes = Processes(lambda: metadata.processes) if metadata and metadata.processes else None
        self._owners = np.zeros(1024 if self._processes else 0, np.int64)

    def check(self, events: Events) -> None:
        """Raises a TraceError for the first event that breaks the contract; `events` follow those checked before."""
        site = events.site if events.site is not None else np.empty(0, np.uint32)
        if self.rows == 0 and events.rows:
            self._first_ns = int(events.time_ns[0])
        time_ns, op, domain, block, size = events.time_ns, events.op, events.domain, events.block, events.size
        status, row = call_with_room(
            lambda row: _check_events(time_ns, op, domain, block, size, site, row, self._sizes, self._state),
            lambda row: self._grow(int(block[row]) + 1),
            0,
        )
        self._check_processes(events, row)  # where an event is wrong, an earlier row may be worse
        self._check_alignments(events, row)
        if status != DONE:
            raise TraceError(self._refusal(status, events, row), path=self._path, row=self.rows + row)
        self._state[0].rows += events.rows

    def _check_processes(self, events: Events, rows: int) -> None:
        """Raises a TraceError for the first of so many rows whose thread or block is none of its process."""
        if self._processes is None:
            return
        owner, _ = self._processes.find(events.thread)
        row = _check_owners(events.op, events.block, owner, rows, self._owners)
        if row >= 0:
            message = unknown_thread(int(events.thread[row]))
            if owner[row] >= 0:
                op, block = Op(events.op[row]).name.lower(), int(events.block[row])
                mine, other = (self._processes.table[number].name for number in (owner[row], self._owners[block]))
                message = f"{op} of block {block} by process {mine!r}, but {other!r} allocated it; they share no blocks"
            raise TraceError(message, path=self._path, row=self.rows + row)

    def _check_alignments(self, events: Events, rows: int) -> None:
        """Raises a TraceError for the first invalid memalign, or alignment of another operation, before row `rows`."""
        memaligns = events.memalign_rows
        if events.alignment is None:
            wrong = memaligns
        else:
            alignment, domain = events.alignment[memaligns], events.domain[memaligns]
            is_power = (alignment != NO_ALIGNMENT) & (alignment & (alignment - 1) == 0)
            strays = np.flatnonzero((events.alignment != NO_ALIGNMENT) & (events.op != MEMALIGN))
            wrong = np.union1d(strays, memaligns[~is_power | ~np.isin(domain, _MEMALIGN_DOMAINS)])
        if wrong.size and wrong[0] < rows:
            what = _mistake_of_memalign(events, int(wrong[0]))
            raise TraceError(what, path=self._path, row=self.rows + int(wrong[0]))

    def _grow(self, blocks: int) -> None:
        self._sizes = extend(self._sizes, max(2 * self._sizes.shape[0], blocks), fill=-1)
        if self._processes:
            self._owners = extend(self._owners, self._sizes.shape[0])

    def _refusal(self, status: int, events: Events, row: int) -> str:
        op, block, size = int(events.op[row]), int(events.block[row]), int(events.size[row])
        if status == _TIME:
            return f"time runs back from {self._state[0].last_ns} ns to {events.time_ns[row]} ns"
        if status == _OP:
            return f"op {op} is unknown; there are {', '.join(f'{known} {known.name.lower()}' for known in Op)}"
        if status == _DOMAIN:
            known_domains = ", ".join(f"{known} {known.name.lower()}" for known in Domain)
            return f"domain {events.domain[row]} is unknown; there are {known_domains}"
        if status == _SIZE:
            return f"size {size} is out of range; a block has 0 to 2^47 bytes"
        if status == _FREE_SIZE:
            return f"a free has size 0, not {size}"
        if status == _EMPTIED:
            return f"realloc of block {block} to 0 bytes in domain libc frees it; write a free"
        if status == _LIVE:
            return allocated_twice(op, block)
        if status == _DEAD:
            return not_live(op, block)
        if status == _PHASE:
            return f"mark points to phase {size}, but the metadata names {self._state[0].phases} phases"
        if status == _SITE:
            sites = self._state[0].sites
            return f"site {cast(np.ndarray, events.site)[row]} is past the metadata's table of {sites} sites"
        return (
            f"block {block} is far beyond what {self.rows + row} rows can have numbered; "
            "number blocks densely from 0, or write the column as UInt64 and let `replay import` renumber it"
        )

    @property
    def rows(self) -> int:
        """Events that were checked and are valid."""
        return int(self._state[0].rows)

    @property
    def span_ns(self) -> int:
        """Time from the first event to the last."""
        return int(self._state[0].last_ns) - self._first_ns

    @property
    def live_blocks(self) -> int:
        return int(self._state[0].blocks)

    @property
    def live_bytes(self) -> int:
        return int(self._state[0].live_bytes)

    @property
    def blocks_peak(self) -> int:
        return int(self._state[0].blocks_peak)

    @property
    def bytes_peak(self) -> int:
        return int(self._state[0].bytes_peak)


def _mistake_of_memalign(events: Events, row: int) -> str:
    """What is wrong with a memalign or an alignment in this row."""
    alignment = NO_ALIGNMENT if events.alignment is None else int(events.alignment[row])
    if events.op[row] != MEMALIGN:
        op = Op(events.op[row]).name.lower()
        return f"`alignment` is {alignment} at a {op}; only a memalign has one, so leave it empty"
    if events.domain[row] not in _MEMALIGN_DOMAINS:
        domain = Domain(events.domain[row]).name.lower()
        return f"memalign in domain {domain}, which has no such call; write it in domain libc"
    if events.alignment is None:
        return "memalign without the column `alignment`; add the column, or write a malloc"
    if alignment == NO_ALIGNMENT:
        return "memalign whose `alignment` is empty; write the alignment in bytes, or write a malloc"
    return f"memalign with an `alignment` of {alignment}, which is not a power of two"


@runtime_checkable
class ValidatedTrace(Trace, Protocol):
    """A trace that validates what it yields."""

    validator: Validator
    """Of the latest reading, as far as it got."""


class _Checked:
    """Another trace, checked while it is read, types and lengths of its columns included: kernels rely on both."""

    def __init__(self, trace: Trace, path: object) -> None:
        self._trace, self._path = trace, path
        self.validator = Validator(path, trace.metadata)
        self.duration_ns, self.events_total = trace.duration_ns, trace.events_total

    @property
    def metadata(self) -> Metadata:
        return self._trace.metadata

    def batches(self) -> Iterator[Events]:
        self.validator = validator = Validator(self._path, self.metadata)
        for events in self._trace.batches():
            self._check_columns(events, validator.rows)
            validator.check(events)
            yield events

    def _check_columns(self, events: Events, first_row: int) -> None:
        for name, column in events.present().items():
            type_ = COLUMNS[name].memory_type
            if column.shape != (events.rows,) or column.dtype != type_:
                found = f"{column.shape[0]} values of type {column.dtype}"
                message = f"column `{name}` has {found}, not {events.rows} of type {type_}"
                raise TraceError(message, path=self._path, row=first_row)


def validated(trace: Trace, path: object) -> ValidatedTrace:
    """The trace itself if it validates what it yields, else the same trace, checked while it is read."""
    return trace if isinstance(trace, ValidatedTrace) else _Checked(trace, path)
