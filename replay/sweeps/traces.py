"""The traces of a sweep: where they come from, and each decoded once for all runs that play it."""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from replay.errors import ReplayError, TraceError
from replay.sources import locate, open_source
from replay.trace import Events, MemoryTrace, Trace, trace_digest

_SHARE_OF_FREE = 0.4
"""The part of free memory that a decoded trace may take; a larger one is read anew by each run."""


@dataclass(frozen=True)
class Input:
    """A trace to be, told by its source and seed, and by the digest of its file."""

    source: str
    """As it was named."""
    where: str
    """The same for a process with another working folder."""
    seed: int | None
    digest: str

    @property
    def key(self) -> str:
        return f"{self.digest}:{self.seed}"

    @property
    def label(self) -> str:
        return self.source if self.seed is None else f"{self.source} (seed {self.seed})"


@dataclass(frozen=True)
class Decoded:
    """A trace as it is played again and again, and its digest."""

    trace: Trace
    digest: str


def find_inputs(sources: Sequence[str], seeds: Sequence[int]) -> list[Input]:
    """Each source once, or once a seed; whatever cannot be opened at all is refused here."""
    found = []
    each_seed: Sequence[int | None] = seeds or [None]
    for source in sources:
        path = fetch(source)
        for seed in each_seed:
            open_source(path, seed=seed)
        where = str(path.resolve()) if Path(source).exists() else source
        digest = _digest(path)
        found += [Input(source, where, seed, digest) for seed in each_seed]
    if not found:
        raise ReplayError("no trace is given; name a trace, a workload or a bundled one (`replay workloads`)")
    return found


def fetch(source: str) -> Path:
    """The file of a source, brought here first if it is a URL."""
    if "://" not in source:
        return locate(source)
    try:
        import fsspec
    except ImportError:
        raise ReplayError(f"{source}: a URL needs fsspec; pip install 'alloc-replay[cluster]'") from None
    try:
        if source.startswith(("file://", "local://")):
            local = fsspec.core.url_to_fs(source)[1]
        else:
            local = fsspec.open_local(f"simplecache::{source}", mode="rb")
    except (OSError, ImportError, ValueError) as error:
        raise TraceError(f"cannot be read: {error}", path=source) from error
    path = Path(str(local))
    if not path.is_file():
        raise TraceError("there is no such file", path=source)
    return path


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", path=path) from error


def decode(what: Input) -> Decoded:
    """The trace in memory, with what is played and nothing else; one that is too large for that stays in its file."""
    path = fetch(what.where)
    if _digest(path) != what.digest:
        raise TraceError("is another file than when the sweep began", path=what.source)
    trace = open_source(path, seed=what.seed)
    batches: list[Events] = []
    room_bytes = _SHARE_OF_FREE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for events in trace.batches():
        batches.append(events._replace(address=None, site=None))
        room_bytes -= sum(column.nbytes for column in events if column is not None)
        if room_bytes < 0:
            return Decoded(trace, trace_digest(trace))
    held = MemoryTrace(batches, trace.metadata)
    return Decoded(held, trace_digest(held))


class SharedTraces:
    """Hands out decoded traces; each is made when it is first wanted and goes when nobody will want it again."""

    def __init__(self, wanted: Iterable[Input]) -> None:
        """`wanted` names an input as often as it will be asked for."""
        self._left = Counter(wanted)
        self._locks = {each: threading.Lock() for each in self._left}
        self._held: dict[Input, Decoded] = {}

    def get(self, what: Input) -> Decoded:
        with self._locks[what]:
            if what not in self._held:
                self._held[what] = decode(what)
            return self._held[what]

    def release(self, what: Input) -> None:
        """One of those who want it is done."""
        with self._locks[what]:
            self._left[what] -= 1
            if not self._left[what]:
                self._held.pop(what, None)
