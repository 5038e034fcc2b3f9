"""Simulates a recording with a clean start, and compares the model with the recorded process.

A clean start fills every pool, so that pymalloc then behaves like in a new process. The model takes from the recording
what it cannot know: the addresses of new arenas, and frees of blocks older than the recording. Such a block is in a
pool that was full. The size class of the pool becomes known when one of its blocks is allocated again; otherwise, the
free has no visible effect. There is no pool at addresses of libc's blocks. A block of libc stays with libc when it
shrinks to a size of pymalloc.

The comparison has the addresses of pymalloc's blocks; arenas mapped and unmapped, with their order among calls; and, if
the program ended normally, pymalloc's statistics (`replay.verification.counts`).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from replay.allocators import ARENA_MAPPED, ARENA_UNMAPPED
from replay.config import StackConfig, load_config
from replay.simulation.clock import Slice
from replay.simulation.simulator import Simulator
from replay.support.errors import ReplayError
from replay.trace import CLEAN_START, Domain, Events, Op, PoolCount, Trace
from replay.trace.block_ops import concerns_block, requests
from replay.verification.counts import CountAgreement, Counting

LOW_ADDRESSES = ("linux.brk_base=0x10000000", "linux.mmap_base=0x1000000000")
"""Places the model's heap and mappings below all mappings of a Linux process."""
FAR = 1 << 10
"""Maximum number of rows to the call that unmapped an arena, with calls of other threads in between."""
APART_BYTES = 1 << 36
"""An older block at least this far from all arenas belongs to libc: in the usual layout of Linux on x86-64, the heap is
further away from mappings than this."""
_SMALL = (Domain.MEM, Domain.OBJ)


@dataclass(frozen=True)
class RecordingAgreement:
    """The result of comparing the model with a recording."""

    preset: str
    events: int
    addresses_compared: int
    addresses_equal: int
    arena_events_compared: int
    """Length of the longer list of arena events."""
    arena_events_equal: int
    """Number of equal arena events before the first difference."""
    releases: int
    """Number of arenas unmapped in the recording."""
    older_frees: int
    """Number of simulated frees of blocks older than the recording."""
    older_frees_unseen: int
    """Number of frees of older blocks whose address was not reused, or is not pymalloc's. They are not simulated."""
    predictable_events: int
    """Number of rows before a pool of older blocks may have become empty. The arena of that pool is unknown, so the
    order of arenas is unknown from there on."""
    prediction_agrees: bool
    """Whether everything is equal in these rows."""
    seconds: float
    difference: str | None
    """The first address that differs, as text; None without any."""
    arena_difference: str | None
    counts: CountAgreement | None
    """None if the recording has no counts at its end."""

    @property
    def exact(self) -> bool:
        counted = self.counts is None or self.counts.difference is None
        return self.difference is None and self.arena_difference is None and counted


@dataclass(frozen=True)
class ArenaMoment:
    """An arena was mapped or unmapped, after `calls` calls for blocks of pymalloc."""

    mapped: bool
    address: int
    calls: int
    realloc_follows: bool = False

    def agrees(self, model: "ArenaMoment") -> bool:
        """Whether the model has the same arena event.

        In the model, the event is before its call. In a recording, the row of a free is before its arena events, and
        the row of a malloc or realloc after them.
        """
        late = self.calls - model.calls
        if (self.mapped, self.address) != (model.mapped, model.address):
            return False
        return late == 0 if self.mapped else late == 1 or (late == 0 and self.realloc_follows)

    def __str__(self) -> str:
        return f"arena {self.address:#x} {'mapped' if self.mapped else 'unmapped'} after call {self.calls}"


def is_recording(trace: Trace) -> bool:
    """Whether the metadata contain how the recording began."""
    return trace.metadata.origin.start is not None


