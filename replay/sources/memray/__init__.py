"""The capture files of memray, except aggregated ones.

allocation  allocator, address, size, thread and Python stack; the innermost frame is the call site
free        allocator, address and thread
realloc     a free and, as the thread's next record, an allocation; paired again here
mmap        and munmap: left out, but counted, with the bytes that mmap mapped. The models map the allocators' memory
            themselves; other mappings of the program are missing in the trace
time        records have no times, but memory snapshots have, by default a hundred per second. Records between two
            snapshots are spread evenly; those before the first or after the last have its time

memray's pymalloc_* are calls of one of CPython's three domains. The capture does not have the domain, so obj is
assumed. All other calls went to the C library. Without `--trace-python-allocators`, a capture has only calls of the C
library, so no small objects.

    header          the beginning of a capture
    allocator_types memray's allocators as ops and domains, and their numbers in each version of the format
    records         reads records with a kernel
    stacks          the Python stacks of threads
    line_tables     lines of instructions
    capture         combines these: reads a capture as calls
    library         reads captures of other versions with memray's library, if it is installed
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from replay.sources._logs.calls import Calls, paired
from replay.sources._logs.log_trace import Findings, LogTrace
from replay.sources.memray.header import LZ4_MAGIC, MAGIC, read_header

SUFFIXES = (".bin",)
_MAGIC_WITHIN = 64
"""Maximum position of the magic. In an LZ4 frame it is uncompressed, after the headers of frame and block."""


def sniff(head: bytes) -> bool:
    return head.startswith(MAGIC) or (head.startswith(LZ4_MAGIC) and MAGIC in head[:_MAGIC_WITHIN])


def open_trace(path: Path) -> LogTrace:
    """Returns the trace. `batches` reads and validates the events."""
    return LogTrace(path, "memray", partial(_read, lenient=False))


def open_lenient(path: Path) -> LogTrace:
    """The same, but accepts a truncated capture and reads its complete part."""
    return LogTrace(path, "memray", partial(_read, lenient=True))


def _read(path: Path, findings: Findings, lenient: bool) -> Iterator[Calls]:
    from replay.sources.memray.capture import read_capture
    from replay.sources.memray.library import read_by_library

    header = read_header(path)
    if header is None:
        calls = read_by_library(path, findings, lenient)
    else:
        calls = read_capture(path, header, findings, lenient)
    yield from paired(calls, has_moves=False)
