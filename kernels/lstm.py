"""LSTM: ``csrc/cells/lstm.h`` in Numba. For row b, step t and unit, with W over x and R over h::

    i = sigmoid(W_i x + R_i h + b_i)      how much of g is written; 1 - f if coupled
    f = sigmoid(W_f x + R_f h + b_f)      how much of c is kept
    g = tanh   (W_g x + R_g h + b_g)      what is written
    o = sigmoid(W_o x + R_o h + b_o)      how much of the cell is shown
    c' = f * c + i * g
    h' = o * tanh(c')                     or a projection of it, P (o * tanh(c'))

A peephole adds p_i * c, p_f * c or p_o * c' to a gate's sum. Coupled gates have three gate blocks: f,
g, o.

Fused: from the bias to h' the sums of a tile (rows x unit blocks x gates) are in registers or in
the first-level cache. The x-projection of a chunk of steps is made first, in tall tiles; a single
step lets the same sums run over x, then h: the same additions in the same order, so the same bits.
Gates are quotients (activations.py): c' takes one division, h' another.
"""

from __future__ import annotations

from fusedrnn.kernels import activations, simd
from fusedrnn.kernels import panel as panels
from fusedrnn.kernels.memory import constants, zeros
from fusedrnn.kernels.panel import FINISH, PROJECT, Gates, Sums, Tiling
from fusedrnn.kernels.policy import Kernel, inlined

__all__ = ["kernel"]

#: From so many floats of panels on, they come from L2 or beyond.
FAR_FLOATS = 48 * 1024
PEEP_I, PEEP_F, PEEP_O = (constants()[f"FR_PEEP_{gate}"] for gate in "IFO")


