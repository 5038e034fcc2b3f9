"""The trace: what a program asked of its allocators, event by event, and nothing of what they answered.

A trace is read and written in batches; no function here needs the whole of it. One batch is an `Events`: columns of
equal length, one row an event, in the order in which they happened.

    column    file      in memory  meaning
    time_ns   Int64     int64      never falls
    thread    UInt32    uint32
    op        UInt8     uint8      an `Op`
    domain    UInt8     uint8      a `Domain`: which API the program called
    block     UInt32    uint32     names a live block; see below
    size      UInt64    int64      bytes asked for, at most 2^47; 0 for free; for mark: index into `Metadata.phases`
    address   UInt64    uint64     optional: where the real allocator put it
    site      UInt32    uint32     optional: index into `Metadata.sites`

Block numbers. A malloc or calloc gives its block a number, free releases it, realloc keeps it. Whoever writes a trace
numbers by one rule, so that the same history always gives the same file: a new block takes the number that was
released last, or, when none is waiting, the lowest one never used. Numbers therefore stay below the highest count of
live blocks, and tables indexed by them are proportional to what is live. `block_numbering` does this for sources that
only know addresses. A reader accepts any numbering that never names two live blocks alike and stays dense:
`replay.trace.validation` holds it to that, and kernels trust what passed.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from replay.jit.compiling import leaf

FORMAT_VERSION = 2
"""Of traces of several processes; others are of version 1, which has no table of them."""
NO_SITE = (1 << 32) - 1
"""In `Events.site`: it is not known who allocated (null in a file)."""


class Op(IntEnum):
    """What happened. From GC_START on, events move no block of the program's.

    From ARENA_MAPPED on they are observations of the real allocator, for whoever compares with it: nothing is played.
    """

    MALLOC = 0
    CALLOC = 1
    REALLOC = 2
    FREE = 3
    GC_START = 16
    GC_END = 17
    THREAD_END = 18
    MARK = 32
    ARENA_MAPPED = 48
    """pymalloc got an arena: its bytes in `size`, and where in `address`."""
    ARENA_UNMAPPED = 49
    FOREIGN_FREE = 50
    """A block was freed that was born before the recording, or in a thread that was left out: of the size nothing is
    known, so `size` is 0."""


class Domain(IntEnum):
    """The API through which a block was asked for."""

    RAW = 0
    MEM = 1
    OBJ = 2
    LIBC = 3


_LAST_OF_A_BLOCK = np.uint8(Op.FREE)  # NumPy would compare all rows with a member of an enum as int64


class _Columns(NamedTuple):
    time_ns: np.ndarray
    thread: np.ndarray
    op: np.ndarray
    domain: np.ndarray
    block: np.ndarray
    size: np.ndarray
    address: np.ndarray | None = None
    site: np.ndarray | None = None


class Events(_Columns):
    """One batch of a trace: columns of equal length, which nobody changes.

    What is known of a column is found once, however many runs play the batch.
    """

    @property
    def rows(self) -> int:
        return int(self.op.shape[0])

    @cached_property
    def idle_rows(self) -> dict[int, list[int]]:
        """Those that move no block, by op."""
        rows = np.flatnonzero(self.op > _LAST_OF_A_BLOCK)
        op = self.op[rows]
        return {kind: rows[op == kind].tolist() for kind in np.unique(op).tolist()}

    @cached_property
    def highest_block(self) -> int:
        """Of the rows that move one."""
        block = self.block[self.op <= _LAST_OF_A_BLOCK] if self.idle_rows else self.block
        return int(block.max(initial=0))

    @cached_property
    def highest_thread(self) -> int:
        return int(self.thread.max(initial=0))


class Site(NamedTuple):
    """A place in the program that allocates."""

    function: str
    file: str
    line: int


TRIM_MARK = "malloc_trim"
"""A mark of this name is a call of malloc_trim(0)."""
TEARDOWN_MARK = "interpreter teardown"
"""A mark of this name ends what the program itself does; CPython's finalisation follows."""


START, CLEAN_START = "start", "clean"
"""In `Metadata.origin` of a recording: how it began; with every pool of pymalloc full."""
OLDER_FREES, OLDER_REALLOCS, UNSEEN_FREES = "foreign_frees", "foreign_reallocs", "unseen_frees"
"""In the same: how many blocks were freed or reallocated that were born before, and freed past the recorder."""
LEFT_OUT = "left_out_calls"
"""In the same: how many calls were left out, of threads that were not meant; not there if none was."""
SITES_OF = "sites"
"""In the same, where call sites were recorded: of which calls."""
RECORDED = (START, OLDER_FREES, OLDER_REALLOCS, UNSEEN_FREES, LEFT_OUT)
DROPPED_MAPPING_BYTES = "dropped mapping bytes"
"""In `Metadata.origin` of an imported memray capture: the bytes of its calls of mmap, which are not in the trace."""


@dataclass(frozen=True)
class ClassCount:
    """The pools of a size class that have live blocks."""

    block_bytes: int
    pools: int
    blocks: int
    """Live ones."""
    blocks_free: int


@dataclass(frozen=True)
class PoolCount:
    """How the real pymalloc counted itself, while nobody called it."""

    row: int
    """Before which event that was."""
    arenas_mapped: int
    """So many ever, as is the next."""
    arenas_unmapped: int
    arenas_highest: int
    arenas: int
    pools_free: int
    classes: tuple[ClassCount, ...]
    """Those that have pools."""


