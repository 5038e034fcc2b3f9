"""The data files of heaptrack, format versions 0 to 3, plain or compressed. Each line is a record; numbers are
hexadecimal.

    v PROGRAM FORMAT                   versions; the first line
    s LENGTH TEXT                      a string (before version 3: `s TEXT`); strings, code and stacks count from 1
    i ADDRESS MODULE FUNCTION FILE LINE …   code with its names; further fields are callers that were inlined
    t CODE PARENT                      a stack: code (an address in a raw file) and the stack that called it
    a SIZE STACK                       a kind of allocation; kinds count from 0
    + KIND, - KIND                     an allocation and a free of that kind, in an interpreted file
    + SIZE STACK ADDRESS, - ADDRESS    the same in a raw file, which has no `i` and `a`, so no call sites
    c MILLISECONDS                     a time stamp, some hundred a second
    X x m I R A S #                    command, modules, machine, resident pages, suppressions: ignored

Events between two stamps are spread evenly. The file has no threads and does not distinguish malloc and calloc. A
realloc is a free and an allocation. An interpreted file does not have the block that is freed: the youngest of its kind
is assumed.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from replay.jit.arrays import DONE, record, with_room
from replay.jit.compiling import entry, inlined, leaf
from replay.sources._logs.calls import Calls, joined, libc_calls, spread_times
from replay.sources._logs.lines import (
    HEAD_BYTES,
    TOO_LARGE,
    UNKNOWN,
    Piece,
    check_lines,
    line_end,
    plain_head,
    read_number,
    read_pieces,
)
from replay.sources._logs.log_trace import Findings, LogTrace, open_lines
from replay.support.errors import TraceError
from replay.support.limits import MAX_SIZE
from replay.trace import NO_SITE, NUMBERS, Op, Provenance, Site, release_number, take_number

_NAME = "a heaptrack file"
SUFFIXES = (".heaptrack",)
_VERSIONS = re.compile(rb"v ([0-9a-f]+)(?: ([0-9a-f]+))?[^\n]*\n")
_NEWEST_FORMAT, _SIZED_STRINGS = 3, 3
_FORMAT_1_CALLED_ITSELF = 0x10200
"""heaptrack of this version wrote format 1 without a version number."""
_FIELDS = 5
_PENDING_MAX = 1 << 20
"""Maximum number of calls that wait for a time stamp."""
_MS = 10**6
_UNKNOWN_SITE, _CALLER = -1, -2
"""Special sites: unknown; the code is a wrapper, so the caller counts."""
_STANDS_FOR_CALLER = ("operator new(", "operator new[](")
_MALLOC, _FREE = int(Op.MALLOC), int(Op.FREE)
_STACK, _ALLOCATIONS, _CODE, _TIME, _MADE, _FREED = (ord(sign) for sign in "taic+-")
"""The signs of the lines that have nothing but numbers."""
_TOTALS = record("calls", "unknown", "kinds", "stacks", "stamps")
"""Counts: `calls` and `stamps` of a piece, the others of the file so far."""
_KIND = record("bytes", "stack", "youngest")
"""Allocations of one size and stack. `youngest`: the number of the latest live one, counted from 1."""
_STAMP = record("row", "ms")


def sniff(head: bytes) -> bool:
    return _VERSIONS.match(plain_head(head)) is not None


def open_trace(path: Path) -> LogTrace:
    """Returns the trace. Reads only the first line; `batches` reads and validates the events."""
    return _open(path, lenient=False)


def open_lenient(path: Path) -> LogTrace:
    """The same, but skips and counts unknown lines."""
    return _open(path, lenient=True)


def _open(path: Path, lenient: bool) -> LogTrace:
    with path.open("rb") as file:
        head = plain_head(file.read(HEAD_BYTES))
    versions = _VERSIONS.match(head)
    if versions is None:
        raise TraceError("line 1: must have the versions of heaptrack: `v PROGRAM FORMAT`", path=path)
    program = int(versions[1], 16)
    format_ = int(versions[2], 16) if versions[2] else int(program == _FORMAT_1_CALLED_ITSELF)
    if format_ > _NEWEST_FORMAT:
        message = f"has heaptrack's file format {format_}; this version of replay reads up to {_NEWEST_FORMAT}"
        raise TraceError(f"{message}: get a newer one", path=path)
    raw = b"\nx " in head
    read = partial(_read, sized=format_ >= _SIZED_STRINGS, raw=raw)
    return open_lines(path, "heaptrack", read, lenient=lenient, addresses=raw)


def _read(path: Path, findings: Findings, *, sized: bool, raw: bool, lenient: bool) -> Iterator[Calls]:
    findings.origin = Provenance(
        assumed_time="evenly between stamps",
        assumed_thread="0",
        assumed_domain="libc",
        assumed_reallocs="a free and a malloc",
        assumed_frees=None if raw else "of the youngest block with that size and stack",
    )
    clock, log = _Clock(), _Log(path, findings, sized, lenient)
    for piece in read_pieces(path):
        yield clock.stamped(*log.parse(piece))
    yield clock.rest()


class _Clock:
    """Keeps calls until the next time stamp, and spreads them evenly."""

    def __init__(self) -> None:
        self._now_ns = 0
        self._held: Calls | None = None

    def stamped(self, calls: Calls, stamps: np.ndarray) -> Calls:
        """Returns the calls up to the last stamp, with times. `stamps` have the type _STAMP."""
        if self._held is not None:
            stamps["row"] += self._held.op.shape[0]
            calls = joined(self._held, calls)
        rows = calls.op.shape[0]
        stamp_rows = np.concatenate([[0], stamps["row"]])
        stamp_ns = np.maximum.accumulate(np.concatenate([[self._now_ns], stamps["ms"] * _MS]))
        end = int(stamp_rows[-1]) if rows - stamp_rows[-1] <= _PENDING_MAX else rows
        if end == rows:
            stamp_rows, stamp_ns = np.append(stamp_rows, rows), np.append(stamp_ns, stamp_ns[-1])
        self._now_ns, self._held = int(stamp_ns[-1]), calls.where(slice(end, None))
        return calls.where(slice(0, end))._replace(time_ns=spread_times(end, stamp_rows, stamp_ns))

    def rest(self) -> Calls:
        """Returns the calls after the last stamp, with the time of that stamp."""
        assert self._held is not None
        return self._held._replace(time_ns=np.full(self._held.op.shape[0], self._now_ns))


class _Log:
    """Converts pieces of the file to calls, code addresses to sites, and kinds of allocations to blocks."""

    def __init__(self, path: Path, findings: Findings, sized: bool, lenient: bool) -> None:
        self._path, self._findings, self._sized, self._lenient = path, findings, sized, lenient
        self._strings: list[str] = []
        self._site_numbers: dict[Site, int] = {}
        self._code_site = np.zeros(0, np.int64)
        self._stack_site = np.zeros(0, np.int64)
        self._kinds = np.zeros(0, _KIND)
        self._below = np.zeros(0, np.int64)
        self._free_numbers = np.zeros(0, np.int64)
        self._counts = np.zeros(1, NUMBERS)
        self._totals = np.zeros(1, _TOTALS)

    def parse(self, piece: Piece) -> tuple[Calls, np.ndarray]:
        """Returns the calls of a piece, and its time stamps: the row that follows, and milliseconds."""
        lines = int(np.count_nonzero(piece.text == ord("\n")))
        sign, defined, start = np.zeros(lines, np.uint8), np.zeros(lines, np.uint8), np.zeros(lines, np.int64)
        fields = np.zeros((lines, _FIELDS), np.int64)
        status, line = _split_lines(piece.text, self._lenient, sign, defined, start, fields)
        if status != DONE:
            check_lines(status, self._path, piece, int(start[line]), _NAME)
        self._add_strings(piece, start[sign == ord("s")])
        self._add_code(fields[sign == ord("i")])
        self._reserve(sign)
        op, key, size = np.empty(lines, np.uint8), np.empty(lines, np.int64), np.empty(lines, np.int64)
        site, stamps = np.empty(lines, np.uint32), np.empty(lines, _STAMP)
        totals = self._totals[0]
        totals.calls = totals.stamps = 0
        status, line = _follow_lines(
            sign, defined, fields, self._lenient, (op, key, size, site), stamps, self._code_site, self._stack_site,
            self._kinds, self._below, self._free_numbers, self._counts, self._totals,
        )  # fmt: skip
        if status != DONE:
            check_lines(status, self._path, piece, int(start[line]), _NAME)
        self._findings.dropped_lines = int(totals.unknown)
        rows = int(totals.calls)
        calls = libc_calls(op[:rows], key[:rows], size[:rows], site=site[:rows])
        return calls, stamps[: totals.stamps].copy()

    def _add_strings(self, piece: Piece, starts: np.ndarray) -> None:
        text = piece.text.tobytes()
        for start in starts.tolist():
            line = text[start + 2 : text.index(b"\n", start)].decode("utf-8", errors="replace")
            self._strings.append(line.partition(" ")[2] if self._sized else line)

    def _string(self, number: int) -> str:
        """Returns a string. Numbers count from 1; 0 is no string."""
        return self._strings[number - 1] if 0 < number <= len(self._strings) else ""

    def _add_code(self, fields: np.ndarray) -> None:
        """Adds the sites of new code addresses: function, file and line, or else address and module."""
        known = self._code_site.shape[0]
        self._code_site = np.append(self._code_site, np.zeros(len(fields), np.int64))
        for index, (address, module, function, file, line) in enumerate(fields.tolist(), known):
            name = self._string(function)
            if name.startswith(_STANDS_FOR_CALLER):
                self._code_site[index] = _CALLER
                continue
            site = Site(name or f"{address:#x}", self._string(file) or self._string(module), line)
            if site not in self._site_numbers:
                self._site_numbers[site] = len(self._findings.sites)
                self._findings.sites.append(site)
            self._code_site[index] = self._site_numbers[site]

    def _reserve(self, sign: np.ndarray) -> None:
        """Enlarges tables for the definitions in lines with these signs."""
        totals = self._totals[0]
        self._stack_site = with_room(self._stack_site, totals.stacks + np.count_nonzero(sign == ord("t")))
        self._kinds = with_room(self._kinds, totals.kinds + np.count_nonzero(sign == ord("a")))
        numbers = self._counts[0].used + np.count_nonzero(sign == ord("+"))
        self._below, self._free_numbers = with_room(self._below, numbers), with_room(self._free_numbers, numbers)


@entry
def _split_lines(
    text: np.ndarray, lenient: bool, sign: np.ndarray, defined: np.ndarray, start: np.ndarray, fields: np.ndarray
) -> tuple[int, int]:
    """Writes sign, start, numbers and their count for each line; returns a status and the position.

    An unknown line gets the sign 0. Columns change in place.
    """
    line, position = 0, 0
    while position < text.shape[0]:
        newline = line_end(text, position)
        start[line] = position
        mark = text[position]
        numeric = mark in (_MADE, _FREED, _ALLOCATIONS, _TIME, _CODE, _STACK)
        fine = mark == 10 or text[position + 1] == 32 or text[position + 1] == 10 or text[position + 1] == 13
        count, at = 0, position + 2
        while numeric and fine and count < _FIELDS and at < newline:
            value, at = read_number(text, at, 16)
            fine = value >= 0
            fields[line, count] = value
            count += 1
        if numeric and mark != _CODE:
            fine = fine and at >= newline and count > 0
        elif not numeric and mark != 10 and mark != 13:
            fine = fine and _is_known(mark)
        if not fine and not lenient:
            return UNKNOWN, line
        sign[line] = mark if fine else 0
        defined[line] = count
        position = newline + 1
        line += 1
    return DONE, line


@leaf
def _is_known(mark: int) -> bool:
    """Whether the sign is one of heaptrack's lines that have more than numbers: v s X x m I R A S #."""
    return (
        mark == 118 or mark == 115 or mark == 88 or mark == 120 or mark == 109 or mark == 73 or mark == 82 or mark == 65
        or mark == 83 or mark == 35
    )  # fmt: skip


