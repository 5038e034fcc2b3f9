"""The capture files of memray, not the aggregated ones.

allocation  allocator, address, size, thread and Python stack; the innermost frame is the call site
free        allocator, address and thread
realloc     a free and, as the thread's next record, an allocation: paired again here
mmap        and munmap: left out, and counted with the bytes that mmap mapped. The models map the allocators' memory
            themselves; what a program or another allocator maps past malloc is missing from the trace
time        none of single records, but one of each memory snapshot, by default a hundred a second: records between two
            snapshots are spread evenly, those before the first or behind the last are at its time

What memray calls pymalloc_* went through one of CPython's three domains, and it does not say through which: all are
taken for obj. The rest went to the C library. A capture in which Python's allocators were not traced has the calls of
the C library only, so no small objects.

    header          the beginning of a capture, and which captures are read here
    allocator_types what memray's allocators are here, and their numbers in each version of the format
    records         the records behind it, by a kernel
    stacks          the stacks that they make
    line_tables     from an instruction of a code object to its line
    capture         these three together: a capture as calls
    library         captures of other versions, through a memray that reads them, if that is installed
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from replay.sources._logs.calls import Calls, paired
from replay.sources._logs.log_trace import Findings, LogTrace
from replay.sources.memray.header import LZ4_MAGIC, MAGIC, read_header

SUFFIXES = (".bin",)
_MAGIC_WITHIN = 64
"""In an LZ4 frame the magic stands, not yet compressed, behind the headers of frame and block."""


def sniff(head: bytes) -> bool:
    return head.startswith(MAGIC) or (head.startswith(LZ4_MAGIC) and MAGIC in head[:_MAGIC_WITHIN])


def open_trace(path: Path) -> LogTrace:
    """The events are read and validated by `batches`."""
    return LogTrace(path, "memray", partial(_read, lenient=False))


def open_lenient(path: Path) -> LogTrace:
    """The same; a capture that is cut short is read as far as it goes."""
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
