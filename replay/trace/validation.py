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
from replay.trace.columns import COLUMNS, NO_ALIGNMENT, NO_SITE, NO_TYPE, Domain, Op
from replay.trace.events import Events
from replay.trace.metadata import Metadata
from replay.trace.processes import Processes, unknown_thread
from replay.trace.traces import Trace

_MARK = int(Op.MARK)
_GC_START, _THREAD_END = int(Op.GC_START), int(Op.THREAD_END)
_DOMAIN_LAST, _DOMAINS = int(max(Domain)), len(Domain)
_LIBC_REALLOC = _DOMAINS * int(Op.REALLOC) + int(Domain.LIBC)
"""Op and domain of a realloc in domain libc as one number. There, a realloc to 0 bytes is a free."""
_OBSERVED_FIRST, _OBSERVED_LAST = int(Op.ARENA_MAPPED), int(Op.LIVE_OBJECT)
_MEMALIGN_DOMAINS = (int(Domain.RAW), int(Domain.LIBC))
_SPARSE_ROW, _SPARSE_START = 4, 1 << 20
"""A block's number is at most four times the rows read so far plus a million. Any dense numbering stays below this, and
tables indexed by block stay proportional to the trace."""

_TIME, _OP, _DOMAIN, _SIZE, _FREE_SIZE, _ALREADY_LIVE, _NOT_LIVE, _SPARSE, _PHASE, _SITE, _REALLOC_TO_0 = range(2, 13)
"""Statuses besides DONE and FULL: the mistake in an event."""
_STATE = record("last_ns", "blocks", "live_bytes", "blocks_peak", "bytes_peak", "rows", "phases", "sites")
"""`phases` and `sites` are the lengths of the metadata's tables. `phases` is -1 and `sites` 0 if not known."""


@leaf
def _find_mistake(code: int, domain: int, number: int, size: int, row: int, sizes: np.ndarray, phases: int) -> int:
    """Returns the status of an event that failed the quick checks, FULL if `sizes` is too short; `row` counts from the
    start of the trace."""
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
            return _NOT_LIVE
        return _FREE_SIZE if code == FREE else _REALLOC_TO_0
    if number < sizes.shape[0]:
        return _ALREADY_LIVE
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
    """Checks rows from `start` on; returns a status and the row it stopped at. Changes `sizes` and `state` in place.

    `sizes` holds the requested bytes of each live block and -1 for all others. Conditions are joined by `|`, and the
    effect of an op is computed without branches: a branch predictor cannot predict the order of mallocs and frees, and
    a misprediction costs as much as the whole row.
    """
    totals = state[0]
    last_ns, blocks, live = totals.last_ns, totals.blocks, totals.live_bytes
    blocks_peak, live_peak = totals.blocks_peak, totals.bytes_peak
    sites, sites_known, length = totals.sites, site.shape[0] > 0 and totals.sites > 0, sizes.shape[0]
    status, row = DONE, start
    while row < op.shape[0]:
        code, number, requested = op[row], block[row], size[row]
        begins, ends = allocates(code), code == FREE
        status = DONE
        if time_ns[row] < last_ns:
            status = _TIME
        elif sites_known and site[row] != NO_SITE and site[row] >= sites:
            status = _SITE
        elif (
            (code > LAST_BLOCK_OP) | (domain[row] > _DOMAIN_LAST) | (requested > MAX_SIZE) | (number >= length)
            | (requested < np.int64(_DOMAINS * code + domain[row] == _LIBC_REALLOC))
            or ((sizes[number] < 0) != begins) | (ends & (requested != 0))
        ):  # fmt: skip
            status = _find_mistake(code, domain[row], number, requested, totals.rows + row, sizes, totals.phases)
        else:
            before = sizes[number]
            sizes[number] = -1 if ends else requested
            blocks += np.int64(begins) - np.int64(ends)
            live += requested - max(before, 0)
            blocks_peak = max(blocks_peak, blocks)
            live_peak = max(live_peak, live)
        if status != DONE:
            break
        last_ns = time_ns[row]
        row += 1
    totals.last_ns, totals.blocks, totals.live_bytes = last_ns, blocks, live
    totals.blocks_peak, totals.bytes_peak = blocks_peak, live_peak
    return status, row


