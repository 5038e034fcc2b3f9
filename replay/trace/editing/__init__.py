"""Traces made from traces: cut, filtered, merged, scaled. Batch by batch; memory grows with the blocks that are live.

An edit yields events whose blocks are named by keys; `EditedTrace` numbers them by the rule of `replay.trace` and
checks the result. Optional columns stay if their declaration allows it: addresses are left out, because where blocks
lie depends on the whole history, which changed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from replay.trace import COLUMNS, OPTIONAL, Events, Metadata, Trace
from replay.trace.block_numbering import Numbering
from replay.trace.validation import Validator

KEPT = tuple(name for name in OPTIONAL if COLUMNS[name].kept_by_edits)
"""Optional columns that an edited trace has, if its sources have them."""


class KeyedEvents(NamedTuple):
    """Events, and keys (uint64) in place of their blocks, unique among live blocks."""

    events: Events
    key: np.ndarray


class EditedTrace:
    """The trace that an edit makes of others. `metadata` is called each time, because that of its sources may grow."""

    events_total = None
    duration_ns = None

    def __init__(self, read: Callable[[], Iterator[KeyedEvents]], metadata: Callable[[], Metadata]) -> None:
        self._read, self._metadata = read, metadata
        self.validator = Validator()

    @property
    def metadata(self) -> Metadata:
        """Whole once the last batch was read."""
        return self._metadata()

    def batches(self) -> Iterator[Events]:
        self.validator = Validator()
        numbering = Numbering()
        for events, key in self._read():
            numbered = events.keep_optional(*KEPT)._replace(block=numbering.number(events.op, key))
            self.validator.check(numbered)
            yield numbered


def keyed(events: Events) -> KeyedEvents:
    """The events with the numbers of their blocks as keys."""
    return KeyedEvents(events, events.block.astype(np.uint64))


def rows_of(events: Events, rows: np.ndarray | slice) -> Events:
    """Some of the rows: a mask, indexes or a slice."""
    return events.where(rows)


def edited(metadata: Metadata, words: str) -> Metadata:
    """The metadata after the edit by the command `words`; unchanged if that is empty.

    What is true of the whole recording only is dropped.
    """
    if not words:
        return metadata
    runtime = metadata.runtime and replace(metadata.runtime, resident=None)
    return replace(metadata, origin=metadata.origin.edited_by(words), counts=(), runtime=runtime)


def span_ns(trace: Trace) -> int:
    """Time from the first event to the last, found by reading all of them."""
    first = last = None
    for events in trace.batches():
        if events.rows:
            first = events.time_ns[0] if first is None else first
            last = events.time_ns[-1]
    return 0 if first is None or last is None else int(last - first)
