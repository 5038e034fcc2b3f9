"""The digest of a trace. It depends on the events only, not on their storage or division into batches.

Of the optional columns, only alignments are included, because the others do not change a simulation.
"""

import hashlib

import numpy as np

from replay.trace.columns import REQUIRED
from replay.trace.events import Events
from replay.trace.metadata import Process
from replay.trace.traces import Trace


class Digest:
    """SHA-256 over the SHA-256 of each required column. The alignments of memaligns and the table of processes follow,
    if the trace has them."""

    def __init__(self) -> None:
        self._columns = {name: hashlib.sha256() for name in REQUIRED}
        self._alignments = hashlib.sha256()
        self._has_memaligns = False

    def update(self, events: Events) -> None:
        for name, digest in self._columns.items():
            digest.update(np.ascontiguousarray(getattr(events, name)).data)
        if events.alignment is not None and events.memalign_rows.size:
            self._alignments.update(events.alignment[events.memalign_rows].data)
            self._has_memaligns = True

    def hexdigest(self, processes: tuple[Process, ...] = ()) -> str:
        """Returns the digest of all batches so far, in hexadecimal. A process is included as the count of its threads
        and their numbers."""
        digests = [*self._columns.values()]
        if self._has_memaligns:
            digests.append(self._alignments)
        if processes:
            table = [number for process in processes for number in (len(process.threads), *sorted(process.threads))]
            digests = [*digests, hashlib.sha256(np.array(table, np.int64).data)]
        return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def trace_digest(trace: Trace) -> str:
    """Returns the digest of a whole trace, in hexadecimal."""
    digest = Digest()
    for events in trace.batches():
        digest.update(events)
    return digest.hexdigest(trace.metadata.processes)
