"""The data files of heaptrack, of format versions 0 to 3: plain or compressed; a record a line, numbers in hexadecimal.

    v PROGRAM FORMAT                   versions; the first line
    s LENGTH TEXT                      a string (before version 3: `s TEXT`); strings, code and stacks count from 1
    i ADDRESS MODULE FUNCTION FILE LINE …   code and what is known of it; the rest are callers inlined there
    t CODE PARENT                      a stack: code (an address in a raw file) and the stack that called it
    a SIZE STACK                       a kind of allocation; kinds count from 0
    + KIND, - KIND                     an allocation and a free of that kind, in an interpreted file
    + SIZE STACK ADDRESS, - ADDRESS    the same in a raw file, which has no `i` and `a`, so no call sites
    c MILLISECONDS                     a time stamp, some hundred a second
    X x m I R A S #                    command, modules, machine, resident pages, suppressions: of no use here

Events between two stamps are spread evenly. Not in the file: threads, which call it was; a realloc is written as a free
and an allocation, and stays so. An interpreted file does not say which block of a kind is freed: the youngest is taken.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from replay.jit.arrays import DONE, record, with_room
from replay.jit.compiling import entry, leaf
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
"""A program of this version wrote format 1 without saying so."""
_FIELDS = 5
_HELD = 1 << 20
"""Calls that wait for a time stamp at most."""
_MS = 10**6
_UNKNOWN_SITE, _CALLER = -1, -2
"""In place of a site: nothing is known; the code only stands for its caller."""
_STANDS_FOR_CALLER = ("operator new(", "operator new[](")
_MALLOC, _FREE = int(Op.MALLOC), int(Op.FREE)
_TOTALS = record("calls", "unknown", "kinds", "stacks", "stamps")
"""Counts; `calls` and `stamps` of a piece, the others of the file so far."""
_KIND = record("bytes", "stack", "youngest")
"""Allocations of one size and stack. `youngest`: the number of the latest live one, counted from 1."""
_STAMP = record("row", "ms")


def sniff(head: bytes) -> bool:
    return _VERSIONS.match(plain_head(head)) is not None


def open_trace(path: Path) -> LogTrace:
    """Reads how the file begins; the events are read and validated by `batches`."""
    return _open(path, lenient=False)


def open_lenient(path: Path) -> LogTrace:
    """The same; lines that are not understood are left out and counted."""
    return _open(path, lenient=True)


def _open(path: Path, lenient: bool) -> LogTrace:
    with path.open("rb") as file:
        head = plain_head(file.read(HEAD_BYTES))
    versions = _VERSIONS.match(head)
    if versions is None:
        raise TraceError("line 1: here must stand heaptrack's versions, `v PROGRAM FORMAT`", path=path)
    program = int(versions[1], 16)
    format_ = int(versions[2], 16) if versions[2] else int(program == _FORMAT_1_CALLED_ITSELF)
    if format_ > _NEWEST_FORMAT:
        message = f"is of heaptrack's file format {format_}; this replay reads up to {_NEWEST_FORMAT}: get a newer one"
        raise TraceError(message, path=path)
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
    """Holds calls back until the next time stamp is known, and spreads them."""

    def __init__(self) -> None:
        self._now_ns = 0
        self._held: Calls | None = None

    def stamped(self, calls: Calls, stamps: np.ndarray) -> Calls:
        """The calls up to the last stamp, with times; `stamps` are of _STAMP."""
        if self._held is not None:
            stamps["row"] += self._held.op.shape[0]
            calls = joined(self._held, calls)
        rows = calls.op.shape[0]
        stamp_rows = np.concatenate([[0], stamps["row"]])
        stamp_ns = np.maximum.accumulate(np.concatenate([[self._now_ns], stamps["ms"] * _MS]))
        end = int(stamp_rows[-1]) if rows - stamp_rows[-1] <= _HELD else rows
        if end == rows:
            stamp_rows, stamp_ns = np.append(stamp_rows, rows), np.append(stamp_ns, stamp_ns[-1])
        self._now_ns, self._held = int(stamp_ns[-1]), calls.where(slice(end, None))
        return calls.where(slice(0, end))._replace(time_ns=spread_times(end, stamp_rows, stamp_ns))

    def rest(self) -> Calls:
        """What follows the last stamp happens at it."""
        assert self._held is not None
        return self._held._replace(time_ns=np.full(self._held.op.shape[0], self._now_ns))


class _Log:
    """Converts pieces of the file into calls, code addresses into sites, kinds of allocations into blocks."""

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
        """The calls of a piece, and its time stamps: the row that follows, and milliseconds."""
        lines = int(np.count_nonzero(piece.text == ord("\n")))
        sign, given, start = np.zeros(lines, np.uint8), np.zeros(lines, np.uint8), np.zeros(lines, np.int64)
        fields = np.zeros((lines, _FIELDS), np.int64)
        status, line = _split_lines(piece.text, self._lenient, sign, given, start, fields)
        if status != DONE:
            check_lines(status, self._path, piece, int(start[line]), _NAME)
        self._meet_strings(piece, start[sign == ord("s")])
        self._meet_code(fields[sign == ord("i")])
        self._reserve(sign)
        op, key, size = np.empty(lines, np.uint8), np.empty(lines, np.int64), np.empty(lines, np.int64)
        site, stamps = np.empty(lines, np.uint32), np.empty(lines, _STAMP)
        totals = self._totals[0]
        totals.calls = totals.stamps = 0
        status, line = _follow_lines(
            sign, given, fields, self._lenient, (op, key, size, site), stamps, self._code_site, self._stack_site,
            self._kinds, self._below, self._free_numbers, self._counts, self._totals,
        )  # fmt: skip
        if status != DONE:
            check_lines(status, self._path, piece, int(start[line]), _NAME)
        self._findings.dropped_lines = int(totals.unknown)
        rows = int(totals.calls)
        calls = libc_calls(op[:rows], key[:rows], size[:rows], site=site[:rows])
        return calls, stamps[: totals.stamps].copy()

    def _meet_strings(self, piece: Piece, starts: np.ndarray) -> None:
        text = piece.text.tobytes()
        for start in starts.tolist():
            line = text[start + 2 : text.index(b"\n", start)].decode("utf-8", errors="replace")
            self._strings.append(line.partition(" ")[2] if self._sized else line)

    def _string(self, number: int) -> str:
        """Strings count from 1; 0 is none."""
        return self._strings[number - 1] if 0 < number <= len(self._strings) else ""

    def _meet_code(self, fields: np.ndarray) -> None:
        """Gives new code addresses their sites: function, file and line, or else address and module."""
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
        """Room for what the lines with these signs define."""
        totals = self._totals[0]
        self._stack_site = with_room(self._stack_site, totals.stacks + np.count_nonzero(sign == ord("t")))
        self._kinds = with_room(self._kinds, totals.kinds + np.count_nonzero(sign == ord("a")))
        numbers = self._counts[0].used + np.count_nonzero(sign == ord("+"))
        self._below, self._free_numbers = with_room(self._below, numbers), with_room(self._free_numbers, numbers)


@entry
def _split_lines(
    text: np.ndarray, lenient: bool, sign: np.ndarray, given: np.ndarray, start: np.ndarray, fields: np.ndarray
) -> tuple[int, int]:
    """Writes sign, start, numbers and their count for each line; returns a status and where it stopped.

    A line that is not understood gets the sign 0. Columns change in place.
    """
    line, position = 0, 0
    while position < text.shape[0]:
        newline = line_end(text, position)
        start[line] = position
        mark = text[position]
        numeric = mark == 43 or mark == 45 or mark == 97 or mark == 99 or mark == 105 or mark == 116
        fine = mark == 10 or text[position + 1] == 32 or text[position + 1] == 10 or text[position + 1] == 13
        count, at = 0, position + 2
        while numeric and fine and count < _FIELDS and at < newline:
            value, at = read_number(text, at, 16)
            fine = value >= 0
            fields[line, count] = value
            count += 1
        if numeric and mark != 105:
            fine = fine and at >= newline and count > 0
        elif not numeric and mark != 10 and mark != 13:
            fine = fine and _is_known(mark)
        if not fine and not lenient:
            return UNKNOWN, line
        sign[line] = mark if fine else 0
        given[line] = count
        position = newline + 1
        line += 1
    return DONE, line


@leaf
def _is_known(mark: int) -> bool:
    """Whether lines with this sign are heaptrack's, of those that hold more than numbers: v s X x m I R A S #."""
    return (
        mark == 118 or mark == 115 or mark == 88 or mark == 120 or mark == 109 or mark == 73 or mark == 82 or mark == 65
        or mark == 83 or mark == 35
    )  # fmt: skip


