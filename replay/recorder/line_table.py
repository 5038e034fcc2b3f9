"""CPython's location table (co_linetable, since 3.11): which line an instruction is of; see `Objects/locations.md`.

An entry is a byte with the highest bit set, and bytes without it behind that. The first holds a code and the units it
is about, less one; lines are differences to the entry before.

    code    0 to 9         the same line, one byte of columns behind
            10, 11, 12     0, 1 or 2 lines on, two bytes of columns
            13             lines on as a signed number, no columns
            14             lines on as a signed number, then three more numbers
            15             no line at all
    number  six bits a byte, lowest first, all but the last with bit 6 set; a signed one has its sign in bit 0
"""

from collections.abc import Iterator

_NO_LINE, _LONG, _NO_COLUMNS, _ONE_LINE, _ONE_LINE_MOST = 15, 14, 13, 10, 12


def line_starts(table: bytes, first_line: int) -> Iterator[tuple[int, int]]:
    """The unit at which each entry begins, and its line; 0 for none."""
    at, unit, line = 0, 0, first_line
    while at < len(table):
        code, units = (table[at] >> 3) & 15, (table[at] & 7) + 1
        if code in (_LONG, _NO_COLUMNS):
            line += _signed_number(table, at + 1)
        elif _ONE_LINE <= code <= _ONE_LINE_MOST:
            line += code - _ONE_LINE
        yield unit, 0 if code == _NO_LINE else line
        unit += units
        at += 1
        while at < len(table) and table[at] < 0x80:
            at += 1


def _signed_number(table: bytes, at: int) -> int:
    number, shift = table[at] & 63, 6
    while table[at] & 64:
        at += 1
        number |= (table[at] & 63) << shift
        shift += 6
    return -(number >> 1) if number & 1 else number >> 1
