"""Traces as Parquet files, replay's own format. `docs/trace-format.md` is its public description.

columns   as in `replay.trace.columns`, with any integer type that can hold the values. A `block` that is not UInt32
          can have any keys (addresses, numbers with gaps); they are renumbered when read. An unknown column is refused,
          or skipped by `open_lenient`
metadata  one key, `replay`: JSON with `format_version` and the fields of `Metadata`; a file without it is read as
          version 1 with empty metadata. Version 2 is used for traces of several processes only
output    zstd, row groups of 2^18 rows independent of the batches, so the same trace results in the same bytes
"""

import json
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from replay.sources._columns import duplicate_column, unknown_column
from replay.support.arrow import to_arrow, to_numpy
from replay.support.atomic_files import new_file
from replay.support.errors import TraceError
from replay.support.names import printable
from replay.support.yaml_documents import explain
from replay.trace import COLUMNS, FORMAT_VERSION, OPTIONAL, REQUIRED, Events, Metadata, Trace, joined
from replay.trace.block_numbering import Numbering
from replay.trace.processes import mistake_in
from replay.trace.validation import Validator

if TYPE_CHECKING:  # heavy imports are in functions, because opening a source imports every format
    import pyarrow as pa
    import pyarrow.parquet as pq

SUFFIXES = (".parquet", ".pq")
GROUP_ROWS = 1 << 18
"""Rows of a row group, in every Parquet file that is written batch by batch."""
METADATA_KEY = b"replay"


def sniff(head: bytes) -> bool:
    return head.startswith(b"PAR1")


def open_trace(path: Path) -> "ParquetTrace":
    """Returns the trace. Reads only the footer; `batches` reads and validates the events."""
    return _open(path, lenient=False)


def open_lenient(path: Path) -> "ParquetTrace":
    """The same, but skips unknown columns. The origin in the metadata names them."""
    return _open(path, lenient=True)


def _open(path: Path, *, lenient: bool) -> "ParquetTrace":
    with _reading(path) as file:
        metadata = _parse_metadata((file.metadata.metadata or {}).get(METADATA_KEY), path)
        names = file.schema_arrow.names
        if unknown := [name for name in names if name not in COLUMNS]:
            if not lenient:
                raise TraceError(unknown_column(unknown[0]), path=path)
            dropped = ", ".join(map(printable, unknown))
            metadata = replace(metadata, origin=replace(metadata.origin, dropped_columns=dropped))
        columns = _columns_of(file.schema_arrow, path)
        return ParquetTrace(path, metadata, file.metadata.num_rows, _duration_ns(file.metadata), columns)


def _columns_of(schema: "pa.Schema", path: Path) -> tuple[str, ...]:
    """Returns the names of the trace's columns. Raises TraceError for a missing or duplicate column or a wrong type."""
    import pyarrow as pa

    columns = {field.name: field.type for field in schema if field.name in COLUMNS}
    if twice := [name for name in columns if schema.names.count(name) > 1]:
        raise TraceError(duplicate_column(twice[0]), path=path)
    if missing := [name for name in REQUIRED if name not in columns]:
        raise TraceError(f"has no column {' and '.join(f'`{name}`' for name in missing)}", path=path)
    for name in OPTIONAL:
        if name in columns and pa.types.is_null(columns[name]):
            del columns[name]
    for name, type_ in columns.items():
        if not pa.types.is_integer(type_):
            message = f"column `{name}` has type {type_}; it must have integers ({COLUMNS[name].file_type})"
            raise TraceError(message, path=path)
    return tuple(name for name in COLUMNS if name in columns)


@dataclass
class ParquetTrace:
    """A trace in a file, read and validated row group by row group each time it is read."""

    path: Path
    metadata: Metadata
    events_total: int
    duration_ns: int | None
    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        self.validator = Validator(self.path, self.metadata)

    def batches(self) -> Iterator[Events]:
        self.validator = validator = Validator(self.path, self.metadata)
        numbering = Numbering(self.path)
        with _reading(self.path) as file:
            for batch in file.iter_batches(GROUP_ROWS, columns=self.columns):
                events = _to_events(batch, numbering, self.path, validator.rows)
                validator.check(events)
                yield events


