"""The tiles of a product, in LLVM: the part of ``csrc/cells/product.h`` that C's compiler unrolls over the shape of a tile.

A loop in Python emits it here for each shape that fits the registers. What is summed, layout and numerics are told in C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fusedrnn.kernels.llvm import FLOAT, INT32, INT64, operation
from fusedrnn.kernels.memory import constants, floats, row_pointers
from fusedrnn.kernels.simd import InstructionSet
from fusedrnn.kernels.weights import FLOAT32, Weights

__all__ = [
    "BLOCKS",
    "FACTOR",
    "FACTOR_FIELDS",
    "GATES",
    "LINE_FLOATS",
    "MAX_BLOCKS",
    "MAX_ROWS",
    "MAX_SUMS",
    "MAX_TILE_SUMS",
    "SUMS",
    "SUMS_FIELDS",
    "Factor",
    "Gates",
    "Shape",
    "Sums",
    "call_product",
    "emit_accumulate",
    "emit_pointers",
    "emit_prefetch",
    "emit_shapes",
    "fits",
    "one_row_blocks",
    "one_row_product_of",
    "own_function",
    "product_of",
    "tallest",
    "tile_shapes",
]

# ---- shapes --------------------------------------------------------------------------------------

MAX_ROWS, MAX_BLOCKS, MAX_SUMS, MAX_ROW_SUMS, MAX_TILE_SUMS, LINE_FLOATS = (
    constants()[f"FR_{name}"]
    for name in (
        "MAX_ROWS",
        "MAX_BLOCKS",
        "MAX_SUMS",
        "MAX_ROW_SUMS",
        "MAX_TILE_SUMS",
        "LINE_FLOATS",
    )
)
GATES = (1, 2, 3, 4)
BLOCKS = (1, 2, 4, 8)


def fits(rows: int, blocks: int, gates: int, registers: int) -> bool:
    """Whether a tile may have this shape: FR_FITS."""
    sums = rows * blocks * gates
    max_sums = MAX_ROW_SUMS if rows == 1 else MAX_SUMS
    return sums <= max_sums and sums + min(rows, blocks * gates) + 1 <= registers


def tallest(gates: int, registers: int) -> int:
    """The largest number of rows that a tile may have: FR_TALLEST."""
    heights = (MAX_ROWS, 6, 5, 4, 3, 2) if gates == 3 else (6, 5, 4, 3, 2)
    return next(rows for rows in heights if fits(rows, 1, gates, registers))


def one_row_blocks(gates: int, registers: int) -> int:
    """The largest number of unit blocks in a tile of one row."""
    return max(blocks for blocks in BLOCKS if fits(1, blocks, gates, registers))


class Shape(NamedTuple):
    """A tile: rows x unit blocks x gates."""

    rows: int
    blocks: int
    gates: int


def tile_shapes(isa: InstructionSet, gates: int) -> list[Shape]:
    """The shapes that fit the registers."""
    return [
        Shape(rows, blocks, gates)
        for rows in range(1, tallest(gates, isa.registers) + 1)
        for blocks in BLOCKS
        if fits(rows, blocks, gates, isa.registers)
    ]


# ---- the product ---------------------------------------------------------------------------------


class Factor(NamedTuple):
    """Rows times panels: v[row] points to ``depth`` values.

    A tile of several rows fetches one cache line of ``ahead`` for each k.
    """

    panel: Any
    v: Any
    depth: int
    ahead: Any
    ahead_step: int


class Sums(NamedTuple):
    """Where the sums of a tile come from or go to: [row][block][gate][lane]."""

    at: Any
    row_stride: int
    block_stride: int


def factor_type(weights: Weights) -> types.NamedTuple:
    """The Numba type of a factor whose panels are a pointer."""
    pointer = weights.pointer
    return types.NamedTuple((pointer, row_pointers, types.int64, pointer, types.int64), Factor)


def factor_fields(weights: Weights) -> ir.LiteralStructType:
    """The LLVM type of such a factor."""
    pointer = weights.element.as_pointer()
    return ir.LiteralStructType([pointer, FLOAT.as_pointer().as_pointer(), INT64, pointer, INT64])


FACTOR, FACTOR_FIELDS = factor_type(FLOAT32), factor_fields(FLOAT32)
SUMS = types.NamedTuple((floats, types.int64, types.int64), Sums)
SUMS_FIELDS = ir.LiteralStructType([FLOAT.as_pointer(), INT64, INT64])


def emit_prefetch(builder: ir.IRBuilder, pointer: ir.Value, locality: int) -> None:
    """Fetch the cache line of an address to be read: ``__builtin_prefetch(pointer, 0, locality)``."""
    function = ir.FunctionType(ir.VoidType(), [FLOAT.as_pointer(), INT32, INT32, INT32])
    prefetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
    to_read, data = INT32(0), INT32(1)
    pointer = builder.bitcast(pointer, FLOAT.as_pointer())
    builder.call(prefetch, [pointer, to_read, INT32(locality), data])


def emit_accumulate(
    builder: ir.IRBuilder,
    isa: InstructionSet,
    shape: Shape,
    sums: list[ir.Value],
    factor: Factor,
    v_step: ir.Value,
    weights: Weights = FLOAT32,
) -> list[ir.Value]:
    """The loop over k of one tile shape, with every sum in a register: a phi of the loop."""
    rows, blocks, gates = shape
    block_stride = builder.mul(factor.depth, INT64(gates * isa.lanes))
    panel = [
        builder.gep(factor.panel, [builder.mul(INT64(block), block_stride)])
        for block in range(blocks)
    ]
    v = [builder.load(builder.gep(factor.v, [INT64(row)])) for row in range(rows)]
    before = builder.block
    loop = builder.append_basic_block("k")
    after = builder.append_basic_block("k.end")
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(INT64)
    k.add_incoming(INT64(0), before)
    carried = [builder.phi(isa.vector) for _ in sums]
    for phi, sum_ in zip(carried, sums, strict=True):
        phi.add_incoming(sum_, before)
    sums = list(carried)
    offset = builder.mul(k, INT64(gates * isa.lanes))

    def value(row: int) -> ir.Value:
        return isa.set1(builder, builder.load(builder.gep(v[row], [builder.mul(k, v_step)])))

    def weight(block: int, gate: int) -> ir.Value:
        at = builder.add(offset, INT64(gate * isa.lanes))
        return weights.load(isa, builder, builder.gep(panel[block], [at]))

    def add_product(row: int, block: int, gate: int, value: ir.Value, weight: ir.Value) -> None:
        index = (row * blocks + block) * gates + gate
        sums[index] = isa.fma(builder, value, weight, sums[index])

    if rows > 1:
        emit_prefetch(builder, builder.gep(factor.ahead, [builder.mul(k, factor.ahead_step)]), 2)

    # The shorter side of the tile is held while the longer side passes by: beside 24 sums, 32
    # registers have no room to hold 6 values, and LLVM would spill sums for them.
    columns = [(block, gate) for block in range(blocks) for gate in range(gates)]
    if rows < len(columns):
        held = [value(row) for row in range(rows)]
        for block, gate in columns:
            passing = weight(block, gate)
            for row in range(rows):
                add_product(row, block, gate, held[row], passing)
    else:
        held = [weight(block, gate) for block, gate in columns]
        for row in range(rows):
            passing = value(row)
            for index, (block, gate) in enumerate(columns):
                add_product(row, block, gate, passing, held[index])

    following = builder.add(k, INT64(1))
    k.add_incoming(following, loop)
    for phi, sum_ in zip(carried, sums, strict=True):
        phi.add_incoming(sum_, loop)
    builder.cbranch(builder.icmp_signed("<", following, factor.depth), loop, after)
    builder.position_at_end(after)
    return sums


def emit_pointers(
    builder: ir.IRBuilder, isa: InstructionSet, shape: Shape, sums: Sums
) -> list[ir.Value]:
    """Where each sum of a tile is."""
    found = []
    for row in range(shape.rows):
        for block in range(shape.blocks):
            by_row = builder.mul(INT64(row), sums.row_stride)
            by_block = builder.mul(INT64(block), sums.block_stride)
            for gate in range(shape.gates):
                offset = builder.add(builder.add(by_row, by_block), INT64(gate * isa.lanes))
                found.append(builder.gep(sums.at, [offset]))
    return found


def emit_product_tile(
    builder: ir.IRBuilder,
    isa: InstructionSet,
    shape: Shape,
    start: Sums,
    first: Factor,
    second: Factor,
    to: Sums,
) -> None:
    """One tile shape: sums come from memory once, and go there once."""
    sums = [isa.load(builder, pointer) for pointer in emit_pointers(builder, isa, shape, start)]
    sums = emit_accumulate(builder, isa, shape, sums, first, INT64(1))
    after_first = builder.block
    with builder.if_then(builder.icmp_signed(">", second.depth, INT64(0))):
        after_second = emit_accumulate(builder, isa, shape, sums, second, INT64(1))
        end_of_second = builder.block
    chosen = []
    for sum_, more in zip(sums, after_second, strict=True):
        phi = builder.phi(isa.vector)
        phi.add_incoming(sum_, after_first)
        phi.add_incoming(more, end_of_second)
        chosen.append(phi)
    for pointer, sum_ in zip(emit_pointers(builder, isa, shape, to), chosen, strict=True):
        isa.store(builder, pointer, sum_)


def emit_widened_tile(
    builder: ir.IRBuilder,
    isa: InstructionSet,
    weights: Weights,
    shape: Shape,
    start: Sums,
    factor: Factor,
    to: Sums,
) -> None:
    """One tile shape with narrow weights: of one factor."""
    sums = [isa.load(builder, pointer) for pointer in emit_pointers(builder, isa, shape, start)]
    sums = emit_accumulate(builder, isa, shape, sums, factor, INT64(1), weights)
    for pointer, sum_ in zip(emit_pointers(builder, isa, shape, to), sums, strict=True):
        isa.store(builder, pointer, sum_)


def emit_shapes(
    builder: ir.IRBuilder,
    shapes: list[Shape],
    rows: ir.Value,
    blocks: ir.Value,
    emit: Callable[[Shape], None],
) -> None:
    """A switch over shapes of tiles."""
    unknown = builder.append_basic_block("unknown")
    end = builder.append_basic_block("product.end")
    key = builder.add(builder.mul(rows, INT64(MAX_BLOCKS)), builder.sub(blocks, INT64(1)))
    switch = builder.switch(key, unknown)
    for shape in shapes:
        case = builder.append_basic_block(f"{shape.rows}x{shape.blocks}")
        switch.add_case(INT64(shape.rows * MAX_BLOCKS + shape.blocks - 1), case)
        builder.position_at_end(case)
        emit(shape)
        builder.branch(end)
    builder.position_at_end(unknown)
    builder.unreachable()
    builder.position_at_end(end)


def emit_product(
    builder: ir.IRBuilder, isa: InstructionSet, shapes: list[Shape], values: Any
) -> None:
    """The product of a tile whose shape is one of several."""
    rows, blocks, *structs = values
    start, first, second, to = (
        made_of(*cgutils.unpack_tuple(builder, value))
        for made_of, value in zip((Sums, Factor, Factor, Sums), structs, strict=True)
    )

    def emit(shape: Shape) -> None:
        emit_product_tile(builder, isa, shape, start, first, second, to)

    emit_shapes(builder, shapes, rows, blocks, emit)


class OwnFunction(types.Type):
    """The address of a function of the kernel's module, by the name that it has in C."""

    def __init__(self, name: str, declared: ir.FunctionType) -> None:
        self.declared = declared
        super().__init__(f"{name} *")


