"""Passes a NamedTuple of arrays and ints to compiled kernels by reference.

numba passes a NamedTuple by value, seven words for each array, at every call. For a stack of models, that costs more
than the work of a kernel, and compiling takes minutes. A class marked `by_reference` is copied to memory once, when
Python calls a kernel; kernels pass a pointer to it. For Python, and for kernels that run as plain Python, it is an
ordinary NamedTuple. Its fields are constant, but elements of its arrays can be assigned. LLVM has this information, so
it does not load a field again after a write to an element.
"""

import hashlib
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    NativeValue,
    infer_getattr,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)


class Reference(types.Type):
    """numba's type for instances of `instance_class` with fields of these types."""

    def __init__(self, instance_class: type, field_types: tuple[types.Type, ...]):
        self.instance_class = instance_class
        self.field_types = field_types
        names = instance_class._fields  # type: ignore[attr-defined]
        self.field_names: tuple[str, ...] = names
        # A digest, because the name is part of the name of every function with such a parameter.
        fields = hashlib.sha256(repr(field_types).encode()).hexdigest()[:16]
        super().__init__(name=f"{instance_class.__module__}.{instance_class.__qualname__}({fields})")


@register_model(Reference)
class _ReferenceModel(models.PrimitiveModel):
    """A pointer to the fields, which are stored one after the other."""

    def __init__(self, manager: Any, kind: Reference):
        fields = ir.LiteralStructType([manager.lookup(field).get_value_type() for field in kind.field_types])
        super().__init__(manager, kind, fields.as_pointer())


@infer_getattr
class _Attributes(AttributeTemplate):
    key = Reference

    def generic_resolve(self, kind: Reference, name: str) -> types.Type | None:
        return kind.field_types[kind.field_names.index(name)] if name in kind.field_names else None


@lower_getattr_generic(Reference)
def _get_field(context: Any, builder: Any, kind: Reference, value: Any, name: str) -> Any:
    return _load_constant(builder, cgutils.gep_inbounds(builder, value, 0, kind.field_names.index(name)))


def _load_constant(builder: Any, pointer: Any) -> Any:
    """Loads a constant field part by part: if LLVM splits a struct itself, the parts are not marked as constant."""
    kind = pointer.type.pointee
    if isinstance(kind, ir.LiteralStructType | ir.ArrayType):
        value = ir.Constant(kind, ir.Undefined)
        for index in range(len(kind)):
            part = _load_constant(builder, cgutils.gep_inbounds(builder, pointer, 0, index))
            value = builder.insert_value(value, part, index)
        return value
    part = builder.load(pointer)
    part.set_metadata("invariant.load", builder.module.add_metadata([]))
    return part


@unbox(Reference)
def _lay_out(kind: Reference, instance: Any, c: Any) -> NativeValue:
    """Stores the native values of the fields in the stack frame of the calling wrapper; they live as long as the
    call."""
    pointer = cgutils.alloca_once(c.builder, c.context.get_value_type(kind).pointee)
    is_error = cgutils.false_bit
    for index, field in enumerate(kind.field_types):
        native = c.unbox(field, c.pyapi.tuple_getitem(instance, index))
        c.builder.store(native.value, cgutils.gep_inbounds(c.builder, pointer, 0, index))
        is_error = c.builder.or_(is_error, native.is_error)
    return NativeValue(after_stores(c.builder, pointer), is_error=is_error)


def after_stores(builder: Any, pointer: Any) -> Any:
    """Returns the same pointer to fields that are constant from here on.

    Without this barrier, LLVM could move loads of fields before the stores above.
    """
    opaque = ir.InlineAsm(ir.FunctionType(pointer.type, [pointer.type]), "", "=r,0,~{memory}", side_effect=True)
    return builder.call(opaque, [pointer])


def mark_by_reference(instance_class: type) -> None:
    """Makes kernels take instances of a NamedTuple class by reference."""

    @typeof_impl.register(instance_class)
    def _(value: Any, c: Any) -> Reference:
        return Reference(instance_class, tuple(typeof_impl(field, c) for field in value))
