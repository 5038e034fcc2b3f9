"""Where traces come from: one module a format, found by its name in this folder.

A format's module has `SUFFIXES`, `open_trace(path)` and, if its files can be told by how they begin, `sniff(head)`. It
imports what is heavy inside its functions, for looking at a file asks every format whether it is one of its own. Its
traces validate what they yield, once, and say path and row (or line) of what is wrong.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol, cast

from replay.errors import TraceError
from replay.naming import nearest
from replay.trace import Trace

_HEAD_BYTES = 4096


class Format(Protocol):
    """What a module of this folder offers."""

    SUFFIXES: tuple[str, ...]

    def open_trace(self, path: Path) -> Trace: ...


def format_names() -> list[str]:
    """The formats that can be read."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def open_source(path_or_name: str | Path) -> Trace:
    """The trace in a file of any known format, or of a bundled workload called by its name."""
    path = Path(path_or_name)
    if not path.exists():
        return _open_workload(str(path_or_name))
    if not path.is_file():
        raise TraceError("is a folder or a pipe; name a plain file, for it may be read more than once", path=path)
    return _find_format(path).open_trace(path)


def _find_format(path: Path) -> Format:
    """By content first: a file may be called anything."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", path=path) from error
    formats = {name: cast(Format, importlib.import_module(f"{__name__}.{name}")) for name in format_names()}
    for known in formats.values():
        sniff = getattr(known, "sniff", None)
        if sniff is not None and sniff(head):
            return known
    for known in formats.values():
        if path.suffix.lower() in known.SUFFIXES:
            return known
    suffixes = ", ".join(f"{name} ({' '.join(known.SUFFIXES)})" for name, known in formats.items())
    raise TraceError(f"is of no format that replay reads; there are {suffixes}", path=path)


def _open_workload(name: str) -> Trace:
    from replay.resources import find_workload, workload_names

    names = workload_names()
    if name not in names:
        what = f"there is no such file and no bundled workload of that name; {nearest(name, names)}"
        raise TraceError(what, path=name)
    path = find_workload(name)
    return _find_format(path).open_trace(path)
