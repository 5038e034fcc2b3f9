"""The way through a trace: simulates slices, stores samples and phases, and executes marks."""

from bisect import bisect_left
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np

from replay.jit.arrays import concatenated, copied
from replay.simulation.checking import check_invariants
from replay.simulation.clock import Slice
from replay.simulation.result import GC_LOOK
from replay.simulation.simulated import Simulated
from replay.simulation.simulator import Addresses
from replay.simulation.snapshots import Snapshots
from replay.trace import TEARDOWN_MARK, TRIM_MARK, Events, Op, Trace
from replay.trace.requested import SUM, RequestedChanges


class Moment(NamedTuple):
    """The counters of a run so far."""

    rows: int
    time_ns: int
    tally: np.record
    requested_changes: np.ndarray
    """One sum, of all processes; empty where it is computed from the trace in memory."""
    requested: np.ndarray
    """By process, the sums of `RequestedChanges`; empty unless there are several."""
    at_peak: np.record
    at_peak_time_ns: int
    classes: np.ndarray
    observed: dict[str, np.ndarray]


class Samples(NamedTuple):
    """The samples, in consecutive parts."""

    times_ns: list[np.ndarray]
    counters: list[np.ndarray]
    requested_changes: list[np.ndarray]


class Walk:
    """The visitor of the clock: simulates a trace, and stores samples and phases."""

    checks = False
    """Whether the invariants of all models are checked after each slice, and at the end."""

    def __init__(
        self,
        trace: Trace,
        simulator: Simulated,
        requested: RequestedChanges | None,
        taking: Snapshots,
        addresses: Addresses | None,
        progress: Callable[[int], None] | None,
    ):
        self._simulator, self._addresses, self._progress = simulator, addresses, progress
        self._requested, self._taking = requested, taking
        self.watch: Callable[[int, int, np.record], None] | None = None
        """Is called after each slice with the number of rows, the time and the counters."""
        self._trace = trace
        self._phases: tuple[str, ...] = ()
        self._ends_slices = {TRIM_MARK, TEARDOWN_MARK} | taking.phases
        """Marks at which more is done than to copy the counters."""
        self._samples = Samples([], [], [])
        self.phases: list[tuple[str, int, np.record]] = []
        self.collections: list[np.ndarray] = []
        """Of type GC_LOOK, in consecutive parts."""
        self.end: Moment | None = None
        """At the last TEARDOWN_MARK, of a trace of one process."""
        self._samples_before_end = Samples([], [], [])

    def look(self, rows: int, time_ns: int) -> Moment:
        """Returns the counters so far, before row `rows` of the trace."""
        simulator, requested = self._simulator, self._requested
        return Moment(
            rows=rows,
            time_ns=time_ns,
            tally=simulator.tally.copy(),
            requested_changes=requested.total.copy() if requested else np.zeros(0, SUM),
            requested=requested.sums.copy() if requested else np.zeros(0, SUM),
            at_peak=simulator.at_peak.copy()[0],
            at_peak_time_ns=simulator.at_peak_time_ns,
            classes=simulator.classes,
            observed=simulator.observe(),
        )

    def samples_until(self, end: Moment, begin_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The times of all samples until the end of the run and at it, since `begin_ns`; the counters at each, and the
        sums of changes of requested bytes."""
        before = self._samples_before_end if self.end else self._samples
        times_ns = np.concatenate([*before.times_ns, [end.time_ns]]).astype(np.int64) - begin_ns
        changes = concatenated([*before.requested_changes, end.requested_changes])
        return times_ns, concatenated([*before.counters, np.reshape(end.tally, 1)]), changes

    def boundaries(self, events: Events) -> list[int]:
        """Returns the rows that end a slice. With several processes, counters are copied at each mark."""
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
        marks, collections = self._rows_in(part, Op.MARK), self._rows_of_collections(part)
        looks = part
        if marks or collections:
            rows = marks + collections
            looks = part._replace(
                tick_rows=np.sort(np.concatenate((part.tick_rows, rows))),
                tick_times_ns=np.sort(np.concatenate((part.tick_times_ns, part.events.time_ns[rows]))),
            )
        seen, begin = self._simulator.simulate(looks), 0
        if collections:
            seen, looks = self._without_collections(part.events, collections, seen, looks)
        if self._requested:
            stops = np.append(part.tick_rows, part.end)
            changes = self._requested.feed(part.events, part.start, stops, self._simulator.owner)
            self._samples.requested_changes.append(changes[:-1])
        # Of several looks before a row, the mark is the last.
        places = looks.tick_rows.searchsorted(marks, side="right") - 1 if marks else np.zeros(0, np.int64)
        for row, at in zip(marks, places.tolist(), strict=True):
            self._note_phase(part.events, row, copied(seen[at : at + 1]))
            self._samples.counters.append(seen[begin:at])
            begin = at + 1
        self._samples.counters.append(seen[begin:])
        self._samples.times_ns.append(part.tick_times_ns)
        self._taking.follow(part)
        self.check(part.first_row + part.end)
        if self._progress:
            self._progress(part.first_row + part.end)
        if self.watch and part.end > part.start:
            self.watch(part.first_row + part.end, int(part.events.time_ns[part.end - 1]), self._simulator.tally)

    @staticmethod
    def _rows_in(part: Slice, op: Op) -> list[int]:
        """Returns the rows of a slice with an op that concerns no block."""
        rows = part.events.idle_rows.get(op, [])
        return rows[bisect_left(rows, part.start) : bisect_left(rows, part.end)]

    def _rows_of_collections(self, part: Slice) -> list[int]:
        """Returns the rows at which garbage collections start and end; none of a trace of several processes."""
        if self._simulator.marks_end_slices:
            return []
        return sorted(self._rows_in(part, Op.GC_START) + self._rows_in(part, Op.GC_END))

    def _without_collections(
        self, events: Events, rows: list[int], seen: np.ndarray, looks: Slice
    ) -> tuple[np.ndarray, Slice]:
        """Notes the counters before starts and ends of collections; returns the other copies of counters, and their
        looks. Of several looks before a row, the one of a collection is the last."""
        places = looks.tick_rows.searchsorted(rows, side="right") - 1
        found = np.zeros(len(rows), GC_LOOK)
        found["time_ns"], found["value"], found["op"] = events.time_ns[rows], events.size[rows], events.op[rows]
        found["thread"] = events.thread[rows]
        for name in ("frees", "requested_bytes"):
            found[name] = seen[name][places]
        self.collections.append(found)
        others = np.ones(len(looks.tick_rows), bool)
        others[places] = False
        return seen[others], looks._replace(
            tick_rows=looks.tick_rows[others], tick_times_ns=looks.tick_times_ns[others]
        )

    def pass_boundary(self, events: Events, first_row: int, row: int) -> None:
        """Executes what is due at a row. The batch begins at `first_row` of the trace."""
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
            self._taking.end_at(first_row + row, time_ns)
            self.end = self.look(first_row + row, time_ns)
            self._samples_before_end = Samples(*(list(arrays) for arrays in self._samples))

    def trim(self, row: int, time_ns: int) -> None:
        """Calls malloc_trim(0) in every process, before `row` of the trace."""
        self._simulator.trim(row, time_ns)

    def check(self, rows: int) -> None:
        """Checks the models after this number of rows, if it is to be done."""
        if self.checks:
            check_invariants(self._simulator.simulators, rows)

    def _note_phase(self, events: Events, row: int, counters: np.ndarray) -> None:
        self.phases.append((self._name(events, row), int(events.time_ns[row]), counters[0]))

    def _name(self, events: Events, row: int) -> str:
        return self._phases[int(events.size[row])]
