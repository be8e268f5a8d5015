"""LSTM: ``csrc/cells/lstm.h`` in Numba. For row b, step t and unit, with W over x and R over h::

    i = sigmoid(W_i x + R_i h + b_i)      how much of g is added to c; 1 - f if coupled
    f = sigmoid(W_f x + R_f h + b_f)      how much of c is retained
    g = tanh   (W_g x + R_g h + b_g)      the candidate
    o = sigmoid(W_o x + R_o h + b_o)      how much of tanh(c') becomes the output
    c' = f * c + i * g
    h' = o * tanh(c')                     or a projection of it, P (o * tanh(c'))

A peephole adds p_i * c, p_f * c or p_o * c' to a gate's sum. Coupled gates have three gate blocks: f,
g, o.
Shapes, layout, what is fused and the numerics are told in C.
"""

from __future__ import annotations

from fusedrnn.kernels import product, simd
from fusedrnn.kernels.memory import constants, zeros
from fusedrnn.kernels.policy import Kernel, inlined
from fusedrnn.kernels.product import FINISH, INPUT, Tiling
from fusedrnn.kernels.tiles import MAX_BLOCKS, Gates, Sums

__all__ = ["kernel"]

PEEP_I, PEEP_F, PEEP_O = (constants()[f"FR_PEEP_{gate}"] for gate in "IFO")


