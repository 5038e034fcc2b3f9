"""The trace: all requests of a program to its allocators, as events. Where the allocators put blocks is not part of it.

A trace is read and written in batches; no function here needs all of it in memory. One batch is an `Events`: columns of
equal length, one row an event, in the order of execution. `columns` declares the columns.

Block numbers. A malloc, calloc or memalign takes a number for its block, free releases it, realloc keeps it. All
writers number blocks by one rule, so that equal histories are equal files: a new block takes the number that was
released last, or the lowest unused one. Numbers therefore stay below the peak of live blocks, and tables indexed by
block are proportional to it. `block_numbering` does this for sources that know only
addresses. Readers accept any dense numbering in which no two live blocks have the same number. `validation` checks
this, and kernels rely on it.

Modules of this package import these names from each other; all other code imports them from here.
"""

from replay.trace.block_numbering import NUMBERS, release_number, take_number
from replay.trace.columns import COLUMNS, NO_ALIGNMENT, NO_SITE, NO_TYPE, OPTIONAL, REQUIRED, Column, Domain, Op
from replay.trace.digest import Digest, trace_digest
from replay.trace.events import Events, joined
from replay.trace.metadata import (
    FORK_MARK,
    FORMAT_VERSION,
    TEARDOWN_MARK,
    TRIM_MARK,
    ClassCount,
    Collector,
    Metadata,
    ObjectType,
    PoolCount,
    Process,
    ProcessMemory,
    ResidentMemory,
    Runtime,
    Site,
)
from replay.trace.provenance import CLEAN_START, Provenance
from replay.trace.traces import MemoryTrace, Trace

__all__ = [
    "CLEAN_START",
    "COLUMNS",
    "FORK_MARK",
    "FORMAT_VERSION",
    "NO_ALIGNMENT",
    "NO_SITE",
    "NO_TYPE",
    "NUMBERS",
    "OPTIONAL",
    "REQUIRED",
    "TEARDOWN_MARK",
    "TRIM_MARK",
    "ClassCount",
    "Collector",
    "Column",
    "Digest",
    "Domain",
    "Events",
    "MemoryTrace",
    "Metadata",
    "ObjectType",
    "Op",
    "PoolCount",
    "Process",
    "ProcessMemory",
    "Provenance",
    "ResidentMemory",
    "Runtime",
    "Site",
    "Trace",
    "joined",
    "release_number",
    "take_number",
    "trace_digest",
]
