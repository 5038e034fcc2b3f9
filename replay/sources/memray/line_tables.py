"""Reads the line tables of code objects, for each CPython that memray records.

3.11 on     `co_linetable`, see CPython's Objects/locations.md: entries with a first byte 1kkkklll (kind, and length in
            code units of two bytes), followed by the data of the kind
3.10        `co_linetable`, see Objects/lnotab_notes.txt: pairs of the length of an entry in bytes and the difference of
            lines, -128 for no line
before      `co_lnotab`, see the same file: pairs of the differences of addresses and of lines
"""

from bisect import bisect_right
from collections.abc import Iterator

_LOCATIONS_SINCE, _LINES_SINCE = 0x030B0000, 0x030A0000
_NO_LINE = -128
_NO_LOCATION, _LONG, _NO_COLUMNS, _FIRST_ONE_LINE, _LAST_ONE_LINE = 15, 14, 13, 10, 12
_MORE = 64
"""The bit of a number's byte that is set if another byte follows. The six bits below it belong to the number."""


class LineTable:
    """Finds lines. Reads the whole table once."""

    def __init__(self, table: bytes, first_line: int, python_version: int) -> None:
        if python_version >= _LOCATIONS_SINCE:
            entries = _locations(table, first_line)
        elif python_version >= _LINES_SINCE:
            entries = _line_entries(table, first_line)
        else:
            entries = _address_steps(table, first_line)
        self._unit_bytes = 2 if _LINES_SINCE <= python_version < _LOCATIONS_SINCE else 1
        self._starts: list[int] = []
        self._lines: list[int] = []
        for start, line in entries:
            self._starts.append(start)
            self._lines.append(line)

    def line(self, offset: int) -> int:
        """Returns the line of an instruction, 0 without an entry. 3.10 has offsets in instructions, others in bytes."""
        if not self._starts or offset < 0:
            return 0
        return self._lines[bisect_right(self._starts, offset * self._unit_bytes) - 1]


def _locations(table: bytes, line: int) -> Iterator[tuple[int, int]]:
    """Yields the start of each entry in bytes of code, and its line; at last, the end of the code with line 0.

    An entry without a location has the line of the previous entry.
    """
    at = start = 0
    while at < len(table):
        first, at = table[at], at + 1
        kind = first >> 3 & 15
        if kind in (_LONG, _NO_COLUMNS):
            step, at = _signed(table, at)
            line += step
            for _ in range(3 if kind == _LONG else 0):
                _, at = _number(table, at)
        elif _FIRST_ONE_LINE <= kind <= _LAST_ONE_LINE:
            line += kind - _FIRST_ONE_LINE
            at += 2
        elif kind != _NO_LOCATION:
            at += 1
        yield start, line
        start += 2 * ((first & 7) + 1)
    yield start, 0


def _number(table: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    more = _MORE
    while more and at < len(table):
        value |= (table[at] & (_MORE - 1)) << shift
        more, shift, at = table[at] & _MORE, shift + 6, at + 1
    return value, at


def _signed(table: bytes, at: int) -> tuple[int, int]:
    """Reads a number whose lowest bit is the sign."""
    value, at = _number(table, at)
    return (-(value >> 1) if value & 1 else value >> 1), at


def _line_entries(table: bytes, line: int) -> Iterator[tuple[int, int]]:
    start = 0
    for at in range(0, len(table) - 1, 2):
        step = int.from_bytes(table[at + 1 : at + 2], signed=True)
        line += step if step != _NO_LINE else 0
        yield start, line
        start += table[at]


def _address_steps(table: bytes, line: int) -> Iterator[tuple[int, int]]:
    start = 0
    yield start, line
    for at in range(0, len(table) - 1, 2):
        start += table[at]
        line += int.from_bytes(table[at + 1 : at + 2], signed=True)
        yield start, line
