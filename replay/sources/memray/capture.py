"""Reads a capture of memray as calls. Reads its records twice: first to find the end and the times, then for the calls.

Kinds of records that the kernel of `records` does not handle are rare and are read here, one by one.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from replay.sources._logs.calls import Calls, spread_times
from replay.sources._logs.log_trace import Findings
from replay.sources.memray import records, stacks
from replay.sources.memray.header import Header, open_plain, readable_bytes
from replay.sources.memray.line_tables import LineTable
from replay.support.errors import TraceError
from replay.trace import NO_SITE, Provenance, Site

_ROWS = 1 << 16
_PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16
"""Size of memray's LZ4 blocks. An incomplete block cannot be read at all."""
_MOST_BYTES_OF_ONE = 1 << 28
"""Maximum length of a record; those of code objects are the longest."""
_MS = 10**6
AGGREGATED = "has only sums, no single allocations; record it again without `memray run --aggregate`"
DAMAGED_TIMES = "is not a complete capture of memray (times of its snapshots are damaged)"
TIMES_MAX_MS = (1 << 63) // 10**6
"""Times in ns must fit into 63 bits."""
ASSUMED_TIME = "evenly between the memory snapshots"


def read_capture(path: Path, header: Header, findings: Findings, lenient: bool) -> Iterator[Calls]:
    """Yields the calls of a capture with this header, with times and sites."""
    if header.aggregated:
        raise TraceError(AGGREGATED, path=path)
    survey = _survey(path, header)
    cut = explain_cut(header.end_ms, header.records, survey.records)
    if cut and not lenient:
        raise TraceError(incomplete(cut), path=path)
    findings.origin = replace(
        origin(header.command, header.allocator, header.python_traced),
        cut_short=f"after {survey.records:,} records" if cut else None,
    )
    yield from _follow(path, header, findings, survey)


def origin(command: str, allocator: str, python_traced: bool) -> Provenance:
    """Returns the origin of a capture, with assumptions."""
    return Provenance(
        command=command,
        allocator=allocator,
        traced_allocators="Python's and the C library's" if python_traced else "the C library's",
        assumed_time=ASSUMED_TIME,
        assumed_domain="obj for all of Python's, else libc" if python_traced else "libc, small objects are not in it",
    )


def explain_cut(end_ms: float, promised: int | None, total: int) -> str:
    """Returns why a capture is incomplete; empty if it is complete. `promised` is None if unknown."""
    if end_ms > 0 and promised in (None, total):
        return ""
    return f"it should have {promised:,} records and has {total:,}" if promised else "the program did not end it"


def incomplete(cut: str) -> str:
    """Returns the error message for a capture that is cut short."""
    return f"is incomplete: {cut}; `replay import --lenient` reads the complete part"


class _Survey(NamedTuple):
    """The result of reading all records."""

    records: int
    mappings: int
    """Number of calls of mmap and munmap."""
    mapped_bytes: int
    stamp_rows: np.ndarray
    """The row after each memory snapshot. The first is 0, and one is after the last row."""
    stamp_ns: np.ndarray


def _survey(path: Path, header: Header) -> _Survey:
    reader = _Reader(path, header)
    rows = sum(columns.op.shape[0] for columns in reader.batches())
    stamps = reader.stamps or [(0, header.start_ms)]
    if not all(0 <= ms < TIMES_MAX_MS for _, ms in stamps):
        raise TraceError(DAMAGED_TIMES, path=path)
    row, ms = (np.array(column, np.int64) for column in zip(*stamps, strict=True))
    stamp_ns = np.maximum.accumulate(ms) * _MS
    tally = reader.state.tallies[0]
    return _Survey(
        int(tally.records), int(tally.mappings), int(tally.mapped_bytes),
        np.concatenate([[0], row, [rows]]), np.concatenate([stamp_ns[:1], stamp_ns, stamp_ns[-1:]]),
    )  # fmt: skip


def _follow(path: Path, header: Header, findings: Findings, survey: _Survey) -> Iterator[Calls]:
    reader, sites = _Reader(path, header), _Sites(header, findings)
    findings.dropped_mappings += survey.mappings
    findings.dropped_mapping_bytes += survey.mapped_bytes
    first = 0
    for op, address, size, domain, thread, used in reader.batches():
        sites.update(reader)
        time_ns = spread_times(op.shape[0], survey.stamp_rows, survey.stamp_ns, first)
        first += op.shape[0]
        yield Calls(op, address.view(np.uint64), size, domain, thread, time_ns, sites.of(used))


class _Code(NamedTuple):
    """A code object."""

    function: str
    file: str
    first_line: int
    table: bytes


