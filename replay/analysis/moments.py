"""The memory of each simulated process at one moment of a run: spans, resident pages and, on request, live blocks."""

from typing import NamedTuple

import numpy as np

from replay.config import StackConfig
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.simulation.snapshots import Snapshot
from replay.trace import Trace


class Memory(NamedTuple):
    """The memory of a process at one moment. It does not refer to the simulation."""

    process: int
    at_ns: int
    """Since the trace's first event."""
    requested_bytes: int
    resident_bytes: int
    spans: np.ndarray
    """Of type SPAN, by rising address."""
    pages: np.ndarray
    """Addresses of the resident pages."""
    page_bytes: int
    blocks: np.ndarray | None
    """Of type LIVE_BLOCK, if they were requested."""

    @classmethod
    def of(cls, snapshot: Snapshot, *, with_blocks: bool = False) -> "Memory":
        """Returns the memory at the moment of a snapshot."""
        return cls(
            process=snapshot.process,
            at_ns=snapshot.time_ns,
            requested_bytes=int(snapshot.counters.requested_bytes),
            resident_bytes=int(snapshot.counters.resident_bytes),
            spans=snapshot.spans(),
            pages=snapshot.resident_pages(),
            page_bytes=snapshot.page_bytes,
            blocks=snapshot.blocks() if with_blocks else None,
        )


def memory_at(trace: Trace, config: StackConfig, at: str | int, *, with_blocks: bool = False) -> list[Memory]:
    """Returns the memory of each process at a moment: `"end"`, `"peak"`, nanoseconds since the first event, or the
    latest start of a phase."""
    found: dict[int, Memory] = {}

    def sink(snapshot: Snapshot) -> None:
        found[snapshot.process] = Memory.of(snapshot, with_blocks=with_blocks)

    run(trace, config, sample_every_ns=NO_SAMPLES_NS, snapshots=[at], sink=sink, with_blocks=with_blocks)
    return [found[process] for process in sorted(found)]
