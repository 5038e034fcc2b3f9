"""Marks plain Python functions over NumPy arrays as kernels, which become machine code when they are first called.

`leaf`, `inlined` and `cold` mark functions that other kernels call; called from Python they are what they look like.
`entry` marks one that Python calls: its machine code, with every leaf linked into it, is kept on disk
(`replay.jit.kernel_cache`). `generic` marks one that has an implementation for each class of its first argument.

Nothing here imports numba: it takes half a second, and a command that refuses its input needs no kernel. Marks are
collected, and `replay.jit._numba` is told all of them when the first entry is called.

With `NUMBA_DISABLE_JIT=1` all marks leave the function as it is.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from replay.jit.kernel_cache import cache_folder, why_not_kept

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)

_BACKEND = "replay.jit._numba"
_kernels: set[Callable[..., Any]] = set()
_waiting: list[Callable[[Any], None]] = []
"""What numba is told when it is loaded, in the order of the marks."""
_loading = threading.RLock()
_announcements: list[Callable[[str], None]] = []


def leaf(function: Function) -> Function:
    """Marks a kernel for other kernels to call."""
    return _mark(function, "leaf")


def inlined(function: Function) -> Function:
    """Marks a leaf on the path of nearly every event: always inlined into its callers."""
    return _mark(function, "inlined")


def cold(function: Function) -> Function:
    """Marks a leaf that few events reach: never inlined, which keeps its callers small and quick to compile."""
    return _mark(function, "cold")


def by_reference(instance_class: Class) -> Class:
    """Marks a NamedTuple class: kernels take its instances by reference (`replay.jit._numba.references`)."""
    _tell(lambda numba: numba.mark_by_reference(instance_class))
    return instance_class


def generic(find: Callable[[type, str], Callable[..., Any]]) -> Callable[[Function], Function]:
    """Returns a mark for functions that stand for others: `find` has the one for a class and the function's name.

    The class is that of the first argument. In kernels the choice is made while compiling.
    """

    def mark(function: Function) -> Function:
        name = function.__name__

        def dispatch(state: Any, *others: Any) -> Any:
            return find(type(state), name)(state, *others)

        update_wrapper(dispatch, function)
        _kernels.add(dispatch)
        _tell(lambda numba: numba.mark_generic(dispatch, lambda instance_class: find(instance_class, name)))
        return dispatch  # type: ignore[return-value]

    return mark


class Entry:
    """A kernel for Python to call, compiled or loaded from disk at the first call."""

    def __init__(self, function: Callable[..., Any], extra_sources: tuple[str, ...]) -> None:
        self.py_func = function
        self._extra_sources = extra_sources
        self._compiled: Callable[..., Any] | None = None
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        return (self._compiled or self._load())(*arguments)

    def _load(self) -> Callable[..., Any]:
        numba = _load_numba()
        source = str(sys.modules[self.py_func.__module__].__file__)
        with _loading:
            self._compiled = numba.compile_entry(self.py_func, cache_folder((source, *sorted(self._extra_sources))))
        return self._compiled


def entry(function: Function, extra_sources: tuple[str, ...] = ()) -> Function:
    """Marks a kernel for Python to call; `extra_sources` are files outside this package that it is linked with."""
    _kernels.add(function)
    return Entry(function, extra_sources) if is_enabled() else function  # type: ignore[return-value]


def is_enabled() -> bool:
    """Whether kernels are compiled at all: numba's own switch turns that off."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


def is_kernel(function: Callable[..., Any]) -> bool:
    """Whether compiled kernels may call `function`: it has one of the marks above, or numba made it."""
    return function in _kernels or hasattr(function, "py_func")


def _mark(function: Function, kind: str) -> Function:
    """To Python the function stays what it is; kernels that name it have it compiled with the options of `kind`."""
    _kernels.add(function)
    _tell(lambda numba: numba.mark_leaf(function, kind))
    return function


def _tell(mark: Callable[[Any], None]) -> None:
    """Has numba told of a mark: now if it is loaded, else when it is."""
    with _loading:
        if _BACKEND in sys.modules and not _waiting:
            mark(sys.modules[_BACKEND])
        else:
            _waiting.append(mark)


def _load_numba() -> ModuleType:
    """Returns the module that knows numba, and all marks by now."""
    with _loading:
        is_first = _BACKEND not in sys.modules
        numba = import_module(_BACKEND)
        if is_first:
            numba.report_compilations(_announce)
        while _waiting:
            _waiting.pop(0)(numba)
        return numba


def _announce(folder: str) -> None:
    while _announcements:
        _announcements.pop()(why_not_kept(folder))


@contextmanager
def announced_compilation(announce: Callable[[str], None]) -> Iterator[None]:
    """Calls `announce` at most once, right before an entry that is not on disk yet is compiled in this block.

    Its argument says where the machine code cannot be kept and why; it is empty if it can.
    """
    _announcements.append(announce)
    try:
        yield
    finally:
        if announce in _announcements:
            _announcements.remove(announce)
