"""Turns plain Python functions over NumPy arrays into machine code, and keeps that code on disk safely.

`leaf`, `inlined` and `cold` mark functions that other kernels call; called from Python they are what they look like.
`entry` marks one that Python calls: its machine code, with every leaf linked into it, is kept on disk. numba's own
cache looks at the file of the entry alone and would go on running old code after an edit in a leaf; so the cache
folder of an entry is named by a digest of its source file, of all that the file imports and of the models in use, and
an edit of any of them opens a new folder.

With `NUMBA_DISABLE_JIT=1` all marks leave the function as it is.
"""

import atexit
import gc
import hashlib
import inspect
import os
import pickle
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite.binding import Linkage
from numba._dynfunc import make_function
from numba.core.caching import IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.event import Event, Listener, register, unregister
from numba.core.lowering import Lower
from numba.core.typed_passes import BaseNativeLowering, NativeLowering
from numba.extending import register_jitable

_PACKAGE = Path(__file__).parent
_IMPORT = re.compile(rf"^ *(?:from|import) ({_PACKAGE.name}\.[\w.]+)", re.MULTILINE)
_FOLDERS_KEPT = 32
_SECONDS_KEPT = 24 * 3600

Function = TypeVar("Function", bound=Callable[..., Any])


_not_kept: dict[Path, str] = {}
"""Temporary folders for machine code: where it should be kept, and why it cannot be."""


