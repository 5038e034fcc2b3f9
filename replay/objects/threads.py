"""Runs an object program with threads: SimPy owns time, and compiled code runs whole slices of one thread.

    thread      a SimPy process, with its own machine state and stack; all threads share the heap
    slice       what the running thread does between two moments at which something can interact: until it waits, wakes
                or starts another thread, ends, drops the GIL, or another process of SimPy is due

Time goes one way: a step of the machine takes STEP_NS, and a call of an allocator CALL_NS, whatever the allocator then
has to do for it.

The operating system decides which of several waiting threads gets a lock or an item. Here it is the one that has waited
longest.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import simpy

from replay.jit.arrays import DONE
from replay.objects import ObjectProgram
from replay.objects.gil import FOREVER_NS, Gil, now_ns
from replay.objects.heap import Heap
from replay.objects.language import MAIN
from replay.objects.limits import check_memory, check_threads
from replay.objects.loop import CALL_NS, PAUSED, STEP_NS, WAITS, YIELDS, run_slice
from replay.objects.machine import FAILED, FRAME, STATE, Machine
from replay.objects.waiting import EMPTY_QUEUE, LOCKED, SLEEPS, STARTS, WAKES, WORKS
from replay.support.errors import WorkloadError
from replay.trace import Op
from replay.trace.metadata import ThreadTimes

Process = Generator[simpy.Event, Any, None]
_KINDS = ThreadTimes._fields[ThreadTimes._fields.index("running_ns") :]
_SHARED = ("frames_kept", "random", "choices")
"""Fields of the machine's state that all threads share."""
_STARTED = ("arguments", "callback", "boot", "thread_state", "handle")
"""Fields that a new thread gets from those with the prefix `next_` of the thread that started it."""
_OWN_REQUESTS = (3, 13)
"""From this release on, a request for a collection concerns the thread that made it."""


@dataclass(eq=False)
class _Thread:
    """A thread."""

    number: int
    function: str
    machine: Machine
    """Its state and stack. The heap may be out of date until it runs."""
    start_ns: int
    end_ns: int = -1
    requested: int = 0
    """Whether it has requested a collection."""
    awaits: int = 0
    """LOCKED or EMPTY_QUEUE while it waits for that."""
    woken: simpy.Event | None = None
    times_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0))

    @property
    def state(self) -> Any:
        return self.machine.state[0]


class Part(NamedTuple):
    """A batch of events, of type EVENT, with the thread and the time of each."""

    events: np.ndarray
    threads: np.ndarray
    times_ns: np.ndarray
    is_last: bool


class _Slices(NamedTuple):
    """The slices of a batch: the number of events at the end of each; its thread; its time and step at its start."""

    ends: list[int]
    threads: list[int]
    times_ns: list[int]
    steps: list[int]


