"""One simulated process with one allocator stack."""

import threading
from collections.abc import Callable, Collection
from copy import copy
from types import ModuleType
from typing import Any

import numpy as np

from replay.allocators import (
    LARGE,
    LOG,
    MARGIN,
    NEVER,
    NO_MEMORY,
    NO_WAKE_NS,
    RESIDENT_PEAK,
    ROOM,
    SPAN,
    SpanKind,
    Stack,
    TopRule,
    extend,
    find_model,
    is_of_libc,
    layout_of,
    linux,
    of_libc,
    span_rows,
)
from replay.config import StackConfig
from replay.jit.arrays import at_places, concatenated, copied, copied_state
from replay.simulation.clock import Slice
from replay.simulation.kernels import (
    adopt_small,
    collect_live_blocks,
    compiled_call,
    compiled_loop,
    end_libc_thread,
    trim_libc,
)
from replay.simulation.live_blocks import LiveBlocks
from replay.simulation.loop import (
    BLOCK,
    DOMAINS,
    GONE,
    class_rows,
    count_classes,
    let_time_pass,
    new_classes,
)
from replay.simulation.multi_process_kernels import simulate_stints
from replay.simulation.result import RunResult
from replay.support.errors import TraceError
from replay.trace import Events, Op
from replay.trace.block_numbering import ThreadNumbering

LOG_ROWS = 4096
_NO_ALIGNMENTS = np.zeros(0, np.uint32)
_NO_TIMES = np.full(1, -1)
"""The time of the end of a slice, which is not a tick: models are not woken for it."""

Log = Callable[[np.ndarray], None]
Addresses = Callable[[np.ndarray, np.ndarray], None]
"""Is handed, slice by slice: int64 the address of each event's block, 0 where it has none; uint8 1 where the small
role owns it."""

_making = threading.Lock()
"""Threads that need the same loop at the same time compile it once."""


