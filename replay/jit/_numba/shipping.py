"""Compiles an entry to an object file for a given class of processors, for wheels with machine code.

The object exports one function for `replay.jit.shipped`, which needs neither numba nor a compiler:

    PyObject *symbol(PyObject *arguments, void **expected)

`arguments` is the tuple of a call. `expected` begins with the objects to return if the arguments are of other types
(`UNSUITABLE`), if the kernel raised (`RAISED`), and for None. The addresses after them are compared with the arguments,
depth first: the type of each argument and of each field of tuples, and after the type of an array its dtype. What
compares equal is unpacked with the layout of NumPy's PyArrayObject, which is the same in all versions; so a call costs
nanoseconds for an array. Everything else is the stable ABI of CPython.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding, ir
from llvmlite.binding import Linkage
from numba.core import cgutils
from numba.core.codegen import AOTCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.np import arrayobj

from replay.jit._numba.pipeline import OPTIONS, _EntryCompiler, _EntryLibrary, _EntryLowering
from replay.jit._numba.references import Reference, after_stores

types: Any = numba.types
_WORD, _HALF, _BYTE = ir.IntType(64), ir.IntType(32), ir.IntType(8)
_POINTER = _BYTE.as_pointer()
_AT_TYPE = 8
"""Offset of `ob_type` in an object of a CPython with the GIL."""
_AT_DATA, _AT_DIMENSIONS, _AT_SHAPE, _AT_STRIDES, _AT_DTYPE, _AT_FLAGS = 16, 24, 32, 40, 56, 64
"""Offsets in NumPy's PyArrayObject_fields."""
_CONTIGUOUS = {"C": 0x1, "F": 0x2, "A": 0}
_ALIGNED, _WRITEABLE = 0x100, 0x400
"""NumPy's flags of arrays."""
_UNSUITABLE, _RAISED, _NONE = range(3)
"""What the first words of `expected` are."""
_OF_C = {"numba_frexp": "frexp", "numba_ldexp": "ldexp"}
"""Functions of C that glibc defines as numba does, also for infinities."""


class CannotBeShipped(Exception):
    """An argument or the result has a type that the exported function cannot convert."""


