"""The simulation loop: results do not depend on batches, slices or samples."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from histories import BOOKKEEPING, TINY, History, counters, cut, histories, play_rows, seeded, single_steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.allocators import ARENA_MAPPED, ARENA_UNMAPPED, LOG, SYSCALLS
from replay.config import load_config
from replay.simulation.clock import Slice
from replay.simulation.loop import BLOCKS_IN_CACHE, class_limit, simulate_rows
from replay.simulation.result import RunResult
from replay.simulation.run import run, sampling_interval_ns
from replay.simulation.simulator import Simulator
from replay.support.errors import ReplayError
from replay.trace import TRIM_MARK, Domain, Events, MemoryTrace, Metadata, Op
from replay.trace.editing import rows_of

CONFIGS = {"3.12": load_config("cpython-3.12"), "tiny arenas": load_config("cpython-3.9", TINY)}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
some = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
PHASES = tuple("abcdefgh")
NO_BLOCK = (1 << 32) - 1
"""A number outside all tables: the column `block` of rows without a block must be ignored."""


def with_marks(history: History, marks: list[tuple[int, int]]) -> Events:
    """The same history with a mark before each of these rows, at that row's time."""
    rows = list(history.rows)
    for place, phase in sorted(marks, reverse=True):
        row = place % (len(rows) + 1)
        time_ns = rows[min(row, len(rows) - 1)][0]
        op = Op.MARK if phase < len(PHASES) else Op.GC_START
        rows.insert(row, (time_ns, 0, op, 0, NO_BLOCK, phase % len(PHASES)))
    marked = History()
    marked.rows = rows
    return marked.events()


def record(batches: list[Events], config, sample_every_ns: int) -> tuple[RunResult, np.ndarray, np.ndarray]:
    """Returns the run result, the address of each event's block, and the system calls."""
    addresses: list[np.ndarray] = [np.zeros(0, np.int64)]
    logged: list[np.ndarray] = [np.zeros(0, LOG)]
    trace = MemoryTrace(batches, Metadata(phases=PHASES))
    recording = run(
        trace,
        config,
        sample_every_ns=sample_every_ns,
        addresses=lambda part, _: addresses.append(part),
        log=logged.append,
    )
    return recording, np.concatenate(addresses), np.concatenate(logged)


def outcome(recording: RunResult) -> tuple:
    """Returns the results that must not depend on sampling."""
    return (
        counters(recording.end), counters(recording.at_peak), recording.at_peak_time_ns, recording.classes.tolist(),
        recording.events, recording.duration_ns,
        [(name, time_ns, counters(tally)) for name, time_ns, tally in recording.phases],
        {name: view.tolist() for name, view in recording.observed.items()},
    )  # fmt: skip


def since_first(events: Events) -> np.ndarray:
    """The times of the events, counted from the first one."""
    return events.time_ns - events.time_ns[:1]


CUTS = st.lists(st.integers(0, 90), max_size=12)
MARKS = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 9)), max_size=5)


@each_config
@some
@given(history=histories(), cuts=CUTS, marks=MARKS, every_ns=st.integers(1, 40))
def test_it_does_not_matter_where_batches_end(config, history, cuts, marks, every_ns):
    events = with_marks(history, marks)
    whole, addresses, log = record([events], config, every_ns)
    parts, part_addresses, part_log = record(cut(events, cuts), config, every_ns)
    assert outcome(parts) == outcome(whole)
    assert parts.sample_times_ns.tolist() == whole.sample_times_ns.tolist()
    assert counters(parts.samples) == counters(whole.samples)
    assert part_addresses.tolist() == addresses.tolist()
    assert part_log.tolist() == log.tolist()


@each_config
def test_it_does_not_matter_in_a_long_trace_either(config):
    events = seeded(21, 20_000).events()
    whole = record([events], config, 500)
    parts = record(cut(events, list(range(0, 20_000, 7))), config, 500)
    assert outcome(parts[0]) == outcome(whole[0])
    assert counters(parts[0].samples) == counters(whole[0].samples)
    assert parts[1].tolist() == whole[1].tolist()
    assert parts[2].tolist() == whole[2].tolist()


