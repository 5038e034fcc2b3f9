"""`run(trace, config)` simulates a trace with clock and models, and returns all counters."""

import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, takewhile

import numpy as np

from replay.config import StackConfig
from replay.simulation.clock import TICKS_MAX, Call, Clock, calls_every, refuse_too_many
from replay.simulation.multi_process import Host
from replay.simulation.result import RunResult, looks_since, peak_time_ns, phases_since
from replay.simulation.simulated import Simulated
from replay.simulation.simulator import Addresses, Log, Simulator
from replay.simulation.snapshots import Moments, Sink, Snapshots
from replay.simulation.walk import Moment, Walk
from replay.support.errors import ReplayError
from replay.trace import Events, MemoryTrace, Metadata, Trace
from replay.trace.processes import refuse_processes
from replay.trace.read_ahead import read_ahead
from replay.trace.requested import RequestedChanges
from replay.trace.visits import Visits

SAMPLES_WANTED = 1000
"""How many samples a run takes by default."""
NO_SAMPLES_NS = 1 << 62
"""A sampling interval longer than any trace: peaks are exact without samples."""


def sampling_interval_ns(span_ns: int | None, wanted_ns: int | None) -> int | None:
    """Returns the given interval, or the one for about SAMPLES_WANTED samples of a trace with this duration.

    Returns None if neither is known; the clock then finds one.
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
    """Returns the time of the first event, and all batches."""
    batches = trace.batches()
    first = next((batch for batch in batches if batch.rows), None)
    return (int(first.time_ns[0]), chain([first], batches)) if first else (0, iter(()))


def _new_simulator(
    trace: Trace, config: StackConfig, begin_ns: int, addresses: Addresses | None, log: Log | None
) -> Simulated:
    if not trace.metadata.processes:
        return Simulator(config, begin_ns=begin_ns, addresses=addresses, log=log)
    if addresses or log:
        refuse_processes(trace, None, "each has addresses of its own")
    return Host(trace, lambda: Simulator(config, begin_ns=begin_ns))


def _samples(
    walk: Walk, end: Moment, begin_ns: int, grown_ns: int | None, in_memory: MemoryTrace | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns times, counters, and changes of requested bytes at the samples until the end.

    `grown_ns`: the interval, if it grew on the way. Of the samples before, only those at its multiples are kept.
    """
    times_ns, samples, requested_changes = walk.samples_until(end, begin_ns)
    if grown_ns is not None:
        kept = times_ns % grown_ns == 0
        kept[-1] = True
        times_ns, samples = times_ns[kept], samples[kept]
        requested_changes = requested_changes[kept] if requested_changes.size else requested_changes
    if in_memory:
        requested_changes = in_memory.requested_changes(times_ns[:-1] + begin_ns, end.rows)
    return times_ns, samples, requested_changes


def _result(
    metadata: Metadata,
    config: StackConfig,
    walk: Walk,
    last: Moment,
    samples: tuple[np.ndarray, np.ndarray, np.ndarray],
    begin_ns: int,
    wall_ns: int,
) -> RunResult:
    """Returns the result of a finished walk, whose counters after the last event are `last`."""
    end = walk.end or last
    sample_times_ns, counters, requested_changes = samples
    return RunResult(
        config=config,
        metadata=metadata,
        events=end.rows,
        duration_ns=end.time_ns - begin_ns,
        sample_times_ns=sample_times_ns,
        samples=counters,
        requested_changes=requested_changes,
        end=end.tally,
        at_peak=end.at_peak,
        at_peak_time_ns=peak_time_ns(end.at_peak, end.at_peak_time_ns, begin_ns),
        classes=end.classes,
        observed=end.observed,
        phases=phases_since(begin_ns, walk.phases),
        collections=looks_since(begin_ns, end.time_ns, walk.collections),
        wall_ns=wall_ns,
        teardown=(last.time_ns - begin_ns, last.tally) if walk.end else None,
    )


