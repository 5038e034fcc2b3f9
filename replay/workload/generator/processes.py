"""Generates the trace of a workload's streams and phases with a SimPy clock.

Three kinds of SimPy processes share a clock in whole nanoseconds. The *window* process divides time into windows: at
each start and end of a phase, and so that a window has about WINDOW_ROWS events. Each *source* (stream or set) waits
for the start of a window, and one call of a compiled kernel generates all its events in the window. A *phase* waits for
its time, then until the window that ends there is written, and then changes rates or frees groups. SimPy costs time per
window.

The trace does not depend on where windows end; see `replay.workload.generator.streams`.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import simpy

from replay.support.errors import WorkloadError
from replay.support.units import format_time
from replay.support.yaml_documents import Location
from replay.trace import Events, Metadata, Op, ProcessMemory, Provenance
from replay.trace.block_ops import concerns_block
from replay.workload import EVERYTHING, Phase, Ramp, Workload
from replay.workload.generator import streams
from replay.workload.generator.distributions import make_key
from replay.workload.generator.streams import SourceArrays
from replay.workload.generator.tables import (
    base_rate,
    make_arrays,
    make_stage,
    rows_expected,
    with_larger_window,
    with_more_slots,
)

WINDOW_ROWS = 1 << 17
BATCH_ROWS = 1 << 18
RAMP_STEPS = 32
_WINDOW_NS_MOST = 1 << 40

Process = Generator[simpy.Event, int, None]


def key_and_mistake(location: Location, message: str) -> str:
    """Returns a mistake with its key before it."""
    return f"{'.'.join(map(str, location))}: {message}"


@dataclass(frozen=True)
class WorkloadTrace:
    """The trace of a workload. `batches` generates it again at each call."""

    workload: Workload
    name: str
    seed: int
    window_rows: int = WINDOW_ROWS
    sentence: Callable[[Location, str], str] = key_and_mistake
    """Returns the error message for a mistake at a place in the workload."""

    @property
    def metadata(self) -> Metadata:
        process, threads = self.workload.process, self.workload.threads
        return Metadata(
            origin=Provenance(workload=self.name, seed=self.seed),
            phases=tuple(phase.name for phase in self.workload.all_phases()),
            process=ProcessMemory(
                static_bytes=process.static,
                stack_bytes=threads * process.stack_reserved,
                stack_resident_bytes=threads * process.stack_touched,
            ),
        )

    @property
    def duration_ns(self) -> int:
        """The end of the workload; the last event is earlier."""
        return self.workload.duration

    @property
    def events_total(self) -> None:
        return None

    def batches(self) -> Iterator[Events]:
        return _Generation(self.workload, self.seed, self.window_rows, self.sentence).run()


class _Generation:
    """One generation of a workload's events."""

    def __init__(
        self, workload: Workload, seed: int, window_rows: int, sentence: Callable[[Location, str], str]
    ) -> None:
        self._workload, self._seed, self._window_rows, self._sentence = workload, seed, window_rows, sentence
        self._sources = workload.sources()
        first_members = [0, *accumulate(source.members for source in self._sources.values())]
        self._arrays = [
            make_arrays(name, source, index, first_members[index], workload.threads, seed)
            for index, (name, source) in enumerate(self._sources.items())
        ]
        self._phases = workload.all_phases()
        self._factors: dict[int, dict[str, float]] = {}
        self._window_ns = self._plan_window()
        self._stage = make_stage(workload, self._window_ns)
        self._env = simpy.Environment(initial_time=0)
        self._opened, self._closed = self._env.event(), self._env.event()
        self._batch, self._rows = Events.empty(BATCH_ROWS), 0
        self._ready: deque[Events] = deque()
        self._main: int | None = None
        """The thread that allocated the first block, which simulations treat as the main thread."""

    def run(self) -> Iterator[Events]:
        for index in range(len(self._phases)):
            self._env.process(self._run_phase(index))
        for arrays in self._arrays:
            self._env.process(self._run_source(arrays))
        windows = self._env.process(self._cut_windows())
        while not windows.processed:  # an exception of a process is raised by `step`
            self._env.step()
            while self._ready:
                yield self._ready.popleft()
        if self._rows:
            yield self._finish_batch()

    def _cut_windows(self) -> Process:
        env = self._env
        yield env.timeout(0)  # lets the phases register first
        while env.now < self._workload.duration:
            self._closed.succeed()
            self._closed = env.event()
            yield env.timeout(0)  # lets the phases act that begin or end now
            start = int(env.now)
            end = int(min(start + self._window_ns, env.peek(), self._workload.duration))
            self._with_room(streams.move_due, start, end)
            self._opened.succeed(end)
            self._opened = env.event()
            yield env.timeout(end - start)
            self._write(start, end)

    def _run_source(self, arrays: SourceArrays) -> Process:
        while True:
            end = yield self._opened
            self._with_room(streams.fill_window, arrays, end)

    def _run_phase(self, index: int) -> Process:
        env, phase = self._env, self._phases[index]
        yield env.timeout(phase.start)
        yield self._closed
        self._mark(index)
        if phase.free:
            self._free(phase)
        for place, thread in enumerate(phase.end_threads):
            self._end_thread(index, place, thread)
        ramps = any(isinstance(factor, Ramp) for factor in phase.rates.values())
        steps = min(RAMP_STEPS, phase.duration or 1) if ramps else 1
        for step in range(steps):
            self._factors[index] = {name: _factor(value, step, steps) for name, value in phase.rates.items()}
            self._change_rates()
            if phase.duration is None:
                return
            yield env.timeout(phase.start + phase.duration * (step + 1) // steps - int(env.now))
            yield self._closed
        del self._factors[index]
        self._change_rates()

    def _mark(self, index: int) -> None:
        self._write_alone(Op.MARK, index)

    def _end_thread(self, index: int, place: int, thread: int) -> None:
        """Ends a thread. Its live blocks belong to the main thread from now on."""
        if self._main is None or self._main == thread:
            first = "no block was allocated yet" if self._main is None else f"thread {thread} allocated the first block"
            message = f"thread {thread} cannot end at {format_time(int(self._env.now))}: {first}"
            advice = "the thread of the first block is the main one; let a source of thread 0 begin first"
            written = index - len(self._phases) + len(self._workload.phases)
            raise WorkloadError(self._sentence(("phases", written, "end_threads", place), f"{message}, and {advice}"))
        self._write_alone(Op.THREAD_END, thread)
        streams.move_blocks(self._stage, thread, streams.MAIN_THREAD)

    def _write_alone(self, op: Op, value: int) -> None:
        """Writes an event that does not belong to a block."""
        now = int(self._env.now)
        self._stage.rows[0] = now, streams.NONE, streams.NONE, op, value
        self._stage.counts[streams.ROWS] = 1
        self._write(now, now + 1)

    def _free(self, phase: Phase) -> None:
        now = int(self._env.now)
        parts = [phase.fraction if source.group in phase.free else 0.0 for source in self._sources.values()]
        keys = [make_key(self._seed, name, "free", phase.name) for name in self._sources]
        self._with_room(streams.free_groups, np.array(parts, np.float64), np.array(keys, np.int64), now)
        self._write(now, now + 1)

    def _change_rates(self) -> None:
        """Sets the rate of every source to its base rate times the factors of the current phases."""
        for (name, source), arrays in zip(self._sources.items(), self._arrays, strict=True):
            rate = base_rate(source)
            for index in sorted(self._factors):
                for target, factor in self._factors[index].items():
                    if target in (EVERYTHING, name, source.group):
                        rate *= factor
            if rate != arrays.pace[streams.RATE]:
                streams.change_rate(arrays, int(self._env.now), rate)
        self._window_ns = self._plan_window()

    def _plan_window(self) -> int:
        """Returns the longest window, a power of two, with an expected number of rows of at most WINDOW_ROWS."""
        window_ns = _WINDOW_NS_MOST
        sources = list(zip(self._sources.values(), self._arrays, strict=True))
        while window_ns > 1:
            rows = sum(rows_expected(source, float(arrays.pace[streams.RATE]), window_ns) for source, arrays in sources)
            if rows <= self._window_rows:
                break
            window_ns >>= 1
        return window_ns

    def _with_room(self, kernel: Callable[..., int], *arguments: object) -> None:
        """Calls a kernel, again with larger tables while it returns that one is full."""
        while (status := kernel(self._stage, *arguments)) != streams.DONE:
            if status == streams.FULL_WINDOW:
                self._stage = with_larger_window(self._stage)
            else:
                self._stage = with_more_slots(self._stage)

    def _write(self, start_ns: int, end_ns: int) -> None:
        """Appends the window to the current batch. Starts a new batch first if the window does not fit."""
        rows = int(self._stage.counts[streams.ROWS])
        if self._rows + rows > self._batch.rows:
            if self._rows:
                self._ready.append(self._finish_batch())
            if rows > self._batch.rows:
                self._batch = Events.empty(rows)
        if rows:
            to = self._batch
            streams.write_window(
                self._stage, start_ns, end_ns, self._rows, to.time_ns, to.thread, to.op, to.domain, to.block, to.size
            )
            if self._main is None:
                self._main = self._first_thread(self._rows, self._rows + rows)
            self._rows += rows

    def _first_thread(self, start: int, end: int) -> int | None:
        """Returns the thread of the first allocation in these rows of the batch; None without any."""
        made = np.flatnonzero(concerns_block(self._batch.op[start:end]))
        return int(self._batch.thread[start + made[0]]) if made.size else None

    def _finish_batch(self) -> Events:
        events = self._batch.where(slice(0, self._rows))
        self._batch, self._rows = Events.empty(BATCH_ROWS), 0
        return events


def _factor(value: float | Ramp, step: int, steps: int) -> float:
    """Returns a phase's factor in one of its steps; for a ramp, the value in the middle of the step."""
    if isinstance(value, Ramp):
        return value.start + (value.to - value.start) * ((step + 0.5) / steps)
    return value
