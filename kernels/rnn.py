"""The vanilla RNN: ``csrc/cells/rnn.h`` in Numba. For row b, step t and unit, W over x, R over h::

    h' = tanh(W_h x + R_h h + b_h)

Shapes, layout, what is fused and the numerics are told in C.
"""

from __future__ import annotations

from fusedrnn.kernels import product, simd
from fusedrnn.kernels.policy import Kernel, inlined
from fusedrnn.kernels.product import INPUT
from fusedrnn.kernels.tiles import Gates

__all__ = ["kernel"]


def kernel(isa: str, _form: str, weights: str) -> Kernel:
    """The kernel for one instruction set and type of weights; there is one form."""
    vf = simd.vocabulary(isa)
    fr = product.functions(isa, weights)

    @inlined
    def rnn_tile(gates, w, s, t, z, tile):
        """FR_STEP of one tile. z: the input product of this step, or NULL."""
        x, h, memory = fr.local_rows(), fr.local_rows(), fr.local_sums()

        for k in range(tile.rows):
            x[k] = s.x[tile.row + k] + t * s.x_step
            h[k] = fr.h_before(s, t, tile.row + k)
        R_h = fr.tile_factor(tile, fr.h_matrix(w), 1, w.hidden, h)
        sums = fr.finished_sums(w, s, tile, z, memory, 1)
        if z:
            fr.product(gates, tile, fr.input_sums(w, s, tile, z), R_h, fr.no_factor(h), sums)
        else:
            W_x = fr.tile_factor(tile, fr.x_matrix(w), 1, w.inputs, x)
            fr.product(gates, tile, fr.biases(w, tile), W_x, R_h, sums)
        for k in range(tile.rows):
            for j in range(tile.blocks):
                unit = (tile.block + j) * vf.LANES
                sum_ = vf.load(sums.at + k * sums.row_stride + j * sums.block_stride)
                output = fr.candidate(w, w.default_activations, sum_)
                y_at = s.y[tile.row + k] + t * s.y_step + unit
                vf.store_n(y_at, fr.divided(output), w.hidden - unit)

    @inlined
    def rnn_step(gates, w, s, t, z, tiling):
        for tile in fr.tiles(tiling, fr.share(s, w.blocks), fr.downward(s, t)):
            rnn_tile(gates, w, s, t, z, tile)

    def rnn(w, s, phase, t, z):
        gates = Gates(1, fr.product_1())
        if phase == INPUT:
            fr.input_phase(gates, w, s, t, z)
        elif fr.active(s, t) == 1:
            rnn_step(Gates(1, fr.one_1()), w, s, t, z, fr.tile_one(1))
        else:
            rnn_step(gates, w, s, t, z, fr.tile_rows(fr.active(s, t), 1))

    return rnn
