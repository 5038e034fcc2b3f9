"""What a trace says about itself: its origin, call sites, phases, and the memory and threads of its processes."""

from dataclasses import dataclass, field, fields
from typing import NamedTuple

FORMAT_VERSION = 2
"""Of traces of several processes; others are of version 1, which has no table of them."""


class Site(NamedTuple):
    """A place in the program that allocates."""

    function: str
    file: str
    line: int


TRIM_MARK = "malloc_trim"
"""A mark of this name is a call of malloc_trim(0)."""


START, CLEAN_START = "start", "clean"
"""In `Metadata.origin` of a recording: how it began; with every pool of pymalloc full."""
OLDER_FREES, OLDER_REALLOCS, UNSEEN_FREES = "foreign_frees", "foreign_reallocs", "unseen_frees"
"""In the same: how many blocks were freed or reallocated that were born before, and freed past the recorder."""
LEFT_OUT = "left_out_calls"
"""In the same: how many calls were left out, of threads that were not meant; not there if none was."""
SITES_OF = "sites"
"""In the same, where call sites were recorded: of which calls."""
RECORDED = (START, OLDER_FREES, OLDER_REALLOCS, UNSEEN_FREES, LEFT_OUT)
DROPPED_COLUMNS = "dropped columns"
"""In `Metadata.origin` of a trace read leniently: the names of unknown columns that were left out."""
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

    @property
    def memory(self) -> ProcessMemory:
        """Of all processes together."""
        if not self.processes:
            return self.process
        each = [process.memory for process in self.processes]
        return ProcessMemory(*(sum(getattr(one, field.name) for one in each) for field in fields(ProcessMemory)))
