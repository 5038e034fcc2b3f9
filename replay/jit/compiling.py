"""Marks plain Python functions over NumPy arrays as kernels, which are compiled at their first call.

`leaf`, `inlined` and `cold` mark functions that kernels call; a call from Python runs the plain function. `entry` marks
a function that Python calls: its machine code, with every leaf linked into it, is part of this package
(`replay.jit.shipped`), or is cached on disk (`replay.jit.kernel_cache`). `generic` marks a function that has an
implementation for each class of its first argument.

This module does not import numba, which takes half a second: a command that refuses its input needs no kernel. Marks
are collected and passed to `replay.jit._numba` when the first entry is called.

With `NUMBA_DISABLE_JIT=1`, the marks do not change functions.
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

from replay.jit.kernel_cache import cache_folder, why_not_cached
from replay.jit.shipped import find_shipped

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)

_BACKEND = "replay.jit._numba"
_kernels: set[Callable[..., Any]] = set()
_pending: list[Callable[[Any], None]] = []
"""Functions to call with `replay.jit._numba` when it is imported, in the order of the marks."""
_loading = threading.RLock()
_announcements: list[Callable[[str], None]] = []


def leaf(function: Function) -> Function:
    """Marks a kernel that other kernels call."""
    return _mark(function, "leaf")


def inlined(function: Function) -> Function:
    """Marks a leaf on the path of nearly every event: always inlined into its callers."""
    return _mark(function, "inlined")


def cold(function: Function) -> Function:
    """Marks a leaf that few events reach: never inlined, which keeps its callers small and quick to compile."""
    return _mark(function, "cold")


def by_reference(instance_class: Class) -> Class:
    """Marks a NamedTuple class: kernels take its instances by reference (`replay.jit._numba.references`)."""
    _apply(lambda numba: numba.mark_by_reference(instance_class))
    return instance_class


def generic(find: Callable[[type, str], Callable[..., Any]]) -> Callable[[Function], Function]:
    """Returns a mark for generic functions. `find` returns the implementation for a class and the function's name.

    The class is that of the first argument. In kernels, the choice is made at compile time.
    """

    def mark(function: Function) -> Function:
        name = function.__name__

        def dispatch(state: Any, *others: Any) -> Any:
            return find(type(state), name)(state, *others)

        update_wrapper(dispatch, function)
        _kernels.add(dispatch)
        _apply(lambda numba: numba.mark_generic(dispatch, lambda instance_class: find(instance_class, name)))
        return dispatch  # type: ignore[return-value]

    return mark


class Entry:
    """A kernel that Python calls: at its first call, machine code of this package, of the cache, or compiled."""

    def __init__(self, function: Callable[..., Any], extra_sources: tuple[str, ...]) -> None:
        self.py_func = function
        self._extra_sources = extra_sources
        self._compiled: Callable[..., Any] | None = None
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        return (self._compiled or self._load())(*arguments)

    def _load(self) -> Callable[..., Any]:
        with _loading:  # of several threads, the first one compiles
            if self._compiled is None:
                shipped = None if self._extra_sources else find_shipped(self.py_func, self._compile)
                self._compiled = shipped or self._compile()
        return self._compiled

    def _compile(self) -> Callable[..., Any]:
        numba = _load_numba()
        folder = cache_folder((source_of(self.py_func), *sorted(self._extra_sources)))
        compiled: Callable[..., Any] = numba.compile_entry(self.py_func, folder)
        return compiled


def entry(function: Function, extra_sources: tuple[str, ...] = ()) -> Function:
    """Marks a kernel that Python calls. `extra_sources`: files outside this package with functions that it calls."""
    _kernels.add(function)
    return Entry(function, extra_sources) if is_enabled() else function  # type: ignore[return-value]


def source_of(function: Callable[..., Any]) -> str:
    """Returns the path of the file that a function is in."""
    return str(sys.modules[function.__module__].__file__)


def is_enabled() -> bool:
    """Whether kernels are compiled; NUMBA_DISABLE_JIT turns it off."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


def is_kernel(function: Callable[..., Any]) -> bool:
    """Whether compiled kernels can call `function`: it has one of the marks above, or it is compiled by numba."""
    return function in _kernels or hasattr(function, "py_func")


def _mark(function: Function, kind: str) -> Function:
    """Returns the unchanged function. Kernels that call it compile it with the options of `kind`."""
    _kernels.add(function)
    _apply(lambda numba: numba.mark_leaf(function, kind))
    return function


def _apply(mark: Callable[[Any], None]) -> None:
    """Applies a mark: now if numba is imported, else when it is."""
    with _loading:
        if _BACKEND in sys.modules and not _pending:
            mark(sys.modules[_BACKEND])
        else:
            _pending.append(mark)


def _load_numba() -> ModuleType:
    """Imports `replay.jit._numba`, applies all marks, and returns it."""
    with _loading:
        is_first = _BACKEND not in sys.modules
        numba = import_module(_BACKEND)
        if is_first:
            numba.report_compilations(_announce)
        while _pending:
            _pending.pop(0)(numba)
        return numba


def _announce(folder: str) -> None:
    while _announcements:
        _announcements.pop()(why_not_cached(folder))


@contextmanager
def announced_compilation(announce: Callable[[str], None]) -> Iterator[None]:
    """Calls `announce` at most once in this block, right before an entry is compiled that is not in the cache.

    Its argument is the reason why the machine code cannot be cached, with the folder; empty if it can.
    """
    _announcements.append(announce)
    try:
        yield
    finally:
        if announce in _announcements:
            _announcements.remove(announce)
