"""Simulated time, which SimPy owns. The trace is cut only at moments at which something besides its events can happen.

    slice      the events between two boundaries; one call of a compiled kernel simulates it
    boundary   a row at which something other than an event of a block happens, or the end of a batch
    tick       a moment at which the counters are copied. A copy changes nothing, so ticks do not cut slices: the
               sampler, a process like the others, plans the ticks of each slice, and the kernel takes them as it passes

Between events, at times or rows that are known beforehand, a slice ends for a *call* of the visitor: malloc_trim, or a
snapshot.

A tick or a call at time t sees all events of time t. Where batches end does not matter: ticks at the last moment of a
batch wait for the next one, which may have more events of that moment.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple, Protocol

import numpy as np
import simpy

from replay.jit.compiling import entry
from replay.support.errors import ReplayError
from replay.trace import Events

Process = Generator[simpy.Event, Any, None]
"""What SimPy runs: yields what it waits for, is sent what that brought."""


TICKS_MAX = 1_000_000
"""The largest number of samples; each is a copy of all counters."""
TICKS_ENOUGH = 2_000
"""Where neither the interval nor the length of the trace is known, the interval doubles above this number."""
CALLS_MAX = 1_000_000
"""More calls by the clock than anybody wants: a unit that was forgotten."""


class Slice(NamedTuple):
    """Rows start … end of a batch, and the ticks among them: tick_rows[i] is the row that tick i comes before."""

    events: Events
    first_row: int
    start: int
    end: int
    tick_rows: np.ndarray
    tick_times_ns: np.ndarray


@entry
def find_rows(times_ns: np.ndarray, ticks_ns: np.ndarray, start: int, end: int, rows: np.ndarray) -> np.ndarray:
    """Writes into `rows` for each tick, in rising order, the first row of `start` … `end` that is later, else `end`.

    The search begins at the distance between the two previous results. A bisection of all rows would read memory all
    over them for each tick.
    """
    row, gap = start, 0
    for number in range(ticks_ns.shape[0]):
        tick_ns, low, step = ticks_ns[number], row, 4
        high = min(low + gap, end)
        while high < end and times_ns[high] <= tick_ns:
            low, high, step = high + 1, min(high + step, end), 2 * step
        while low < high - step and times_ns[high - step] > tick_ns:
            high, step = high - step, 2 * step
        low = max(low, high - step)
        while low < high:
            middle = (low + high) // 2
            if times_ns[middle] <= tick_ns:
                low = middle + 1
            else:
                high = middle
        rows[number] = low
        row, gap = low, low - row
    return rows


class Call(NamedTuple):
    """An action between two events: before `row` of the trace; without a row, after all events of its time."""

    time_ns: int
    act: Callable[[int, int], None]
    """Is passed the row before which it happens, and the time."""
    row: int | None = None
    also_at_end: bool = False
    """Whether it is made, too, if it is due at the time of the last event."""

    def is_due(self, until_ns: int, until_row: int) -> bool:
        """Whether the call is due before this time, or not after this row."""
        return self.time_ns < until_ns if self.row is None else self.row <= until_row

    def find_row(self, times_ns: np.ndarray, first_row: int) -> int:
        """Returns how many of the events with these times, the first of which is `first_row`, come before the call."""
        return int(times_ns.searchsorted(self.time_ns, side="right")) if self.row is None else self.row - first_row

    def order(self) -> tuple[int, float]:
        """Returns the sort key of a call: its place in the order of calls."""
        return self.time_ns, float("inf") if self.row is None else self.row


class Visitor(Protocol):
    """The object that the clock moves through a trace."""

    def boundaries(self, events: Events) -> list[int]:
        """Returns the rows of a batch that end a slice, because something else happens at them."""

    def simulate(self, part: Slice) -> None:
        """Simulates the events of a slice."""

    def pass_boundary(self, events: Events, first_row: int, row: int) -> None:
        """Executes what is due at a boundary; `first_row` is the number of rows before the batch."""


class Clock:
    """Moves a visitor through the batches of a trace, slice by slice and boundary by boundary.

    Ticks come every `sample_every_ns` after `begin_ns`, the time of the first event. If that is None, their interval
    begins with 1 ns and doubles where there would be more than TICKS_ENOUGH: of all ticks, those at multiples of the
    last `ticks_every_ns` after `begin_ns` are then the result.

    `calls` are in the order of time, and of rows where they have some.
    """

    def __init__(
        self,
        batches: Iterable[Events],
        visitor: Visitor,
        begin_ns: int,
        sample_every_ns: int | None,
        calls: Iterable[Call] = (),
    ):
        self._visitor = visitor
        self._begin_ns, self._widens = begin_ns, sample_every_ns is None
        self.ticks_every_ns = sample_every_ns or 1
        self._next_tick_ns = begin_ns + self.ticks_every_ns
        self._ticks_left = TICKS_MAX
        self._calls = iter(calls)
        self.next_call = next(self._calls, None)
        """After the run, the first call for a time that the trace did not reach."""
        self._environment = simpy.Environment(initial_time=begin_ns)
        self._slice_begun = self._environment.event()
        self._ticks_planned = self._environment.event()
        self.rows = 0
        """Rows of the trace that have been simulated."""
        self._source = self._environment.process(self._walk(batches))
        self._sampler = self._sample()
        self._environment.process(self._sampler)

    @property
    def now_ns(self) -> int:
        """Time of the last event that was simulated."""
        return int(self._environment.now)

    def run(self) -> None:
        """Simulates the trace to its end, and then makes the calls that are due."""
        try:
            self._environment.run(until=self._source)
        finally:
            self._sampler.close()  # it still waits, and would keep the whole trace alive until garbage is collected
        while (call := self.next_call) and call.time_ns <= self.now_ns:
            if call.also_at_end:
                call.act(self.rows, call.time_ns)
            self.next_call = next(self._calls, None)

    def _walk(self, batches: Iterable[Events]) -> Process:
        """The SimPy process that passes through the trace's batches, boundary by boundary."""
        for events in batches:
            if not events.rows:
                continue
            start = 0
            for stop in [*self._visitor.boundaries(events), events.rows]:
                # The time of the next boundary, if this batch has it.
                until_ns = int(events.time_ns[min(stop, events.rows - 1)])
                while (call := self.next_call) and call.is_due(until_ns, self.rows + stop):
                    row = start + call.find_row(events.time_ns[start:stop], self.rows + start)
                    yield from self._simulate_slice(events, start, row, call.time_ns)
                    start = row
                    call.act(self.rows + row, call.time_ns)
                    self.next_call = next(self._calls, None)
                yield from self._simulate_slice(events, start, stop, until_ns)
                if stop < events.rows:
                    yield self._environment.timeout(int(events.time_ns[stop]) - self._environment.now)
                    self._visitor.pass_boundary(events, self.rows, stop)
                start = stop + 1
            self.rows += events.rows

    def _simulate_slice(self, events: Events, start: int, end: int, until_ns: int) -> Process:
        """Simulates rows start … end, with the ticks before `until_ns`."""
        while self._widens and (until_ns - self._begin_ns) // self.ticks_every_ns > TICKS_ENOUGH:
            self.ticks_every_ns *= 2
            passed_ns = self._next_tick_ns - self._begin_ns
            self._next_tick_ns = self._begin_ns + _multiple(passed_ns, self.ticks_every_ns)
        if start >= end and self._next_tick_ns >= until_ns:
            return
        self._slice_begun.succeed(until_ns)
        ticks_ns: np.ndarray = yield self._ticks_planned
        self._ticks_planned = self._environment.event()
        rows = find_rows(events.time_ns, ticks_ns, start, end, np.empty_like(ticks_ns))
        if start < end:
            yield self._environment.timeout(int(events.time_ns[end - 1]) - self._environment.now)
        self._visitor.simulate(Slice(events, self.rows, start, end, rows, ticks_ns))

    def _sample(self) -> Process:
        """The sampler: plans the ticks of each slice, until the next boundary."""
        while True:
            until_ns = yield self._slice_begun
            self._slice_begun = self._environment.event()
            every_ns = self.ticks_every_ns
            self._ticks_left -= max(0, (until_ns - self._next_tick_ns) // every_ns)
            if self._ticks_left < 0:
                what = f"sampling every {every_ns} ns gives more than {TICKS_MAX} samples of this trace"
                raise ReplayError(f"{what}; choose a longer interval")
            ticks_ns = np.arange(self._next_tick_ns, until_ns, every_ns)
            self._next_tick_ns += every_ns * ticks_ns.shape[0]
            self._ticks_planned.succeed(ticks_ns)


def calls_every(
    begin_ns: int, every_ns: int, act: Callable[[int, int], None], *, also_at_end: bool = False
) -> Iterator[Call]:
    """Yields calls every `every_ns` after `begin_ns`, without end."""
    return (Call(time_ns, act, also_at_end=also_at_end) for time_ns in count(begin_ns + every_ns, every_ns))


def refuse_too_many(batches: Iterable[Events], begin_ns: int, intervals: dict[str, int]) -> Iterator[Events]:
    """Yields the batches. Raises ReplayError after more than CALLS_MAX intervals; their names are the keys."""
    for events in batches:
        for what, every_ns in intervals.items():
            if events.rows and (int(events.time_ns[-1]) - begin_ns) // every_ns > CALLS_MAX:
                many = f"{what} every {every_ns} ns is more than {CALLS_MAX:,} times in this trace"
                raise ReplayError(f"{many}; choose a longer time")
        yield events


def _multiple(time_ns: int, every_ns: int) -> int:
    """Returns the first multiple of `every_ns` that is not before `time_ns`."""
    return -(-time_ns // every_ns) * every_ns