@register_model(OwnFunction)
class OwnFunctionModel(models.PrimitiveModel):
    """A pointer."""

    def __init__(self, manager: Any, function: OwnFunction) -> None:
        super().__init__(manager, function, function.declared.as_pointer())


def own_function(
    builder: ir.IRBuilder,
    name: str,
    declared: ir.FunctionType,
    emit: Callable[[ir.IRBuilder, Any], None],
) -> ir.Function:
    """A function of the kernel's module that is called, not inlined; made once."""
    if name in builder.module.globals:
        return builder.module.globals[name]
    made = ir.Function(builder.module, declared, name)
    made.linkage = "linkonce_odr"
    made.attributes.add("noinline")
    made.attributes.add("nounwind")
    inside = ir.IRBuilder(made.append_basic_block())
    emit(inside, made.args)
    inside.ret_void()
    return made


#: ``fr_product_1`` to ``fr_product_4``: sizes of the tile; where its sums come from; two factors; where its sums go to.
PRODUCT = OwnFunction(
    "fr_product",
    ir.FunctionType(
        ir.VoidType(), [INT64, INT64, SUMS_FIELDS, FACTOR_FIELDS, FACTOR_FIELDS, SUMS_FIELDS]
    ),
)


@cache
def widened_product(weights: Weights) -> OwnFunction:
    """``fr_product_f16_1`` and so on: as PRODUCT, with one factor."""
    return OwnFunction(
        f"fr_product_{weights.name}",
        ir.FunctionType(
            ir.VoidType(), [INT64, INT64, SUMS_FIELDS, factor_fields(weights), SUMS_FIELDS]
        ),
    )


