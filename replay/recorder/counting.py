"""How pymalloc counted itself in a recorded program: which row of the trace that was at, and what it said."""

import re

from replay.recorder.ring import Ring
from replay.trace import ClassCount, PoolCount

_CLASS = re.compile(r"^ *\d+ +(\d+) +(\d+) +(\d+) +(\d+)$", re.MULTILINE)
_ARENAS = re.compile(
    r"^# arenas (allocated total|reclaimed|highwater mark|allocated current) += +([\d,]+)$", re.MULTILINE
)
_UNUSED = re.compile(r"^([\d,]+) unused pools \* ", re.MULTILINE)
_TOTAL, _RECLAIMED, _HIGHEST, _CURRENT = "allocated total", "reclaimed", "highwater mark", "allocated current"


class Counting:
    """Follows the writer through the ring, and notes the rows at which there were counts."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._rows: list[int] = []

    def records_until(self, records: int, row: int) -> int:
        """How many of the next records, the first of which is for `row`, can be taken before a count must be noted."""
        for index, _ in self._ring.counts()[len(self._rows) :]:
            if index > self._ring.tail:
                return min(records, index - self._ring.tail)
            self._rows.append(row)
        return records

    def counts(self) -> tuple[PoolCount, ...]:
        """What is known by now; none at all unless pymalloc counted at the beginning and at the end."""
        told = self._ring.counts()
        if len(self._rows) < 2 or len(told) < 2:
            return ()
        counts = [read_count(text, row) for (_, text), row in zip(told, self._rows, strict=True)]
        return tuple(count for count in counts if count is not None)


def read_count(text: str, row: int) -> PoolCount | None:
    """What `sys._debugmallocstats` prints of pools and arenas; None if it does not say all of it."""
    arenas = {name: _number(told) for name, told in _ARENAS.findall(text)}
    unused = _UNUSED.search(text)
    if len(arenas) < 4 or unused is None:
        return None
    classes = tuple(ClassCount(*map(int, numbers)) for numbers in _CLASS.findall(text))
    return PoolCount(
        row, arenas[_TOTAL], arenas[_RECLAIMED], arenas[_HIGHEST], arenas[_CURRENT], _number(unused[1]), classes
    )


def _number(text: str) -> int:
    return int(text.replace(",", ""))