@inlined
def _write_malloc(row, numbers, defined, columns, stack_site, kinds, below, free_numbers, counts, total):
    """Writes the call of a line with `defined` numbers; returns DONE, TOO_LARGE or UNKNOWN."""
    op, key, size, site = columns
    first, stack = numbers[0], numbers[1]
    if defined == 2 or (defined == 1 and first >= total.kinds):
        return UNKNOWN
    if defined == 1:
        number = take_number(free_numbers, counts) + 1
        below[number - 1], kinds[first].youngest = kinds[first].youngest, number
        stack = kinds[first].stack
        key[row], size[row] = number, kinds[first].bytes
    else:
        if first > MAX_SIZE:
            return TOO_LARGE
        key[row], size[row] = numbers[2], first
    known = stack_site[stack - 1] if 0 < stack <= total.stacks else _UNKNOWN_SITE
    op[row], site[row] = _MALLOC, known if known >= 0 else NO_SITE
    return DONE


@inlined
def _write_free(row, first, columns, kinds, below, free_numbers, counts, total):
    """Writes the free of an address, or of the youngest live block of a kind."""
    op, key, size, site = columns
    key[row] = first
    if total.kinds > 0:
        number = kinds[first].youngest if first < total.kinds else 0
        key[row] = number
        if number > 0:
            kinds[first].youngest = below[number - 1]
            release_number(free_numbers, counts, number - 1)
    op[row], size[row], site[row] = _FREE, 0, NO_SITE