class OneRowProduct(types.Type):
    """The product of tiles of one row, copied to where it is called: a small step notices a call."""

    def __init__(self, isa: InstructionSet, gates: int) -> None:
        self.isa = isa
        self.shapes = [shape for shape in tile_shapes(isa, gates) if shape.rows == 1]
        super().__init__(f"fr_product_tile(1, ., {gates}) {isa.name}")


register_model(OneRowProduct)(models.OpaqueModel)


class Gates(NamedTuple):
    """How many gates a tile has, and the product of such tiles.

    A kernel names the products it needs and hands them down. Were they named where they are called,
    each function between would be compiled with a copy of them, to be thrown away when it is inlined.
    """

    number: int
    product: Any


def product_of(isa: InstructionSet, gates: int) -> Any:
    """What a kernel calls to have the products compiled into it, as a function of their own."""

    @operation(PRODUCT)
    def product(builder: ir.IRBuilder) -> ir.Value:
        def emit(inside: ir.IRBuilder, values: Any) -> None:
            emit_product(inside, isa, tile_shapes(isa, gates), values)

        return own_function(builder, f"fr_product_{gates}_{isa.name}", PRODUCT.declared, emit)

    return product


def one_row_product_of(isa: InstructionSet, gates: int) -> Any:
    """What a kernel calls that knows that it has one row."""

    @operation(OneRowProduct(isa, gates))
    def product(builder: ir.IRBuilder) -> ir.Value:
        return ir.Constant(ir.IntType(8).as_pointer(), None)

    return product


