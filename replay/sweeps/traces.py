"""The traces of a sweep. Each trace is found, fetched if it is a URL, and decoded once for all its runs."""

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
"""Maximum share of free memory for a decoded trace. Each run reads a larger trace from its file."""


@dataclass(frozen=True)
class Input:
    """A trace that is not decoded yet: source, seed, and the digest of its file."""

    source: str
    """The source as the user wrote it."""
    where: str
    """The source as an absolute path or URL, for processes with another working folder."""
    seed: int | None
    digest: str
    recorded: Metadata = field(default=Metadata(), compare=False, repr=False)
    """Metadata of the recording, as far as they are known before the events are read."""

    @property
    def key(self) -> str:
        return f"{self.digest}:{self.seed}"

    @property
    def label(self) -> str:
        return self.source if self.seed is None else f"{self.source} (seed {self.seed})"


@dataclass(frozen=True)
class Decoded:
    """A decoded trace, and its digest."""

    trace: Trace
    digest: str


def find_inputs(sources: Sequence[str], seeds: Sequence[int]) -> list[Input]:
    """Returns an input for each source, or each source and seed. Raises an error if a source cannot be opened."""
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
        raise ReplayError("the trace is missing; name a trace, a workload or a bundled one (`replay workloads`)")
    return found


_fetched: dict[str, Path] = {}
"""The local files of URLs, in this process."""
_fetching = threading.Lock()


def fetch(source: str) -> Path:
    """Returns the file of a source. Downloads a URL once in each process."""
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
        # A unique name for each URL, with its suffix, which can indicate the format.
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
    except Exception as error:  # each kind of storage has its own exceptions
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


def decode(input_: Input) -> Decoded:
    """Returns the trace in memory with the simulated columns only. A trace that is too large stays in its file."""
    path = fetch(input_.where)
    if _digest(path) != input_.digest:
        raise TraceError("has changed since the sweep began", path=input_.source)
    trace = open_source(path, seed=input_.seed)
    batches: list[Events] = []
    room_bytes = _SHARE_OF_FREE * _free_bytes()
    for events in trace.batches():
        batches.append(events.keep_optional())
        room_bytes -= sum(column.nbytes for column in events if column is not None)
        if room_bytes < 0:
            return Decoded(trace, trace_digest(trace))
    decoded = MemoryTrace(batches, trace.metadata)
    return Decoded(decoded, trace_digest(decoded))


def _free_bytes() -> int:
    """Returns the bytes of memory that are available without swapping."""
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class SharedTraces:
    """Decoded traces. Each is decoded at its first use and dropped after its last."""

    def __init__(self) -> None:
        self._uses_left: Counter[Input] = Counter()
        self._locks: dict[Input, threading.Lock] = {}
        self._decoded: dict[Input, Decoded | ReplayError] = {}

    def expect(self, uses: Iterable[Input]) -> None:
        """Announces uses: each trace will be requested and released as often as it occurs in `uses`."""
        for trace in uses:
            self._uses_left[trace] += 1
            self._locks.setdefault(trace, threading.Lock())

    def get(self, trace: Input) -> Decoded:
        """Returns the decoded trace. If decoding failed at the first use, raises the same error again."""
        with self._locks[trace]:
            if trace not in self._decoded:
                try:
                    self._decoded[trace] = decode(trace)
                except ReplayError as error:
                    self._decoded[trace] = error
            decoded = self._decoded[trace]
        if isinstance(decoded, ReplayError):
            raise decoded
        return decoded

    def release(self, trace: Input) -> None:
        """Ends one use of the trace."""
        with self._locks[trace]:
            self._uses_left[trace] -= 1
            if not self._uses_left[trace]:
                self._decoded.pop(trace, None)
