"""Adds a distance to every file offset in the footer of a Parquet file.

A footer is a Thrift struct in the compact protocol. A field has a type and the difference of its number to the previous
field's; integers are zigzag varints. Only such integers change; everything else is copied.
"""

_SHIFTED = {(4, 5), (4, 1, 2), (4, 1, 4), (4, 1, 6), (4, 1, 3, 9), (4, 1, 3, 10), (4, 1, 3, 11), (4, 1, 3, 14)}
"""Paths of field numbers in parquet.thrift. In row groups (4): file_offset (5). In their columns (1): file_offset (2),
offset_index_offset (4), column_index_offset (6). In their meta_data (3): data_page_offset (9), index_page_offset (10),
dictionary_page_offset (11), bloom_filter_offset (14)."""
_STOP, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 3, 7, 8, 9, 10, 12
_VARINTS = (4, 5, 6)
_TRUTHS = (1, 2)
_LONG_LIST = 15


def shifted(footer: bytes, distance: int) -> bytes:
    """Returns the footer for the same columns, `distance` bytes later in the file."""
    moved = _Moving(footer, distance)
    moved.struct(())
    return bytes(moved.out)


class _Moving:
    """Copies a footer to `out`, with changed offsets."""

    def __init__(self, footer: bytes, distance: int) -> None:
        self._footer, self._distance = footer, distance
        self._at = 0
        self.out = bytearray()

    def struct(self, path: tuple[int, ...]) -> None:
        number = 0
        while header := self._copy(1)[0]:
            step = header >> 4
            number = number + step if step else _unzigzag(self._varint())
            self._value(header & 15, (*path, number))

    def _value(self, kind: int, path: tuple[int, ...]) -> None:
        if kind in _VARINTS:
            self._integer(path)
        elif kind == _BINARY:
            self._copy(self._varint())
        elif kind in (_LIST, _SET):
            self._list(path)
        elif kind == _STRUCT:
            self.struct(path)
        elif kind in (_BYTE, _DOUBLE):
            self._copy(1 if kind == _BYTE else 8)
        elif kind not in _TRUTHS:
            raise ValueError(f"type {kind} does not occur in a Parquet footer")

    def _list(self, path: tuple[int, ...]) -> None:
        header = self._copy(1)[0]
        items = self._varint() if header >> 4 == _LONG_LIST else header >> 4
        for _ in range(items):
            if header & 15 in _TRUTHS:
                self._copy(1)
            else:
                self._value(header & 15, path)

    def _integer(self, path: tuple[int, ...]) -> None:
        start = len(self.out)
        value = _unzigzag(self._varint())
        if path in _SHIFTED and value > 0:
            del self.out[start:]
            self._write_varint((value + self._distance) << 1)

    def _copy(self, length: int) -> bytes:
        piece = self._footer[self._at : self._at + length]
        self._at += length
        self.out += piece
        return piece

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._copy(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def _write_varint(self, value: int) -> None:
        while value >= 0x80:
            self.out.append(value & 0x7F | 0x80)
            value >>= 7
        self.out.append(value)


def _unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)
