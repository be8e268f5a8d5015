"""What the Numba kernels see of memory: the structs of ``csrc/api.h``, float pointers, the stack.

Numba has no C structs and no pointer arithmetic. These few types give both, so that a kernel says
``w.h_panels + block * h_floats`` as its C body does. cffi, which compiled the structs, is asked for
their layout: it is not written down a second time.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_global
from numba.extending import (
    infer_getattr,
    lower_builtin,
    lower_getattr_generic,
    models,
    register_model,
)

from fusedrnn._native import ffi
from fusedrnn.kernels.llvm import FLOAT, INT64, operation

__all__ = [
    "Struct",
    "floats",
    "layouts",
    "local_floats",
    "local_pointers",
    "row_pointers",
    "struct",
]


class Floats(types.Type):
    """``float *``: adding an integer moves it by that many floats."""

    def __init__(self) -> None:
        super().__init__("float *")


floats = Floats()
#: ``const float **``, one for each row of a tile
row_pointers = types.CPointer(floats)


@register_model(Floats)
class FloatsModel(models.PrimitiveModel):
    """An LLVM pointer."""

    def __init__(self, manager: Any, pointer: Floats) -> None:
        super().__init__(manager, pointer, FLOAT.as_pointer())


@infer_global(operator.add)
class FloatsAdd(AbstractTemplate):
    """The type of pointer + integer."""

    def generic(self, operands: Any, _keywords: Any) -> Any:
        if isinstance(operands[0], Floats) and isinstance(operands[1], types.Integer):
            return signature(floats, floats, types.int64)
        return None


@lower_builtin(operator.add, Floats, types.Integer)
def _add(_context: Any, builder: ir.IRBuilder, _signature: Any, operands: Any) -> ir.Value:
    pointer, count = operands
    return builder.gep(pointer, [count])


class Struct(types.Type):
    """``const`` pointer to a struct of ``csrc/api.h``; its fields are read as attributes."""

    def __init__(self, name: str) -> None:
        self.offsets = {}
        self.types = {}
        for field, layout in ffi.typeof(name).fields:
            self.offsets[field] = layout.offset
            self.types[field] = floats if layout.type.kind == "pointer" else types.int64
        super().__init__(f"const {name} *")


@cache
def struct(name: str) -> Struct:
    """The pointer type of a struct, by its C name."""
    return Struct(name)


def layouts() -> str:
    """The structs as they were compiled, for the key of the cache."""
    return "; ".join(f"{name}: {struct(name).offsets}" for name in ("fr_panels", "fr_span"))


@register_model(Struct)
class StructModel(models.PrimitiveModel):
    """The address of the struct."""

    def __init__(self, manager: Any, pointer: Struct) -> None:
        super().__init__(manager, pointer, ir.IntType(8).as_pointer())


@infer_getattr
class StructAttributes(AttributeTemplate):
    """The types of the fields."""

    key = Struct

    def generic_resolve(self, pointer: Struct, field: str) -> types.Type | None:
        return pointer.types.get(field)


@lower_getattr_generic(Struct)
def _field(context: Any, builder: ir.IRBuilder, pointer: Struct, value: Any, field: str) -> Any:
    address = builder.gep(value, [INT64(pointer.offsets[field])])
    as_type = context.get_value_type(pointer.types[field]).as_pointer()
    return builder.load(builder.bitcast(address, as_type), align=8)


@cache
def local_floats(count: int, alignment: int) -> Any:
    """A function that gives room for floats on the stack of the kernel: no heap in a step."""

    @operation(floats)
    def room(builder: ir.IRBuilder) -> ir.Value:
        # In the entry block, so that a loop does not take more of the stack every time.
        with builder.goto_entry_block():
            first = builder.alloca(FLOAT, INT64(count))
        first.align = alignment
        return first

    return room


@cache
def local_pointers(count: int) -> Any:
    """A function that gives room for float pointers on the stack of the kernel."""

    @operation(row_pointers)
    def room(builder: ir.IRBuilder) -> ir.Value:
        with builder.goto_entry_block():
            return builder.alloca(FLOAT.as_pointer(), INT64(count))

    return room