@each_config
@some
@given(history=histories(), marks=MARKS, intervals=st.tuples(st.integers(1, 50), st.integers(1, 500)))
def test_the_sampling_interval_changes_neither_end_nor_peaks(config, history, marks, intervals):
    events = with_marks(history, marks)
    first, second = (record([events], config, every_ns) for every_ns in intervals)
    assert outcome(first[0]) == outcome(second[0])
    assert first[1].tolist() == second[1].tolist()


@some
@given(history=histories(), every_ns=st.integers(1, 30))
def test_a_sample_shows_the_counters_after_the_last_event_of_its_time(history, every_ns):
    config, events = CONFIGS["tiny arenas"], history.events()
    recording = record([events], config, every_ns)[0]
    simulator = Simulator(config, begin_ns=int(events.time_ns[0]))
    after = [simulator.stack.tally.copy() for _ in single_steps(simulator, events)]
    nothing = np.zeros(1, after[0].dtype)
    times_ns = since_first(events)
    last_ns = int(times_ns[-1])
    assert recording.sample_times_ns.tolist() == [*range(every_ns, last_ns, every_ns), last_ns]
    for time_ns, sample in zip(recording.sample_times_ns, recording.samples, strict=True):
        seen = int(np.searchsorted(times_ns, time_ns, side="right"))
        assert counters(sample) == counters(after[seen - 1] if seen else nothing)


@some
@given(history=histories(), places=st.lists(st.integers(0, 60), max_size=6))
def test_a_mark_keeps_the_counters_of_the_events_before_its_row(history, places):
    config = CONFIGS["tiny arenas"]
    events = with_marks(history, [(place, index) for index, place in enumerate(places)])
    recording = record([events], config, 10)[0]
    marks = np.flatnonzero(events.op == Op.MARK).tolist()
    names = [PHASES[int(events.size[row])] for row in marks]
    assert [(name, time_ns) for name, time_ns, _ in recording.phases] == [
        (name, int(since_first(events)[row])) for name, row in zip(names, marks, strict=True)
    ]
    simulator, blocks = Simulator(config, begin_ns=int(events.time_ns[0])), history.events()
    before = [
        np.zeros(1, recording.samples.dtype),
        *(simulator.stack.tally.copy() for _ in single_steps(simulator, blocks)),
    ]
    for seen, (row, (_, _, tally)) in enumerate(zip(marks, recording.phases, strict=True)):
        expected = before[row - seen].copy()
        expected["row"] = tally.row  # rows of the marked trace
        assert counters(tally) == counters(expected)


IDLE = (Op.GC_START, Op.GC_END, Op.ARENA_MAPPED, Op.ARENA_UNMAPPED, Op.FOREIGN_FREE)


def with_idle_rows(events: Events, places: list[int]) -> Events:
    """The same with a row without a block before each row, of another thread and with an impossible block number."""
    places = sorted(places)
    op = np.array([IDLE[number % len(IDLE)] for number in range(len(places))], np.uint8)
    times_ns = events.time_ns[np.minimum(places, events.rows - 1)]
    rows = {"time_ns": times_ns, "thread": 77, "op": op, "domain": 9, "block": NO_BLOCK, "size": 1 << 46}
    return Events(**{name: np.insert(getattr(events, name), places, value) for name, value in rows.items()})


@each_config
@some
@given(history=histories(), places=st.lists(st.integers(0, 60), min_size=1, max_size=20), every_ns=st.integers(1, 40))
def test_rows_that_move_no_block_change_nothing_but_the_rows_numbers(config, history, places, every_ns):
    events = history.events()
    places = [place % (events.rows + 1) for place in places]
    bare, addresses, _ = record([events], config, every_ns)
    idle, idle_addresses, _ = record([with_idle_rows(events, places)], config, every_ns)
    assert np.delete(idle_addresses, np.sort(places) + np.arange(len(places))).tolist() == addresses.tolist()
    assert not idle_addresses[np.sort(places) + np.arange(len(places))].any()
    for with_row, without in ((idle.end, bare.end), (idle.at_peak, bare.at_peak), (idle.samples, bare.samples)):
        with_row, without = np.atleast_1d(with_row).copy(), np.atleast_1d(without).copy()
        with_row["row"] = without["row"] = 0
        assert counters(with_row) == counters(without)
    assert idle.classes.tolist() == bare.classes.tolist()
    assert idle.at_peak_time_ns == bare.at_peak_time_ns


