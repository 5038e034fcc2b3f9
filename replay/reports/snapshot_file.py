"""Snapshots as an Arrow IPC file: only changes are stored, so that hundreds of a large heap fit on disk and in memory.

A record batch is one snapshot of one process. Its rows are spans, addresses of spans that are gone, and addresses of
pages that became resident or ceased to be (`change`); the last two have an address only. The batch's own metadata,
JSON under the key `replay`, says which moment it is, and has the counters. Any reader of Arrow opens the file;
`open_snapshots` also adds the changes up.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import pyarrow as pa

from replay.allocators import SPAN
from replay.simulation.snapshots import Changes, Sink, Snapshot, SpanTable, joined
from replay.support.arrow import to_arrow, to_numpy
from replay.support.atomic_files import new_file
from replay.support.errors import ReplayError

FORMAT_VERSION = 1
_KEY = b"replay"
_JOINED = 32
"""So many snapshots are added up at once, which is quicker than one by one and needs the memory for so many."""
_SPAN_COLUMNS = [name for name in SPAN.names or () if name != "resident_bytes"]
_SCHEMA = pa.schema(
    [("change", pa.uint8())] + [(name, pa.from_numpy_dtype(SPAN[name])) for name in _SPAN_COLUMNS],
    metadata={_KEY: json.dumps({"format_version": FORMAT_VERSION})},
)


class Change(IntEnum):
    """What a row of the file is."""

    SPAN = 0
    """A span that is new, or that replaces the one at its address."""
    GONE = 1
    """A span that is no more."""
    PAGE = 2
    """A page that became resident if it was not, and else ceased to be."""


@dataclass(frozen=True)
class Moment:
    """Which moment of which process a snapshot shows."""

    label: str
    """`peak`, `end` or the phase that begins; empty for a time."""
    time_ns: int
    """Since the trace's first event."""
    rows: int
    """Rows of the trace before it."""
    process: int
    page_bytes: int
    counters: dict[str, int]


@contextmanager
def new_snapshot_file(path: str | Path, *, force: bool = False) -> Iterator[Sink]:
    """A sink for `run` that writes snapshots to a new file, compressed by a thread of its own."""
    with (
        new_file(path, force=force) as temporary,
        pa.ipc.new_file(temporary, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer,
        ThreadPoolExecutor(1) as thread,
    ):
        thread.submit(int)  # now: an executor does not wait for a thread whose start a signal has interrupted
        writing: Future[None] = thread.submit(lambda: None)

        def write(snapshot: Snapshot) -> None:
            nonlocal writing
            writing.result()  # at most one is waiting
            writing = thread.submit(_write, writer, snapshot)

        yield write
        writing.result()


def _write(writer: pa.RecordBatchFileWriter, snapshot: Snapshot) -> None:
    gone, spans, pages = snapshot.changes
    addresses = {Change.SPAN: spans["address"], Change.GONE: gone, Change.PAGE: pages}
    lengths = [len(each) for each in addresses.values()]
    change = np.repeat(np.array([*addresses], np.uint8), lengths)
    columns = {name: np.zeros(len(change), SPAN[name]) for name in _SPAN_COLUMNS}
    for name, column in columns.items():
        column[: len(spans)] = spans[name]
    columns["address"] = np.concatenate([*addresses.values()])
    counters = {name: int(snapshot.counters[name]) for name in snapshot.counters.dtype.names or ()}
    moment = Moment(snapshot.label, snapshot.time_ns, snapshot.rows, snapshot.process, snapshot.page_bytes, counters)
    batch = pa.record_batch([to_arrow(each) for each in (change, *columns.values())], schema=_SCHEMA)
    writer.write_batch(batch, custom_metadata={_KEY: json.dumps(vars(moment), separators=(",", ":"))})


class SnapshotFile:
    """The snapshots of a file, in the order of time; of several processes, one after the other at each moment."""

    def __init__(self, path: str | Path) -> None:
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            header = json.loads((self._reader.schema.metadata or {})[_KEY])
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise ReplayError(f"{path}: not a file of snapshots: {error}") from error
        if header["format_version"] != FORMAT_VERSION:
            raise ReplayError(f"{path}: its format is version {header['format_version']}, not {FORMAT_VERSION}")

    def __len__(self) -> int:
        return int(self._reader.num_record_batches)

    def __iter__(self) -> Iterator[tuple[Moment, np.ndarray]]:
        """Each moment, with all rows of SPAN of its process by rising address."""
        tables: dict[int, SpanTable] = {}
        for number in range(len(self)):
            moment, changes = self._read(number)
            table = tables.setdefault(moment.process, SpanTable())
            table.apply(changes)
            yield moment, table.spans(moment.page_bytes)

    def moments(self) -> list[Moment]:
        """Which snapshots there are."""
        batches = map(self._reader.get_batch_with_custom_metadata, range(len(self)))
        return [Moment(**json.loads(metadata[_KEY])) for _, metadata in batches]

    def spans(self, number: int) -> np.ndarray:
        """All rows of SPAN of one snapshot, by rising address."""
        wanted, table = self._read(number)[0], SpanTable()
        for first in range(0, number + 1, _JOINED):
            found = [self._read(each) for each in range(first, min(first + _JOINED, number + 1))]
            if mine := [changes for moment, changes in found if moment.process == wanted.process]:
                table.apply(joined(mine))
        return table.spans(wanted.page_bytes)

    def _read(self, number: int) -> tuple[Moment, Changes]:
        batch, metadata = self._reader.get_batch_with_custom_metadata(number)
        columns = {name: to_numpy(batch.column(name)) for name in batch.schema.names}
        change, address = columns.pop("change"), columns["address"]
        spans = np.zeros(int(np.count_nonzero(change == Change.SPAN)), SPAN)
        for name, column in columns.items():
            spans[name] = column[: len(spans)]
        changes = Changes(address[change == Change.GONE], spans, address[change == Change.PAGE])
        return Moment(**json.loads(metadata[_KEY])), changes
