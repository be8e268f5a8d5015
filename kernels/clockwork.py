"""Clockwork RNN: ``csrc/cells/clockwork.h`` in Numba.

Module m, of units that share the period p_m, is computed in the rows whose step count t is divisible
by p_m, from its own units and those of modules with the same or longer periods::

    h'_m = tanh(W_m x + (sum over modules j with p_j >= p_m of R_mj h_j) + b_m)      where p_m divides t
    h'_m = h_m                                                                       elsewhere

An idle module costs a copy. Rows count for themselves: those of a step that are due are gathered into
tiles by their pointers.
"""

from __future__ import annotations

from fusedrnn.kernels import activations, simd
from fusedrnn.kernels import panel as panels
from fusedrnn.kernels.memory import copy, local_integers
from fusedrnn.kernels.panel import MOST_ROWS, Gates, Sums
from fusedrnn.kernels.policy import Kernel, inlined

__all__ = ["kernel"]


def kernel(isa: str, _form: str) -> Kernel:
    """The kernel for one instruction set; there is one form."""
    vf = simd.vocabulary(isa)
    panel = panels.functions(isa)
    divided = activations.functions(isa).divided
    local_due = local_integers(MOST_ROWS)

    @inlined
    def clockwork_tile(gates, w, s, t, m, at, due):
        """The rows of ``due``, in one module's unit blocks."""
        depth = w.hidden - m.reads
        x, h, tile = panel.local_rows(), panel.local_rows(), panel.local_sums()

        for k in range(at.rows):
            x[k] = s.x[due[k]] + t * s.x_step
            h[k] = panel.h_before(s, t, due[k]) + m.reads
        W_x = panel.factor_at(at, w.x_panels + m.x_start, 1, w.inputs, x)
        R_h = panel.factor_at(at, w.h_panels + m.h_start, 1, depth, h)
        bias = Sums(w.bias + (m.block + at.block) * vf.LANES, 0, vf.LANES)
        sums = panel.tile_sums(tile, at.blocks, 1)
        panel.product(gates, at, bias, W_x, R_h, sums)
        for k in range(at.rows):
            for j in range(at.blocks):
                unit = (at.block + j) * vf.LANES
                sum_ = vf.load(sums.at + (k * at.blocks + j) * vf.LANES)
                shown = panel.written(w, w.plain, sum_)
                y_at = s.y[due[k]] + t * s.y_step + m.first + unit
                vf.store_n(y_at, divided(shown), m.units - unit)

    def clockwork(w, s, phase, t, z):  # there is only FR_STEP
        gates = Gates(1, panel.product_1())
        due = local_due()
        active = panel.active(s, t)
        for module in range(w.module_count):
            m = w.modules + module
            mine = panel.share(s, (m.units + vf.LANES - 1) // vf.LANES)
            held = mine.first * vf.LANES  # where this part's units of the module begin and end
            held_end = min(mine.last * vf.LANES, m.units)
            row = 0
            while row < active:
                count = 0
                while row < active and count < MOST_ROWS:
                    if (s.t[row][0] + t) % m.period == 0:
                        due[count] = row
                        count += 1
                    elif held < held_end:
                        y_at = s.y[row] + t * s.y_step + m.first + held
                        h_at = panel.h_before(s, t, row) + m.first + held
                        copy(y_at, h_at, held_end - held)
                    row += 1
                if count == 0:
                    continue
                tiling = panel.tile_rows(count, 1)
                for at in panel.tiles(tiling, mine, panel.downward(s, t)):
                    clockwork_tile(gates, w, s, t, m, at, due + at.row)

    return clockwork
