"""The product of rows and panels, a tile of rows x unit blocks x gates at a time: ``csrc/cells/product.h`` in Numba.

::

    sum[row][block][gate] += sum over k of v[row][k] * panel[block][k][gate]          0 <= k < K

The symbols and their order are those of C, and so are layout, tiles and numerics, which are told there. What C's
compiler unrolls over the shape of a tile is emitted here for each shape by a loop in Python; the rest is Numba.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fusedrnn.kernels import activations
from fusedrnn.kernels.llvm import FLOAT, INT32, INT64, operation
from fusedrnn.kernels.memory import (
    constants,
    floats,
    local_floats,
    local_pointers,
    null,
    row_pointers,
)
from fusedrnn.kernels.policy import inlined
from fusedrnn.kernels.simd import InstructionSet, vocabulary

__all__ = ["FINISH", "INPUT", "MAX_BLOCKS", "MAX_ROWS", "STEP", "functions"]

# ---- tiles ---------------------------------------------------------------------------------------

MAX_ROWS, MAX_BLOCKS, MAX_SUMS, MAX_ROW_SUMS, LINE_FLOATS = (
    constants()[f"FR_{name}"]
    for name in ("MAX_ROWS", "MAX_BLOCKS", "MAX_SUMS", "MAX_ROW_SUMS", "LINE_FLOATS")
)
GATES = (1, 2, 3, 4)
BLOCKS = (1, 2, 4, 8)

INPUT, STEP, FINISH = (constants()[f"FR_{name}"] for name in ("INPUT", "STEP", "FINISH"))
TANH, RELU, IDENTITY, SIGMOID = (
    constants()[f"FR_{name}"] for name in ("TANH", "RELU", "IDENTITY", "SIGMOID")
)


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


class Tiling(NamedTuple):
    """How rows are cut into tiles of nearly equal height, and the largest number of unit blocks in a tile.

    The first ``higher`` tiles have one row more.
    """

    tiles: int
    rows: int
    higher: int
    blocks: int


class Range(NamedTuple):
    """Unit blocks first <= block < last."""

    first: int
    last: int


class Tile(NamedTuple):
    """A tile: which unit blocks and which rows, and the first unit block of the tiles that come after."""

    block: int
    blocks: int
    next: int
    number: int
    row: int
    rows: int


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


FACTOR = types.NamedTuple((floats, row_pointers, types.int64, floats, types.int64), Factor)
FACTOR_FIELDS = ir.LiteralStructType(
    [FLOAT.as_pointer(), FLOAT.as_pointer().as_pointer(), INT64, FLOAT.as_pointer(), INT64]
)
SUMS = types.NamedTuple((floats, types.int64, types.int64), Sums)
SUMS_FIELDS = ir.LiteralStructType([FLOAT.as_pointer(), INT64, INT64])


def emit_prefetch(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Fetch the cache line of an address into the second-level cache, to be read."""
    function = ir.FunctionType(ir.VoidType(), [FLOAT.as_pointer(), INT32, INT32, INT32])
    prefetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
    to_read, second_level, data = INT32(0), INT32(2), INT32(1)
    builder.call(prefetch, [pointer, to_read, second_level, data])


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

    if rows > 1:
        emit_prefetch(builder, builder.gep(factor.ahead, [builder.mul(k, factor.ahead_step)]))

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

    def pointers(sums: Sums) -> list[ir.Value]:
        found = []
        for row in range(shape.rows):
            for block in range(shape.blocks):
                by_row = builder.mul(INT64(row), sums.row_stride)
                by_block = builder.mul(INT64(block), sums.block_stride)
                for gate in range(shape.gates):
                    offset = builder.add(builder.add(by_row, by_block), INT64(gate * isa.lanes))
                    found.append(builder.gep(sums.at, [offset]))
        return found

    sums = [isa.load(builder, pointer) for pointer in pointers(start)]
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
    for pointer, sum_ in zip(pointers(to), chosen, strict=True):
        isa.store(builder, pointer, sum_)


def emit_shapes(
    builder: ir.IRBuilder, isa: InstructionSet, shapes: list[Shape], values: Any
) -> None:
    """A switch over shapes of tiles."""
    rows, blocks, *structs = values
    start, first, second, to = (
        made_of(*cgutils.unpack_tuple(builder, value))
        for made_of, value in zip((Sums, Factor, Factor, Sums), structs, strict=True)
    )
    unknown = builder.append_basic_block("unknown")
    end = builder.append_basic_block("product.end")
    key = builder.add(builder.mul(rows, INT64(MAX_BLOCKS)), builder.sub(blocks, INT64(1)))
    switch = builder.switch(key, unknown)
    for shape in shapes:
        case = builder.append_basic_block(f"{shape.rows}x{shape.blocks}")
        switch.add_case(INT64(shape.rows * MAX_BLOCKS + shape.blocks - 1), case)
        builder.position_at_end(case)
        emit_product_tile(builder, isa, shape, start, first, second, to)
        builder.branch(end)
    builder.position_at_end(unknown)
    builder.unreachable()
    builder.position_at_end(end)


