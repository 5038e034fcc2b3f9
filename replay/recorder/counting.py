"""pymalloc's statistics of a recorded program (`sys._debugmallocstats`): the row of the trace, and the counts."""

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
    """Finds the rows of the trace at which pymalloc counted, while the writer reads the ring."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._rows: list[int] = []

    def records_until(self, records: int, row: int) -> int:
        """Returns how many of the next records precede the next count. The first of them becomes `row` of the trace."""
        for index, _ in self._ring.counts()[len(self._rows) :]:
            if index > self._ring.tail:
                return min(records, index - self._ring.tail)
            self._rows.append(row)
        return records

    def counts(self) -> tuple[PoolCount, ...]:
        """Returns the counts; empty unless pymalloc counted at the beginning and at the end."""
        reports = self._ring.counts()
        if len(self._rows) < 2 or len(reports) < 2:
            return ()
        counts = [read_count(text, row) for (_, text), row in zip(reports, self._rows, strict=True)]
        return tuple(count for count in counts if count is not None)


def read_count(text: str, row: int) -> PoolCount | None:
    """Parses the output of `sys._debugmallocstats`; None if counts of pools or arenas are missing."""
    arenas = {name: _number(reports) for name, reports in _ARENAS.findall(text)}
    unused = _UNUSED.search(text)
    if len(arenas) < 4 or unused is None:
        return None
    classes = tuple(ClassCount(*map(int, numbers)) for numbers in _CLASS.findall(text))
    return PoolCount(
        row, arenas[_TOTAL], arenas[_RECLAIMED], arenas[_HIGHEST], arenas[_CURRENT], _number(unused[1]), classes
    )


def _number(text: str) -> int:
    return int(text.replace(",", ""))
