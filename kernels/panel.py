"""The panel product: sums of a register tile of ``rows`` rows x ``blocks`` unit blocks x G gates.

::

    sum[row][block][gate] += sum over k of v[row][k] * panel[block][k][gate]

``csrc/cells/panel.h`` again, in its names and its order; the layout, the tile shapes and the order of
the sum are told there. What C's compiler unrolls over the shape of a tile is emitted here for every
shape by a loop in Python; the rest is Numba.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from fusedrnn.kernels import activations
from fusedrnn.kernels.llvm import FLOAT, INT64, operation
from fusedrnn.kernels.memory import (
    constants,
    copy,
    floats,
    local_floats,
    local_pointers,
    null,
    row_pointers,
)
from fusedrnn.kernels.policy import inlined
from fusedrnn.kernels.simd import InstructionSet, vocabulary

__all__ = ["MOST_ROWS", "functions"]

# ---- tiles ---------------------------------------------------------------------------------------

MOST_ROWS = 6
MOST_BLOCKS = 8
MOST_SUMS = 24
GATES = (1, 2, 3, 4)

RELU, IDENTITY, SIGMOID = (constants()[f"FR_{name}"] for name in ("RELU", "IDENTITY", "SIGMOID"))


def fits(rows: int, blocks: int, gates: int, registers: int) -> bool:
    """Whether a tile may have this shape: FR_FITS."""
    sums = rows * blocks * gates
    return (blocks == 1 or sums <= 16) and rows * (blocks * gates + 1) + 1 <= registers


class Shape(NamedTuple):
    """A tile: rows x unit blocks x gates."""

    rows: int
    blocks: int
    gates: int


def tile_shapes(isa: InstructionSet, gates: int) -> list[Shape]:
    """The shapes that fit the registers."""
    return [
        Shape(rows, blocks, gates)
        for rows in range(1, MOST_ROWS + 1)
        for blocks in (1, 2, 4, MOST_BLOCKS)
        if fits(rows, blocks, gates, isa.registers)
    ]


class Tiling(NamedTuple):
    """Rows cut into tiles of nearly equal height, and the most unit blocks taken at once.

    The first ``higher`` tiles have one row more.
    """

    tiles: int
    rows: int
    higher: int
    blocks: int


# ---- the product ---------------------------------------------------------------------------------


class Factor(NamedTuple):
    """Rows times panels: v[row] points to ``depth`` values, wherever they lie."""

    panel: Any
    v: Any
    depth: int


class Sums(NamedTuple):
    """Where sums come from or go to: [row][block][gate][lane]."""

    at: Any
    row_stride: int
    block_stride: int


FACTOR = types.NamedTuple((floats, row_pointers, types.int64), Factor)
FACTOR_FIELDS = ir.LiteralStructType([FLOAT.as_pointer(), FLOAT.as_pointer().as_pointer(), INT64])
SUMS = types.NamedTuple((floats, types.int64, types.int64), Sums)
SUMS_FIELDS = ir.LiteralStructType([FLOAT.as_pointer(), INT64, INT64])


def emit_accumulate(
    builder: ir.IRBuilder, isa: InstructionSet, shape: Shape, sums: list[ir.Value], factor: Factor
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
        return isa.set1(builder, builder.load(builder.gep(v[row], [k])))

    def weight(block: int, gate: int) -> ir.Value:
        at = builder.add(offset, INT64(gate * isa.lanes))
        return isa.load(builder, builder.gep(panel[block], [at]))

    def add_product(row: int, block: int, gate: int, value: ir.Value, weight: ir.Value) -> None:
        index = (row * blocks + block) * gates + gate
        sums[index] = isa.fma(builder, value, weight, sums[index])

    # The shorter side of the tile is held while the longer one passes by: beside 24 sums, 32
    # registers have no room to hold 6 values, and LLVM would spill sums for them.
    places = [(block, gate) for block in range(blocks) for gate in range(gates)]
    if rows < len(places):
        held = [value(row) for row in range(rows)]
        for block, gate in places:
            passing = weight(block, gate)
            for row in range(rows):
                add_product(row, block, gate, held[row], passing)
    else:
        held = [weight(block, gate) for block, gate in places]
        for row in range(rows):
            passing = value(row)
            for index, (block, gate) in enumerate(places):
                add_product(row, block, gate, passing, held[index])

    following = builder.add(k, INT64(1))
    k.add_incoming(following, loop)
    for phi, sum_ in zip(carried, sums, strict=True):
        phi.add_incoming(sum_, loop)
    builder.cbranch(builder.icmp_signed("<", following, factor.depth), loop, after)
    builder.position_at_end(after)
    return sums


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

    def places(sums: Sums) -> list[ir.Value]:
        at = []
        for row in range(shape.rows):
            for block in range(shape.blocks):
                by_row = builder.mul(INT64(row), sums.row_stride)
                by_block = builder.mul(INT64(block), sums.block_stride)
                for gate in range(shape.gates):
                    offset = builder.add(builder.add(by_row, by_block), INT64(gate * isa.lanes))
                    at.append(builder.gep(sums.at, [offset]))
        return at

    sums = [isa.load(builder, pointer) for pointer in places(start)]
    sums = emit_accumulate(builder, isa, shape, sums, first)
    after_first = builder.block
    with builder.if_then(builder.icmp_signed(">", second.depth, INT64(0))):
        after_second = emit_accumulate(builder, isa, shape, sums, second)
        end_of_second = builder.block
    chosen = []
    for sum_, more in zip(sums, after_second, strict=True):
        phi = builder.phi(isa.vector)
        phi.add_incoming(sum_, after_first)
        phi.add_incoming(more, end_of_second)
        chosen.append(phi)
    for pointer, sum_ in zip(places(to), chosen, strict=True):
        isa.store(builder, pointer, sum_)


def emit_product(builder: ir.IRBuilder, isa: InstructionSet, gates: int, values: Any) -> None:
    """A switch over all shapes of a tile of so many gates."""

    def fields(value: ir.Value) -> list[ir.Value]:
        return [builder.extract_value(value, index) for index in range(3)]

    rows, blocks, *places = values
    start, first, second, to = map(fields, places)
    unknown = builder.append_basic_block("unknown")
    key = builder.add(builder.mul(rows, INT64(MOST_BLOCKS)), builder.sub(blocks, INT64(1)))
    switch = builder.switch(key, unknown)
    for shape in tile_shapes(isa, gates):
        case = builder.append_basic_block(f"{shape.rows}x{shape.blocks}")
        switch.add_case(INT64(shape.rows * MOST_BLOCKS + shape.blocks - 1), case)
        builder.position_at_end(case)
        places = Sums(*start), Factor(*first), Factor(*second), Sums(*to)
        emit_product_tile(builder, isa, shape, *places)
        builder.ret_void()
    builder.position_at_end(unknown)
    builder.unreachable()


class Function(types.Type):
    """``fr_product_1`` to ``fr_product_4``: the address of one."""

    def __init__(self) -> None:
        super().__init__("fr_product *")


@register_model(Function)
class FunctionModel(models.PrimitiveModel):
    """Sizes of the tile; where its sums come from; two factors; where its sums go to."""

    declared = ir.FunctionType(
        ir.VoidType(), [INT64, INT64, SUMS_FIELDS, FACTOR_FIELDS, FACTOR_FIELDS, SUMS_FIELDS]
    )

    def __init__(self, manager: Any, function: Function) -> None:
        super().__init__(manager, function, self.declared.as_pointer())


class Gates(NamedTuple):
    """How many gates a tile has, and the product of such tiles.

    A kernel names the products it needs and hands them down. Were they named where they are called,
    each function between would be compiled with a copy of them, to be thrown away when it is inlined.
    """

    number: int
    product: Any


def function_of(isa: InstructionSet, gates: int) -> Any:
    """What a kernel calls to have the products compiled into it, as a function of their own."""

    @operation(Function())
    def function(builder: ir.IRBuilder) -> ir.Value:
        name = f"fr_product_{gates}_{isa.name}"
        if name in builder.module.globals:
            return builder.module.globals[name]
        made = ir.Function(builder.module, FunctionModel.declared, name)
        made.linkage = "linkonce_odr"
        made.attributes.add("noinline")
        made.attributes.add("nounwind")
        emit_product(ir.IRBuilder(made.append_basic_block()), isa, gates, made.args)
        return made

    return function


@operation(types.void, Function(), types.int64, types.int64, SUMS, FACTOR, FACTOR, SUMS)
def call_product(
    builder: ir.IRBuilder,
    function: ir.Value,
    rows: ir.Value,
    blocks: ir.Value,
    start: ir.Value,
    first: ir.Value,
    second: ir.Value,
    to: ir.Value,
) -> None:
    builder.call(function, [rows, blocks, start, first, second, to])


# ---- what a cell needs ---------------------------------------------------------------------------


@cache
def functions(isa_name: str) -> ModuleType:
    """What every cell needs, for one instruction set: the rest of ``csrc/cells/panel.h``."""
    vf = vocabulary(isa_name)
    isa: InstructionSet = vf.ISA
    registers = isa.registers
    activation = activations.functions(isa_name)
    sigmoid, tanh = activation.sigmoid, activation.tanh
    product_1, product_2, product_3, product_4 = (function_of(isa, gates) for gates in GATES)
    it_fits = inlined(fits)
    local_sums = local_floats(MOST_SUMS * isa.lanes, alignment=64)
    local_rows = local_pointers(MOST_ROWS)

    @inlined
    def tile_rows(count, gates):
        most = min((registers - 1) // (gates + 1), MOST_ROWS)
        number, rows, higher, blocks = 1, count, 0, 1
        if count > most:  # a small step would notice the divisions
            number = (count + most - 1) // most
            rows = count // number
            higher = count % number
        highest = rows + (higher > 0)
        while blocks < MOST_BLOCKS and it_fits(highest, blocks * 2, gates, registers):
            blocks *= 2
        return Tiling(number, rows, higher, blocks)

    @inlined
    def some_blocks(most, left):
        while most > left:
            most //= 2
        return most

    @inlined
    def tiles(tiling, all_blocks):
        """(block, blocks, row, rows) of each tile: blocks are the outer loop."""
        block = 0
        while block < all_blocks:
            blocks = some_blocks(tiling.blocks, all_blocks - block)
            row = 0
            for tile in range(tiling.tiles):
                rows = tiling.rows + (tile < tiling.higher)
                yield block, blocks, row, rows
                row += rows
            block += blocks

    @inlined
    def product(gates, rows, blocks, start, first, second, to):
        """to = start + first + second, for a tile; ``second`` may have depth 0."""
        call_product(gates.product, rows, blocks, start, first, second, to)

    @inlined
    def nothing_more(v):
        """A product over h alone."""
        return Factor(null(), v, 0)

    @inlined
    def tile_sums(tile, blocks, gates):
        """The sums of a tile, between its product and its cell."""
        return Sums(tile, blocks * gates * vf.LANES, gates * vf.LANES)

    # ---- rows and steps

    @inlined
    def active(s, t):
        return s.active[t] if s.active else s.batch

    @inlined
    def h_before(s, t, row):
        """Where row's h is before step t."""
        return s.y[row] + (t - 1) * s.y_step if t > 0 else s.h[row]

    @inlined
    def project(gates, w, s, first, steps):
        """The x-projection of ``steps`` steps from ``first`` on, to the scratch."""
        z_row = w.blocks * w.block_floats
        count = 0
        for t in range(first, first + steps):
            for row in range(active(s, t)):
                s.scratch_rows[count] = s.x[row] + t * s.x_step
                count += 1
        if count == 0:
            return
        tiling = tile_rows(count, gates.number)
        for block, blocks, row, rows in tiles(tiling, w.blocks):
            bias = Sums(w.bias + block * w.block_floats, 0, w.block_floats)
            panel = w.x_panels + block * w.inputs * w.block_floats
            z = Sums(s.scratch + row * z_row + block * w.block_floats, z_row, w.block_floats)
            x = Factor(panel, s.scratch_rows + row, w.inputs)
            product(gates, rows, blocks, bias, x, nothing_more(x.v), z)

    @inlined
    def keep_state(w, s):
        """The state after each row's own last step, from its last output."""
        ended = 0
        for t in range(s.steps - 1, -1, -1):
            while ended < active(s, t):
                copy(s.h[ended], s.y[ended] + t * s.y_step, w.outputs)
                ended += 1

    # ---- what a cell's options choose

    @inlined
    def limited(v, limit):
        return vf.maximum(vf.set1(-limit), vf.minimum(vf.set1(limit), v))

    @inlined
    def state_function(activation, v):
        if activation == RELU:
            return vf.maximum(vf.set1(0.0), v)
        return v if activation == IDENTITY else tanh(v)

    @inlined
    def gate(w, plain, sum_):
        """A gate's sum through its activation. ``plain`` is a constant where this is called."""
        if plain:
            return sigmoid(sum_)
        sum_ = limited(sum_, w.clip)
        if w.gate_activation == SIGMOID:
            return sigmoid(sum_)
        line = vf.fma(vf.set1(w.alpha), sum_, vf.set1(w.beta))
        return vf.maximum(vf.set1(0.0), vf.minimum(vf.set1(1.0), line))

    @inlined
    def written(w, plain, sum_):
        """The sum of what is written through its activation."""
        if plain:
            return tanh(sum_)
        return state_function(w.state_activation, limited(sum_, w.clip))

    module = ModuleType(f"{__name__}.{isa_name}")
    module.__dict__.update(
        local_sums=local_sums,
        local_rows=local_rows,
        tile_rows=tile_rows,
        tiles=tiles,
        product=product,
        product_1=product_1,
        product_2=product_2,
        product_3=product_3,
        product_4=product_4,
        nothing_more=nothing_more,
        tile_sums=tile_sums,
        active=active,
        h_before=h_before,
        project=project,
        keep_state=keep_state,
        limited=limited,
        state_function=state_function,
        gate=gate,
        written=written,
    )
    return module
