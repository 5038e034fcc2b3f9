"""Plays a recording that was started clean, and holds the model against what really happened.

A clean start fills every pool beforehand, so that pymalloc behaves as if it were new. What the model cannot know is
taken from the recording: where the kernel put each new arena, and which blocks were freed that are older than the
recording. Such a block lies in a pool that was full, and the pool's size class shows when one of its blocks is handed
out again; if none ever is, the free changed nothing that anybody saw. Where libc's blocks are, no pool is, and a block
of libc's stays one when it shrinks to a size of pymalloc's.

Compared are the addresses of pymalloc's blocks, arenas mapped and unmapped: which one, and between which calls; and, if
the program ended in peace, how pymalloc counted itself: `replay.verification.counts`.
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
from replay.trace.editing import rows_of
from replay.verification.counts import CountAgreement, Counting

LOW_ADDRESSES = ("linux.brk_base=0x10000000", "linux.mmap_base=0x1000000000")
"""The model's own heap and mappings lie below everything that a process of Linux has."""
FAR = 1 << 10
"""Rows within which the call that unmapped an arena stands, though other threads call too."""
APART_BYTES = 1 << 36
"""In the usual layout of Linux on x86-64 the heap lies further than this from what is mapped, so that an older block so
far from all arenas is libc's."""
NEVER = 1 << 62
_SMALL = (Domain.MEM, Domain.OBJ)


@dataclass(frozen=True)
class RecordingAgreement:
    """How far the model and what was recorded agree."""

    preset: str
    events: int
    addresses_compared: int
    addresses_equal: int
    arena_events_compared: int
    """The longer of the two lists."""
    arena_events_equal: int
    """Before the first that differs."""
    releases: int
    """Arenas unmapped, in the recording."""
    older_frees: int
    """Frees of blocks older than the recording that were simulated."""
    older_frees_unseen: int
    """The same whose place was never handed out again, or is none of pymalloc's."""
    foretold_events: int
    """Rows before a pool of older blocks may have emptied: the arena of that pool is unknown, and so is how the arenas
    follow one another from there."""
    foretold: bool
    """Whether all is equal in these rows."""
    seconds: float
    difference: str | None
    """The first address that differs, in words."""
    arena_difference: str | None
    counts: CountAgreement | None
    """None where the program did not come to count."""

    @property
    def exact(self) -> bool:
        counted = self.counts is None or self.counts.difference is None
        return self.difference is None and self.arena_difference is None and counted


@dataclass(frozen=True)
class ArenaMoment:
    """An arena was mapped or unmapped, behind so many calls for blocks of pymalloc's."""

    mapped: bool
    address: int
    calls: int
    realloc_follows: bool = False

    def agrees(self, model: "ArenaMoment") -> bool:
        """Whether the model has the same.

        Its moments are in front of the call that brought them. A recording has a free before what it does, and a
        realloc, as a malloc, behind.
        """
        late = self.calls - model.calls
        if (self.mapped, self.address) != (model.mapped, model.address):
            return False
        return late == 0 if self.mapped else late == 1 or (late == 0 and self.realloc_follows)

    def __str__(self) -> str:
        return f"arena {self.address:#x} {'mapped' if self.mapped else 'unmapped'} behind call {self.calls}"


def is_recording(trace: Trace) -> bool:
    """Whether the trace says how its recording began."""
    return trace.metadata.origin.start is not None


def verify_recording(trace: Trace) -> RecordingAgreement:
    """Compares a recording with the model of the interpreter that it is of."""
    start = time.perf_counter()
    if trace.metadata.origin.start != CLEAN_START:
        raise ReplayError("the recording did not start clean, so nothing can be predicted; record it with --clean")
    if trace.metadata.runtime and trace.metadata.runtime.separate_heaps:
        what = "subinterpreters of the recorded program had a pymalloc of their own"
        raise ReplayError(f"{what}; which of them a block belongs to is not recorded, so nothing can be compared")
    preset = _preset(trace)
    config = load_config(preset, LOW_ADDRESSES)
    seen = _look_through(trace, config)
    play = _Play(config, seen, [count.row for count in trace.metadata.counts])
    for events in trace.batches():
        play.play(events)
    real = seen.arenas
    agreeing = _agreeing(real, play.arenas)
    counts = play.compare_counts(trace.metadata.counts)
    counts_foretold = counts is None or counts.difference is None or counts.row > (play.lost_at or counts.row)
    arenas_foretold = _agree_until(play.calls_at_loss, real, play.arenas, agreeing)
    return RecordingAgreement(
        preset=preset,
        events=play.rows,
        addresses_compared=play.compared,
        addresses_equal=play.equal,
        arena_events_compared=max(len(real), len(play.arenas)),
        arena_events_equal=agreeing,
        releases=sum(not moment.mapped for moment in real),
        older_frees=play.older_frees,
        older_frees_unseen=play.older_frees_unseen,
        foretold_events=play.rows if play.lost_at is None else play.lost_at,
        foretold=play.agrees_until_loss and arenas_foretold and counts_foretold,
        seconds=time.perf_counter() - start,
        difference=play.difference,
        arena_difference=_tell_arenas(real, play.arenas, agreeing),
        counts=counts,
    )


