"""Traces made for tests: by hand, by hypothesis, by a seed; and what a run says of them, as one digest."""

import hashlib
import random
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from replay.allocators import OWN, TIMED
from replay.config import StackConfig
from replay.simulation.clock import Slice
from replay.simulation.run import run
from replay.simulation.simulator import Simulator
from replay.trace import Domain, Events, MemoryTrace, Metadata, Op, Trace

SIZES = (
    0, 1, 8, 15, 16, 17, 32, 48, 100, 255, 256, 384, 385, 496, 511, 512, 513, 600, 1024, 1025, 4096, 20_000,
    131_000, 131_048, 131_049, 131_072, 150_000, 300_000, 2_097_128, 3_000_000,
)  # fmt: skip
"""Around every edge: 0, the small threshold, the mmap threshold, a whole number of huge pages."""

TINY = (
    "linux.page_size=1024",
    "pymalloc.arena_size=8192",
    "pymalloc.pool_size=2048",
    "pymalloc.radix_tree=false",
)
"""Overrides that make three or four pools an arena, so that a few dozen blocks fill and free several."""

WORDS = tuple(f"{name}_{part}" for name in TIMED for part in ("timed", "timed_high"))
BOOKKEEPING = tuple(name for name in OWN if name != "row")
"""Fields that the simulator keeps for itself: they count nothing."""


class History:
    """Writes a trace down, and numbers its blocks by the rule of `replay.trace`."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, int, int]] = []
        self.alignments: dict[int, int] = {}
        """By row."""
        self.domains: dict[int, int] = {}
        self._free_numbers: list[int] = []
        self._numbers = 0
        self.now_ns = 0
        self.thread = 0

    def by(self, thread: int) -> "History":
        """What follows is that thread's."""
        self.thread = thread
        return self

    def end_thread(self) -> None:
        """The thread at work ends."""
        self.mark(op=Op.THREAD_END)

    def at(self, time_ns: int) -> "History":
        """What follows happens then."""
        self.now_ns = time_ns
        return self

    def malloc(self, size: int, domain: Domain = Domain.OBJ, op: Op = Op.MALLOC) -> int:
        """The number of the new block."""
        if self._free_numbers:
            number = self._free_numbers.pop()
        else:
            number, self._numbers = self._numbers, self._numbers + 1
        self.domains[number] = domain
        self.rows.append((self.now_ns, self.thread, op, domain, number, size))
        return number

    def memalign(self, alignment: int, size: int, domain: Domain = Domain.LIBC) -> int:
        """The number of the new block at a multiple of `alignment`."""
        self.alignments[len(self.rows)] = alignment
        return self.malloc(size, domain, Op.MEMALIGN)

    def mallocs(self, count: int, size: int, domain: Domain = Domain.OBJ) -> list[int]:
        """The numbers of that many new blocks."""
        return [self.malloc(size, domain) for _ in range(count)]

    def realloc(self, number: int, size: int) -> None:
        """The block gets a new size."""
        self.rows.append((self.now_ns, self.thread, Op.REALLOC, self.domains[number], number, size))

    def resize(self, number: int, size: int) -> None:
        """A realloc, in domain libc to at least 1 byte: to 0 bytes it would be a free."""
        self.realloc(number, max(size, 1) if self.domains[number] == Domain.LIBC else size)

    def free(self, *numbers: int) -> None:
        """The blocks die, in this order."""
        for number in numbers:
            self.rows.append((self.now_ns, self.thread, Op.FREE, self.domains.pop(number), number, 0))
            self._free_numbers.append(number)

    def mark(self, phase: int = 0, op: Op = Op.MARK) -> None:
        """A row that moves no block."""
        self.rows.append((self.now_ns, self.thread, op, 0, 0, phase))

    def events(self) -> Events:
        """All in one batch."""
        columns = np.array(self.rows, np.int64).reshape(-1, 6).T
        time_ns, thread, op, domain, block, size = columns
        alignment = np.zeros(len(self.rows), np.uint32)
        alignment[[*self.alignments]] = [*self.alignments.values()]
        return Events(
            time_ns.copy(),
            thread.astype(np.uint32),
            op.astype(np.uint8),
            domain.astype(np.uint8),
            block.astype(np.uint32),
            size.copy(),
            alignment=alignment if self.alignments else None,
        )

    def trace(self, *phases: str) -> MemoryTrace:
        """The trace, with names for its marks."""
        return MemoryTrace([self.events()], Metadata(phases=phases))


