"""How numba compiles entries and leaves here: its own pipeline with other lowering, libraries and options.

This package is the one place that uses numba's private modules; `replay.jit.compiling` imports it when a kernel is
first compiled.
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


_OPTIONS = {"nogil": True, "_nrt": False, "error_model": "numpy"}
"""Kernels run without the GIL, and without reference counts: they make no arrays and keep none. An option that is not
given here would be inherited from the caller. All marks have the same options, because numba compiles a function again
for callers that were compiled with others. NumPy's error model, because a kernel that may raise costs more at every
call on the way to it."""
OPTIONS: dict[str, dict[str, Any]] = {
    "entry": _OPTIONS | {"pipeline_class": _EntryCompiler},
    "leaf": _OPTIONS | {"pipeline_class": _LeafCompiler},
    "inlined": _OPTIONS | {"pipeline_class": _InlinedCompiler},
    "cold": _OPTIONS | {"pipeline_class": _ColdCompiler},
}
"""By mark, what numba is given."""
