"""A Parquet file that grows while a program runs, and from which nothing that was written is lost.

A Parquet file cannot be read without the footer at its end. So each batch is first made a Parquet file of its own in
memory, and put behind the earlier ones:

    PAR1  length, file  length, file  …  footer

Each file's footer tells where its columns are, counted from that file's start. Moved on by where the file stands, the
footers of all make the one at the end, with which the whole is a plain Parquet file; what stands between the batches
(a thousandth) is dead. Where writing was cut off, `rescue` walks along the lengths and adds that footer.
"""

import io
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from replay.recorder.thrift import shifted
from replay.sources.parquet import METADATA_KEY, key_value_metadata, to_table, writer_options
from replay.support.errors import TraceError
from replay.trace import COLUMNS, Events, Metadata

_SHUFFLED = tuple(name for name in COLUMNS if name != "time_ns")
"""A program must not wait for dictionaries."""
_KNOWN_LIMITS = ["time_ns"]
"""By these, a reader knows how long the recording is before it has read it."""
_MAGIC = b"PAR1"
_REHEARSED_ROWS = 1000
_LENGTH = struct.Struct("<Q")
_FOOTER_LENGTH = struct.Struct("<I")
_FOOTER_END_BYTES = _FOOTER_LENGTH.size + len(_MAGIC)


class GrowingFile:
    """Batches, appended one by one to an open file, whose content is dropped.

    With `addresses` and `sites`, they have these columns.
    """

    def __init__(self, file: BinaryIO, addresses: bool, sites: bool = False) -> None:
        self._file = file
        file.truncate(0)
        self._optional = tuple(name for name, kept in (("address", addresses), ("site", sites)) if kept)
        self._sites_told = 0
        self._parts: list[tuple[int, pq.FileMetaData]] = []
        self._end = len(_MAGIC)
        _write_all(self._file, _MAGIC)

    def append(self, events: Events, metadata: Metadata) -> None:
        """Writes a batch; `metadata` are those of the trace as known by now. After an OSError `finish` still works.

        Of the table of call sites, a part holds what is new: the whole could be larger than many a batch.
        """
        part = _file_of(
            to_table(events.keep_optional(*self._optional)), replace(metadata, sites=metadata.sites[self._sites_told :])
        )
        self._sites_told = len(metadata.sites)
        position = self._end + _LENGTH.size
        _write_all(self._file, _LENGTH.pack(len(part)) + part)
        self._parts.append((self._end, _footer_at(part, position)))
        self._end = position + len(part)

    def rehearse(self) -> None:
        """Makes a batch and drops it: the libraries take their time for the first one."""
        columns = Events.empty(_REHEARSED_ROWS, *self._optional)
        for column in columns.present().values():
            column.fill(1)
        _footer_at(_file_of(to_table(columns), Metadata()), 0)

    def finish(self, metadata: Metadata) -> int:
        """Writes the footer and returns the number of rows; the file stays open.

        Where the disk is full, the last batches make room for it.
        """
        empty = _file_of(to_table(Events.empty(0, *self._optional)), metadata)
        while True:
            footer, rows = _joined(pq.read_metadata(io.BytesIO(empty)), [footer for _, footer in self._parts])
            try:
                self._file.truncate(self._end)
                self._file.seek(self._end)
                _write_all(self._file, footer)
                return rows
            except OSError:
                if not self._parts:
                    raise
                self._end, _ = self._parts.pop()


def rescue(file: BinaryIO, path: Path) -> int:
    """Makes the open `file`, which was cut off, a whole one, with all complete batches; returns the number of rows.

    `path` is what errors call it.
    """
    footers, sites = [], []
    if file.read(len(_MAGIC)) != _MAGIC:
        raise TraceError("is not a recording that was cut off", path=path)
    end = file.tell()
    last = b""
    while (head := file.read(_LENGTH.size)) and len(head) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        part = file.read(length) if length < os.fstat(file.fileno()).st_size else b""
        if len(part) < length or not part.endswith(_MAGIC):
            break
        try:
            footers.append(_footer_at(part, end + _LENGTH.size))
            sites += _content(footers[-1])["sites"]
        except (LookupError, struct.error, ValueError, OSError, pa.ArrowException):
            break  # damaged: what stands before it is whole
        end, last = file.tell(), part
    if not last:
        raise TraceError("holds no complete batch, so nothing can be rescued; delete it", path=path)
    whole = pq.read_metadata(io.BytesIO(last))
    footer, rows = _joined(_empty_like(whole, sites), footers)
    file.truncate(end)
    file.seek(end)
    _write_all(file, footer)
    return rows


def _file_of(table: pa.Table, metadata: Metadata) -> bytes:
    """A Parquet file of one row group, or of none for no rows."""
    return _encoded(table, key_value_metadata(metadata))


def _encoded(table: pa.Table, key_values: Mapping[bytes, str | bytes]) -> bytes:
    sink = io.BytesIO()
    options = writer_options(table.schema.names, _SHUFFLED) | {"write_statistics": _KNOWN_LIMITS}
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        if table.num_rows:
            writer.write_table(table, row_group_size=table.num_rows)
        writer.add_key_value_metadata(key_values)
    return sink.getvalue()


def _empty_like(whole: pq.FileMetaData, sites: list[object]) -> pq.FileMetaData:
    """The footer of a file without rows, with the metadata of another, but these call sites."""
    table = whole.schema.to_arrow_schema().remove_metadata().empty_table()
    content = json.dumps(_content(whole) | {"sites": sites}, sort_keys=True, separators=(",", ":"))
    return pq.read_metadata(io.BytesIO(_encoded(table, {METADATA_KEY: content})))


def _content(footer: pq.FileMetaData) -> dict[str, list[object]]:
    """What the metadata of a part say of the trace."""
    content: dict[str, list[object]] = json.loads((footer.metadata or {})[METADATA_KEY])
    return content


def _footer_at(part: bytes, position: int) -> pq.FileMetaData:
    """A part's footer, for a file in which the part begins at `position`."""
    (length,) = _FOOTER_LENGTH.unpack_from(part, len(part) - _FOOTER_END_BYTES)
    footer = shifted(part[-_FOOTER_END_BYTES - length : -_FOOTER_END_BYTES], position)
    return pq.read_metadata(io.BytesIO(_MAGIC + footer + _FOOTER_LENGTH.pack(len(footer)) + _MAGIC))


def _joined(whole: pq.FileMetaData, parts: list[pq.FileMetaData]) -> tuple[bytes, int]:
    """What stands at the end of a file with these parts, and their rows; changes `whole`."""
    for part in parts:
        whole.append_row_groups(part)
    file = io.BytesIO()
    whole.write_metadata_file(file)
    return file.getvalue()[len(_MAGIC) :], sum(part.num_rows for part in parts)


def _write_all(file: BinaryIO, content: bytes) -> None:
    """An unbuffered file may take a part at a time."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