class ThreadedRun:
    """A run of a program with threads.

    `grow` returns a machine with larger tables, `explain` the message for the mistake that stopped a machine.
    """

    def __init__(
        self,
        program: ObjectProgram,
        release: tuple[int, ...],
        machine: Machine,
        grow: Callable[[Machine], Machine],
        explain: Callable[[ObjectProgram, Machine, tuple[int, ...]], str],
    ) -> None:
        self._program, self._release = program, release
        self._grow, self._explain = grow, explain
        self._environment = simpy.Environment(initial_time=0)
        self._gil = Gil(self._environment, program.program.switch_interval)
        self._machine = machine
        self._threads: list[_Thread] = []
        self._waiting: dict[int, deque[_Thread]] = {}
        """The threads that wait for a lock or queue, by its number, in their order."""
        self._slices = _Slices([], [], [], [])
        self._parts: deque[Part] = deque()
        self._last: _Thread | None = None
        self._add_thread(MAIN, machine)

    @property
    def heap(self) -> Heap:
        return self._machine.heap

    @property
    def choices(self) -> int:
        """Number of random choices so far."""
        return int(self._machine.state[0].choices)

    def parts(self) -> Iterator[Part]:
        """Yields the events. Raises WorkloadError for a mistake, and if no thread can ever run again."""
        while self._environment.peek() < FOREVER_NS:
            self._environment.step()
            while self._parts:
                yield self._parts.popleft()
        waiting = [thread for thread in self._threads if thread.end_ns < 0]
        self._flush(is_last=not waiting)
        yield from self._parts
        if waiting:
            raise WorkloadError(*self._deadlock(waiting))

    def times(self) -> Iterator[ThreadTimes]:
        """Yields how each thread spent its time."""
        for each in self._threads:
            yield ThreadTimes(each.number, each.function, each.start_ns, each.end_ns, **each.times_ns)

    # Threads

    def _add_thread(self, function: str, machine: Machine) -> None:
        thread = _Thread(len(self._threads), function, machine, now_ns(self._environment))
        self._threads.append(thread)
        self._environment.process(self._live(thread))

    def _live(self, thread: _Thread) -> Process:
        """The SimPy process of a thread."""
        yield from self._take_gil(thread)
        status = PAUSED
        while status != DONE:
            status = yield from self._run_slice(thread)
            if status == YIELDS:
                self._gil.drop()
                yield from self._take_gil(thread)
            elif status == WAITS:
                yield from self._serve(thread)
        thread.end_ns = now_ns(self._environment)
        thread.machine = thread.machine._replace(stack=np.zeros(0, np.int32), frames=np.zeros(0, FRAME))
        self._gil.drop()

    def _take_gil(self, thread: _Thread) -> Process:
        waited_ns = yield from self._gil.take(thread)
        thread.times_ns["waiting_ns"] += waited_ns

    def _until_others_ns(self) -> int:
        """Returns the time until another process of SimPy is due."""
        due_ns = self._environment.peek()
        return FOREVER_NS if due_ns >= FOREVER_NS else int(due_ns) - now_ns(self._environment)

    def _run_slice(self, thread: _Thread) -> Generator[simpy.Event, Any, int]:
        """Runs a thread until something can interact; returns the status."""
        limit_ns = self._until_others_ns()
        if limit_ns <= 0:
            yield self._environment.timeout(0)
            return PAUSED
        begin_ns = now_ns(self._environment)
        requested_ns = self._gil.requested_ns() - begin_ns
        thread.state.yields = requested_ns <= 0
        self._enter(thread)
        counts, steps = self.heap.counts[0], int(self.heap.counts[0].steps)
        events = int(counts.events)
        status = run_slice(self._machine, limit_ns if requested_ns <= 0 else min(limit_ns, requested_ns))
        calls = int((self.heap.events["op"][events : counts.events] < Op.GC_START).sum())
        steps_ns, collecting_ns = (int(counts.steps) - steps) * STEP_NS, int(thread.state.collecting) * STEP_NS
        thread.state.collecting = 0
        thread.times_ns["running_ns"] += steps_ns - collecting_ns
        thread.times_ns["collecting_ns"] += collecting_ns
        thread.times_ns["allocating_ns"] += calls * CALL_NS
        for values, value in zip(self._slices, (int(counts.events), thread.number, begin_ns, steps), strict=True):
            values.append(value)
        yield self._environment.timeout(steps_ns + calls * CALL_NS)
        if status == FAILED:
            raise WorkloadError(self._explain(self._program, self._machine, self._release))
        if status not in (DONE, PAUSED, WAITS, YIELDS):
            self._flush()
            thread.machine = self._machine = self._grow(self._machine)
            check_memory(self._program, self._machine)
        return int(status)

    def _enter(self, thread: _Thread) -> None:
        """Makes the machine that of a thread."""
        last = self._last
        if last is thread:
            return
        if last is not None:
            collector = self.heap.collector[0]
            for name in _SHARED:
                setattr(thread.state, name, getattr(last.state, name))
            if self._release[:2] >= _OWN_REQUESTS:
                last.requested, collector.requested = int(collector.requested), thread.requested
        thread.machine = thread.machine._replace(heap=self.heap)
        self._last, self._machine = thread, thread.machine

    def _serve(self, thread: _Thread) -> Process:
        """Does what an instruction of a thread has requested."""
        state = thread.state
        why, state.waits = int(state.waits), 0
        if why == STARTS:
            self._start(thread)
        elif why == WAKES:
            other = self._waiting[int(state.awaited)].popleft()
            other.state.granted = state.given
            assert other.woken is not None
            other.woken.succeed()
        elif why == WORKS:
            yield from self._work(thread, int(state.delay_ns))
        else:
            assert why in (LOCKED, EMPTY_QUEUE, SLEEPS)
            begin_ns = now_ns(self._environment)
            self._gil.drop()
            if why == SLEEPS:
                yield self._environment.timeout(int(state.delay_ns))
            else:
                self._waiting.setdefault(int(state.awaited), deque()).append(thread)
                thread.awaits, thread.woken = why, self._environment.event()
                yield thread.woken
            thread.times_ns["blocked_ns"] += now_ns(self._environment) - begin_ns
            thread.awaits = 0
            yield from self._take_gil(thread)

    def _start(self, parent: _Thread) -> None:
        """Adds the thread that a thread has started."""
        check_threads(self._program, parent.machine, len(self._threads))
        first, functions = int(parent.state.awaited), [*self._program.program.functions]
        state = np.zeros(1, STATE)
        state["at"], state["need"], state["ended_frame"] = first, parent.state.need, parent.state.ended_frame
        state["function"] = self._program.code.instructions[first]["argument"]
        for name in _STARTED:
            state[name] = getattr(parent.state, f"next_{name}")
        stack, frames = np.zeros(4 * int(parent.state.need), np.int32), np.zeros_like(parent.machine.frames)
        machine = parent.machine._replace(state=state, stack=stack, frames=frames)
        self._add_thread(functions[int(state["function"][0])], machine)

    def _work(self, thread: _Thread, left_ns: int) -> Process:
        """Lets a thread compute for a time, in which it can lose the GIL at any moment."""
        while left_ns:
            requested_ns = self._gil.requested_ns() - now_ns(self._environment)
            if requested_ns <= 0:
                self._gil.drop()
                yield from self._take_gil(thread)
                continue
            part_ns = min(left_ns, requested_ns, self._until_others_ns())
            yield self._environment.timeout(part_ns)
            left_ns -= part_ns
            thread.times_ns["running_ns"] += part_ns

    # Events and mistakes

    def _flush(self, is_last: bool = False) -> None:
        """Adds a part of the events so far."""
        ends, threads, times_ns, steps = (np.array(values, np.int64) for values in self._slices)
        counts = self.heap.counts[0]
        events = self.heap.events[: counts.events].copy()
        counts.events = 0
        lengths = np.diff(ends, prepend=0)
        calls = np.cumsum(events["op"] < Op.GC_START)
        calls_before = np.concatenate([[0], calls])[ends - lengths]
        begins_ns = times_ns - steps * STEP_NS - calls_before * CALL_NS
        times_ns = np.repeat(begins_ns, lengths) + events["step"] * STEP_NS + calls * CALL_NS
        self._parts.append(Part(events, np.repeat(threads, lengths), times_ns, is_last))
        for values in self._slices:
            values.clear()

    def _deadlock(self, waiting: list[_Thread]) -> list[str]:
        """Returns a sentence for each thread of a program in which all threads wait."""
        code, sentences = self._program.code, list[str]()
        for thread in waiting:
            name = f"thread {thread.number} ({thread.function})" if thread.number else MAIN
            what = f"{name} waits for {'a lock' if thread.awaits == LOCKED else 'an item of a queue'}"
            if not sentences:
                what = f"deadlock: {what}" + (", and main has ended" if waiting[0].number else "")
            line = code.instructions[thread.state.at]["line"]
            sentences.append(self._program.sentence(code.places[line], what))
        return sentences