class _LinkedLibrary(_EntryLibrary):
    """The code of an entry with its leaves, linked, but neither optimized nor loaded."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LinkedLowering(_EntryLowering):
    _name = "replay_linked_lowering"
    library_class = _LinkedLibrary

    def run_pass(self, state: Any) -> bool:
        state.flags.no_compile = True
        return super().run_pass(state)


class _LinkedCompiler(_EntryCompiler):
    lowering = _LinkedLowering

    def define_pipelines(self) -> list[Any]:
        self.state.flags.no_cpython_wrapper = True
        return super().define_pipelines()


@global_compiler_lock
def link_entry(function: Callable[..., Any], argument_types: tuple[Any, ...], symbol: str) -> bytes:
    """Returns the LLVM bitcode of an entry, specialised for these types, with the function that `symbol` exports."""
    options = OPTIONS["entry"] | {"pipeline_class": _LinkedCompiler}
    compiled = numba.njit(**options)(function)._compiler.compile(argument_types, None)
    library, context = compiled.library, compiled.target_context
    module = library.create_ir_module(symbol)
    _Export(module, context, compiled.fndesc, symbol).generate()
    library.add_ir_module(module)
    library.finalize()
    linked = library._final_module
    for each in linked.functions:
        each.name = _OF_C.get(each.name, each.name)
    for each in (*linked.functions, *linked.global_variables):
        if not each.is_declaration and each.name != symbol:
            each.linkage = Linkage.internal
    code: bytes = linked.as_bitcode()
    return code


@global_compiler_lock
def emit_object(bitcode: bytes, processor: str) -> bytes:
    """Returns the ELF object of linked code, optimised for a class of processors as LLVM names it."""
    library = AOTCPUCodegen("replay", processor).create_library("replay")
    library._final_module = binding.parse_bitcode(bitcode)
    library._optimize_final_module()
    code: bytes = library._codegen._tm.emit_object(library._final_module)
    return code


class _Export:
    """Generates the exported function."""

    def __init__(self, module: ir.Module, context: Any, described: Any, symbol: str) -> None:
        kind = ir.FunctionType(_POINTER, [_POINTER, _POINTER.as_pointer()])
        function = ir.Function(module, kind, symbol)
        self._module, self._context, self._described = module, context, described
        self._arguments, self._expected = function.args
        self._builder = ir.IRBuilder(function.append_basic_block("entry"))
        self._unsuitable = function.append_basic_block("unsuitable")
        self._compared = _NONE

    def generate(self) -> None:
        builder, described, context = self._builder, self._described, self._context
        values = [
            self._unpack(kind, self._item(self._arguments, index)) for index, kind in enumerate(described.argtypes)
        ]
        thread = self._call("PyEval_SaveThread", _POINTER)
        native = context.declare_function(self._module, described)
        status, result = context.call_conv.call_function(builder, native, described.restype, described.argtypes, values)
        self._call("PyEval_RestoreThread", ir.VoidType(), thread)
        with builder.if_then(status.is_error, likely=False):
            builder.ret(self._same(self._word_of_expected(_RAISED)))
        builder.ret(self._box(described.restype, result))
        builder.position_at_end(self._unsuitable)
        builder.ret(self._same(self._word_of_expected(_UNSUITABLE)))

    def _unpack(self, kind: Any, value: Any) -> Any:
        """Returns the native value of an object, after the code that compares its type with the expected one."""
        builder, context = self._builder, self._context
        self._compare(self._load(value, _AT_TYPE, _POINTER))
        if isinstance(kind, types.Array):
            return self._unpack_array(kind, value)
        if isinstance(kind, Reference):
            pointer = cgutils.alloca_once(builder, context.get_value_type(kind).pointee)
            for index, field in enumerate(kind.field_types):
                native = self._unpack(field, self._item(value, index))
                builder.store(native, cgutils.gep_inbounds(builder, pointer, 0, index))
            return after_stores(builder, pointer)
        if isinstance(kind, types.BaseTuple):
            self._require(builder.icmp_signed("==", self._call("PyTuple_Size", _WORD, value), _WORD(len(kind.types))))
            fields = [self._unpack(field, self._item(value, index)) for index, field in enumerate(kind.types)]
            return context.make_tuple(builder, kind, fields)
        if isinstance(kind, types.NoneType):
            return context.get_dummy_value()
        return self._unpack_number(kind, value)

    def _unpack_array(self, kind: Any, value: Any) -> Any:
        builder, context = self._builder, self._context
        self._compare(self._load(value, _AT_DTYPE, _POINTER))
        self._require(builder.icmp_signed("==", self._load(value, _AT_DIMENSIONS, _HALF), _HALF(kind.ndim)))
        flags = _HALF(_CONTIGUOUS[kind.layout] | kind.aligned * _ALIGNED | kind.mutable * _WRITEABLE)
        has = builder.and_(self._load(value, _AT_FLAGS, _HALF), flags)
        self._require(builder.icmp_signed("==", has, flags))
        array = arrayobj.make_array(kind)(context, builder)
        data = context.get_data_type(kind.dtype).as_pointer()
        shape, strides = (
            [self._load(self._load(value, at, _POINTER), 8 * axis, _WORD) for axis in range(kind.ndim)]
            for at in (_AT_SHAPE, _AT_STRIDES)
        )
        arrayobj.populate_array(
            array,
            data=self._load(value, _AT_DATA, data),
            shape=shape,
            strides=strides,
            itemsize=context.get_abi_sizeof(context.get_data_type(kind.dtype)),
            meminfo=None,
            parent=value,
        )
        return array._getvalue()

    def _unpack_number(self, kind: Any, value: Any) -> Any:
        builder = self._builder
        if isinstance(kind, types.Boolean):
            return builder.trunc(self._call("PyObject_IsTrue", _HALF, value), ir.IntType(1))
        if kind == types.float64:
            return self._call("PyFloat_AsDouble", ir.DoubleType(), value)
        if isinstance(kind, types.Integer) and not (kind.bitwidth == 64 and not kind.signed):
            word = self._call("PyLong_AsLongLong", _WORD, value)
            with builder.if_then(builder.icmp_signed("==", word, _WORD(-1)), likely=False):
                failed = cgutils.is_not_null(builder, self._call("PyErr_Occurred", _POINTER))
                with builder.if_then(failed, likely=False):
                    self._call("PyErr_Clear", ir.VoidType())
                    builder.branch(self._unsuitable)
            return builder.trunc(word, ir.IntType(kind.bitwidth)) if kind.bitwidth < 64 else word
        raise CannotBeShipped(f"an argument is {kind}")

    def _box(self, kind: Any, value: Any) -> Any:
        """Returns a new reference to the object for a native value."""
        builder = self._builder
        if isinstance(kind, types.NoneType):
            return self._same(self._word_of_expected(_NONE))
        if isinstance(kind, types.Boolean):
            return self._call("PyBool_FromLong", _POINTER, builder.zext(value, _WORD))
        if kind == types.float64:
            return self._call("PyFloat_FromDouble", _POINTER, value)
        if isinstance(kind, types.Integer):
            if kind.bitwidth < 64:
                value = (builder.sext if kind.signed else builder.zext)(value, _WORD)
            name = "PyLong_FromLongLong" if kind.signed else "PyLong_FromUnsignedLongLong"
            return self._call(name, _POINTER, value)
        if isinstance(kind, types.Array):  # one of the arguments, because kernels create none
            return self._same(arrayobj.make_array(kind)(self._context, builder, value).parent)
        if isinstance(kind, types.BaseTuple) and not isinstance(kind, types.BaseNamedTuple):
            boxed = self._call("PyTuple_New", _POINTER, _WORD(len(kind.types)))
            for index, part in enumerate(kind.types):
                item = self._box(part, builder.extract_value(value, index))
                self._call("PyTuple_SetItem", _HALF, boxed, _WORD(index), item)
            return boxed
        raise CannotBeShipped(f"the result is {kind}")

    def _compare(self, address: Any) -> None:
        """Requires that an address is the next expected one."""
        self._compared += 1
        self._require(self._builder.icmp_unsigned("==", address, self._word_of_expected(self._compared)))

    def _require(self, condition: Any) -> None:
        """Returns UNSUITABLE from the exported function unless the condition holds."""
        suitable = self._builder.append_basic_block()
        self._builder.cbranch(condition, suitable, self._unsuitable)
        self._builder.position_at_end(suitable)

    def _word_of_expected(self, index: int) -> Any:
        return self._builder.load(self._builder.gep(self._expected, [_WORD(index)]))

    def _item(self, values: Any, index: int) -> Any:
        return self._call("PyTuple_GetItem", _POINTER, values, _WORD(index))

    def _load(self, value: Any, offset: int, kind: Any) -> Any:
        address = self._builder.gep(value, [_WORD(offset)])
        return self._builder.load(self._builder.bitcast(address, kind.as_pointer()))

    def _same(self, value: Any) -> Any:
        """Returns a new reference to the same object."""
        self._call("Py_IncRef", ir.VoidType(), value)
        return value

    def _call(self, name: str, result: Any, *values: Any) -> Any:
        kind = ir.FunctionType(result, [value.type for value in values])
        return self._builder.call(cgutils.get_or_insert_function(self._module, kind, name), values)


def type_of(value: Any) -> Any:
    """Returns numba's type of an argument."""
    return numba.typeof(value)
