"""Finds machine code that this package carries, so that nothing is compiled and neither numba nor llvmlite is imported.

`kernels/build.py` of the sources makes the folder FOLDER, which wheels for Linux on x86-64 contain:

    NAME.so      all kernels for one class of processors; `replay.jit._numba.shipping` describes an exported function
    index.json   the entries with the signatures that are compiled, and digests of the source files of each

A signature is a digest of the types of all arguments. Code is used only if its source files are unchanged. Everything
else is compiled by numba: other signatures, edited sources, models of other packages, other platforms. With
REPLAY_MACHINE_CODE=none, everything is; with the name of a class of processors, its code is used.
"""

import ctypes
import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "machine_code"
INDEX = "index.json"
PROCESSORS: dict[str, frozenset[str]] = {
    "x86-64-v3": frozenset(("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")),
    "x86-64": frozenset(),
}
"""Classes of processors as LLVM names them, with the flags of /proc/cpuinfo that they need; the fastest first."""
VARIABLE = "REPLAY_MACHINE_CODE"
UNSUITABLE, RAISED = object(), object()
"""What exported functions return for arguments of other types, and if the kernel raised an exception."""
_PACKAGE = Path(__file__).parents[1]
_ALIASES = 8
"""Number of tuples of expected types that are kept for an entry: equal dtypes can be different objects."""
_AT_TYPE, _AT_DATA, _AT_DTYPE = 8, 16, 56
"""Offsets in an array object that exported functions rely on."""


class NoSignature(Exception):
    """An argument has a type that no signature describes."""


def signature_of(arguments: tuple[Any, ...], expected: list[Any] | None = None) -> str:
    """Returns the digest of the arguments' types. Appends the objects that exported functions compare to `expected`.

    Raises NoSignature for types that are not supported.
    """
    seen: list[Any] = []
    kinds = ",".join([_describe(value, seen) for value in arguments])
    if expected is not None:
        expected += seen
    return hashlib.sha256(kinds.encode()).hexdigest()[:20]


def symbol_of(name: str, signature: str) -> str:
    """Returns the name of the exported function of an entry."""
    return f"{name.replace('.', '_')}_{signature}"


def _describe(value: Any, seen: list[Any]) -> str:
    kind: Any = type(value)
    seen.append(kind)
    if kind is np.ndarray:
        seen.append(value.dtype)
        flags = value.flags
        if not flags.aligned:
            raise NoSignature
        layout = "C" if flags.c_contiguous else "F" if flags.f_contiguous else "A"
        return f"{_describe_dtype(value.dtype)}[{value.ndim}{layout}{'w' if flags.writeable else 'r'}]"
    if issubclass(kind, tuple):
        name = "" if kind is tuple else f"{kind.__module__}.{kind.__qualname__}"
        return f"{name}({','.join([_describe(field, seen) for field in value])})"
    if value is None:
        return "none"
    if kind is bool or kind is np.bool_:
        return "bool"
    if kind is float:
        return "<f8"
    if kind is int and -1 << 63 <= value < 1 << 63:
        return "<i8"
    if issubclass(kind, np.number):
        return str(value.dtype.str)
    raise NoSignature


@cache
def _describe_dtype(dtype: np.dtype) -> str:
    if dtype.subdtype:
        base, shape = dtype.subdtype
        return f"{_describe_dtype(base)}{shape}"
    if dtype.fields is None:
        return str(dtype.str)
    fields = [f"{name}:{_describe_dtype(field[0])}@{field[1]}" for name, field in dtype.fields.items()]
    return f"{{{','.join(fields)}}}{dtype.itemsize}{'a' if dtype.isalignedstruct else ''}"


