"""Where traces come from: one module a format, found by its name in this folder. `_name` is a helper, not a format.

A format's module has `SUFFIXES`, `open_trace(path)` and, if its files can be told by how they begin, `sniff(head)`: by
their first `HEAD_BYTES`. No two formats may take the same file for theirs. If a file can be read as far as it is
understood, `open_lenient(path)` does that, and the metadata's origin counts what was left out.

A module imports what is heavy inside its functions, for looking at a file asks every format whether it is one of its
own. Its traces validate what they yield, once, and say path and row (or line) of what is wrong.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

from replay.sources._logs.lines import COMPRESSION_SUFFIXES, HEAD_BYTES
from replay.support.errors import ReplayError, TraceError
from replay.support.names import nearest
from replay.trace import Trace


class Format(Protocol):
    """What a module of this folder offers."""

    SUFFIXES: tuple[str, ...]

    def open_trace(self, path: Path) -> Trace: ...


def format_names() -> list[str]:
    """The formats that can be read."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def open_source(
    path_or_name: str | Path, format_name: str | None = None, *, lenient: bool = False, seed: int | None = None
) -> Trace:
    """The trace in a file of any known format, or of a bundled workload called by its name.

    `format_name` takes the place of looking at the file; `lenient` leaves out what the format does not understand;
    `seed` takes the place of a workload's own.
    """
    if seed is not None:
        return _open_seeded(path_or_name, seed)
    path = Path(path_or_name)
    if not path.exists():
        if format_name is not None:
            raise TraceError("there is no such file", path=path)
        path = locate(path_or_name)
    if not path.is_file():
        raise TraceError("is a folder or a pipe; name a plain file, for it may be read more than once", path=path)
    head = _read_head(path)
    name = format_name or _find_format(path, head)
    known = _format(name)
    if not lenient:
        return known.open_trace(path)
    open_lenient = getattr(known, "open_lenient", None)
    if open_lenient is None:
        able = ", ".join(each for each in format_names() if hasattr(_format(each), "open_lenient"))
        raise TraceError(f"is read as {name}, which cannot be read leniently; these can: {able}", path=path)
    return cast(Trace, open_lenient(path))


def _format(name: str) -> Format:
    if name not in format_names():
        raise ReplayError(f"no format is called {name!r}; {nearest(name, format_names())}")
    return cast(Format, importlib.import_module(f"{__name__}.{name}"))


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", path=path) from error


def _find_format(path: Path, head: bytes) -> str:
    """By content first: a file may have any name."""
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSION_SUFFIXES else path
    suffix = plain.suffix.lower()
    formats = {name: _format(name) for name in format_names()}
    for name, known in formats.items():
        sniff = getattr(known, "sniff", None)
        if sniff is not None and sniff(head):
            return name
    for name, known in formats.items():
        if suffix in known.SUFFIXES:
            return name
    suffixes = ", ".join(f"{name} ({' '.join(known.SUFFIXES)})" for name, known in formats.items())
    what = f"is of no format that replay reads; there are {suffixes}; `replay import --format` names one"
    raise TraceError(f"{what}; text may be compressed with gzip, zstd, xz or bzip2", path=path)


def locate(path_or_name: str | Path) -> Path:
    """The file of a source: the path that is given, or the file of a bundled workload of that name."""
    from replay.support.bundled_files import find_workload, recorded_names, workload_names

    path = Path(path_or_name)
    if path.exists():
        return path
    name, names = str(path_or_name), [*workload_names(), *recorded_names()]
    if name not in names:
        what = f"there is no such file and no bundled workload of that name; {nearest(name, names)}"
        raise TraceError(what, path=name)
    return find_workload(name)


def _open_seeded(path_or_name: str | Path, seed: int) -> Trace:
    from replay.sources.yaml import SUFFIXES, open_trace

    path = locate(path_or_name)
    if path.suffix.lower() not in SUFFIXES:
        raise ReplayError(f"{path_or_name}: a seed is for workloads; a recorded trace is what it is")
    return open_trace(path, seed)
