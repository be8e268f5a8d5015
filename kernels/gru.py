"""GRU, in both forms: ``csrc/cells/gru.h`` in Numba. For row b, step t and unit, W over x, R over h::

    r = sigmoid(W_r x + R_r h + b_r)                how much of h the candidate sees
    z = sigmoid(W_z x + R_z h + b_z)                how much of h is retained
    n = tanh(W_n x + b_n + r * (R_n h + d_n))       the candidate, reset after the product
    n = tanh(W_n x + R_n (r * h) + b_n)             the candidate, reset before the product
    h' = (1 - z) * n + z * h

Shapes, layout, what is fused and the numerics are told in C.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fusedrnn.kernels import product, simd
from fusedrnn.kernels.policy import Kernel, inlined
from fusedrnn.kernels.product import INPUT, STEP
from fusedrnn.kernels.tiles import Gates, Sums

__all__ = ["kernel"]


class Intermediate(NamedTuple):
    """What a GRU that resets before computes in FR_STEP and reads in FR_FINISH: r * h and z, [B][N * L]."""

    reset: Any
    update: Any
    row_stride: int


def kernel(isa: str, form: str, weights: str) -> Kernel:
    """The kernel of one form, "after" or "before", for one instruction set and type of weights."""
    vf = simd.vocabulary(isa)
    fr = product.functions(isa, weights)

    @inlined
    def gru_output(n, z, h):
        """h' of one row and unit block."""
        common = vf.div(vf.set1(1.0), vf.mul(z.d, n.d))
        added = vf.mul(vf.mul(vf.sub(z.d, z.n), common), n.n)
        return vf.fma(vf.mul(z.n, vf.mul(n.d, common)), h, added)

    @inlined
    def gru_after_tile(gates, defaults, w, s, t, z, tile):
        """FR_STEP of a GRU that resets after, of one tile. z: the input product of this step, or NULL."""
        H = w.hidden
        x, h = fr.local_rows(), fr.local_rows()
        x_memory, memory = fr.local_sums(), fr.local_sums()

        for k in range(tile.rows):
            x[k] = s.x[tile.row + k] + t * s.x_step
            h[k] = fr.h_before(s, t, tile.row + k)
        x_sums = fr.input_sums(w, s, tile, z)
        if not z:
            W_x = fr.tile_factor(tile, fr.x_matrix(w), 3, w.inputs, x)
            x_sums = fr.sums_in(x_memory, tile.blocks, 3)
            fr.product(gates, tile, fr.biases(w, tile), W_x, fr.no_factor(x), x_sums)
        sums = fr.sums_in(memory, tile.blocks, 3)
        for k in range(tile.rows):
            for j in range(tile.blocks):  # W_n x + b_n is added after the reset
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                x_sum = x_sums.at + k * x_sums.row_stride + j * x_sums.block_stride
                vf.store(sum_, vf.load(x_sum))
                vf.store(sum_ + vf.LANES, vf.load(x_sum + vf.LANES))
                vf.store(
                    sum_ + 2 * vf.LANES, vf.load(w.recurrent_bias + (tile.block + j) * vf.LANES)
                )
        R_h = fr.tile_factor(tile, fr.h_matrix(w), 3, H, h)
        fr.product(gates, tile, sums, R_h, fr.no_factor(h), sums)

        for k in range(tile.rows):
            for j in range(tile.blocks):
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                x_sum = x_sums.at + k * x_sums.row_stride + j * x_sums.block_stride
                unit = (tile.block + j) * vf.LANES
                before = vf.load_n(h[k] + unit, H - unit)

                r = fr.divided(fr.gate(w, defaults, vf.load(sum_)))
                update = fr.gate(w, defaults, vf.load(sum_ + vf.LANES))
                n_sum = vf.fma(r, vf.load(sum_ + 2 * vf.LANES), vf.load(x_sum + 2 * vf.LANES))
                n = fr.candidate(w, defaults, n_sum)
                y_at = s.y[tile.row + k] + t * s.y_step + unit
                vf.store_n(y_at, gru_output(n, update, before), H - unit)
                if s.tape:  # the record is r, z and n, and R_n h + d_n
                    vf.store(x_sum, vf.load(sum_))
                    vf.store(x_sum + vf.LANES, vf.load(sum_ + vf.LANES))
                    vf.store(x_sum + 2 * vf.LANES, n_sum)
                    vf.store(x_sum + 3 * vf.LANES, vf.load(sum_ + 2 * vf.LANES))

    @inlined
    def gru_intermediates(w, s):
        row_stride = w.blocks * vf.LANES
        return Intermediate(s.intermediate, s.intermediate + s.batch * row_stride, row_stride)

    @inlined
    def gru_reset_tile(gates, defaults, w, s, t, z, tile):
        """FR_STEP of a GRU that resets before, of one tile: r * h and z. z: the input product of this step."""
        H = w.hidden
        between = gru_intermediates(w, s)
        h, memory = fr.local_rows(), fr.local_sums()

        for k in range(tile.rows):
            h[k] = fr.h_before(s, t, tile.row + k)
        R_h = fr.tile_factor(tile, fr.h_matrix(w), 2, H, h)
        sums = fr.finished_sums(w, s, tile, z, memory, 2)
        fr.product(gates, tile, fr.input_sums(w, s, tile, z), R_h, fr.no_factor(h), sums)

        for k in range(tile.rows):
            for j in range(tile.blocks):
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                unit = (tile.block + j) * vf.LANES
                to = (tile.row + k) * between.row_stride + unit
                r = fr.gate(w, defaults, vf.load(sum_))
                update = fr.gate(w, defaults, vf.load(sum_ + vf.LANES))
                before = vf.load_n(h[k] + unit, H - unit)
                vf.store(between.reset + to, vf.mul(fr.divided(r), before))
                vf.store(between.update + to, fr.divided(update))

    @inlined
    def gru_before_tile(gates, defaults, w, s, t, z, tile):
        """FR_FINISH of a GRU that resets before, of one tile: n and h'. z: the input product of this step."""
        H = w.hidden
        between = gru_intermediates(w, s)
        rh, memory = fr.local_rows(), fr.local_sums()

        for k in range(tile.rows):
            rh[k] = between.reset + (tile.row + k) * between.row_stride
        R_n = fr.tile_factor(tile, fr.dependent_matrix(w), 1, H, rh)
        z_sums = fr.input_sums(w, s, tile, z)
        n_sums = Sums(z_sums.at + 2 * vf.LANES, z_sums.row_stride, z_sums.block_stride)
        sums = n_sums if s.tape else fr.sums_in(memory, tile.blocks, 1)
        fr.product(gates, tile, n_sums, R_n, fr.no_factor(rh), sums)

        for k in range(tile.rows):
            for j in range(tile.blocks):
                row, unit = tile.row + k, (tile.block + j) * vf.LANES
                before = vf.load_n(fr.h_before(s, t, row) + unit, H - unit)
                update = fr.whole(vf.load(between.update + row * between.row_stride + unit))
                n_sum = vf.load(sums.at + k * sums.row_stride + j * sums.block_stride)
                n = fr.candidate(w, defaults, n_sum)
                y_at = s.y[row] + t * s.y_step + unit
                vf.store_n(y_at, gru_output(n, update, before), H - unit)

    @inlined
    def gru_after_step(gates, defaults, w, s, t, z, tiling):
        for tile in fr.tiles(tiling, fr.share(s, w.blocks), fr.downward(s, t)):
            gru_after_tile(gates, defaults, w, s, t, z, tile)

    @inlined
    def gru_reset_step(gates, defaults, w, s, t, z, tiling):
        for tile in fr.tiles(tiling, fr.share(s, w.blocks), fr.downward(s, t)):
            gru_reset_tile(gates, defaults, w, s, t, z, tile)

    @inlined
    def gru_before_step(gates, defaults, w, s, t, z, tiling):
        for tile in fr.tiles(tiling, fr.share(s, w.blocks), fr.downward(s, t)):
            gru_before_tile(gates, defaults, w, s, t, z, tile)

    @inlined
    def gru_after_rows(gates, gates_of_one, defaults, w, s, t, z):
        if fr.active(s, t) == 1:
            gru_after_step(gates_of_one, defaults, w, s, t, z, fr.tile_one(3))
        else:
            gru_after_step(gates, defaults, w, s, t, z, fr.tile_rows(fr.active(s, t), 3))

    @inlined
    def gru_reset_rows(gates, gates_of_one, defaults, w, s, t, z):
        if fr.active(s, t) == 1:
            gru_reset_step(gates_of_one, defaults, w, s, t, z, fr.tile_one(2))
        else:
            gru_reset_step(gates, defaults, w, s, t, z, fr.tile_rows(fr.active(s, t), 2))

    @inlined
    def gru_before_rows(gates, gates_of_one, defaults, w, s, t, z):
        if fr.active(s, t) == 1:
            gru_before_step(gates_of_one, defaults, w, s, t, z, fr.tile_one(1))
        else:
            gru_before_step(gates, defaults, w, s, t, z, fr.tile_rows(fr.active(s, t), 1))

    def gru_after(w, s, phase, t, z):
        three, three_of_one = Gates(3, fr.product_3()), Gates(3, fr.one_3())
        if phase == INPUT:
            fr.input_phase(three, w, s, t, z)
        elif w.default_activations:
            gru_after_rows(three, three_of_one, True, w, s, t, z)
        else:
            gru_after_rows(three, three_of_one, False, w, s, t, z)

    def gru_before(w, s, phase, t, z):
        one, one_of_one = Gates(1, fr.product_1()), Gates(1, fr.one_1())
        two, two_of_one = Gates(2, fr.product_2()), Gates(2, fr.one_2())
        if phase == INPUT:
            fr.input_phase(Gates(3, fr.product_3()), w, s, t, z)
        elif phase == STEP and w.default_activations:
            gru_reset_rows(two, two_of_one, True, w, s, t, z)
        elif phase == STEP:
            gru_reset_rows(two, two_of_one, False, w, s, t, z)
        elif w.default_activations:
            gru_before_rows(one, one_of_one, True, w, s, t, z)
        else:
            gru_before_rows(one, one_of_one, False, w, s, t, z)

    return {"after": gru_after, "before": gru_before}[form]
