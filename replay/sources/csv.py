"""A trace as comma-separated text, plain or compressed.

Line 1 is a header with the columns of `replay.trace.columns`, in any order.

time_ns, op, block, size   required; a free may leave its size empty
op, domain                 by name (`malloc`, `obj`) or by number
block                      any numbers below 2^64, also 0x…; blocks get new numbers
thread, domain             0 and obj if the column is missing; the trace's origin has this assumption
optional columns           can be empty or missing
a mark                     its size is the number of the phase, from 0; phases are called `phase 0`, `phase 1` …
"""

import re
from collections.abc import Iterator, Sequence
from enum import IntEnum
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from replay.sources._columns import duplicate_column, unknown_column
from replay.sources._logs.lines import open_text, plain_head
from replay.sources._logs.log_trace import refuse_empty
from replay.support.arrow import to_numpy
from replay.support.errors import TraceError
from replay.support.names import printable
from replay.trace import COLUMNS, OPTIONAL, Domain, Events, Metadata, Op, Provenance
from replay.trace.block_numbering import Numbering
from replay.trace.validation import Validator

if TYPE_CHECKING:  # heavy imports are in functions, because opening a source imports every format
    import pyarrow as pa

SUFFIXES = (".csv",)
_REQUIRED = ("time_ns", "op", "block", "size")
_TYPES = {name: column.memory_type for name, column in COLUMNS.items()}
_TYPES |= {"op": "string", "domain": "string", "block": "uint64"}
_READ_BYTES = 1 << 20
"""Size of a piece. The reader fetches up to 32 pieces in advance."""
_HEADER_BYTES = 1 << 16
_FIRST_LINE = 2
_SHOWN = 80
"""Maximum number of characters of a wrong value in an error message."""
_ADVICE = "`replay import --lenient` omits it"
_WRONG_VALUE = re.compile(r"In CSV column #(\d+): Row #(\d+): .* error to (\w+): invalid value '(.*)'", re.DOTALL)
_WRONG_TEXT = re.compile(r"In CSV column #(\d+): Row #(\d+): .*invalid UTF8 data")
_WRONG_COUNT = re.compile(r"Row #(\d+): (Expected \d+ columns, got \d+)")


def sniff(head: bytes) -> bool:
    return set(_REQUIRED) <= set(_split_header(plain_head(head)))


def open_trace(path: Path) -> "CsvTrace":
    """Returns the trace. Reads only the header; `batches` reads and validates the events."""
    return _open(path, lenient=False)


def open_lenient(path: Path) -> "CsvTrace":
    """The same, but skips unknown columns and invalid lines. The origin names the columns and counts the lines."""
    return _open(path, lenient=True)


def _open(path: Path, *, lenient: bool) -> "CsvTrace":
    with open_text(path) as file:
        header = _split_header(file.read(_HEADER_BYTES))
    if missing := [name for name in _REQUIRED if name not in header]:
        message = f"the header lacks {', '.join(f'`{name}`' for name in missing)}; it names columns by commas"
        raise _error(path, 1, message)
    for name in header:
        if name not in _TYPES and not lenient:
            raise _error(path, 1, unknown_column(name))
        if header.count(name) > 1:
            raise _error(path, 1, duplicate_column(name))
    return CsvTrace(path, header, lenient)


