"""The panel product: sums of a register tile of ``rows`` rows x ``blocks`` unit blocks x G gates.

::

    sum[row][block][gate] += sum over k of v[row][k] * panel[block][k][gate]

``csrc/cells/panel.h`` again, where the layout, the tile shapes and the order of the sum are told.

In C a whole tile function is compiled for every shape, so that sums are registers throughout. Here
only the product is: one intrinsic with a loop per shape, which takes the sums from memory, holds
them in registers while k runs, and leaves them in memory. What a cell makes of them is compiled
once, with ``rows`` and ``blocks`` as plain numbers: a few cycles for a tile in the first-level
cache instead of seconds of compilation for every shape.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

from llvmlite import ir
from numba import types

from fusedrnn.kernels.llvm import INT64, operation
from fusedrnn.kernels.memory import floats, local_floats, local_pointers, row_pointers
from fusedrnn.kernels.policy import inlined
from fusedrnn.kernels.simd import InstructionSet, vocabulary

__all__ = ["functions"]

MAX_BLOCKS = 2
MAX_ROWS = 6


class Shape(NamedTuple):
    """A tile: rows x unit blocks x gates."""

    rows: int
    blocks: int
    gates: int


def tile_shapes(isa: InstructionSet, gates: int) -> list[Shape]:
    """The shapes whose sums fit the registers."""
    return [
        Shape(rows, blocks, gates)
        for rows in range(1, MAX_ROWS + 1)
        for blocks in range(1, MAX_BLOCKS + 1)
        if rows * blocks * gates <= isa.accumulators
    ]


def sums_at(
    builder: ir.IRBuilder, isa: InstructionSet, shape: Shape, first: ir.Value, row_stride: ir.Value
) -> list[ir.Value]:
    """Where the sums of a tile are in memory: [row][block][gate], rows a stride apart."""
    return [
        builder.gep(first, [builder.add(builder.mul(INT64(row), row_stride), INT64(k * isa.lanes))])
        for row in range(shape.rows)
        for k in range(shape.blocks * shape.gates)
    ]


def emit_product(
    builder: ir.IRBuilder,
    isa: InstructionSet,
    shape: Shape,
    to: list[ir.Value],
    start: list[ir.Value],
    panel: list[ir.Value],
    v: list[ir.Value],
    depth: ir.Value,
) -> None:
    """The loop over k of one tile shape, with every sum in a register: a phi of the loop."""
    rows, blocks, gates = shape
    before = builder.block
    loop = builder.append_basic_block("k")
    after = builder.append_basic_block("k.end")
    started = [isa.load(builder, pointer) for pointer in start]
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(INT64)
    k.add_incoming(INT64(0), before)
    carried = [builder.phi(isa.vector) for _ in started]
    for phi, sum_ in zip(carried, started, strict=True):
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
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

    builder.position_at_end(after)
    for pointer, sum_ in zip(to, sums, strict=True):
        isa.store(builder, pointer, sum_)


@cache
def functions(isa_name: str, gates: int) -> ModuleType:
    """What a cell of so many gates needs, for one instruction set.

    Returns
    -------
    module
        ``panel_product``, ``tiles``, ``project`` and ``keep_state``; ``local_sums`` and
        ``local_rows`` give room for the sums and the row pointers of a tile.
    """
    vf = vocabulary(isa_name)
    isa: InstructionSet = vf.ISA
    shapes = tile_shapes(isa, gates)
    max_rows = max(shape.rows for shape in shapes)
    max_rows_of_two = max((shape.rows for shape in shapes if shape.blocks == MAX_BLOCKS), default=0)
    local_sums = local_floats(isa.accumulators * isa.lanes, alignment=64)
    local_rows = local_pointers(max_rows)

    size = types.int64

    # Sums are read at `start` and left at `to`. v[row] points to the K >= 1 values of a row: rows
    # may lie anywhere.
    @operation(types.void, size, size, floats, size, floats, size, floats, size, row_pointers, size)
    def panel_product(
        builder: ir.IRBuilder,
        rows: ir.Value,
        blocks: ir.Value,
        to: ir.Value,
        to_stride: ir.Value,
        start: ir.Value,
        start_stride: ir.Value,
        panel: ir.Value,
        block_stride: ir.Value,
        v: ir.Value,
        depth: ir.Value,
    ) -> None:
        unknown = builder.append_basic_block("product.unknown")
        end = builder.append_basic_block("product.end")
        key = builder.add(builder.mul(rows, INT64(MAX_BLOCKS)), blocks)
        switch = builder.switch(key, unknown)
        for shape in shapes:
            case = builder.append_basic_block(f"product.{shape.rows}x{shape.blocks}")
            switch.add_case(INT64(shape.rows * MAX_BLOCKS + shape.blocks), case)
            builder.position_at_end(case)
            emit_product(
                builder,
                isa,
                shape,
                sums_at(builder, isa, shape, to, to_stride),
                sums_at(builder, isa, shape, start, start_stride),
                [
                    builder.gep(panel, [builder.mul(INT64(block), block_stride)])
                    for block in range(shape.blocks)
                ],
                [builder.load(builder.gep(v, [INT64(row)])) for row in range(shape.rows)],
                depth,
            )
            builder.branch(end)
        builder.position_at_end(unknown)
        builder.unreachable()
        builder.position_at_end(end)

    @inlined
    def tiles(count, all_blocks):
        """(block, blocks, row, rows) of each tile: tiles of nearly equal height."""
        number, least, higher = 1, count, 0
        if count > max_rows:  # a small step would notice the divisions
            number = (count + max_rows - 1) // max_rows
            least = count // number
            higher = count % number
        at_once = MAX_BLOCKS if least + (higher > 0) <= max_rows_of_two else 1
        block = 0
        while block < all_blocks:
            blocks = 1 if all_blocks - block < at_once else at_once
            row = 0
            for tile in range(number):
                rows = least + (tile < higher)
                yield block, blocks, row, rows
                row += rows
            block += blocks

    @inlined
    def project(w, s, first, steps):
        """The x-projection of ``steps`` steps from ``first`` on, to the scratch."""
        panel_floats = w.inputs * w.block_floats
        z_row = w.blocks * w.block_floats
        x = local_rows()
        for block, blocks, row, rows in tiles(steps * s.batch, w.blocks):
            for k in range(rows):
                step, sequence = (row + k) // s.batch, (row + k) % s.batch
                x[k] = s.x + (first + step) * s.x_step + sequence * s.x_row
            z = s.scratch + row * z_row + block * w.block_floats
            bias = w.bias + block * w.block_floats
            panel = w.x_panels + block * panel_floats
            panel_product(rows, blocks, z, z_row, bias, 0, panel, panel_floats, x, w.inputs)

    @inlined
    def keep_state(w, s):
        """The state after the last step, from the last output."""
        for row in range(s.batch):
            h = s.h + row * w.hidden
            y = s.y + (s.steps - 1) * s.y_step + row * s.y_row
            for unit in range(0, w.hidden, vf.LANES):
                vf.store_n(h + unit, vf.load_n(y + unit, w.hidden - unit), w.hidden - unit)

    module = ModuleType(f"{__name__}.{isa_name}.{gates}")
    module.__dict__.update(
        panel_product=panel_product,
        tiles=tiles,
        project=project,
        keep_state=keep_state,
        local_sums=local_sums,
        local_rows=local_rows,
    )
    return module
