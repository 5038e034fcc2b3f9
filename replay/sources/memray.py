"""The capture files of memray; its own library, an extra of this package, reads them.

allocation  allocator, address, size, thread and Python stack; the innermost frame is the call site
free        allocator, address and thread
realloc     a free and, as the thread's next record, an allocation: paired again here
mmap        and munmap: counted and left out, for the models map memory themselves
time        none of single records: they are spread evenly between the first memory snapshot and the last

What memray calls pymalloc_* went through one of CPython's three domains, and it does not say through which: all are
taken for obj. The rest went to the C library. A capture in which Python's allocators were not traced has the calls of
the C library only, so no small objects.
"""

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from replay.calls import Calls, paired
from replay.compiled import entry
from replay.errors import TraceError
from replay.logs import CUT_SHORT, Findings, LogTrace
from replay.trace import NO_SITE, Domain, Op, Site

if TYPE_CHECKING:
    from memray import AllocationRecord, FileReader

SUFFIXES = (".bin",)
_MAGIC, _LZ4_MAGIC = b"memray\0", b"\x04\x22\x4d\x18"
_MAGIC_WITHIN = 64
"""In an LZ4 frame the magic stands, not yet compressed, behind the headers of frame and block."""
_ROWS = 1 << 16
_CHUNK = 512
"""Records that are Python objects at a time: few enough to stay in the processor's cache."""
_COLUMNS = ("tid", "address", "size", "allocator", "stack_id")
_GETTERS = tuple(map(attrgetter, _COLUMNS))
_UNSEEN = NO_SITE - 1
_MS = 10**6
_HEADER = struct.Struct("<7xi6xQ")
"""Magic, version, three fields of 6 bytes in all, records: in the header of `_KNOWN_VERSIONS`."""
_KNOWN_VERSIONS = (13,)

_FREE, _MALLOC, _CALLOC, _REALLOC = int(Op.FREE), int(Op.MALLOC), int(Op.CALLOC), int(Op.REALLOC)
_PYTHON, _LIBC, _MAPPING = int(Domain.OBJ), int(Domain.LIBC), 255
_ALLOCATORS = (
    (_MAPPING, _LIBC),
    (_FREE, _PYTHON), (_MALLOC, _PYTHON), (_CALLOC, _PYTHON), (_REALLOC, _PYTHON),
    (_FREE, _LIBC), (_MALLOC, _LIBC), (_REALLOC, _LIBC), (_CALLOC, _LIBC),
    (_MALLOC, _LIBC), (_MALLOC, _LIBC), (_MALLOC, _LIBC), (_MALLOC, _LIBC), (_MALLOC, _LIBC),
    (_MAPPING, _LIBC), (_MAPPING, _LIBC),
)  # fmt: skip
"""Op and domain by memray's `AllocatorType`, which begins with 1: pymalloc's free, malloc, calloc and realloc; free,
malloc, realloc, calloc; posix_memalign, aligned_alloc, memalign, valloc, pvalloc; mmap, munmap."""
_OPS, _DOMAINS = np.array(_ALLOCATORS, np.uint8).T.copy()


def sniff(head: bytes) -> bool:
    return head.startswith(_MAGIC) or (head.startswith(_LZ4_MAGIC) and _MAGIC in head[:_MAGIC_WITHIN])


def open_trace(path: Path) -> LogTrace:
    """The events are read and validated by `batches`."""
    return LogTrace(path, "memray", partial(_read, lenient=False))


def open_lenient(path: Path) -> LogTrace:
    """The same; a capture that is cut short is read as far as it goes."""
    return LogTrace(path, "memray", partial(_read, lenient=True))


def _read(path: Path, findings: Findings, lenient: bool) -> Iterator[Calls]:
    with _reading(path) as reader:
        total = _check_whole(path, reader, findings, lenient)
        _tell_origin(reader, findings)
        yield from paired(_Records(reader, findings, total).batches(), told=False)


@contextmanager
def _reading(path: Path) -> Iterator["FileReader"]:
    """The open capture; what memray finds wrong with it becomes one sentence."""
    try:
        import memray
    except ImportError:
        what = "is a capture of memray, whose library reads it: pip install 'alloc-replay[memray]'"
        raise TraceError(what, path=path) from None
    memray.set_log_level(logging.CRITICAL)  # type: ignore[attr-defined]  # its own lines are said in a sentence
    try:
        with memray.FileReader(path) as reader:
            yield reader
    except (OSError, RuntimeError) as error:
        reason = str(error).partition(": iostream")[0].rstrip(".")
        if "incompatible" in reason:
            what = (
                f"was written by another version of memray than {_version()}, which is installed here; install that one"
            )
        else:
            what = f"is no whole capture of memray ({reason})"
        raise TraceError(what, path=path) from None


def _version() -> str:
    from importlib.metadata import version

    return version("memray")


def _check_whole(path: Path, reader: "FileReader", findings: Findings, lenient: bool) -> int:
    """The number of records; refuses a capture without single records, and one that is cut short unless `lenient`."""
    metadata = reader.metadata
    if metadata.file_format.name != "ALL_ALLOCATIONS":
        what = "holds sums only, no single allocations; record it again without `memray run --aggregate`"
        raise TraceError(what, path=path)
    promised, total = _promised_records(path), int(metadata.total_allocations)
    if metadata.end_time.timestamp() > 0 and promised in (None, total):
        return total
    if not lenient:
        cut = f"it promises {promised:,} records and holds {total:,}" if promised else "its program did not end it"
        raise TraceError(f"is cut short: {cut}; `replay import --lenient` takes what there is", path=path)
    findings.origin[CUT_SHORT] = f"after {total:,} records"
    return total


