"""Simulates several processes, each with its own allocator stack, and adds up their memory.

Each process simulates its stints of a piece of the trace, and `multi_process_kernels` adds them up in the order of the
trace. To each, its threads and blocks are numbered as if there were no others, so that its tables are as large as what
it has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from replay.simulation.clock import Slice
from replay.simulation.loop import CLASS
from replay.simulation.multi_process_kernels import add_up, lower_peaks
from replay.simulation.result import RunResult, peak_time_ns, phases_since
from replay.simulation.simulator import Simulator
from replay.trace import Events, Trace
from replay.trace.block_numbering import NumberingApart
from replay.trace.processes import processes_of

STINTS = 1 << 13
"""As many at the most are written down before they are added up, in 6 MB: what more take, no cache holds."""
_RESIDENT_PEAK = "resident_bytes_peak"


@dataclass
class Member:
    """The state of one process besides its counters."""

    simulator: Simulator
    events: int = 0
    begin_ns: int = 0
    end_ns: int = 0
    """Times of its first and last event."""
    phases: list[tuple[str, int, np.record]] = field(default_factory=list)


class Host:
    """Simulates the slices of a trace of several processes. Has the interface of a Simulator, and returns sums."""

    marks_end_slices = True
    """Each process has counters of its own at its marks."""

    def __init__(self, trace: Trace, new_simulator: Callable[[], Simulator]):
        self._processes = processes_of(trace)
        self.members = [Member(new_simulator()) for _ in self._processes.table]
        members = len(self.members)
        self._layout = self.members[0].simulator.layout
        tally = self._layout.dtype
        self.ends = np.zeros(members, tally)
        """By process: the counters after its latest event."""
        self.at_peaks = np.zeros(members, tally)
        """The same after the event that took its resident memory to its highest."""
        self.at_peak_times_ns = np.zeros(members, np.int64)
        self._shares, self._seen = np.zeros(members, tally), np.zeros(members, np.int64)
        self._sums, self._times = np.zeros(2, tally), np.zeros(1, np.int64)
        self.tally.thread = -1
        self.at_peak_time_ns = 0
        self._kept = np.empty(STINTS, tally), np.empty(STINTS, tally)
        """Room for what stints come to; to have it anew each time costs more than they do."""
        self._rows = 0
        self.owner = np.zeros(0, np.int64)
        """Of each row of the batch at hand the process; and the batch in the processes' own numbers."""
        self._numbering = NumberingApart(members)
        self._batch: Events | None = None

    @property
    def simulators(self) -> list[Simulator]:
        """The simulator of each process, by its number."""
        return [member.simulator for member in self.members]

    @property
    def tally(self) -> np.record:
        """Returns the sums of all counters."""
        return self._sums[0]

    def counters(self) -> np.ndarray:
        """Returns a copy of the sums."""
        return self._sums[:1].copy()

    @property
    def at_peak(self) -> np.ndarray:
        """Returns the sums at the peak of the resident memory of all processes together."""
        return self._sums[1:]

    @property
    def classes(self) -> np.ndarray:
        """Returns the counts of allocated and of live blocks, of all processes."""
        each = [member.simulator.classes for member in self.members]
        total = each[0].copy()
        for name in CLASS.names or ():
            total[name] = sum(one[name] for one in each)
        return total

    def observe(self) -> dict[str, np.ndarray]:
        """Returns the views of the models of the small role, process by process."""
        each = [member.simulator.observe() for member in self.members]
        return {name: np.concatenate([one[name] for one in each]) for name in each[0]}

    def shares(self) -> np.ndarray:
        """By process the counters at the highest resident memory of all; they add up to `at_peak`."""
        return np.where(self._seen < self._times, self.ends, self._shares)

    def enter(self, events: Events) -> Events:
        """Begins the next batch, whose slices and boundaries follow."""
        self.owner, thread = self._processes.of(events.thread, self._rows)
        block = self._numbering.number(events, self.owner)
        self._batch = events._replace(thread=thread.astype(np.uint32), block=block)
        self._rows += events.rows
        counts = np.bincount(self.owner, minlength=len(self.members))
        first_ns, last_ns = np.zeros(len(self.members), np.int64), np.zeros(len(self.members), np.int64)
        first_ns[self.owner[::-1]] = events.time_ns[::-1]  # of several the last one stays
        last_ns[self.owner] = events.time_ns
        for number in np.flatnonzero(counts).tolist():
            member = self.members[number]
            if not member.events:
                member.begin_ns = int(first_ns[number])
            member.end_ns = int(last_ns[number])
            member.events += int(counts[number])
        return events

    def simulate(self, part: Slice) -> np.ndarray:
        """Simulates a slice; returns the sums at each of its ticks."""
        assert self._batch is not None
        owner = self.owner[part.start : part.end]
        begins = np.ones(owner.shape[0] + 1, bool)
        np.not_equal(owner[1:], owner[:-1], out=begins[1:-1])
        begins[part.tick_rows - part.start] = True
        edges = part.start + np.flatnonzero(begins)
        ticks = np.searchsorted(edges, part.tick_rows)
        samples = np.empty(ticks.shape[0], self._layout.dtype)
        part = part._replace(events=self._batch)
        peaks, peak = self.at_peaks[_RESIDENT_PEAK].copy(), self.at_peak[0].resident_bytes_peak
        for first in range(0, edges.shape[0] - 1, STINTS):
            begin, end = np.searchsorted(ticks, [first, first + STINTS])
            self._simulate_piece(part, edges[first : first + STINTS + 1], ticks[begin:end] - first, samples[begin:end])
        samples[ticks == edges.shape[0] - 1] = self.tally
        times_ns = part.events.time_ns
        for number in np.flatnonzero(self.at_peaks[_RESIDENT_PEAK] != peaks).tolist():
            self.at_peak_times_ns[number] = times_ns[self.at_peaks[number].row - part.first_row]
        if self.at_peak[0].resident_bytes_peak != peak:
            self.at_peak_time_ns = int(times_ns[self.at_peak[0].row - part.first_row])
        return samples

    def _simulate_piece(self, part: Slice, edges: np.ndarray, ticks: np.ndarray, samples: np.ndarray) -> None:
        """Simulates some stints, process by process, and adds up their counters."""
        owner = self.owner[edges[:-1]]
        moments, best = (kept[: owner.shape[0]] for kept in self._kept)
        order = np.argsort(owner.astype(np.min_scalar_type(len(self.members))), kind="stable")
        counts = np.bincount(owner, minlength=len(self.members))
        for number, mine in enumerate(np.split(order, np.cumsum(counts[:-1]))):
            if mine.shape[0]:
                blocks = int(self._numbering.counts[number])
                self.members[number].simulator.simulate_stints(part, mine, edges, moments, best, blocks)
        self._add_up(owner, moments, best, ticks, samples)

    def _add_up(
        self,
        owner: np.ndarray,
        moments: np.ndarray,
        best: np.ndarray | None = None,
        ticks: np.ndarray | None = None,
        samples: np.ndarray | None = None,
    ) -> None:
        none = np.zeros(0, np.int64)
        samples = np.zeros(0, self._layout.dtype) if samples is None else samples
        add_up(
            owner, _plain(moments), _plain(moments if best is None else best), best is not None, _plain(self.ends),
            _plain(self.at_peaks), _plain(self._shares), self._seen, _plain(self._sums), self._times,
            none if ticks is None else ticks, _plain(samples), self._layout.ends,
        )  # fmt: skip

    def trim(self, row: int, time_ns: int, thread: int | None = None) -> None:
        """Calls malloc_trim(0) in the process of this thread, or in all processes one after the other."""
        numbers = range(len(self.members)) if thread is None else [self._find(thread)[0]]
        for number in numbers:
            self._call(number, lambda simulator: simulator.trim(row, time_ns))

    def end_thread(self, thread: int, row: int, time_ns: int) -> None:
        """Ends the trace's thread with this number after all rows before `row` of the trace."""
        number, place = self._find(thread)
        self._call(number, lambda simulator: simulator.end_thread(place, row, time_ns))

    def let_time_pass(self, row: int, time_ns: int) -> None:
        """Advances the models of all processes to this time."""
        for number in range(len(self.members)):
            self._call(number, lambda simulator: simulator.let_time_pass(row, time_ns))

    def note_phase(self, name: str, time_ns: int, thread: int) -> None:
        """Begins a phase of the process of this thread."""
        number, _ = self._find(thread)
        self.members[number].phases.append((name, time_ns, self.ends[number].copy()))

    def complete(self, result: RunResult, begin_ns: int, requested: np.ndarray) -> RunResult:
        """The sums, and with them what each process counted; `requested` has the sums of `RequestedChanges` of each."""
        metadata = result.metadata
        results = tuple(
            replace(
                result,
                metadata=replace(metadata, process=process.memory, processes=()),
                events=member.events,
                duration_ns=member.end_ns - member.begin_ns,
                sample_times_ns=np.array([member.end_ns - begin_ns]),
                samples=self.ends[number : number + 1],
                requested_changes=requested[number : number + 1],
                end=self.ends[number],
                at_peak=self.at_peaks[number],
                at_peak_time_ns=peak_time_ns(self.at_peaks[number], int(self.at_peak_times_ns[number]), begin_ns),
                classes=member.simulator.classes,
                observed=member.simulator.observe(),
                phases=phases_since(begin_ns, member.phases),
            )
            for number, (process, member) in enumerate(zip(metadata.processes, self.members, strict=True))
        )
        return replace(result, processes=results, shares=self.shares())

    def _find(self, thread: int) -> Sequence[int]:
        return [int(found[0]) for found in self._processes.of(np.array([thread], np.uint32))]

    def _call(self, number: int, call: Callable[[Simulator], None]) -> None:
        """Calls a function outside the loop for one process; the call cannot become the moment of `at_peak`."""
        simulator = self.members[number].simulator
        lower_peaks(_plain(simulator.stack.tally)[0], int(self._layout.ends[0]))
        call(simulator)
        self._add_up(np.array([number]), simulator.stack.tally.copy())


def _plain(counters: np.ndarray) -> np.ndarray:
    """Records of counters as rows of int64."""
    return counters.view(np.int64).reshape(-1, len(counters.dtype.names or ()))
