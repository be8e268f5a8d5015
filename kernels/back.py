"""The backward pass, what all cells share: ``csrc/cells/back.h`` in Numba. For a row and step, dz of the sums of gates::

    dh   = dy + R^T dz of the step after, and what the cell hands on beside the product
    dz   = the cell's derivative, from dh and the record of the step        in the cells' own files
    dW  += dz x^T     dR += dz h^T     db += dz     dx = W^T dz             h: of the step before

Shapes, layout, what is fused and the numerics are told in C.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fusedrnn.kernels import slopes
from fusedrnn.kernels.llvm import INT64, operation
from fusedrnn.kernels.memory import constants, floats, zeros
from fusedrnn.kernels.policy import inlined
from fusedrnn.kernels.product import Range
from fusedrnn.kernels.simd import InstructionSet, vocabulary
from fusedrnn.kernels.tiles import (
    FACTOR,
    FACTOR_FIELDS,
    LINE_FLOATS,
    MAX_BLOCKS,
    SUMS,
    SUMS_FIELDS,
    Factor,
    OwnFunction,
    Shape,
    Sums,
    emit_accumulate,
    emit_pointers,
    emit_prefetch,
    emit_shapes,
    own_function,
    tile_shapes,
)

__all__ = ["FINISH", "INPUT", "STATE", "STEP", "WEIGHTS", "functions"]

STEP, FINISH, STATE, WEIGHTS, INPUT = (
    constants()[f"FR_BACK_{name}"] for name in ("STEP", "FINISH", "STATE", "WEIGHTS", "INPUT")
)

# ---- products ------------------------------------------------------------------------------------


def emit_outer_tile(
    builder: ir.IRBuilder,
    isa: InstructionSet,
    shape: Shape,
    factor: Factor,
    v_step: ir.Value,
    to: Sums,
) -> None:
    """to = to + the sum over k of v[row][k * v_step] * panel[block][k]: of one chain, added once."""
    zero = ir.Constant(isa.vector, [0.0] * isa.lanes)
    sums = [zero] * (shape.rows * shape.blocks)
    sums = emit_accumulate(builder, isa, shape, sums, factor, v_step)
    for pointer, sum_ in zip(emit_pointers(builder, isa, shape, to), sums, strict=True):
        isa.store(builder, pointer, builder.fadd(isa.load(builder, pointer), sum_))


#: ``fr_outer``: sizes of the tile; a factor, and the stride of its v; where its sums are added.
OUTER = OwnFunction(
    "fr_outer",
    ir.FunctionType(ir.VoidType(), [INT64, INT64, FACTOR_FIELDS, INT64, SUMS_FIELDS]),
)


def outer_of(isa: InstructionSet) -> Any:
    """What a kernel calls to have the outer product compiled into it, as a function of its own."""

    @operation(OUTER)
    def outer(builder: ir.IRBuilder) -> ir.Value:
        def emit(inside: ir.IRBuilder, values: Any) -> None:
            rows, blocks, factor, v_step, to = values
            factor = Factor(*cgutils.unpack_tuple(inside, factor))
            to = Sums(*cgutils.unpack_tuple(inside, to))

            def emit_tile(shape: Shape) -> None:
                emit_outer_tile(inside, isa, shape, factor, v_step, to)

            emit_shapes(inside, tile_shapes(isa, 1), rows, blocks, emit_tile)

        return own_function(builder, f"fr_outer_{isa.name}", OUTER.declared, emit)

    return outer


@intrinsic
def call_outer(
    _typing: Any,
    outer: types.Type,
    rows: types.Type,
    blocks: types.Type,
    factor: types.Type,
    v_step: types.Type,
    to: types.Type,
) -> Any:
    """Add the outer product of a tile."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> ir.Value:
        function, *arguments = values
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(outer, types.int64, types.int64, FACTOR, types.int64, SUMS), generate