@pytest.mark.parametrize("compiled", [True, False])
def test_rows_without_a_block_are_ignored_by_the_look_ahead(compiled):
    history = History()
    numbers = history.mallocs(BLOCKS_IN_CACHE + 1, 16)  # enough that their entries are prefetched
    history.free(*numbers[::5])
    events = with_idle_rows(history.events(), list(range(0, len(history.rows), 7)))
    simulator = Simulator(load_config("cpython-3.12"))
    if not compiled:
        simulator._loop = simulate_rows
    simulator.simulate(Slice(events, 0, 0, events.rows, np.zeros(0, np.int64), np.zeros(0, np.int64)))
    assert (simulator.tally.mallocs, simulator.tally.frees) == (len(numbers), len(numbers[::5]))
    assert simulator.tally.requested_bytes == 16 * (len(numbers) - len(numbers[::5]))
    simulator.check()


def test_neither_marks_nor_collections_end_a_slice(monkeypatch):
    slices: list[tuple[int, int]] = []
    simulate = Simulator.simulate

    def seen(simulator, part):
        slices.append((part.start, part.end))
        return simulate(simulator, part)

    monkeypatch.setattr(Simulator, "simulate", seen)
    history = History()
    for phase in range(3):
        history.malloc(10)
        history.mark(phase)
        history.mark(op=Op.GC_START)
        history.mark(op=Op.GC_END)
    history.malloc(10)
    recording = record([history.events()], CONFIGS["3.12"], 10)[0]
    assert slices == [(0, 13)]
    assert [int(tally.mallocs) for _, _, tally in recording.phases] == [1, 2, 3]
    assert [int(tally.row) for _, _, tally in recording.phases] == [0, 4, 8]


def test_a_sample_between_an_event_and_a_trim_shows_the_state_before_the_trim():
    history = History()
    history.at(0).free(history.malloc(100_000, Domain.RAW))
    history.at(50).mark()
    history.at(90).malloc(10, Domain.RAW)
    recording = run(history.trace(TRIM_MARK), load_config("cpython-3.12"), sample_every_ns=20)
    heap = dict(zip(recording.sample_times_ns.tolist(), recording.samples["heap_bytes"].tolist(), strict=True))
    before, after = heap[20], heap[60]
    assert before > after
    assert heap == {20: before, 40: before, 60: after, 80: after, 90: after}


def seen_in_single_steps(events: Events, phases: tuple[str, ...], config, every_ns: int, trim_ns: int) -> tuple:
    """Samples and phases of one event after the other: of what is due at once, the timer comes before the sample, and
    both come behind all events of their moment."""
    begin_ns = int(events.time_ns[0])
    simulator, samples, marks = Simulator(config, begin_ns=begin_ns), [], []
    tick_ns, alarm_ns = every_ns, trim_ns
    for row, now_ns in enumerate(since_first(events).tolist()):
        while min(tick_ns, alarm_ns) < now_ns:
            if alarm_ns <= tick_ns:
                simulator.trim(row, begin_ns + alarm_ns)
                alarm_ns += trim_ns
            else:
                samples.append((tick_ns, counters(simulator.tally)))
                tick_ns += every_ns
        if events.op[row] == Op.MARK:
            name = phases[int(events.size[row])]
            marks.append((name, now_ns, counters(simulator.tally)))
            if name == TRIM_MARK:
                simulator.trim(row, begin_ns + now_ns)
        elif events.op[row] <= Op.FREE:
            play_rows(simulator, events, row, row + 1)
    return [*samples, (now_ns, counters(simulator.tally))], marks


@each_config
@some
@given(history=histories(), cuts=CUTS, marks=MARKS, every_ns=st.integers(1, 40), trim_ns=st.integers(1, 60))
def test_samples_and_phases_are_those_of_single_steps_whatever_trims_between(
    config, history, cuts, marks, every_ns, trim_ns
):
    events, phases = with_marks(history, marks), (TRIM_MARK, *PHASES[1:])
    trace = MemoryTrace(cut(events, cuts), Metadata(phases=phases))
    recording = run(trace, config, sample_every_ns=every_ns, trim_every_ns=trim_ns)
    samples, seen = seen_in_single_steps(events, phases, config, every_ns, trim_ns)
    times_ns = recording.sample_times_ns.tolist()
    assert [(at, counters(each)) for at, each in zip(times_ns, recording.samples, strict=True)] == samples
    assert [(name, at, counters(tally)) for name, at, tally in recording.phases] == seen


