"""GRU, in both forms: ``csrc/cells/gru.h`` in Numba. For row b, step t and unit, W over x, R over h::

    r = sigmoid(W_r x + R_r h + b_r)                how much of h the candidate sees
    z = sigmoid(W_z x + R_z h + b_z)                how much of h is kept
    n = tanh(W_n x + b_n + r * (R_n h + d_n))       what is written, reset after the product
    n = tanh(W_n x + R_n (r * h) + b_n)             or before it
    h' = (1 - z) * n + z * h                        computed as n + z * (h - n): one FMA

Reset after, the recurrent part of n is a third gate block whose sum begins with d_n, and one product
per step is enough. Reset before, R_n needs all of r * h: a second product waits for the first, and
r * h and z are put aside between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusedrnn.kernels import panel as panels
from fusedrnn.kernels import simd
from fusedrnn.kernels.memory import copy
from fusedrnn.kernels.panel import Factor, Gates, Sums
from fusedrnn.kernels.policy import inlined

__all__ = ["kernel"]


def kernel(isa: str) -> Callable[[Any, Any], None]:
    """The kernel for one instruction set: a function of the two structs."""
    vf = simd.vocabulary(isa)
    panel = panels.functions(isa)

    @inlined
    def gru_shown(n, z, h):
        return vf.fma(z, h, vf.mul(vf.sub(vf.set1(1.0), z), n))

    # x_part: the x-projection of this step's rows.
    @inlined
    def gru_after_tile(gates, w, s, t, x_part, block, blocks, row, rows):
        H = w.hidden
        x_row = w.blocks * w.block_floats
        h, tile = panel.local_rows(), panel.local_sums()

        x_part += row * x_row + block * w.block_floats
        sums = panel.tile_sums(tile, blocks, 3)
        for k in range(rows):
            h[k] = panel.h_before(s, t, row + k)
            for j in range(blocks):  # the x-part of n waits outside the reset
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                copy(sum_, x_part + k * x_row + j * w.block_floats, 2 * vf.LANES)
                vf.store(sum_ + 2 * vf.LANES, vf.load(w.own_bias + (block + j) * vf.LANES))
        R_h = Factor(w.h_panels + block * H * w.block_floats, h, H)
        panel.product(gates, rows, blocks, sums, R_h, panel.nothing_more(h), sums)

        for k in range(rows):
            for j in range(blocks):
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                unit = (block + j) * vf.LANES
                before = vf.load_n(h[k] + unit, H - unit)
                n_x = vf.load(x_part + k * x_row + j * w.block_floats + 2 * vf.LANES)
                if w.plain:
                    shown = gru_after_unit(w, True, sum_, n_x, before)
                else:
                    shown = gru_after_unit(w, False, sum_, n_x, before)
                vf.store_n(s.y[row + k] + t * s.y_step + unit, shown, H - unit)

    @inlined
    def gru_after_unit(w, plain, sum_, n_x, before):
        r = panel.gate(w, plain, vf.load(sum_))
        z = panel.gate(w, plain, vf.load(sum_ + vf.LANES))
        n = panel.written(w, plain, vf.fma(r, vf.load(sum_ + 2 * vf.LANES), n_x))
        return gru_shown(n, z, before)

    @inlined
    def gru_reset_tile(gates, w, s, t, x_part, block, blocks, row, rows):
        """r * h and z, put aside."""
        H = w.hidden
        x_row = w.blocks * w.block_floats
        aside_row = w.blocks * vf.LANES
        reset = s.aside + row * aside_row
        update = reset + s.batch * aside_row
        h, tile = panel.local_rows(), panel.local_sums()

        for k in range(rows):
            h[k] = panel.h_before(s, t, row + k)
        R_h = Factor(w.h_panels + block * H * 2 * vf.LANES, h, H)
        projected = Sums(x_part + row * x_row + block * w.block_floats, x_row, w.block_floats)
        sums = panel.tile_sums(tile, blocks, 2)
        panel.product(gates, rows, blocks, projected, R_h, panel.nothing_more(h), sums)

        for k in range(rows):
            for j in range(blocks):
                sum_ = sums.at + k * sums.row_stride + j * sums.block_stride
                unit = (block + j) * vf.LANES
                before = vf.load_n(h[k] + unit, H - unit)
                r = panel.gate(w, False, vf.load(sum_))
                vf.store(reset + k * aside_row + unit, vf.mul(r, before))
                z = panel.gate(w, False, vf.load(sum_ + vf.LANES))
                vf.store(update + k * aside_row + unit, z)

    @inlined
    def gru_before_tile(gates, w, s, t, x_part, block, blocks, row, rows):
        """n and h', from what was put aside."""
        H = w.hidden
        x_row = w.blocks * w.block_floats
        aside_row = w.blocks * vf.LANES
        reset = s.aside + row * aside_row
        update = reset + s.batch * aside_row
        rh, tile = panel.local_rows(), panel.local_sums()

        for k in range(rows):
            rh[k] = reset + k * aside_row
        R_n = Factor(w.second_panels + block * H * vf.LANES, rh, H)
        x_part += row * x_row + block * w.block_floats + 2 * vf.LANES
        projected = Sums(x_part, x_row, w.block_floats)
        sums = panel.tile_sums(tile, blocks, 1)
        panel.product(gates, rows, blocks, projected, R_n, panel.nothing_more(rh), sums)

        for k in range(rows):
            for j in range(blocks):
                unit = (block + j) * vf.LANES
                before = vf.load_n(panel.h_before(s, t, row + k) + unit, H - unit)
                z = vf.load(update + k * aside_row + unit)
                sum_ = vf.load(sums.at + (k * blocks + j) * vf.LANES)
                n = panel.written(w, False, sum_)
                y_at = s.y[row + k] + t * s.y_step + unit
                vf.store_n(y_at, gru_shown(n, z, before), H - unit)

    def gru(w, s):
        one = Gates(1, panel.product_1())
        two = Gates(2, panel.product_2())
        three = Gates(3, panel.product_3())
        for first in range(0, s.steps, s.chunk):
            steps = min(s.chunk, s.steps - first)
            x_part = s.scratch
            panel.project(three, w, s, first, steps)
            for t in range(first, first + steps):
                active = panel.active(s, t)
                if active == 0:
                    break
                if w.form:
                    tiling = panel.tile_rows(active, two.number)
                    for block, blocks, row, rows in panel.tiles(tiling, w.blocks):
                        gru_reset_tile(two, w, s, t, x_part, block, blocks, row, rows)
                    tiling = panel.tile_rows(active, one.number)
                    for block, blocks, row, rows in panel.tiles(tiling, w.blocks):
                        gru_before_tile(one, w, s, t, x_part, block, blocks, row, rows)
                else:
                    tiling = panel.tile_rows(active, three.number)
                    for block, blocks, row, rows in panel.tiles(tiling, w.blocks):
                        gru_after_tile(three, w, s, t, x_part, block, blocks, row, rows)
                x_part += active * w.blocks * w.block_floats
        panel.keep_state(w, s)

    return gru
