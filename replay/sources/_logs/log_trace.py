"""The trace of another tool's log.

The metadata's `Provenance` has the assumptions about missing data, and the counts of dropped events.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from replay.sources._logs.block_lifetimes import BlockLifetimes
from replay.sources._logs.calls import Calls
from replay.sources._logs.lines import UnknownLineError
from replay.support.errors import TraceError
from replay.trace import Events, Metadata, Provenance, Site
from replay.trace.provenance_text import omissions
from replay.trace.validation import Validator


@dataclass
class Findings:
    """What a format's reader finds in addition to calls. The reader fills it."""

    origin: Provenance = field(default_factory=Provenance)
    """The origin that the log names, and assumptions. `LogTrace` adds counts."""
    dropped_lines: int = 0
    dropped_mappings: int = 0
    dropped_mapping_bytes: int = 0
    failed_calls: int = 0
    sites: list[Site] = field(default_factory=list)


PLAIN_LOG = Provenance(assumed_time="an event a microsecond", assumed_thread="0", assumed_domain="libc")
"""Assumptions about a log without times, threads and domains."""
Reader = Callable[[Path, Findings], Iterator[Calls]]
"""Yields the calls of a log and stores everything else in `Findings`."""
_BATCHES_PROBED = 16
"""Number of batches, of about 1 MiB of text each, in which an event is searched after an unknown line."""


class LineReader(Protocol):
    """A `Reader` of lines. With `lenient` it skips and counts unknown lines; otherwise they are errors."""

    def __call__(self, path: Path, findings: Findings, *, lenient: bool) -> Iterator[Calls]: ...


class LogTrace:
    """The trace of a log, converted and validated batch by batch each time it is read.

    `read_leniently` is tried after an unknown line, to find out whether `--lenient` helps. `addresses` is that of
    `BlockLifetimes`.
    """

    events_total = None
    duration_ns = None

    def __init__(
        self, path: Path, source: str, read: Reader, *, read_leniently: Reader | None = None, addresses: bool = True
    ) -> None:
        self._path, self._source, self._read, self._addresses = path, source, read, addresses
        self._read_leniently = read_leniently
        self._findings, self._lives = Findings(), BlockLifetimes(addresses=addresses)
        self.validator = Validator(path)

    @property
    def metadata(self) -> Metadata:
        """Complete after the last batch was read."""
        found, lifetimes = self._findings, self._lives
        origin = replace(
            found.origin,
            source=self._source,
            file=self._path.name,
            dropped_frees=lifetimes.dropped_frees or None,
            converted_reallocs=lifetimes.converted_reallocs or None,
            missing_frees=lifetimes.missing_frees or None,
            dropped_mappings=found.dropped_mappings or None,
            dropped_mapping_bytes=found.dropped_mapping_bytes or None,
            failed_calls=found.failed_calls or None,
            dropped_lines=found.dropped_lines or None,
        )
        return Metadata(origin, sites=tuple(found.sites))

    def batches(self) -> Iterator[Events]:
        self._findings, self._lives = findings, lifetimes = Findings(), BlockLifetimes(addresses=self._addresses)
        self.validator = validator = Validator(self._path)
        try:
            for calls in self._read(self._path, findings):
                events = lifetimes.events(calls)
                validator.check(events)
                yield events
        except UnknownLineError as error:
            raise TraceError(f"{error.what}; {self._advice()}", path=self._path) from None
        refuse_empty(findings.dropped_lines, validator.rows, self._source, self._path)
        if not validator.rows:
            self._refuse_nothing()

    def _refuse_nothing(self) -> None:
        """Raises TraceError if all calls were left out, or if the file has no bytes."""
        if left_out := omissions(self.metadata.origin):
            message = f"no event remains: {', '.join(left_out)}; record the program from its start"
            raise TraceError(message, path=self._path)
        if self._path.stat().st_size == 0:
            raise TraceError("is empty; did the program end before it wrote the log?", path=self._path)

    def _advice(self) -> str:
        """Returns what to do about an unknown line; `--lenient` helps only if an event remains."""
        if self._read_leniently is not None:
            lenient = LogTrace(self._path, self._source, self._read_leniently, addresses=self._addresses)
            with suppress(TraceError):
                if any(events.rows for events in islice(lenient.batches(), _BATCHES_PROBED)):
                    return "`replay import --lenient` leaves such lines out and counts them"
        return "nothing in the file is an event of that format; `--format NAME` names another one"


def refuse_empty(dropped: int, rows: int, source: str, path: Path) -> None:
    """Raises TraceError if lines were left out and no event remains."""
    if dropped and not rows:
        lines = "1 unknown line was" if dropped == 1 else f"{dropped:,} unknown lines were"
        message = f"no event remains: {lines} left out, and no other line is an event of {source}"
        raise TraceError(f"{message}; `--format NAME` names another format", path=path)


def open_lines(path: Path, source: str, read: LineReader, *, lenient: bool, addresses: bool = True) -> LogTrace:
    """Returns the trace of a log that consists of lines."""
    leniently = partial(read, lenient=True)
    if lenient:
        return LogTrace(path, source, leniently, addresses=addresses)
    return LogTrace(path, source, partial(read, lenient=False), read_leniently=leniently, addresses=addresses)