@pytest.mark.parametrize("op", [Op.GC_START, Op.THREAD_END, Op.MARK])
def test_a_timed_trim_before_a_row_is_done_before_the_row(op):
    history = History()
    history.at(0).free(history.malloc(100_000, Domain.RAW))
    history.at(60).mark(op=op)
    recording = run(history.trace("a"), load_config("cpython-3.12"), sample_every_ns=11, trim_every_ns=40)
    heap = dict(zip(recording.sample_times_ns.tolist(), recording.samples["heap_bytes"].tolist(), strict=True))
    assert heap == {11: 135168, 22: 135168, 33: 135168, 44: 4096, 55: 4096, 60: 4096}
    assert [int(tally.heap_bytes) for _, _, tally in recording.phases] == ([4096] if op == Op.MARK else [])


@pytest.mark.parametrize("cuts", [[], [1], [1, 2]])
def test_the_main_thread_is_that_of_the_first_block_not_of_the_first_row(cuts):
    history = History()
    history.mark()
    for thread in (3, 3, 0):
        history.by(thread).malloc(1000, Domain.RAW)
    _, addresses, _ = record(cut(history.events(), cuts), CONFIGS["3.12"], 10)
    _, bare, _ = record([rows_of(history.events(), slice(1, None))], CONFIGS["3.12"], 10)
    assert addresses.tolist() == [0, *bare.tolist()]


@some
@given(history=histories())
def test_the_peak_is_kept_with_the_time_of_its_event(history):
    events = history.events()
    recording = record([events], CONFIGS["tiny arenas"], 10)[0]
    row = int(recording.at_peak.row)
    assert recording.at_peak_time_ns == (int(since_first(events)[row]) if recording.at_peak.page_faults else 0)
    assert recording.at_peak.resident_bytes_peak == recording.end.resident_bytes_peak


def test_a_peak_during_an_event_has_its_time_even_if_the_event_ends_at_an_older_peak():
    """The block moves to libc, which needs one more page; then its arena, which had one page, is unmapped."""
    history, page = History(), 4096
    number = history.malloc(100)
    history.at(2).realloc(number, 4000)
    events, config = history.events(), load_config("cpython-3.8")
    before = record([cut(events, [1])[0]], config, 10)[0].end.resident_bytes_peak
    for batches in ([events], cut(events, [1])):
        recording = record(batches, config, 10)[0]
        assert (recording.at_peak.row, recording.at_peak_time_ns) == (1, 2)
        assert recording.at_peak.resident_bytes == before
        assert recording.end.resident_bytes_peak == before + page


def test_counts_of_a_small_history():
    history = History()
    first = history.at(1100).malloc(100)
    history.at(1200).malloc(600, op=Op.CALLOC)
    history.at(1300).realloc(first, 50)
    history.at(1400).mark(1)
    history.at(1500).free(first)
    recording = record([history.events()], CONFIGS["3.12"], 150)[0]
    end = recording.end
    assert (end.mallocs, end.callocs, end.reallocs, end.frees) == (1, 1, 1, 1)
    assert (recording.events, recording.duration_ns) == (5, 400)
    assert recording.sample_times_ns.tolist() == [150, 300, 400]
    assert recording.samples["requested_bytes"].tolist() == [700, 650, 600]
    assert [(name, time_ns, int(tally.requested_bytes)) for name, time_ns, tally in recording.phases] == [
        ("b", 300, 650)
    ]
    assert recording.at_peak_time_ns == 200
    assert (end.requested_bytes_peak, end.requested_bytes, end.block_bytes) == (700, 600, 608)


