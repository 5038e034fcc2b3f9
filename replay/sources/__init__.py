"""Reads traces from files. Each format is a module in this folder or of an entry point in the group `replay.formats`.

    SUFFIXES             required: file suffixes in lower case, such as (".csv",); may be empty
    open_trace(path)     required: returns the `Trace` in the file; TraceError names the row or line of a mistake
    sniff(head)          optional: whether a file that begins with these bytes (at most `HEAD_BYTES`) has this format
    open_lenient(path)   optional: as open_trace, but skips unknown lines and columns; the metadata's origin counts them

No two formats may recognize the same file. A module imports heavy libraries inside its functions, because `sniff` of
every format is called for a file. Formats of this folder validate their batches; traces of other formats are validated
here.
"""

from pathlib import Path
from typing import cast

from replay.sources._logs.lines import COMPRESSION_SUFFIXES, HEAD_BYTES, compression_of
from replay.sources._registry import Format, bundled_names, find_format, format_names, usable_formats
from replay.support.errors import ReplayError, TraceError
from replay.support.names import nearest
from replay.trace import Trace

_NEVER_COMPRESSED = ("memray", "parquet", "yaml")
"""Formats whose files are read as they are; all others are text, which is decompressed."""

__all__ = ["Format", "bundled_names", "find_format", "format_names", "locate", "open_source"]


def open_source(
    path_or_name: str | Path, format_name: str | None = None, *, lenient: bool = False, seed: int | None = None
) -> Trace:
    """Returns the trace in a file of any known format, or of a bundled workload.

    `format_name`: the format, instead of detection by content. `lenient`: skip lines and columns that the format does
    not know. `seed`: seed of a workload, instead of its own.
    """
    if seed is not None:
        return _open_seeded(path_or_name, seed)
    path = Path(path_or_name)
    if not path.exists():
        if format_name is not None:
            raise TraceError("the file does not exist", path=path)
        path = locate(path_or_name)
    if not path.is_file():
        raise TraceError("is a folder or a pipe; name a plain file, because it may be read more than once", path=path)
    head = _read_head(path)
    name = format_name or _find_format(path, head)
    trace = _open_lenient(name, path) if lenient else find_format(name).open_trace(path)
    if name in bundled_names():
        return trace
    from replay.trace.validation import validated

    return validated(trace, path)


def _open_lenient(name: str, path: Path) -> Trace:
    open_lenient = getattr(find_format(name), "open_lenient", None)
    if open_lenient is None:
        able = ", ".join(sorted(each for each, known in usable_formats()[0].items() if hasattr(known, "open_lenient")))
        raise TraceError(
            f"has the format {name}, for which --lenient is not supported; formats with --lenient: {able}", path=path
        )
    return cast(Trace, open_lenient(path))


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", path=path) from error


def _find_format(path: Path, head: bytes) -> str:
    """Returns the name of a file's format: by content first, because a file may have any name, then by suffix.

    Other packages are imported only for files that no format of this package recognizes. A format that cannot be used
    is reported if no other format recognizes the file.
    """
    for name in bundled_names():
        if _recognizes(find_format(name), head):
            return name
    formats, refusals = usable_formats()
    for name, known in formats.items():
        try:
            if _recognizes(known, head):
                return name
        except Exception as error:  # a third-party function can raise any exception; the message names the format
            refusals.append(f"trace format {name!r} failed in sniff(): {type(error).__name__}: {error}")
    if path.suffix == ".py":
        raise TraceError("is a program, not a trace; record it: replay record -o trace.parquet PROGRAM", path=path)
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSION_SUFFIXES else path
    compression = compression_of(head)
    for name, known in formats.items():
        if plain.suffix.lower() in known.SUFFIXES and not (compression and name in _NEVER_COMPRESSED):
            return name
    if compression:
        message = f"is compressed with {compression}, and its content is no log that replay can read compressed"
        raise TraceError("; ".join([f"{message}; decompress it first", *refusals]), path=path)
    suffixes = ", ".join(f"{name} ({' '.join(known.SUFFIXES)})" for name, known in sorted(formats.items()))
    message = f"has no format that replay can read; formats: {suffixes}; `replay import --format` selects one"
    compressed = "text can be compressed with gzip, zstd, xz or bzip2"
    raise TraceError("; ".join([message, compressed, *refusals]), path=path)


def _recognizes(known: Format, head: bytes) -> bool:
    """Whether the format recognizes the beginning of a file."""
    sniff = getattr(known, "sniff", None)
    return sniff is not None and bool(sniff(head))


def locate(path_or_name: str | Path) -> Path:
    """Returns the file of a source: the path itself, or the file of a bundled workload with this name."""
    from replay.support.bundled_files import find_workload, object_program_names, recorded_names, workload_names

    path = Path(path_or_name)
    if path.exists():
        return path
    name, names = str(path_or_name), [*workload_names(), *object_program_names(), *recorded_names()]
    if path.is_symlink():
        raise TraceError("is a symbolic link to itself or to a file that does not exist", path=name)
    if name not in names:
        message = f"the file does not exist, and no bundled workload has this name; {nearest(name, names)}"
        raise TraceError(message, path=name)
    return find_workload(name)


def _open_seeded(path_or_name: str | Path, seed: int) -> Trace:
    from replay.sources.yaml import SUFFIXES, open_trace

    path = locate(path_or_name)
    if path.suffix.lower() not in SUFFIXES:
        raise ReplayError(f"{path_or_name}: only YAML workloads have a seed; this is a recorded trace")
    return open_trace(path, seed)
