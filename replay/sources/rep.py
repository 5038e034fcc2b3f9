"""Traces of the CS:APP malloc lab, plain or compressed: a header of four numbers, then a line for each request.

    20000           a suggested heap size (or, in the newer style, the weight)
    3               number of ids
    8               number of requests
    1               the weight (or, in the newer style, whether ranges are ignored)
    a 0 512         malloc: id and bytes
    r 0 640         realloc, or malloc of an id that is not live; with 0 bytes a free, or malloc(0)
    f 0             free; an id below 0 is a null pointer

Words are separated as for fscanf: any number of spaces, tabs and carriage returns, also at the beginning and the end of
a line.

Both styles have the number of requests in the same place; the rest of the header is ignored. The file has no times,
threads and domains.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from replay.jit.arrays import DONE, record
from replay.jit.compiling import entry
from replay.sources._logs.calls import MOVE, NO_PARTNER, Calls, libc_calls
from replay.sources._logs.lines import (
    TOO_LARGE,
    UNKNOWN,
    Piece,
    check_lines,
    line_end,
    plain_head,
    read_number,
    read_pieces,
    skip_blanks,
)
from replay.sources._logs.log_trace import PLAIN_LOG, Findings, LogTrace, open_lines
from replay.support.errors import TraceError
from replay.support.limits import MAX_SIZE
from replay.trace import Op

SUFFIXES = (".rep",)
_HEADER = re.compile(rb"\s*[0-9]{1,20}\s+[0-9]{1,20}\s+([0-9]{1,20})\s+[0-9]{1,20}[^\S\n]*\n")
_REQUEST = re.compile(rb"\s*([arf]\s+-?[0-9]|$)")
_NO_HEADER = "line 1: the header must have four numbers: heap size, ids, requests, weight"
_SHORTEST_LINE = len("f 0\n")
_MALLOC, _REALLOC, _FREE = int(Op.MALLOC), int(Op.REALLOC), int(Op.FREE)
_PARSED = record("calls", "requests", "unknown")
"""Counts of a piece."""


def sniff(head: bytes) -> bool:
    head = plain_head(head)
    header = _HEADER.match(head)
    return header is not None and _REQUEST.match(head, header.end()) is not None


def open_trace(path: Path) -> LogTrace:
    """Returns the trace. `batches` reads and validates the events."""
    return open_lines(path, "rep", _read, lenient=False, addresses=False)


def open_lenient(path: Path) -> LogTrace:
    """The same, but skips and counts unknown lines."""
    return open_lines(path, "rep", _read, lenient=True, addresses=False)


def _read(path: Path, findings: Findings, *, lenient: bool) -> Iterator[Calls]:
    findings.origin = PLAIN_LOG
    promised, requests, position = None, 0, 0
    for piece in read_pieces(path):
        if promised is None:
            promised, position = _read_header(path, piece)
        calls, met, unknown = _parse(path, piece, position, lenient)
        findings.dropped_lines += unknown
        requests, position = requests + met, 0
        yield calls
    if promised is None:
        raise TraceError(_NO_HEADER, path=path)
    if requests != promised and not lenient:
        message = f"the header has {promised} requests, but {requests} follow; is the file complete?"
        raise TraceError(message, path=path)


def _read_header(path: Path, piece: Piece) -> tuple[int, int]:
    """Returns the number of requests, and the position of the first one."""
    header = _HEADER.match(piece.text.tobytes())
    if header is None:
        raise TraceError(_NO_HEADER, path=path)
    return int(header[1]), header.end()


def _parse(path: Path, piece: Piece, position: int, lenient: bool) -> tuple[Calls, int, int]:
    """Returns the calls of a piece, the number of its requests, and the number of unknown lines."""
    most = 2 * (piece.text.shape[0] // _SHORTEST_LINE + 1)
    op, key, size, partner = np.empty(most, np.uint8), *(np.empty(most, np.int64) for _ in range(3))
    parsed = np.zeros(1, _PARSED)
    status, position = _parse_lines(piece.text, position, lenient, op, key, size, partner, parsed)
    check_lines(status, path, piece, position, "a malloc lab trace")
    rows, requests, unknown = parsed[0].tolist()
    return libc_calls(op[:rows], key[:rows], size[:rows], partner=partner[:rows]), requests, unknown


@entry
def _parse_lines(
    text: np.ndarray,
    position: int,
    lenient: bool,
    op: np.ndarray,
    key: np.ndarray,
    size: np.ndarray,
    partner: np.ndarray,
    parsed: np.ndarray,
) -> tuple[int, int]:
    """Writes calls from the line at `position` on; returns a status and the position. Columns change in place.

    A realloc becomes two calls with the same key, a MOVE and a realloc; with a new size of 0 it is a free.
    """
    count, row = parsed[0], 0
    while position < text.shape[0]:
        newline, first = line_end(text, position), skip_blanks(text, position)
        if first == newline:
            position = newline + 1
            continue
        sign, number, requested, at = text[first], -1, 0, skip_blanks(text, first + 1)
        if at > first + 1 and (sign == 97 or sign == 114 or sign == 102):
            null = text[at] == 45
            number, at = read_number(text, at + (1 if null else 0), 10)
            if null and number >= 0:
                number = -2
            if sign != 102:
                requested, at = read_number(text, at, 10)
        if at != newline or number == -1 or requested < 0 or (number < 0 and sign != 102):
            if not lenient:
                return UNKNOWN, position
            count.unknown += 1
        elif requested > MAX_SIZE:
            return TOO_LARGE, position
        else:
            count.requests += 1
            if sign == 114:
                op[row], key[row], size[row], partner[row] = MOVE, number, 0, NO_PARTNER
                row += 1
            if number >= 0:
                op[row] = _FREE if sign == 102 else _REALLOC if sign == 114 else _MALLOC
                key[row], size[row] = number, requested
                partner[row] = row - 1 if sign == 114 else NO_PARTNER
                row += 1
        position = newline + 1
    count.calls = row
    return DONE, position
