"""The log of glibc's mtrace(), plain or compressed. Each call of malloc and its family is a line.

    = Start, = End              when logging began and ended
    @ WHO + 0x… 0x…             malloc, calloc, memalign …: address and size
    @ WHO - 0x…                 free
    @ WHO < 0x…                 realloc: the old address …
    @ WHO > 0x… 0x…             … and on the next line the new address and size
    @ WHO ! 0x… 0x…             a realloc that failed

WHO is the caller, `file:(function+0x…)[0x…]`, as far as the C library knows it (the offset also without `0x`). `@ WHO`
can be missing. A size of 0 is written as `0`, the address of a failed allocation as `(nil)`. A realloc to 0 bytes is
written as a free. The log has no times and threads, and does not distinguish malloc and calloc.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from replay.jit.arrays import DONE, FULL, call_with_room, record
from replay.jit.compiling import entry, leaf
from replay.sources._logs.calls import MOVE, Calls, libc_calls, paired
from replay.sources._logs.lines import (
    TOO_LARGE,
    UNKNOWN,
    Piece,
    check_lines,
    line_end,
    plain_head,
    read_number,
    read_pieces,
    text_of,
)
from replay.sources._logs.log_trace import PLAIN_LOG, Findings, LogTrace, open_lines
from replay.support.limits import MAX_SIZE
from replay.trace import NO_SITE, Op, Site
from replay.trace.block_numbering import doubled, find_slot

SUFFIXES = (".mtrace",)
_FIRST_LINE = re.compile(
    rb"(= (Start|End)|(@ [^\n]* )?([+>!] (0x[0-9a-f]+|\(nil\)) (0x[0-9a-f]+|0)|[-<] 0x[0-9a-f]+))\s*(\n|$)"
)
_WHO = re.compile(r"(?P<file>.*?):?(?:\((?P<function>[^()]*?)(?:\+(?:0x)?[0-9a-f]+)?\))?(?P<address>\[0x[0-9a-f]+\])?")
_MALLOC, _REALLOC, _FREE = int(Op.MALLOC), int(Op.REALLOC), int(Op.FREE)
_SHORTEST_LINE = len("- 0x0\n")
_PARSED = record("calls", "failed", "unknown", "sites", "new_sites")
"""Counts of a piece; `sites` includes earlier pieces."""


def sniff(head: bytes) -> bool:
    return _FIRST_LINE.match(plain_head(head).lstrip()) is not None


def open_trace(path: Path) -> LogTrace:
    """Returns the trace. `batches` reads and validates the events."""
    return open_lines(path, "mtrace", _read, lenient=False)


def open_lenient(path: Path) -> LogTrace:
    """The same, but skips and counts unknown lines."""
    return open_lines(path, "mtrace", _read, lenient=True)


def _read(path: Path, findings: Findings, *, lenient: bool) -> Iterator[Calls]:
    findings.origin = PLAIN_LOG
    parser = _Parser(path, findings, lenient)
    return paired(map(parser.parse, read_pieces(path)), has_moves=True)


class _Parser:
    """Converts pieces of the log to calls, and callers to sites."""

    def __init__(self, path: Path, findings: Findings, lenient: bool) -> None:
        self._path, self._findings, self._lenient = path, findings, lenient
        self._keys, self._numbers = np.zeros(1024, np.int64), np.full(1024, -1, np.int64)
        self._sites = 0

    def parse(self, piece: Piece) -> Calls:
        """Returns the calls of a piece, with reallocs in two halves."""
        most = piece.text.shape[0] // _SHORTEST_LINE + 1
        op, key, size = np.empty(most, np.uint8), np.empty(most, np.int64), np.empty(most, np.int64)
        site, callers, parsed = np.empty(most, np.uint32), np.empty((most, 2), np.int64), np.zeros(1, _PARSED)
        parsed[0].sites = self._sites
        status, position = call_with_room(
            lambda position: _parse_lines(
                piece.text, position, self._lenient, op, key, size, site, callers, self._keys, self._numbers, parsed
            ),
            self._double,
            0,
        )
        check_lines(status, self._path, piece, position, "an mtrace log")
        count = parsed[0]
        self._sites = int(count.sites)
        new = callers[: count.new_sites].tolist()
        self._findings.sites += [_site(text_of(piece, start, end)) for start, end in new]
        self._findings.failed_calls += int(count.failed)
        self._findings.dropped_lines += int(count.unknown)
        rows = int(count.calls)
        return libc_calls(op[:rows], key[:rows], size[:rows], site=site[:rows])

    def _double(self, _position: int) -> None:
        self._keys, self._numbers = doubled(self._keys, self._numbers)


def _site(who: str) -> Site:
    """Returns the site of a caller. The file is before the brackets; an unknown function is replaced by the address."""
    match = _WHO.fullmatch(who)
    if match is None:
        return Site("", who, 0)
    return Site(match["function"] or match["address"] or "", match["file"], 0)


@leaf
def _token_start(text: np.ndarray, end: int, start: int) -> int:
    """Returns the start of the word that ends before `end`, at least `start`."""
    while end > start and text[end - 1] != 32:
        end -= 1
    return end


@leaf
def _read_value(text: np.ndarray, at: int) -> int:
    """Returns the number of a word `0x…` or `0`; 0 for `(nil)`, -1 for any other word."""
    if text[at] == 48 and text[at + 1] == 120:
        return read_number(text, at + 2, 16)[0]
    if text[at] == 48:
        return read_number(text, at, 10)[0]
    return 0 if text[at] == 40 and text[at + 1] == 110 and text[at + 2] == 105 and text[at + 3] == 108 else -1


@leaf
def _digest(text: np.ndarray, start: int, end: int) -> int:
    """Returns a hash of 63 bits: two multiplicative hashes of 32 bits, in products that fit into 63."""
    low, high = np.int64(0x811C9DC5), np.int64(0x1000193)
    for at in range(start, end):
        low = ((low ^ text[at]) * 0x1000193) & 0xFFFFFFFF
        product = (high ^ text[at]) * 0x5BD1E995
        high = (product ^ (product >> 29)) & 0xFFFFFFFF
    return int((low << 31) ^ high)


@leaf
def _site_number(
    text: np.ndarray,
    start: int,
    end: int,
    callers: np.ndarray,
    keys: np.ndarray,
    numbers: np.ndarray,
    parsed: np.ndarray,
) -> int:
    """Returns the site of a caller. Adds a new caller to the table and to `callers`, in place."""
    if end <= start:
        return NO_SITE
    key = _digest(text, start, end)
    slot = find_slot(key, keys, numbers)
    if numbers[slot] < 0:
        count = parsed[0]
        keys[slot], numbers[slot] = key, count.sites
        callers[count.new_sites] = start, end
        count.sites += 1
        count.new_sites += 1
    return numbers[slot]


@entry
def _parse_lines(
    text: np.ndarray,
    position: int,
    lenient: bool,
    op: np.ndarray,
    key: np.ndarray,
    size: np.ndarray,
    site: np.ndarray,
    callers: np.ndarray,
    keys: np.ndarray,
    numbers: np.ndarray,
    parsed: np.ndarray,
) -> tuple[int, int]:
    """Writes calls from the line at `position` on; returns a status and the position. Columns change in place.

    A line is parsed from its end, because the caller at its beginning can contain any text.
    """
    count = parsed[0]
    row = count.calls
    while position < text.shape[0]:
        if 2 * count.sites >= keys.shape[0]:
            count.calls = row
            return FULL, position
        newline = line_end(text, position)
        end = newline
        while end > position and (text[end - 1] == 32 or text[end - 1] == 13):
            end -= 1
        last = _token_start(text, end, position)
        second = _token_start(text, max(last - 1, position), position)
        third = _token_start(text, max(second - 1, position), position)
        code, address, requested, sign_at = 255, 0, 0, second
        if end == position or (text[position] == 61 and text[position + 1] == 32):
            position = newline + 1
            continue
        if last - second == 2 and (text[second] == 45 or text[second] == 60):
            code = _FREE if text[second] == 45 else MOVE
            address = _read_value(text, last)
        elif second - third == 2:
            sign, sign_at = text[third], third
            address, requested = _read_value(text, second), _read_value(text, last)
            if sign == 43:
                code = _MALLOC
            elif sign == 62:
                code = _REALLOC
            elif sign == 33:
                code, address = _MALLOC, 0
        has_caller = sign_at > position and text[position] == 64 and text[position + 1] == 32
        if code == 255 or address < 0 or (requested < 0 and address != 0) or (sign_at > position and not has_caller):
            if not lenient:
                return UNKNOWN, position
            count.unknown += 1
        elif requested > MAX_SIZE and address != 0:
            return TOO_LARGE, position
        elif address == 0:
            count.failed += code != _FREE
        else:
            op[row], key[row], size[row] = code, address, requested
            site[row] = NO_SITE
            if has_caller and code <= _REALLOC:
                site[row] = _site_number(text, position + 2, sign_at - 1, callers, keys, numbers, parsed)
            row += 1
        position = newline + 1
    count.calls = row
    return DONE, position