def verify_recording(trace: Trace) -> RecordingAgreement:
    """Compares a recording with the model of its interpreter."""
    start = time.perf_counter()
    if trace.metadata.origin.start != CLEAN_START:
        raise ReplayError("the recording did not start clean, so nothing can be predicted; record it with --clean")
    if trace.metadata.runtime and trace.metadata.runtime.separate_heaps:
        what = "subinterpreters of the recorded program had a pymalloc of their own"
        raise ReplayError(f"{what}; the recording does not have the owner of a block, so nothing can be compared")
    preset = _preset(trace)
    config = load_config(preset, LOW_ADDRESSES)
    recorded = _read_recorded(trace, config)
    comparison = _Comparison(config, recorded, [count.row for count in trace.metadata.counts])
    for events in trace.batches():
        comparison.compare(events)
    real = recorded.arenas
    agreeing = _agreeing(real, comparison.arenas)
    counts = comparison.compare_counts(trace.metadata.counts)
    counts_agree = counts is None or counts.difference is None or counts.row > (comparison.lost_at or counts.row)
    arenas_agree = _agree_until(comparison.calls_at_loss, real, comparison.arenas, agreeing)
    return RecordingAgreement(
        preset=preset,
        events=comparison.rows,
        addresses_compared=comparison.compared,
        addresses_equal=comparison.equal,
        arena_events_compared=max(len(real), len(comparison.arenas)),
        arena_events_equal=agreeing,
        releases=sum(not moment.mapped for moment in real),
        older_frees=comparison.older_frees,
        older_frees_unseen=comparison.older_frees_unseen,
        predictable_events=comparison.rows if comparison.lost_at is None else comparison.lost_at,
        prediction_agrees=comparison.agrees_until_loss and arenas_agree and counts_agree,
        seconds=time.perf_counter() - start,
        difference=comparison.difference,
        arena_difference=_arena_difference(real, comparison.arenas, agreeing),
        counts=counts,
    )


def _preset(trace: Trace) -> str:
    version = trace.metadata.origin.cpython_version
    if not version:
        name = trace.metadata.origin.implementation or "an unknown interpreter"
        raise ReplayError(f"the recording is of {name}; only CPython has models")
    return f"cpython-{version}"


@dataclass(frozen=True)
class _RecordedData:
    """Data that the model takes from a recording in advance, and data for the comparison."""

    places: np.ndarray
    """Addresses of the arenas, in order."""
    arenas: list[ArenaMoment]
    pools: np.ndarray
    """Sorted addresses of pools in which blocks older than the recording were freed."""
    classes: np.ndarray
    """Bytes of the blocks in these pools, 0 if unknown."""
    libc: np.ndarray
    """Sorted first addresses of pool-sized ranges with blocks of libc."""


def _read_recorded(trace: Trace, config: StackConfig) -> _RecordedData:
    """Reads the recording twice: first arenas and older blocks, then the size classes of the pools of older blocks."""
    assert config.small is not None
    pool_bytes, arena_bytes = config.small.pool_size, config.small.arena_size
    alignment, threshold = config.small.alignment, config.small.small_threshold
    arenas: list[ArenaMoment] = []
    older, libc, calls = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    mapped: set[int] = set()
    for events in trace.batches():
        if events.address is None:
            raise ReplayError("the recording has no addresses to compare with; record it without --no-addresses")
        address = events.address.view(np.int64)
        before = calls + np.cumsum(_is_call(events))
        is_arena = ((events.op == Op.ARENA_MAPPED) | (events.op == Op.ARENA_UNMAPPED)) & (events.size == arena_bytes)
        for row in np.flatnonzero(is_arena).tolist():
            place, begins = int(address[row]), bool(events.op[row] == Op.ARENA_MAPPED)
            if begins or place in mapped:
                arenas.append(ArenaMoment(begins, place, int(before[row]), _realloc_follows(events, row)))
            mapped ^= {place} if begins or place in mapped else set()
        calls = int(before[-1]) if events.rows else calls
        older = np.union1d(older, address[(events.op == Op.FOREIGN_FREE) & np.isin(events.domain, _SMALL)])
        of_libc = requests(events.op) & ((events.size > threshold) | (events.domain == Domain.RAW))
        libc = np.union1d(libc, address[of_libc] & -pool_bytes)
    places = np.array([moment.address for moment in arenas if moment.mapped], np.int64)
    older = older[~_in_libc(older, libc, places, pool_bytes)]
    pools = np.unique(older & -pool_bytes)
    classes = np.zeros(pools.shape[0], np.int64)
    for events in trace.batches():
        assert events.address is not None
        address = events.address.view(np.int64)
        # The first allocation at the address of an older block; a realloc in place does not count.
        fits = requests(events.op) & np.isin(events.domain, _SMALL) & np.isin(address, older)
        rows = np.flatnonzero(fits & (events.size > 0) & (events.size <= threshold))[::-1]
        found = np.searchsorted(pools, address[rows] & -pool_bytes)
        fresh = (events.size[rows] + alignment - 1) & -alignment
        known = classes.copy()
        classes[found] = fresh
        classes[known > 0] = known[known > 0]
    return _RecordedData(places, arenas, pools, classes, libc)