def run(
    trace: Trace,
    config: StackConfig,
    *,
    sample_every_ns: int | None = None,
    trim_every_ns: int | None = None,
    addresses: Addresses | None = None,
    log: Log | None = None,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[int, int, np.record], None] | None = None,
    stop: Callable[[np.record], bool] | None = None,
    snapshots: Moments = (),
    sink: Sink | None = None,
    with_blocks: bool = False,
    first_run: RunResult | None = None,
    check: bool = False,
    requested_mean: bool = True,
) -> RunResult:
    """Simulates `trace` on the stack that `config` describes.

    `trim_every_ns`: libc's malloc_trim(0) is called so often, besides at marks of that name. `log` is handed the rows
    of LOG as they come, `progress` the number of rows simulated. After each slice, `watch` is handed that number, the
    time since the first event, and the counters, which change as the run continues. `stop` gets the counters at the end
    of each batch, and returns whether the run ends there.

    `sink` is handed the snapshots, in the order of time; the result does not depend on them. The trace is simulated
    twice where the peak is one of them, because only its end tells which moment was the peak. The result of an earlier
    run of the same trace and stack as `first_run` saves that. `with_blocks`: snapshots have the live blocks, too.

    `check`: the invariants of all models are checked after each slice and at the end; InvariantError names one that
    does not hold. Without `requested_mean`, the result has no `requested_changes`; they depend on the trace alone.
    """
    taking = Snapshots(snapshots, sink, trace.metadata, with_blocks=with_blocks)
    if first_run is None and taking.needs_first_run:
        first_run = run(trace, config, sample_every_ns=NO_SAMPLES_NS, trim_every_ns=trim_every_ns, stop=stop)
    with read_ahead(trace) as (reading,):
        begin_ns, batches = _begin(reading)
        simulator = _new_simulator(trace, config, begin_ns, addresses, log)
        processes = len(trace.metadata.processes)
        in_memory = trace if isinstance(trace, MemoryTrace) and not processes else None
        requested = RequestedChanges(begin_ns, processes) if requested_mean and not in_memory else None
        walk = Walk(trace, simulator, requested, taking, addresses, progress)
        if check:
            walk.checks = True
        if watch is not None:
            walk.watch = lambda rows, time_ns, tally: watch(rows, time_ns - begin_ns, tally)
        span_ns = None if trace.duration_ns is None else trace.duration_ns - begin_ns
        every_ns = sampling_interval_ns(span_ns, sample_every_ns)
        if stop is not None:
            batches = takewhile(lambda _: not clock.rows or walk.end is not None or not stop(simulator.tally), batches)
        trims = [calls_every(begin_ns, trim_every_ns, walk.trim)] if trim_every_ns else []
        calls = heapq.merge(*trims, *taking.calls(begin_ns, simulator.simulators, first_run), key=Call.order)
        trimming = {"trimming": trim_every_ns} if trim_every_ns else {}
        batches = refuse_too_many(batches, begin_ns, trimming | taking.intervals())
        visits = Visits.of(trace.metadata)
        batches = visits.counted(batches) if visits else batches
        clock = Clock(map(simulator.enter, batches), walk, begin_ns, every_ns, calls)
        started_ns = time.perf_counter_ns()
        clock.run()
        taking.finish(clock.rows, clock.now_ns, clock.next_call)
        walk.check(clock.rows)
        wall_ns = time.perf_counter_ns() - started_ns
    grown_ns = clock.ticks_every_ns if every_ns is None else None
    last = walk.look(clock.rows, clock.now_ns)
    samples = _samples(walk, walk.end or last, begin_ns, grown_ns, in_memory if requested_mean else None)
    metadata = replace(trace.metadata, visits=visits.numbers) if visits else trace.metadata
    result = _result(metadata, config, walk, last, samples, begin_ns, wall_ns)
    return simulator.complete(result, begin_ns, (walk.end or last).requested)