def _preset(trace: Trace) -> str:
    version = trace.metadata.origin.cpython_version
    if not version:
        name = trace.metadata.origin.implementation or "an unknown interpreter"
        raise ReplayError(f"the recording is of {name}; there are models of CPython only")
    return f"cpython-{version}"


@dataclass(frozen=True)
class _Seen:
    """What the model takes from a recording beforehand, and what it is compared with."""

    places: np.ndarray
    """Addresses of the arenas, in order."""
    arenas: list[ArenaMoment]
    pools: np.ndarray
    """Addresses of pools with blocks older than the recording that were freed, rising."""
    classes: np.ndarray
    """Bytes of their blocks, 0 where that never shows."""
    libc: np.ndarray
    """Stretches as long as a pool in which blocks of libc's lie, by their first address, rising."""


def _look_through(trace: Trace, config: StackConfig) -> _Seen:
    """Reads the recording twice: arenas and older blocks, then what the pools of those are for."""
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
        # The first to be where an older block was: not a realloc that stays where it is.
        fits = requests(events.op) & np.isin(events.domain, _SMALL) & np.isin(address, older)
        rows = np.flatnonzero(fits & (events.size > 0) & (events.size <= threshold))[::-1]
        found = np.searchsorted(pools, address[rows] & -pool_bytes)
        fresh = (events.size[rows] + alignment - 1) & -alignment
        known = classes.copy()
        classes[found] = fresh
        classes[known > 0] = known[known > 0]
    return _Seen(places, arenas, pools, classes, libc)


def _in_libc(address: np.ndarray, libc: np.ndarray, places: np.ndarray, pool_bytes: int) -> np.ndarray:
    """Whether these addresses are libc's: near its blocks, or too far from all arenas."""
    near = np.isin(address & -pool_bytes, libc)
    if not places.size:
        return near
    return near | (address < places.min() - APART_BYTES) | (address > places.max() + APART_BYTES)


def _realloc_follows(events: Events, row: int) -> bool:
    """Whether the next call of pymalloc is a realloc, as far as this batch shows."""
    later = np.flatnonzero(_is_call(rows_of(events, slice(row, row + FAR))))
    return not later.size or bool(events.op[row + later[0]] == Op.REALLOC)


def _is_call(events: Events) -> np.ndarray:
    """Rows that change blocks of pymalloc's domains."""
    return (concerns_block(events.op) | (events.op == Op.FOREIGN_FREE)) & np.isin(events.domain, _SMALL)