def test_classes_count_allocated_and_live_blocks_by_domain_role_and_size():
    history = History()
    number = history.malloc(100)
    history.realloc(number, 30)
    history.free(number)
    history.malloc(600)
    classes = record([history.events()], CONFIGS["3.12"], 10)[0].classes
    table = {int(row): tuple(int(n) for n in classes[row]) for row in np.flatnonzero(classes["blocks"])}
    per_role = len(classes) // 8
    small, libc = (2 * 2 + 1) * per_role, 2 * 2 * per_role
    # blocks of 112, 32 and 608 bytes, in steps of 8
    assert table == {small + 14: (1, 100, 0, 0), small + 4: (1, 30, 0, 0), libc + 76: (1, 600, 1, 600)}
    assert [class_limit(index) for index in (14, 4, 76, 128, 129, 130)] == [112, 32, 608, 1024, 2048, 4096]


def test_the_log_names_every_arena_and_system_call_with_its_row():
    history = History()
    history.mallocs(2, 100)
    history.free(1, 0)
    log = record([history.events()], load_config("cpython-3.8", ["domains.libc=glibc"]), 10)[2]
    arena, mmap, munmap, brk = (
        0x7FFFF7FF1000 - (256 << 10),
        *(SYSCALLS.index(name) for name in ("mmap", "munmap", "brk")),
    )
    assert log.tolist() == [
        (0, brk, 0x555555560000 + 33 * 4096, 33 * 4096),
        (0, mmap, arena, 256 << 10), (0, ARENA_MAPPED, arena, 256 << 10),
        (3, ARENA_UNMAPPED, arena, 256 << 10), (3, munmap, arena, 256 << 10),
    ]  # fmt: skip


def test_a_log_longer_than_its_table_is_complete():
    history = History()
    for _ in range(6000):
        history.free(history.malloc(1 << 30))
    config = load_config("cpython-3.12", ["glibc.version=2.43", "glibc.mmap_threshold=0"])
    log = record([history.events()], config, 10)[2]
    assert log["row"].tolist() == list(range(12_000))


def test_progress_is_reported_in_rows():
    rows_reported: list[int] = []
    events = seeded(1, 100).events()
    run(MemoryTrace(cut(events, [30, 60])), CONFIGS["3.12"], progress=rows_reported.append)
    assert rows_reported == [30, 60, 100]


def test_an_empty_trace_has_an_empty_result():
    recording = run(MemoryTrace([]), CONFIGS["3.12"])
    assert (recording.events, recording.duration_ns, recording.samples.shape) == (0, 0, (1,))
    assert counters(recording.end) == [(0,) * (len(recording.end.dtype.names) - len(BOOKKEEPING))]


def test_a_block_number_far_beyond_the_first_table_finds_room():
    history = History()
    history.malloc(100)
    events = history.events()
    events.block[0] = 70_000
    assert run(MemoryTrace([events]), CONFIGS["3.12"]).end.requested_bytes == 100


# Sampling intervals


@pytest.mark.parametrize(
    ("duration_ns", "wanted_ns", "interval_ns"),
    [
        (10**9, None, 10**6),
        (10**9, 5, None),
        (None, 3, 3),
        (500, None, 1),
        (0, None, 1),
        (10**9, 1000, 1000),
    ],
)
def test_the_interval_is_the_requested_one_or_makes_a_thousand_samples(duration_ns, wanted_ns, interval_ns):
    if interval_ns is None:
        with pytest.raises(ReplayError, match=r"5 ns gives 200000000 samples .* choose a longer one"):
            sampling_interval_ns(duration_ns, wanted_ns)
    else:
        assert sampling_interval_ns(duration_ns, wanted_ns) == interval_ns


class Unending(MemoryTrace):
    """A trace without a duration, like formats that do not have it in a header."""

    duration_ns = None


@some
@given(history=histories(), cuts=CUTS, marks=MARKS, scale=st.integers(1, 10**14), begin_ns=st.integers(0, 10**17))
def test_without_a_known_duration_the_interval_doubles_until_up_to_two_thousand_samples_are_enough(
    history, cuts, marks, scale, begin_ns
):
    events = with_marks(history, marks)
    events = events._replace(time_ns=events.time_ns * scale + begin_ns)
    span_ns = int(events.time_ns[-1] - events.time_ns[0]) if events.rows else 0
    every_ns = next(1 << power for power in range(64) if span_ns >> power <= 2000)
    unending = run(Unending(cut(events, cuts), Metadata(phases=PHASES)), CONFIGS["3.12"])
    known = run(MemoryTrace([events], Metadata(phases=PHASES)), CONFIGS["3.12"], sample_every_ns=every_ns)
    assert unending.sample_times_ns.tolist() == known.sample_times_ns.tolist()
    assert [counters(each) for each in unending.samples] == [counters(each) for each in known.samples]
    assert unending.sample_times_ns.shape[0] <= 2002