@entry
def _follow_lines(
    sign: np.ndarray,
    given: np.ndarray,
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
    """Writes calls and stamps; returns a status and where it stopped. All but the lines' columns change in place.

    `below` is, by the number of a block, the next older live one of its kind.
    """
    op, key, size, site = columns
    total, row = totals[0], 0
    for line in range(sign.shape[0]):
        mark, first, second, third = sign[line], fields[line, 0], fields[line, 1], fields[line, 2]
        bad = mark == 0
        if mark == 116:
            number = code_site[first - 1] if 0 < first <= code_site.shape[0] else _UNKNOWN_SITE
            if number == _CALLER:
                number = stack_site[second - 1] if 0 < second <= total.stacks else _UNKNOWN_SITE
            stack_site[total.stacks] = number
            total.stacks += 1
        elif mark == 97:
            if first > MAX_SIZE:
                return TOO_LARGE, line
            kind = kinds[total.kinds]
            kind.bytes, kind.stack, kind.youngest = first, second, 0
            total.kinds += 1
        elif mark == 99:
            stamps[total.stamps].row, stamps[total.stamps].ms = row, first
            total.stamps += 1
        elif mark == 43:
            stack = second
            bad = given[line] == 2 or (given[line] == 1 and first >= total.kinds)
            if given[line] == 1 and not bad:
                number = take_number(free_numbers, counts) + 1
                below[number - 1], kinds[first].youngest = kinds[first].youngest, number
                stack = kinds[first].stack
                key[row], size[row] = number, kinds[first].bytes
            elif not bad:
                if first > MAX_SIZE:
                    return TOO_LARGE, line
                key[row], size[row] = third, first
            if not bad:
                known = stack_site[stack - 1] if 0 < stack <= total.stacks else _UNKNOWN_SITE
                op[row], site[row] = _MALLOC, known if known >= 0 else NO_SITE
                row += 1
        elif mark == 45:
            key[row] = first
            if total.kinds > 0:
                number = kinds[first].youngest if first < total.kinds else 0
                key[row] = number
                if number > 0:
                    kinds[first].youngest = below[number - 1]
                    release_number(free_numbers, counts, number - 1)
            op[row], size[row], site[row] = _FREE, 0, NO_SITE
            row += 1
        if bad:
            if not lenient:
                return UNKNOWN, line
            total.unknown += 1
    total.calls = row
    return DONE, sign.shape[0]