def _promised_records(path: Path) -> int | None:
    """How many records the header says there are, 0 where the program did not get to say it; None if it is unknown."""
    import pyarrow as pa

    with path.open("rb") as file:
        compressed = file.read(len(_LZ4_MAGIC)) == _LZ4_MAGIC
    with pa.input_stream(str(path), compression="lz4" if compressed else None) as stream:
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    version, records = _HEADER.unpack(header)
    return records if version in _KNOWN_VERSIONS else None


def _tell_origin(reader: "FileReader", findings: Findings) -> None:
    metadata = reader.metadata
    traced = metadata.trace_python_allocators
    findings.origin |= {
        "command": metadata.command_line,
        "allocator": metadata.python_allocator,
        "traced allocators": "Python's and the C library's" if traced else "the C library's",
        "assumed time": "evenly from the first memory snapshot to the last",
        "assumed domain": "obj for all of Python's, else libc" if traced else "libc, small objects are not in it",
    }


class _Records:
    """Turns records into calls, a batch of columns at a time, and stacks into sites."""

    def __init__(self, reader: "FileReader", findings: Findings, total: int) -> None:
        self._reader, self._findings = reader, findings
        self._rows = 0
        self._total = max(total, 1)
        times = [snapshot.time for snapshot in reader.get_memory_snapshots()]
        self._begin_ns, self._span_ns = (times[0] * _MS, (times[-1] - times[0]) * _MS) if times else (0, 0)
        self._site_numbers: dict[Site, int] = {}
        self._stack_site = np.full(1024, _UNSEEN, np.uint32)
        self._stack_site[0] = NO_SITE

    def batches(self) -> Iterator[Calls]:
        records = iter(self._reader.get_allocation_records())
        columns, site = np.empty((len(_COLUMNS), _ROWS), np.uint64), np.empty(_ROWS, np.uint32)
        rows = _ROWS
        while rows == _ROWS:
            rows = self._fill(records, columns, site)
            yield self._calls(columns[:, :rows], site[:rows].copy())

    def _fill(self, records: Iterator["AllocationRecord"], columns: np.ndarray, site: np.ndarray) -> int:
        """Writes the next records into columns and sites; gives how many there were.

        The loop that decides the speed of all this: per record it does nothing in Python's bytecode.
        """
        rows = 0
        while rows < columns.shape[1]:
            chunk = list(islice(records, min(_CHUNK, columns.shape[1] - rows)))
            if not chunk:
                break
            end = rows + len(chunk)
            values = chain.from_iterable(map(get, chunk) for get in _GETTERS)
            packed = struct.pack(f"{len(_COLUMNS) * len(chunk)}Q", *values)
            columns[:, rows:end] = np.frombuffer(packed, np.uint64).reshape(len(_COLUMNS), -1)
            stacks = columns[-1, rows:end]
            while not _look_up_sites(stacks, self._stack_site, site[rows:end]):
                self._meet_stacks(stacks, chunk)
            rows = end
        return rows

    def _meet_stacks(self, stacks: np.ndarray, chunk: list["AllocationRecord"]) -> None:
        """Finds the sites of the stacks that are new in a chunk."""
        highest = int(stacks.max())
        if highest >= self._stack_site.shape[0]:
            grown = np.full(2 * highest, _UNSEEN, np.uint32)
            grown[: self._stack_site.shape[0]] = self._stack_site
            self._stack_site = grown
        for stack, record in zip(stacks.tolist(), chunk, strict=True):
            if self._stack_site[stack] == _UNSEEN:
                frames = record.stack_trace(max_stacks=1)
                self._stack_site[stack] = self._number(Site(*frames[0])) if frames else NO_SITE

    def _number(self, site: Site) -> int:
        if site not in self._site_numbers:
            self._site_numbers[site] = len(self._findings.sites)
            self._findings.sites.append(site)
        return self._site_numbers[site]

    def _calls(self, columns: np.ndarray, site: np.ndarray) -> Calls:
        thread, address, size, allocator, _ = columns
        op = _OPS[allocator]
        time_ns = self._begin_ns + (self._rows + np.arange(op.shape[0])) * self._span_ns // self._total
        self._rows += op.shape[0]
        calls = Calls(
            op, address.copy(), size.astype(np.int64), _DOMAINS[allocator], thread.astype(np.uint32), time_ns, site
        )
        mappings = op == _MAPPING
        if not mappings.any():
            return calls
        self._findings.counted["dropped mappings"] += int(np.count_nonzero(mappings))
        return calls.where(~mappings)


@entry
def _look_up_sites(stacks: np.ndarray, stack_site: np.ndarray, site: np.ndarray) -> bool:
    """Writes the site of each stack, in place; gives up, and False, at one that is not known."""
    for row in range(stacks.shape[0]):
        if stacks[row] >= stack_site.shape[0] or stack_site[stacks[row]] == _UNSEEN:
            return False
        site[row] = stack_site[stacks[row]]
    return True
