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
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusedrnn.kernels import activations, simd
from fusedrnn.kernels import panel as panels
from fusedrnn.kernels.memory import constants, null, zeros
from fusedrnn.kernels.panel import Factor, Gates, Sums
from fusedrnn.kernels.policy import inlined

__all__ = ["kernel"]

PEEP_I, PEEP_F, PEEP_O = (constants()[f"FR_PEEP_{gate}"] for gate in "IFO")


def kernel(isa: str) -> Callable[[Any, Any], None]:
    """The kernel for one instruction set: a function of the two structs."""
    vf = simd.vocabulary(isa)
    panel = panels.functions(isa)
    tanh = activations.functions(isa).tanh
    no_sums = zeros(panels.MOST_BLOCKS * vf.LANES)

    @inlined
    def lstm_unit(w, plain, coupled, sum_, block, c):
        """h' of one row and unit block, before any projection, from the sums of its gates; and c'."""
        peeps = 0 if plain else w.peephole
        peephole = w.peepholes + block * 3 * vf.LANES
        i = vf.load(sum_)
        f = vf.load(sum_ + (0 if coupled else 1) * vf.LANES)
        g = vf.load(sum_ + (1 if coupled else 2) * vf.LANES)
        o = vf.load(sum_ + (2 if coupled else 3) * vf.LANES)

        if peeps & PEEP_F:
            f = vf.fma(vf.load(peephole + vf.LANES), c, f)
        f = panel.gate(w, plain, f)
        if coupled:
            i = vf.sub(vf.set1(1.0), f)
        else:
            if peeps & PEEP_I:
                i = vf.fma(vf.load(peephole), c, i)
            i = panel.gate(w, plain, i)
        g = panel.written(w, plain, g)
        c = vf.fma(f, c, vf.mul(i, g))
        if not plain:
            c = panel.limited(c, w.cell_clip)
        if peeps & PEEP_O:
            o = vf.fma(vf.load(peephole + 2 * vf.LANES), c, o)
        o = panel.gate(w, plain, o)
        return vf.mul(o, tanh(c) if plain else panel.state_function(w.output_activation, c)), c

    # z: the x-projection of this step's rows, or NULL.
    @inlined
    def lstm_tile(gates, w, s, t, z, block, blocks, row, rows):
        H = w.hidden
        z_row = w.blocks * w.block_floats
        x, h, tile = panel.local_rows(), panel.local_rows(), panel.local_sums()

        for k in range(rows):
            x[k] = s.x[row + k] + t * s.x_step
            h[k] = panel.h_before(s, t, row + k)
        W_x = Factor(w.x_panels + block * w.inputs * w.block_floats, x, w.inputs)
        R_h = Factor(w.h_panels + block * w.outputs * w.block_floats, h, w.outputs)
        sums = panel.tile_sums(tile, blocks, gates.number)
        if z:
            start = Sums(z + row * z_row + block * w.block_floats, z_row, w.block_floats)
            panel.product(gates, rows, blocks, start, R_h, panel.nothing_more(h), sums)
        else:
            bias = Sums(w.bias + block * w.block_floats, 0, w.block_floats)
            panel.product(gates, rows, blocks, bias, W_x, R_h, sums)
        for k in range(rows):
            for j in range(blocks):
                unit = (block + j) * vf.LANES
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                c_at = s.c[row + k] + unit
                c = vf.load_n(c_at, H - unit)
                if w.plain and not w.form:
                    m, c = lstm_unit(w, True, False, sum_, block + j, c)
                else:
                    m, c = lstm_unit(w, False, w.form == 1, sum_, block + j, c)
                vf.store_n(c_at, c, H - unit)
                if w.second_panels:
                    vf.store(s.aside + (row + k) * w.blocks * vf.LANES + unit, m)
                else:
                    vf.store_n(s.y[row + k] + t * s.y_step + unit, m, H - unit)

    @inlined
    def lstm_project(gates, w, s, t):
        """h' = P m, after all of m."""
        R_blocks = (w.outputs + vf.LANES - 1) // vf.LANES
        tiling = panel.tile_rows(panel.active(s, t), 1)
        for block, blocks, row, rows in panel.tiles(tiling, R_blocks):
            m, tile = panel.local_rows(), panel.local_sums()

            for k in range(rows):
                m[k] = s.aside + (row + k) * w.blocks * vf.LANES
            P_m = Factor(w.second_panels + block * w.hidden * vf.LANES, m, w.hidden)
            sums = panel.tile_sums(tile, blocks, 1)
            start = Sums(no_sums(), 0, vf.LANES)
            panel.product(gates, rows, blocks, start, P_m, panel.nothing_more(m), sums)
            for k in range(rows):
                for j in range(blocks):
                    unit = (block + j) * vf.LANES
                    shown = vf.load(sums.at + (k * blocks + j) * vf.LANES)
                    vf.store_n(s.y[row + k] + t * s.y_step + unit, shown, w.outputs - unit)

    @inlined
    def lstm_run(gates, one, w, s):
        for first in range(0, s.steps, s.chunk):
            steps = min(s.chunk, s.steps - first)
            z = s.scratch if s.chunk > 1 else null()
            if z:
                panel.project(gates, w, s, first, steps)
            for t in range(first, first + steps):
                active = panel.active(s, t)
                if active == 0:
                    break
                tiling = panel.tile_rows(active, gates.number)
                for block, blocks, row, rows in panel.tiles(tiling, w.blocks):
                    lstm_tile(gates, w, s, t, z, block, blocks, row, rows)
                if w.second_panels:
                    lstm_project(one, w, s, t)
                if z:
                    z += active * w.blocks * w.block_floats
        panel.keep_state(w, s)

    def lstm(w, s):
        one = Gates(1, panel.product_1())
        if w.form:
            lstm_run(Gates(3, panel.product_3()), one, w, s)
        else:
            lstm_run(Gates(4, panel.product_4()), one, w, s)

    return lstm
