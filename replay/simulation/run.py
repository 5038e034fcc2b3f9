"""Where trace, clock and models meet: `run(trace, config)` simulates everything and returns what was counted."""

import heapq
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import chain, takewhile
from typing import NamedTuple

import numpy as np

from replay.config import StackConfig
from replay.jit.arrays import concatenated, copied
from replay.simulation.clock import TICKS_MAX, Call, Clock, Slice, calls_every, refuse_too_many
from replay.simulation.multi_process import Host
from replay.simulation.result import RunResult, peak_time_ns, phases_since
from replay.simulation.simulator import Addresses, Log, Simulator
from replay.simulation.snapshots import Moments, Sink, Snapshots
from replay.support.errors import ReplayError
from replay.trace import TEARDOWN_MARK, TRIM_MARK, Events, MemoryTrace, Op, Trace
from replay.trace.processes import refuse_processes
from replay.trace.requested import RequestedChanges

SAMPLES_WANTED = 1000
"""How many samples a run takes by default."""
NO_SAMPLES_NS = 1 << 62
"""A sampling interval longer than any trace: peaks are exact without samples."""


class _Moment(NamedTuple):
    """What a run has counted so far."""

    rows: int
    time_ns: int
    tally: np.record
    requested_changes: list[int]
    """By process; empty where the trace knows them by itself."""
    at_peak: np.record
    at_peak_time_ns: int
    classes: np.ndarray
    observed: dict[str, np.ndarray]


def sampling_interval_ns(span_ns: int | None, wanted_ns: int | None) -> int | None:
    """The wanted interval, or one for about SAMPLES_WANTED samples of a trace that spans so much time.

    None where neither is known: the clock finds one.
    """
    if wanted_ns is None:
        return None if span_ns is None else max(1, span_ns // SAMPLES_WANTED)
    if wanted_ns <= 0:
        raise ReplayError("the sampling interval must be longer than nothing")
    if span_ns and span_ns // wanted_ns > TICKS_MAX:
        raise ReplayError(
            f"an interval of {wanted_ns} ns gives {span_ns // wanted_ns} samples of this trace, "
            f"more than {TICKS_MAX}; choose a longer one"
        )
    return min(wanted_ns, NO_SAMPLES_NS)


def _begin(trace: Trace) -> tuple[int, Iterator[Events]]:
    """The time of the first event, and all batches."""
    batches = trace.batches()
    first = next((batch for batch in batches if batch.rows), None)
    return (int(first.time_ns[0]), chain([first], batches)) if first else (0, iter(()))


def run(
    trace: Trace,
    config: StackConfig,
    *,
    sample_every_ns: int | None = None,
    trim_every_ns: int | None = None,
    addresses: Addresses | None = None,
    log: Log | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[np.record], bool] | None = None,
    snapshots: Moments = (),
    sink: Sink | None = None,
) -> RunResult:
    """Simulates `trace` on the stack that `config` describes.

    `trim_every_ns`: libc's malloc_trim(0) is called so often, besides at marks of that name. `log` is handed the rows
    of LOG as they come, `progress` the number of rows simulated. `stop` gets the counters at the end of each batch, and
    returns whether the run ends there.

    `sink` is handed the snapshots, in the order of time; the result does not depend on them. The trace is simulated
    twice where the peak is one of them, because only its end tells which moment was the peak.
    """
    simulator: Simulator | Host
    taking = Snapshots(snapshots, sink, trace.metadata)
    first_run = None
    if taking.needs_first_run:
        first_run = run(trace, config, sample_every_ns=NO_SAMPLES_NS, trim_every_ns=trim_every_ns, stop=stop)
    begin_ns, batches = _begin(trace)
    if not trace.metadata.processes:
        simulator = Simulator(config, begin_ns=begin_ns, addresses=addresses, log=log)
    else:
        if addresses or log:
            refuse_processes(trace, None, "each has addresses of its own")
        simulator = Host(trace, lambda: Simulator(config, begin_ns=begin_ns))
    processes = len(trace.metadata.processes)
    in_memory = trace if isinstance(trace, MemoryTrace) and not processes else None
    requested = None if in_memory else RequestedChanges(begin_ns, processes or 1)
    walk = _Walk(trace, simulator, requested, taking, addresses, progress)
    span_ns = None if trace.duration_ns is None else trace.duration_ns - begin_ns
    every_ns = sampling_interval_ns(span_ns, sample_every_ns)
    if stop is not None:
        batches = takewhile(lambda _: not clock.rows or walk.end is not None or not stop(simulator.tally), batches)
    trims = [calls_every(begin_ns, trim_every_ns, walk.trim)] if trim_every_ns else []
    calls = heapq.merge(*trims, *taking.calls(begin_ns, simulator.simulators, first_run), key=Call.order)
    trimming = {"trimming": trim_every_ns} if trim_every_ns else {}
    batches = refuse_too_many(batches, begin_ns, trimming | taking.intervals())
    clock = Clock(map(simulator.enter, batches), walk, begin_ns, every_ns, calls)
    started_ns = time.perf_counter_ns()
    clock.run()
    taking.finish(clock.rows, clock.now_ns, clock.next_call)
    wall_ns = time.perf_counter_ns() - started_ns
    last = _look(simulator, requested, clock.rows, clock.now_ns)
    end = walk.end or last
    before = walk.before_end if walk.end else (walk.times_ns, walk.samples)
    times_ns = np.concatenate([*before[0], [end.time_ns]]).astype(np.int64) - begin_ns
    samples = concatenated([*before[1], np.reshape(end.tally, 1)])
    if every_ns is None:  # it grew on the way
        kept = times_ns % clock.ticks_every_ns == 0
        kept[-1] = True
        times_ns, samples = times_ns[kept], samples[kept]
    result = RunResult(
        config=config,
        metadata=trace.metadata,
        events=end.rows,
        duration_ns=end.time_ns - begin_ns,
        sample_times_ns=times_ns,
        samples=samples,
        end=end.tally,
        requested_changes=in_memory.requested_changes(end.rows) if in_memory else sum(end.requested_changes),
        at_peak=end.at_peak,
        at_peak_time_ns=peak_time_ns(end.at_peak, end.at_peak_time_ns, begin_ns),
        classes=end.classes,
        observed=end.observed,
        phases=phases_since(begin_ns, walk.phases),
        wall_ns=wall_ns,
        teardown=(last.time_ns - begin_ns, last.tally) if walk.end else None,
    )
    return simulator.complete(result, begin_ns, end.requested_changes)