class _Play:
    """The model at work on the batches of a recording, and what came of it."""

    def __init__(self, config: StackConfig, seen: _Seen, count_rows: list[int]) -> None:
        assert config.small is not None
        self._seen, self._pool_bytes = seen, config.small.pool_size
        self._told: list[tuple[np.ndarray, np.ndarray]] = []
        self._logged: list[np.ndarray] = []
        self._simulator = Simulator(config, addresses=lambda *told: self._told.append(told), log=self._logged.append)
        self._simulator.give(seen.places)
        self._places = set(seen.places.tolist())
        self._calls = 0
        self.arenas: list[ArenaMoment] = []
        self.rows = self.compared = self.equal = self.older_frees = self.older_frees_unseen = 0
        self.difference: str | None = None
        self._count_rows, self._counting = count_rows, Counting(self._simulator.stack)
        self._unknown: dict[int, int] = {}
        self._least_blocks = (config.small.pool_size - config.small.pool_overhead) // config.small.small_threshold
        self.lost_at: int | None = None
        """The row from which nothing can be foretold; with `calls_at_loss` before it."""
        self.calls_at_loss = NEVER
        self.agrees_until_loss = True

    def play(self, events: Events) -> None:
        """Plays a batch, and compares."""
        played = self._pass_on(events)
        for start, end in self._stretches(events):
            nothing = np.zeros(0, np.int64)
            self._simulator.simulate(Slice(played, self.rows, start, end, nothing, nothing))
            address, owner = self._told.pop()
            self._compare(events, start, address, owner)
            if self._older_pool_is_free():
                self._lose(events, end)
        self._note_arenas(events)
        self._calls += int(np.count_nonzero(_is_call(events)))
        self.rows += events.rows

    def _pass_on(self, events: Events) -> Events:
        """Has libc serve what an older block of its own was reallocated to, however small that is."""
        assert events.address is not None
        in_libc = _in_libc(events.address.view(np.int64), self._seen.libc, self._seen.places, self._pool_bytes)
        older = np.flatnonzero((events.op == Op.FOREIGN_FREE) & in_libc)
        beside = np.union1d(older - 1, older + 1)
        beside = beside[(beside >= 0) & (beside < events.rows)]
        domain = events.domain.copy()
        domain[beside[(events.op[beside] == Op.MALLOC) & in_libc[beside]]] = Domain.RAW
        return events._replace(domain=domain)

    def _stretches(self, events: Events) -> Iterator[tuple[int, int]]:
        """Simulates from one row that concerns no block to another; frees of older blocks in between are simulated, and
        counts are taken. Often, so that it is known early where an older pool is free."""
        start = 0
        counts = [row - self.rows for row in self._count_rows if 0 <= row - self.rows < events.rows]
        stops = np.union1d(np.flatnonzero(~concerns_block(events.op)), np.array(counts, np.int64))
        for stop in [*stops.tolist(), events.rows]:
            if stop > start:
                yield start, stop
            start = stop
            if stop in counts:
                self._counting.take(self._simulator.stack, self._calls_until(events, stop))
            if stop < events.rows and events.op[stop] == Op.FOREIGN_FREE:
                self._free_older(events, stop)
            if stop < events.rows and not concerns_block(events.op[stop]):
                start = stop + 1

    def _free_older(self, events: Events, row: int) -> None:
        assert events.address is not None
        address = int(events.address[row])
        at = int(np.searchsorted(self._seen.pools, address & -self._pool_bytes))
        found = at < self._seen.pools.shape[0] and self._seen.pools[at] == address & -self._pool_bytes
        if found and self._seen.classes[at] and events.domain[row] in _SMALL:
            self._simulator.adopt(address, int(self._seen.classes[at]), self.rows + row, int(events.time_ns[row]))
            self._counting.meet(at, int(self._seen.classes[at]))
            self.older_frees += 1
        else:
            self.older_frees_unseen += 1
            if found:
                self._counting.older_frees_unseen += 1
                self._unknown[at] = self._unknown.get(at, 0) + 1
                if self._unknown[at] >= self._least_blocks:
                    self._lose(events, row)
        if self._older_pool_is_free():
            self._lose(events, row)

    def _older_pool_is_free(self) -> bool:
        """Whether the model has a free pool in a window of older blocks."""
        arenas = self._simulator.stack.small.arenas[: self._simulator.stack.small.geometry[0].arenas]  # type: ignore[attr-defined]
        windows = arenas[~np.isin(arenas["address"], self._seen.places)]
        return bool((windows["free"] > 0).any())

    def _lose(self, events: Events, row: int) -> None:
        if self.lost_at is None:
            self.lost_at = self.rows + row
            self.calls_at_loss = self._calls_until(events, row)

    def _calls_until(self, events: Events, row: int) -> int:
        """Calls for blocks of pymalloc before a row of the current batch."""
        return self._calls + int(np.count_nonzero(_is_call(rows_of(events, slice(0, row)))))

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
        """The model's arenas of this batch, without those that it made up for older blocks."""
        before = self._calls + np.cumsum(_is_call(events)) - _is_call(events)
        for logged in self._logged:
            for row, kind, address, _ in logged.tolist():
                if kind in (ARENA_MAPPED, ARENA_UNMAPPED) and address in self._places:
                    self.arenas.append(ArenaMoment(kind == ARENA_MAPPED, address, int(before[row - self.rows])))
        self._logged.clear()

    def compare_counts(self, real: tuple[PoolCount, ...]) -> CountAgreement | None:
        """The comparison at the end; None where there are no counts."""
        if not real:
            return None
        for _ in [row for row in self._count_rows if row == self.rows]:
            self._counting.take(self._simulator.stack, self._calls)
        return self._counting.compare(real, [(moment.calls, moment.mapped) for moment in self.arenas])


def _agreeing(real: list[ArenaMoment], model: list[ArenaMoment]) -> int:
    """How many agree before the first that does not."""
    pairs = enumerate(zip(real, model, strict=False))
    return next((number for number, (a, b) in pairs if not a.agrees(b)), min(len(real), len(model)))


def _agree_until(calls: int, real: list[ArenaMoment], model: list[ArenaMoment], agreeing: int) -> bool:
    """Whether the first arena events that differ, if any do, come behind so many calls."""
    return all(moment.calls >= calls for moment in (*real[agreeing : agreeing + 1], *model[agreeing : agreeing + 1]))


def _tell_arenas(real: list[ArenaMoment], model: list[ArenaMoment], number: int) -> str | None:
    if number == len(real) == len(model):
        return None
    a, b = (str(side[number]) if number < len(side) else "no more" for side in (real, model))
    return f"arena event {number}: {a} in the recording, {b} in the model"
