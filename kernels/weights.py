"""How panels are read: ``csrc/weights`` in Numba. A kernel is compiled for one type of weights; cells do not know which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from fusedrnn.kernels.llvm import FLOAT
from fusedrnn.kernels.memory import Pointer, constants
from fusedrnn.kernels.simd import InstructionSet

__all__ = ["FLOAT32", "WEIGHTS", "Scaled", "Weights", "i8_depth"]

LINE_BYTES: int = constants()["FR_LINE_BYTES"]
FAR_FLOATS: int = constants()["FR_FAR_FLOATS"]
SLICE: int = constants()["FR_I8_SLICE"]


@dataclass(frozen=True)
class Weights:
    """A type of weights.

    Attributes
    ----------
    name
        What it is called in :mod:`fusedrnn.narrowing`.
    item
        The type of an element of its panels.
    load
        (isa, builder, pointer): a vector of weights, widened: to floats, or to int16.
    """

    name: str
    item: types.Type
    load: Callable[[InstructionSet, ir.IRBuilder, ir.Value], ir.Value]

    @property
    def are_integers(self) -> bool:
        """Whether their product is one of integers: ``integer_product.py``."""
        return bool(self.item == types.int8)

    @property
    def pointer(self) -> Pointer:
        """The type of pointers to panels."""
        return Pointer(self.item)

    @property
    def element(self) -> ir.Type:
        """The LLVM type of an element."""
        return FLOAT if self.item == types.float32 else ir.IntType(self.item.bitwidth)

    @property
    def bytes(self) -> int:
        """Bytes of an element."""
        return int(self.item.bitwidth) // 8

    @property
    def line(self) -> int:
        """Elements in a cache line."""
        return LINE_BYTES // self.bytes

    @property
    def far(self) -> int:
        """Panels of more elements are read one block at a time where a tile has one row: FR_FAR_FLOATS; never of int8."""
        return 2**62 if self.are_integers else FAR_FLOATS * 4 // self.bytes


FLOAT32 = Weights("float32", types.float32, InstructionSet.load)
WEIGHTS = {
    weights.name: weights
    for weights in (
        FLOAT32,
        Weights("float16", types.uint16, InstructionSet.load_f16),
        Weights("bfloat16", types.uint16, InstructionSet.load_bf16),
        Weights("int8", types.int8, InstructionSet.widened),
    )
}


class Scaled(NamedTuple):
    """Panels of int8, the scales of the rows of their matrix, and their fr_weight_type."""

    at: Any
    scales: Any
    type: int


def i8_depth(depth: int) -> int:
    """``fr_i8_depth``: the bytes that panels of int8 hold for a unit, with sums of weights that are not read here."""
    return (depth + 3) // 4 * 4 + (depth + SLICE - 1) // SLICE * 4