def kernel(isa: str, form: str, weights: str) -> Kernel:
    """The kernel of one form, "" or "coupled", for one instruction set and type of weights."""
    vf = simd.vocabulary(isa)
    fr = product.functions(isa, weights)
    far = fr.far
    no_sums = zeros(MAX_BLOCKS * vf.LANES)

    @inlined
    def lstm_unit(w, defaults, coupled, sum_, block, c):
        """h' of one row and unit block, before any projection, from the sums of its gates; and c'."""
        peeps = 0 if defaults else w.peephole
        peephole = w.peepholes + block * 3 * vf.LANES
        i_sum = vf.load(sum_)
        f_sum = vf.load(sum_ + (0 if coupled else 1) * vf.LANES)
        g_sum = vf.load(sum_ + (1 if coupled else 2) * vf.LANES)
        o_sum = vf.load(sum_ + (2 if coupled else 3) * vf.LANES)
        one = vf.set1(1.0)

        if peeps & PEEP_I:
            i_sum = vf.fma(vf.load(peephole), c, i_sum)
        if peeps & PEEP_F:
            f_sum = vf.fma(vf.load(peephole + vf.LANES), c, f_sum)
        f = fr.gate(w, defaults, f_sum)
        g = fr.candidate(w, defaults, g_sum)
        if coupled:  # f and i * g, over one common denominator
            common = vf.div(one, vf.mul(f.d, g.d))
            retained = vf.mul(f.n, vf.mul(g.d, common))
            added = vf.mul(vf.mul(vf.sub(f.d, f.n), common), g.n)
        else:
            i = fr.gate(w, defaults, i_sum)
            common = vf.div(one, vf.mul(f.d, vf.mul(i.d, g.d)))
            retained = vf.mul(f.n, vf.mul(vf.mul(i.d, g.d), common))
            added = vf.mul(vf.mul(i.n, vf.mul(f.d, common)), g.n)
        c = vf.fma(retained, c, added)
        if not defaults:
            c = fr.limited(c, w.cell_clip)
        if peeps & PEEP_O:
            o_sum = vf.fma(vf.load(peephole + 2 * vf.LANES), c, o_sum)
        o = fr.gate(w, defaults, o_sum)
        output = fr.tanh(c) if defaults else fr.state_function(w.output_activation, c)
        return vf.div(vf.mul(o.n, output.n), vf.mul(o.d, output.d)), c

    @inlined
    def lstm_tile(gates, defaults, w, s, t, z, tile):
        """FR_STEP of one tile. z: the input product of this step, or NULL."""
        H = w.hidden
        x, h, memory = fr.local_rows(), fr.local_rows(), fr.local_sums()

        for k in range(tile.rows):
            x[k] = s.x[tile.row + k] + t * s.x_step
            h[k] = fr.h_before(s, t, tile.row + k)
        R_h = fr.tile_factor(tile, fr.h_matrix(w), gates.number, w.outputs, h)
        sums = fr.finished_sums(w, s, tile, z, memory, gates.number)
        if z:
            fr.product(gates, tile, fr.input_sums(w, s, tile, z), R_h, fr.no_factor(h), sums)
        else:
            W_x = fr.tile_factor(tile, fr.x_matrix(w), gates.number, w.inputs, x)
            fr.product(gates, tile, fr.biases(w, tile), W_x, R_h, sums)
        for k in range(tile.rows):
            for j in range(tile.blocks):
                row, unit = tile.row + k, (tile.block + j) * vf.LANES
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                c_before = s.zeros if fr.resets(s, t, row) else s.c[row]
                c = vf.load_n(c_before + unit, H - unit)
                m, c = lstm_unit(w, defaults, gates.number == 3, sum_, tile.block + j, c)
                vf.store_n(s.c[row] + unit, c, H - unit)
                if s.tape:
                    vf.store(sum_ + gates.number * vf.LANES, c)
                if not defaults and w.dependent_panels:
                    vf.store(s.intermediate + row * w.blocks * vf.LANES + unit, m)
                else:
                    vf.store_n(s.y[row] + t * s.y_step + unit, m, H - unit)

    @inlined
    def lstm_finish_tiles(gates, w, s, t, tiling):
        R_blocks = (w.outputs + vf.LANES - 1) // vf.LANES
        for tile in fr.tiles(tiling, fr.share(s, R_blocks), fr.downward(s, t)):
            m, memory = fr.local_rows(), fr.local_sums()

            for k in range(tile.rows):
                m[k] = s.intermediate + (tile.row + k) * w.blocks * vf.LANES
            P_m = fr.tile_factor(tile, fr.dependent_matrix(w), 1, w.hidden, m)
            sums = fr.sums_in(memory, tile.blocks, 1)
            start = Sums(no_sums(), 0, vf.LANES)
            fr.product(gates, tile, start, P_m, fr.no_factor(m), sums)
            for k in range(tile.rows):
                for j in range(tile.blocks):
                    unit = (tile.block + j) * vf.LANES
                    output = vf.load(sums.at + (k * tile.blocks + j) * vf.LANES)
                    y_at = s.y[tile.row + k] + t * s.y_step + unit
                    vf.store_n(y_at, output, w.outputs - unit)

    @inlined
    def lstm_finish(gates, gates_of_one, w, s, t):
        """FR_FINISH: h' = P m, after all of m."""
        if fr.active(s, t) == 1:
            lstm_finish_tiles(gates_of_one, w, s, t, fr.tile_one(1))
        else:
            lstm_finish_tiles(gates, w, s, t, fr.tile_rows(fr.active(s, t), 1))

    @inlined
    def lstm_step(gates, defaults, w, s, t, z, tiling):
        for tile in fr.tiles(tiling, fr.share(s, w.blocks), fr.downward(s, t)):
            lstm_tile(gates, defaults, w, s, t, z, tile)

    @inlined
    def lstm_tile_one(gates, w, s, z):
        """The tiling of one row: from L2 or beyond, one stream of memory is faster than two."""
        tiling = fr.tile_one(gates.number)
        panel_weights = w.blocks * w.block_floats * (w.outputs if z else w.inputs + w.outputs)
        if gates.number == 4 and vf.LANES >= 16 and panel_weights > far * s.shares:
            tiling = Tiling(tiling.tiles, tiling.rows, tiling.higher, 1)
        return tiling

    @inlined
    def lstm_phase(gates, gates_of_one, defaults, w, s, phase, t, z):
        if phase == INPUT:
            fr.input_phase(gates, w, s, t, z)
        elif fr.active(s, t) == 1:
            lstm_step(gates_of_one, defaults, w, s, t, z, lstm_tile_one(gates, w, s, z))
        else:
            tiling = fr.tile_rows(fr.active(s, t), gates.number)
            lstm_step(gates, defaults, w, s, t, z, tiling)

    def lstm(w, s, phase, t, z):
        four, four_of_one = Gates(4, fr.product_4()), Gates(4, fr.one_4())
        if phase == FINISH:
            lstm_finish(Gates(1, fr.product_1()), Gates(1, fr.one_1()), w, s, t)
        elif w.default_activations:
            lstm_phase(four, four_of_one, True, w, s, phase, t, z)
        else:
            lstm_phase(four, four_of_one, False, w, s, phase, t, z)

    def lstm_coupled(w, s, phase, t, z):
        three, three_of_one = Gates(3, fr.product_3()), Gates(3, fr.one_3())
        if phase == FINISH:
            lstm_finish(Gates(1, fr.product_1()), Gates(1, fr.one_1()), w, s, t)
        else:
            lstm_phase(three, three_of_one, False, w, s, phase, t, z)

    return {"": lstm, "coupled": lstm_coupled}[form]
