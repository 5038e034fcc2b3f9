"""Where trace, clock and models meet: `run(trace, config)` plays everything and returns what was counted."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain, takewhile
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from replay.allocators import (
    ARENA_MAPPED,
    LARGE,
    LOG,
    NO_MEMORY,
    RESIDENT_PEAK,
    ROOM,
    SPAN,
    TALLY,
    Stack,
    adopt,
    end_thread,
    extend,
    find_model,
    foreign_sources,
    is_compiled,
    linux,
    record,
    trim,
)
from replay.config import StackConfig
from replay.jit.compiling import entry
from replay.simulation.clock import TICKS_MAX, Clock, Slice
from replay.simulation.loop import BLOCK, DOMAINS, class_rows, count_classes, new_classes, play, take_turn
from replay.simulation.multi_process import Host
from replay.simulation.multi_process_kernels import play_stints
from replay.support.errors import ReplayError, TraceError
from replay.trace import TEARDOWN_MARK, TRIM_MARK, Events, Metadata, Op, Trace
from replay.trace.block_numbering import ThreadNumbering
from replay.trace.processes import refuse_processes

SAMPLES_WANTED = 1000
"""How many samples a run takes when nobody says how often."""
NO_SAMPLES_NS = 1 << 62
"""A sampling interval longer than any trace: peaks are exact without samples."""
LOG_ROWS = 4096
_BOUNDARIES = (TRIM_MARK, TEARDOWN_MARK)
"""Marks at which more is done than to copy the counters."""

Log = Callable[[np.ndarray], None]
Addresses = Callable[[np.ndarray, np.ndarray], None]
"""Is handed, slice by slice: int64 the address of each event's block, 0 where it has none; uint8 1 where the small
role owns it."""


@dataclass(frozen=True)
class Recording:
    """All that a run counted. Arrays of TALLY; times in nanoseconds since the trace's first event.

    The end is that of the trace; but where the trace has a mark TEARDOWN_MARK, it is the last of these marks.
    """

    config: StackConfig
    metadata: Metadata
    events: int
    duration_ns: int
    sample_times_ns: np.ndarray
    samples: np.ndarray
    end: np.record
    at_peak: np.record
    """The counters right after the event that first took resident memory to its highest."""
    at_peak_time_ns: int
    """0 where no page was ever resident."""
    classes: np.ndarray
    """What came and what is there, by domain, role and size class (`replay.simulation.loop`)."""
    observed: dict[str, np.ndarray]
    """What the model of the small role tells about its state at the end."""
    phases: tuple[tuple[str, int, np.record], ...]
    """Name, time and counters at each mark."""
    wall_ns: int
    processes: tuple["Recording", ...] = ()
    """Of a trace of several: what each counted, with a sample at its end only. All above is then of the sums."""
    shares: np.ndarray = field(default_factory=lambda: np.zeros(0, TALLY))
    """By process the counters at the moment of `at_peak`, to which they add up."""
    teardown: tuple[int, np.record] | None = None
    """Time and counters after the last event, where the end is before CPython's finalisation."""


class _Moment(NamedTuple):
    """What a run has counted so far."""

    rows: int
    time_ns: int
    tally: np.record
    at_peak: np.record
    at_peak_time_ns: int
    classes: np.ndarray
    observed: dict[str, np.ndarray]


_making = threading.Lock()
"""What several threads want at once is made once: compiling it takes long."""


@cache
def compiled_play(models: tuple[ModuleType, ...]) -> Callable[..., tuple[int, int]]:
    """The loop for these models: machine code if all of them are, else plain Python."""
    if all(is_compiled(model) for model in models):
        return entry(play, foreign_sources(list(models)))
    return play


def trim_libc(stack, resume):  # type: ignore[no-untyped-def]
    """malloc_trim(0), or the rest of it."""
    return trim(stack.libc, stack, resume)


def end_libc_thread(stack, thread):  # type: ignore[no-untyped-def]
    """The thread ends."""
    take_turn(stack, thread)
    end_thread(stack.libc, stack)


def adopt_small(stack, address, size):  # type: ignore[no-untyped-def]
    """A block that is older than the trace is freed."""
    adopt(stack.small, stack, address, size)


@cache
def compiled_call(call: Callable[..., Any], models: tuple[ModuleType, ...]) -> Callable[..., Any]:
    """One of those above for these models."""
    return entry(call, foreign_sources(list(models))) if all(map(is_compiled, models)) else call