@contextmanager
def _reading(path: Path) -> "Iterator[pq.ParquetFile]":
    """Yields the open file. Converts errors of the Parquet library to one sentence."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With read-ahead, the library would have the whole file in memory.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise TraceError(f"is not a complete Parquet file; copy or record it again ({reason})", path=path) from error


def _duration_ns(footer: "pq.FileMetaData") -> int | None:
    """Returns the last time, from the statistics of the last row group with rows; None without statistics."""
    for index in range(footer.num_row_groups - 1, -1, -1):
        group = footer.row_group(index)
        for chunk in (group.column(number) for number in range(group.num_columns)):
            if group.num_rows and chunk.path_in_schema == "time_ns":
                statistics = chunk.statistics
                return int(statistics.max) if statistics and statistics.has_min_max else None
    return 0


def _to_events(batch: "pa.RecordBatch", numbering: Numbering, path: Path, first_row: int) -> Events:
    """Converts a batch to the types in memory. Columns that have these types share the memory of the batch."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in batch.schema.names:
        column = batch.column(name)
        if column.null_count and name in REQUIRED:
            row = first_row + column.is_null().index(True).as_py()
            raise TraceError(f"`{name}` is null", path=path, row=row)
        key = name == "block" and column.type != "uint32"
        type_ = COLUMNS[name].memory_type
        if key:
            type_ = "int64" if pa.types.is_signed_integer(column.type) else "uint64"
        columns[name] = _unsigned_as_signed(column, type_)
        if columns[name] is None:
            columns[name] = to_numpy(_cast(column, name, type_, path, first_row), COLUMNS[name].null)
        if key:
            columns[name] = numbering.number(columns["op"], columns[name].view(np.uint64))
    return Events(**columns)


def _unsigned_as_signed(column: "pa.Array", type_: str) -> np.ndarray | None:
    """Returns a column of unsigned 64-bit numbers as signed ones in the same memory; None if it is no such column."""
    if (str(column.type), type_) != ("uint64", "int64") or column.null_count:
        return None
    signed = to_numpy(column).view(np.int64)
    return signed if signed.min(initial=0) >= 0 else None


def _cast(column: "pa.Array", name: str, type_: str, path: Path, first_row: int) -> "pa.Array":
    import pyarrow as pa

    try:
        return column if column.type == type_ else column.cast(type_)
    except pa.ArrowInvalid:
        bounds = np.iinfo(type_)
        for row, value in enumerate(column.to_pylist(), first_row):
            if value is not None and not bounds.min <= value <= bounds.max:
                written = np.iinfo(COLUMNS[name].file_type)
                fits = written.min <= value <= written.max
                why = "which exceeds 63 bits" if fits else f"out of the range of {COLUMNS[name].file_type}"
                raise TraceError(f"`{name}` is {value}, {why}", path=path, row=row) from None
        raise


