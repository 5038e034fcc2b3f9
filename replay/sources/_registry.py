"""Finds trace formats by name: the modules of this package, and those of the entry point `replay.formats`.

A module whose name begins with an underscore is a helper, not a format.
"""

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

from replay.support.errors import ReplayError
from replay.support.names import nearest
from replay.trace import Trace

FORMAT_GROUP = "replay.formats"
_HOME = Path(__file__).parent


class Format(Protocol):
    """The required attributes of a format's module."""

    SUFFIXES: tuple[str, ...]

    def open_trace(self, path: Path) -> Trace: ...


def bundled_names() -> list[str]:
    """Returns the names of this package's formats."""
    names = (module.name for module in pkgutil.iter_modules([str(_HOME)]))
    return sorted(name for name in names if not name.startswith("_"))


def format_names() -> list[str]:
    """Returns the names of all formats, including those of other packages."""
    return sorted({*bundled_names(), *_third_party()})


def find_format(name: str) -> Format:
    """Returns the module of a format. Raises ReplayError if it is unknown or cannot be used."""
    module = importlib.import_module(f"{__package__}.{name}") if name in bundled_names() else _load_third_party(name)
    if mistake := _find_mistake(module):
        raise ReplayError(f"trace format {name!r} ({module.__file__}) cannot be used: {mistake}")
    return cast(Format, module)


def usable_formats() -> tuple[dict[str, Format], list[str]]:
    """Returns all usable formats, bundled ones first, and a sentence for each unusable one."""
    usable, refusals = {}, []
    for name in dict.fromkeys([*bundled_names(), *format_names()]):
        try:
            usable[name] = find_format(name)
        except ReplayError as error:
            refusals.append(str(error))
    return usable, refusals


def _third_party() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=FORMAT_GROUP)}


def _load_third_party(name: str) -> ModuleType:
    point = _third_party().get(name)
    if point is None:
        raise ReplayError(f"unknown trace format {name!r}; {nearest(name, format_names())}")
    try:
        module: ModuleType = point.load()
    except Exception as error:  # a third-party module can raise any exception; the message names the module
        raise ReplayError(f"trace format {name!r} ({point.value}) cannot be imported: {error}") from error
    return module


def _find_mistake(module: ModuleType) -> str | None:
    """Returns what is missing in a format's module; None if it is complete."""
    if not callable(getattr(module, "open_trace", None)):
        return "it lacks the function open_trace(path)"
    suffixes = getattr(module, "SUFFIXES", None)
    if not isinstance(suffixes, tuple) or not all(isinstance(each, str) and each.startswith(".") for each in suffixes):
        return "SUFFIXES must be a tuple of file suffixes such as ('.log',)"
    return None
