"""LSTM"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusedrnn.kernels import activations, panel, simd
from fusedrnn.kernels.policy import inlined

__all__ = ["kernel"]

GATES = 4


def kernel(isa: str) -> Callable[[Any, Any], None]:
    vf = simd.vocabulary(isa)
    activation = activations.functions(isa)
    sigmoid, tanh = activation.sigmoid, activation.tanh
    tile = panel.functions(isa, GATES)

    @inlined
    def lstm_tile(sums, x, h, rows, blocks, w, s, t, z, projected, block, row):
        H = w.hidden
        x_floats = w.inputs * w.block_floats
        h_floats = H * w.block_floats
        z_row = w.blocks * w.block_floats
        for k in range(rows):
            x[k] = s.x + t * s.x_step + (row + k) * s.x_row
            h[k] = s.y + (t - 1) * s.y_step + (row + k) * s.y_row if t > 0 else s.h + (row + k) * H
        if projected:
            tile.panel_start(sums, rows, blocks, z + row * z_row + block * w.block_floats, z_row)
        else:
            tile.panel_start(sums, rows, blocks, w.bias + block * w.block_floats, 0)
            tile.panel_product(
                sums, rows, blocks, w.x_panels + block * x_floats, x_floats, x, w.inputs
            )
        tile.panel_product(sums, rows, blocks, w.h_panels + block * h_floats, h_floats, h, H)

        for k in range(rows):
            for j in range(blocks):
                gate = (k * blocks + j) * GATES
                unit = (block + j) * vf.LANES
                c_at = s.c + (row + k) * H + unit
                y_at = s.y + t * s.y_step + (row + k) * s.y_row + unit

                i = sigmoid(sums[gate])
                f = sigmoid(sums[gate + 1])
                g = tanh(sums[gate + 2])
                o = sigmoid(sums[gate + 3])
                c = vf.fma(f, vf.load_n(c_at, H - unit), vf.mul(i, g))
                vf.store_n(c_at, c, H - unit)
                vf.store_n(y_at, vf.mul(o, tanh(c)), H - unit)

    def lstm(w, s):
        z_step = s.batch * w.blocks * w.block_floats
        sums = tile.tile_sums()
        x = tile.tile_rows_at()
        h = tile.tile_rows_at()
        for first in range(0, s.steps, s.chunk):
            steps = min(s.chunk, s.steps - first)
            if s.chunk > 1:
                tile.project(w, s, first, steps)
            for step in range(steps):
                z = s.scratch + step * z_step
                for block, blocks, row, rows in tile.tiles(s.batch, w.blocks):
                    lstm_tile(
                        sums, x, h, rows, blocks, w, s, first + step, z, s.chunk > 1, block, row
                    )
        tile.keep_state(w, s)

    return lstm
