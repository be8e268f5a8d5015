"""What the Numba kernels see of memory: the structs of ``csrc/api.h``, pointers, the stack.

Numba has no C structs and no pointer arithmetic. These few types give both, so that a kernel says
``w.h_panels + block * h_floats`` and ``s.active[t]`` as its C body does. cffi, which compiled the
structs, is asked for their layout and for the constants: neither is written down a second time.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import default_manager
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_global
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_builtin,
    lower_getattr_generic,
    models,
    register_model,
)

from fusedrnn._native import ffi, lib
from fusedrnn.kernels.llvm import BYTE, FLOAT, INT16, INT64, operation

__all__ = [
    "STRUCTS",
    "Pointer",
    "Struct",
    "constants",
    "copy",
    "field_as",
    "floats",
    "layouts",
    "local_floats",
    "local_int16s",
    "local_integers",
    "local_pointers",
    "null",
    "null_of",
    "row_pointers",
    "struct",
    "zeros",
]


class Pointer(types.Type):
    """``item *``: adding an integer moves it by that many items; NULL is false."""

    def __init__(self, item: types.Type) -> None:
        self.item = item
        super().__init__(f"{item} *")


class Struct(types.Type):
    """A struct of ``csrc/api.h``. A pointer to one has its fields as attributes."""

    def __init__(self, name: str) -> None:
        self.size = ffi.sizeof(name)
        self.offsets = {}
        self.types = {}
        self.inside = set()  # the fields that are structs, read as a pointer to each
        for field, layout in ffi.typeof(name).fields:
            self.offsets[field] = layout.offset
            self.types[field] = of_c(layout.type)
            if isinstance(self.types[field], Struct):
                self.types[field] = Pointer(self.types[field])
                self.inside.add(field)
        super().__init__(name)


def of_c(declared: Any) -> types.Type:
    """The type of what C declares, as cffi tells it."""
    if declared.kind == "pointer":
        return Pointer(of_c(declared.item))
    if declared.kind == "struct":
        return Struct(declared.cname.removeprefix("struct "))
    # A pointer to a function is not called from here: its address will do.
    return {"float": types.float32, "double": types.float64}.get(declared.cname, types.int64)


#: The structs that kernels read, by their C names.
STRUCTS = ("fr_panels", "fr_span", "fr_module", "fr_back_span", "fr_weight_gradients")

floats = Pointer(types.float32)
#: ``const float **``, one for each row of a tile
row_pointers = Pointer(floats)


@cache
def struct(name: str) -> Pointer:
    """The pointer type of a struct, by its C name."""
    return Pointer(Struct(name))


def constants() -> dict[str, Any]:
    """The constants of ``csrc/api.h``, by their C names: ints, and floats of the activations."""
    return {name: getattr(lib, name) for name in sorted(dir(lib)) if name.startswith("FR_")}


def layouts() -> str:
    """The structs and constants as they were compiled, for the key of the cache."""
    structs = (struct(name).item for name in STRUCTS)
    described = [f"{item}: {item.size} {item.offsets} {item.types}" for item in structs]
    return "; ".join([*described, str(constants())])


# ---- pointers ------------------------------------------------------------------------------------


@register_model(Pointer)
class PointerModel(models.PrimitiveModel):
    """An LLVM pointer: to a struct's first byte, or to its item."""

    def __init__(self, manager: Any, pointer: Pointer) -> None:
        item = pointer.item
        to = BYTE if isinstance(item, Struct) else manager.lookup(item).get_value_type()
        super().__init__(manager, pointer, to.as_pointer())


@infer_global(operator.add)
@infer_global(operator.iadd)
class PointerAdd(AbstractTemplate):
    """The type of pointer + integer."""

    def generic(self, operands: Any, _keywords: Any) -> Any:
        if isinstance(operands[0], Pointer) and isinstance(operands[1], types.Integer):
            return signature(operands[0], operands[0], types.int64)
        return None


@lower_builtin(operator.add, Pointer, types.Integer)
@lower_builtin(operator.iadd, Pointer, types.Integer)
def _add(_context: Any, builder: ir.IRBuilder, typed: Any, operands: Any) -> ir.Value:
    pointer, count = operands
    item = typed.return_type.item
    if isinstance(item, Struct):
        count = builder.mul(count, INT64(item.size))
    return builder.gep(pointer, [count])


@infer_global(operator.getitem)
class PointerGet(AbstractTemplate):
    """The type of pointer[integer]."""

    def generic(self, operands: Any, _keywords: Any) -> Any:
        if isinstance(operands[0], Pointer) and isinstance(operands[1], types.Integer):
            return signature(operands[0].item, operands[0], types.int64)
        return None


