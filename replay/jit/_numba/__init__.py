"""Everything that imports numba and llvmlite for kernels; `replay.jit.compiling` loads it at the first call of one.

numba's private modules may change with any release. TESTED_VERSIONS is the range that the tests ran with.
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

TESTED_VERSIONS = ("0.68", "0.68")
"""Of numba, the oldest and the newest minor version."""


def mark_leaf(function: Callable[..., Any], kind: str) -> None:
    """Has kernels compile `function` with the options of this mark where they call it."""
    register_jitable(**OPTIONS[kind])(function)


def compile_entry(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Returns the compiled entry; its machine code is kept in the folder."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)  # numba takes the cache folder from a global
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **OPTIONS["entry"])(function)
        check_files(compiled, folder)
        return compiled
    finally:
        numba.config.CACHE_DIR = before


def mark_generic(function: Callable[..., Any], find: Callable[[type], Callable[..., Any]]) -> None:
    """Has kernels call, instead of `function`, the one that `find` has for the class of the first argument."""
    parameters = len(inspect.signature(function).parameters)
    overload(function, jit_options=OPTIONS["inlined"])(_CHOICES[parameters](find))


def _of_two(find: Callable[[type], Callable[..., Any]]) -> Callable[..., Any]:
    def choose(state, a):  # type: ignore[no-untyped-def]
        chosen = find(state.instance_class)
        return lambda state, a: chosen(state, a)

    return choose


def _of_three(find: Callable[[type], Callable[..., Any]]) -> Callable[..., Any]:
    def choose(state, a, b):  # type: ignore[no-untyped-def]
        chosen = find(state.instance_class)
        return lambda state, a, b: chosen(state, a, b)

    return choose


def _of_four(find: Callable[[type], Callable[..., Any]]) -> Callable[..., Any]:
    def choose(state, a, b, c):  # type: ignore[no-untyped-def]
        chosen = find(state.instance_class)
        return lambda state, a, b, c: chosen(state, a, b, c)

    return choose


_CHOICES = {2: _of_two, 3: _of_three, 4: _of_four}
"""By number of parameters, because numba compares the names of each signature."""


class _Compilations(Listener):
    """numba reports what it compiles, but not what it finds on disk, where only entries are kept."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce

    def on_start(self, event: Event) -> None:
        if path := event.data["dispatcher"].stats.cache_path:
            self._announce(path)

    def on_end(self, event: Event) -> None:
        pass


def report_compilations(announce: Callable[[str], None]) -> None:
    """Has `announce` called right before each entry that is compiled, but not for those found on disk.

    Its argument is the folder that the machine code is kept in.
    """
    register("numba:compile", _Compilations(announce))
