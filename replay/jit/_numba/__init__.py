"""All code for kernels that imports numba and llvmlite. `replay.jit.compiling` imports it at the first call of a
kernel.

numba's private modules can change with any release. The whole suite passed with the newest of TESTED_VERSIONS, and the
tests of kernels, models and their cache with 0.61, 0.63, 0.65 and 0.67.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.event import Event, Listener, register
from numba.extending import overload, register_jitable

from replay.jit._numba import intrinsics  # noqa: F401 - gives numba the intrinsics
from replay.jit._numba.checked_files import check_files
from replay.jit._numba.pipeline import OPTIONS
from replay.jit._numba.references import mark_by_reference

__all__ = ["compile_entry", "mark_by_reference", "mark_generic", "mark_leaf", "report_compilations"]

TESTED_VERSIONS = ("0.61", "0.68")
"""Oldest and newest minor version of numba."""


def mark_leaf(function: Callable[..., Any], kind: str) -> None:
    """Makes kernels that call `function` compile it with the options of this mark."""
    register_jitable(**OPTIONS[kind])(function)


def compile_entry(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Returns the compiled entry; its machine code is cached in the folder."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)  # numba takes the cache folder from a global
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **OPTIONS["entry"])(function)
        check_files(compiled, folder)
        return compiled
    finally:
        numba.config.CACHE_DIR = before


def mark_generic(function: Callable[..., Any], find: Callable[[type], Callable[..., Any]]) -> None:
    """Makes kernels that call `function` call the function that `find` returns for the class of the first argument."""
    parameters = len(inspect.signature(function).parameters)
    overload(function, jit_options=OPTIONS["inlined"])(_CHOICES[parameters](find))


def _with_two(find: Callable[[type], Callable[..., Any]]) -> Callable[..., Any]:
    def choose(state, a):  # type: ignore[no-untyped-def]
        chosen = find(state.instance_class)
        return lambda state, a: chosen(state, a)

    return choose


def _with_three(find: Callable[[type], Callable[..., Any]]) -> Callable[..., Any]:
    def choose(state, a, b):  # type: ignore[no-untyped-def]
        chosen = find(state.instance_class)
        return lambda state, a, b: chosen(state, a, b)

    return choose


def _with_four(find: Callable[[type], Callable[..., Any]]) -> Callable[..., Any]:
    def choose(state, a, b, c):  # type: ignore[no-untyped-def]
        chosen = find(state.instance_class)
        return lambda state, a, b, c: chosen(state, a, b, c)

    return choose


_CHOICES = {2: _with_two, 3: _with_three, 4: _with_four}
"""Functions by number of parameters, because numba compares the names of the parameters."""


class _Compilations(Listener):
    """Counts compilations. numba reports what it compiles, but not what it loads from disk; only entries are cached."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce

    def on_start(self, event: Event) -> None:
        if path := event.data["dispatcher"].stats.cache_path:
            self._announce(path)

    def on_end(self, event: Event) -> None:
        pass


def report_compilations(announce: Callable[[str], None]) -> None:
    """Calls `announce` right before an entry is compiled, but not if it is loaded from disk.

    Its argument is the folder of the machine code.
    """
    register("numba:compile", _Compilations(announce))
