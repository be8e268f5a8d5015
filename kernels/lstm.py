"""LSTM: ``csrc/cells/lstm.h`` in Numba. For row b, step t and unit, with W over x and R over h::

    i = sigmoid(W_i x + R_i h + b_i)      how much of g is written
    f = sigmoid(W_f x + R_f h + b_f)      how much of c is kept
    g = tanh   (W_g x + R_g h + b_g)      what is written
    o = sigmoid(W_o x + R_o h + b_o)      how much of the cell is shown
    c' = f * c + i * g
    h' = o * tanh(c')

Fused: from the bias to h' the sums of a tile (rows x unit blocks x 4 gates) are in registers or in
the first-level cache. The x-projection of a chunk of steps is made first, in tall tiles; a single
step lets the same sums run over x, then h: the same additions in the same order, so the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusedrnn.kernels import activations, simd
from fusedrnn.kernels import panel as panels
from fusedrnn.kernels.policy import inlined

__all__ = ["kernel"]

GATES = 4


def kernel(isa: str) -> Callable[[Any, Any], None]:
    """The kernel for one instruction set: a function of the two structs."""
    vf = simd.vocabulary(isa)
    activation = activations.functions(isa)
    sigmoid, tanh = activation.sigmoid, activation.tanh
    panel = panels.functions(isa, GATES)
    panel_product = panel.panel_product

    @inlined
    def lstm_tile(sums, x, h, rows, blocks, w, s, t, z, projected, block, row):
        H = w.hidden
        x_floats = w.inputs * w.block_floats
        h_floats = H * w.block_floats
        z_row = w.blocks * w.block_floats
        row_floats = blocks * w.block_floats

        for k in range(rows):
            x[k] = s.x + t * s.x_step + (row + k) * s.x_row
            if t > 0:
                h[k] = s.y + (t - 1) * s.y_step + (row + k) * s.y_row
            else:
                h[k] = s.h + (row + k) * H
        if projected:
            start, start_row = z + row * z_row + block * w.block_floats, z_row
        else:
            start, start_row = sums, row_floats
            bias = w.bias + block * w.block_floats
            W = w.x_panels + block * x_floats
            panel_product(rows, blocks, sums, row_floats, bias, 0, W, x_floats, x, w.inputs)
        R = w.h_panels + block * h_floats
        panel_product(rows, blocks, sums, row_floats, start, start_row, R, h_floats, h, H)

        for k in range(rows):
            for j in range(blocks):
                gate = sums + k * row_floats + j * w.block_floats
                unit = (block + j) * vf.LANES
                c_at = s.c + (row + k) * H + unit
                y_at = s.y + t * s.y_step + (row + k) * s.y_row + unit

                i = sigmoid(vf.load(gate))
                f = sigmoid(vf.load(gate + vf.LANES))
                g = tanh(vf.load(gate + 2 * vf.LANES))
                o = sigmoid(vf.load(gate + 3 * vf.LANES))
                c = vf.fma(f, vf.load_n(c_at, H - unit), vf.mul(i, g))
                vf.store_n(c_at, c, H - unit)
                vf.store_n(y_at, vf.mul(o, tanh(c)), H - unit)

    def lstm(w, s):
        projected = s.chunk > 1
        z_step = s.batch * w.blocks * w.block_floats
        sums, x, h = panel.local_sums(), panel.local_rows(), panel.local_rows()

        for first in range(0, s.steps, s.chunk):
            steps = min(s.chunk, s.steps - first)
            if projected:
                panel.project(w, s, first, steps)
            for step in range(steps):
                t = first + step
                z = s.scratch + step * z_step
                for block, blocks, row, rows in panel.tiles(s.batch, w.blocks):
                    lstm_tile(sums, x, h, rows, blocks, w, s, t, z, projected, block, row)
        panel.keep_state(w, s)

    return lstm