@entry
def _check_owners(op: np.ndarray, block: np.ndarray, owner: np.ndarray, rows: int, owners: np.ndarray) -> int:
    """Returns the first of `rows` rows that has no process or concerns a block of another process; -1 if none.

    `owner` is the process of each row. `owners` is the process that allocated each block; it changes in place.
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

    Phases, sites, types and processes of events are checked against the tables of `metadata`, if it is passed.
    """

    def __init__(self, path: object = None, metadata: Metadata | None = None) -> None:
        self._path = path
        self._sizes = np.full(1024, -1, np.int64)
        self._state = np.zeros(1, _STATE)
        self._first_ns = 0
        self._state[0].phases = len(metadata.phases) if metadata else -1
        self._state[0].sites = len(metadata.sites) if metadata else 0
        self._types = len(metadata.types) if metadata else 0
        self._processes = Processes(lambda: metadata.processes) if metadata and metadata.processes else None
        self._owners = np.zeros(1024 if self._processes else 0, np.int64)

    def check(self, events: Events) -> None:
        """Raises a TraceError for the first event that breaks the contract. `events` continue those of the last
        call."""
        site = events.site if events.site is not None else np.empty(0, np.uint32)
        if self.rows == 0 and events.rows:
            self._first_ns = int(events.time_ns[0])
        time_ns, op, domain, block, size = events.time_ns, events.op, events.domain, events.block, events.size
        status, row = call_with_room(
            lambda row: _check_events(time_ns, op, domain, block, size, site, row, self._sizes, self._state),
            lambda row: self._grow(int(block[row]) + 1),
            0,
        )
        self._check_processes(events, row)  # reports an earlier row first
        self._check_alignments(events, row)
        self._check_types(events, row)
        if status != DONE:
            raise TraceError(self._message(status, events, row), path=self._path, row=self.rows + row)
        self._state[0].rows += events.rows

    def _check_processes(self, events: Events, rows: int) -> None:
        """Raises a TraceError for the first of `rows` rows whose thread has no process or whose block is of another
        one."""
        if self._processes is None:
            return
        owner, _ = self._processes.find(events.thread)
        row = _check_owners(events.op, events.block, owner, rows, self._owners)
        if row >= 0:
            message = unknown_thread(int(events.thread[row]))
            if owner[row] >= 0:
                op, block = Op(events.op[row]).name.lower(), int(events.block[row])
                own, other = (self._processes.table[number].name for number in (owner[row], self._owners[block]))
                message = (
                    f"{op} of block {block} by process {own!r}, but {other!r} allocated it; processes share no blocks"
                )
            raise TraceError(message, path=self._path, row=self.rows + row)

    def _check_alignments(self, events: Events, rows: int) -> None:
        """Raises a TraceError for the first invalid memalign, or alignment of another op, in the first `rows` rows."""
        memaligns = events.memalign_rows
        if events.alignment is None:
            wrong = memaligns
        else:
            alignment, domain = events.alignment[memaligns], events.domain[memaligns]
            is_power = (alignment != NO_ALIGNMENT) & (alignment & (alignment - 1) == 0)
            others = np.flatnonzero((events.alignment != NO_ALIGNMENT) & (events.op != MEMALIGN))
            wrong = np.union1d(others, memaligns[~is_power | ~np.isin(domain, _MEMALIGN_DOMAINS)])
        if wrong.size and wrong[0] < rows:
            message = _alignment_message(events, int(wrong[0]))
            raise TraceError(message, path=self._path, row=self.rows + int(wrong[0]))

    def _check_types(self, events: Events, rows: int) -> None:
        """Raises a TraceError for the first unknown type in the first `rows` rows."""
        if events.type is None or not self._types:
            return
        wrong = np.flatnonzero((events.type >= self._types) & (events.type != NO_TYPE))
        if wrong.size and wrong[0] < rows:
            message = f"type {events.type[wrong[0]]} is out of range; the metadata has {self._types} types"
            raise TraceError(message, path=self._path, row=self.rows + int(wrong[0]))

    def _grow(self, blocks: int) -> None:
        self._sizes = extend(self._sizes, max(2 * self._sizes.shape[0], blocks), fill=-1)
        if self._processes:
            self._owners = extend(self._owners, self._sizes.shape[0])

    def _message(self, status: int, events: Events, row: int) -> str:
        """Returns the message for an event with this status."""
        op, block, size = int(events.op[row]), int(events.block[row]), int(events.size[row])
        if status == _TIME:
            return f"time decreases from {self._state[0].last_ns} ns to {events.time_ns[row]} ns"
        if status == _OP:
            return f"op {op} is unknown; known are {', '.join(f'{known} {known.name.lower()}' for known in Op)}"
        if status == _DOMAIN:
            known_domains = ", ".join(f"{known} {known.name.lower()}" for known in Domain)
            return f"domain {events.domain[row]} is unknown; known are {known_domains}"
        if status == _SIZE:
            return f"size {size} is out of range; a block has 0 to 2^47 bytes"
        if status == _FREE_SIZE:
            return f"size of a free is {size}, must be 0"
        if status == _REALLOC_TO_0:
            return f"realloc of block {block} to 0 bytes in domain libc frees the block; write it as a free"
        if status == _ALREADY_LIVE:
            return allocated_twice(op, block)
        if status == _NOT_LIVE:
            return not_live(op, block)
        if status == _PHASE:
            return f"phase {size} of a mark is out of range; the metadata has {self._state[0].phases} phases"
        if status == _SITE:
            sites = self._state[0].sites
            return f"site {cast(np.ndarray, events.site)[row]} is out of range; the metadata has {sites} sites"
        return (
            f"block number {block} is too large after {self.rows + row} rows; "
            "number blocks densely from 0, or write the column as UInt64 and let `replay import` renumber it"
        )

    @property
    def rows(self) -> int:
        """Number of events that were checked and are valid."""
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


