"""Clockwork RNN: ``csrc/cells/clockwork.h`` in Numba.

Module m, of units that share the period p_m, is computed in the rows whose step count t is divisible
by p_m, from its own units and those of modules with the same or longer periods::

    h'_m = tanh(W_m x + (sum over modules j with p_j >= p_m of R_mj h_j) + b_m)      where p_m divides t
    h'_m = h_m                                                                       elsewhere

An idle module costs a copy. Rows count for themselves: those of a step that are due are gathered into
tiles by their pointers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusedrnn.kernels import panel as panels
from fusedrnn.kernels import simd
from fusedrnn.kernels.memory import copy, local_integers
from fusedrnn.kernels.panel import MOST_ROWS, Factor, Gates, Sums
from fusedrnn.kernels.policy import inlined

__all__ = ["kernel"]


def kernel(isa: str) -> Callable[[Any, Any], None]:
    """The kernel for one instruction set: a function of the two structs."""
    vf = simd.vocabulary(isa)
    panel = panels.functions(isa)
    local_due = local_integers(MOST_ROWS)

    @inlined
    def clockwork_tile(gates, w, s, t, m, block, blocks, due, rows):
        """The rows of ``due``, in one module's unit blocks."""
        depth = w.hidden - m.reads
        x, h, tile = panel.local_rows(), panel.local_rows(), panel.local_sums()

        for k in range(rows):
            x[k] = s.x[due[k]] + t * s.x_step
            h[k] = panel.h_before(s, t, due[k]) + m.reads
        W_x = Factor(w.x_panels + m.x_start + block * w.inputs * vf.LANES, x, w.inputs)
        R_h = Factor(w.h_panels + m.h_start + block * depth * vf.LANES, h, depth)
        bias = Sums(w.bias + (m.block + block) * vf.LANES, 0, vf.LANES)
        sums = panel.tile_sums(tile, blocks, 1)
        panel.product(gates, rows, blocks, bias, W_x, R_h, sums)
        for k in range(rows):
            for j in range(blocks):
                unit = (block + j) * vf.LANES
                sum_ = vf.load(sums.at + (k * blocks + j) * vf.LANES)
                y_at = s.y[due[k]] + t * s.y_step + m.first + unit
                vf.store_n(y_at, panel.written(w, w.plain, sum_), m.units - unit)

    @inlined
    def clockwork_step(gates, w, s, t, active):
        due = local_due()
        for module in range(w.module_count):
            m = w.modules + module
            blocks_of_module = (m.units + vf.LANES - 1) // vf.LANES
            row = 0
            while row < active:
                count = 0
                while row < active and count < MOST_ROWS:
                    if s.t[row][0] % m.period == 0:
                        due[count] = row
                        count += 1
                    else:
                        y_at = s.y[row] + t * s.y_step + m.first
                        copy(y_at, panel.h_before(s, t, row) + m.first, m.units)
                    row += 1
                if count == 0:
                    continue
                # As many rows as fit one tile of one gate with any instruction set.
                tiling = panel.tile_rows(count, 1)
                for block, blocks, _, _ in panel.tiles(tiling, blocks_of_module):
                    clockwork_tile(gates, w, s, t, m, block, blocks, due, count)
        for row in range(active):
            s.t[row][0] += 1

    def clockwork(w, s):
        gates = Gates(1, panel.product_1())
        for t in range(s.steps):
            active = panel.active(s, t)
            if active == 0:
                break
            clockwork_step(gates, w, s, t, active)
        panel.keep_state(w, s)

    return clockwork