class CsvTrace:
    """A trace in a text file, read and validated piece by piece each time it is read."""

    events_total = None
    duration_ns = None

    def __init__(self, path: Path, header: list[str], lenient: bool = False) -> None:
        self._path, self._lenient = path, lenient
        self._header = header
        self._names = [name for name in header if name in _TYPES]
        self._phases_total = self._dropped_lines = 0
        self.validator = Validator(path)

    @property
    def metadata(self) -> Metadata:
        """The metadata; complete after the last batch, because phases are found in the events."""
        origin = Provenance(
            source="csv",
            file=self._path.name,
            assumed_thread=None if "thread" in self._header else "0",
            assumed_domain=None if "domain" in self._header else "obj",
            dropped_lines=self._dropped_lines or None,
            dropped_columns=", ".join(printable(name) for name in self._header if name not in _TYPES) or None,
        )
        return Metadata(origin, phases=tuple(f"phase {number}" for number in range(self._phases_total)))

    def batches(self) -> Iterator[Events]:
        import pyarrow as pa

        self._phases_total = self._dropped_lines = 0
        self.validator = validator = Validator(self._path)
        numbering = Numbering(self._path)
        try:
            for batch in self._read():
                line = _FIRST_LINE + validator.rows + self._dropped_lines
                if self._lenient:
                    batch = self._readable(batch)
                events = self._to_events(batch, numbering, line)
                validator.check(events)
                self._add_phases(events, line)
                yield events
        except pa.ArrowInvalid as error:
            raise self._explain(str(error)) from None
        except TraceError as error:
            if error.row is None or self._lenient:  # with skipped lines, rows are not lines
                raise
            raise _error(self._path, _FIRST_LINE + error.row, error.what) from None
        refuse_empty(self._dropped_lines, validator.rows, "csv", self._path)

    def _read(self, names: Sequence[str] | None = None) -> "Iterator[pa.RecordBatch]":
        """Yields the columns `names` as text; None: all columns, as text if the file is read with lenient rules."""
        import pyarrow.csv

        as_text = self._lenient or names is not None
        names = self._names if names is None else names

        with open_text(self._path) as file:
            head = file.read(_HEADER_BYTES)
            if len(head) < _HEADER_BYTES and not head.partition(b"\n")[2]:
                return  # pyarrow refuses a file with a header without a newline
        with (
            open_text(self._path) as file,
            pyarrow.csv.open_csv(
                _native(file, self._path),
                # without threads, an error has the number of its row
                read_options=pyarrow.csv.ReadOptions(
                    use_threads=False,
                    block_size=_READ_BYTES,
                    column_names=self._header,
                    skip_rows=1,
                    encoding="latin1" if self._lenient else "utf8",  # `_drop` gets text, so each byte is a character
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    ignore_empty_lines=False, invalid_row_handler=self._drop if self._lenient else None
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types={name: "string" if as_text else _TYPES[name] for name in names},
                    include_columns=list(names),
                    null_values=[""],
                    strings_can_be_null=self._lenient,
                ),
            ) as reader,
        ):
            yield from reader

    def _drop(self, _row: object) -> str:
        """Counts and skips a line with too many or too few values."""
        self._dropped_lines += 1
        return "skip"

    def _readable(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        """Returns the valid rows, in the types of the columns."""
        import pyarrow as pa

        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        good = _known(columns["op"], Op) & ~_is_empty(columns["op"])
        if "domain" in columns:
            good &= _known(columns["domain"], Domain) & ~_is_empty(columns["domain"])
        is_free = _known(columns["op"], Op, only=Op.FREE)
        good &= ~_is_empty(columns["size"]) | is_free
        for name in ("time_ns", "thread", "block"):
            if name in columns:
                good &= ~_is_empty(columns[name])
        for name, column in columns.items():
            good &= _fits(column, _TYPES[name])
        self._dropped_lines += int(np.count_nonzero(~good))
        valid = [column.filter(pa.array(good)).cast(_TYPES[name]) for name, column in columns.items()]
        return pa.RecordBatch.from_arrays(valid, names=list(columns))

    def _to_events(self, batch: "pa.RecordBatch", numbering: Numbering, line: int) -> Events:
        rows = batch.num_rows
        columns = {name: batch.column(name) for name in self._names}
        op = self._codes(columns["op"], "op", Op, line)
        domain = np.full(rows, Domain.OBJ, np.uint8)
        if "domain" in columns:
            domain = self._codes(columns["domain"], "domain", Domain, line)
        for name in ("time_ns", "thread", "block"):
            if name in columns:
                self._refuse_empty(_is_empty(columns[name]), name, line)
        unsized = _is_empty(columns["size"])
        self._refuse_empty(unsized & (op != Op.FREE), "size", line)
        return Events(
            time_ns=to_numpy(columns["time_ns"]),
            thread=to_numpy(columns["thread"]) if "thread" in columns else np.zeros(rows, np.uint32),
            op=op,
            domain=domain,
            block=numbering.number(op, to_numpy(columns["block"])),
            size=to_numpy(columns["size"], 0),
            **{name: to_numpy(columns[name], COLUMNS[name].null) for name in OPTIONAL if name in columns},
        )

    def _codes(self, column: "pa.Array", name: str, known: type[IntEnum], line: int) -> np.ndarray:
        """Returns the numbers of names or numbers. Converts each different value once, because there are few."""
        codes = _codes_by_word(known)
        words = column.dictionary_encode()
        numbers = np.zeros(len(words.dictionary), np.uint8)
        for index, word in enumerate(words.dictionary.to_pylist()):
            code = codes.get(word.strip().lower())
            if code is None:
                row = words.indices.index(index).as_py()
                names = ", ".join(f"{member.name.lower()} ({int(member)})" for member in known)
                message = (
                    f"`{name}` is {word[:_SHOWN]!r}, not one of {names}; {_ADVICE}" if word else f"`{name}` is empty"
                )
                raise _error(self._path, line + row, message)
            numbers[index] = code
        return numbers[to_numpy(words.indices)]

    def _refuse_empty(self, empty: np.ndarray, name: str, line: int) -> None:
        if empty.any():
            raise _error(self._path, line + int(empty.argmax()), f"`{name}` is empty")

    def _add_phases(self, events: Events, line: int) -> None:
        for row in np.flatnonzero(events.op == Op.MARK):
            phase = int(events.size[row])
            if not 0 <= phase <= self._phases_total:
                message = f"mark of phase {phase} after only {self._phases_total} phases; number phases from 0"
                raise _error(self._path, line + int(row), message)
            self._phases_total = max(self._phases_total, phase + 1)

    def _unknown_op(self, last_line: int) -> TraceError | None:
        """Returns the error of the first unknown op up to a line, which may be why other values of it are invalid."""
        import pyarrow as pa

        line = _FIRST_LINE
        try:
            for batch in self._read(["op"]):
                self._codes(batch.column("op")[: last_line + 1 - line], "op", Op, line)
                line += batch.num_rows
                if line > last_line:
                    break
        except TraceError as error:
            return error
        except pa.ArrowInvalid:
            pass
        return None

    def _explain(self, arrow_message: str) -> TraceError:
        """Returns the error of the CSV library with line and column of the file."""
        if match := _WRONG_VALUE.search(arrow_message):
            column, line, type_, value = int(match[1]), int(match[2]), match[3], match[4]
            if error := self._unknown_op(line):
                return error
            shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
            message = f"`{self._header[column]}` is {shown!r}, which is not a valid {type_}"
            return _error(self._path, line, f"{message}; {_ADVICE}")
        if match := _WRONG_TEXT.search(arrow_message):
            return _error(self._path, int(match[2]), f"`{self._header[int(match[1])]}` is not text in UTF-8")
        if match := _WRONG_COUNT.search(arrow_message):
            return _error(self._path, int(match[1]), f"{match[2].lower()}; {_ADVICE}")
        return TraceError(f"cannot be read as CSV: {arrow_message.splitlines()[0]}", path=self._path)


def _native(file: "IO[bytes]", path: Path) -> Any:
    """Returns a stream that the threads of pyarrow read without the GIL. If such a thread waits for the GIL when the
    process ends, the process is aborted."""
    import pyarrow as pa

    return pa.OSFile(str(path)) if isinstance(file, BufferedReader) else file


def _split_header(head: bytes) -> list[str]:
    line = head.decode("utf-8-sig", errors="replace").partition("\n")[0]
    return [name.strip().strip('"') for name in line.split(",")]


def _codes_by_word(known: type[IntEnum]) -> dict[str, int]:
    return {text: int(code) for code in known for text in (code.name.lower(), str(int(code)))}


def _known(column: "pa.Array", known: type[IntEnum], only: int | None = None) -> np.ndarray:
    """Returns whether each word is one of `known`, or equals `only`. Checks each different word once."""
    codes, words = _codes_by_word(known), column.dictionary_encode()
    found = [codes.get(word.strip().lower()) for word in words.dictionary.to_pylist()]
    good = np.array([code is not None and only in (None, code) for code in found], np.bool_)
    return good[to_numpy(words.indices, 0)] if good.size else np.zeros(len(column), np.bool_)


def _fits(column: "pa.Array", type_: str) -> np.ndarray:
    """Returns whether each text can be read as this type. Finds the few invalid ones by bisection."""
    import pyarrow as pa

    try:
        column.cast(type_)
        return np.ones(len(column), np.bool_)
    except pa.ArrowInvalid:
        half = len(column) // 2
        if not half:
            return np.zeros(1, np.bool_)
        return np.concatenate([_fits(column[:half], type_), _fits(column[half:], type_)])


def _is_empty(column: "pa.Array") -> np.ndarray:
    """Returns whether each field is empty."""
    return to_numpy(column.is_null().cast("uint8")).view(np.bool_)


def _error(path: Path, line: int, message: str) -> TraceError:
    return TraceError(f"line {line}: {message}", path=path)
