"""What processors do in one instruction and numba has no word for.

`prefetch` asks for memory that will be needed soon. A replay knows what comes next, which no real allocator does: rows
ahead name blocks whose records can be on their way to the cache by the time they are played.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from replay.jit.compiling import INLINED_OPTIONS


def prefetch(array: Any, index: int) -> None:
    """Nothing that can be seen: `array[index]` will be wanted."""


@intrinsic
def _prefetch(typing_context, array, index):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        view = context.make_array(kind)(context, builder, arguments[0])
        item_bytes = context.get_constant(types.int64, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        bytes_pointer = ir.IntType(8).as_pointer()
        start = builder.bitcast(view.data, bytes_pointer)
        address = builder.gep(start, [builder.mul(arguments[1], item_bytes)])
        number = ir.IntType(32)
        declared = ir.FunctionType(ir.VoidType(), [bytes_pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, declared, "llvm.prefetch.p0i8")
        write, everywhere, data = number(1), number(3), number(1)
        builder.call(function, [address, write, everywhere, data])
        return context.get_dummy_value()

    return types.none(array, types.int64), generate


@overload(prefetch, jit_options=INLINED_OPTIONS)
def _prefetch_overload(array, index):  # type: ignore[no-untyped-def]
    return lambda array, index: _prefetch(array, index)


def copy_record(source: Any, into: Any, index: int) -> None:
    """`into[index] = source[0]`, in one piece: numba copies a record byte by byte."""
    into[index] = source[0]


@intrinsic
def _copy_record(typing_context, source, into, index):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = [
            builder.bitcast(context.make_array(kind)(context, builder, array).data, ir.IntType(8).as_pointer())
            for kind, array in zip(signature.args[:2], arguments[:2], strict=True)
        ]
        record_bytes = context.get_constant(types.int64, context.get_abi_sizeof(context.get_data_type(source.dtype)))
        place = builder.gep(pointers[1], [builder.mul(arguments[2], record_bytes)])
        cgutils.raw_memcpy(builder, place, pointers[0], record_bytes, 1)
        return context.get_dummy_value()

    assert source.dtype == into.dtype
    return types.none(source, into, types.int64), generate


@overload(copy_record, jit_options=INLINED_OPTIONS)
def _copy_record_overload(source, into, index):  # type: ignore[no-untyped-def]
    return lambda source, into, index: _copy_record(source, into, index)


def bit_length(value: int) -> int:
    """Binary digits of an int64 above 0."""
    return int(value).bit_length()


@intrinsic
def _bit_length(typing_context, value):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = builder.ctlz(arguments[0], ir.IntType(1)(1))
        return builder.sub(ir.IntType(64)(64), zeros)

    return types.int64(types.int64), generate


@overload(bit_length, jit_options=INLINED_OPTIONS)
def _bit_length_overload(value):  # type: ignore[no-untyped-def]
    return lambda value: _bit_length(value)


def opaque(value: int) -> int:
    """The same int64, of which LLVM does not know where it is from, and makes no plans with it."""
    return value


@intrinsic
def _opaque(typing_context, value):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(64)
        return builder.asm(ir.FunctionType(number, [number]), "", "=r,0", arguments, False)

    return value(value), generate


@overload(opaque, jit_options=INLINED_OPTIONS)
def _opaque_overload(value):  # type: ignore[no-untyped-def]
    return lambda value: _opaque(value)


@intrinsic
def counter(typing_context):  # type: ignore[no-untyped-def]
    """The processor's count of time, as an int64; for compiled functions only."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])

    return types.int64(), generate
