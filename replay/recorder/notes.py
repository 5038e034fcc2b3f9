"""Call sites as the writer sees them: notes on codes, and the table of places that events point to.

`replay.recorder.sites` tells what a note is, and what the numbers of call sites are.
"""

import mmap
from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from replay.jit.arrays import with_room
from replay.jit.compiling import entry
from replay.recorder import sites, tap
from replay.recorder.line_table import line_starts
from replay.trace import NO_SITE, Site

_ENCODINGS = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}
"""Of a str, by its bytes a character."""
_NOWHERE = int(NO_SITE)
_DECODED = 256
"""Codes whose lines are kept at hand: where one of them allocates, it does so at several places."""


class _Code(NamedTuple):
    """What there is to say of a function, a module …"""

    function: str
    file: str
    first_line: int
    line_table: bytes


@lru_cache(_DECODED)
def _lines(code: _Code) -> tuple[list[int], list[int]]:
    """Units at which entries of its line table begin, and their lines."""
    pairs = list(line_starts(code.line_table, code.first_line))
    return [start for start, _ in pairs], [line for _, line in pairs]


class Notes:
    """All notes so far; reading them makes room for others."""

    def __init__(self, memory: mmap.mmap, words: np.ndarray) -> None:
        self._memory, self._words = memory, words
        words[sites.AT_NOTES_HEAD // 8] = words[sites.AT_NOTES_TAIL // 8] = 0
        self._first_numbers: list[int] = []
        self._codes: list[_Code] = []
        self._known: dict[_Code, _Code] = {}
        """Codes that are alike are kept once, for a program may make the same over and over."""

    def read(self) -> None:
        """Takes in what was written since."""
        head, at = int(self._words[sites.AT_NOTES_HEAD // 8]), int(self._words[sites.AT_NOTES_TAIL // 8])
        if at == head:
            return
        while at < head:
            number, _, first_line = (int.from_bytes(self._bytes(at + 8 * word, 8), "little") for word in range(3))
            at, file = self._text(at + 24)
            at, function = self._text(at)
            at, line_table, _ = self._content(at)
            code = _Code(function, file, first_line, line_table)
            self._first_numbers.append(number)
            self._codes.append(self._known.setdefault(code, code))
        self._words[sites.AT_NOTES_TAIL // 8] = head

    def site(self, number: int) -> Site:
        """The place that a call site's number stands for; its line is 0 where CPython knows none."""
        index = bisect_right(self._first_numbers, number) - 1
        code, unit = self._codes[index], number - self._first_numbers[index]
        starts, lines = _lines(code)
        at = bisect_right(starts, unit) - 1
        return Site(code.function, code.file, lines[at] if at >= 0 else 0)

    def _text(self, at: int) -> tuple[int, str]:
        """The next position, and a text without what UTF-8 cannot hold."""
        at, content, width = self._content(at)
        text = content.decode(_ENCODINGS[width], "surrogatepass")
        return at, text.encode(errors="backslashreplace").decode()

    def _content(self, at: int) -> tuple[int, bytes, int]:
        """The next position, the bytes at this one, and how many make a character."""
        told = int.from_bytes(self._bytes(at, 8), "little")
        length, width = told >> sites.WIDTH_BITS, told & ((1 << sites.WIDTH_BITS) - 1)
        return at + 8 + length + -length % 8, self._bytes(at + 8, length), width

    def _bytes(self, at: int, length: int) -> bytes:
        """Out of the place in which notes go round."""
        start = at % tap.NOTES_BYTES
        end = min(start + length, tap.NOTES_BYTES)
        content = self._memory[tap.NOTES_AT + start : tap.NOTES_AT + end]
        return content + self._memory[tap.NOTES_AT : tap.NOTES_AT + length - len(content)]


@entry
def _look_up(column: np.ndarray, row: int, places: np.ndarray) -> int:
    """Puts indices in the place of numbers, in place, up to a row whose number has none yet; gives that row.

    `places` (uint32) holds, by number, one more than the index of the place.
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
    """The places that allocate, each once, in the order in which they are met."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.sites: list[Site] = []
        self._indices: dict[Site, int] = {}
        self._places = np.zeros(1 << 16, np.uint32)

    def number(self, column: np.ndarray) -> None:
        """Makes the hooks' numbers indices of `sites`, in place."""
        self._notes.read()
        row = 0
        while (row := _look_up(column, row, self._places)) < column.shape[0]:
            self._add(int(column[row]))

    def _add(self, number: int) -> None:
        site = self._notes.site(number)
        index = self._indices.setdefault(site, len(self.sites))
        if index == len(self.sites):
            self.sites.append(site)
        self._places = with_room(self._places, number + 1)  # what no number reaches takes no memory
        self._places[number] = index + 1
