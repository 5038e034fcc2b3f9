"""Writes the results of a run: summary.json, a Parquet or CSV file for each frame, and the address of every block.

summary.json                                            the Summary and its claims, one JSON object
timeline, size_classes, pools, arenas, phases .parquet  the frames of `replay.analysis.frames`
processes.parquet                                       only for a trace of several processes
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replay.analysis import frames, metrics
from replay.reports.claims import claims
from replay.reports.threads import threads_as_json
from replay.simulation.result import RunResult
from replay.sources.parquet import GROUP_ROWS
from replay.support.arrow import to_arrow
from replay.support.atomic_files import (
    concerns_output,
    has_already,
    new_file,
    new_folder_target,
    publish,
    temporary_beside,
    write_in_memory,
)
from replay.support.errors import cannot_be_written

SUMMARY = "summary.json"
FRAMES: dict[str, Callable[[RunResult], pl.DataFrame]] = {
    "timeline": frames.timeline,
    "size_classes": frames.size_classes,
    "pools": frames.pools,
    "arenas": frames.arenas,
    "phases": frames.phases,
    "collections": frames.collections,
    "processes": frames.processes,
}
"""Functions that make the frames, by the name of their files. Frames without columns are not written."""
_ADDRESS_SCHEMA = pa.schema([("event", pa.uint64()), ("address", pa.uint64())])


def table_names(suffix: str) -> list[str]:
    """Returns the names of the files with frames: `suffix` is .parquet or .csv."""
    return [f"{name}{suffix}" for name in FRAMES]


@contextmanager
def new_folder(folder: Path, names: Sequence[str] = (), *, force: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `folder`; at the end of the block, its files are moved to `folder`.

    `folder` is created if it is missing. Existing files of these names in it are refused unless `force`. The names are
    those of `write_results` by default.
    """
    target = new_folder_target(folder)
    existing = [name for name in names or (SUMMARY, *table_names(".parquet")) if (target / name).exists()]
    if existing and not force:
        raise has_already(folder, existing[0])
    temporary = temporary_beside(target)
    try:
        temporary.mkdir()
        yield temporary
        if not target.exists():
            temporary.rename(target)
        else:
            written = [path.name for path in temporary.iterdir()]
            for name in written:
                try:
                    publish(temporary / name, target / name, force=force)
                except FileExistsError:
                    raise has_already(folder, name) from None
            for name in set(existing) - set(written):  # files of an earlier run with more frames
                (target / name).unlink(missing_ok=True)
    except OSError as error:
        if not concerns_output(error, temporary, target):
            raise
        raise cannot_be_written(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def summary_json(result: RunResult, summary: metrics.Summary, extra: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Returns the summary as one JSON object, with the claims under the key `claims`, and with `extra`.

    A trace with garbage collections has their sums under `collections`, an object program with threads has their times
    under `threads`.
    """
    claimed = claims(result.metadata, result.config, summary)
    content = summary.model_dump(mode="json") | {"claims": [each.model_dump(mode="json") for each in claimed], **extra}
    if len(sums := frames.collections_by_generation(result)):
        content["collections"] = {"visits": frames.visits_label(result), "by_generation": sums.to_dicts()}
    if times := result.metadata.thread_times:
        content["threads"] = threads_as_json(times)
    return json.dumps(content, indent=2)


def write_results(
    folder: Path, result: RunResult, summary: metrics.Summary, extra: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Writes all files of a run into the existing folder `folder`. The summary also has `extra`."""
    (folder / SUMMARY).write_text(summary_json(result, summary, extra) + "\n", encoding="utf-8")
    write_tables(folder, result, ".parquet")


def write_tables(folder: Path, result: RunResult, suffix: str) -> None:
    """Writes the frames of a run into the existing folder `folder`: `suffix` is .parquet or .csv."""
    for name, frame_of in FRAMES.items():
        frame = frame_of(result)
        if frame.width:
            write = frame.write_csv if suffix == ".csv" else frame.write_parquet
            write_in_memory(write, folder / f"{name}{suffix}")


class AddressWriter:
    """Writes the addresses of allocations and reallocs. `run` calls it with the addresses of each slice.

    Keeps at most a row group and a slice in memory. The owners of the blocks are not written.
    """

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._rows_seen = 0
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0

    def __call__(self, addresses: np.ndarray, owners: np.ndarray) -> None:
        rows = np.flatnonzero(addresses)  # 0: a free, or a row that does not place a block
        columns = [(rows + self._rows_seen).astype(np.uint64), addresses[rows].astype(np.uint64)]
        self._waiting.append(pa.table([to_arrow(column) for column in columns], schema=_ADDRESS_SCHEMA))
        self._rows_seen += addresses.shape[0]
        self._rows_waiting += rows.shape[0]
        if self._rows_waiting >= GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are still in memory."""
        if self._rows_waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=GROUP_ROWS)
        self._waiting, self._rows_waiting = [], 0


@contextmanager
def new_address_file(path: Path, *, force: bool = False) -> Iterator[AddressWriter]:
    """Yields a writer of a Parquet file with the columns `event` (row of the trace, from 0) and `address`.

    The file has a row for each block that is allocated or moved.
    """
    options = {"compression": "zstd", "use_dictionary": False, "column_encoding": "DELTA_BINARY_PACKED"}
    with (
        new_file(path, force=force) as temporary,
        pq.ParquetWriter(temporary, _ADDRESS_SCHEMA, store_schema=False, **options) as writer,
    ):
        addresses = AddressWriter(writer)
        yield addresses
        addresses.flush()