@operation(types.void, floats)
def prefetch(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Fetch the cache line of an address into the nearest cache, to be read."""
    emit_prefetch(builder, pointer, 3)


class BackRows(NamedTuple):
    """Rows of a step that are alike: those that run on, whose dh has a product, or those that end with the step."""

    first: int
    rows: int
    product: bool


@cache
def functions(isa_name: str) -> ModuleType:
    """What ``slopes.functions`` has, and the rest of ``csrc/cells/back.h``, for one instruction set."""
    vf = vocabulary(isa_name)
    fr = slopes.functions(isa_name, "float32")
    no_sums = zeros(MAX_BLOCKS * vf.LANES)
    outer = outer_of(vf.ISA)

    # ---- dh

    @inlined
    def back_product(one, tile, panels, depth, v, v_row, sums):
        """Of rows of dz, the product with transposed panels, from 0."""
        rows = fr.local_rows()
        for k in range(tile.rows):
            rows[k] = v + (tile.row + k) * v_row
        f = fr.tile_factor(tile, panels, 1, depth, rows)
        fr.product(one, tile, Sums(no_sums(), 0, vf.LANES), f, fr.no_factor(rows), sums)

    @inlined
    def active_after(s, t):
        """The number of rows that are running after step t: theirs is the product with dz of the step after."""
        return fr.active(s, t + 1) if t + 1 < s.steps else 0

    @inlined
    def back_group(s, t, run_on):
        """Rows that run on, or those that end. C has a copy of a step for each; here one copy is half to compile."""
        after = active_after(s, t)
        return (
            BackRows(0, after, True) if run_on else BackRows(after, fr.active(s, t) - after, False)
        )

    @inlined
    def fetch_records(w, b, t, z, first_row, tile):
        """Fetches a tile's records, and dy, of the step before t while the product of step t computes."""
        s = b.s
        z_row, floats = w.blocks * s.z_block, tile.blocks * s.z_block
        z = z + -fr.active(s, t - 1) * z_row
        for k in range(tile.rows):
            record = z + (first_row + tile.row + k) * z_row + tile.block * s.z_block
            for at in range(0, floats, LINE_FLOATS):
                prefetch(record + at)
            dy = b.dy[first_row + tile.row + k]
            prefetch(dy + (t - 1) * b.dy_step + tile.block * vf.LANES)

    @inlined
    def back_h(one, w, b, t, depth, z, group, tile, sums):
        """The gradients of h' of a tile's units at step t, or of the h before step 0 if t is -1.

        ``depth`` gradients of sums of the step after are multiplied with R.
        """
        s = b.s
        if t > 0:
            fetch_records(w, b, t, z, group.first, tile)
        if group.product:  # rows that run on are the first ones
            back_product(one, tile, w.back_h_panels, depth, b.dz_after, b.dz_row, sums)
        for k in range(tile.rows):
            row = group.first + tile.row + k
            # Then nothing of the step after reaches this one.
            ends = not group.product or fr.resets(s, t + 1, row)
            for j in range(tile.blocks):
                unit = (tile.block + j) * vf.LANES
                rest = w.outputs - unit
                at = sums.at + k * sums.row_stride + j * sums.block_stride
                dh = vf.load_n(b.dh[row] + unit, rest)
                if not ends:
                    dh = vf.add(vf.load(at), dh)
                if t >= 0:
                    dh = vf.add(vf.load_n(b.dy[row] + t * b.dy_step + unit, rest), dh)
                vf.store(at, dh)

    @inlined
    def back_state_tile(one, w, b, depth, tile):
        """The gradients of the h before step 0, of one tile."""
        memory = fr.local_sums()
        sums = fr.sums_in(memory, tile.blocks, 1)
        back_h(one, w, b, -1, depth, no_sums(), back_group(b.s, -1, True), tile, sums)
        for k in range(tile.rows):
            for j in range(tile.blocks):
                unit = (tile.block + j) * vf.LANES
                dh = vf.load(sums.at + k * sums.row_stride + j * sums.block_stride)
                vf.store_n(b.dh[tile.row + k] + unit, dh, w.outputs - unit)

    @inlined
    def back_state(one, w, b, depth):
        tiling = fr.tile_rows(fr.active(b.s, 0), 1)
        mine = fr.share(b.s, (w.outputs + vf.LANES - 1) // vf.LANES)
        for tile in fr.tiles(tiling, mine, False):
            back_state_tile(one, w, b, depth, tile)

    # ---- a chunk: gradients of x and of weights

    @inlined
    def back_input(one, w, b, first, sums_count):
        """dx of the chunk's rows, divided by rows.

        ``late``: the part of dz behind the sums whose weights are back_late_panels.
        """
        s = b.s
        X, H = w.inputs, w.hidden
        gates_rows = w.block_floats // vf.LANES * H
        rows = b.rows
        count = 0
        for t in range(first, b.end):
            for row in range(fr.active(s, t)):
                rows[count] = b.dx[row] + t * b.dx_step
                count += 1
        begin, end = count * s.share // s.shares, count * (s.share + 1) // s.shares
        if begin == end:
            return
        tiling = fr.tile_rows(end - begin, 1)
        all_blocks = Range(0, (X + vf.LANES - 1) // vf.LANES)
        for tile in fr.tiles(tiling, all_blocks, False):
            v, late, memory = fr.local_rows(), fr.local_rows(), fr.local_sums()
            sums = fr.sums_in(memory, tile.blocks, 1)
            for k in range(tile.rows):
                v[k] = b.dz + (begin + tile.row + k) * b.dz_row
                late[k] = v[k] + gates_rows
            W_dz = fr.tile_factor(tile, w.back_x_panels, 1, sums_count, v)
            W_late = fr.no_factor(late)
            if w.back_late_panels:
                W_late = fr.tile_factor(tile, w.back_late_panels, 1, H, late)
            fr.product(one, tile, Sums(no_sums(), 0, vf.LANES), W_dz, W_late, sums)
            for k in range(tile.rows):
                for j in range(tile.blocks):
                    feature = (tile.block + j) * vf.LANES
                    dx = rows[begin + tile.row + k] + feature
                    sum_ = vf.load(sums.at + k * sums.row_stride + j * sums.block_stride)
                    if b.adds_dx:
                        sum_ = vf.add(vf.load_n(dx, X - feature), sum_)
                    vf.store_n(dx, sum_, X - feature)

    @inlined
    def copy_columns(rows, values, stride, K, to):
        """Copies the columns of a tile of ``rows`` of them: to[k][row] = values[k * stride + row]."""
        for k in range(K):
            for row in range(rows):
                to[k * rows + row] = values[k * stride + row]

    @inlined
    def back_outer(outer, b, values, count, right, features, to, to_row):
        """to[i][feature] += the sum over the chunk's rows of values[row][i] * right[row][feature].

        Divided by i.
        """
        K, share, shares = b.chunk_rows, b.s.share, b.s.shares
        begin, end = count * share // shares, count * (share + 1) // shares
        if begin == end:
            return
        tiling = fr.tile_rows(end - begin, 1)
        all_blocks = Range(0, (features + vf.LANES - 1) // vf.LANES)
        for tile in fr.tiles(tiling, all_blocks, False):
            columns = b.columns + tile.row * K
            if tile.number == 0:  # these features are new
                for k in range(K):
                    for j in range(tile.blocks):
                        feature = (tile.block + j) * vf.LANES
                        gathered = vf.load_n(right[k] + feature, features - feature)
                        vf.store(b.gathered + (j * K + k) * vf.LANES, gathered)
            if tile.block == 0:
                copy_columns(tile.rows, values + (begin + tile.row), b.dz_row, K, columns)
            v = fr.local_rows()
            for k in range(tile.rows):
                v[k] = columns + k
            f = Factor(b.gathered, v, K, b.gathered, 0)
            at = to + ((begin + tile.row) * to_row + tile.block * vf.LANES)
            call_outer(outer, tile.rows, tile.blocks, f, tile.rows, Sums(at, to_row, vf.LANES))

    @inlined
    def back_sum(b, values, count, to):
        """to[i] += the sum over the chunk's rows of values[row][i]; divided by i."""
        first, last = fr.share(b.s, (count + vf.LANES - 1) // vf.LANES)
        for block in range(first, last):
            i = block * vf.LANES
            sum_ = vf.set1(0.0)
            for k in range(b.chunk_rows):
                sum_ = vf.add(sum_, vf.load_n(values + (k * b.dz_row + i), count - i))
            vf.store_n(to + i, vf.add(vf.load_n(to + i, count - i), sum_), count - i)

    # The rows of x of a chunk, the rows of h before each of its steps, or the parts of its rows of dz from `at` on.

    @inlined
    def back_x_rows(b, first):
        count = 0
        for t in range(first, b.end):
            for row in range(fr.active(b.s, t)):
                b.rows[count] = b.s.x[row] + t * b.s.x_step
                count += 1
        return b.rows

    @inlined
    def back_h_rows(b, first):
        count = 0
        for t in range(first, b.end):
            for row in range(fr.active(b.s, t)):
                b.rows[count] = fr.h_before(b.s, t, row)
                count += 1
        return b.rows

    @inlined
    def back_dz_rows(b, at):
        for k in range(b.chunk_rows):
            b.rows[k] = b.dz + (k * b.dz_row + at)
        return b.rows

    @inlined
    def back_weights(outer, w, b, first):
        """What most cells add: dW, dR and db, all from the gradients of the sums."""
        rows = w.block_floats // vf.LANES * w.hidden
        g = b.gradients
        back_outer(outer, b, b.dz, rows, back_x_rows(b, first), w.inputs, g.dW, g.dW_row)
        back_outer(outer, b, b.dz, rows, back_h_rows(b, first), w.outputs, g.dR, g.dR_row)
        back_sum(b, b.dz, rows, g.db)

    module = ModuleType(f"{__name__}.{isa_name}")
    module.__dict__.update(
        vars(fr)
        | {
            "__name__": module.__name__,
            "outer": outer,
            "back_product": back_product,
            "back_group": back_group,
            "back_h": back_h,
            "back_state": back_state,
            "back_input": back_input,
            "back_outer": back_outer,
            "back_sum": back_sum,
            "back_x_rows": back_x_rows,
            "back_h_rows": back_h_rows,
            "back_dz_rows": back_dz_rows,
            "back_weights": back_weights,
        }
    )
    return module