class Simulator:
    """The state of one run, and the loop that changes it."""

    marks_end_slices = False
    """The loop copies the counters at marks, as at ticks."""
    owner: np.ndarray | None = None
    """All rows are of one process."""

    def __init__(
        self, config: StackConfig, *, begin_ns: int = 0, addresses: Addresses | None = None, log: Log | None = None
    ):
        libc_model = find_model(config.libc_model)
        small_model = find_model(config.small_model) if config.small_model else libc_model
        libc = libc_model.new_state(config.libc)
        self.layout = layout_of(config.models)
        self.stack = Stack(
            tally=np.zeros(1, self.layout.dtype),
            log=np.zeros(LOG_ROWS, LOG),
            times_ns=np.zeros(1, np.int64),
            linux=linux.new_state(config.linux),
            libc=libc,
            small=small_model.new_state(config.small) if config.small_model else libc,
        )
        self.libc_model, self.small_model = libc_model, small_model
        self._libc_name = config.libc_model
        self.has_small = config.small_model is not None
        self.blocks = np.zeros(1024, BLOCK)
        self._classes = new_classes()
        self.at_peak = np.zeros(1, self.layout.dtype)
        self.at_peak_time_ns = 0
        self._view_tally()
        self._resident_peak = self.at_peak["resident_bytes_peak"]
        with _making:
            self._loop = compiled_loop((libc_model, small_model))
        self._threads = ThreadNumbering()
        self._numbered: tuple[np.ndarray, np.ndarray] | None = None
        self.tally.thread = -1
        self.tally.begin_ns, self.tally.has_small = begin_ns, self.has_small
        self.tally.wake_ns, self.tally.woken_ns = NO_WAKE_NS, -1
        self._sees_time = any(hasattr(model, "tick") for model in (libc_model, small_model))
        self._route = class_rows([model == config.small_model for model in config.domains.by_number()])
        assert self._route.shape[0] == DOMAINS
        self._addresses, self._log = addresses, log

    def _view_tally(self) -> None:
        """Keeps views of fields that are read in every slice; reading a field of a record takes three times as long."""
        tally = self.stack.tally
        self._attention, self._rows_logged, self._woken_ns = (
            tally[name] for name in ("attention", "rows_logged", "woken_ns")
        )

    @property
    def tally(self) -> np.record:
        return self.stack.tally[0]

    @property
    def classes(self) -> np.ndarray:
        """Blocks ever allocated and live ones, by domain, role and size class."""
        return count_classes(self._classes, self.blocks)

    def counters(self) -> np.ndarray:
        """Returns a copy of the counters."""
        return copied(self.stack.tally)

    def enter(self, events: Events) -> Events:
        """Returns the next batch unchanged; all its events are simulated."""
        return events

    def note_phase(self, name: str, time_ns: int, thread: int) -> None:
        """Does nothing: a single process needs no phases."""

    def complete(self, result: RunResult, begin_ns: int, requested: np.ndarray) -> RunResult:
        """Returns the result unchanged: a single process adds nothing."""
        return result

    def simulate(self, part: Slice) -> np.ndarray:
        """Simulates a slice; returns a copy of the counters for each of its ticks."""
        events = part.events
        self._make_room_for_blocks(events.highest_block)
        ticks = np.concatenate((part.tick_rows, (part.end,)))
        times_ns = np.concatenate((part.tick_times_ns - self.tally.begin_ns, _NO_TIMES))
        samples = np.empty(ticks.shape[0], self.layout.dtype)
        addresses = np.zeros(events.rows if self._addresses else 0, np.int64)
        columns = self._enter(events, part.first_row)
        threads = self._threads_of(events)
        row, tick, peak = part.start, 0, self._resident_peak[0]
        while tick < ticks.shape[0]:
            row, taken = self._loop(
                self.stack, self.blocks, self._classes, self._route, self.at_peak, columns,
                part.first_row, row, threads, ticks[tick:], times_ns[tick:], samples[tick:], addresses,
            )  # fmt: skip
            tick += taken
            if self._attention[0]:
                self._attend(events, row, part.first_row)
        if self._resident_peak[0] != peak:
            self.at_peak_time_ns = int(events.time_ns[self.at_peak[0].row - part.first_row])
        self.drain_log()
        if self._addresses:
            found = addresses[part.start : part.end]
            self._addresses(np.where(is_of_libc(found), of_libc(found), found), (found > 0).astype(np.uint8))
        return samples[:-1]

    def simulate_stints(
        self, part: Slice, mine: np.ndarray, ends: np.ndarray, moments: np.ndarray, best: np.ndarray, blocks: int
    ) -> None:
        """Simulates some stints of a slice, as one process of several; see `replay.simulation.multi_process_kernels`.

        The numbers of its blocks are below `blocks`.
        """
        events = part.events
        self._make_room_for_blocks(blocks - 1)
        columns = self._enter(events, part.first_row)
        threads, addresses = self._threads_of(events), np.zeros(0, np.int64)
        counters, levels = self.stack.tally.view(np.int64), int(self.layout.ends[0])
        play_some = self._compiled(simulate_stints)
        stint, row = 0, 0
        while stint < mine.shape[0]:
            stint, row = play_some(
                self.stack, self.blocks, self._classes, self._route, self.at_peak, columns, part.first_row, threads,
                addresses, _NO_TIMES, counters, levels, mine, ends, stint, row, moments, best,
            )  # fmt: skip
            if self._attention[0]:
                self._attend(events, row, part.first_row)
        self.drain_log()

    def _enter(self, events: Events, first_row: int) -> tuple[np.ndarray, ...]:
        """Returns the columns that the loop reads. Models see the times of these events from now on."""
        if self.stack.times_ns is not events.time_ns:
            self.stack = self.stack._replace(times_ns=events.time_ns)
        if not hasattr(self.libc_model, "memalign") and events.memalign_rows.size:
            what = f"the model {self._libc_name!r} has no memalign; choose another for the libc role"
            raise TraceError(what, row=first_row + int(events.memalign_rows[0]))
        alignment = _NO_ALIGNMENTS if events.alignment is None else events.alignment
        return events.op, events.domain, events.block, events.size, events.time_ns, alignment

    def trim(self, row: int, time_ns: int, thread: int | None = None) -> None:
        """Calls malloc_trim(0) after all rows before `row` of the trace, in any thread."""
        self._stand_at(row, time_ns)
        self._trim()
        self._woken_ns[0] = -1

    def _trim(self) -> None:
        resume, trim_some = 0, self._compiled(trim_libc)
        while True:
            resume = trim_some(self.stack, resume)
            self._settle_between_events()
            if not resume:
                break

    def trimmable_bytes(self) -> int:
        """Returns the resident bytes that malloc_trim(0) would release now: calls it in a copy of the process.

        The log is empty between events, and the small role takes no part, so the copy shares them.
        """
        other, stack = copy(self), self.stack
        libc = self.libc_model.copy(stack.libc) if hasattr(self.libc_model, "copy") else copied_state(stack.libc)
        other.stack = stack._replace(
            tally=copied(stack.tally), linux=copied_state(stack.linux), libc=libc,
            small=stack.small if self.has_small else libc,
        )  # fmt: skip
        other._log = None
        other._view_tally()
        other._woken_ns[0] = 0  # the time does not matter
        other._trim()
        return int(self.tally.resident_bytes - other.tally.resident_bytes)

    def end_thread(self, thread: int, row: int, time_ns: int) -> None:
        """Ends the trace's thread with this number after all rows before `row` of the trace."""
        self._stand_at(row, time_ns)
        number = int(self._threads.number(np.array([thread], np.uint32), thread)[0])
        self._make_room_for_threads()
        self._compiled(end_libc_thread)(self.stack, number)
        self._settle_between_events()
        self._woken_ns[0] = -1

    def adopt(self, address: int, size: int, row: int, time_ns: int) -> None:
        """Frees a block at `address` that is older than the trace, in a full pool for `size` bytes."""
        self._stand_at(row, time_ns)
        self._compiled(adopt_small)(self.stack, address, size)
        self._settle_between_events()
        self._woken_ns[0] = -1

    def give(self, places: np.ndarray) -> None:
        """Sets the places of the next arenas (int64), above `linux.mmap_base`."""
        self.stack = self.stack._replace(linux=linux.with_given(self.stack.linux, places))  # type: ignore[arg-type]

    def _compiled(self, call: Callable[..., Any]) -> Callable[..., Any]:
        with _making:
            return compiled_call(call, (self.libc_model, self.small_model))

    def let_time_pass(self, row: int, time_ns: int) -> None:
        """Advances the models to this time, before `row` of the trace."""
        if self._sees_time:
            self._stand_at(row, time_ns)
            self._woken_ns[0] = -1

    def reach(self, row: int, time_ns: int) -> None:
        """Does the same as `let_time_pass` for a reader of the state. The next slice does not depend on this call."""
        if self._sees_time:
            tally = self.tally
            kept, peak = copied(self.stack.tally)[0], tally.resident_bytes_peak
            self.let_time_pass(row, time_ns)
            tally.row, tally.first_row, tally.at = kept.row, kept.first_row, kept.at
            is_peak = tally.resident_bytes_peak != peak
            tally.attention |= RESIDENT_PEAK if is_peak else kept.attention & RESIDENT_PEAK

    def _stand_at(self, row: int, time_ns: int) -> None:
        """Prepares a call outside the loop, at this time and before `row` of the trace."""
        tally = self.tally
        tally.row, tally.first_row, tally.at = row, row, 0
        if self._sees_time:
            pass_time = self._compiled(let_time_pass)
            while not pass_time(self.stack, time_ns - tally.begin_ns):
                self._settle_between_events()
        self._woken_ns[0] = time_ns - tally.begin_ns

    def _settle_between_events(self) -> None:
        """Completes a call outside the loop: enlarges tables and empties the log."""
        self.tally.attention &= ~RESIDENT_PEAK
        if self.tally.attention:
            self._grow()
            self.tally.attention = 0
        self.drain_log()

    def _threads_of(self, events: Events) -> np.ndarray:
        """Returns the number of each row's thread; empty if all are 0. Stores it for the other slices of the batch."""
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
        """Handles the reason for which the loop stopped."""
        attention, need_bytes = self.tally.attention, 0
        if attention & NO_MEMORY:
            raise TraceError(
                "no address space is left for this event in the simulated process", row=int(self.tally.row)
            )
        if attention & LARGE:
            need_bytes = int(events.size[row])
            if events.alignment is not None:
                need_bytes += int(events.alignment[row])
            # A realloc may stay where it is.
            if events.op[row] != Op.REALLOC and not linux.has_room(self.stack.linux, need_bytes):  # type: ignore[arg-type]
                raise TraceError(f"{need_bytes} bytes fit nowhere in the simulated process", row=first_row + row)
        if attention & (ROOM | LARGE):
            self.drain_log()
            self._grow(need_bytes)
        self.tally.attention = 0

    def _grow(self, need_bytes: int = 0) -> None:
        """Enlarges every table, and the address space enough for an event that maps `need_bytes`."""
        libc = self._grown(self.libc_model, self.stack.libc)
        small = self._grown(self.small_model, self.stack.small) if self.has_small else libc
        space = linux.grow(self.stack.linux, need_bytes)  # type: ignore[arg-type]
        self.stack = self.stack._replace(linux=space, libc=libc, small=small)

    @staticmethod
    def _grown(model: ModuleType, state: Any) -> Any:
        return model.grow(state) if hasattr(model, "grow") else state

    def drain_log(self) -> None:
        """Passes the log to the caller's function, and empties it."""
        if self._rows_logged[0] > len(self.stack.log):
            raise RuntimeError(f"a model made more than {MARGIN} system calls in one function call")
        if self._log and self._rows_logged[0]:
            self._log(self.stack.log[: self._rows_logged[0]].copy())
        self._rows_logged[0] = 0

    @property
    def simulators(self) -> list["Simulator"]:
        """This simulator, of the only process."""
        return [self]

    @property
    def page_bytes(self) -> int:
        return int(self.stack.linux.space[0].page_size)  # type: ignore[attr-defined]

    def models(self) -> list[tuple[ModuleType, Any]]:
        """Returns each model and its state; once if a model has both roles."""
        return list({self.libc_model: self.stack.libc, self.small_model: self.stack.small}.items())

    def check(self) -> None:
        """Raises AssertionError if an invariant of a layer does not hold."""
        linux.check(self.stack.linux, self.stack)  # type: ignore[arg-type]
        for model, state in self.models():
            if hasattr(model, "check"):
                model.check(state, self.stack)

    def live_blocks(self, allocations: np.ndarray, fields: Collection[str]) -> LiveBlocks:
        """Returns these fields of the live blocks. `allocations`: the ALLOCATION of each block, by number."""
        live = LiveBlocks.of_length(int(np.count_nonzero(self.blocks["size_and_row"] != GONE)), fields)
        self._compiled(collect_live_blocks)(self.stack, self.blocks, allocations, int(self.tally.begin_ns), live)
        return live

    def resident_pages(self) -> np.ndarray:
        """Returns the addresses of the resident pages, in rising order."""
        return linux.resident_pages(self.stack.linux)  # type: ignore[arg-type]

    def kept_arenas(self) -> int:
        """Returns how many arenas without live blocks the small role does not release."""
        model = self.small_model
        return int(model.kept_arenas(self.stack.small)) if hasattr(model, "kept_arenas") else 0

    def top_rule(self, region: int) -> TopRule:
        """Returns when libc releases the free end of the heap in a region."""
        if not hasattr(self.libc_model, "top_rule"):
            return TopRule(NEVER, 0, self.page_bytes)
        rule: TopRule = self.libc_model.top_rule(self.stack.libc, self.stack, region)
        return rule

    @property
    def has_all_spans(self) -> bool:
        """Whether each model describes its spans."""
        return all(hasattr(model, "spans") for model, _ in self.models())

    def spans(self) -> np.ndarray:
        """Returns rows of SPAN for all memory of the models, by rising address. They account for every mapped byte.

        The memory of a model without `spans` has the kind HEAP: all mapped memory outside the other model's spans.
        """
        space: Any = self.stack.linux
        rows = [model.spans(state, self.stack) for model, state in self.models() if hasattr(model, "spans")]
        spans = concatenated([np.zeros(0, SPAN), *rows])
        if not self.has_all_spans:
            starts, ends = linux.uncovered(space, spans["address"], spans["address"] + spans["bytes"])
            spans = concatenated([spans, span_rows(SpanKind.HEAP, starts, ends - starts, starts)])
        spans = at_places(spans, np.argsort(spans["address"], kind="stable"))
        ends = spans["address"] + spans["bytes"]
        spans["resident_bytes"] = linux.resident_bytes(self.resident_pages(), self.page_bytes, spans["address"], ends)
        return spans

    def observe(self) -> dict[str, np.ndarray]:
        """Returns the view of the model of the small role."""
        if not self.has_small or not hasattr(self.small_model, "observe"):
            return {}
        observed: dict[str, np.ndarray] = self.small_model.observe(self.stack.small)
        return observed
