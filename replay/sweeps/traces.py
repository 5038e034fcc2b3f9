"""The traces of a sweep: where they come from; each is decoded once for all runs that simulate it."""

import atexit
import hashlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

from replay.sources import locate, open_source
from replay.support.errors import ReplayError, TraceError
from replay.trace import Events, MemoryTrace, Metadata, Trace, trace_digest

_SHARE_OF_FREE = 0.4
"""The part of free memory that a decoded trace may take; a larger one is read anew by each run."""


@dataclass(frozen=True)
class Input:
    """A trace that is not decoded yet: its source and seed, and the digest of its file."""

    source: str
    """As it was named."""
    where: str
    """The same for a process with another working folder."""
    seed: int | None
    digest: str
    recorded: Metadata = field(default=Metadata(), compare=False, repr=False)
    """Where it comes from and what was in force there, as far as that is known before its events are read."""

    @property
    def key(self) -> str:
        return f"{self.digest}:{self.seed}"

    @property
    def label(self) -> str:
        return self.source if self.seed is None else f"{self.source} (seed {self.seed})"


@dataclass(frozen=True)
class Decoded:
    """A decoded trace for many simulations, and its digest."""

    trace: Trace
    digest: str


def find_inputs(sources: Sequence[str], seeds: Sequence[int]) -> list[Input]:
    """Returns each source once, or once for each seed; raises an error for a source that cannot be opened."""
    found = []
    each_seed: Sequence[int | None] = seeds or [None]
    for source in sources:
        path = fetch(source)
        opened = [open_source(path, seed=seed).metadata for seed in each_seed]
        where = str(path.resolve()) if Path(source).exists() else source
        digest = _digest(path)
        found += [
            Input(source, where, seed, digest, Metadata(metadata.origin, runtime=metadata.runtime))
            for seed, metadata in zip(each_seed, opened, strict=True)
        ]
    if not found:
        raise ReplayError("no trace is given; name a trace, a workload or a bundled one (`replay workloads`)")
    return found


_fetched: dict[str, Path] = {}
"""Of this process: where the files of URLs were put."""
_fetching = threading.Lock()


def fetch(source: str) -> Path:
    """The file of a source, brought here first if it is a URL: once a process."""
    if "://" not in source:
        return locate(source)
    with _fetching:
        if source not in _fetched:
            _fetched[source] = _download(source)
        return _fetched[source]


def _download(url: str) -> Path:
    try:
        import fsspec
    except ImportError:
        raise ReplayError(f"{url}: a URL needs fsspec; pip install 'alloc-replay[cluster]'") from None
    try:
        files, path = fsspec.core.url_to_fs(url)
        if url.startswith(("file://", "local://")):
            local = Path(path)
            if not local.is_file():
                raise TraceError("the file does not exist", path=url)
            return local
        # A name of its own for each URL, and the suffix, which may tell the format.
        local = (
            _fetched_folder() / hashlib.sha256(url.encode()).hexdigest()[:16] / (PurePosixPath(path).name or "trace")
        )
        local.parent.mkdir(exist_ok=True)
        with files.open(path, "rb") as remote, local.open("wb") as copy:
            shutil.copyfileobj(remote, copy, 1 << 20)
        return local
    except ReplayError:
        raise
    except FileNotFoundError:
        raise TraceError("the file does not exist", path=url) from None
    except Exception as error:  # each kind of storage fails in ways of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TraceError(f"cannot be read: {reason}", path=url) from error


@cache
def _fetched_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="replay-fetched-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", path=path) from error


def decode(what: Input) -> Decoded:
    """Returns the trace in memory, with the simulated columns only; a trace that is too large stays in its file."""
    path = fetch(what.where)
    if _digest(path) != what.digest:
        raise TraceError("is another file than when the sweep began", path=what.source)
    trace = open_source(path, seed=what.seed)
    batches: list[Events] = []
    room_bytes = _SHARE_OF_FREE * _free_bytes()
    for events in trace.batches():
        batches.append(events.keep_optional())
        room_bytes -= sum(column.nbytes for column in events if column is not None)
        if room_bytes < 0:
            return Decoded(trace, trace_digest(trace))
    held = MemoryTrace(batches, trace.metadata)
    return Decoded(held, trace_digest(held))


def _free_bytes() -> int:
    """What the machine can give without swapping."""
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class SharedTraces:
    """Decoded traces; each is made at its first use and dropped after its last."""

    def __init__(self) -> None:
        self._left: Counter[Input] = Counter()
        self._locks: dict[Input, threading.Lock] = {}
        self._held: dict[Input, Decoded | ReplayError] = {}

    def expect(self, wanted: Iterable[Input]) -> None:
        """Announces uses: each trace will be requested, and released, as often as it is named."""
        for what in wanted:
            self._left[what] += 1
            self._locks.setdefault(what, threading.Lock())

    def get(self, what: Input) -> Decoded:
        """Raises again, without another look, what was wrong with it the first time."""
        with self._locks[what]:
            if what not in self._held:
                try:
                    self._held[what] = decode(what)
                except ReplayError as error:
                    self._held[what] = error
            held = self._held[what]
        if isinstance(held, ReplayError):
            raise held
        return held

    def release(self, what: Input) -> None:
        """One of those who want it is done."""
        with self._locks[what]:
            self._left[what] -= 1
            if not self._left[what]:
                self._held.pop(what, None)
