"""How a Numba kernel gets an instruction that Numba does not know: by writing LLVM for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["BYTE", "FLOAT", "INT16", "INT32", "INT64", "operation"]

BYTE = ir.IntType(8)
FLOAT = ir.FloatType()
INT16 = ir.IntType(16)
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)


def operation(result: types.Type, *arguments: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """Make a function for kernels, of these types, out of one that emits (builder, *values).

    Numba converts what it is called with to these types, or refuses.
    """

    def decorate(emit: Callable[..., ir.Value | None]) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
            value = emit(builder, *values)
            return context.get_dummy_value() if result == types.void else value

        @wraps(emit)  # the parameters that Numba counts are those of emit
        def define(_typing: Any, *_given: types.Type) -> Any:
            return result(*arguments), generate

        return intrinsic(define)

    return decorate