def kernel(isa: str, form: str) -> Kernel:
    """The kernel of one form, "" or "coupled", for one instruction set."""
    vf = simd.vocabulary(isa)
    panel = panels.functions(isa)
    tanh = activations.functions(isa).tanh
    no_sums = zeros(panels.MOST_BLOCKS * vf.LANES)

    @inlined
    def lstm_unit(w, plain, coupled, sum_, block, c):
        """h' of one row and unit block, before any projection, from the sums of its gates; and c'."""
        peeps = 0 if plain else w.peephole
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
        f = panel.gate(w, plain, f_sum)
        g = panel.written(w, plain, g_sum)
        if coupled:  # f and i * g, over one common denominator
            common = vf.div(one, vf.mul(f.d, g.d))
            kept = vf.mul(f.n, vf.mul(g.d, common))
            written = vf.mul(vf.mul(vf.sub(f.d, f.n), common), g.n)
        else:
            i = panel.gate(w, plain, i_sum)
            common = vf.div(one, vf.mul(f.d, vf.mul(i.d, g.d)))
            kept = vf.mul(f.n, vf.mul(vf.mul(i.d, g.d), common))
            written = vf.mul(vf.mul(i.n, vf.mul(f.d, common)), g.n)
        c = vf.fma(kept, c, written)
        if not plain:
            c = panel.limited(c, w.cell_clip)
        if peeps & PEEP_O:
            o_sum = vf.fma(vf.load(peephole + 2 * vf.LANES), c, o_sum)
        o = panel.gate(w, plain, o_sum)
        shown = tanh(c) if plain else panel.state_function(w.output_activation, c)
        return vf.div(vf.mul(o.n, shown.n), vf.mul(o.d, shown.d)), c

    @inlined
    def lstm_tile(gates, plain, w, s, t, z, at):
        """FR_STEP, of a tile. z: the x-projection of this step's rows, or NULL."""
        H = w.hidden
        x, h, tile = panel.local_rows(), panel.local_rows(), panel.local_sums()

        for k in range(at.rows):
            x[k] = s.x[at.row + k] + t * s.x_step
            h[k] = panel.h_before(s, t, at.row + k)
        R_h = panel.factor_at(at, w.h_panels, gates.number, w.outputs, h)
        sums = panel.tile_sums(tile, at.blocks, gates.number)
        if z:
            panel.product(gates, at, panel.projected(w, at, z), R_h, panel.nothing_more(h), sums)
        else:
            W_x = panel.factor_at(at, w.x_panels, gates.number, w.inputs, x)
            panel.product(gates, at, panel.biases(w, at), W_x, R_h, sums)
        for k in range(at.rows):
            for j in range(at.blocks):
                row, unit = at.row + k, (at.block + j) * vf.LANES
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                c_at = s.c[row] + unit
                c = vf.load_n(c_at, H - unit)
                m, c = lstm_unit(w, plain, gates.number == 3, sum_, at.block + j, c)
                vf.store_n(c_at, c, H - unit)
                if not plain and w.second_panels:
                    vf.store(s.aside + row * w.blocks * vf.LANES + unit, m)
                else:
                    vf.store_n(s.y[row] + t * s.y_step + unit, m, H - unit)

    @inlined
    def lstm_finish_tiles(gates, w, s, t, tiling):
        R_blocks = (w.outputs + vf.LANES - 1) // vf.LANES
        for at in panel.tiles(tiling, panel.share(s, R_blocks), panel.downward(s, t)):
            m, tile = panel.local_rows(), panel.local_sums()

            for k in range(at.rows):
                m[k] = s.aside + (at.row + k) * w.blocks * vf.LANES
            P_m = panel.factor_at(at, w.second_panels, 1, w.hidden, m)
            sums = panel.tile_sums(tile, at.blocks, 1)
            start = Sums(no_sums(), 0, vf.LANES)
            panel.product(gates, at, start, P_m, panel.nothing_more(m), sums)
            for k in range(at.rows):
                for j in range(at.blocks):
                    unit = (at.block + j) * vf.LANES
                    shown = vf.load(sums.at + (k * at.blocks + j) * vf.LANES)
                    y_at = s.y[at.row + k] + t * s.y_step + unit
                    vf.store_n(y_at, shown, w.outputs - unit)

    @inlined
    def lstm_finish(gates, gates_of_one, w, s, t):
        """FR_FINISH: h' = P m, after all of m."""
        if panel.active(s, t) == 1:
            lstm_finish_tiles(gates_of_one, w, s, t, panel.tile_one(1))
        else:
            lstm_finish_tiles(gates, w, s, t, panel.tile_rows(panel.active(s, t), 1))

    @inlined
    def lstm_step(gates, plain, w, s, t, z, tiling):
        for at in panel.tiles(tiling, panel.share(s, w.blocks), panel.downward(s, t)):
            lstm_tile(gates, plain, w, s, t, z, at)

    @inlined
    def lstm_tile_one(gates, w, s, z):
        """Of one row: from L2 or beyond, one stream of memory is faster than two."""
        tiling = panel.tile_one(gates.number)
        swept = w.blocks * w.block_floats * (w.outputs if z else w.inputs + w.outputs)
        if gates.number == 4 and vf.LANES >= 16 and swept > FAR_FLOATS * s.parts:
            tiling = Tiling(tiling.tiles, tiling.rows, tiling.higher, 1)
        return tiling

    @inlined
    def lstm_phase(gates, gates_of_one, plain, w, s, phase, t, z):
        if phase == PROJECT:
            panel.project(gates, w, s, t, z)
        elif panel.active(s, t) == 1:
            lstm_step(gates_of_one, plain, w, s, t, z, lstm_tile_one(gates, w, s, z))
        else:
            tiling = panel.tile_rows(panel.active(s, t), gates.number)
            lstm_step(gates, plain, w, s, t, z, tiling)

    def lstm(w, s, phase, t, z):
        four, four_of_one = Gates(4, panel.product_4()), Gates(4, panel.one_4())
        if phase == FINISH:
            lstm_finish(Gates(1, panel.product_1()), Gates(1, panel.one_1()), w, s, t)
        elif w.plain:
            lstm_phase(four, four_of_one, True, w, s, phase, t, z)
        else:
            lstm_phase(four, four_of_one, False, w, s, phase, t, z)

    def lstm_coupled(w, s, phase, t, z):
        three, three_of_one = Gates(3, panel.product_3()), Gates(3, panel.one_3())
        if phase == FINISH:
            lstm_finish(Gates(1, panel.product_1()), Gates(1, panel.one_1()), w, s, t)
        else:
            lstm_phase(three, three_of_one, False, w, s, phase, t, z)

    return {"": lstm, "coupled": lstm_coupled}[form]
