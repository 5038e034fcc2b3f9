"""Edits of traces: cut, filter, merge and scale. They work batch by batch; memory is proportional to live blocks.

An edit yields events with keys instead of block numbers. `EditedTrace` numbers the blocks by the rule of `replay.trace`
and validates the result. Optional columns are kept if their declaration allows it. Addresses are dropped, because they
depend on the whole history, which the edit changes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from replay.support.errors import ReplayError
from replay.support.limits import MAX_SPAN
from replay.trace import COLUMNS, OPTIONAL, Events, Metadata, Trace
from replay.trace.block_numbering import NO_BLOCK, Numbering
from replay.trace.validation import Validator

KEPT = tuple(name for name in OPTIONAL if COLUMNS[name].kept_by_edits)
"""Optional columns that an edited trace takes over from its sources."""


class KeyedEvents(NamedTuple):
    """Events, and a key (uint64) for the block of each row. Keys are unique among live blocks."""

    events: Events
    key: np.ndarray


class EditedTrace:
    """The trace that an edit returns. `metadata` is a function, because the metadata of the sources may grow while they
    are read."""

    events_total: int | None = None
    duration_ns: int | None = None

    def __init__(self, read: Callable[[], Iterator[KeyedEvents]], metadata: Callable[[], Metadata]) -> None:
        self._read, self._metadata = read, metadata
        self.validator = Validator()

    @property
    def metadata(self) -> Metadata:
        """Complete after the last batch was read."""
        return self._metadata()

    def batches(self) -> Iterator[Events]:
        self.validator = Validator()
        numbering = Numbering()
        for events, key in self._read():
            numbered = events.keep_optional(*KEPT)._replace(block=numbering.number(events.op, key))
            if (numbered.block == NO_BLOCK).any():
                numbered = numbered.where(numbered.block != NO_BLOCK)
            self.validator.check(numbered)
            yield numbered


def keyed(events: Events) -> KeyedEvents:
    """Returns the events with their block numbers as keys."""
    return KeyedEvents(events, events.block.astype(np.uint64))


def refuse_too_long(span_ns: int | Fraction, setting: str) -> None:
    """Raises ReplayError for a time that no trace may have. `setting`: what made it so long."""
    if span_ns > MAX_SPAN:
        raise ReplayError(f"the trace would last more than thirty years; take a smaller {setting}")


def edited(metadata: Metadata, command: str) -> Metadata:
    """Returns the metadata of a trace after an edit by this command line, or unchanged if it is empty.

    Fields that describe the unedited recording only are dropped.
    """
    if not command:
        return metadata
    runtime = metadata.runtime and replace(metadata.runtime, resident=None)
    return replace(metadata, origin=metadata.origin.edited_by(command), counts=(), runtime=runtime)


def span_ns(trace: Trace) -> int:
    """Returns the time from the first event to the last. Reads the whole trace."""
    first = last = None
    for events in trace.batches():
        if events.rows:
            first = events.time_ns[0] if first is None else first
            last = events.time_ns[-1]
    return 0 if first is None or last is None else int(last - first)