def widened_product_of(isa: InstructionSet, weights: Weights, gates: int) -> Any:
    """What a kernel calls to have the products with narrow weights compiled into it."""
    function = widened_product(weights)

    @operation(function)
    def product(builder: ir.IRBuilder) -> ir.Value:
        def emit(inside: ir.IRBuilder, values: Any) -> None:
            rows, blocks, *structs = values
            start, factor, to = (
                made_of(*cgutils.unpack_tuple(inside, value))
                for made_of, value in zip((Sums, Factor, Sums), structs, strict=True)
            )

            def emit_tile(shape: Shape) -> None:
                emit_widened_tile(inside, isa, weights, shape, start, factor, to)

            emit_shapes(inside, tile_shapes(isa, gates), rows, blocks, emit_tile)

        name = f"fr_product_{weights.name}_{gates}_{isa.name}"
        return own_function(builder, name, function.declared, emit)

    return product


@intrinsic
def call_product(
    _typing: Any,
    product: types.Type,
    rows: types.Type,
    blocks: types.Type,
    start: types.Type,
    first: types.Type,
    second: types.Type,
    to: types.Type,
) -> Any:
    """to = start + first + second, for a tile, by the product of a type above."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
        function, *arguments = values
        if isinstance(product, OneRowProduct):
            arguments[0] = INT64(1)
            emit_product(builder, product.isa, product.shapes, arguments)
        else:
            builder.call(function, arguments)
        return context.get_dummy_value()

    signature = types.void(product, types.int64, types.int64, SUMS, FACTOR, FACTOR, SUMS)
    return signature, generate


@cache
def widened_call(weights: Weights) -> Any:
    """What calls the product of a tile with narrow weights: to = start + factor."""
    arguments = types.int64, types.int64, SUMS, factor_type(weights), SUMS

    @operation(types.void, widened_product(weights), *arguments)
    def call(
        builder: ir.IRBuilder, product: ir.Value, rows: ir.Value, blocks: ir.Value,
        start: ir.Value, factor: ir.Value, to: ir.Value,
    ) -> None:  # fmt: skip
        builder.call(product, [rows, blocks, start, factor, to])

    return call