def _in_libc(address: np.ndarray, libc: np.ndarray, places: np.ndarray, pool_bytes: int) -> np.ndarray:
    """Returns whether addresses belong to libc: near its blocks, or too far from all arenas."""
    near = np.isin(address & -pool_bytes, libc)
    if not places.size:
        return near
    return near | (address < places.min() - APART_BYTES) | (address > places.max() + APART_BYTES)


def _realloc_follows(events: Events, row: int) -> bool:
    """Whether the next call of pymalloc in this batch is a realloc."""
    later = np.flatnonzero(_is_call(events.where(slice(row, row + FAR))))
    return not later.size or bool(events.op[row + later[0]] == Op.REALLOC)


def _is_call(events: Events) -> np.ndarray:
    """Returns a mask of the rows that change blocks of pymalloc's domains."""
    return (concerns_block(events.op) | (events.op == Op.FOREIGN_FREE)) & np.isin(events.domain, _SMALL)


class _Comparison:
    """Simulates the batches of a recording and compares them."""

    def __init__(self, config: StackConfig, recorded: _RecordedData, count_rows: list[int]) -> None:
        assert config.small is not None
        self._recorded, self._pool_bytes = recorded, config.small.pool_size
        self._told: list[tuple[np.ndarray, np.ndarray]] = []
        self._logged: list[np.ndarray] = []
        self._simulator = Simulator(config, addresses=lambda *told: self._told.append(told), log=self._logged.append)
        self._simulator.give(recorded.places)
        self._places = set(recorded.places.tolist())
        self._calls = 0
        self.arenas: list[ArenaMoment] = []
        self.rows = self.compared = self.equal = self.older_frees = self.older_frees_unseen = 0
        self.difference: str | None = None
        self._count_rows, self._counting = count_rows, Counting(self._simulator.stack)
        self._unknown: dict[int, int] = {}
        self._least_blocks = (config.small.pool_size - config.small.pool_overhead) // config.small.small_threshold
        self.lost_at: int | None = None
        """The row from which the model cannot predict anything; `calls_at_loss` calls precede it."""
        self.calls_at_loss: int | None = None
        self.agrees_until_loss = True

    def compare(self, events: Events) -> None:
        """Simulates a batch and compares it."""
        events_for_model = self._with_libc_blocks(events)
        for start, end in self._ranges(events):
            nothing = np.zeros(0, np.int64)
            self._simulator.simulate(Slice(events_for_model, self.rows, start, end, nothing, nothing))
            address, owner = self._told.pop()
            self._compare(events, start, address, owner)
            if self._older_pool_is_free():
                self._lose_track(events, end)
        self._note_arenas(events)
        self._calls += int(np.count_nonzero(_is_call(events)))
        self.rows += events.rows

    def _with_libc_blocks(self, events: Events) -> Events:
        """Returns the events with domain libc for blocks that an older block of libc was reallocated to, of any
        size."""
        assert events.address is not None
        in_libc = _in_libc(events.address.view(np.int64), self._recorded.libc, self._recorded.places, self._pool_bytes)
        older = np.flatnonzero((events.op == Op.FOREIGN_FREE) & in_libc)
        beside = np.union1d(older - 1, older + 1)
        beside = beside[(beside >= 0) & (beside < events.rows)]
        domain = events.domain.copy()
        domain[beside[(events.op[beside] == Op.MALLOC) & in_libc[beside]]] = Domain.RAW
        return events._replace(domain=domain)

    def _ranges(self, events: Events) -> Iterator[tuple[int, int]]:
        """Yields ranges of rows between rows that do not concern blocks. Before each range, simulates frees of older
        blocks and takes counts. Ranges are short, so that a free older pool is found early."""
        start = 0
        counts = [row - self.rows for row in self._count_rows if 0 <= row - self.rows < events.rows]
        stops = np.union1d(np.flatnonzero(~concerns_block(events.op)), np.array(counts, np.int64))
        for stop in [*stops.tolist(), events.rows]:
            if stop > start:
                yield start, stop
            start = stop
            if stop in counts:
                self._counting.count(self._simulator.stack, self._calls_until(events, stop))
            if stop < events.rows and events.op[stop] == Op.FOREIGN_FREE:
                self._free_older(events, stop)
            if stop < events.rows and not concerns_block(events.op[stop]):
                start = stop + 1

    def _free_older(self, events: Events, row: int) -> None:
        assert events.address is not None
        address = int(events.address[row])
        at = int(np.searchsorted(self._recorded.pools, address & -self._pool_bytes))
        found = at < self._recorded.pools.shape[0] and self._recorded.pools[at] == address & -self._pool_bytes
        if found and self._recorded.classes[at] and events.domain[row] in _SMALL:
            self._simulator.adopt(address, int(self._recorded.classes[at]), self.rows + row, int(events.time_ns[row]))
            self._counting.add_older_pool(at, int(self._recorded.classes[at]))
            self.older_frees += 1
        else:
            self.older_frees_unseen += 1
            if found:
                self._counting.older_frees_unseen += 1
                self._unknown[at] = self._unknown.get(at, 0) + 1
                if self._unknown[at] >= self._least_blocks:
                    self._lose_track(events, row)
        if self._older_pool_is_free():
            self._lose_track(events, row)

    def _older_pool_is_free(self) -> bool:
        """Whether the model has a free pool in an arena of older blocks."""
        arenas = self._simulator.stack.small.arenas[: self._simulator.stack.small.geometry[0].arenas]  # type: ignore[attr-defined]
        windows = arenas[~np.isin(arenas["address"], self._recorded.places)]
        return bool((windows["free"] > 0).any())

    def _lose_track(self, events: Events, row: int) -> None:
        if self.lost_at is None:
            self.lost_at = self.rows + row
            self.calls_at_loss = self._calls_until(events, row)

    def _calls_until(self, events: Events, row: int) -> int:
        """Returns the number of calls for blocks of pymalloc before a row of the current batch."""
        return self._calls + int(np.count_nonzero(_is_call(events.where(slice(0, row)))))

    def _compare(self, events: Events, start: int, address: np.ndarray, owner: np.ndarray) -> None:
        assert events.address is not None
        end = start + address.shape[0]
        real = events.address[start:end].view(np.int64)
        mine = (owner == 1) & requests(events.op[start:end])
        wrong = np.flatnonzero(mine & (real != address))
        self.compared += int(np.count_nonzero(mine))
        self.equal += int(np.count_nonzero(mine)) - len(wrong)
        if len(wrong) and self.difference is None:
            self.agrees_until_loss = self.lost_at is not None
            row = start + int(wrong[0])
            what = f"{Op(int(events.op[row])).name.lower()} of {events.size[row]} bytes"
            places = f"was at {int(events.address[row]):#x}, in the model it is at {int(address[wrong[0]]):#x}"
            self.difference = f"row {self.rows + row}: {what} {places}"

    def _note_arenas(self, events: Events) -> None:
        """Adds the model's arena events of this batch, without artificial arenas for older blocks."""
        before = self._calls + np.cumsum(_is_call(events)) - _is_call(events)
        for logged in self._logged:
            for row, kind, address, _ in logged.tolist():
                if kind in (ARENA_MAPPED, ARENA_UNMAPPED) and address in self._places:
                    self.arenas.append(ArenaMoment(kind == ARENA_MAPPED, address, int(before[row - self.rows])))
        self._logged.clear()

    def compare_counts(self, real: tuple[PoolCount, ...]) -> CountAgreement | None:
        """Returns the comparison of the counts at the end; None without counts."""
        if not real:
            return None
        for _ in [row for row in self._count_rows if row == self.rows]:
            self._counting.count(self._simulator.stack, self._calls)
        return self._counting.compare(real, [(moment.calls, moment.mapped) for moment in self.arenas])


def _agreeing(real: list[ArenaMoment], model: list[ArenaMoment]) -> int:
    """Returns the number of equal arena events before the first difference."""
    pairs = enumerate(zip(real, model, strict=False))
    return next((number for number, (a, b) in pairs if not a.agrees(b)), min(len(real), len(model)))


def _agree_until(calls: int | None, real: list[ArenaMoment], model: list[ArenaMoment], agreeing: int) -> bool:
    """Whether the first arena events that differ, if any, are after `calls` calls. None: whether no events differ."""
    differing = (*real[agreeing : agreeing + 1], *model[agreeing : agreeing + 1])
    return not differing if calls is None else all(moment.calls >= calls for moment in differing)


def _arena_difference(real: list[ArenaMoment], model: list[ArenaMoment], number: int) -> str | None:
    if number == len(real) == len(model):
        return None
    a, b = (str(side[number]) if number < len(side) else "no more" for side in (real, model))
    return f"arena event {number}: {a} in the recording, {b} in the model"
