"""numba's files of machine code with a checksum each, so that a damaged one counts as missing."""

import hashlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from numba.core.caching import IndexDataCacheFile

_STAMP = "the folder is named by the sources"
"""numba would compile again for each copy of a source file, because it compares times and paths."""


def check_files(dispatcher: Callable[..., Any], folder: Path) -> None:
    """Has the cache of a compiled function read and write its files with checksums, in a folder."""
    cache: Any = dispatcher._cache  # type: ignore[attr-defined]
    cache._cache_file = _CheckedFiles(str(folder), cache._impl.filename_base, _STAMP)


class _CheckedFiles(IndexDataCacheFile):
    """numba itself would raise whatever a damaged pickle leads to, or run damaged machine code."""

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
    """Returns what was written to a file; a damaged one is an OSError, which to numba is a missing one."""
    content = memoryview(Path(path).read_bytes())
    length = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-length]).digest() != content[-length:]:
        raise OSError(f"{path}: is damaged")
    return content[:-length]
