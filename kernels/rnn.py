"""The vanilla RNN: ``csrc/cells/rnn.h`` in Numba. For row b, step t and unit, W over x, R over h::

    h' = tanh(W_h x + R_h h + b_h)

One gate block, so a tile takes up to eight unit blocks at once. The sums begin with the x-projection
of a chunk of steps, as those of the LSTM do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusedrnn.kernels import panel as panels
from fusedrnn.kernels import simd
from fusedrnn.kernels.panel import Factor, Gates, Sums
from fusedrnn.kernels.policy import inlined

__all__ = ["kernel"]


def kernel(isa: str) -> Callable[[Any, Any], None]:
    """The kernel for one instruction set: a function of the two structs."""
    vf = simd.vocabulary(isa)
    panel = panels.functions(isa)

    @inlined
    def rnn_tile(gates, w, s, t, z, block, blocks, row, rows):
        z_row = w.blocks * vf.LANES
        h, tile = panel.local_rows(), panel.local_sums()

        for k in range(rows):
            h[k] = panel.h_before(s, t, row + k)
        R_h = Factor(w.h_panels + block * w.hidden * vf.LANES, h, w.hidden)
        projected = Sums(z + row * z_row + block * vf.LANES, z_row, vf.LANES)
        sums = panel.tile_sums(tile, blocks, 1)
        panel.product(gates, rows, blocks, projected, R_h, panel.nothing_more(h), sums)
        for k in range(rows):
            for j in range(blocks):
                unit = (block + j) * vf.LANES
                sum_ = vf.load(sums.at + (k * blocks + j) * vf.LANES)
                y_at = s.y[row + k] + t * s.y_step + unit
                vf.store_n(y_at, panel.written(w, w.plain, sum_), w.hidden - unit)

    def rnn(w, s):
        gates = Gates(1, panel.product_1())
        for first in range(0, s.steps, s.chunk):
            steps = min(s.chunk, s.steps - first)
            z = s.scratch
            panel.project(gates, w, s, first, steps)
            for t in range(first, first + steps):
                active = panel.active(s, t)
                if active == 0:
                    break
                tiling = panel.tile_rows(active, 1)
                for block, blocks, row, rows in panel.tiles(tiling, w.blocks):
                    rnn_tile(gates, w, s, t, z, block, blocks, row, rows)
                z += active * w.blocks * w.block_floats
        panel.keep_state(w, s)

    return rnn