def copied(counters: np.ndarray) -> np.ndarray:
    """A copy of some counters in one piece: NumPy copies records field by field, which takes ten times as long."""
    return np.frombuffer(counters.tobytes(), TALLY)


class Player:
    """The state of one run, and the loop that changes it."""

    def __init__(self, config: StackConfig, *, addresses: Addresses | None = None, log: Log | None = None):
        libc_model = find_model(config.libc_model)
        small_model = find_model(config.small_model) if config.small_model else libc_model
        libc = libc_model.new_state(config.libc)
        self.stack = Stack(
            tally=np.zeros(1, TALLY),
            log=np.zeros(LOG_ROWS, LOG),
            linux=linux.new_state(config.linux),
            libc=libc,
            small=small_model.new_state(config.small) if config.small_model else libc,
        )
        self.libc_model, self.small_model = libc_model, small_model
        self.has_small = config.small_model is not None
        self.blocks = np.zeros(1024, BLOCK)
        self._classes = new_classes()
        self.at_peak = np.zeros(1, TALLY)
        self.at_peak_time_ns = 0
        # Looked at in every slice, where to ask a record for a field takes thrice as long.
        self._attention, self._rows_logged = self.stack.tally["attention"], self.stack.tally["rows_logged"]
        self._resident_peak = self.at_peak["resident_bytes_peak"]
        with _making:
            self._play = compiled_play((libc_model, small_model))
        self._threads = ThreadNumbering()
        self._numbered: tuple[np.ndarray, np.ndarray] | None = None
        self.tally.thread = -1
        self._route = class_rows([model == config.small_model for model in config.domains.by_number()])
        assert self._route.shape[0] == DOMAINS
        self._addresses, self._log = addresses, log

    @property
    def tally(self) -> np.record:
        return self.stack.tally[0]

    @property
    def classes(self) -> np.ndarray:
        """What came and what is there, by domain, role and size class."""
        return count_classes(self._classes, self.blocks)

    def counters(self) -> np.ndarray:
        """A copy of the counters."""
        return copied(self.stack.tally)

    def play(self, part: Slice) -> np.ndarray:
        """Plays a slice; returns a copy of the counters for each of its ticks."""
        events = part.events
        self._make_room_for_blocks(events.highest_block)
        ticks = np.concatenate((part.tick_rows, (part.end,)))
        samples = np.empty(ticks.shape[0], TALLY)
        addresses = np.zeros(events.rows if self._addresses else 0, np.int64)
        columns = (events.op, events.domain, events.block, events.size)
        threads = self._threads_of(events)
        row, tick, peak = part.start, 0, self._resident_peak[0]
        while tick < ticks.shape[0]:
            row, taken = self._play(
                self.stack, self.blocks, self._classes, self._route, self.at_peak, columns,
                part.first_row, row, threads, ticks[tick:], samples[tick:], addresses,
            )  # fmt: skip
            tick += taken
            if self._attention[0]:
                self._attend(events, row, part.first_row)
        if self._resident_peak[0] != peak:
            self.at_peak_time_ns = int(events.time_ns[self.at_peak[0].row - part.first_row])
        self.drain_log()
        if self._addresses:
            told = addresses[part.start : part.end]
            self._addresses(np.where(told < 0, ~told, told), (told > 0).astype(np.uint8))
        return samples[:-1]

    def play_stints(
        self, part: Slice, mine: np.ndarray, ends: np.ndarray, moments: np.ndarray, best: np.ndarray, blocks: int
    ) -> None:
        """Plays some stints of a slice, as one process of several; see `replay.simulation.multi_process_kernels`.

        The numbers of its blocks are below `blocks`.
        """
        events = part.events
        self._make_room_for_blocks(blocks - 1)
        columns = (events.op, events.domain, events.block, events.size)
        threads, addresses = self._threads_of(events), np.zeros(0, np.int64)
        play_some = self._compiled(play_stints)
        stint, row = 0, 0
        while stint < mine.shape[0]:
            stint, row = play_some(
                self.stack, self.blocks, self._classes, self._route, self.at_peak, columns, part.first_row, threads,
                addresses, mine, ends, stint, row, moments, best,
            )  # fmt: skip
            if self._attention[0]:
                self._attend(events, row, part.first_row)
        self.drain_log()

    def trim(self, row: int, thread: int | None = None) -> None:
        """Calls malloc_trim(0) behind everything up to `row` of the trace, whosever thread it is."""
        resume = 0
        self._stand_at(row)
        trim_some = self._compiled(trim_libc)
        while True:
            resume = trim_some(self.stack, resume)
            self._settle_between_events()
            if not resume:
                break

    def end_thread(self, thread: int, row: int) -> None:
        """The trace's thread of that number ends behind everything up to `row` of the trace."""
        self._stand_at(row)
        number = int(self._threads.number(np.array([thread], np.uint32), thread)[0])
        self._make_room_for_threads()
        self._compiled(end_libc_thread)(self.stack, number)
        self._settle_between_events()

    def adopt(self, address: int, size: int, row: int) -> None:
        """A block at `address` is freed that is older than the trace, in a full pool for `size` bytes."""
        self._stand_at(row)
        self._compiled(adopt_small)(self.stack, address, size)
        self._settle_between_events()

    def give(self, places: np.ndarray) -> None:
        """The next arenas lie at these places (int64), above `linux.mmap_base`."""
        self.stack = self.stack._replace(linux=linux.with_given(self.stack.linux, places))  # type: ignore[arg-type]

    def _compiled(self, call: Callable[..., Any]) -> Callable[..., Any]:
        with _making:
            return compiled_call(call, (self.libc_model, self.small_model))

    def _stand_at(self, row: int) -> None:
        """What follows is no event of the loop, and happens behind all before `row` of the trace."""
        tally = self.tally
        tally.row, tally.first_row, tally.at = row, row, 0

    def _settle_between_events(self) -> None:
        """What a call left to be done that is no event of the loop."""
        self.tally.attention &= ~RESIDENT_PEAK
        if self.tally.attention:
            self._grow()
            self.tally.attention = 0
        self.drain_log()

    def _threads_of(self, events: Events) -> np.ndarray:
        """The number of each row's thread, or nothing if all are 0; kept for the batch's other slices."""
        if self._numbered is None or self._numbered[0] is not events.thread:
            thread, highest = events.thread, events.highest_thread
            self._numbered = thread, self._threads.number(thread, highest) if highest else thread[:0]
            self._make_room_for_threads()
        return self._numbered[1]

    def _make_room_for_threads(self) -> None:
        if hasattr(self.libc_model, "with_threads"):
            libc = self.libc_model.with_threads(self.stack.libc, self._threads.count)
            self.stack = self.stack._replace(libc=libc, small=self.stack.small if self.has_small else libc)

    def _make_room_for_blocks(self, highest: int) -> None:
        if highest >= self.blocks.shape[0]:
            self.blocks = extend(self.blocks, max(highest + 1, self.blocks.shape[0] * 5 // 4))

    def _attend(self, events: Events, row: int, first_row: int) -> None:
        """Does what the loop stopped for."""
        attention, need_bytes = self.tally.attention, 0
        if attention & NO_MEMORY:
            raise TraceError(
                "no address space is left for this event in the simulated process", row=int(self.tally.row)
            )
        if attention & LARGE:
            need_bytes = int(events.size[row])
            # A realloc may stay where it is.
            if events.op[row] != Op.REALLOC and not linux.has_room(self.stack.linux, need_bytes):  # type: ignore[arg-type]
                raise TraceError(f"{need_bytes} bytes fit nowhere in the simulated process", row=first_row + row)
        if attention & (ROOM | LARGE):
            self.drain_log()
            self._grow(need_bytes)
        self.tally.attention = 0

    def _grow(self, need_bytes: int = 0) -> None:
        """Gives every table more room, and the kernel as much as an event needs that maps `need_bytes`."""
        libc = self._grown(self.libc_model, self.stack.libc)
        small = self._grown(self.small_model, self.stack.small) if self.has_small else libc
        space = linux.grow(self.stack.linux, need_bytes)  # type: ignore[arg-type]
        self.stack = self.stack._replace(linux=space, libc=libc, small=small)

    @staticmethod
    def _grown(model: ModuleType, state: Any) -> Any:
        return model.grow(state) if hasattr(model, "grow") else state

    def drain_log(self) -> None:
        """Hands what was logged to whoever asked for it, and empties the log."""
        if self._log and self._rows_logged[0]:
            self._log(self.stack.log[: self._rows_logged[0]].copy())
        self._rows_logged[0] = 0

    def check(self) -> None:
        """Raises AssertionError where an invariant of a layer does not hold."""
        linux.check(self.stack.linux, self.stack)  # type: ignore[arg-type]
        for model, state in {self.libc_model: self.stack.libc, self.small_model: self.stack.small}.items():
            if hasattr(model, "check"):
                model.check(state, self.stack)

    def spans(self) -> np.ndarray:
        """Rows of SPAN for all that the models hold now, by rising address; they add up to every mapped byte."""
        models = {self.libc_model: self.stack.libc, self.small_model: self.stack.small}
        rows = [model.spans(state, self.stack) for model, state in models.items() if hasattr(model, "spans")]
        spans = np.concatenate([np.zeros(0, SPAN), *rows])
        spans = spans[np.argsort(spans["address"], kind="stable")]
        ends = spans["address"] + spans["bytes"]
        spans["resident_bytes"] = linux.resident_bytes(self.stack.linux, spans["address"], ends)  # type: ignore[arg-type]
        return spans

    def observe(self) -> dict[str, np.ndarray]:
        """What the model of the small role tells about its state."""
        if not self.has_small or not hasattr(self.small_model, "observe"):
            return {}
        observed: dict[str, np.ndarray] = self.small_model.observe(self.stack.small)
        return observed


def sampling_interval_ns(span_ns: int | None, wanted_ns: int | None) -> int | None:
    """The interval asked for, or one that gives about SAMPLES_WANTED samples of a trace that spans so much time.

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
) -> Recording:
    """Plays `trace` through the stack that `config` describes.

    `trim_every_ns`: libc's malloc_trim(0) is called so often, besides at marks of that name. `log` is handed the rows
    of LOG as they come, `progress` the number of rows played. `stop` sees the counters at the end of each batch; where
    it says so, the run ends there.
    """
    host = Host(trace, lambda: Player(config)) if trace.metadata.processes else None
    if host and (addresses or log):
        refuse_processes(trace, None, "each has addresses of its own")
    player = host or Player(config, addresses=addresses, log=log)
    walk = _Walk(trace, player, addresses, progress)
    begin_ns, batches = _begin(trace)
    span_ns = None if trace.duration_ns is None else trace.duration_ns - begin_ns
    every_ns = sampling_interval_ns(span_ns, sample_every_ns)
    if stop is not None:
        batches = takewhile(lambda _: not clock.rows or walk.end is not None or not stop(player.tally), batches)
    if host:
        batches = map(host.enter, batches)
    clock = Clock(
        batches, walk.play, walk.boundaries, walk.pass_boundary, begin_ns, every_ns, trim_every_ns, player.trim
    )
    started_ns = time.perf_counter_ns()
    clock.run()
    wall_ns = time.perf_counter_ns() - started_ns
    last = _look(player, clock.rows, clock.now_ns)
    end = walk.end or last
    before = walk.before_end if walk.end else (walk.times_ns, walk.samples)
    times_ns = np.concatenate([*before[0], [end.time_ns]]).astype(np.int64) - begin_ns
    samples = np.concatenate([*before[1], np.reshape(end.tally, 1)])
    if every_ns is None:  # it grew on the way
        kept = times_ns % clock.ticks_every_ns == 0
        kept[-1] = True
        times_ns, samples = times_ns[kept], samples[kept]
    recording = Recording(
        config=config,
        metadata=trace.metadata,
        events=end.rows,
        duration_ns=end.time_ns - begin_ns,
        sample_times_ns=times_ns,
        samples=samples,
        end=end.tally,
        at_peak=end.at_peak,
        at_peak_time_ns=_peak_time_ns(end.at_peak, end.at_peak_time_ns, begin_ns),
        classes=end.classes,
        observed=end.observed,
        phases=_since(begin_ns, walk.phases),
        wall_ns=wall_ns,
        teardown=(last.time_ns - begin_ns, last.tally) if walk.end else None,
    )
    return _with_processes(recording, host, begin_ns) if host else recording


def _look(player: Player | Host, rows: int, time_ns: int) -> _Moment:
    return _Moment(
        rows=rows,
        time_ns=time_ns,
        tally=player.tally.copy(),
        at_peak=player.at_peak.copy()[0],
        at_peak_time_ns=player.at_peak_time_ns,
        classes=player.classes,
        observed=player.observe(),
    )


def _since(begin_ns: int, phases: list[tuple[str, int, np.record]]) -> tuple[tuple[str, int, np.record], ...]:
    return tuple((name, time_ns - begin_ns, counters) for name, time_ns, counters in phases)


def _peak_time_ns(at_peak: np.record, time_ns: int, begin_ns: int) -> int:
    return time_ns - begin_ns if at_peak.resident_bytes_peak else 0


class _Walk:
    """What the clock has done on its way through a trace, and what is written down there."""

    def __init__(
        self,
        trace: Trace,
        player: Player | Host,
        addresses: Addresses | None,
        progress: Callable[[int], None] | None,
    ):
        self._player, self._addresses, self._progress = player, addresses, progress
        self._host = player if isinstance(player, Host) else None
        self._trace = trace
        self._phases: tuple[str, ...] = ()
        self.times_ns: list[np.ndarray] = []
        self.samples: list[np.ndarray] = []
        """Counters at those times."""
        self.phases: list[tuple[str, int, np.record]] = []
        self.end: _Moment | None = None
        """At the last TEARDOWN_MARK, of a trace of one process."""
        self.before_end: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        """`times_ns` and `samples` as they were then."""

    def boundaries(self, events: Events) -> list[int]:
        """Rows at which something is done. Of several processes each is asked for its own counters at its marks."""
        idle = events.idle_rows
        self._phases = self._trace.metadata.phases  # a source may learn their names as it reads
        marks = (row for row in idle.get(Op.MARK, ()) if self._host or self._name(events, row) in _BOUNDARIES)
        return sorted(chain(marks, idle.get(Op.THREAD_END, ())))

    def play(self, part: Slice) -> None:
        """Plays a slice, and looks at the counters at its ticks and marks."""
        marks = part.events.idle_rows.get(Op.MARK, [])
        marks = marks[bisect_left(marks, part.start) : bisect_left(marks, part.end)]
        looks = np.sort(np.concatenate((part.tick_rows, marks))) if marks else part.tick_rows
        seen, begin = self._player.play(part._replace(tick_rows=looks) if marks else part), 0
        for row, at in zip(marks, looks.searchsorted(marks).tolist() if marks else (), strict=True):
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
        thread = int(events.thread[row])
        if events.op[row] == Op.THREAD_END:
            self._player.end_thread(thread, first_row + row)
            return
        self._note_phase(events, row, self._player.counters())
        if self._host:
            self._host.note_phase(*self.phases[-1][:2], thread)
        if self._name(events, row) == TRIM_MARK:
            self._player.trim(first_row + row, thread)
        if self._name(events, row) == TEARDOWN_MARK and not self._host:
            self.end = _look(self._player, first_row + row, int(events.time_ns[row]))
            self.before_end = [*self.times_ns], [*self.samples]

    def _note_phase(self, events: Events, row: int, counters: np.ndarray) -> None:
        self.phases.append((self._name(events, row), int(events.time_ns[row]), counters[0]))

    def _name(self, events: Events, row: int) -> str:
        return self._phases[int(events.size[row])]


def _with_processes(recording: Recording, host: Host, begin_ns: int) -> Recording:
    """The sums, and with them what each process counted."""
    metadata = recording.metadata
    parts = tuple(
        replace(
            recording,
            metadata=replace(metadata, process=process.memory, processes=()),
            events=member.events,
            duration_ns=member.end_ns - member.begin_ns,
            sample_times_ns=np.array([member.end_ns - begin_ns]),
            samples=host.ends[number : number + 1],
            end=host.ends[number],
            at_peak=host.at_peaks[number],
            at_peak_time_ns=_peak_time_ns(host.at_peaks[number], int(host.at_peak_times_ns[number]), begin_ns),
            classes=member.player.classes,
            observed=member.player.observe(),
            phases=_since(begin_ns, member.phases),
        )
        for number, (process, member) in enumerate(zip(metadata.processes, host.members, strict=True))
    )
    return replace(recording, processes=parts, shares=host.shares())


ARENA_EVENT = record("row", "kind", "address", "bytes")


def run_addresses(trace: Trace, config: StackConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For comparisons: address per event; 1 where pymalloc owns the block; arena events (kind 1: map, 0: unmap)."""
    addresses: list[np.ndarray] = [np.zeros(0, np.int64)]
    owners: list[np.ndarray] = [np.zeros(0, np.uint8)]
    logged: list[np.ndarray] = [np.zeros(0, LOG)]

    def keep(told: np.ndarray, owner: np.ndarray) -> None:
        addresses.append(told)
        owners.append(owner)

    run(trace, config, addresses=keep, log=logged.append)
    log = np.concatenate(logged)
    events = log[log["kind"] >= ARENA_MAPPED].astype(ARENA_EVENT)
    events["kind"] = events["kind"] == ARENA_MAPPED
    return np.concatenate(addresses), np.concatenate(owners), events