class Product(types.Type):
    """``fr_product_1`` to ``fr_product_4``: the address of one."""

    def __init__(self) -> None:
        super().__init__("fr_product *")


class OneRowProduct(types.Type):
    """The product of tiles of one row, copied to where it is called: a small step notices a call."""

    def __init__(self, isa: InstructionSet, gates: int) -> None:
        self.isa = isa
        self.shapes = [shape for shape in tile_shapes(isa, gates) if shape.rows == 1]
        super().__init__(f"fr_product_tile(1, ., {gates}) {isa.name}")


@register_model(Product)
class ProductModel(models.PrimitiveModel):
    """Sizes of the tile; where its sums come from; two factors; where its sums go to."""

    declared = ir.FunctionType(
        ir.VoidType(), [INT64, INT64, SUMS_FIELDS, FACTOR_FIELDS, FACTOR_FIELDS, SUMS_FIELDS]
    )

    def __init__(self, manager: Any, function: Product) -> None:
        super().__init__(manager, function, self.declared.as_pointer())


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

    @operation(Product())
    def product(builder: ir.IRBuilder) -> ir.Value:
        name = f"fr_product_{gates}_{isa.name}"
        if name in builder.module.globals:
            return builder.module.globals[name]
        made = ir.Function(builder.module, ProductModel.declared, name)
        made.linkage = "linkonce_odr"
        made.attributes.add("noinline")
        made.attributes.add("nounwind")
        inside = ir.IRBuilder(made.append_basic_block())
        emit_shapes(inside, isa, tile_shapes(isa, gates), made.args)
        inside.ret_void()
        return made

    return product


def one_row_product_of(isa: InstructionSet, gates: int) -> Any:
    """What a kernel calls that knows that it has one row."""

    @operation(OneRowProduct(isa, gates))
    def product(builder: ir.IRBuilder) -> ir.Value:
        return ir.Constant(ir.IntType(8).as_pointer(), None)

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
            emit_shapes(builder, product.isa, product.shapes, arguments)
        else:
            builder.call(function, arguments)
        return context.get_dummy_value()

    signature = types.void(product, types.int64, types.int64, SUMS, FACTOR, FACTOR, SUMS)
    return signature, generate


# ---- what a cell needs ---------------------------------------------------------------------------


