"""The trace: what a program requested of its allocators, event by event, and nothing of what they returned.

A trace is read and written in batches; no function here needs the whole of it. One batch is an `Events`: columns of
equal length, one row an event, in the order in which they happened. `columns` declares the columns.

Block numbers. A malloc, calloc or memalign takes a number for its block, free releases it, realloc keeps it. Every
writer numbers blocks by one rule, so that the same history always gives the same file: a new block takes the number
that was released last, or the lowest one never used. Numbers therefore stay below the highest count of live blocks, and
tables indexed by them are proportional to what is live. `block_numbering` does this for sources that know only
addresses. A reader accepts any numbering that is dense and never gives two live blocks the same number: `validation`
checks this, and kernels rely on it.

Modules of this package import these names from each other; all other code imports them from here.
"""

from replay.trace.block_numbering import NUMBERS, release_number, take_number
from replay.trace.columns import COLUMNS, NO_ALIGNMENT, NO_SITE, OPTIONAL, REQUIRED, Column, Domain, Op
from replay.trace.digest import Digest, trace_digest
from replay.trace.events import Events, joined
from replay.trace.metadata import (
    FORMAT_VERSION,
    TEARDOWN_MARK,
    TRIM_MARK,
    ClassCount,
    Metadata,
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
    "FORMAT_VERSION",
    "NO_ALIGNMENT",
    "NO_SITE",
    "NUMBERS",
    "OPTIONAL",
    "REQUIRED",
    "TEARDOWN_MARK",
    "TRIM_MARK",
    "ClassCount",
    "Column",
    "Digest",
    "Domain",
    "Events",
    "MemoryTrace",
    "Metadata",
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