@pytest.mark.parametrize("wanted_ns", [0, -1])
def test_an_interval_of_nothing_is_refused(wanted_ns):
    with pytest.raises(ReplayError, match="must be longer than nothing"):
        sampling_interval_ns(10, wanted_ns)


def test_the_tables_of_a_run_are_freed_after_it(monkeypatch):
    """Otherwise, consecutive runs would need new memory until a garbage collection."""
    simulators = []
    start = Simulator.__init__

    def note(self, *arguments, **options):
        simulators.append(weakref.ref(self))
        start(self, *arguments, **options)

    monkeypatch.setattr(Simulator, "__init__", note)
    trace = MemoryTrace([with_marks(seeded(3, 200), [(20, 0), (50, len(PHASES))])], Metadata(phases=PHASES))
    gc.disable()
    try:
        recordings = [
            run(trace, CONFIGS["3.12"], **options)
            for options in ({}, {"sample_every_ns": 10}, {"trim_every_ns": 100}, {"stop": lambda counters: True})
        ]
        assert len(recordings) == 4
        assert [simulator() for simulator in simulators] == [None] * 4
    finally:
        gc.enable()


def test_a_recording_cannot_be_changed_by_accident():
    recording = run(MemoryTrace([]), CONFIGS["3.12"])
    with pytest.raises(AttributeError):
        recording.events = 1
    assert replace(recording, events=1).events == 1


@pytest.mark.parametrize("libc", ["glibc", "ideal", "bump"])
def test_pymalloc_works_on_top_of_every_libc_model(libc):
    history = History()
    history.mallocs(17 * 2000, 512)  # more arenas than the first arena table holds
    simulator = Simulator(load_config("cpython-3.8", [f"domains.libc={libc}"]))
    simulator._loop = simulate_rows  # as plain Python, where an index out of bounds is an error
    events = history.events()
    simulator.simulate(Slice(events, 0, 0, events.rows, np.zeros(0, np.int64), np.zeros(0, np.int64)))
    assert simulator.tally.arenas == 76  # 34,000 blocks, 7 a pool, 64 pools an arena
    simulator.check()


def test_a_block_of_libc_in_the_hole_that_an_arena_left_is_libcs():
    history = History()
    blocks = history.mallocs(4000, 512)
    history.free(*blocks)
    large = history.malloc(300_000, Domain.RAW)
    owners: list[np.ndarray] = []
    run(history.trace(), load_config("cpython-3.8"), addresses=lambda part, owner: owners.append(owner))
    assert np.concatenate(owners).tolist() == [1] * 4000 + [0] * 4000 + [0]
    assert large == blocks[-1]


def test_a_trace_that_starts_late_is_sampled_from_its_first_event_on():
    history = History()
    history.at(1_700_000_000_000_000_123).malloc(100)
    history.at(1_700_000_000_000_001_000).malloc(100)
    recording = record([history.events()], CONFIGS["3.12"], 500)[0]
    assert recording.duration_ns == 877
    assert recording.sample_times_ns.tolist() == [500, 877]


@each_config
@some
@given(
    history=histories(), marks=MARKS, begin_ns=st.integers(1, 10**17), every_ns=st.integers(1, 40),
    trim_ns=st.integers(1, 60),
)  # fmt: skip
def test_no_result_depends_on_when_the_clock_of_the_trace_began(config, history, marks, begin_ns, every_ns, trim_ns):
    events = with_marks(history, marks)
    moved = events._replace(time_ns=events.time_ns + begin_ns)
    now, later = (
        run(MemoryTrace([each], Metadata(phases=PHASES)), config, sample_every_ns=every_ns, trim_every_ns=trim_ns)
        for each in (events, moved)
    )
    assert outcome(later) == outcome(now)
    assert later.sample_times_ns.tolist() == now.sample_times_ns.tolist()
    assert counters(later.samples) == counters(now.samples)
