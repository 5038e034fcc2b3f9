"""Reads captures with memray's own library, for versions of the format that `header` does not support.

Each release of memray reads one version of the format, and its enum has the allocators' numbers of that version. The
library creates a Python object for each record. It does not return the positions of memory snapshots, so times are
spread evenly from the first snapshot to the last.
"""

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from replay.jit.arrays import with_room
from replay.jit.compiling import entry
from replay.sources._logs.calls import Calls
from replay.sources._logs.log_trace import Findings
from replay.sources.memray.allocator_types import MMAP, MUNMAP, UNKNOWN, call_tables
from replay.sources.memray.capture import AGGREGATED, DAMAGED_TIMES, TIMES_MAX_MS, explain_cut, incomplete, origin
from replay.sources.memray.header import read_ending, read_format_version
from replay.support.errors import TraceError
from replay.trace import NO_SITE, Site

if TYPE_CHECKING:
    from memray import AllocationRecord, FileReader, Metadata

_ROWS = 1 << 16
_CHUNK = 512
"""Number of records that are Python objects at the same time; they fit into the processor's cache."""
_COLUMNS = ("tid", "address", "size", "allocator", "stack_id")
_GETTERS = tuple(map(attrgetter, _COLUMNS))
_UNSEEN = NO_SITE - 1
_FORMAT_OF_1_11_TO_1_18 = 11
"""The oldest supported format. Libraries for older ones do not return the traced allocators."""
_MS = 10**6


def read_by_library(path: Path, findings: Findings, lenient: bool) -> Iterator[Calls]:
    """Yields the calls of a capture, with times and sites."""
    with _reading(path) as reader:
        metadata = _metadata(path, reader)
        if not hasattr(metadata, "file_format"):  # memray 1.11 and older do not return whether a capture is aggregated
            raise TraceError(_refusal(read_format_version(path), _installed()), path=path)
        if metadata.file_format.name != "ALL_ALLOCATIONS":
            raise TraceError(AGGREGATED, path=path)
        total = int(metadata.total_allocations)
        end_ms, promised = _ending(path, metadata)
        cut = explain_cut(end_ms, promised, total)
        if cut and not lenient:
            raise TraceError(incomplete(cut), path=path)
        findings.origin = replace(
            origin(metadata.command_line, metadata.python_allocator, metadata.trace_python_allocators),
            cut_short=f"after {total:,} records" if cut else None,
            assumed_time="evenly from the first memory snapshot to the last",
        )
        yield from _Records(path, reader, findings, total).batches()


@contextmanager
def _reading(path: Path) -> Iterator["FileReader"]:
    """Yields the open capture. Converts memray's errors to one sentence."""
    try:
        import memray
    except ImportError:
        raise TraceError(_refusal(read_format_version(path), None), path=path) from None
    memray.set_log_level(logging.CRITICAL)  # type: ignore[attr-defined]  # its own lines are said in a sentence
    try:
        with memray.FileReader(path) as reader:
            yield reader
    except (OSError, RuntimeError) as error:
        reason = str(error).partition(": iostream")[0].rstrip(".")
        if "incompatible" in reason:
            message = _refusal(read_format_version(path), _installed())
        else:
            message = f"is not a complete capture of memray ({reason})"
        raise TraceError(message, path=path) from None


def _metadata(path: Path, reader: "FileReader") -> "Metadata":
    """Returns the metadata. The library does not check the values in a damaged header."""
    try:
        return reader.metadata
    except (ValueError, OverflowError, KeyError) as error:
        raise TraceError(f"is not a complete capture of memray (its header is damaged: {error})", path=path) from None


def _ending(path: Path, metadata: "Metadata") -> tuple[float, int | None]:
    """Returns the time of the capture's end, 0 if the program did not end it, and the number of records if known.

    The library replaces the number by its own count, and before memray 1.19 the time by that of the last snapshot.
    """
    if read_format_version(path) == _FORMAT_OF_1_11_TO_1_18:
        return read_ending(path)
    return metadata.end_time.timestamp(), None


def _refusal(format_version: int, installed: str | None) -> str:
    """Returns why the installed memray cannot read a capture, and what to do."""
    installation = f"memray {installed} is installed" if installed else "memray is not installed"
    if format_version < _FORMAT_OF_1_11_TO_1_18:
        return (
            f"is a memray capture in format version {format_version} (memray 1.10 or older), which is not supported; "
            "record it again with a newer memray"
        )
    if format_version == _FORMAT_OF_1_11_TO_1_18:
        return (
            f"is a memray capture in format version {format_version} (memray 1.11 to 1.18), which only memray 1.12 to "
            f"1.18 can read; {installation}: pip install 'memray>=1.12,<1.19'"
        )
    advice = "install the memray that recorded it" if installed else "pip install 'alloc-replay[memray]'"
    message = f"is a memray capture in format version {format_version}, which only its library can read"
    return f"{message}; {installation}: {advice}"


def _installed() -> str:
    from importlib.metadata import version

    return version("memray")


class _Records:
    """Converts records to calls, one batch of columns at a time, and stacks to sites."""

    def __init__(self, path: Path, reader: "FileReader", findings: Findings, total: int) -> None:
        from memray import AllocatorType

        self._path, self._reader, self._findings = path, reader, findings
        self._ops, self._domains = call_tables({member.name: member.value for member in AllocatorType})
        self._rows = 0
        self._total = max(total, 1)
        times = [snapshot.time for snapshot in reader.get_memory_snapshots()]
        if times and not 0 <= times[0] <= times[-1] < TIMES_MAX_MS:
            raise TraceError(DAMAGED_TIMES, path=path)
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
        """Writes the next records into columns and sites; returns their number.

        This loop decides the speed of the reader: it executes no Python bytecode per record.
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
            while not _write_sites(stacks, self._stack_site, site[rows:end]):
                self._add_stacks(stacks, chunk)
            rows = end
        return rows

    def _add_stacks(self, stacks: np.ndarray, chunk: list["AllocationRecord"]) -> None:
        """Adds the sites of the stacks that are new in a chunk."""
        highest = int(stacks.max())
        self._stack_site = with_room(self._stack_site, highest + 1, fill=_UNSEEN)
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
        op = self._ops[allocator]
        if (op == UNKNOWN).any():
            number = allocator[np.argmax(op == UNKNOWN)]
            message = f"has calls of memray's allocator {number}, which is unknown to this version of replay"
            raise TraceError(message, path=self._path)
        rows = self._rows + np.arange(op.shape[0])
        step_ns, rest_ns = divmod(self._span_ns, self._total)  # rows * span_ns can exceed 63 bits
        time_ns = self._begin_ns + rows * step_ns + rows * rest_ns // self._total
        self._rows += op.shape[0]
        calls = Calls(
            op, address.copy(), size.astype(np.int64), self._domains[allocator], thread.astype(np.uint32), time_ns, site
        )
        mapped, unmapped = op == MMAP, op == MUNMAP
        self._findings.dropped_mappings += int(np.count_nonzero(mapped | unmapped))
        self._findings.dropped_mapping_bytes += int(calls.size[mapped].sum())
        return calls.where(~(mapped | unmapped))


@entry
def _write_sites(stacks: np.ndarray, stack_site: np.ndarray, site: np.ndarray) -> bool:
    """Writes the site of each stack in place. Stops and returns False at an unknown stack."""
    for row in range(stacks.shape[0]):
        if stacks[row] >= stack_site.shape[0] or stack_site[stacks[row]] == _UNSEEN:
            return False
        site[row] = stack_site[stacks[row]]
    return True
