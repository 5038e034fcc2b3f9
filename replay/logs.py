"""The trace of another tool's log, and what such a trace cannot know.

What was assumed and what was counted stands in the metadata's `origin`, under the keys of `ASSUMED` and `COUNTED`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from replay.calls import Calls
from replay.lives import Lives
from replay.trace import DROPPED_MAPPING_BYTES, Events, Metadata, Site
from replay.units import format_size
from replay.validation import Validator

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


class LogTrace:
    """The trace of a log, followed and validated batch by batch each time it is played.

    `read` gives the calls of the log at `path` and tells `Findings` what it meets; `addresses` as for `Lives`.
    """

    events_total = None
    duration_ns = None

    def __init__(
        self, path: Path, source: str, read: Callable[[Path, Findings], Iterator[Calls]], *, addresses: bool = True
    ) -> None:
        self._path, self._source, self._read, self._addresses = path, source, read, addresses
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
        for calls in self._read(self._path, findings):
            events = lives.events(calls)
            validator.check(events)
            yield events


def told_limits(origin: dict[str, str]) -> str:
    """One line for the screen: what a trace of this origin had to assume and left out; empty if nothing."""
    assumed = [ASSUMED[key].format(origin[key]) for key in ASSUMED if key in origin]
    counted = [COUNTED[key].format(_quantity(key, int(origin[key]))) for key in COUNTED if key in origin]
    cut = [f"cut short {origin[CUT_SHORT]}"] if CUT_SHORT in origin else []
    return "; ".join(([f"not known, so assumed: {', '.join(assumed)}"] if assumed else []) + counted + cut)


def _quantity(key: str, count: int) -> str:
    return format_size(count) if key.endswith("bytes") else f"{count:,}"