def _parse_metadata(text: bytes | None, path: Path) -> Metadata:
    if text is None:
        return Metadata()
    advice = "write it as described in docs/trace-format.md, or leave it out"
    try:
        content = json.loads(text)
        version = content.pop("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ValueError(f"format_version is {version!r}")
        if version > FORMAT_VERSION:
            message = (
                f"has format version {version}; this version of replay reads up to {FORMAT_VERSION}: get a newer one"
            )
            raise TraceError(message, path=path)
        metadata: Metadata = TypeAdapter(Metadata).validate_python(content)
        if min(asdict(metadata.process).values()) < 0:
            message = f"the metadata under the key `replay` is wrong at `process`: negative bytes; {advice}"
            raise TraceError(message, path=path)
        resident = metadata.runtime and metadata.runtime.resident
        if resident and min(asdict(resident).values()) < 0:
            message = f"the metadata under the key `replay` is wrong at `runtime.resident`: negative bytes; {advice}"
            raise TraceError(message, path=path)
        if metadata.processes and version < FORMAT_VERSION:
            mistake: str | None = f"format version {version} has no processes; write version {FORMAT_VERSION}"
        else:
            mistake = mistake_in(metadata)
        if mistake:
            message = f"the metadata under the key `replay` is wrong at `processes`: {mistake}; {advice}"
            raise TraceError(message, path=path)
        return metadata
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = f"the metadata under the key `replay` is wrong at `{where}`: {explain({}, first)}; {advice}"
        raise TraceError(message, path=path) from None
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        message = f"the metadata under the key `replay` is not a JSON object with a format_version ({error}); {advice}"
        raise TraceError(message, path=path) from None


def write_trace(
    trace: Trace, path: str | Path, *, force: bool = False, progress: Callable[[int], None] | None = None
) -> int:
    """Writes a trace batch by batch and returns the number of rows. Calls `progress` with the rows so far.

    All batches must have the same optional columns. The trace's metadata is read after its last batch.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    with new_file(path, force=force) as temporary, ExitStack() as closing:
        thread = closing.enter_context(ThreadPoolExecutor(1))  # compresses a group while the next one is prepared
        thread.submit(int)  # starts the thread now: a signal during the start would leave a thread without a join

        def open_writer(schema: "pa.Schema") -> "pq.ParquetWriter":
            writer = closing.enter_context(pq.ParquetWriter(temporary, schema, **writer_options(schema.names)))
            closing.callback(thread.shutdown)  # runs before the writer is closed
            return writer

        writer = None
        writing: Future[None] | None = None
        for events in _regroup(trace.batches()):
            table = to_table(events)
            if writing is not None:
                writing.result()
            writer = writer or open_writer(table.schema)
            writing = thread.submit(writer.write_table, table, row_group_size=GROUP_ROWS)
            rows += events.rows
            if progress is not None:
                progress(rows)
        if writing is not None:
            writing.result()
        if writer is None:
            writer = open_writer(pa.schema([(name, COLUMNS[name].file_type) for name in REQUIRED]))
        writer.add_key_value_metadata(key_value_metadata(trace.metadata))
    return rows


def key_value_metadata(metadata: Metadata) -> dict[bytes, str]:
    """Returns the metadata of a trace as key and value of a Parquet file."""
    version = FORMAT_VERSION if metadata.processes else 1
    content = {"format_version": version, **asdict(metadata), "origin": metadata.origin.texts()}
    del content["thread_times"], content["visits"]
    for name in ("counts", "processes", "runtime", "types", "collector", "freeze_at"):  # fields that few traces have
        if not content[name]:
            del content[name]
    return {METADATA_KEY: json.dumps(content, sort_keys=True, separators=(",", ":"))}


def writer_options(names: list[str], shuffled: Collection[str] = ()) -> dict[str, object]:
    """Returns options for a file with these columns: times and addresses as differences, dictionaries for the others.

    Columns in `shuffled` have BYTE_STREAM_SPLIT instead (all lowest bytes first), which is faster, and smaller if
    neighbours are not similar.
    """
    encodings = dict.fromkeys(("time_ns", "block", "address"), "DELTA_BINARY_PACKED")
    encodings |= dict.fromkeys(shuffled, "BYTE_STREAM_SPLIT")
    return {
        "compression": "zstd",
        "use_dictionary": [name for name in names if name not in encodings],
        "column_encoding": {name: encoding for name, encoding in encodings.items() if name in names},
        "store_schema": False,
    }


def to_table(events: Events) -> "pa.Table":
    import pyarrow as pa

    columns = {}
    for name, column in events.present().items():
        missing = column == COLUMNS[name].null if name in OPTIONAL else None
        columns[name] = to_arrow(column.view(COLUMNS[name].file_type), missing)
    return pa.table(columns)


def _regroup(batches: Iterator[Events]) -> Iterator[Events]:
    """Yields the same events in groups of `GROUP_ROWS`; the last group can be smaller."""
    waiting: list[Events] = []
    rows = 0
    for events in batches:
        start = 0
        while rows + events.rows - start >= GROUP_ROWS:
            end = start + GROUP_ROWS - rows
            yield joined([*waiting, events.where(slice(start, end))])
            waiting, rows, start = [], 0, end
        if start < events.rows:
            waiting.append(events.where(slice(start, events.rows)))
            rows += events.rows - start
    if rows:
        yield joined(waiting)
