"""Text files of any length, plain or compressed, in pieces of whole lines; and kernels that read numbers in them."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from replay.jit.compiling import leaf
from replay.support.errors import TraceError

HEAD_BYTES = 1 << 18
"""So much of a file tells its format: zstd gives nothing before a block is whole, which takes up to 128 KiB."""
_PLAIN_HEAD_BYTES = 4096
_PIECE_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 1 << 24
_NEWLINE = 10
OK, UNKNOWN, TOO_LARGE, FULL = range(4)
"""Why a kernel stopped at a line: at none, at one that is not understood, at a size out of range, for want of room."""
_SHOWN = 80
"""Characters of a line that an error shows."""
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""How a compressed file begins (RFC 1952, RFC 8878)."""


class Piece(NamedTuple):
    """Some whole lines."""

    text: np.ndarray
    """Bytes; the last one is a newline, whether or not the file ends with one."""
    line: int
    """The number of the first line, from 1."""


def _compression(head: bytes) -> str | None:
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


@lru_cache(maxsize=1)
def plain_head(head: bytes) -> bytes:
    """How the text begins in a file that begins with `head`; empty where that cannot be told."""
    compression = _compression(head)
    if compression is None:
        return head[:_PLAIN_HEAD_BYTES]
    if compression == "gzip":
        try:
            return zlib.decompressobj(wbits=31).decompress(head, _PLAIN_HEAD_BYTES)
        except zlib.error:
            return b""
    import pyarrow as pa

    text = b""
    try:
        stream = pa.CompressedInputStream(pa.BufferReader(head), compression)
        while len(text) < _PLAIN_HEAD_BYTES and (byte := stream.read(1)):
            text += byte
    except (pa.ArrowException, OSError):  # the head is cut off somewhere
        pass
    return text


def read_pieces(path: Path) -> Iterator[Piece]:
    """The file from its first line to its last; memory is bounded by the longest line."""
    line, rest = 1, b""
    with _open_text(path) as file:
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
                what = f"line {line}: is longer than {_LONGEST_LINE_BYTES >> 20} MiB; is this a text file?"
                raise TraceError(what, path=path)
            if text:
                array = np.frombuffer(text, np.uint8).copy()
                yield Piece(array, line)
                line += int(np.count_nonzero(array == _NEWLINE))
            if not fresh:
                return


@contextmanager
def _open_text(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        compression = _compression(file.read(4))
    if compression is None:
        with path.open("rb") as file:
            yield file
        return
    import pyarrow as pa

    try:
        with pa.input_stream(str(path), compression=compression) as stream:
            yield stream
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TraceError(f"is no whole {compression} file; copy or record it again ({reason})", path=path) from None


def line_of(piece: Piece, position: int) -> int:
    """The number of the line that holds the byte at `position`."""
    return piece.line + int(np.count_nonzero(piece.text[:position] == _NEWLINE))


def text_of(piece: Piece, start: int, end: int) -> str:
    """The text from `start` up to `end`."""
    return piece.text[start:end].tobytes().decode("utf-8", errors="replace")


def unknown_line(path: Path, piece: Piece, position: int, format_name: str) -> TraceError:
    """What to say of the line that begins at `position`."""
    text = text_of(piece, position, line_end(piece.text, position))
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
    what = f"line {line_of(piece, position)}: {shown!r} is no line of {format_name}"
    return TraceError(f"{what}; `replay import --lenient` leaves such lines out and counts them", path=path)


def check_lines(status: int, path: Path, piece: Piece, position: int, format_name: str) -> None:
    """Raises what is to be said of the line at `position`, if a kernel stopped there by `UNKNOWN` or `TOO_LARGE`."""
    if status == UNKNOWN:
        raise unknown_line(path, piece, position, format_name)
    if status == TOO_LARGE:
        what = f"line {line_of(piece, position)}: the size is out of range; a block has 0 to 2^47 bytes"
        raise TraceError(what, path=path)


@leaf
def line_end(text: np.ndarray, at: int) -> int:
    """Where the newline of the line around `at` stands."""
    while text[at] != 10:
        at += 1
    return at


@leaf
def read_number(text: np.ndarray, at: int, base: int) -> tuple[int, int]:
    """The number that begins at `at`, of base 10 or 16, and where it ends; -1 if none begins or it takes over 60 bits.

    It must be followed by a space or by the end of the line, which is stepped over if it is a space.
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
    while text[at] == 13:
        at += 1
    if text[at] == 32:
        return value, at + 1
    return (value, at) if text[at] == 10 else (-1, at)