def follow(
    history: History,
    steps: list[tuple[int, int, int, int, int]],
    with_realloc: bool = True,
    with_memalign: bool = False,
) -> History:
    """Turns (kind, size, which block, domain, pause) into events; without a live block a step allocates one."""
    live: list[int] = []
    for kind, size, which, domain, pause_ns in steps:
        history.at(history.now_ns + pause_ns)
        if kind == 4 and with_memalign:
            raw_or_libc = Domain.RAW if domain == Domain.RAW else Domain.LIBC
            live.append(history.memalign(8 << (which & 15), size, raw_or_libc))
        elif kind < 4 or not live or (kind == 5 and not with_realloc):
            live.append(history.malloc(size, Domain(domain), Op.CALLOC if kind == 3 else Op.MALLOC))
        elif kind == 5:
            history.resize(live[which % len(live)], size)
        else:
            history.free(live.pop(which % len(live)))
    return history


STEPS = st.tuples(
    st.integers(0, 9),
    st.sampled_from(SIZES),
    st.integers(0, 63),
    st.sampled_from(Domain),
    st.sampled_from((0, 1, 7)),
)


def histories(
    max_events: int = 60, *, with_realloc: bool = True, with_memalign: bool = False
) -> st.SearchStrategy[History]:
    """Any history of so many events at the most."""
    return st.lists(STEPS, min_size=1, max_size=max_events).map(
        lambda steps: follow(History(), steps, with_realloc, with_memalign)
    )


def seeded(seed: int, count: int, *, sizes: tuple[int, ...] = SIZES, wave: int = 400) -> History:
    """A history that grows and shrinks to almost nothing every `wave` events; the same on every machine."""
    source = random.Random(seed)
    steps = []
    for row in range(count):
        kind = source.choice((0, 0, 1, 3, 5, 9) if row % wave < wave // 2 else (0, 5, 9, 9, 9, 9))
        domain = source.choice((0, 1, 2, 2, 2, 3))
        steps.append((kind, source.choice(sizes), source.randrange(1 << 20), domain, source.choice((0, 0, 1, 20))))
    return follow(History(), steps)


def cut(events: Events, cuts: list[int]) -> list[Events]:
    """The same events in batches that end at these rows."""
    edges = [0, *sorted({at for at in cuts if 0 < at < events.rows}), events.rows]
    return [events.where(slice(start, end)) for start, end in pairwise(edges)]


def play_rows(simulator: Simulator, events: Events, start: int, end: int) -> None:
    """Plays rows start … end of a batch that begins the trace, without a clock."""
    none = np.zeros(0, np.int64)
    simulator.simulate(Slice(events, 0, start, end, none, none))


def played(history: History, config: StackConfig) -> tuple[Simulator, np.ndarray]:
    """The simulator after the whole of a history without marks, and the address of each event's block."""
    addresses: list[np.ndarray] = []
    simulator = Simulator(config, addresses=lambda part, owners: addresses.append(part))
    events = history.events()
    play_rows(simulator, events, 0, events.rows)
    simulator.check()
    return simulator, np.concatenate(addresses)


def single_steps(simulator: Simulator, events: Events) -> Iterator[int]:
    """Plays one event a slice; yields its row after each."""
    for row in range(events.rows):
        play_rows(simulator, events, row, row + 1)
        yield row


def changes(record: np.record, level: str) -> int:
    """The sum of a level's changes, each multiplied by its time."""
    return (int(record[f"{level}_timed_high"]) << 64) + (int(record[f"{level}_timed"]) & (1 << 64) - 1)


def counters(records: np.ndarray) -> list[tuple[int, ...]]:
    """The counters of TALLY records that must not depend on how the trace was cut."""
    names = [name for name in records.dtype.names if name not in BOOKKEEPING]
    return [tuple(int(record[name]) for name in names) for record in np.atleast_1d(records)]


def fingerprint(trace: Trace, config: StackConfig, sample_every_ns: int | None = None) -> str:
    """SHA-256 of everything that a run finds out, addresses and system calls included."""
    digest = hashlib.sha256()
    recording = run(
        trace,
        config,
        sample_every_ns=sample_every_ns,
        addresses=lambda *parts: [digest.update(part.tobytes()) for part in parts],
    )
    logged: list[bytes] = []
    run(trace, config, sample_every_ns=sample_every_ns, log=lambda part: logged.append(part.tobytes()))
    parts = [recording.sample_times_ns, recording.samples, recording.classes, *recording.observed.values()]
    for part in [*parts, np.array(recording.end), np.array(recording.at_peak)]:
        digest.update(part.tobytes())
    digest.update(b"".join(logged) + f"{recording.events} {recording.at_peak_time_ns}".encode())
    return digest.hexdigest()