def _look(simulator: Simulator | Host, requested: RequestedChanges | None, rows: int, time_ns: int) -> _Moment:
    return _Moment(
        rows=rows,
        time_ns=time_ns,
        tally=simulator.tally.copy(),
        requested_changes=requested.totals() if requested else [],
        at_peak=simulator.at_peak.copy()[0],
        at_peak_time_ns=simulator.at_peak_time_ns,
        classes=simulator.classes,
        observed=simulator.observe(),
    )


class _Walk:
    """What the clock has done on its way through a trace, and what is written down there."""

    def __init__(
        self,
        trace: Trace,
        simulator: Simulator | Host,
        requested: RequestedChanges | None,
        taking: Snapshots,
        addresses: Addresses | None,
        progress: Callable[[int], None] | None,
    ):
        self._simulator, self._addresses, self._progress = simulator, addresses, progress
        self._requested, self._taking = requested, taking
        self._trace = trace
        self._phases: tuple[str, ...] = ()
        self._ends_slices = {TRIM_MARK, TEARDOWN_MARK} | taking.phases
        """Marks at which more is done than to copy the counters."""
        self.times_ns: list[np.ndarray] = []
        self.samples: list[np.ndarray] = []
        """Counters at those times."""
        self.phases: list[tuple[str, int, np.record]] = []
        self.end: _Moment | None = None
        """At the last TEARDOWN_MARK, of a trace of one process."""
        self.before_end: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        """`times_ns` and `samples` as they were then."""

    def boundaries(self, events: Events) -> list[int]:
        """Rows at which something is done. Of several processes each has counters of its own to copy at its marks."""
        idle = events.idle_rows
        self._phases = self._trace.metadata.phases  # a source may learn their names as it reads
        marks = (
            row
            for row in idle.get(Op.MARK, ())
            if self._simulator.marks_end_slices or self._name(events, row) in self._ends_slices
        )
        return sorted(chain(marks, idle.get(Op.THREAD_END, ())))

    def simulate(self, part: Slice) -> None:
        """Simulates a slice, and copies the counters at its ticks and marks."""
        if self._requested:
            self._requested.feed(part.events, part.start, part.end, self._simulator.owner)
        marks = part.events.idle_rows.get(Op.MARK, [])
        marks = marks[bisect_left(marks, part.start) : bisect_left(marks, part.end)]
        looks = part
        if marks:
            looks = part._replace(
                tick_rows=np.sort(np.concatenate((part.tick_rows, marks))),
                tick_times_ns=np.sort(np.concatenate((part.tick_times_ns, part.events.time_ns[marks]))),
            )
        seen, begin = self._simulator.simulate(looks), 0
        # Of several looks before a row, the mark is the last.
        places = looks.tick_rows.searchsorted(marks, side="right") - 1 if marks else np.zeros(0, np.int64)
        for row, at in zip(marks, places.tolist(), strict=True):
            self._note_phase(part.events, row, copied(seen[at : at + 1]))
            self.samples.append(seen[begin:at])
            begin = at + 1
        self.samples.append(seen[begin:])
        self.times_ns.append(part.tick_times_ns)
        if self._progress:
            self._progress(part.first_row + part.end)

    def pass_boundary(self, events: Events, first_row: int, row: int) -> None:
        """Does what is to be done at a row, `first_row` of the trace being the batch's first."""
        if self._addresses:
            self._addresses(np.zeros(1, np.int64), np.zeros(1, np.uint8))
        thread, time_ns = int(events.thread[row]), int(events.time_ns[row])
        if events.op[row] == Op.THREAD_END:
            self._simulator.end_thread(thread, first_row + row, time_ns)
            return
        self._simulator.let_time_pass(first_row + row, time_ns)
        self._note_phase(events, row, self._simulator.counters())
        self._simulator.note_phase(*self.phases[-1][:2], thread)
        if self._name(events, row) in self._taking.phases:
            self._taking.take(self._name(events, row), first_row + row, time_ns)
        if self._name(events, row) == TRIM_MARK:
            self._simulator.trim(first_row + row, time_ns, thread)
        if self._name(events, row) == TEARDOWN_MARK and not self._trace.metadata.processes:
            self.end = _look(self._simulator, self._requested, first_row + row, time_ns)
            self.before_end = [*self.times_ns], [*self.samples]

    def trim(self, row: int, time_ns: int) -> None:
        """Calls malloc_trim(0) in every process, before `row` of the trace."""
        self._simulator.trim(row, time_ns)

    def _note_phase(self, events: Events, row: int, counters: np.ndarray) -> None:
        self.phases.append((self._name(events, row), int(events.time_ns[row]), counters[0]))

    def _name(self, events: Events, row: int) -> str:
        return self._phases[int(events.size[row])]