class _Reader:
    """Reads the complete records of a capture."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._header = path, header
        self.state = stacks.new_state()
        self.stamps: list[tuple[int, int]] = []
        """For each memory snapshot: number of rows before it, and its time in ms."""
        self.code: dict[int, _Code] = {}
        self._last_first_line = 0
        self._rows = 0

    def batches(self) -> Iterator[records.Columns]:
        """Yields batches of rows, each in new columns."""
        with open_plain(self._path) as stream:
            bytes_ = _Bytes(stream, self._header.length, readable_bytes(self._path))
            more = True
            while more:
                columns = records.new_columns(_ROWS)
                more, rows = self._fill(bytes_, columns)
                self._rows += rows
                yield records.Columns(*(column[:rows] for column in columns))

    def _fill(self, bytes_: "_Bytes", columns: records.Columns) -> tuple[bool, int]:
        """Reads until the columns are full or the capture ends; returns whether more records can follow, and the
        rows."""
        row = 0
        while True:
            start_end = bytes_.end if bytes_.at_end else bytes_.end - records.RECORD_BYTES_MAX
            why, bytes_.at, row = records.read_records(
                bytes_.data, bytes_.at, start_end, bytes_.end, self._header.native, columns, row, self.state
            )
            if why == records.GROW:
                self.state = stacks.grown(self.state)
            elif why == records.OTHER:
                if not self._read_other(bytes_, row):
                    return False, row
            elif why != records.FILLED:
                return False, row
            elif row == columns.op.shape[0]:
                return True, row
            elif not bytes_.fetch():
                return False, row

    def _read_other(self, bytes_: "_Bytes", row: int) -> bool:
        """Reads a record that the kernel does not handle; returns False if it is incomplete."""
        while True:
            fields = _Fields(bytes_)
            try:
                self._read_record(fields, row)
            except IndexError:
                if not bytes_.fetch():
                    return False
            else:
                bytes_.at = fields.at
                return True

    def _read_record(self, fields: "_Fields", row: int) -> None:
        """Reads one record. Raises IndexError, before any change, if it ends after the bytes in memory."""
        kind = fields.skip(1)[0]
        if kind == records.MEMORY:
            _, ms = fields.number(), fields.number()
            self.stamps.append((self._rows + row, self._header.start_ms + ms))
        elif kind == records.CODE:
            number, function, file = fields.number(), fields.text(), fields.text()
            first_line = self._last_first_line + fields.signed()
            self.code[number] = _Code(function, file, first_line, fields.skip(fields.number()))
            self._last_first_line = first_line
        elif kind == records.MAPPED_FILE:
            fields.text()
            fields.number()
            fields.skip(8)
        else:
            fields.text()


class _Bytes:
    """The bytes of the records. `data` and `raw` have the bytes from `at` to `end`."""

    def __init__(self, stream: IO[bytes], header_bytes: int, readable: int | None) -> None:
        stream.read(header_bytes)
        self._stream = stream
        self._left = None if readable is None else readable - header_bytes
        self.at = self.end = 0
        self.at_end = False
        """Whether the file ends at `end`."""
        self._set_bytes(b"")

    def fetch(self) -> bool:
        """Reads more bytes into memory and moves those that remain; returns False at the end of the file."""
        if self.at_end:
            return False
        remaining = self.raw[self.at : self.end]
        fresh = self._read(max(_PIECE_BYTES, len(remaining)))
        self.at_end = not fresh or len(remaining) > _MOST_BYTES_OF_ONE
        self._set_bytes(remaining + fresh)
        return True

    def _read(self, length: int) -> bytes:
        """Returns the next bytes; fewer, then none, if a compressed file is incomplete or damaged."""
        if self._left is not None:
            length = min(length, self._left)
        fresh = bytearray()
        try:
            while len(fresh) < length and (part := self._stream.read(min(_BLOCK_BYTES, length - len(fresh)))):
                fresh += part
        except (OSError, ValueError):  # pyarrow raises both
            pass
        if self._left is not None:
            self._left -= len(fresh)
        return bytes(fresh)

    def _set_bytes(self, content: bytes) -> None:
        self.at, self.end = 0, len(content)
        self.raw = content + bytes(records.RECORD_BYTES_MAX)
        self.data = np.frombuffer(self.raw, np.uint8)


class _Fields:
    """Reads fields from the bytes in memory without removing them. Raises IndexError at their end."""

    def __init__(self, bytes_: _Bytes) -> None:
        self._raw, self._end, self.at = bytes_.raw, bytes_.end, bytes_.at

    def skip(self, length: int) -> bytes:
        """Returns the next `length` bytes."""
        start, self.at = self.at, self.at + length
        if self.at > self._end:
            raise IndexError(length)
        return self._raw[start : self.at]

    def number(self) -> int:
        value = shift = 0
        while (byte := self.skip(1)[0]) & 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

    def signed(self) -> int:
        value = self.number()
        return value >> 1 ^ -(value & 1)

    def text(self) -> str:
        """Returns the text up to the next zero byte, which is skipped."""
        zero = self._raw.find(0, self.at, self._end)
        if zero < 0:
            raise IndexError(self.at)
        text = self._raw[self.at : zero].decode(errors="replace")
        self.at = zero + 1
        return text


class _Sites:
    """Converts frames that allocate to sites, in the order of their first allocations."""

    def __init__(self, header: Header, findings: Findings) -> None:
        self._python_version, self._findings = header.python_version, findings
        self._numbers: dict[Site, int] = {}
        self._tables: dict[_Code, LineTable] = {}
        self._frames = 0
        self._site_of = np.zeros(0, np.uint32)

    def update(self, reader: _Reader) -> None:
        """Adds the frames that the reader found since the last call."""
        fresh = [
            self._number(reader.code.get(code), offset)
            for code, offset in stacks.used_frames(reader.state, self._frames)
        ]
        self._frames += len(fresh)
        self._site_of = np.concatenate([self._site_of, np.array(fresh, np.uint32)])

    def of(self, used: np.ndarray) -> np.ndarray:
        """Returns the site of each row."""
        site = np.full(used.shape[0], NO_SITE, np.uint32)
        known = used != NO_SITE
        site[known] = self._site_of[used[known]]
        return site

    def _number(self, code: _Code | None, offset: int) -> int:
        site = Site("", "", 0) if code is None else Site(code.function, code.file, self._line(code, offset))
        if site not in self._numbers:
            self._numbers[site] = len(self._findings.sites)
            self._findings.sites.append(site)
        return self._numbers[site]

    def _line(self, code: _Code, offset: int) -> int:
        if code not in self._tables:
            self._tables[code] = LineTable(code.table, code.first_line, self._python_version)
        return self._tables[code].line(offset)
