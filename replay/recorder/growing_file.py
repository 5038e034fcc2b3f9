"""A Parquet file that grows while a program runs. Batches that were written are never lost.

A Parquet file cannot be read without the footer at its end. So each batch is first encoded as a complete Parquet file
in memory and then appended:

    PAR1  length, file  length, file  …  footer

A footer has the offsets of the columns from the start of its file. The last footer joins all of them, with the position
of each file added to its offsets. It makes the whole a plain Parquet file; the bytes between the batches, about a
thousandth, are not used. If writing was interrupted, `rescue` reads all complete batches and adds this footer.
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

_BYTE_STREAM_SPLIT = tuple(name for name in COLUMNS if name != "time_ns")
"""Columns with BYTE_STREAM_SPLIT, which is faster to write than dictionaries: the program may have to wait."""
_WITH_STATISTICS = ["time_ns"]
"""Columns with statistics, from which a reader gets the duration of the recording before it reads the rows."""
_MAGIC = b"PAR1"
_REHEARSED_ROWS = 1000
_LENGTH = struct.Struct("<Q")
_FOOTER_LENGTH = struct.Struct("<I")
_FOOTER_END_BYTES = _FOOTER_LENGTH.size + len(_MAGIC)


class GrowingFile:
    """Appends batches to an open file. Drops its earlier content.

    `addresses`, `sites`, `types`: whether the batches have these columns.
    """

    def __init__(self, file: BinaryIO, addresses: bool, sites: bool = False, types: bool = False) -> None:
        self._file = file
        file.truncate(0)
        columns = (("address", addresses), ("site", sites), ("type", types))
        self._optional = tuple(name for name, present in columns if present)
        self._sites_written = self._types_written = 0
        self._parts: list[tuple[int, pq.FileMetaData]] = []
        self._end = len(_MAGIC)
        _write_all(self._file, _MAGIC)

    def append(self, events: Events, metadata: Metadata) -> None:
        """Writes a batch with the trace's metadata so far. After an OSError, `finish` still works.

        A part contains only the new call sites and types, because the whole tables can be larger than the batch.
        """
        part = _file_of(
            to_table(events.keep_optional(*self._optional)),
            replace(
                metadata,
                sites=metadata.sites[self._sites_written :],
                types=metadata.types[self._types_written :],
            ),
        )
        self._sites_written, self._types_written = len(metadata.sites), len(metadata.types)
        position = self._end + _LENGTH.size
        _write_all(self._file, _LENGTH.pack(len(part)) + part)
        self._parts.append((self._end, _footer_at(part, position)))
        self._end = position + len(part)

    def rehearse(self) -> None:
        """Encodes a batch and discards it, because the first one takes the libraries longer."""
        columns = Events.empty(_REHEARSED_ROWS, *self._optional)
        for column in columns.present().values():
            column.fill(1)
        _footer_at(_file_of(to_table(columns), Metadata()), 0)

    def finish(self, metadata: Metadata) -> int:
        """Writes the footer and returns the number of rows. The file stays open.

        If the disk is full, the last batches are dropped to make room for the footer.
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
    """Completes the open `file` of an interrupted recording with all complete batches; returns the number of rows.

    Errors call the file `path`.
    """
    footers: list[pq.FileMetaData] = []
    tables: dict[str, list[object]] = {"sites": [], "types": []}
    if file.read(len(_MAGIC)) != _MAGIC:
        raise TraceError("is not an interrupted recording", path=path)
    end = file.tell()
    last = b""
    while (head := file.read(_LENGTH.size)) and len(head) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        part = file.read(length) if length < os.fstat(file.fileno()).st_size else b""
        if len(part) < length or not part.endswith(_MAGIC):
            break
        try:
            footers.append(_footer_at(part, end + _LENGTH.size))
            content = _content(footers[-1])
            for name, table in tables.items():
                table += content.get(name, [])
        except (LookupError, struct.error, ValueError, OSError, pa.ArrowException):
            break  # damaged; the batches before it are complete
        end, last = file.tell(), part
    if not last:
        raise TraceError("has no complete batch, so nothing can be rescued; delete it", path=path)
    metadata_file = pq.read_metadata(io.BytesIO(last))
    footer, rows = _joined(_empty_like(metadata_file, tables), footers)
    file.truncate(end)
    file.seek(end)
    _write_all(file, footer)
    return rows


def _file_of(table: pa.Table, metadata: Metadata) -> bytes:
    """Returns a Parquet file with one row group, or without any for a table without rows."""
    return _encoded(table, key_value_metadata(metadata))


def _encoded(table: pa.Table, key_values: Mapping[bytes, str | bytes]) -> bytes:
    sink = io.BytesIO()
    options = writer_options(table.schema.names, _BYTE_STREAM_SPLIT) | {"write_statistics": _WITH_STATISTICS}
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        if table.num_rows:
            writer.write_table(table, row_group_size=table.num_rows)
        writer.add_key_value_metadata(key_values)
    return sink.getvalue()


def _empty_like(metadata_file: pq.FileMetaData, tables: dict[str, list[object]]) -> pq.FileMetaData:
    """Returns the footer of a file without rows, with the metadata of `metadata_file` and these tables."""
    table = metadata_file.schema.to_arrow_schema().remove_metadata().empty_table()
    content = json.dumps(_content(metadata_file) | tables, sort_keys=True, separators=(",", ":"))
    return pq.read_metadata(io.BytesIO(_encoded(table, {METADATA_KEY: content})))


def _content(footer: pq.FileMetaData) -> dict[str, list[object]]:
    """Returns the trace's metadata in a part."""
    content: dict[str, list[object]] = json.loads((footer.metadata or {})[METADATA_KEY])
    return content


def _footer_at(part: bytes, position: int) -> pq.FileMetaData:
    """Returns a part's footer for a file in which the part begins at `position`."""
    (length,) = _FOOTER_LENGTH.unpack_from(part, len(part) - _FOOTER_END_BYTES)
    footer = shifted(part[-_FOOTER_END_BYTES - length : -_FOOTER_END_BYTES], position)
    return pq.read_metadata(io.BytesIO(_MAGIC + footer + _FOOTER_LENGTH.pack(len(footer)) + _MAGIC))


def _joined(metadata_file: pq.FileMetaData, parts: list[pq.FileMetaData]) -> tuple[bytes, int]:
    """Returns the footer of a file with these parts, and the number of rows. Changes `metadata_file`."""
    for part in parts:
        metadata_file.append_row_groups(part)
    file = io.BytesIO()
    metadata_file.write_metadata_file(file)
    return file.getvalue()[len(_MAGIC) :], sum(part.num_rows for part in parts)


def _write_all(file: BinaryIO, content: bytes) -> None:
    """Writes all bytes. `write` of an unbuffered file can write only a part of them."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
