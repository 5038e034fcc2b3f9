"""Reads CPython's location table (co_linetable, since 3.11), which has the lines of instructions.

See `Objects/locations.md`. The first byte of an entry has the highest bit set; the bytes after it do not. The first
byte has a code and the number of units minus one. Lines are differences to the previous entry.

    code    0 to 9         the same line, followed by one byte of columns
            10, 11, 12     0, 1 or 2 lines further, followed by two bytes of columns
            13             difference of lines as a signed number, no columns
            14             difference of lines as a signed number, followed by three numbers
            15             no line
    number  six bits in each byte, lowest first; bit 6 is set in all but the last; bit 0 of a signed number is its sign
"""

from collections.abc import Iterator

_NO_LINE, _LONG, _NO_COLUMNS, _ONE_LINE, _ONE_LINE_MOST = 15, 14, 13, 10, 12


def line_starts(table: bytes, first_line: int) -> Iterator[tuple[int, int]]:
    """Yields the first unit and the line of each entry; line 0 means no line."""
    position, unit, line = 0, 0, first_line
    while position < len(table):
        code, units = (table[position] >> 3) & 15, (table[position] & 7) + 1
        if code in (_LONG, _NO_COLUMNS):
            line += _signed_number(table, position + 1)
        elif _ONE_LINE <= code <= _ONE_LINE_MOST:
            line += code - _ONE_LINE
        yield unit, 0 if code == _NO_LINE else line
        unit += units
        position += 1
        while position < len(table) and table[position] < 0x80:
            position += 1


def _signed_number(table: bytes, position: int) -> int:
    number, shift = table[position] & 63, 6
    while table[position] & 64:
        position += 1
        number |= (table[position] & 63) << shift
        shift += 6
    return -(number >> 1) if number & 1 else number >> 1