@dataclass(frozen=True)
class ProcessMemory:
    """What the process holds besides its allocators: the static and the automatic storage of C."""

    static_bytes: int = 0
    """Program, libraries, their data: there from start to end."""
    stack_bytes: int = 0
    """Reserved for the stacks of all threads."""
    stack_resident_bytes: int = 0
    """The part of the stacks that is ever touched."""


@dataclass(frozen=True)
class Process:
    """One of several in a trace: its threads' events are its own, and so are its address space and its phases."""

    name: str
    threads: tuple[int, ...]
    """No other process has one of them."""
    memory: ProcessMemory = ProcessMemory()


@dataclass(frozen=True)
class ResidentMemory:
    """Resident memory of a recorded process as the kernel counts it, without shared memory."""

    start_bytes: int
    """When the recording began: the interpreter itself."""
    peak_bytes: int
    end_bytes: int
    """Before finalisation, or when the process was last looked at."""


@dataclass(frozen=True)
class Runtime:
    """What was in force in a recorded process. An empty text is unknown."""

    allocator: str = ""
    """CPython's own name for it: pymalloc, malloc, mimalloc; with `_debug` behind it where debug hooks are on."""
    libc: str = ""
    """Name and version, as in `glibc 2.36`."""
    malloc: str = ""
    """File name of the library or program that `malloc` belongs to."""
    separate_heaps: bool = False
    """Whether a subinterpreter had a pymalloc of its own."""
    resident: ResidentMemory | None = None


@dataclass(frozen=True)
class Metadata:
    """What a trace says of itself."""

    origin: dict[str, str] = field(default_factory=dict)
    """How it came to be: interpreter version, platform, allocator, command, seed …"""
    sites: tuple[Site, ...] = ()
    phases: tuple[str, ...] = ()
    """Names that marks point to."""
    process: ProcessMemory = ProcessMemory()
    """Nothing where there are `processes`, which say it each for itself."""
    counts: tuple[PoolCount, ...] = ()
    """Of a recording that started clean: when it began, and at its end."""
    processes: tuple[Process, ...] = ()
    """Without any the trace is of one process, whatever its threads."""
    runtime: Runtime | None = None
    """Of a recording; older ones have none."""

    @property
    def memory(self) -> ProcessMemory:
        """Of all processes together."""
        if not self.processes:
            return self.process
        each = [process.memory for process in self.processes]
        return ProcessMemory(*(sum(getattr(one, field.name) for one in each) for field in fields(ProcessMemory)))


class Trace(Protocol):
    """Something that can be played, once or many times."""

    @property
    def metadata(self) -> Metadata: ...

    @property
    def duration_ns(self) -> int | None:
        """Time of the last event, where known beforehand."""

    @property
    def events_total(self) -> int | None:
        """Number of rows, where known beforehand."""

    def batches(self) -> Iterator[Events]:
        """The events from the first, in batches of any size; each call starts anew."""


@dataclass(frozen=True)
class MemoryTrace:
    """A trace that is held in memory whole, for tests, benchmarks and sweeps."""

    events: list[Events]
    metadata: Metadata = Metadata()

    @property
    def duration_ns(self) -> int | None:
        return next((int(batch.time_ns[-1]) for batch in reversed(self.events) if batch.rows), 0)

    @property
    def events_total(self) -> int | None:
        return sum(batch.rows for batch in self.events)

    def batches(self) -> Iterator[Events]:
        return iter(self.events)


class Digest:
    """Tells two traces apart: SHA-256 over the required columns, one after the other, wherever the batches are cut.

    Where there are processes, over their threads as well.
    """

    _COLUMNS = Events._fields[:6]

    def __init__(self) -> None:
        self._columns = [hashlib.sha256() for _ in self._COLUMNS]

    def update(self, events: Events) -> None:
        for digest, name in zip(self._columns, self._COLUMNS, strict=True):
            digest.update(np.ascontiguousarray(getattr(events, name)).data)

    def hexdigest(self, processes: tuple[Process, ...] = ()) -> str:
        """Of all that was taken in, in hexadecimal; each process is the number of its threads, and these."""
        digests = self._columns
        if processes:
            table = [number for process in processes for number in (len(process.threads), *sorted(process.threads))]
            digests = [*digests, hashlib.sha256(np.array(table, np.int64).data)]
        return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def trace_digest(trace: Trace) -> str:
    """The `Digest` of a whole trace, in hexadecimal."""
    digest = Digest()
    for events in trace.batches():
        digest.update(events)
    return digest.hexdigest(trace.metadata.processes)


@leaf
def take_number(free_numbers: np.ndarray, counts: np.ndarray) -> int:
    """The number of a new block; changes `counts` in place.

    `free_numbers` (int64) is a stack of released numbers that the caller keeps at least `counts[0]` plus the rows of
    a batch long; `counts` (int64[2]) holds how many numbers were ever used and the height of the stack.
    """
    if counts[1] > 0:
        counts[1] -= 1
        return free_numbers[counts[1]]
    counts[0] += 1
    return counts[0] - 1


@leaf
def release_number(free_numbers: np.ndarray, counts: np.ndarray, number: int) -> None:
    """Puts a dead block's number on top of the stack, in place; see `take_number`."""
    free_numbers[counts[1]] = number
    counts[1] += 1
