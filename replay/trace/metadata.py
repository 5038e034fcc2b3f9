"""The metadata of a trace: its origin, call sites, phases, and the memory and threads of its processes."""

from dataclasses import dataclass, field, fields
from typing import NamedTuple

from replay.trace.provenance import Provenance

FORMAT_VERSION = 2
"""Version of files with a table of processes. Files without it have version 1."""


class Site(NamedTuple):
    """A call site: a place in the program that allocates."""

    function: str
    file: str
    line: int


class ObjectType(NamedTuple):
    """A Python type. Without a name, it is a pointer that turned out to be no type."""

    module: str
    name: str
    """The qualified name."""
    collected: bool
    """Whether its objects have the header of the cyclic garbage collector."""

    def __str__(self) -> str:
        return self.name if self.module in ("", "builtins") else f"{self.module}.{self.name}"


TRIM_MARK = "malloc_trim"
"""A mark of this name is a call of malloc_trim(0)."""
TEARDOWN_MARK = "interpreter teardown"
"""A mark of this name is the end of the program itself; CPython's finalisation follows."""
FORK_MARK = "fork "
"""Prefix of the mark before each fork of a program recorded with `--follow-fork`: "fork 2" is its second fork. The
recording of the child begins with the same mark; its own forks are "fork 2.1" and so on."""


@dataclass(frozen=True)
class ClassCount:
    """The pools of a size class that have live blocks."""

    block_bytes: int
    pools: int
    blocks: int
    """Live blocks."""
    blocks_free: int


@dataclass(frozen=True)
class PoolCount:
    """The real pymalloc's own statistics at a moment without a call in progress."""

    row: int
    """They were read before this event."""
    arenas_mapped: int
    """Since the process started; the same for `arenas_unmapped`."""
    arenas_unmapped: int
    arenas_highest: int
    arenas: int
    pools_free: int
    classes: tuple[ClassCount, ...]
    """Size classes that have pools."""


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of a process besides its allocators: static storage and stacks."""

    static_bytes: int = 0
    """Program, libraries and their data. Resident during the whole run."""
    stack_bytes: int = 0
    """Reserved for the stacks of all threads."""
    stack_resident_bytes: int = 0
    """The part of the stacks that is written to at any time."""


@dataclass(frozen=True)
class Process:
    """One of several processes in a trace. It has its own threads, address space and phases."""

    name: str
    threads: tuple[int, ...]
    """Numbers in the column `thread`; each belongs to one process only."""
    memory: ProcessMemory = ProcessMemory()


@dataclass(frozen=True)
class ResidentMemory:
    """Resident memory of a recorded process as Linux counts it, without shared memory."""

    start_bytes: int
    """At the start of the recording: the interpreter itself."""
    peak_bytes: int
    end_bytes: int
    """Before CPython's finalisation, or the last value that was read."""


@dataclass(frozen=True)
class Runtime:
    """Allocators of a recorded process, and its resident memory. An empty text is unknown."""

    allocator: str = ""
    """CPython's name of its allocator: pymalloc, malloc or mimalloc; with the suffix `_debug` if debug hooks are on."""
    libc: str = ""
    """Name and version, as in `glibc 2.36`."""
    malloc: str = ""
    """File name of the library or program that defines `malloc`."""
    separate_heaps: bool = False
    """Whether a subinterpreter had a pymalloc of its own."""
    resident: ResidentMemory | None = None
    malloc_settings: tuple[str, ...] = ()
    """Environment variables of glibc's malloc, as in `MALLOC_ARENA_MAX=1`."""


class ThreadTimes(NamedTuple):
    """How a thread of an object program spent its time.

    The times from `running_ns` on add up to the time from its start to its end.
    """

    thread: int
    """Its number in the column `thread`."""
    function: str
    start_ns: int
    end_ns: int
    running_ns: int
    """Executing instructions, and freeing objects."""
    allocating_ns: int
    """In calls of allocators."""
    collecting_ns: int
    """In collections of the cyclic collector, without its calls of allocators."""
    waiting_ns: int
    """Ready to run, and waiting for the GIL."""
    blocked_ns: int
    """Waiting for a lock, for an item of a queue, or for a time."""


@dataclass(frozen=True)
class Collector:
    """The cyclic garbage collector at the start of a recording."""

    thresholds: tuple[int, int, int]
    enabled: bool
    counts: tuple[int, int, int]
    """As `gc.get_count()`."""
    old_objects: int
    """In the oldest generation."""
    full_collections: int
    """Since the interpreter started."""
    frozen_objects: int = 0
    """By `gc.freeze`."""
    pages: int = 0
    """Pages of 4 KiB with the headers of tracked objects that are not frozen."""

    @property
    def is_automatic(self) -> bool:
        """Whether collections run without `gc.collect`."""
        return self.enabled and self.thresholds[0] > 0


@dataclass(frozen=True)
class Metadata:
    """The metadata of a trace."""

    origin: Provenance = field(default_factory=Provenance)
    sites: tuple[Site, ...] = ()
    phases: tuple[str, ...] = ()
    """Names of the phases that marks start."""
    process: ProcessMemory = ProcessMemory()
    """Empty if there are `processes`: each of them has its own `memory`."""
    counts: tuple[PoolCount, ...] = ()
    """Of a recording with a clean start: statistics at its start and at its end."""
    processes: tuple[Process, ...] = ()
    """Empty for a trace of one process."""
    runtime: Runtime | None = None
    """Of a recording; None in older recordings."""
    thread_times: tuple[ThreadTimes, ...] = ()
    """Of an object program with threads, once it has run. Files do not have them."""
    visits: tuple[int, ...] = ()
    """The objects that each collection visited: of an object program, once it has run; of a recording with types, an
    estimate (`replay.trace.visits`), once it is simulated. Files do not have them."""
    types: tuple[ObjectType, ...] = ()
    """Two entries can be equal: a program can create the same class many times."""
    collector: Collector | None = None
    """Of a recording with types."""
    freeze_at: str | None = None
    """The phase at whose start `gc.freeze` is called, under other settings of the collector than the recorded ones."""

    @property
    def memory(self) -> ProcessMemory:
        """The sum over all processes."""
        if not self.processes:
            return self.process
        each = [process.memory for process in self.processes]
        return ProcessMemory(*(sum(getattr(one, field.name) for one in each) for field in fields(ProcessMemory)))
