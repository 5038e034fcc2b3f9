"""The digest of a trace: equal for equal events, however they are stored or divided into batches.

Of the optional columns only alignments count, because no other changes what is simulated.
"""

import hashlib

import numpy as np

from replay.trace.columns import REQUIRED
from replay.trace.events import Events
from replay.trace.metadata import Process
from replay.trace.traces import Trace


class Digest:
    """SHA-256 over the SHA-256 of each required column, of the alignments of memaligns, and of the table of processes.
    The last two only where there are any."""

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
        """The digest of all batches so far, in hexadecimal. A process counts as the number of its threads and these."""
        digests = [*self._columns.values()]
        if self._has_memaligns:
            digests.append(self._alignments)
        if processes:
            table = [number for process in processes for number in (len(process.threads), *sorted(process.threads))]
            digests = [*digests, hashlib.sha256(np.array(table, np.int64).data)]
        return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def trace_digest(trace: Trace) -> str:
    """The digest of a whole trace, in hexadecimal."""
    digest = Digest()
    for events in trace.batches():
        digest.update(events)
    return digest.hexdigest(trace.metadata.processes)
