"""The product of rows and panels, a tile of rows x unit blocks x gates at a time: ``csrc/cells/product.h`` in Numba.

::

    sum[row][block][gate] += sum over k of v[row][k] * panel[block][k][gate]          0 <= k < K

The symbols and their order are those of C, and so are layout, tiles and numerics, which are told there. What C's
compiler unrolls over the shape of a tile is in ``tiles.py``; the rest is Numba.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from fusedrnn.kernels import activations, integer_product
from fusedrnn.kernels.memory import (
    constants,
    field_as,
    local_floats,
    local_pointers,
    null,
    null_of,
)
from fusedrnn.kernels.policy import inlined
from fusedrnn.kernels.simd import InstructionSet, vocabulary
from fusedrnn.kernels.tiles import (
    GATES,
    MAX_BLOCKS,
    MAX_ROWS,
    MAX_SUMS,
    MAX_TILE_SUMS,
    Factor,
    Sums,
    call_product,
    fits,
    one_row_blocks,
    one_row_product_of,
    product_of,
    tallest,
    widened_call,
    widened_product_of,
)
from fusedrnn.kernels.weights import FLOAT32, WEIGHTS, Scaled, Weights, i8_depth

__all__ = ["FINISH", "INPUT", "STEP", "Range", "Tile", "Tiling", "functions"]

INPUT, STEP, FINISH = (constants()[f"FR_{name}"] for name in ("INPUT", "STEP", "FINISH"))
TANH, RELU, IDENTITY, SIGMOID = (
    constants()[f"FR_{name}"] for name in ("TANH", "RELU", "IDENTITY", "SIGMOID")
)


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


# ---- what depends on the type of weights ---------------------------------------------------------


@cache
def float_functions(isa_name: str, weights: Weights) -> dict[str, Any]:
    """Of weights that are floats, as they are or widened: a matrix is a pointer to its panels, [N][depth][gates][L]."""
    vf = vocabulary(isa_name)
    isa: InstructionSet = vf.ISA
    x_matrix, h_matrix, dependent_matrix = panels_fields(weights)
    no_matrix = null_of(weights.pointer)
    line = weights.line

    @inlined
    def x_module(w, m):
        """The matrix of a module of a Clockwork RNN."""
        return x_matrix(w) + m.x_start

    @inlined
    def h_module(w, m):
        return h_matrix(w) + m.h_start

    @inlined
    def tile_factor(tile, panels, gates, depth, v):
        """The factor of a tile."""
        panel_weights = depth * gates * vf.LANES
        panel = panels + tile.block * panel_weights
        if tile.next != tile.block and tile.number * line < tile.blocks * gates * vf.LANES:
            ahead = panels + tile.next * panel_weights + tile.number * depth * line
            return Factor(panel, v, depth, ahead, line)
        return Factor(panel, v, depth, panel, 0)

    @inlined
    def no_factor(v):
        """The second factor of a product that has one: of depth 0."""
        return Factor(no_matrix(), v, 0, no_matrix(), 0)

    if weights == FLOAT32:
        products = [product_of(isa, gates) for gates in GATES]
        products_of_one = [one_row_product_of(isa, gates) for gates in GATES]

        @inlined
        def product(gates, tile, start, first, second, to):
            """to = start + first + second, for a tile; ``second`` may have depth 0."""
            call_product(gates.product, tile.rows, tile.blocks, start, first, second, to)

    else:
        products = products_of_one = [widened_product_of(isa, weights, gates) for gates in GATES]
        call = widened_call(weights)

        @inlined
        def product(gates, tile, start, first, second, to):
            """to = start + first + second, for a tile, one at a time; ``second`` may have depth 0."""
            call(gates.product, tile.rows, tile.blocks, start, first, to)
            if second.depth > 0:
                call(gates.product, tile.rows, tile.blocks, to, second, to)

    return named(
        products,
        products_of_one,
        x_matrix=x_matrix,
        h_matrix=h_matrix,
        dependent_matrix=dependent_matrix,
        x_module=x_module,
        h_module=h_module,
        tile_factor=tile_factor,
        no_factor=no_factor,
        product=product,
    )


@cache
def integer_functions(isa_name: str, weights: Weights) -> dict[str, Any]:
    """Of int8: a matrix is Scaled; an element of its panels is a byte."""
    vf = vocabulary(isa_name)
    isa: InstructionSet = vf.ISA
    x_panels, h_panels, dependent_panels = panels_fields(weights)
    no_panels = null_of(weights.pointer)
    panel_depth = inlined(i8_depth)
    call = integer_product.call_product

    @inlined
    def x_matrix(w):
        return Scaled(x_panels(w), w.x_scales, w.weight_type)

    @inlined
    def h_matrix(w):
        return Scaled(h_panels(w), w.h_scales, w.weight_type)

    @inlined
    def dependent_matrix(w):
        return Scaled(dependent_panels(w), w.dependent_scales, w.weight_type)

    @inlined
    def x_module(w, m):
        """The matrix of a module of a Clockwork RNN."""
        scales = w.x_scales + m.block * vf.LANES
        return Scaled(x_panels(w) + m.x_start, scales, w.weight_type)

    @inlined
    def h_module(w, m):
        scales = w.h_scales + m.block * vf.LANES
        return Scaled(h_panels(w) + m.h_start, scales, w.weight_type)

    @inlined
    def tile_factor(tile, matrix, gates, depth, v):
        """The factor of a tile, which fetches nothing."""
        columns = tile.block * gates * vf.LANES
        at = matrix.at + panel_depth(depth) * columns
        panel = Scaled(at, matrix.scales + columns, matrix.type)
        return Factor(panel, v, depth, panel, 0)

    @inlined
    def no_factor(v):
        """The second factor of a product that has one: of depth 0."""
        nothing = Scaled(no_panels(), null(), 0)
        return Factor(nothing, v, 0, nothing, 0)

    @inlined
    def add_factor(gates, tile, start, f, to):
        function, dots = gates.product
        rows, blocks = tile.rows, tile.blocks
        call(function, gates.number, dots, rows, blocks, start, f.panel, f.v, f.depth, to)

    @inlined
    def product(gates, tile, start, first, second, to):
        """to = start + first + second, for a tile, one at a time; ``second`` may have depth 0."""
        add_factor(gates, tile, start, first, to)
        if second.depth > 0:
            add_factor(gates, tile, to, second, to)

    products = [integer_product.product_of(isa, gates) for gates in GATES]
    return named(
        products,
        products,
        x_matrix=x_matrix,
        h_matrix=h_matrix,
        dependent_matrix=dependent_matrix,
        x_module=x_module,
        h_module=h_module,
        tile_factor=tile_factor,
        no_factor=no_factor,
        product=product,
    )


def panels_fields(weights: Weights) -> list[Any]:
    """What reads x_panels, h_panels and dependent_panels as what they are.

    No functions that are inlined: those would change how LLVM lays out the code of cells.
    """
    names = ("x_panels", "h_panels", "dependent_panels")
    return [field_as(name, weights.pointer) for name in names]


def named(products: list[Any], products_of_one: list[Any], **functions: Any) -> dict[str, Any]:
    """Functions by their names, and the products of tiles, and of tiles of one row, by the number of gates."""
    return (
        functions
        | {f"product_{gates}": each for gates, each in zip(GATES, products, strict=True)}
        | {f"one_{gates}": each for gates, each in zip(GATES, products_of_one, strict=True)}
    )


# ---- what a cell needs ---------------------------------------------------------------------------


@cache
def functions(isa_name: str, weight_type: str) -> ModuleType:
    """The rest of ``csrc/cells/product.h`` for one instruction set and type of weights of :data:`~.weights.WEIGHTS`.

    ``fr.product`` is ``fr_product`` in C.
    """
    vf = vocabulary(isa_name)
    isa: InstructionSet = vf.ISA
    weights = WEIGHTS[weight_type]
    of_integers = weights.are_integers
    made = (integer_functions if of_integers else float_functions)(isa_name, weights)
    x_matrix, tile_factor, no_factor, product = (
        made[name] for name in ("x_matrix", "tile_factor", "no_factor", "product")
    )
    registers = isa.registers
    activation = activations.functions(isa_name)
    sigmoid, full_sigmoid, tanh = activation.sigmoid, activation.full_sigmoid, activation.tanh
    divided, whole = activation.divided, activation.whole
    it_fits = inlined(fits)
    max_rows = tuple(MAX_ROWS if of_integers else tallest(gates, registers) for gates in GATES)
    max_row_blocks = tuple(
        MAX_BLOCKS if of_integers else one_row_blocks(gates, registers) for gates in GATES
    )
    least_blocks = MAX_BLOCKS if of_integers else 1
    local_sums = local_floats(
        (MAX_TILE_SUMS if of_integers else MAX_SUMS) * isa.lanes, alignment=64
    )
    local_rows = local_pointers(MAX_ROWS)

    @inlined
    def tile_rows(count, gates):
        highest = max_rows[gates - 1]
        number, rows, higher, blocks = 1, count, 0, least_blocks
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
                if rows > 0:
                    yield Tile(block, blocks, following, number, row, rows)
                row += rows

    @inlined
    def sums_in(memory, blocks, gates):
        """The sums of a tile in memory of its own, between its product and its cell."""
        return Sums(memory, blocks * gates * vf.LANES, gates * vf.LANES)

    # ---- rows and steps

    @inlined
    def active(s, t):
        return s.active[t] if s.active else s.batch

    @inlined
    def resets(s, t, row):
        """Whether row's state is zeroed before step t."""
        if s.since:
            return s.since[row][t * s.since_step] == 0
        return False

    @inlined
    def h_before(s, t, row):
        """Where row's h is before step t."""
        if resets(s, t, row):
            return s.zeros
        return s.y[row] + (t - 1) * s.y_step if t > 0 else s.h[row]

    @inlined
    def input_sums(w, s, tile, z):
        """The sums of a tile in the input product z, [row][block][gate][lane], of a step or of a chunk."""
        z_row = w.blocks * s.z_block
        return Sums(z + tile.row * z_row + tile.block * s.z_block, z_row, s.z_block)

    @inlined
    def finished_sums(w, s, tile, z, memory, gates):
        """Where the finished sums of a tile go: into the tape, in the place of the input product, or to the stack."""
        return input_sums(w, s, tile, z) if s.tape else sums_in(memory, tile.blocks, gates)

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
            W_x = tile_factor(tile, x_matrix(w), gates.number, w.inputs, rows)
            to = input_sums(w, s, tile, z)
            product(gates, tile, biases(w, tile), W_x, no_factor(rows), to)

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

    module = ModuleType(f"{__name__}.{isa_name}.{weight_type}")
    module.__dict__.update(
        made,
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
        far=weights.far,
        sums_in=sums_in,
        active=active,
        resets=resets,
        h_before=h_before,
        input_sums=input_sums,
        finished_sums=finished_sums,
        biases=biases,
        input_phase=input_phase,
        limited=limited,
        unbounded=unbounded,
        state_function=state_function,
        gate=gate,
        candidate=candidate,
    )
    return module
