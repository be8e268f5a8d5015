"""Clockwork RNN: ``csrc/cells/clockwork.h`` in Numba.

Module m, of units that share the period p_m, is computed in the rows whose step count t is divisible
by p_m, from its own units and those of modules with the same or longer periods::

    h'_m = tanh(W_m x + (sum over modules j with p_j >= p_m of R_mj h_j) + b_m)      where p_m divides t
    h'_m = h_m                                                                       elsewhere

Shapes, layout, what is fused and the numerics are told in C.
"""

from __future__ import annotations

from fusedrnn.kernels import simd, slopes
from fusedrnn.kernels.memory import copy, local_integers
from fusedrnn.kernels.policy import Kernel, inlined
from fusedrnn.kernels.tiles import MAX_ROWS, Gates, Sums

__all__ = ["kernel"]


def kernel(isa: str, _form: str, weights: str) -> Kernel:
    """The kernel for one instruction set and type of weights; there is one form."""
    vf = simd.vocabulary(isa)
    fr = slopes.functions(isa, weights)
    local_due = local_integers(MAX_ROWS)

    @inlined
    def clockwork_record(w, z, row):
        """The record of a row: the slope of each unit's activation, 0 in idle units, and behind them 1 in idle units."""
        return z + row * 2 * w.blocks * vf.LANES

    @inlined
    def clockwork_idle(w, s, t, z, row, begin, end):
        """The units of an idle module, from ``begin`` to ``end``: h' = h."""
        copy(s.y[row] + t * s.y_step + begin, fr.h_before(s, t, row) + begin, end - begin)
        if s.tape:
            record = clockwork_record(w, z, row)
            for unit in range(begin, end):
                record[unit] = 0.0
                record[w.blocks * vf.LANES + unit] = 1.0

    @inlined
    def steps_before(s, t, row):
        """The number of steps that a row has made before step t."""
        since = s.since[row][t * s.since_step] if s.since else -1
        return since if since >= 0 else s.t[row][0] + t

    @inlined
    def clockwork_tile(gates, w, s, t, z, m, tile, due):
        """FR_STEP of one tile of a module, for the rows of ``due``."""
        depth = w.hidden - m.reads
        x, h, memory = fr.local_rows(), fr.local_rows(), fr.local_sums()

        for k in range(tile.rows):
            x[k] = s.x[due[k]] + t * s.x_step
            h[k] = fr.h_before(s, t, due[k]) + m.reads
        W_x = fr.tile_factor(tile, fr.x_module(w, m), 1, w.inputs, x)
        R_h = fr.tile_factor(tile, fr.h_module(w, m), 1, depth, h)
        bias = Sums(w.bias + (m.block + tile.block) * vf.LANES, 0, vf.LANES)
        sums = fr.sums_in(memory, tile.blocks, 1)
        fr.product(gates, tile, bias, W_x, R_h, sums)
        for k in range(tile.rows):
            for j in range(tile.blocks):
                unit = (tile.block + j) * vf.LANES
                sum_ = vf.load(sums.at + (k * tile.blocks + j) * vf.LANES)
                output = fr.candidate(w, w.default_activations, sum_)
                y_at = s.y[due[k]] + t * s.y_step + m.first + unit
                vf.store_n(y_at, fr.divided(output), m.units - unit)
                if s.tape:
                    active = fr.candidate_slope(w, w.default_activations, sum_)
                    record = clockwork_record(w, z, due[k]) + m.first + unit
                    vf.store_n(record, active.slope, m.units - unit)
                    vf.store_n(record + w.blocks * vf.LANES, vf.set1(0.0), m.units - unit)

    def clockwork(w, s, phase, t, z):  # there is only FR_STEP
        gates = Gates(1, fr.product_1())
        due = local_due()
        active = fr.active(s, t)
        for module in range(w.module_count):
            m = w.modules + module
            mine = fr.share(s, (m.units + vf.LANES - 1) // vf.LANES)
            begin = mine.first * vf.LANES  # the units of the module that are in this share
            end = min(mine.last * vf.LANES, m.units)
            row = 0
            while row < active:
                count = 0
                while row < active and count < MAX_ROWS:
                    if steps_before(s, t, row) % m.period == 0:
                        due[count] = row
                        count += 1
                    elif begin < end:
                        clockwork_idle(w, s, t, z, row, m.first + begin, m.first + end)
                    row += 1
                if count == 0:
                    continue
                tiling = fr.tile_rows(count, 1)
                for tile in fr.tiles(tiling, mine, fr.downward(s, t)):
                    clockwork_tile(gates, w, s, t, z, m, tile, due + tile.row)

    return clockwork
