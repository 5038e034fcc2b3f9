"""The trace of another tool's log, and what such a trace cannot know.

What was assumed and what was counted stands in the metadata's `origin`, under the keys of `ASSUMED` and `COUNTED`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from replay.sources._logs.block_lifetimes import Lives
from replay.sources._logs.calls import Calls
from replay.sources._logs.lines import UnknownLineError
from replay.support.errors import TraceError
from replay.support.units import format_size
from replay.trace import DROPPED_COLUMNS, DROPPED_MAPPING_BYTES, Events, Metadata, Site
from replay.trace.validation import Validator

ASSUMED = {
    "assumed time": "time: {}",
    "assumed thread": "thread: {}",
    "assumed domain": "domain: {}",
    "assumed frees": "frees: {}",
    "assumed reallocs": "reallocs: {}",
}
"""Keys of `origin` for what a format does not tell, and how that is said; the values are text."""
CUT_SHORT = "cut short"
"""Key of `origin` for where a log ended that promised more."""
COUNTED = {
    "dropped frees": "frees of blocks older than the log, left out: {}",
    "born by realloc": "reallocs of blocks older than the log, taken as mallocs: {}",
    "missing frees": "frees that the log lacks, put in: {}",
    "dropped mappings": "mmap and munmap calls left out: {}",
    DROPPED_MAPPING_BYTES: "memory mapped by them, left out: {}",
    "failed calls": "calls that failed, left out: {}",
    "dropped lines": "unknown lines, left out: {}",
}
"""Keys of `origin` for what was counted; the values are numbers, and a key is there if it is not 0."""


@dataclass
class Findings:
    """What a format's reader finds beside calls; it fills this in while it reads."""

    origin: dict[str, str] = field(default_factory=dict)
    """With the keys of `ASSUMED` for what the log cannot tell."""
    counted: Counter[str] = field(default_factory=Counter)
    """By the keys of `COUNTED`."""
    sites: list[Site] = field(default_factory=list)


Reader = Callable[[Path, Findings], Iterator[Calls]]
"""Yields the calls of a log and notes in `Findings` what else it meets."""
_BATCHES_PROBED = 16
"""Of about 1 MiB of text each: so far a refused file is searched for an event."""


class LineReader(Protocol):
    """A `Reader` of lines: with `lenient` it leaves unknown lines out and counts them, otherwise it refuses them."""

    def __call__(self, path: Path, findings: Findings, *, lenient: bool) -> Iterator[Calls]: ...


class LogTrace:
    """The trace of a log, followed and validated batch by batch each time it is simulated.

    `read_leniently` is tried after an unknown line, to say whether `--lenient` helps; `addresses` as for `Lives`.
    """

    events_total = None
    duration_ns = None

    def __init__(
        self, path: Path, source: str, read: Reader, *, read_leniently: Reader | None = None, addresses: bool = True
    ) -> None:
        self._path, self._source, self._read, self._addresses = path, source, read, addresses
        self._read_leniently = read_leniently
        self._findings, self._lives = Findings(), Lives(addresses=addresses)
        self.validator = Validator(path)

    @property
    def metadata(self) -> Metadata:
        """Whole once the last batch was read."""
        counted = self._findings.counted | Counter(self._lives.tallies)
        counts = {key: str(counted[key]) for key in COUNTED if counted[key]}
        origin = {"source": self._source, "file": self._path.name}
        return Metadata(origin | self._findings.origin | counts, sites=tuple(self._findings.sites))

    def batches(self) -> Iterator[Events]:
        self._findings, self._lives = findings, lives = Findings(), Lives(addresses=self._addresses)
        self.validator = validator = Validator(self._path)
        try:
            for calls in self._read(self._path, findings):
                events = lives.events(calls)
                validator.check(events)
                yield events
        except UnknownLineError as error:
            raise TraceError(f"{error.what}; {self._advice()}", path=self._path) from None
        dropped = findings.counted["dropped lines"]
        if dropped and not validator.rows:
            lines = "1 unknown line was" if dropped == 1 else f"{dropped:,} unknown lines were"
            what = f"nothing is left to import: {lines} left out, and no other line is an event of {self._source}"
            raise TraceError(f"{what}; `--format NAME` names another format", path=self._path)

    def _advice(self) -> str:
        """What to do about an unknown line: `--lenient` is of use only if it leaves an event."""
        if self._read_leniently is not None:
            lenient = LogTrace(self._path, self._source, self._read_leniently, addresses=self._addresses)
            with suppress(TraceError):
                if any(events.rows for events in islice(lenient.batches(), _BATCHES_PROBED)):
                    return "`replay import --lenient` leaves such lines out and counts them"
        return "nothing in the file is an event of that format; `--format NAME` names another one"


def open_lines(path: Path, source: str, read: LineReader, *, lenient: bool, addresses: bool = True) -> LogTrace:
    """The trace of a log that consists of lines."""
    leniently = partial(read, lenient=True)
    if lenient:
        return LogTrace(path, source, leniently, addresses=addresses)
    return LogTrace(path, source, partial(read, lenient=False), read_leniently=leniently, addresses=addresses)


def told_limits(origin: dict[str, str]) -> str:
    """One line for the screen: what a trace of this origin had to assume and left out; empty if nothing."""
    assumed = [ASSUMED[key].format(origin[key]) for key in ASSUMED if key in origin]
    counted = [COUNTED[key].format(_quantity(key, int(origin[key]))) for key in COUNTED if key in origin]
    cut = [f"unknown columns, left out: {origin[DROPPED_COLUMNS]}"] if DROPPED_COLUMNS in origin else []
    cut += [f"cut short {origin[CUT_SHORT]}"] if CUT_SHORT in origin else []
    return "; ".join(([f"not known, so assumed: {', '.join(assumed)}"] if assumed else []) + counted + cut)


def _quantity(key: str, count: int) -> str:
    return format_size(count) if key.endswith("bytes") else f"{count:,}"
