"""The vanilla RNN: ``csrc/cells/rnn.h`` in Numba. For row b, step t and unit, W over x, R over h::

    h' = tanh(W_h x + R_h h + b_h)

One gate block, so a tile takes up to eight unit blocks at once. The sums begin with the x-projection
of a chunk of steps, or run over x and then h in a single step, as those of the LSTM do.
"""

from __future__ import annotations

from fusedrnn.kernels import activations, simd
from fusedrnn.kernels import panel as panels
from fusedrnn.kernels.panel import PROJECT, Gates
from fusedrnn.kernels.policy import Kernel, inlined

__all__ = ["kernel"]


def kernel(isa: str, _form: str) -> Kernel:
    """The kernel for one instruction set; there is one form."""
    vf = simd.vocabulary(isa)
    panel = panels.functions(isa)
    divided = activations.functions(isa).divided

    @inlined
    def rnn_tile(gates, w, s, t, z, at):
        """FR_STEP, of a tile. z: the x-projection of this step's rows, or NULL."""
        x, h, tile = panel.local_rows(), panel.local_rows(), panel.local_sums()

        for k in range(at.rows):
            x[k] = s.x[at.row + k] + t * s.x_step
            h[k] = panel.h_before(s, t, at.row + k)
        R_h = panel.factor_at(at, w.h_panels, 1, w.hidden, h)
        sums = panel.tile_sums(tile, at.blocks, 1)
        if z:
            panel.product(gates, at, panel.projected(w, at, z), R_h, panel.nothing_more(h), sums)
        else:
            W_x = panel.factor_at(at, w.x_panels, 1, w.inputs, x)
            panel.product(gates, at, panel.biases(w, at), W_x, R_h, sums)
        for k in range(at.rows):
            for j in range(at.blocks):
                unit = (at.block + j) * vf.LANES
                sum_ = vf.load(sums.at + (k * at.blocks + j) * vf.LANES)
                shown = panel.written(w, w.plain, sum_)
                y_at = s.y[at.row + k] + t * s.y_step + unit
                vf.store_n(y_at, divided(shown), w.hidden - unit)

    @inlined
    def rnn_step(gates, w, s, t, z, tiling):
        for at in panel.tiles(tiling, panel.share(s, w.blocks), panel.downward(s, t)):
            rnn_tile(gates, w, s, t, z, at)

    def rnn(w, s, phase, t, z):
        gates = Gates(1, panel.product_1())
        if phase == PROJECT:
            panel.project(gates, w, s, t, z)
        elif panel.active(s, t) == 1:
            rnn_step(Gates(1, panel.one_1()), w, s, t, z, panel.tile_one(1))
        else:
            rnn_step(gates, w, s, t, z, panel.tile_rows(panel.active(s, t), 1))

    return rnn
