"""How a capture of memray begins, in format versions 12 and 13, which memray 1.19 and 1.20 write.

    magic, version                      "memray" and a zero; int32
    Python's version                    as in sys.hexversion, int32
    native stacks, aggregated           a byte each
    records, frames, start, end         int64 each, times in ms since 1970; until all is over, there are 0 records
    command line                        ended by a zero
    process, main thread, frames to skip                int32, int64, int64
    allocator, Python's traced, lifetimes tracked       a byte each
    from version 13: a path, and two lists of them      each path ended by a zero, each list by an empty one

All little-endian, of a 64-bit process: a capture of another kind of process has no sense as this, and is left to
memray's library, as any other version is. The whole may be one LZ4 frame.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from replay.support.errors import TraceError

KNOWN_VERSIONS = (12, 13)
_WITH_PATHS = 13
_PATH_LISTS = 2
MAGIC, LZ4_MAGIC = b"memray\0", b"\x04\x22\x4d\x18"
_VERSION, _NUMBERS, _REST = struct.Struct("<i"), struct.Struct("<iBBqqqq"), struct.Struct("<iqqBBB")
_NUMBERS_OF_11 = struct.Struct("<BBqqqq")
"""As `_NUMBERS`, without Python's version."""
_ALLOCATORS = {1: "pymalloc", 2: "pymalloc debug", 3: "malloc", 4: "unknown", 5: "mimalloc", 6: "mimalloc debug"}
_BLOCK_BYTES = 1 << 20
_LONGEST_TEXT = 1 << 20
_LONGEST_MS = 1 << 40
"""Thirty-four years: no program runs so long, and text read as a number is larger."""


class Header(NamedTuple):
    """What is of use of it here."""

    python_version: int
    native: bool
    """Whether records have native stacks."""
    aggregated: bool
    records: int
    """0 where the program did not get to say it."""
    start_ms: int
    end_ms: int
    command: str
    allocator: str
    python_traced: bool
    length: int
    """Bytes up to the first record."""


@contextmanager
def open_plain(path: Path) -> Iterator[IO[bytes]]:
    """The capture as a stream of bytes that are not compressed any more."""
    with path.open("rb") as file:
        if file.read(len(LZ4_MAGIC)) != LZ4_MAGIC:
            file.seek(0)
            yield file
            return
    import pyarrow as pa

    with pa.input_stream(str(path), compression="lz4") as stream:
        yield stream


def readable_bytes(path: Path) -> int | None:
    """How long the capture is without zeros at its end, which a program leaves that was killed; None if compressed.

    Zeros that belong to the last record may be lost with them, and it with those, as by memray itself.
    """
    with path.open("rb") as file:
        if file.read(len(LZ4_MAGIC)) == LZ4_MAGIC:
            return None
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - _BLOCK_BYTES, 0)
            file.seek(start)
            kept = len(file.read(end - start).rstrip(b"\0"))
            if kept:
                return start + kept
            end = start
    return 0


def read_format_version(path: Path) -> int:
    """The version of the capture's format."""
    with open_plain(path) as stream:
        return _Fields(path, stream).format_version()


def read_ending(path: Path) -> tuple[int, int]:
    """The time of the end, in ms since 1970, and the number of records, of a capture in format version 11.

    Both are 0 where the program was killed. memray's library replaces them by what it finds in the file.
    """
    with open_plain(path) as stream:
        fields = _Fields(path, stream)
        fields.format_version()
        _, _, records, _, _, end_ms = _NUMBERS_OF_11.unpack(fields.take(_NUMBERS_OF_11.size))
    return int(end_ms), int(records)


def read_header(path: Path) -> Header | None:
    """The header; None if it is of a version or a kind of process that is not known here."""
    with open_plain(path) as stream:
        fields = _Fields(path, stream)
        version = fields.format_version()
        if version not in KNOWN_VERSIONS:
            return None
        python_version, native, aggregated, records, _, start_ms, end_ms = _NUMBERS.unpack(fields.take(_NUMBERS.size))
        if records < 0 or (end_ms and not start_ms <= end_ms < start_ms + _LONGEST_MS):
            return None
        command = fields.text()
        _, _, _, allocator, python_traced, lifetimes = _REST.unpack(fields.take(_REST.size))
        if max(native, aggregated, python_traced, lifetimes) > 1 or allocator not in _ALLOCATORS:
            return None
        if version >= _WITH_PATHS:
            fields.text()
            for _ in range(_PATH_LISTS):
                while fields.text():
                    pass
    return Header(
        python_version, bool(native), bool(aggregated), records, start_ms, end_ms, command, _ALLOCATORS[allocator],
        bool(python_traced), fields.length,
    )  # fmt: skip


class _Fields:
    """Reads one field after the other."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path, self._stream = path, stream
        self.length = 0
        """Bytes so far."""

    def take(self, length: int) -> bytes:
        try:
            content = self._stream.read(length)
        except OSError:
            content = b""
        if len(content) < length:
            raise self.torn()
        self.length += length
        return content

    def format_version(self) -> int:
        """What follows the magic, with which a capture begins."""
        if self.take(len(MAGIC)) != MAGIC:
            raise self.torn()
        (version,) = _VERSION.unpack(self.take(_VERSION.size))
        return int(version)

    def text(self) -> str:
        """Up to the next zero, which is stepped over."""
        taken = bytearray()
        while (byte := self.take(1)) != b"\0":
            taken += byte
            if len(taken) > _LONGEST_TEXT:
                raise self.torn()
        return taken.decode(errors="replace")

    def torn(self) -> TraceError:
        return TraceError("is not a complete capture of memray (its header is cut off or damaged)", path=self._path)
