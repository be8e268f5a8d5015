"""LSTM"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusedrnn.kernels import activations, simd
from fusedrnn.kernels import panel as panels
from fusedrnn.kernels.policy import inlined

__all__ = ["kernel"]

GATES = 4


def kernel(isa: str) -> Callable[[Any, Any], None]:
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
        for k in range(rows):
            x[k] = s.x + t * s.x_step + (row + k) * s.x_row
            if t > 0:
                h[k] = s.y + (t - 1) * s.y_step + (row + k) * s.y_row
            else:
                h[k] = s.h + (row + k) * H

        sums_row = blocks * w.block_floats
        if projected:
            start_row = w.blocks * w.block_floats
            start = z + row * start_row + block * w.block_floats
        else:
            bias = w.bias + block * w.block_floats
            weights = w.x_panels + block * x_floats
            panel_product(rows, blocks, sums, sums_row, bias, 0, weights, x_floats, x, w.inputs)
            start, start_row = sums, sums_row
        weights = w.h_panels + block * h_floats
        panel_product(rows, blocks, sums, sums_row, start, start_row, weights, h_floats, h, H)

        for k in range(rows):
            for j in range(blocks):
                gate = sums + k * sums_row + j * w.block_floats
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
        z_step = s.batch * w.blocks * w.block_floats
        sums = panel.local_sums()
        x = panel.local_rows()
        h = panel.local_rows()
        for first in range(0, s.steps, s.chunk):
            steps = min(s.chunk, s.steps - first)
            if s.chunk > 1:
                panel.project(w, s, first, steps)
            for step in range(steps):
                z = s.scratch + step * z_step
                for block, blocks, row, rows in panel.tiles(s.batch, w.blocks):
                    lstm_tile(
                        sums, x, h, rows, blocks, w, s, first + step, z, s.chunk > 1, block, row
                    )
        panel.keep_state(w, s)

    return lstm