def _alignment_message(events: Events, row: int) -> str:
    """Returns the message for an invalid memalign, or for an alignment of another op, in this row."""
    alignment = NO_ALIGNMENT if events.alignment is None else int(events.alignment[row])
    if events.op[row] != MEMALIGN:
        op = Op(events.op[row]).name.lower()
        return f"`alignment` of a {op} is {alignment}; it must be empty, only memaligns have one"
    if events.domain[row] not in _MEMALIGN_DOMAINS:
        domain = Domain(events.domain[row]).name.lower()
        return f"domain {domain} has no memalign; write it in domain libc"
    if events.alignment is None:
        return "memalign without the column `alignment`; add the column, or write a malloc"
    if alignment == NO_ALIGNMENT:
        return "`alignment` of a memalign is empty; write the alignment in bytes, or write a malloc"
    return f"`alignment` of a memalign is {alignment}, must be a power of two"


@runtime_checkable
class ValidatedTrace(Trace, Protocol):
    """A trace that validates what it yields."""

    validator: Validator
    """That of the latest call of `batches`, for the batches read so far."""


class _Checked:
    """A trace that validates another one while it is read. It checks types and lengths of columns, too: kernels rely on
    both."""

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
                message = f"column `{name}` has {found}; expected {events.rows} of type {type_}"
                raise TraceError(message, path=self._path, row=first_row)


def validated(trace: Trace, path: object) -> ValidatedTrace:
    """Returns the trace itself if it validates what it yields, else a trace that validates it while it is read."""
    return trace if isinstance(trace, ValidatedTrace) else _Checked(trace, path)