@entry
def _follow_lines(
    sign: np.ndarray,
    defined: np.ndarray,
    fields: np.ndarray,
    lenient: bool,
    columns: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    stamps: np.ndarray,
    code_site: np.ndarray,
    stack_site: np.ndarray,
    kinds: np.ndarray,
    below: np.ndarray,
    free_numbers: np.ndarray,
    counts: np.ndarray,
    totals: np.ndarray,
) -> tuple[int, int]:
    """Writes calls and stamps; returns a status and the position. All but the columns of the lines change in place.

    `below` has for each block number the next older live block of the same kind.
    """
    total, row = totals[0], 0
    for line in range(sign.shape[0]):
        mark, first, second = sign[line], fields[line, 0], fields[line, 1]
        bad = mark == 0
        if mark == _STACK:
            number = code_site[first - 1] if 0 < first <= code_site.shape[0] else _UNKNOWN_SITE
            if number == _CALLER:
                number = stack_site[second - 1] if 0 < second <= total.stacks else _UNKNOWN_SITE
            stack_site[total.stacks] = number
            total.stacks += 1
        elif mark == _ALLOCATIONS:
            if first > MAX_SIZE:
                return TOO_LARGE, line
            kind = kinds[total.kinds]
            kind.bytes, kind.stack, kind.youngest = first, second, 0
            total.kinds += 1
        elif mark == _TIME:
            stamps[total.stamps].row, stamps[total.stamps].ms = row, first
            total.stamps += 1
        elif mark == _MADE:
            status = _write_malloc(
                row, fields[line], defined[line], columns, stack_site, kinds, below, free_numbers, counts, total
            )
            if status == TOO_LARGE:
                return TOO_LARGE, line
            bad = status == UNKNOWN
            row += status == DONE
        elif mark == _FREED:
            _write_free(row, first, columns, kinds, below, free_numbers, counts, total)
            row += 1
        if bad:
            if not lenient:
                return UNKNOWN, line
            total.unknown += 1
    total.calls = row
    return DONE, sign.shape[0]
