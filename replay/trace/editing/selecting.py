"""Selects blocks of a trace by their allocation, with all events of these blocks."""

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
from replay.trace.editing import EditedTrace, KeyedEvents, edited, keyed
from replay.trace.editing.phases import Phases


@entry
def _select_rows(op: np.ndarray, block: np.ndarray, selected: np.ndarray, kept: np.ndarray, keep: np.ndarray) -> None:
    """Writes into `keep` whether each row is kept. `kept` has the same of each live block. Both change in place."""
    for row in range(op.shape[0]):
        if not concerns_block(op[row]):
            keep[row] = True
            continue
        if allocates(op[row]):
            kept[block[row]] = selected[row]
        keep[row] = kept[block[row]]


class Selection:
    """Finds all rows of selected blocks, batch by batch, and all rows that concern no block."""

    def __init__(self) -> None:
        self._kept = np.zeros(1024, bool)

    def keep(self, events: Events, selected: np.ndarray) -> np.ndarray:
        """Returns a mask of the rows to keep. `selected` is a mask of the allocations of selected blocks. Blocks older
        than the first batch are not kept."""
        self._kept = with_room(self._kept, events.highest_block + 1)
        keep = np.empty(events.rows, bool)
        _select_rows(events.op, events.block, selected, self._kept, keep)
        return keep


@dataclass(frozen=True)
class Conditions:
    """Conditions on the allocation of a block. None means any."""

    thread: int | None = None
    domain: Domain | None = None
    min_size: int = 0
    max_size: int = MAX_SIZE
    """Limits of requested bytes, both inclusive."""
    phase: str | None = None
    """Name of the phase of the allocation."""
    process: str | None = None
    """Name of a process. All events of others are dropped, and the result is a trace of one process."""
    without_sites: frozenset[int] = frozenset()
    """Call sites whose blocks are dropped."""


class FilteredTrace(EditedTrace):
    """A trace with those blocks of another one whose allocations meet the conditions. Marks and garbage collections are
    kept, except those of dropped processes."""

    def __init__(self, trace: Trace, conditions: Conditions, command: str) -> None:
        super().__init__(self._filter, lambda: edited(self._source_metadata(), command))
        self._trace, self._conditions = trace, conditions
        self._names = [process.name for process in trace.metadata.processes]
        if conditions.process is not None and conditions.process not in self._names:
            known = nearest(conditions.process, self._names) if self._names else "the trace has no table of processes"
            raise ReplayError(f"unknown process {conditions.process!r}; {known}")
        self.blocks_kept = 0
        """Number of allocations that were kept. Final after the last batch was read."""

    def _source_metadata(self) -> Metadata:
        metadata = self._trace.metadata
        if self._conditions.process is None:
            return metadata
        process = metadata.processes[self._names.index(self._conditions.process)]
        return replace(metadata, process=process.memory, processes=())

    def _filter(self) -> Iterator[KeyedEvents]:
        selection, phases, conditions = Selection(), Phases(self._trace), self._conditions
        self.blocks_kept = 0
        for events in self._trace.batches():
            if conditions.process is not None:
                events = events.where(phases.owners(events) == self._names.index(conditions.process))
            selected = (events.size >= conditions.min_size) & (events.size <= conditions.max_size)
            if conditions.thread is not None:
                selected &= events.thread == conditions.thread
            if conditions.domain is not None:
                selected &= events.domain == conditions.domain
            if conditions.without_sites and events.site is not None:
                selected &= ~np.isin(events.site, [*conditions.without_sites])
            if conditions.phase is not None:
                selected &= phases.in_force(events) == phases.index(conditions.phase)
            kept = events.where(selection.keep(events, selected))
            self.blocks_kept += int(np.count_nonzero(allocates(kept.op)))
            yield keyed(kept)
        if conditions.phase is not None and phases.index(conditions.phase) not in range(
            len(self._trace.metadata.phases)
        ):
            raise phases.unknown_phase(conditions.phase)
