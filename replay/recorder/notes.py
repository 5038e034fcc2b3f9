"""Notes in the writer: about code objects and types; and the table of call sites.

`replay.recorder.sites` and `replay.recorder.object_types` define notes and numbers.
"""

import mmap
from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from replay.jit.arrays import with_room
from replay.jit.compiling import entry
from replay.recorder import object_types, sites, tap
from replay.recorder.line_table import line_starts
from replay.trace import NO_SITE, Site

_ENCODINGS = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}
"""Encodings of a str by its bytes for each character."""
_NOWHERE = int(NO_SITE)
_CACHED_CODES = 256
"""Number of code objects whose decoded line tables are cached: a function often allocates at several lines."""


class _Code(NamedTuple):
    """The names and lines of a code object."""

    function: str
    file: str
    first_line: int
    line_table: bytes


class TypeNote(NamedTuple):
    """A type of the program. Several notes about one type have the same number; the last one is right."""

    number: int
    address: int
    module: str
    name: str
    collected: bool
    """Whether its objects have the collector's header."""
    is_static: bool
    """Whether it lives as long as the program."""
    headers: int
    """The number of headers of 16 bytes before its objects."""
    least_bytes: int
    """Size of the smallest block with one of its objects."""

    def fits(self, block_bytes: int) -> bool:
        return block_bytes >= self.least_bytes


@lru_cache(_CACHED_CODES)
def _lines(code: _Code) -> tuple[list[int], list[int]]:
    """Returns the first units of the entries of the line table, and their lines."""
    pairs = list(line_starts(code.line_table, code.first_line))
    return [start for start, _ in pairs], [line for _, line in pairs]


class Notes:
    """All notes so far. `read` frees their place in the shared memory."""

    def __init__(self, memory: mmap.mmap, words: np.ndarray) -> None:
        self._memory, self._words = memory, words
        words[sites.AT_NOTES_HEAD // 8] = words[sites.AT_NOTES_TAIL // 8] = 0
        self._first_numbers: list[int] = []
        self._codes: list[_Code] = []
        self._known: dict[_Code, _Code] = {}
        """Equal codes are stored once, because a program can create the same code many times."""
        self.types: list[TypeNote] = []
        """Those that were not taken yet."""

    def read(self) -> None:
        """Reads the notes that were written since the last call."""
        head, at = int(self._words[sites.AT_NOTES_HEAD // 8]), int(self._words[sites.AT_NOTES_TAIL // 8])
        if at == head:
            return
        while at < head:
            if int.from_bytes(self._bytes(at, 8), "little") & object_types.TYPE_NOTE:
                at = self._read_type(at)
                continue
            number, _, first_line = (int.from_bytes(self._bytes(at + 8 * word, 8), "little") for word in range(3))
            at, file = self._text(at + 24)
            at, function = self._text(at)
            at, line_table, _ = self._content(at)
            code = _Code(function, file, first_line, line_table)
            self._first_numbers.append(number)
            self._codes.append(self._known.setdefault(code, code))
        self._words[sites.AT_NOTES_TAIL // 8] = head

    def _read_type(self, at: int) -> int:
        number, address, flags = (int.from_bytes(self._bytes(at + 8 * word, 8), "little") for word in range(3))
        at, module = self._text(at + 24)
        at, name = self._text(at)
        module = module if flags & object_types.HAS_MODULE else ""
        number &= ~object_types.TYPE_NOTE
        collected, is_static = bool(flags & object_types.COLLECTED), not flags & object_types.HEAP_TYPE
        headers = flags >> object_types.HEADER_SHIFT & 3
        least_bytes = flags >> object_types.LEAST_SHIFT & object_types.LEAST_MOST
        self.types.append(TypeNote(number, address, module, name, collected, is_static, headers, least_bytes))
        return at

    def site(self, number: int) -> Site:
        """Returns the call site of a number; its line is 0 if CPython has none."""
        index = bisect_right(self._first_numbers, number) - 1
        code, unit = self._codes[index], number - self._first_numbers[index]
        starts, lines = _lines(code)
        at = bisect_right(starts, unit) - 1
        return Site(code.function, code.file, lines[at] if at >= 0 else 0)

    def _text(self, at: int) -> tuple[int, str]:
        """Returns the next position, and a text in which surrogates are escaped."""
        at, content, width = self._content(at)
        text = content.decode(_ENCODINGS[width], "surrogatepass")
        return at, text.encode(errors="backslashreplace").decode()

    def _content(self, at: int) -> tuple[int, bytes, int]:
        """Returns the next position, the bytes of a text, and the number of bytes for each character."""
        length_and_width = int.from_bytes(self._bytes(at, 8), "little")
        length, width = length_and_width >> sites.WIDTH_BITS, length_and_width & ((1 << sites.WIDTH_BITS) - 1)
        return at + 8 + length + -length % 8, self._bytes(at + 8, length), width

    def _bytes(self, at: int, length: int) -> bytes:
        """Returns bytes of the notes, which are a ring buffer."""
        start = at % tap.NOTES_BYTES
        end = min(start + length, tap.NOTES_BYTES)
        content = self._memory[tap.NOTES_AT + start : tap.NOTES_AT + end]
        return content + self._memory[tap.NOTES_AT : tap.NOTES_AT + length - len(content)]


@entry
def _replace_numbers(column: np.ndarray, row: int, places: np.ndarray) -> int:
    """Replaces numbers by indices in `column`, from `row` on; returns the first row whose number has no index yet.

    `places` (uint32) has for each number the index plus one, or 0.
    """
    while row < column.shape[0]:
        number = column[row]
        if number == 0:
            column[row] = _NOWHERE
        elif number < places.shape[0] and places[number] > 0:
            column[row] = places[number] - 1
        else:
            break
        row += 1
    return row


class SiteTable:
    """The call sites of a recording, each once, in the order of their first event."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.sites: list[Site] = []
        self._indices: dict[Site, int] = {}
        self._places = np.zeros(1 << 16, np.uint32)

    def number(self, column: np.ndarray) -> None:
        """Replaces the hooks' numbers in `column` by indices of `sites`, in place."""
        self._notes.read()
        row = 0
        while (row := _replace_numbers(column, row, self._places)) < column.shape[0]:
            self._add(int(column[row]))

    def _add(self, number: int) -> None:
        site = self._notes.site(number)
        index = self._indices.setdefault(site, len(self.sites))
        if index == len(self.sites):
            self.sites.append(site)
        self._places = with_room(self._places, number + 1)  # untouched pages take no memory
        self._places[number] = index + 1
