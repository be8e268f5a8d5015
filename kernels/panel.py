"""The panel product: sums of a register tile of ``rows`` rows x ``blocks`` unit blocks x G gates.

::

    sum[row][block][gate] += sum over k of v[row][k] * panel[block][k][gate]

The same as ``csrc/cells/panel.h``, where the layout and the tile shapes are told. k ascends and is never
split: a sum has the same bits whatever the tile.

In C a tile function is compiled once per shape, so that sums are registers throughout. Here only the
product is: it is an intrinsic that holds one loop per shape, moves the sums from the stack to registers,
and back when k is at its end. What comes before and after it (one load, one cell per sum) is then
compiled once, with ``rows`` and ``blocks`` as plain numbers.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fusedrnn.kernels.memory import INT64, floats, local_floats, local_pointers
from fusedrnn.kernels.policy import inlined
from fusedrnn.kernels.simd import InstructionSet, vocabulary

__all__ = ["functions"]

MAX_BLOCKS = 2
MAX_ROWS = 6


def max_rows(isa: InstructionSet, gates: int) -> int:
    """Rows of the tallest tile."""
    return min(isa.accumulators // gates, MAX_ROWS)


def fitting_blocks(isa: InstructionSet, gates: int, rows: int) -> int:
    """Unit blocks that a tile of so many rows takes at once."""
    return MAX_BLOCKS if rows * gates * MAX_BLOCKS <= isa.accumulators else 1


def emit_product(
    builder: ir.IRBuilder, isa: InstructionSet, shape: tuple[int, int, int], *operands: ir.Value
) -> None:
    """The loop over k of one tile shape (rows, blocks, gates), with every sum in a register."""
    rows, blocks, gates = shape
    to, to_stride, start, start_stride, panel, block_stride, v, depth = operands
    before = builder.block
    loop = builder.append_basic_block(f"product.{rows}x{blocks}")
    after = builder.append_basic_block(f"product.{rows}x{blocks}.end")

    def sums_at(pointer: ir.Value, row_stride: ir.Value) -> list[ir.Value]:
        return [
            builder.gep(pointer, [builder.add(builder.mul(INT64(row), row_stride), INT64(lane))])
            for row in range(rows)
            for lane in range(0, blocks * gates * isa.lanes, isa.lanes)
        ]

    starts = [isa.load(builder, pointer) for pointer in sums_at(start, start_stride)]
    v = [builder.load(builder.gep(v, [INT64(row)])) for row in range(rows)]
    panels = [
        builder.gep(panel, [builder.mul(INT64(block), block_stride)]) for block in range(blocks)
    ]
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(INT64)
    k.add_incoming(INT64(0), before)
    totals = [builder.phi(isa.vector) for _ in starts]
    for total, start in zip(totals, starts, strict=True):
        total.add_incoming(start, before)
    sums = list(totals)
    offset = builder.mul(k, INT64(gates * isa.lanes))

    def value(row: int) -> ir.Value:
        return isa.set1(builder, builder.load(builder.gep(v[row], [k])))

    def weight(block: int, gate: int) -> ir.Value:
        at = builder.add(offset, INT64(gate * isa.lanes))
        return isa.load(builder, builder.gep(panels[block], [at]))

    def add_product(row: int, block: int, gate: int, value: ir.Value, weight: ir.Value) -> None:
        index = (row * blocks + block) * gates + gate
        sums[index] = isa.fma(builder, value, weight, sums[index])

    # The shorter side of the tile is held in registers and the other one passes by: in 32 registers,
    # 24 sums leave room for no more.
    every_weight = [(block, gate) for block in range(blocks) for gate in range(gates)]
    if rows < len(every_weight):
        values = [value(row) for row in range(rows)]
        for block, gate in every_weight:
            passing = weight(block, gate)
            for row in range(rows):
                add_product(row, block, gate, values[row], passing)
    else:
        weights = [weight(block, gate) for block, gate in every_weight]
        for row in range(rows):
            passing = value(row)
            for (block, gate), held in zip(every_weight, weights, strict=True):
                add_product(row, block, gate, passing, held)
    following = builder.add(k, INT64(1))
    k.add_incoming(following, loop)
    for total, sum_ in zip(totals, sums, strict=True):
        total.add_incoming(sum_, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

    builder.position_at_end(after)
    for pointer, sum_ in zip(sums_at(to, to_stride), sums, strict=True):
        isa.store(builder, pointer, sum_)


@lru_cache(maxsize=None)
def functions(isa_name: str, gates: int) -> ModuleType:
    """The functions of a panel for one instruction set and number of gates."""
    vf = vocabulary(isa_name)
    isa: InstructionSet = vf.ISA
    tallest = max_rows(isa, gates)
    two_blocks_up_to = max(
        rows for rows in range(1, tallest + 1) if fitting_blocks(isa, gates, rows) == MAX_BLOCKS
    )
    local_sums = local_floats(isa.accumulators * isa.lanes, alignment=64)
    local_rows = local_pointers(tallest)

    @intrinsic
    def panel_product(
        _typing: Any,
        rows: Any,
        blocks: Any,
        to: Any,
        to_stride: Any,
        start: Any,
        start_stride: Any,
        panel: Any,
        block_stride: Any,
        v: Any,
        depth: Any,
    ) -> Any:
        def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
            rows, blocks, *operands = values
            end = builder.append_basic_block("product.end")
            impossible = builder.append_basic_block("product.none")
            index = builder.add(builder.mul(rows, INT64(MAX_BLOCKS)), blocks)
            switch = builder.switch(index, impossible)
            for shape_rows in range(1, tallest + 1):
                for shape_blocks in range(1, fitting_blocks(isa, gates, shape_rows) + 1):
                    case = builder.append_basic_block(f"product.{shape_rows}x{shape_blocks}.start")
                    switch.add_case(INT64(shape_rows * MAX_BLOCKS + shape_blocks), case)
                    builder.position_at_end(case)
                    shape = shape_rows, shape_blocks, gates
                    emit_product(builder, isa, shape, *operands)
                    builder.branch(end)
            builder.position_at_end(impossible)
            builder.unreachable()
            builder.position_at_end(end)
            return _context.get_dummy_value()

        sums = floats, types.int64
        panels = floats, types.int64
        return types.void(types.int64, types.int64, *sums, *sums, *panels, v, types.int64), generate

    @inlined
    def tiles(count, all_blocks):
        """(block, blocks, row, rows) of every tile."""
        number = (count + tallest - 1) // tallest
        rows = count // number
        higher = count % number
        at_once = MAX_BLOCKS if rows + (higher > 0) <= two_blocks_up_to else 1
        block = 0
        while block < all_blocks:
            blocks = 1 if all_blocks - block < at_once else at_once
            row = 0
            for tile in range(number):
                taken = rows + (tile < higher)
                yield block, blocks, row, taken
                row += taken
            block += blocks

    @inlined
    def project(w, s, first, steps):
        panel_floats = w.inputs * w.block_floats
        z_row = w.blocks * w.block_floats
        x = local_rows()
        for block, blocks, row, rows in tiles(steps * s.batch, w.blocks):
            for k in range(rows):
                step, sequence = (row + k) // s.batch, (row + k) % s.batch
                x[k] = s.x + (first + step) * s.x_step + sequence * s.x_row
            z = s.scratch + row * z_row + block * w.block_floats
            bias = w.bias + block * w.block_floats
            weights = w.x_panels + block * panel_floats
            panel_product(rows, blocks, z, z_row, bias, 0, weights, panel_floats, x, w.inputs)

    @inlined
    def keep_state(w, s):
        for row in range(s.batch):
            h = s.h + row * w.hidden
            y = s.y + (s.steps - 1) * s.y_step + row * s.y_row
            for unit in range(0, w.hidden, vf.LANES):
                vf.store_n(h + unit, vf.load_n(y + unit, w.hidden - unit), w.hidden - unit)

    module = ModuleType(f"{__name__}.{isa_name}.{gates}")
    module.local_sums = local_sums
    module.local_rows = local_rows
    for function in (panel_product, tiles, project, keep_state):
        setattr(module, function.__name__, function)
    return module
