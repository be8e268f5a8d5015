"""GRU, in both forms: ``csrc/cells/gru.h`` in Numba. For row b, step t and unit, W over x, R over h::

    r = sigmoid(W_r x + R_r h + b_r)                how much of h the candidate sees
    z = sigmoid(W_z x + R_z h + b_z)                how much of h is kept
    n = tanh(W_n x + b_n + r * (R_n h + d_n))       what is written, reset after the product
    n = tanh(W_n x + R_n (r * h) + b_n)             or before it
    h' = (1 - z) * n + z * h

Reset after, the recurrent part of n is a third gate block whose sum begins with d_n, and one product
per step is enough. Reset before, R_n needs all of r * h: a second product waits for the first, and
r * h and z are put aside between the two. Gates are quotients (activations.py): reset after, r takes
one division, and h' one for z and n together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fusedrnn.kernels import activations, simd
from fusedrnn.kernels import panel as panels
from fusedrnn.kernels.panel import PROJECT, STEP, Gates, Sums
from fusedrnn.kernels.policy import Kernel, inlined

__all__ = ["kernel"]


class Aside(NamedTuple):
    """What is put aside, [row][unit]: r * h, and z, its sum through its activation."""

    reset: Any
    update: Any
    row: int


def kernel(isa: str, form: str) -> Kernel:
    """The kernel of one form, "after" or "before", for one instruction set."""
    vf = simd.vocabulary(isa)
    panel = panels.functions(isa)
    activation = activations.functions(isa)
    divided, whole = activation.divided, activation.whole

    @inlined
    def gru_shown(n, z, h):
        """h' of one row and unit block."""
        common = vf.div(vf.set1(1.0), vf.mul(z.d, n.d))
        written = vf.mul(vf.mul(vf.sub(z.d, z.n), common), n.n)
        return vf.fma(vf.mul(z.n, vf.mul(n.d, common)), h, written)

    @inlined
    def gru_after_tile(gates, plain, w, s, t, z, at):
        """FR_STEP of a GRU that resets after. z: the x-projection of this step's rows, or NULL."""
        H = w.hidden
        x, h = panel.local_rows(), panel.local_rows()
        x_tile, tile = panel.local_sums(), panel.local_sums()

        for k in range(at.rows):
            x[k] = s.x[at.row + k] + t * s.x_step
            h[k] = panel.h_before(s, t, at.row + k)
        x_sums = panel.projected(w, at, z)
        if not z:
            W_x = panel.factor_at(at, w.x_panels, 3, w.inputs, x)
            x_sums = panel.tile_sums(x_tile, at.blocks, 3)
            panel.product(gates, at, panel.biases(w, at), W_x, panel.nothing_more(x), x_sums)
        sums = panel.tile_sums(tile, at.blocks, 3)
        for k in range(at.rows):
            for j in range(at.blocks):  # the x-part of n waits outside the reset
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                x_sum = x_sums.at + k * x_sums.row_stride + j * x_sums.block_stride
                vf.store(sum_, vf.load(x_sum))
                vf.store(sum_ + vf.LANES, vf.load(x_sum + vf.LANES))
                vf.store(sum_ + 2 * vf.LANES, vf.load(w.own_bias + (at.block + j) * vf.LANES))
        R_h = panel.factor_at(at, w.h_panels, 3, H, h)
        panel.product(gates, at, sums, R_h, panel.nothing_more(h), sums)

        for k in range(at.rows):
            for j in range(at.blocks):
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                x_sum = x_sums.at + k * x_sums.row_stride + j * x_sums.block_stride
                unit = (at.block + j) * vf.LANES
                before = vf.load_n(h[k] + unit, H - unit)

                r = divided(panel.gate(w, plain, vf.load(sum_)))
                update = panel.gate(w, plain, vf.load(sum_ + vf.LANES))
                n_sum = vf.fma(r, vf.load(sum_ + 2 * vf.LANES), vf.load(x_sum + 2 * vf.LANES))
                n = panel.written(w, plain, n_sum)
                y_at = s.y[at.row + k] + t * s.y_step + unit
                vf.store_n(y_at, gru_shown(n, update, before), H - unit)

    @inlined
    def gru_put_aside(w, s):
        row = w.blocks * vf.LANES
        return Aside(s.aside, s.aside + s.batch * row, row)

    @inlined
    def gru_reset_tile(gates, w, s, t, z, at):
        """FR_STEP of a GRU that resets before: r * h and z, put aside."""
        H = w.hidden
        aside = gru_put_aside(w, s)
        h, tile = panel.local_rows(), panel.local_sums()

        for k in range(at.rows):
            h[k] = panel.h_before(s, t, at.row + k)
        R_h = panel.factor_at(at, w.h_panels, 2, H, h)
        sums = panel.tile_sums(tile, at.blocks, 2)
        panel.product(gates, at, panel.projected(w, at, z), R_h, panel.nothing_more(h), sums)

        for k in range(at.rows):
            for j in range(at.blocks):
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                unit = (at.block + j) * vf.LANES
                to = (at.row + k) * aside.row + unit
                r = panel.gate(w, False, vf.load(sum_))
                update = panel.gate(w, False, vf.load(sum_ + vf.LANES))
                before = vf.load_n(h[k] + unit, H - unit)
                vf.store(aside.reset + to, vf.mul(divided(r), before))
                vf.store(aside.update + to, divided(update))

    @inlined
    def gru_before_tile(gates, w, s, t, z, at):
        """FR_FINISH of a GRU that resets before: n and h', from what was put aside."""
        H = w.hidden
        aside = gru_put_aside(w, s)
        rh, tile = panel.local_rows(), panel.local_sums()

        for k in range(at.rows):
            rh[k] = aside.reset + (at.row + k) * aside.row
        R_n = panel.factor_at(at, w.second_panels, 1, H, rh)
        gates_part = panel.projected(w, at, z)
        n_part = Sums(gates_part.at + 2 * vf.LANES, gates_part.row_stride, gates_part.block_stride)
        sums = panel.tile_sums(tile, at.blocks, 1)
        panel.product(gates, at, n_part, R_n, panel.nothing_more(rh), sums)

        for k in range(at.rows):
            for j in range(at.blocks):
                row, unit = at.row + k, (at.block + j) * vf.LANES
                before = vf.load_n(panel.h_before(s, t, row) + unit, H - unit)
                update = whole(vf.load(aside.update + row * aside.row + unit))
                n = panel.written(w, False, vf.load(sums.at + (k * at.blocks + j) * vf.LANES))
                y_at = s.y[row] + t * s.y_step + unit
                vf.store_n(y_at, gru_shown(n, update, before), H - unit)

    @inlined
    def gru_after_step(gates, plain, w, s, t, z, tiling):
        for at in panel.tiles(tiling, panel.share(s, w.blocks), panel.downward(s, t)):
            gru_after_tile(gates, plain, w, s, t, z, at)

    @inlined
    def gru_reset_step(gates, w, s, t, z, tiling):
        for at in panel.tiles(tiling, panel.share(s, w.blocks), panel.downward(s, t)):
            gru_reset_tile(gates, w, s, t, z, at)

    @inlined
    def gru_before_step(gates, w, s, t, z, tiling):
        for at in panel.tiles(tiling, panel.share(s, w.blocks), panel.downward(s, t)):
            gru_before_tile(gates, w, s, t, z, at)

    @inlined
    def gru_after_rows(gates, gates_of_one, plain, w, s, t, z):
        if panel.active(s, t) == 1:
            gru_after_step(gates_of_one, plain, w, s, t, z, panel.tile_one(3))
        else:
            gru_after_step(gates, plain, w, s, t, z, panel.tile_rows(panel.active(s, t), 3))

    @inlined
    def gru_reset_rows(gates, gates_of_one, w, s, t, z):
        if panel.active(s, t) == 1:
            gru_reset_step(gates_of_one, w, s, t, z, panel.tile_one(2))
        else:
            gru_reset_step(gates, w, s, t, z, panel.tile_rows(panel.active(s, t), 2))

    @inlined
    def gru_before_rows(gates, gates_of_one, w, s, t, z):
        if panel.active(s, t) == 1:
            gru_before_step(gates_of_one, w, s, t, z, panel.tile_one(1))
        else:
            gru_before_step(gates, w, s, t, z, panel.tile_rows(panel.active(s, t), 1))

    def gru_after(w, s, phase, t, z):
        three, three_of_one = Gates(3, panel.product_3()), Gates(3, panel.one_3())
        if phase == PROJECT:
            panel.project(three, w, s, t, z)
        elif w.plain:
            gru_after_rows(three, three_of_one, True, w, s, t, z)
        else:
            gru_after_rows(three, three_of_one, False, w, s, t, z)

    def gru_before(w, s, phase, t, z):
        one, one_of_one = Gates(1, panel.product_1()), Gates(1, panel.one_1())
        two, two_of_one = Gates(2, panel.product_2()), Gates(2, panel.one_2())
        if phase == PROJECT:
            panel.project(Gates(3, panel.product_3()), w, s, t, z)
        elif phase == STEP:
            gru_reset_rows(two, two_of_one, w, s, t, z)
        else:
            gru_before_rows(one, one_of_one, w, s, t, z)

    return {"after": gru_after, "before": gru_before}[form]
