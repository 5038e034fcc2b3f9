"""The header of a memray capture in format versions 12 and 13, which memray 1.19 and 1.20 write.

    magic, version                      "memray" and a zero; int32
    Python's version                    as in sys.hexversion, int32
    native stacks, aggregated           a byte each
    records, frames, start, end         int64 each, times in ms since 1970; 0 records before the end of the program
    command line                        ended by a zero byte
    process, main thread, frames to skip                int32, int64, int64
    allocator, Python's traced, lifetimes tracked       a byte each
    from version 13: a path, and two lists of paths     each path ended by a zero byte, each list by an empty path

Numbers are little-endian, from a 64-bit process, as memray's library reads them; captures of other versions are left to
it. The whole file can be one LZ4 frame.
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
"""The same as `_NUMBERS`, without Python's version."""
_ALLOCATORS = {1: "pymalloc", 2: "pymalloc debug", 3: "malloc", 4: "unknown", 5: "mimalloc", 6: "mimalloc debug"}
_BLOCK_BYTES = 1 << 20
_LONGEST_TEXT = 1 << 20
_LONGEST_MS = 1 << 40
"""Thirty-four years: longer than any program runs, and smaller than text that is read as a number."""


class Header(NamedTuple):
    """The fields that are used."""

    python_version: int
    native: bool
    """Whether records have native stacks."""
    aggregated: bool
    records: int
    """Number of records; 0 if the program did not end normally."""
    start_ms: int
    end_ms: int
    command: str
    allocator: str
    python_traced: bool
    length: int
    """Length of the header in bytes."""


@contextmanager
def open_plain(path: Path) -> Iterator[IO[bytes]]:
    """Yields the capture as a stream of decompressed bytes."""
    with path.open("rb") as file:
        if file.read(len(LZ4_MAGIC)) != LZ4_MAGIC:
            file.seek(0)
            yield file
            return
    import pyarrow as pa

    with pa.input_stream(str(path), compression="lz4") as stream:
        yield stream


def readable_bytes(path: Path) -> int | None:
    """Returns the length of the capture without the zeros at its end, which a killed program leaves; None if
    compressed.

    If the last record ends with zeros, it can be lost, as in memray itself.
    """
    with path.open("rb") as file:
        if file.read(len(LZ4_MAGIC)) == LZ4_MAGIC:
            return None
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - _BLOCK_BYTES, 0)
            file.seek(start)
            content = len(file.read(end - start).rstrip(b"\0"))
            if content:
                return start + content
            end = start
    return 0


def read_format_version(path: Path) -> int:
    """Returns the version of the capture's format."""
    with open_plain(path) as stream:
        return _Fields(path, stream).format_version()


def read_ending(path: Path) -> tuple[int, int]:
    """Returns the time of the end in ms since 1970, and the number of records, of a capture in format version 11.

    Both are 0 if the program was killed. memray's library replaces them by values from the records.
    """
    with open_plain(path) as stream:
        fields = _Fields(path, stream)
        fields.format_version()
        _, _, records, _, _, end_ms = _NUMBERS_OF_11.unpack(fields.read(_NUMBERS_OF_11.size))
    return int(end_ms), int(records)


def read_header(path: Path) -> Header | None:
    """Returns the header; None for an unknown version.

    A header of a known version is refused if a field is impossible: memray's library would crash.
    """
    with open_plain(path) as stream:
        fields = _Fields(path, stream)
        version = fields.format_version()
        if version not in KNOWN_VERSIONS:
            return None
        python_version, native, aggregated, records, _, start_ms, end_ms = _NUMBERS.unpack(fields.read(_NUMBERS.size))
        if records < 0 or (end_ms and not start_ms <= end_ms < start_ms + _LONGEST_MS):
            raise fields.torn()
        command = fields.text()
        _, _, _, allocator, python_traced, lifetimes = _REST.unpack(fields.read(_REST.size))
        if max(native, aggregated, python_traced, lifetimes) > 1 or allocator not in _ALLOCATORS:
            raise fields.torn()
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
        """Number of bytes that were read."""

    def read(self, length: int) -> bytes:
        try:
            content = self._stream.read(length)
        except OSError:
            content = b""
        if len(content) < length:
            raise self.torn()
        self.length += length
        return content

    def format_version(self) -> int:
        """Returns the version, which follows the magic at the beginning."""
        if self.read(len(MAGIC)) != MAGIC:
            raise self.torn()
        (version,) = _VERSION.unpack(self.read(_VERSION.size))
        return int(version)

    def text(self) -> str:
        """Returns the text up to the next zero byte, which is skipped."""
        content = bytearray()
        while (byte := self.read(1)) != b"\0":
            content += byte
            if len(content) > _LONGEST_TEXT:
                raise self.torn()
        return content.decode(errors="replace")

    def torn(self) -> TraceError:
        return TraceError("is not a complete capture of memray (its header is incomplete or damaged)", path=self._path)
