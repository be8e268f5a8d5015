"""The product with weights of int8: ``csrc/weights/i8.h`` and the tile of integers in Numba. What is computed is told in C.

There is one way to the integers here: weights are widened to 16 bits, half a vector at a time, and a column has a sum for
each half.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fusedrnn.kernels.llvm import BYTE, FLOAT, INT16, INT32, INT64, operation
from fusedrnn.kernels.memory import (
    Pointer,
    constants,
    floats,
    local_floats,
    local_int16s,
    row_pointers,
)
from fusedrnn.kernels.policy import inlined
from fusedrnn.kernels.simd import InstructionSet, vocabulary
from fusedrnn.kernels.tiles import (
    MAX_ROWS,
    MAX_TILE_SUMS,
    SUMS,
    SUMS_FIELDS,
    OwnFunction,
    own_function,
)
from fusedrnn.kernels.weights import Scaled, i8_depth

__all__ = ["call_product", "product_of"]

I8, SLICE = (constants()[f"FR_{name}"] for name in ("I8", "I8_SLICE"))
Q15, Q7, ROUNDING, SMALLEST_ROW = (
    np.float32(constants()[f"FR_{name}"]) for name in ("Q15", "Q7", "Q_ROUNDING", "SMALLEST_ROW")
)
ZERO, NAN, INFINITY = np.float32(0), np.float32(np.nan), np.float32(np.inf)

int16s = Pointer(types.int16)
int8s = Pointer(types.int8)


class RowStep(NamedTuple):
    """What a row of v is divided by to be integers, and 1 by that; ``per_step`` is 0 where the row gives 0 or NaN."""

    step: Any
    per_step: Any


# ---- sums of integers ----------------------------------------------------------------------------

#: ``fr_i8_dot``: where the sums of columns are added, as floats; weights, and the bytes from block to block; how many
#: words of four weights; a row of integers.
DOT = OwnFunction(
    "fr_i8_dot",
    ir.FunctionType(
        ir.VoidType(),
        [FLOAT.as_pointer(), BYTE.as_pointer(), INT64, INT64, INT16.as_pointer()],
    ),
)


class Dots(NamedTuple):
    """The sums of one unit block, and of as many as there are registers for."""

    block: Any
    blocks: Any
    many: int


@operation(types.void, DOT, floats, int8s, types.int64, types.int64, int16s)
def call_dot(
    builder: ir.IRBuilder, dot: ir.Value, total: ir.Value, weights: ir.Value,
    block_bytes: ir.Value, words: ir.Value, q: ir.Value,
) -> None:  # fmt: skip
    """Add the sums of the columns of some blocks."""
    builder.call(dot, [total, weights, block_bytes, words, q])


def emit_dot(
    builder: ir.IRBuilder, isa: InstructionSet, blocks: int, gates: int, arguments: Any
) -> None:
    """``fr_i8_accumulate``: the sums over all words, in registers, gate by gate and block by block."""
    total, weights, block_bytes, words, q = arguments
    before = builder.block
    loop = builder.append_basic_block("k")
    after = builder.append_basic_block("k.end")
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(INT64)
    k.add_incoming(INT64(0), before)
    zero = ir.Constant(isa.integers, [0] * isa.lanes)
    carried = [builder.phi(isa.integers) for _ in range(2 * blocks * gates)]
    half = 2 * isa.lanes  # bytes
    four = isa.set4(builder, builder.gep(q, [builder.mul(k, INT64(4))]))
    offset = builder.mul(k, INT64(2 * half * gates))
    sums = []
    for index, phi in enumerate(carried):
        block, within = divmod(index, 2 * gates)
        at = builder.add(offset, builder.mul(block_bytes, INT64(block)))
        at = builder.add(at, INT64(within * half))
        sums.append(isa.dot(builder, phi, four, isa.widened(builder, builder.gep(weights, [at]))))
        phi.add_incoming(zero, before)
        phi.add_incoming(sums[-1], loop)
    following = builder.add(k, INT64(1))
    k.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, words), loop, after)

    builder.position_at_end(after)
    for column, (low, high) in enumerate(zip(sums[::2], sums[1::2], strict=True)):
        pointer = builder.gep(total, [INT64(column * isa.lanes)])
        found = builder.fadd(isa.load(builder, pointer), isa.joined(builder, low, high))
        isa.store(builder, pointer, found)


def dot_of(isa: InstructionSet, blocks: int, gates: int) -> Any:
    """What a kernel calls to have the sums of so many columns compiled into it, as a function of their own."""

    @operation(DOT)
    def dot(builder: ir.IRBuilder) -> ir.Value:
        def emit(inside: ir.IRBuilder, arguments: Any) -> None:
            emit_dot(inside, isa, blocks, gates, arguments)

        return own_function(builder, f"fr_i8_dot_{blocks}_{gates}_{isa.name}", DOT.declared, emit)

    return dot


# ---- the product of a tile -----------------------------------------------------------------------


@operation(types.int32, types.float32)
def magnitude(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """The bits of |v|: they ascend as the magnitudes do, and those of NaN are above."""
    return builder.and_(builder.bitcast(v, INT32), INT32(0x7FFFFFFF))


@operation(types.float32, types.int32)
def of_bits(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """The float of these bits."""
    return builder.bitcast(bits, FLOAT)


@operation(types.int16, types.float32)
def lower_half(builder: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """The lower half of the bits."""
    return builder.trunc(builder.bitcast(v, INT32), INT16)


@inlined
def largest_of(v, depth):
    """max |v|; NaN if v has one."""
    largest = types.int32(0)
    for k in range(depth):
        largest = max(largest, magnitude(v[k]))
    return of_bits(largest)


@inlined
def row_step_of(type_, v, depth):
    largest = largest_of(v, depth)
    q_max = Q15 if type_ == I8 else Q7
    if largest >= SMALLEST_ROW and largest < INFINITY:
        return RowStep(largest / q_max, q_max / largest)
    return RowStep(ZERO if largest < SMALLEST_ROW else NAN, ZERO)


@inlined
def make_integers(v, depth, per_step, q):
    """v[0] to v[depth - 1] as integers, and zeros up to a multiple of 4."""
    for k in range(depth):
        q[k] = lower_half(v[k] * per_step + ROUNDING)
    for k in range(depth, (depth + 3) // 4 * 4):
        q[k] = 0


@cache
def product_i8(isa_name: str) -> Any:
    """``fr_product_i8``, for one instruction set: to = start + panel v, for a tile."""
    vf = vocabulary(isa_name)
    local_steps = local_floats(MAX_ROWS, alignment=4)
    local_total = local_floats(MAX_TILE_SUMS * vf.LANES, alignment=64)
    local_q = local_int16s(MAX_ROWS * SLICE)
    depth_of = inlined(i8_depth)

    @inlined
    def product_i8(gates, dots, rows, blocks, start, panel, v, depth, to):
        row_bytes = gates * 4 * vf.LANES
        block_bytes = depth_of(depth) // 4 * row_bytes
        columns = blocks * gates
        weights = panel.at
        step, per_step, total, q = local_steps(), local_steps(), local_total(), local_q()
        for row in range(rows):
            step[row], per_step[row] = row_step_of(panel.type, v[row], depth)
        for k in range(rows * columns):
            vf.store(total + k * vf.LANES, vf.set1(0.0))
        for k in range(0, depth, SLICE):
            length = min(depth - k, SLICE)
            words = (length + 3) // 4
            for row in range(rows):
                make_integers(v[row] + k, length, per_step[row], q + row * SLICE)
            block = 0
            while block < blocks:
                more = dots.many if blocks - block >= dots.many else 1
                dot = dots.blocks if more == dots.many else dots.block
                at = weights + block * block_bytes
                for row in range(rows):  # the weights are near from the second row on
                    sums = total + (row * columns + block * gates) * vf.LANES
                    call_dot(dot, sums, at, block_bytes, words, q + row * SLICE)
                block += more
            weights += words * row_bytes
        for row in range(rows):
            for block in range(blocks):
                begin = start.at + row * start.row_stride + block * start.block_stride
                end = to.at + row * to.row_stride + block * to.block_stride
                for gate in range(gates):
                    column = block * gates + gate
                    scale = vf.mul(vf.set1(step[row]), vf.load(panel.scales + column * vf.LANES))
                    found = vf.load(total + (row * columns + column) * vf.LANES)
                    finished = vf.fma(scale, found, vf.load(begin + gate * vf.LANES))
                    vf.store(end + gate * vf.LANES, finished)

    return product_i8


# ---- what a kernel calls -------------------------------------------------------------------------

SCALED = types.NamedTuple((int8s, floats, types.int64), Scaled)
DOTS = types.NamedTuple((DOT, DOT, types.int64), Dots)
#: What ``product_i8`` is given.
ARGUMENTS = (
    types.int64, DOTS, types.int64, types.int64, SUMS, SCALED, row_pointers, types.int64, SUMS,
)  # fmt: skip

#: ``fr_product_i8``.
PRODUCT = OwnFunction(
    "fr_product_i8",
    ir.FunctionType(
        ir.VoidType(),
        [
            INT64,
            ir.LiteralStructType([DOT.declared.as_pointer()] * 2 + [INT64]),
            INT64,
            INT64,
            SUMS_FIELDS,
            ir.LiteralStructType([BYTE.as_pointer(), FLOAT.as_pointer(), INT64]),
            FLOAT.as_pointer().as_pointer(),
            INT64,
            SUMS_FIELDS,
        ],
    ),
)


class Product(NamedTuple):
    """What :class:`~.tiles.Gates` has for a product: a kernel names it, and hands it down."""

    function: Any
    dots: Any


def product_of(isa: InstructionSet, gates: int) -> Any:
    """What a kernel calls to have the product compiled into it, once for all numbers of gates."""
    many = max((8 if isa.registers >= 32 else 4) // gates, 1)
    of_block, of_blocks = dot_of(isa, 1, gates), dot_of(isa, many, gates)
    compiled = product_i8(isa.name)
    signature = types.void(*ARGUMENTS)

    @intrinsic
    def function(_typing: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, _signature: Any, _values: Any) -> Any:
            compiled.compile(signature)
            made = compiled.overloads[signature.args]
            context.add_linking_libs([made.library])

            def emit(inside: ir.IRBuilder, arguments: Any) -> None:
                # Nothing in it raises.
                context.call_internal_no_propagate(inside, made.fndesc, signature, arguments)

            return own_function(builder, f"fr_product_i8_{isa.name}", PRODUCT.declared, emit)

        return PRODUCT(), generate

    return inlined(lambda: Product(function(), Dots(of_block(), of_blocks(), many)))


@operation(types.void, PRODUCT, *ARGUMENTS)
def call_product(
    builder: ir.IRBuilder, product: ir.Value, gates: ir.Value, dots: ir.Value, rows: ir.Value,
    blocks: ir.Value, start: ir.Value, panel: ir.Value, v: ir.Value, depth: ir.Value, to: ir.Value,
) -> None:  # fmt: skip
    """The product of a tile with weights of int8."""
    builder.call(product, [gates, dots, rows, blocks, start, panel, v, depth, to])
