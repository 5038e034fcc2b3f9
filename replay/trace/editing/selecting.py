"""Some blocks of a trace, with their whole lives: those whose birth is as wanted."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from replay.jit.arrays import with_room
from replay.jit.compiling import entry
from replay.support.errors import ReplayError
from replay.support.limits import MAX_SIZE
from replay.support.names import nearest
from replay.trace import Domain, Events, Metadata, Trace
from replay.trace.block_ops import allocates, concerns_block
from replay.trace.editing import EditedTrace, KeyedEvents, edited, keyed, rows_of
from replay.trace.editing.phases import Phases


@entry
def _keep_lives(op: np.ndarray, block: np.ndarray, wanted: np.ndarray, kept: np.ndarray, keep: np.ndarray) -> None:
    """Fills `keep` with whether each row stays; `kept` has this of every live block. Both change in place."""
    for row in range(op.shape[0]):
        if not concerns_block(op[row]):
            keep[row] = True
            continue
        if allocates(op[row]):
            kept[block[row]] = wanted[row]
        keep[row] = kept[block[row]]


class Selection:
    """Keeps whole lives of one trace's blocks, batch by batch, and all that moves no block."""

    def __init__(self) -> None:
        self._kept = np.zeros(1024, bool)

    def keep(self, events: Events, wanted: np.ndarray) -> np.ndarray:
        """Returns which rows stay. `wanted` marks allocations that stay; blocks older than the first batch do not."""
        self._kept = with_room(self._kept, events.highest_block + 1)
        keep = np.empty(events.rows, bool)
        _keep_lives(events.op, events.block, wanted, self._kept, keep)
        return keep


@dataclass(frozen=True)
class Wanted:
    """What the birth of a block must be like; None is anything."""

    thread: int | None = None
    domain: Domain | None = None
    min_size: int = 0
    max_size: int = MAX_SIZE
    """Both in bytes, and both still wanted."""
    phase: str | None = None
    """In force at the birth."""
    process: str | None = None
    """Of all others nothing stays, and the trace is of one process."""


class FilteredTrace(EditedTrace):
    """The blocks of a trace that were born as wanted; marks and garbage collections all stay, but of processes that are
    not wanted."""

    def __init__(self, trace: Trace, wanted: Wanted, words: str) -> None:
        super().__init__(self._filter, lambda: edited(self._left(), words))
        self._trace, self._wanted = trace, wanted
        self._names = [process.name for process in trace.metadata.processes]
        if wanted.process is not None and wanted.process not in self._names:
            known = nearest(wanted.process, self._names) if self._names else "the trace is of one, which has no name"
            raise ReplayError(f"no process is called {wanted.process!r}; {known}")
        self.blocks_kept = 0
        """Final once the last batch was read."""

    def _left(self) -> Metadata:
        metadata = self._trace.metadata
        if self._wanted.process is None:
            return metadata
        process = metadata.processes[self._names.index(self._wanted.process)]
        return replace(metadata, process=process.memory, processes=())

    def _filter(self) -> Iterator[KeyedEvents]:
        selection, phases, wanted = Selection(), Phases(self._trace), self._wanted
        self.blocks_kept = 0
        for events in self._trace.batches():
            if wanted.process is not None:
                events = rows_of(events, phases.owners(events) == self._names.index(wanted.process))
            births = (events.size >= wanted.min_size) & (events.size <= wanted.max_size)
            if wanted.thread is not None:
                births &= events.thread == wanted.thread
            if wanted.domain is not None:
                births &= events.domain == wanted.domain
            if wanted.phase is not None:
                births &= phases.in_force(events) == phases.index(wanted.phase)
            kept = rows_of(events, selection.keep(events, births))
            self.blocks_kept += int(np.count_nonzero(allocates(kept.op)))
            yield keyed(kept)
        if wanted.phase is not None and phases.index(wanted.phase) not in range(len(self._trace.metadata.phases)):
            raise phases.refuse(wanted.phase)
