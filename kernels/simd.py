"""The vector vocabulary of ``csrc/simd`` (its README.md says what each name means), for Numba.

A vector is an opaque Numba type that LLVM sees as ``<L x float>``: a kernel asks for the
instructions it wants instead of hoping that a loop becomes them. The same vocabulary exists once
per instruction set: 16, 8 or 4 lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from fusedrnn.kernels.llvm import BYTE, FLOAT, INT16, INT32, INT64, operation
from fusedrnn.kernels.memory import floats
from fusedrnn.kernels.policy import inlined

__all__ = ["INSTRUCTION_SETS", "InstructionSet", "Vector", "vocabulary"]


@dataclass(frozen=True)
class InstructionSet:
    """What the vocabulary of one instruction set is made of.

    Attributes
    ----------
    lanes
        Floats in a vector.
    registers
        How many vectors a register tile may keep at hand.
    has_fma
        Without the instruction LLVM makes a multiply-add a library call per lane.
    has_f16
        Without the instruction LLVM widens a float16 by a library call per lane.
    """

    name: str
    lanes: int
    registers: int
    has_fma: bool
    has_f16: bool

    @property
    def vector(self) -> ir.VectorType:
        """The LLVM type."""
        return ir.VectorType(FLOAT, self.lanes)

    @property
    def integers(self) -> ir.VectorType:
        """The LLVM type of as many int32."""
        return ir.VectorType(INT32, self.lanes)

    def load(self, builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
        """The lanes from a float pointer on."""
        return builder.load(builder.bitcast(pointer, self.vector.as_pointer()), align=4)

    def load_f16(self, builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
        """The lanes from a pointer to float16 on, widened exactly; none is subnormal, Inf or NaN."""
        if self.has_f16:
            halves = ir.VectorType(ir.HalfType(), self.lanes)
            v = builder.load(builder.bitcast(pointer, halves.as_pointer()), align=2)
            return builder.fpext(v, self.vector)
        # The exponent, moved to where a float's is, is 112 too small. The copies of the sign are no bits of the float.
        bits = builder.bitcast(self.load_bf16(builder, pointer), self.integers)
        bits = builder.ashr(bits, ir.Constant(self.integers, [3] * self.lanes))
        bits = builder.and_(bits, ir.Constant(self.integers, [0x8FFFE000 - 2**32] * self.lanes))
        scale = ir.Constant(self.vector, [2.0**112] * self.lanes)
        return builder.fmul(builder.bitcast(bits, self.vector), scale)

    def load_bf16(self, builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
        """The lanes from a pointer to bfloat16 on, widened exactly."""
        halves = ir.VectorType(INT16, self.lanes)
        v = builder.load(builder.bitcast(pointer, halves.as_pointer()), align=2)
        upper = ir.Constant(self.integers, [16] * self.lanes)
        return builder.bitcast(builder.shl(builder.zext(v, self.integers), upper), self.vector)

    def store(self, builder: ir.IRBuilder, pointer: ir.Value, v: ir.Value) -> None:
        """Keep the lanes from a float pointer on."""
        builder.store(v, builder.bitcast(pointer, self.vector.as_pointer()), align=4)

    def set1(self, builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
        """The scalar in every lane."""
        vector = builder.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, INT32(0))
        first = ir.Constant(ir.VectorType(INT32, self.lanes), [0] * self.lanes)
        return builder.shuffle_vector(vector, vector, first)

    def fma(self, builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c, rounded once where there is an instruction for it."""
        if not self.has_fma:
            return builder.fadd(builder.fmul(a, b), c)
        function = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fma.v{self.lanes}f32"
        return builder.call(
            cgutils.get_or_insert_function(builder.module, function, name), [a, b, c]
        )

    # Vectors of twice as many int16: LLVM knows them as the operands of pmaddwd, or of smull and smull2.

    def set4(self, builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
        """The four int16 from a pointer on, over and over."""
        fours = ir.VectorType(INT64, self.lanes // 2)
        four = builder.load(builder.bitcast(pointer, INT64.as_pointer()), align=2)
        v = builder.insert_element(ir.Constant(fours, ir.Undefined), four, INT32(0))
        first = ir.Constant(ir.VectorType(INT32, fours.count), [0] * fours.count)
        v = builder.shuffle_vector(v, v, first)
        return builder.bitcast(v, ir.VectorType(INT16, 2 * self.lanes))

    def widened(self, builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
        """The int8 from a pointer on as int16."""
        narrow = ir.VectorType(BYTE, 2 * self.lanes)
        v = builder.load(builder.bitcast(pointer, narrow.as_pointer()), align=1)
        return builder.sext(v, ir.VectorType(INT16, 2 * self.lanes))

    def dot(
        self, builder: ir.IRBuilder, sums: ir.Value, q: ir.Value, weights: ir.Value
    ) -> ir.Value:
        """sums, and in each lane two products of int16."""
        wide = ir.VectorType(INT32, 2 * self.lanes)
        products = builder.mul(builder.sext(q, wide), builder.sext(weights, wide))
        return builder.add(sums, self.sums_of_pairs(builder, products, products))

    def sums_of_pairs(self, builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
        """The sums of pairs of int32, first those of ``low``: as many as there are lanes."""
        even, odd = (
            builder.shuffle_vector(
                low, high, ir.Constant(self.integers, list(range(first, 2 * self.lanes, 2)))
            )
            for first in (0, 1)
        )
        return builder.add(even, odd)

    def joined(self, builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
        """The sums of pairs of lanes, first those of ``low``, rounded to float."""
        sums = self.sums_of_pairs(builder, low, high)
        return builder.sitofp(sums, self.vector)


#: Best first, as in csrc/kernel_table.h. The lanes and registers are those of csrc/simd.
INSTRUCTION_SETS: dict[str, InstructionSet] = {
    isa.name: isa
    for isa in (
        InstructionSet("avx512", lanes=16, registers=32, has_fma=True, has_f16=True),
        InstructionSet("avx2", lanes=8, registers=16, has_fma=True, has_f16=True),
        InstructionSet("neon", lanes=4, registers=32, has_fma=True, has_f16=True),
        InstructionSet("baseline", lanes=4, registers=15, has_fma=False, has_f16=False),
    )
}


class Vector(types.Type):
    """The Numba type of a vector of one instruction set."""

    def __init__(self, isa: InstructionSet) -> None:
        self.isa = isa
        super().__init__(f"vf_{isa.name}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """LLVM's own vector, so that LLVM keeps it in a register."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.isa.vector)


@cache
def vocabulary(isa_name: str) -> ModuleType:
    """The vocabulary of one instruction set.

    Returns
    -------
    module
        A module object, because Numba resolves the attributes of modules when it compiles: a kernel
        says ``vf.fma(a, b, c)`` where its C body says ``vf_fma(a, b, c)``.
    """
    isa = INSTRUCTION_SETS[isa_name]
    lanes = isa.lanes
    bits = isa.integers
    mask = ir.VectorType(ir.IntType(1), lanes)
    vector_pointer = isa.vector.as_pointer()
    vector = Vector(isa)

    @operation(vector, floats)
    def load(builder: ir.IRBuilder, p: ir.Value) -> ir.Value:
        return isa.load(builder, p)

    @operation(types.void, floats, vector)
    def store(builder: ir.IRBuilder, p: ir.Value, v: ir.Value) -> None:
        isa.store(builder, p, v)

    def first(builder: ir.IRBuilder, n: ir.Value) -> ir.Value:
        lane = ir.IntType(lanes)
        ones = builder.shl(lane(1), builder.trunc(n, lane))
        return builder.bitcast(builder.sub(ones, lane(1)), mask)

    @operation(vector, floats, types.int64)
    def load_first(builder: ir.IRBuilder, p: ir.Value, n: ir.Value) -> ir.Value:
        function = ir.FunctionType(isa.vector, [vector_pointer, INT32, mask, isa.vector])
        name = f"llvm.masked.load.v{lanes}f32.p0"
        masked = cgutils.get_or_insert_function(builder.module, function, name)
        zero = ir.Constant(isa.vector, [0.0] * lanes)
        p = builder.bitcast(p, vector_pointer)
        return builder.call(masked, [p, INT32(4), first(builder, n), zero])

    @operation(types.void, floats, vector, types.int64)
    def store_first(builder: ir.IRBuilder, p: ir.Value, v: ir.Value, n: ir.Value) -> None:
        function = ir.FunctionType(ir.VoidType(), [isa.vector, vector_pointer, INT32, mask])
        name = f"llvm.masked.store.v{lanes}f32.p0"
        masked = cgutils.get_or_insert_function(builder.module, function, name)
        p = builder.bitcast(p, vector_pointer)
        builder.call(masked, [v, p, INT32(4), first(builder, n)])

    @inlined
    def load_n(p, n):
        return load(p) if n >= lanes else load_first(p, n)

    @inlined
    def store_n(p, v, n):
        if n >= lanes:
            store(p, v)
        else:
            store_first(p, v, n)

    @operation(vector, types.float32)
    def set1(builder: ir.IRBuilder, s: ir.Value) -> ir.Value:
        return isa.set1(builder, s)

    @operation(vector, vector, vector)
    def add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        return builder.fadd(a, b)

    @operation(vector, vector, vector)
    def sub(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        return builder.fsub(a, b)

    @operation(vector, vector, vector)
    def mul(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        return builder.fmul(a, b)

    @operation(vector, vector, vector)
    def div(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        return builder.fdiv(a, b)

    @operation(vector, vector, vector, vector)
    def fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return isa.fma(builder, a, b, c)

    # An ordered comparison is false for a NaN: the second argument is kept, as minps and maxps do.
    @operation(vector, vector, vector)
    def minimum(builder: ir.IRBuilder, limit: ir.Value, v: ir.Value) -> ir.Value:
        return builder.select(builder.fcmp_ordered("<", limit, v), limit, v)

    @operation(vector, vector, vector)
    def maximum(builder: ir.IRBuilder, limit: ir.Value, v: ir.Value) -> ir.Value:
        return builder.select(builder.fcmp_ordered(">", limit, v), limit, v)

    @operation(vector, vector, vector, vector)
    def less(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, v: ir.Value) -> ir.Value:
        zero = ir.Constant(isa.vector, [0.0] * lanes)
        return builder.select(builder.fcmp_ordered("<", a, b), v, zero)

    @operation(vector, vector)
    def shl23(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
        shifted = builder.shl(builder.bitcast(v, bits), ir.Constant(bits, [23] * lanes))
        return builder.bitcast(shifted, isa.vector)

    vf = ModuleType(f"{__name__}.{isa_name}", "The vector vocabulary of one instruction set.")
    vf.__dict__.update(
        ISA=isa,
        LANES=lanes,
        vector=vector,
        load=load,
        store=store,
        load_n=load_n,
        store_n=store_n,
        set1=set1,
        add=add,
        sub=sub,
        mul=mul,
        div=div,
        fma=fma,
        minimum=minimum,
        maximum=maximum,
        less=less,
        shl23=shl23,
    )
    return vf
