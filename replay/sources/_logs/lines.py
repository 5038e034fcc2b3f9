"""Reads text files of any length, plain or compressed, in pieces of whole lines. Has kernels that parse numbers."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from replay.jit.compiling import leaf
from replay.support.errors import TraceError

HEAD_BYTES = 1 << 20
"""Bytes at the beginning of a file that are used to recognize its format. Decompressors return whole blocks: up to 128
KiB in zstd, up to 900 kB in bzip2."""
_PLAIN_HEAD_BYTES = 4096
_PIECE_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 1 << 24
_NEWLINE = 10
UNKNOWN, TOO_LARGE = 2, 3
"""Statuses of kernels that read lines, besides DONE and FULL."""
"""Why a kernel stopped: at the end, at an unknown line, at a size out of range, because a table is full."""
_SHOWN = 80
"""Maximum number of characters of a line in an error message."""
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2"}
"""The first bytes of compressed files (RFC 1952, RFC 8878, the .xz file format, the manual of bzip2)."""
_MAGIC_BYTES = max(map(len, _COMPRESSIONS))
_STANDARD_MODULES = {"xz": "lzma", "bzip2": "bz2"}
"""Modules of the standard library, which can be missing in an interpreter; pyarrow reads the other formats."""
COMPRESSION_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")


class UnknownLineError(TraceError):
    """A line that does not belong to the format of the file."""


class Piece(NamedTuple):
    """Some whole lines."""

    text: np.ndarray
    """Bytes. The last one is a newline, even if the file does not end with one."""
    line: int
    """The number of the first line, from 1."""


def compression_of(head: bytes) -> str | None:
    """Returns the compression of a file that begins with these bytes; None if it is not compressed."""
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


@lru_cache(maxsize=1)
def plain_head(head: bytes) -> bytes:
    """Returns the beginning of the text in a file that begins with `head`; empty if it cannot be decompressed."""
    compression = compression_of(head)
    if compression is None:
        return head[:_PLAIN_HEAD_BYTES]
    text = b""
    with suppress(OSError, ImportError), _decompressed(BytesIO(head), compression) as stream:
        while len(text) < _PLAIN_HEAD_BYTES and (byte := stream.read(1)):  # byte by byte, because `head` is incomplete
            text += byte
    return text


@contextmanager
def _decompressed(source: str | BytesIO, compression: str) -> Iterator[IO[bytes]]:
    """Yields a stream of the text. Raises OSError for damaged data, ImportError for a missing module."""
    damage: tuple[type[Exception], ...] = ()
    if compression in _STANDARD_MODULES:
        module = import_module(_STANDARD_MODULES[compression])
        open_stream = module.open
        damage = (EOFError, getattr(module, "LZMAError", EOFError))
    else:
        import pyarrow as pa

        open_stream = partial(pa.input_stream, compression=compression)
    try:
        with open_stream(source) as stream:
            yield stream
    except damage as error:
        raise OSError(str(error)) from error


def read_pieces(path: Path) -> Iterator[Piece]:
    """Yields the file in pieces of whole lines. Memory is bounded by the longest line."""
    line, rest = 1, b""
    with open_text(path) as file:
        while True:
            fresh = file.read(_PIECE_BYTES)
            end = fresh.rfind(b"\n") + 1
            if not fresh:
                text, rest = rest + b"\n" if rest else b"", b""
            elif end:
                text, rest = rest + fresh[:end], fresh[end:]
            else:
                text, rest = b"", rest + fresh
            if len(rest) > _LONGEST_LINE_BYTES:
                message = f"line {line}: is longer than {_LONGEST_LINE_BYTES >> 20} MiB; is this a text file?"
                raise TraceError(message, path=path)
            if text:
                array = np.frombuffer(text, np.uint8).copy()
                yield Piece(array, line)
                line += int(np.count_nonzero(array == _NEWLINE))
            if not fresh:
                return


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Yields a stream of the text of a file, plain or compressed."""
    with path.open("rb") as file:
        compression = compression_of(file.read(_MAGIC_BYTES))
    if compression is None:
        with path.open("rb") as file:
            yield file
        return
    try:
        with _decompressed(str(path), compression) as stream:
            yield stream
    except OSError as error:
        reason = str(error).partition("\n")[0]
        message = f"the {compression} data is damaged or incomplete ({reason}); copy or record the file again"
        raise TraceError(message, path=path) from None
    except ModuleNotFoundError as error:
        message = f"is compressed with {compression}, but this Python was built without the module {error.name!r}"
        raise TraceError(f"{message}; decompress the file first", path=path) from None


def line_of(piece: Piece, position: int) -> int:
    """Returns the number of the line with the byte at `position`."""
    return piece.line + int(np.count_nonzero(piece.text[:position] == _NEWLINE))


def text_of(piece: Piece, start: int, end: int) -> str:
    """Returns the text from `start` up to `end`."""
    return piece.text[start:end].tobytes().decode("utf-8", errors="replace")


def unknown_line(path: Path, piece: Piece, position: int, format_name: str) -> UnknownLineError:
    """Returns the error for the line that begins at `position`."""
    text = text_of(piece, position, line_end(piece.text, position))
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
    return UnknownLineError(f"line {line_of(piece, position)}: {shown!r} is not a line of {format_name}", path=path)


def check_lines(status: int, path: Path, piece: Piece, position: int, format_name: str) -> None:
    """Raises an error for the line at `position` if a kernel stopped there with `UNKNOWN` or `TOO_LARGE`."""
    if status == UNKNOWN:
        raise unknown_line(path, piece, position, format_name)
    if status == TOO_LARGE:
        message = f"line {line_of(piece, position)}: the size is out of range; a block has 0 to 2^47 bytes"
        raise TraceError(message, path=path)


@leaf
def line_end(text: np.ndarray, at: int) -> int:
    """Returns the position of the first newline from `at` on."""
    while text[at] != 10:
        at += 1
    return at


@leaf
def skip_blanks(text: np.ndarray, at: int) -> int:
    """Returns the position of the first byte from `at` on that is not a blank of C's isspace(), or is a newline."""
    while text[at] == 32 or text[at] == 9 or 11 <= text[at] <= 13:
        at += 1
    return at


@leaf
def read_number(text: np.ndarray, at: int, base: int) -> tuple[int, int]:
    """Returns the number of base 10 or 16 at `at`, and the position after it and the blanks that follow.

    Returns -1 if there is no number, if it exceeds 60 bits, or if neither a blank nor the end of the line follows.
    """
    value, start = 0, at
    while True:
        byte = text[at]
        if 48 <= byte <= 57:
            digit = byte - 48
        elif base == 16 and 97 <= byte <= 102:
            digit = byte - 87
        else:
            break
        if value > 0x7FFFFFFFFFFFFFF:
            return -1, at
        value = value * base + digit
        at += 1
    if at == start:
        return -1, at
    end = skip_blanks(text, at)
    return (value, end) if end > at or text[end] == 10 else (-1, at)
