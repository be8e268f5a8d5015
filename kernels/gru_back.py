"""The backward pass of the GRU, in both forms: ``csrc/cells/gru_back.h`` in Numba. With the values of ``gru.py``::

    dz = dh * (h - n) * z'          dn = dh * (1 - z) * n'
    after:   dr = dn * (R_n h + d_n) * r'                        dh_before = dh * z + R^T [dr, dz, r * dn]
    before:  q = R_n^T dn;  dr = q * h * r'                      dh_before = dh * z + r * q + R_rz^T [dr, dz]

Layout, fusion and numerics are told in C.
"""

from __future__ import annotations

from fusedrnn.kernels import back, simd
from fusedrnn.kernels.back import FINISH, INPUT, STATE, STEP, WEIGHTS
from fusedrnn.kernels.policy import BackKernel, inlined
from fusedrnn.kernels.tiles import Gates

__all__ = ["kernel"]


def kernel(isa: str, form: str) -> BackKernel:
    """The backward kernel of one form, "after" or "before", for one instruction set."""
    vf = simd.vocabulary(isa)
    fr = back.functions(isa)

    @inlined
    def gru_back_tile(one, after, defaults, w, b, t, z, tile, group):
        """FR_BACK_STEP of one tile."""
        H, z_row = w.hidden, w.blocks * b.s.z_block
        memory = fr.local_sums()
        sums = fr.sums_in(memory, tile.blocks, 1)
        fr.back_h(one, w, b, t, (3 if after else 2) * H, z, group, tile, sums)
        for k in range(tile.rows):
            for j in range(tile.blocks):
                row, block = group.first + tile.row + k, tile.block + j
                unit = block * vf.LANES
                rest = H - unit
                record = z + row * z_row + block * b.s.z_block
                dz = b.dz + (row * b.dz_row + unit)
                dh = vf.load(sums.at + k * sums.row_stride + j * sums.block_stride)
                before = vf.load_n(fr.h_before(b.s, t, row) + unit, rest)
                update = fr.gate_slope(w, defaults, vf.load(record + vf.LANES))
                n = fr.candidate_slope(w, defaults, vf.load(record + 2 * vf.LANES))

                dz_sum = vf.mul(vf.mul(dh, vf.sub(before, n.value)), update.slope)
                dn_sum = vf.mul(vf.mul(dh, vf.sub(vf.set1(1.0), update.value)), n.slope)
                vf.store_n(dz + H, dz_sum, rest)
                if after:
                    r = fr.gate_slope(w, defaults, vf.load(record))
                    R_h = vf.load(record + 3 * vf.LANES)
                    vf.store_n(dz, vf.mul(vf.mul(dn_sum, R_h), r.slope), rest)
                    vf.store_n(dz + 2 * H, vf.mul(r.value, dn_sum), rest)
                    vf.store_n(dz + 3 * H, dn_sum, rest)
                else:
                    vf.store_n(dz + 2 * H, dn_sum, rest)
                # Reset before, FR_BACK_FINISH adds r * q: a reset is heeded there.
                handed_on = vf.mul(dh, update.value)
                if after and fr.resets(b.s, t, row):
                    handed_on = vf.set1(0.0)
                vf.store_n(b.dh[row] + unit, handed_on, rest)

    @inlined
    def gru_back_step(one, after, defaults, w, b, t, z):
        for run_on in (True, False):
            group = fr.back_group(b.s, t, run_on)
            tiling = fr.tile_rows(group.rows, 1)
            for tile in fr.tiles(tiling, fr.share(b.s, w.blocks), fr.downward(b.s, t)):
                gru_back_tile(one, after, defaults, w, b, t, z, tile, group)

    @inlined
    def gru_back_finish(one, defaults, w, b, t, z):
        """FR_BACK_FINISH of a GRU that resets before: q, and what follows from it."""
        H, z_row = w.hidden, w.blocks * b.s.z_block
        tiling = fr.tile_rows(fr.active(b.s, t), 1)
        for tile in fr.tiles(tiling, fr.share(b.s, w.blocks), fr.downward(b.s, t)):
            memory = fr.local_sums()
            sums = fr.sums_in(memory, tile.blocks, 1)
            fr.back_product(one, tile, w.back_dependent_panels, H, b.dz + 2 * H, b.dz_row, sums)
            for k in range(tile.rows):
                for j in range(tile.blocks):
                    row, block = tile.row + k, tile.block + j
                    unit = block * vf.LANES
                    rest = H - unit
                    dz = b.dz + (row * b.dz_row + unit)
                    q = vf.load(sums.at + k * sums.row_stride + j * sums.block_stride)
                    before = vf.load_n(fr.h_before(b.s, t, row) + unit, rest)
                    record = z + row * z_row + block * b.s.z_block
                    r = fr.gate_slope(w, defaults, vf.load(record))
                    vf.store_n(dz, vf.mul(vf.mul(q, before), r.slope), rest)
                    vf.store_n(dz + 3 * H, vf.mul(r.value, before), rest)
                    handed_on = vf.fma(r.value, q, vf.load_n(b.dh[row] + unit, rest))
                    if fr.resets(b.s, t, row):
                        handed_on = vf.set1(0.0)
                    vf.store_n(b.dh[row] + unit, handed_on, rest)

    @inlined
    def gru_after_back_weights(outer, w, b, first):
        H, X = w.hidden, w.inputs
        g = b.gradients
        x = fr.back_x_rows(b, first)
        dW_n = g.dW + 2 * H * g.dW_row
        fr.back_outer(outer, b, b.dz, 2 * H, x, X, g.dW, g.dW_row)
        fr.back_outer(outer, b, b.dz + 3 * H, H, x, X, dW_n, g.dW_row)
        fr.back_outer(outer, b, b.dz, 3 * H, fr.back_h_rows(b, first), H, g.dR, g.dR_row)
        fr.back_sum(b, b.dz, 2 * H, g.db)
        fr.back_sum(b, b.dz + 3 * H, H, g.db + 2 * H)
        fr.back_sum(b, b.dz + 2 * H, H, g.dd)

    @inlined
    def gru_before_back_weights(outer, w, b, first):
        H = w.hidden
        g = b.gradients
        dR_n = g.dR + 2 * H * g.dR_row
        fr.back_outer(outer, b, b.dz, 3 * H, fr.back_x_rows(b, first), w.inputs, g.dW, g.dW_row)
        fr.back_outer(outer, b, b.dz, 2 * H, fr.back_h_rows(b, first), H, g.dR, g.dR_row)
        fr.back_outer(outer, b, b.dz + 2 * H, H, fr.back_dz_rows(b, 3 * H), H, dR_n, g.dR_row)
        fr.back_sum(b, b.dz, 3 * H, g.db)

    @inlined
    def gru_back_chunk(one, after, w, b, phase, t):
        """The phases that both forms have after the steps, but FR_BACK_WEIGHTS."""
        H = w.hidden
        if phase == STATE:
            fr.back_state(one, w, b, (3 if after else 2) * H)
        elif phase == INPUT:
            fr.back_input(one, w, b, t, (2 if after else 3) * H)

    def gru_after_back(w, b, phase, t, z):
        one, outer = Gates(1, fr.product_1()), fr.outer()
        if phase == WEIGHTS:
            gru_after_back_weights(outer, w, b, t)
        elif phase != STEP:
            gru_back_chunk(one, True, w, b, phase, t)
        elif w.default_activations:
            gru_back_step(one, True, True, w, b, t, z)
        else:
            gru_back_step(one, True, False, w, b, t, z)

    def gru_before_back(w, b, phase, t, z):
        one, outer = Gates(1, fr.product_1()), fr.outer()
        if phase == WEIGHTS:
            gru_before_back_weights(outer, w, b, t)
        elif phase == FINISH:
            gru_back_finish(one, w.default_activations, w, b, t, z)
        elif phase != STEP:
            gru_back_chunk(one, False, w, b, phase, t)
        elif w.default_activations:
            gru_back_step(one, False, True, w, b, t, z)
        else:
            gru_back_step(one, False, False, w, b, t, z)

    return {"after": gru_after_back, "before": gru_before_back}[form]
