"""Compiles entries and leaves with numba's pipeline, but with other lowering, libraries and options.

Only this package uses numba's private modules. `replay.jit.compiling` imports it when a kernel is first compiled.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite.binding import Linkage
from numba._dynfunc import make_function
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import BaseNativeLowering, NativeLowering


class _LeafLibrary(JITCodeLibrary):
    """The LLVM code of a leaf, without its callees. The entry links, optimises and compiles all of them once.

    numba would do that again for every leaf, with all its callees.
    """

    def finalize(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


def _with_callees(libraries: list[Any]) -> list[Any]:
    """Returns the libraries and, transitively, the callees of leaves, each once."""
    found: dict[Any, None] = {}
    waiting = libraries[::-1]
    while waiting:
        library = waiting.pop()
        if library not in found:
            found[library] = None
            waiting += library._linking_libraries if isinstance(library, _LeafLibrary) else []
    return list(found)


class _EntryLibrary(JITCodeLibrary):
    """The code of an entry. Its leaves are linked into it and marked as internal, because only the entry calls them.

    LLVM then finds that they never raise, and removes numba's checks after every call.
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
    library_class: type[JITCodeLibrary] = _EntryLibrary

    def run_pass(self, state: Any) -> bool:
        state.library = self.library_class(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        done: bool = super().run_pass(state)
        return done


class _LeafLowering(BaseNativeLowering):
    """Generates a _LeafLibrary and sets an attribute of LLVM. numba's own option would compile leaves once per
    caller."""

    _name = "replay_leaf_lowering"
    attribute: str | None = None

    def run_pass(self, state: Any) -> bool:
        context, flags = state.targetctx, state.flags
        state.library = _LeafLibrary(context.codegen(), state.func_id.func_qualname)
        flags.no_compile = True
        super().run_pass(state)
        flags.no_compile = False
        # numba identifies a function by its Python wrapper. Here the wrapper is only a key and is never called.
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
    """Collects garbage less often: nearly all objects of the compiler live until its end, so collections cost 5 %."""
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(max(before[0], 50_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _EntryCompiler(CompilerBase):
    """numba's pipeline with another lowering, and without the wrapper for calls from C."""

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
    """The same without the wrapper for calls from Python: only kernels call a leaf."""

    lowering = _PlainLowering

    def define_pipelines(self) -> list[Any]:
        self.state.flags.no_cpython_wrapper = True
        return super().define_pipelines()


class _ColdCompiler(_LeafCompiler):
    lowering = _ColdLowering


class _InlinedCompiler(_LeafCompiler):
    lowering = _InlinedLowering


_OPTIONS = {"nogil": True, "_nrt": False, "error_model": "numpy"}
"""Options of all marks. Kernels run without the GIL, and without reference counts, because they neither create nor keep
arrays. Options that are missing here would be inherited from the caller. All marks have the same options, because numba
compiles a function again for callers with other options. With NumPy's error model, kernels do not raise, which would
cost instructions at every call."""
OPTIONS: dict[str, dict[str, Any]] = {
    "entry": _OPTIONS | {"pipeline_class": _EntryCompiler},
    "leaf": _OPTIONS | {"pipeline_class": _LeafCompiler},
    "inlined": _OPTIONS | {"pipeline_class": _InlinedCompiler},
    "cold": _OPTIONS | {"pipeline_class": _ColdCompiler},
}
"""Arguments of numba by mark."""
