"""Adds a checksum to each of numba's cache files, so that a damaged file counts as missing."""

import hashlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from numba.core.caching import IndexDataCacheFile

_STAMP = "the folder is named by the sources"
"""Replaces numba's stamp of a source file: with times and paths, each copy of the file would be compiled again."""


def check_files(dispatcher: Callable[..., Any], folder: Path) -> None:
    """Makes the cache of a compiled function read and write its files with checksums, in a folder."""
    cache: Any = dispatcher._cache  # type: ignore[attr-defined]
    cache._cache_file = _CheckedFiles(str(folder), cache._impl.filename_base, _STAMP)


class _CheckedFiles(IndexDataCacheFile):
    """Files with checksums. Without them, numba would raise any exception for a damaged pickle, or run damaged code."""

    @contextmanager
    def _open_for_write(self, path: str) -> Iterator[BytesIO]:
        content = BytesIO()
        yield content
        with super()._open_for_write(path) as file:
            file.write(content.getvalue() + hashlib.sha256(content.getbuffer()).digest())

    def _load_index(self) -> dict[Any, str]:
        try:
            _checked_content(self._index_path)
        except OSError:
            return {}
        overloads: dict[Any, str] = super()._load_index()
        return overloads

    def _load_data(self, name: str) -> Any:
        return pickle.loads(_checked_content(self._data_path(name)))


def _checked_content(path: str) -> memoryview:
    """Returns the content of a file. Raises OSError if it is damaged, which numba treats as a missing file."""
    content = memoryview(Path(path).read_bytes())
    length = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-length]).digest() != content[-length:]:
        raise OSError(f"{path}: is damaged")
    return content[:-length]