@cache
def functions(isa_name: str) -> ModuleType:
    """The rest of ``csrc/cells/product.h`` for one instruction set: ``fr.product`` is ``fr_product`` in C."""
    vf = vocabulary(isa_name)
    isa: InstructionSet = vf.ISA
    registers = isa.registers
    activation = activations.functions(isa_name)
    sigmoid, full_sigmoid, tanh = activation.sigmoid, activation.full_sigmoid, activation.tanh
    divided, whole = activation.divided, activation.whole
    product_1, product_2, product_3, product_4 = (product_of(isa, gates) for gates in GATES)
    one_1, one_2, one_3, one_4 = (one_row_product_of(isa, gates) for gates in GATES)
    it_fits = inlined(fits)
    max_rows = tuple(tallest(gates, registers) for gates in GATES)
    max_row_blocks = tuple(one_row_blocks(gates, registers) for gates in GATES)
    local_sums = local_floats(MAX_SUMS * isa.lanes, alignment=64)
    local_rows = local_pointers(MAX_ROWS)

    @inlined
    def tile_rows(count, gates):
        highest = max_rows[gates - 1]
        number, rows, higher, blocks = 1, count, 0, 1
        if count > highest:  # a small step would notice the divisions
            number = (count + highest - 1) // highest
            rows = count // number
            higher = count % number
        while blocks < MAX_BLOCKS and it_fits(rows + (higher > 0), blocks * 2, gates, registers):
            blocks *= 2
        return Tiling(number, rows, higher, blocks)

    @inlined
    def tile_one(gates):
        """The tiling of one row, the usual batch of a stream: constants."""
        return Tiling(1, 1, 0, max_row_blocks[gates - 1])

    @inlined
    def share(s, blocks):
        """The unit blocks of this call's share, of ``blocks`` in all."""
        if s.shares == 1:
            return Range(0, blocks)
        return Range(blocks * s.share // s.shares, blocks * (s.share + 1) // s.shares)

    @inlined
    def downward(s, t):
        """Whether step t sweeps its unit blocks downward: every other step does."""
        return ((t + s.downward) & 1) != 0

    @inlined
    def tiles(tiling, left, downward):
        """Each tile of the blocks in a range: blocks are the outer loop."""
        first, last = left
        while first < last:
            count = last - first
            blocks = tiling.blocks
            while blocks > count:
                blocks //= 2
            if downward:
                last -= blocks
                block = last
                following = last - min(blocks, count - blocks)
            else:
                block = first
                first += blocks
                following = first if blocks < count else block
            row = 0
            for number in range(tiling.tiles):
                rows = tiling.rows + (number < tiling.higher)
                yield Tile(block, blocks, following, number, row, rows)
                row += rows

    @inlined
    def tile_factor(tile, panels, gates, depth, v):
        """The factor of a tile. ``panels`` is [N][depth][gates][L]."""
        panel_floats = depth * gates * vf.LANES
        panel = panels + tile.block * panel_floats
        if tile.next != tile.block and tile.number * LINE_FLOATS < tile.blocks * gates * vf.LANES:
            ahead = panels + tile.next * panel_floats + tile.number * depth * LINE_FLOATS
            return Factor(panel, v, depth, ahead, LINE_FLOATS)
        return Factor(panel, v, depth, panel, 0)

    @inlined
    def product(gates, tile, start, first, second, to):
        """to = start + first + second, for a tile; ``second`` may have depth 0."""
        call_product(gates.product, tile.rows, tile.blocks, start, first, second, to)

    @inlined
    def no_factor(v):
        """The second factor of a product that has one: of depth 0."""
        return Factor(null(), v, 0, null(), 0)

    @inlined
    def sums_in(memory, blocks, gates):
        """The sums of a tile in memory of its own, between its product and its cell."""
        return Sums(memory, blocks * gates * vf.LANES, gates * vf.LANES)

    # ---- rows and steps

    @inlined
    def active(s, t):
        return s.active[t] if s.active else s.batch

    @inlined
    def h_before(s, t, row):
        """Where row's h is before step t."""
        return s.y[row] + (t - 1) * s.y_step if t > 0 else s.h[row]

    @inlined
    def input_sums(w, tile, z):
        """The sums of a tile in the input product z, [row][block][gate][lane], of a step or of a chunk."""
        z_row = w.blocks * w.block_floats
        return Sums(z + tile.row * z_row + tile.block * w.block_floats, z_row, w.block_floats)

    @inlined
    def biases(w, tile):
        """The biases of a tile, the same for each row."""
        return Sums(w.bias + tile.block * w.block_floats, 0, w.block_floats)

    @inlined
    def input_phase(gates, w, s, first, z):
        """FR_INPUT: z = bias + W x for each running row of each step of the chunk, in order."""
        count = 0
        for t in range(first, min(first + s.chunk, s.steps)):
            for row in range(active(s, t)):
                s.scratch_rows[count] = s.x[row] + t * s.x_step
                count += 1
        if count == 0:
            return
        tiling = tile_rows(count, gates.number)
        for tile in tiles(tiling, share(s, w.blocks), False):
            rows = s.scratch_rows + tile.row
            W_x = tile_factor(tile, w.x_panels, gates.number, w.inputs, rows)
            product(gates, tile, biases(w, tile), W_x, no_factor(rows), input_sums(w, tile, z))

    # ---- what a cell's options choose

    @inlined
    def limited(v, limit):
        return vf.maximum(vf.set1(-limit), vf.minimum(vf.set1(limit), v))

    @inlined
    def state_function(activation, v):
        if activation == RELU:
            return whole(vf.maximum(vf.set1(0.0), v))
        return whole(v) if activation == IDENTITY else tanh(v)

    @inlined
    def unbounded(w):
        """Whether what a gate is multiplied with may be any number: a gate that is shut must then be 0."""
        return w.state_activation != TANH or w.output_activation != TANH

    @inlined
    def gate(w, defaults, sum_):
        """The activation of a gate. ``defaults`` is a constant where this is called."""
        if defaults:
            return sigmoid(sum_)
        sum_ = limited(sum_, w.clip)
        if w.gate_activation == SIGMOID:
            return whole(divided(full_sigmoid(sum_))) if unbounded(w) else sigmoid(sum_)
        line = vf.fma(vf.set1(w.alpha), sum_, vf.set1(w.beta))
        return whole(vf.maximum(vf.set1(0.0), vf.minimum(vf.set1(1.0), line)))

    @inlined
    def candidate(w, defaults, sum_):
        """The activation of the candidate."""
        if defaults:
            return tanh(sum_)
        return state_function(w.state_activation, limited(sum_, w.clip))

    module = ModuleType(f"{__name__}.{isa_name}")
    module.__dict__.update(
        divided=divided,
        whole=whole,
        tanh=tanh,
        local_sums=local_sums,
        local_rows=local_rows,
        tile_rows=tile_rows,
        tile_one=tile_one,
        share=share,
        downward=downward,
        tiles=tiles,
        tile_factor=tile_factor,
        product=product,
        product_1=product_1,
        product_2=product_2,
        product_3=product_3,
        product_4=product_4,
        one_1=one_1,
        one_2=one_2,
        one_3=one_3,
        one_4=one_4,
        no_factor=no_factor,
        sums_in=sums_in,
        active=active,
        h_before=h_before,
        input_sums=input_sums,
        biases=biases,
        input_phase=input_phase,
        limited=limited,
        state_function=state_function,
        gate=gate,
        candidate=candidate,
    )
    return module
