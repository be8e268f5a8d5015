"""The backward pass of the LSTM: ``csrc/cells/lstm_back.h`` in Numba. With the values of ``lstm.py``::

    dm  = dh                                             or P^T dh of a projection
    do  = dm * tanh(c') * o'
    dc += dm * o * tanh'(c') + p_o * do                  times 0 where c' is at its limit
    di  = dc * g * i'       df = dc * c * f'       dg = dc * i * g'
    dc_before = dc * f + p_i * di + p_f * df

Coupled, i = 1 - f: there is no di, and df = dc * (c - g) * f'. A record has the sums of the gates and c'.
Layout, fusion and numerics are told in C.
"""

from __future__ import annotations

from fusedrnn.kernels import back, simd
from fusedrnn.kernels.back import FINISH, INPUT, STATE, STEP
from fusedrnn.kernels.lstm import PEEP_F, PEEP_I, PEEP_O
from fusedrnn.kernels.memory import null
from fusedrnn.kernels.policy import BackKernel, inlined
from fusedrnn.kernels.tiles import Gates

__all__ = ["kernel"]


def kernel(isa: str, form: str) -> BackKernel:
    """The backward kernel of one form, "" or "coupled", for one instruction set."""
    vf = simd.vocabulary(isa)
    fr = back.functions(isa)

    @inlined
    def c_before_at(w, s, t, z, row, block):
        """Where c before step t is, of a row and unit block: H - unit floats at least."""
        if fr.resets(s, t, row):
            return s.zeros + block * vf.LANES
        if t == 0:
            return s.c[row] + block * vf.LANES
        record = z + (row - fr.active(s, t - 1)) * w.blocks * s.z_block + block * s.z_block
        return record + w.block_floats

    @inlined
    def lstm_back_unit(w, defaults, coupled, record, block, dm, c_before, dz, m_to, dc_at):
        """The derivative of one row and unit block: dz at ``dz`` and m at ``m_to``, if any; dc is updated."""
        H = w.hidden
        rest = H - block * vf.LANES
        peeps = 0 if defaults else w.peephole
        peephole = w.peepholes + block * 3 * vf.LANES
        i_sum = vf.load(record)
        f_sum = vf.load(record + (0 if coupled else 1) * vf.LANES)
        g_sum = vf.load(record + (1 if coupled else 2) * vf.LANES)
        o_sum = vf.load(record + (2 if coupled else 3) * vf.LANES)
        c = vf.load(record + (3 if coupled else 4) * vf.LANES)

        if peeps & PEEP_I:
            i_sum = vf.fma(vf.load(peephole), c_before, i_sum)
        if peeps & PEEP_F:
            f_sum = vf.fma(vf.load(peephole + vf.LANES), c_before, f_sum)
        if peeps & PEEP_O:
            o_sum = vf.fma(vf.load(peephole + 2 * vf.LANES), c, o_sum)
        f = fr.gate_slope(w, defaults, f_sum)
        g = fr.candidate_slope(w, defaults, g_sum)
        o = fr.gate_slope(w, defaults, o_sum)
        output = fr.tanh_slope(c) if defaults else fr.state_slope(w.output_activation, c)

        do_sum = vf.mul(vf.mul(dm, output.value), o.slope)
        dc = vf.fma(vf.mul(dm, o.value), output.slope, vf.load_n(dc_at, rest))
        if peeps & PEEP_O:
            dc = vf.fma(vf.load(peephole + 2 * vf.LANES), do_sum, dc)
        if not defaults:
            dc = fr.inside(c, w.cell_clip, dc)
        di_sum = dc  # not read where gates are coupled
        if coupled:
            df_sum = vf.mul(vf.mul(dc, vf.sub(c_before, g.value)), f.slope)
            dg_sum = vf.mul(vf.mul(dc, vf.sub(vf.set1(1.0), f.value)), g.slope)
        else:
            i = fr.gate_slope(w, defaults, i_sum)
            di_sum = vf.mul(vf.mul(dc, g.value), i.slope)
            df_sum = vf.mul(vf.mul(dc, c_before), f.slope)
            dg_sum = vf.mul(vf.mul(dc, i.value), g.slope)
            vf.store_n(dz, di_sum, rest)
            dz = dz + H
        vf.store_n(dz, df_sum, rest)
        vf.store_n(dz + H, dg_sum, rest)
        vf.store_n(dz + 2 * H, do_sum, rest)

        dc_before = vf.mul(dc, f.value)
        if peeps & PEEP_I:
            dc_before = vf.fma(vf.load(peephole), di_sum, dc_before)
        if peeps & PEEP_F:
            dc_before = vf.fma(vf.load(peephole + vf.LANES), df_sum, dc_before)
        vf.store_n(dc_at, dc_before, rest)
        if m_to:
            vf.store_n(m_to, vf.mul(o.value, output.value), rest)

    @inlined
    def lstm_back_units(gates, defaults, w, b, t, z, first_row, tile, dm):
        """The derivatives of a tile of dm."""
        H, z_row = w.hidden, w.blocks * b.s.z_block
        projects = not defaults and bool(w.back_dependent_panels)
        for k in range(tile.rows):
            for j in range(tile.blocks):
                row, block = first_row + tile.row + k, tile.block + j
                unit = block * vf.LANES
                dz = b.dz + (row * b.dz_row + unit)
                c_before = vf.load_n(c_before_at(w, b.s, t, z, row, block), H - unit)
                record = z + row * z_row + block * b.s.z_block
                dm_unit = vf.load(dm.at + k * dm.row_stride + j * dm.block_stride)
                m_to = dz + gates * H + w.outputs if projects else null()
                dc_at = b.dc[row] + unit
                lstm_back_unit(
                    w, defaults, gates == 3, record, block, dm_unit, c_before, dz, m_to, dc_at
                )
                if fr.resets(b.s, t, row):  # c before the step is not of the step before
                    vf.store_n(b.dc[row] + unit, vf.set1(0.0), H - unit)

    @inlined
    def lstm_back_tile(one, gates, defaults, w, b, t, z, tile, group):
        """FR_BACK_STEP of one tile: dh, and without a projection all that follows."""
        H = w.hidden
        memory = fr.local_sums()
        sums = fr.sums_in(memory, tile.blocks, 1)
        fr.back_h(one, w, b, t, gates * H, z, group, tile, sums)
        for k in range(tile.rows):
            for j in range(tile.blocks):
                row, unit = group.first + tile.row + k, (tile.block + j) * vf.LANES
                # The product alone reaches h before.
                vf.store_n(b.dh[row] + unit, vf.set1(0.0), w.outputs - unit)
                if not defaults and w.back_dependent_panels:
                    dh = vf.load(sums.at + k * sums.row_stride + j * sums.block_stride)
                    vf.store_n(b.dz + row * b.dz_row + gates * H + unit, dh, w.outputs - unit)
        if defaults or not w.back_dependent_panels:
            lstm_back_units(gates, defaults, w, b, t, z, group.first, tile, sums)

    @inlined
    def lstm_back_step(one, gates, defaults, w, b, t, z):
        mine = fr.share(b.s, (w.outputs + vf.LANES - 1) // vf.LANES)
        for run_on in (True, False):
            group = fr.back_group(b.s, t, run_on)
            tiling = fr.tile_rows(group.rows, 1)
            for tile in fr.tiles(tiling, mine, fr.downward(b.s, t)):
                lstm_back_tile(one, gates, defaults, w, b, t, z, tile, group)

    @inlined
    def lstm_back_finish(one, gates, w, b, t, z):
        """FR_BACK_FINISH, of a projection: dm = P^T dh, after all of dh."""
        tiling = fr.tile_rows(fr.active(b.s, t), 1)
        for tile in fr.tiles(tiling, fr.share(b.s, w.blocks), fr.downward(b.s, t)):
            memory = fr.local_sums()
            dm = fr.sums_in(memory, tile.blocks, 1)
            dh = b.dz + gates * w.hidden
            fr.back_product(one, tile, w.back_dependent_panels, w.outputs, dh, b.dz_row, dm)
            lstm_back_units(gates, False, w, b, t, z, 0, tile, dm)

    @inlined
    def lstm_back_peepholes(gates, w, b, first, z):
        """dp[gate][unit] += the sum over the chunk's rows of the gate's dz times the c that its peephole sees."""
        s = b.s
        H, z_row = w.hidden, w.blocks * s.z_block
        first_block, last_block = fr.share(s, w.blocks)
        for gate in range(3):
            bit = PEEP_I if gate == 0 else PEEP_F if gate == 1 else PEEP_O
            if not w.peephole & bit:
                continue
            at = gates - 1 if gate == 2 else gate - (gates == 3)  # its rows among the sums
            for block in range(first_block, last_block):
                unit = block * vf.LANES
                sum_ = vf.set1(0.0)
                dz, record = b.dz + (at * H + unit), z
                for t in range(first, b.end):
                    for row in range(fr.active(s, t)):
                        if gate == 2:
                            c_at = record + row * z_row + block * s.z_block + w.block_floats
                        else:
                            c_at = c_before_at(w, s, t, record, row, block)
                        c = vf.load_n(c_at, H - unit)
                        sum_ = vf.fma(vf.load_n(dz, H - unit), c, sum_)
                        dz = dz + b.dz_row
                    record = record + fr.active(s, t) * z_row
                to = b.gradients.dp + (gate * H + unit)
                vf.store_n(to, vf.add(vf.load_n(to, H - unit), sum_), H - unit)

    @inlined
    def lstm_back_rest(one, outer, gates, w, b, phase, t, z):
        """Every phase but FR_BACK_STEP: one copy, whatever the activations are."""
        sums_count = gates * w.hidden
        if phase == FINISH:
            lstm_back_finish(one, gates, w, b, t, z)
        elif phase == STATE:
            fr.back_state(one, w, b, sums_count)
        elif phase == INPUT:
            fr.back_input(one, w, b, t, sums_count)
        else:
            fr.back_weights(outer, w, b, t)
            if w.back_dependent_panels:
                dh, m = b.dz + sums_count, fr.back_dz_rows(b, sums_count + w.outputs)
                g = b.gradients
                fr.back_outer(outer, b, dh, w.outputs, m, w.hidden, g.dP, g.dP_row)
            if w.peephole:
                lstm_back_peepholes(gates, w, b, t, z)

    def lstm_back(w, b, phase, t, z):
        one, outer = Gates(1, fr.product_1()), fr.outer()
        if phase != STEP:
            lstm_back_rest(one, outer, 4, w, b, phase, t, z)
        elif w.default_activations:
            lstm_back_step(one, 4, True, w, b, t, z)
        else:
            lstm_back_step(one, 4, False, w, b, t, z)

    def lstm_coupled_back(w, b, phase, t, z):
        one, outer = Gates(1, fr.product_1()), fr.outer()
        if phase == STEP:
            lstm_back_step(one, 3, False, w, b, t, z)
        else:
            lstm_back_rest(one, outer, 3, w, b, phase, t, z)

    return {"": lstm_back, "coupled": lstm_coupled_back}[form]
