"""The machine code of `replay.jit.cpu_intrinsics`. Importing this module registers it with numba."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from replay.jit import cpu_intrinsics
from replay.jit._numba.pipeline import OPTIONS

_INLINED = OPTIONS["inlined"]


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


@intrinsic
def _bit_length(typing_context, value):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = builder.ctlz(arguments[0], ir.IntType(1)(1))
        return builder.sub(ir.IntType(64)(64), zeros)

    return types.int64(types.int64), generate


@intrinsic
def _add_product(typing_context, low, high, factor, other):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, wide = ir.IntType(64), ir.IntType(128)
        below = builder.zext(arguments[0], wide)
        above, one, another = (builder.sext(each, wide) for each in arguments[1:])
        total = builder.or_(builder.shl(above, wide(64)), below)
        total = builder.add(total, builder.mul(one, another))
        words = builder.trunc(total, word), builder.trunc(builder.lshr(total, wide(64)), word)
        return context.make_tuple(builder, signature.return_type, words)

    return types.UniTuple(types.int64, 2)(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def _opaque(typing_context, value):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(64)
        return builder.asm(ir.FunctionType(number, [number]), "", "=r,0", arguments, False)

    return value(value), generate


@intrinsic
def _counter(typing_context):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])

    return types.int64(), generate


@overload(cpu_intrinsics.prefetch, jit_options=_INLINED)
def _prefetch_overload(array, index):  # type: ignore[no-untyped-def]
    return lambda array, index: _prefetch(array, index)


@overload(cpu_intrinsics.copy_record, jit_options=_INLINED)
def _copy_record_overload(source, into, index):  # type: ignore[no-untyped-def]
    return lambda source, into, index: _copy_record(source, into, index)


@overload(cpu_intrinsics.bit_length, jit_options=_INLINED)
def _bit_length_overload(value):  # type: ignore[no-untyped-def]
    return lambda value: _bit_length(value)


@overload(cpu_intrinsics.add_product, jit_options=_INLINED)
def _add_product_overload(low, high, factor, other):  # type: ignore[no-untyped-def]
    return lambda low, high, factor, other: _add_product(low, high, factor, other)


@overload(cpu_intrinsics.opaque, jit_options=_INLINED)
def _opaque_overload(value):  # type: ignore[no-untyped-def]
    return lambda value: _opaque(value)


@overload(cpu_intrinsics.counter, jit_options=_INLINED)
def _counter_overload():  # type: ignore[no-untyped-def]
    return lambda: _counter()
