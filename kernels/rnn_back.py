"""The backward pass of the vanilla RNN, and of the Clockwork RNN: ``csrc/cells/rnn_back.h`` in Numba::

    dz = dh * tanh'(the sum)                    and nothing reaches the h before but R^T dz
    dz = dh * slope;   dh_before = dh * idle    Clockwork: the record has the slope, 0 in idle units, which hand dh on

Layout, fusion and numerics are told in C.
"""

from __future__ import annotations

from fusedrnn.kernels import back, simd
from fusedrnn.kernels.back import INPUT, STATE, STEP
from fusedrnn.kernels.policy import BackKernel, inlined
from fusedrnn.kernels.tiles import Gates

__all__ = ["kernel", "kernels"]


def kernels(isa: str) -> dict[str, BackKernel]:
    """The backward kernels of both cells, by name, for one instruction set."""
    vf = simd.vocabulary(isa)
    fr = back.functions(isa)

    @inlined
    def rnn_back_tile(one, clockwork, w, b, t, z, tile, group):
        H, z_row = w.hidden, w.blocks * b.s.z_block
        memory = fr.local_sums()
        sums = fr.sums_in(memory, tile.blocks, 1)
        fr.back_h(one, w, b, t, H, z, group, tile, sums)
        for k in range(tile.rows):
            for j in range(tile.blocks):
                row, unit = group.first + tile.row + k, (tile.block + j) * vf.LANES
                dh = vf.load(sums.at + k * sums.row_stride + j * sums.block_stride)
                record = z + row * z_row + unit
                handed_on = vf.set1(0.0)
                if clockwork:
                    slope = vf.load_n(record, H - unit)
                    if not fr.resets(b.s, t, row):
                        idle = vf.load_n(record + w.blocks * vf.LANES, H - unit)
                        handed_on = vf.mul(dh, idle)
                else:
                    slope = fr.candidate_slope(w, w.default_activations, vf.load(record)).slope
                vf.store_n(b.dz + row * b.dz_row + unit, vf.mul(dh, slope), H - unit)
                vf.store_n(b.dh[row] + unit, handed_on, H - unit)

    @inlined
    def rnn_back_step(one, clockwork, w, b, t, z):
        mine = fr.share(b.s, (w.hidden + vf.LANES - 1) // vf.LANES)
        for run_on in (True, False):
            group = fr.back_group(b.s, t, run_on)
            tiling = fr.tile_rows(group.rows, 1)
            for tile in fr.tiles(tiling, mine, fr.downward(b.s, t)):
                rnn_back_tile(one, clockwork, w, b, t, z, tile, group)

    @inlined
    def rnn_back_phase(one, outer, clockwork, w, b, phase, t, z):
        H = w.hidden
        if phase == STEP:
            rnn_back_step(one, clockwork, w, b, t, z)
        elif phase == STATE:
            fr.back_state(one, w, b, H)
        elif phase == INPUT:
            fr.back_input(one, w, b, t, H)
        else:
            fr.back_weights(outer, w, b, t)

    def rnn_back(w, b, phase, t, z):
        rnn_back_phase(Gates(1, fr.product_1()), fr.outer(), False, w, b, phase, t, z)

    def clockwork_back(w, b, phase, t, z):
        rnn_back_phase(Gates(1, fr.product_1()), fr.outer(), True, w, b, phase, t, z)

    return {"rnn": rnn_back, "clockwork": clockwork_back}


def kernel(isa: str, _form: str) -> BackKernel:
    """The backward kernel of the RNN for one instruction set; there is one form."""
    return kernels(isa)["rnn"]