@lower_builtin(operator.getitem, Pointer, types.Integer)
def _get(_context: Any, builder: ir.IRBuilder, _typed: Any, operands: Any) -> ir.Value:
    pointer, index = operands
    return builder.load(builder.gep(pointer, [index]))


@infer_global(operator.setitem)
class PointerSet(AbstractTemplate):
    """The types of pointer[integer] = item."""

    def generic(self, operands: Any, _keywords: Any) -> Any:
        if isinstance(operands[0], Pointer) and isinstance(operands[1], types.Integer):
            return signature(types.none, operands[0], types.int64, operands[0].item)
        return None


@lower_builtin(operator.setitem, Pointer, types.Integer, types.Any)
def _set(context: Any, builder: ir.IRBuilder, _typed: Any, operands: Any) -> ir.Value:
    pointer, index, item = operands
    builder.store(item, builder.gep(pointer, [index]))
    return context.get_dummy_value()


@infer_global(bool)
class PointerTruth(AbstractTemplate):
    """The type of ``if pointer``."""

    def generic(self, operands: Any, _keywords: Any) -> Any:
        if isinstance(operands[0], Pointer):
            return signature(types.boolean, operands[0])
        return None


@lower_builtin(bool, Pointer)
def _truth(_context: Any, builder: ir.IRBuilder, _typed: Any, operands: Any) -> ir.Value:
    return cgutils.is_not_null(builder, operands[0])


# ---- structs -------------------------------------------------------------------------------------


@infer_getattr
class StructAttributes(AttributeTemplate):
    """The types of the fields."""

    key = Pointer

    def generic_resolve(self, pointer: Pointer, field: str) -> types.Type | None:
        return pointer.item.types.get(field) if isinstance(pointer.item, Struct) else None


@lower_getattr_generic(Pointer)
def _field(context: Any, builder: ir.IRBuilder, pointer: Pointer, value: Any, field: str) -> Any:
    struct = pointer.item
    address = builder.gep(value, [INT64(struct.offsets[field])])
    if field in struct.inside:
        return address
    as_type = context.get_value_type(struct.types[field]).as_pointer()
    loaded = builder.load(builder.bitcast(address, as_type), align=8)
    # No kernel writes to a struct: a field need not be read again after every store of a float.
    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
    return loaded


def field_as(name: str, pointer: Pointer) -> Any:
    """A function that reads a field of a struct, a pointer, as one to other items."""

    @intrinsic
    def field(_typing: Any, struct: types.Type) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, typed: Any, values: Any) -> ir.Value:
            found = _field(context, builder, typed.args[0], values[0], name)
            return builder.bitcast(found, context.get_value_type(pointer))

        return pointer(struct), generate

    return field


# ---- what a kernel needs of its own --------------------------------------------------------------


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


def _local(item: ir.Type, pointer: types.Type, count: int) -> Any:
    @operation(pointer)
    def room(builder: ir.IRBuilder) -> ir.Value:
        with builder.goto_entry_block():
            return builder.alloca(item, INT64(count))

    return room


@cache
def local_pointers(count: int) -> Any:
    """A function that gives room for float pointers on the stack of the kernel."""
    return _local(FLOAT.as_pointer(), row_pointers, count)


@cache
def local_integers(count: int) -> Any:
    """A function that gives room for integers on the stack of the kernel."""
    return _local(INT64, Pointer(types.int64), count)


@cache
def local_int16s(count: int) -> Any:
    """A function that gives room for int16 on the stack of the kernel."""
    return _local(INT16, Pointer(types.int16), count)


@cache
def null_of(pointer: Pointer) -> Any:
    """A function that gives NULL."""

    @operation(pointer)
    def null(_builder: ir.IRBuilder) -> ir.Value:
        return ir.Constant(default_manager[pointer].get_value_type(), None)

    return null


null = null_of(floats)


@operation(types.void, floats, floats, types.int64)
def copy(builder: ir.IRBuilder, to: ir.Value, start: ir.Value, count: ir.Value) -> None:
    """Copy `count` floats from `start` to `to`."""
    cgutils.raw_memcpy(builder, to, start, count, 4)


@cache
def zeros(count: int) -> Any:
    """A function that gives floats that are 0 for good."""

    @operation(floats)
    def room(builder: ir.IRBuilder) -> ir.Value:
        kept = ir.Constant(ir.ArrayType(FLOAT, count), None)
        array = cgutils.global_constant(builder, f"fr_zeros_{count}", kept)
        return builder.bitcast(array, FLOAT.as_pointer())

    return room