def find_shipped(
    function: Callable[..., Any], compile_kernel: Callable[[], Callable[..., Any]]
) -> Callable[..., Any] | None:
    """Returns an entry's machine code, which calls the result of `compile_kernel` for signatures that it lacks.

    Returns None if there is no code for this entry, for this machine or for the sources as they are.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    library = _library() if is_current(name) else None
    if library is None:
        return None
    return _Kernel(name, frozenset(_index()["entries"][name]["signatures"]), library, compile_kernel)


def class_in_use() -> str | None:
    """Returns the class of processors whose machine code is used; None if this package or process has none."""
    if not _index()["entries"] or _library() is None:
        return None
    return os.environ.get(VARIABLE) or processor_class()


def is_current(name: str) -> bool:
    """Whether there is shipped code with this name, made from the sources as they are."""
    known = _index()["entries"].get(name)
    return known is not None and all(map(_is_unchanged, known["files"]))


class _Kernel:
    """An entry in the shipped library."""

    def __init__(
        self, name: str, signatures: frozenset[str], library: ctypes.PyDLL, compile_kernel: Callable[[], Any]
    ) -> None:
        self._name, self._signatures, self._library = name, signatures, library
        self._compile = compile_kernel
        self._compiled: Callable[..., Any] | None = None
        self._variants: tuple[tuple[Any, Any, list[Any]], ...] = ()
        """Exported functions, their expected addresses, and the objects there."""

    def __call__(self, *arguments: Any) -> Any:
        for function, addresses, _ in self._variants:
            result = function(arguments, addresses)
            if result is not UNSUITABLE:
                return self._checked(result)
        return (self._compiled or self._find)(*arguments)

    def _find(self, *arguments: Any) -> Any:
        """Calls the function for the signature of these arguments, and keeps it for others of the same types."""
        expected: list[Any] = [UNSUITABLE, RAISED, None]
        try:
            signature = signature_of(arguments, expected)
        except NoSignature:
            signature = ""
        if signature in self._signatures:
            function = self._library[symbol_of(self._name, signature)]
            function.restype, function.argtypes = ctypes.py_object, (ctypes.py_object, ctypes.c_void_p)
            addresses = (ctypes.c_void_p * len(expected))(*map(id, expected))
            result = function(arguments, addresses)
            if result is not UNSUITABLE:
                self._variants = ((function, addresses, expected), *self._variants[: _ALIASES - 1])
                return self._checked(result)
        self._compiled = self._compile()
        return self._compiled(*arguments)

    def _checked(self, result: Any) -> Any:
        if result is RAISED:
            raise RuntimeError(f"the kernel {self._name} raised an exception; {VARIABLE}=none shows which")
        return result


@cache
def _index() -> dict[str, Any]:
    if os.environ.get(VARIABLE) == "none":
        return {"entries": {}}
    try:
        index: dict[str, Any] = json.loads((FOLDER / INDEX).read_bytes())
        return index
    except (OSError, ValueError):
        return {"entries": {}}


@cache
def _is_unchanged(path: str) -> bool:
    """Whether a source file is the one that was compiled."""
    try:
        return digest_of(_PACKAGE / path) == _index()["files"][path]
    except OSError:
        return False


def digest_of(path: Path) -> str:
    """Returns the digest of a source file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _library() -> ctypes.PyDLL | None:
    """Returns the library for this processor; None if this process cannot use any."""
    if not _has_expected_layout():
        return None
    chosen = os.environ.get(VARIABLE) or processor_class()
    try:
        return ctypes.PyDLL(str(FOLDER / f"{chosen}.so"))
    except OSError:
        return None


def processor_class() -> str:
    """Returns the fastest class of processors that this one belongs to."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    except OSError:
        flags = set()
    return next(name for name, needed in PROCESSORS.items() if needed <= flags)


def _has_expected_layout() -> bool:
    """Whether objects have the layout of a CPython with the GIL, and arrays that of NumPy 1 and 2."""
    array = np.arange(2)
    expected = {
        _AT_TYPE: id(np.ndarray),
        _AT_DATA: array.__array_interface__["data"][0],
        _AT_DTYPE: id(array.dtype),
    }
    return all(ctypes.c_size_t.from_address(id(array) + at).value == value for at, value in expected.items())
