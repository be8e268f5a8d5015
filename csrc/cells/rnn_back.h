/*
 * The backward pass of the vanilla RNN, and of the Clockwork RNN. For row b, step t and unit:
 *
 *   dz = dh * tanh'(the sum)                    and nothing reaches the h before but R^T dz
 *   dz = dh * slope;   dh_before = dh * idle    Clockwork: the record has the slope, 0 in idle units, which hand dh on
 *
 * Layout, fusion and numerics: back.h. The weights that no module of a Clockwork RNN reads are zeros in R, and their
 * gradients are computed with the others: whoever asked sets them to 0.
 */
#ifndef FR_RNN_BACK_H
#define FR_RNN_BACK_H

FR_INLINE void fr_rnn_back_tile(bool clockwork, const fr_panels *w, const fr_back_span *b, int64_t t, const float *z,
                                const fr_tile *tile, fr_back_rows group)
{
    const int64_t H = w->hidden, z_row = w->blocks * b->s->z_block;
    fr_tile_sums memory;
    const fr_sums sums = fr_sums_in(&memory, tile->blocks, 1);
    fr_back_h(w, b, t, H, z, group, tile, sums);
    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const int64_t row = group.first + tile->row + k, unit = (tile->block + j) * VF_LANES;
            const vf dh = vf_load(sums.at + k * sums.row_stride + j * sums.block_stride);
            const float *record = z + row * z_row + unit;
            vf slope, handed_on = vf_set1(0.0f);
            if (clockwork) {
                slope = vf_load_n(record, H - unit);
                if (!fr_resets(b->s, t, row))
                    handed_on = vf_mul(dh, vf_load_n(record + w->blocks * VF_LANES, H - unit));
            } else {
                slope = fr_candidate_slope(w, w->default_activations, vf_load(record)).slope;
            }
            vf_store_n(b->dz + row * b->dz_row + unit, vf_mul(dh, slope), H - unit);
            vf_store_n(b->dh[row] + unit, handed_on, H - unit);
        }
}

FR_INLINE void fr_rnn_back_step(bool clockwork, const fr_panels *w, const fr_back_span *b, int64_t t, const float *z,
                                fr_back_rows group)
{
    const fr_tiling tiling = fr_tile_rows(FR_F32, group.count, 1);
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(b->s, (w->hidden + VF_LANES - 1) / VF_LANES), fr_downward(b->s, t))
        fr_rnn_back_tile(clockwork, w, b, t, z, &tile, group);
}

FR_INLINE void fr_rnn_back_phase(bool clockwork, const fr_panels *w, const fr_back_span *b, int64_t phase, int64_t t,
                                 const float *z)
{
    const int64_t H = w->hidden;
    if (phase == FR_BACK_STEP) {
        fr_rnn_back_step(clockwork, w, b, t, z, fr_back_group(b->s, t, true));
        fr_rnn_back_step(clockwork, w, b, t, z, fr_back_group(b->s, t, false));
    } else if (phase == FR_BACK_STATE) {
        fr_back_state(w, b, H);
    } else if (phase == FR_BACK_WEIGHTS) {
        fr_back_weights(w, b, t);
    } else {
        fr_back_input(w, b, t, H);
    }
}

static void fr_rnn_back(const fr_panels *w, const fr_back_span *b, int64_t phase, int64_t t, const float *z)
{
    fr_rnn_back_phase(false, w, b, phase, t, z);
}

static void fr_clockwork_back(const fr_panels *w, const fr_back_span *b, int64_t phase, int64_t t, const float *z)
{
    fr_rnn_back_phase(true, w, b, phase, t, z);
}

#endif