def cache_root() -> Path:
    """Where everything lives that can be made again: kernels, the harness of `verify`, fetched interpreters."""
    if chosen := os.environ.get("REPLAY_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "alloc-replay"


@cache
def cache_folder(sources: tuple[str, ...]) -> Path:
    """Returns the folder for machine code of these source files and of all that they import of this package."""
    digest = hashlib.sha256(f"numba {numba.__version__}".encode())
    for path in sorted(_with_imported(map(Path, sources))):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    folder = cache_root() / "kernels" / digest.hexdigest()[:20]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        _drop_stale(folder.parent)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        # Nothing can be kept. Left to itself numba would write beside the sources, blind to edits in other files.
        passing = Path(tempfile.mkdtemp(prefix="replay-kernels-"))
        atexit.register(shutil.rmtree, passing, ignore_errors=True)
        _not_kept[passing] = f"{folder.parent}: {error.strerror}"
        return passing


def _with_imported(sources: Iterable[Path]) -> set[Path]:
    """Returns the files and, transitively, this package's files that they import; importing a package means all of it.

    All of it, because models and formats are discovered in their packages, not imported by name.
    """
    found: set[Path] = set()
    waiting = list(sources)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += _imported(path)
    return found


@cache
def _imported(path: Path) -> list[Path]:
    """Returns this package's files that the file imports, without those that they import."""
    found: list[Path] = []
    for name in _IMPORT.findall(path.read_text("utf-8")):
        target = _PACKAGE.joinpath(*name.split(".")[1:])
        found += target.rglob("*.py") if target.is_dir() else [target.with_suffix(".py")]
    return [each for each in found if each.is_file()]


class _CheckedFiles(IndexDataCacheFile):
    """numba's files of machine code, each with a checksum at its end: a damaged one counts as missing.

    numba would raise whatever the damaged pickle leads to, or run damaged machine code.
    """

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


def _drop_stale(kernels: Path) -> None:
    """Removes all but the newest folders, and none that another process may still be filling."""
    times = {}
    for path in kernels.iterdir():
        with suppress(FileNotFoundError):  # another process removes stale folders too
            times[path] = path.stat().st_mtime
    for path in sorted(times, key=times.__getitem__, reverse=True)[_FOLDERS_KEPT:]:
        if times[path] < time.time() - _SECONDS_KEPT:
            shutil.rmtree(path, ignore_errors=True)


class _LeafLibrary(JITCodeLibrary):
    """Code of a leaf, without that of what it calls: all of it is linked, optimised and made machine code in an entry.

    numba itself would do each of that for every leaf again, with all that is below it.
    """

    def finalize(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


def _with_callees(libraries: list[Any]) -> list[Any]:
    """The same, and what leaves among them call, each once."""
    found: dict[Any, None] = {}
    waiting = libraries[::-1]
    while waiting:
        library = waiting.pop()
        if library not in found:
            found[library] = None
            waiting += library._linking_libraries if isinstance(library, _LeafLibrary) else []
    return list(found)


class _EntryLibrary(JITCodeLibrary):
    """Code of an entry. Nobody else calls the leaves that are linked into it, and LLVM is told so.

    It then sees that they never raise: what numba does for that at every call goes away.
    """

    def finalize(self) -> None:
        self._linking_libraries: list[Any] = _with_callees(self._linking_libraries)
        super().finalize()

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == Linkage.linkonce_odr:
                function.linkage = Linkage.internal
        super()._optimize_final_module()


@register_pass(mutates_CFG=True, analysis_only=False)
class _EntryLowering(NativeLowering):
    _name = "replay_entry_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _EntryLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        done: bool = super().run_pass(state)
        return done


class _LeafLowering(BaseNativeLowering):
    """Makes code for a _LeafLibrary, with an attribute of LLVM's: numba's own option would make callers differ."""

    _name = "replay_leaf_lowering"
    attribute: str | None = None

    def run_pass(self, state: Any) -> bool:
        context, flags = state.targetctx, state.flags
        state.library = _LeafLibrary(context.codegen(), state.func_id.func_qualname)
        flags.no_compile = True
        super().run_pass(state)
        flags.no_compile = False
        # Callers find the function by a handle, which for numba is what Python calls. Nobody calls this one.
        done = state["cr"]
        handle = make_function(done.fndesc.lookup_module(), done.fndesc.qualname, "", 0, done.env, (state.library,))
        context.insert_user_function(handle, done.fndesc, [state.library])
        state["cr"] = done._replace(cfunc=handle)
        return True

    @property
    def lowering_class(self) -> type[Lower]:
        attribute = self.attribute

        class Marked(Lower):
            def setup_function(self, fndesc: Any) -> None:
                super().setup_function(fndesc)
                if attribute:
                    self.function.attributes.add(attribute)

        return Marked


@register_pass(mutates_CFG=True, analysis_only=False)
class _PlainLowering(_LeafLowering):
    _name = "replay_plain_lowering"


@register_pass(mutates_CFG=True, analysis_only=False)
class _ColdLowering(_LeafLowering):
    _name = "replay_cold_lowering"
    attribute = "noinline"


@register_pass(mutates_CFG=True, analysis_only=False)
class _InlinedLowering(_LeafLowering):
    _name = "replay_inlined_lowering"
    attribute = "alwaysinline"


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Nearly all that the compiler makes lives until it is done; to look for garbage all the time takes a twentieth."""
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(max(before[0], 50_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _EntryCompiler(CompilerBase):
    """numba's pipeline, but for the lowering, and for what C would need to call the function."""

    lowering: type[BaseNativeLowering] = _EntryLowering

    def compile_extra(self, func: Any) -> Any:
        with _seldom_collecting():
            return super().compile_extra(func)

    def define_pipelines(self) -> list[Any]:
        self.state.flags.no_cfunc_wrapper = True
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes = manager.passes
        manager.passes = [(self.lowering if each is NativeLowering else each, name) for each, name in passes]
        manager.finalize()
        return [manager]


class _LeafCompiler(_EntryCompiler):
    """The same, but for what Python would need: nobody calls a leaf but other kernels."""

    lowering = _PlainLowering

    def define_pipelines(self) -> list[Any]:
        self.state.flags.no_cpython_wrapper = True
        return super().define_pipelines()


class _ColdCompiler(_LeafCompiler):
    lowering = _ColdLowering


class _InlinedCompiler(_LeafCompiler):
    lowering = _InlinedLowering


# Kernels run without the GIL, and without reference counts: they make no arrays and keep none. What is not said here, a
# function would take over from whoever has it compiled. Options are the same for all marks: numba compiles a function
# once more for callers that were compiled with others. NumPy's error model, because a kernel that may raise costs more
# at every call on the way to it.
ENTRY_OPTIONS = {"nogil": True, "_nrt": False, "error_model": "numpy", "pipeline_class": _EntryCompiler}
LEAF_OPTIONS = ENTRY_OPTIONS | {"pipeline_class": _LeafCompiler}
INLINED_OPTIONS = ENTRY_OPTIONS | {"pipeline_class": _InlinedCompiler}
COLD_OPTIONS = ENTRY_OPTIONS | {"pipeline_class": _ColdCompiler}

_kernels: set[Callable[..., Any]] = set()
_naming_the_folder = threading.Lock()
"""numba takes the cache folder from a global, and runs of a sweep make their entries in threads."""


def _mark(function: Function, options: dict[str, Any]) -> Function:
    """To Python the function stays what it is; a compiled kernel that names it has it compiled with these options."""
    _kernels.add(function)
    register_jitable(**options)(function)
    return function


def leaf(function: Function) -> Function:
    """A kernel for other kernels to call."""
    return _mark(function, LEAF_OPTIONS)


def inlined(function: Function) -> Function:
    """A leaf on the path of nearly every event: always pasted into its callers."""
    return _mark(function, INLINED_OPTIONS)


def cold(function: Function) -> Function:
    """A leaf that few events come to: never pasted into its callers, which keeps them small and quick to compile."""
    return _mark(function, COLD_OPTIONS)


def is_kernel(function: Callable[..., Any]) -> bool:
    """Whether compiled kernels may call `function`: one of the marks above, or something that numba made itself."""
    return function in _kernels or hasattr(function, "py_func")


def _check_files(cache: Any) -> None:
    """Has a cache of numba's read and write its files by `_CheckedFiles`."""
    implementation = cache._impl
    stamp = implementation.locator.get_source_stamp()
    cache._cache_file = _CheckedFiles(cache.cache_path, implementation.filename_base, stamp)


def entry(function: Function, extra: tuple[str, ...] = ()) -> Function:
    """A kernel for Python to call; `extra` names source files outside this package that it is linked with."""
    with _naming_the_folder:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(cache_folder((inspect.getfile(function), *sorted(extra))))
        try:
            compiled = numba.njit(cache=True, **ENTRY_OPTIONS)(function)
            if compiled is not function:  # as it is with NUMBA_DISABLE_JIT=1
                _check_files(compiled._cache)
            return cast(Function, compiled)
        finally:
            numba.config.CACHE_DIR = before


class _FirstCompilation(Listener):
    """Tells once. numba reports what it compiles, but not what it finds on disk, where only entries are kept."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell: Callable[[str], None] | None = tell

    def on_start(self, event: Event) -> None:
        path = event.data["dispatcher"].stats.cache_path
        if self._tell is not None and path:
            tell, self._tell = self._tell, None
            reasons = (reason for folder, reason in _not_kept.items() if Path(path).is_relative_to(folder))
            tell(next(reasons, ""))

    def on_end(self, event: Event) -> None:
        pass


@contextmanager
def announced_compilation(tell: Callable[[str], None]) -> Iterator[None]:
    """Calls `tell` at most once, right before an entry that is not on disk yet is compiled in this block.

    Its argument says where the machine code cannot be kept and why; it is empty if it can.
    """
    listener = _FirstCompilation(tell)
    register("numba:compile", listener)
    try:
        yield
    finally:
        unregister("numba:compile", listener)
