/*
 * The backward pass of the GRU, in both forms. For row b, step t and unit, with the values of gru.h:
 *
 *   dz = dh * (h - n) * z'          dn = dh * (1 - z) * n'
 *   after:   dr = dn * (R_n h + d_n) * r'                        dh_before = dh * z + R^T [dr, dz, r * dn]
 *   before:  q = R_n^T dn;  dr = q * h * r'                      dh_before = dh * z + r * q + R_rz^T [dr, dz]
 *
 * Layout, fusion and numerics: back.h. Reset after, n's gradient for R and d_n is r * dn: it is among the sums of a row
 * of dz, and dn, for W and b_n, behind them. Reset before, q needs dn of all units: FR_BACK_FINISH is the rest of the
 * step. It leaves r * h in the row of dz, which R_n's gradient is a product with. A record has the sums of r, z and n,
 * and of a GRU that resets after R_n h + d_n.
 */
#ifndef FR_GRU_BACK_H
#define FR_GRU_BACK_H

/* FR_BACK_STEP of one tile. */
FR_INLINE void fr_gru_back_tile(bool after, bool defaults, const fr_panels *w, const fr_back_span *b, int64_t t,
                                const float *z, const fr_tile *tile, fr_back_rows group)
{
    const int64_t H = w->hidden, z_row = w->blocks * b->s->z_block;
    fr_tile_sums memory;
    const fr_sums sums = fr_sums_in(&memory, tile->blocks, 1);
    fr_back_h(w, b, t, (after ? 3 : 2) * H, z, group, tile, sums);
    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const int64_t row = group.first + tile->row + k, block = tile->block + j, unit = block * VF_LANES;
            const int64_t rest = H - unit;
            const float *record = z + row * z_row + block * b->s->z_block;
            float *dz = b->dz + row * b->dz_row + unit;
            const vf dh = vf_load(sums.at + k * sums.row_stride + j * sums.block_stride);
            const vf before = vf_load_n(fr_h_before(b->s, t, row) + unit, rest);
            const fr_slope update = fr_gate_slope(w, defaults, vf_load(record + VF_LANES));
            const fr_slope n = fr_candidate_slope(w, defaults, vf_load(record + 2 * VF_LANES));

            const vf dz_sum = vf_mul(vf_mul(dh, vf_sub(before, n.value)), update.slope);
            const vf dn_sum = vf_mul(vf_mul(dh, vf_sub(vf_set1(1.0f), update.value)), n.slope);
            vf_store_n(dz + H, dz_sum, rest);
            if (after) {
                const fr_slope r = fr_gate_slope(w, defaults, vf_load(record));
                vf_store_n(dz, vf_mul(vf_mul(dn_sum, vf_load(record + 3 * VF_LANES)), r.slope), rest);
                vf_store_n(dz + 2 * H, vf_mul(r.value, dn_sum), rest);
                vf_store_n(dz + 3 * H, dn_sum, rest);
            } else {
                vf_store_n(dz + 2 * H, dn_sum, rest);
            }
            /* Reset before, FR_BACK_FINISH adds r * q: a reset is heeded there. */
            const bool ends = after && fr_resets(b->s, t, row);
            vf_store_n(b->dh[row] + unit, ends ? vf_set1(0.0f) : vf_mul(dh, update.value), rest);
        }
}

FR_INLINE void fr_gru_back_step(bool after, bool defaults, const fr_panels *w, const fr_back_span *b, int64_t t,
                                const float *z, fr_back_rows group)
{
    const fr_tiling tiling = fr_tile_rows(FR_F32, group.count, 1);
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(b->s, w->blocks), fr_downward(b->s, t))
        fr_gru_back_tile(after, defaults, w, b, t, z, &tile, group);
}

/* FR_BACK_FINISH of a GRU that resets before: q, and what follows from it. */
FR_INLINE void fr_gru_back_finish(bool defaults, const fr_panels *w, const fr_back_span *b, int64_t t, const float *z)
{
    const int64_t H = w->hidden, z_row = w->blocks * b->s->z_block;
    const fr_tiling tiling = fr_tile_rows(FR_F32, fr_active(b->s, t), 1);
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(b->s, w->blocks), fr_downward(b->s, t)) {
        fr_tile_sums memory;
        const fr_sums sums = fr_sums_in(&memory, tile.blocks, 1);
        fr_back_product(&tile, w->back_dependent_panels, H, b->dz + 2 * H, b->dz_row, sums);
        for (int64_t k = 0; k < tile.rows; k++)
            for (int64_t j = 0; j < tile.blocks; j++) {
                const int64_t row = tile.row + k, block = tile.block + j, unit = block * VF_LANES, rest = H - unit;
                float *dz = b->dz + row * b->dz_row + unit;
                const vf q = vf_load(sums.at + k * sums.row_stride + j * sums.block_stride);
                const vf before = vf_load_n(fr_h_before(b->s, t, row) + unit, rest);
                const fr_slope r = fr_gate_slope(w, defaults, vf_load(z + row * z_row + block * b->s->z_block));
                vf_store_n(dz, vf_mul(vf_mul(q, before), r.slope), rest);
                vf_store_n(dz + 3 * H, vf_mul(r.value, before), rest);
                const vf handed_on = vf_fma(r.value, q, vf_load_n(b->dh[row] + unit, rest));
                vf_store_n(b->dh[row] + unit, fr_resets(b->s, t, row) ? vf_set1(0.0f) : handed_on, rest);
            }
    }
}

FR_INLINE void fr_gru_after_back_weights(const fr_panels *w, const fr_back_span *b, int64_t first)
{
    const int64_t H = w->hidden, X = w->inputs;
    const fr_weight_gradients *g = &b->gradients;
    const float *const *x = fr_back_x_rows(b, first);
    fr_back_outer(b, b->dz, 2 * H, x, X, g->dW, g->dW_row);
    fr_back_outer(b, b->dz + 3 * H, H, x, X, g->dW + 2 * H * g->dW_row, g->dW_row);
    fr_back_outer(b, b->dz, 3 * H, fr_back_h_rows(b, first), H, g->dR, g->dR_row);
    fr_back_sum(b, b->dz, 2 * H, g->db);
    fr_back_sum(b, b->dz + 3 * H, H, g->db + 2 * H);
    fr_back_sum(b, b->dz + 2 * H, H, g->dd);
}

FR_INLINE void fr_gru_before_back_weights(const fr_panels *w, const fr_back_span *b, int64_t first)
{
    const int64_t H = w->hidden;
    const fr_weight_gradients *g = &b->gradients;
    fr_back_outer(b, b->dz, 3 * H, fr_back_x_rows(b, first), w->inputs, g->dW, g->dW_row);
    fr_back_outer(b, b->dz, 2 * H, fr_back_h_rows(b, first), H, g->dR, g->dR_row);
    fr_back_outer(b, b->dz + 2 * H, H, fr_back_dz_rows(b, 3 * H), H, g->dR + 2 * H * g->dR_row, g->dR_row);
    fr_back_sum(b, b->dz, 3 * H, g->db);
}

FR_INLINE void fr_gru_back_phase(bool after, bool defaults, const fr_panels *w, const fr_back_span *b, int64_t phase,
                                 int64_t t, const float *z)
{
    const int64_t H = w->hidden;
    if (phase == FR_BACK_STEP) {
        fr_gru_back_step(after, defaults, w, b, t, z, fr_back_group(b->s, t, true));
        fr_gru_back_step(after, defaults, w, b, t, z, fr_back_group(b->s, t, false));
    } else if (phase == FR_BACK_FINISH) {
        fr_gru_back_finish(defaults, w, b, t, z);
    } else if (phase == FR_BACK_STATE) {
        fr_back_state(w, b, (after ? 3 : 2) * H);
    } else if (phase == FR_BACK_INPUT) {
        fr_back_input(w, b, t, (after ? 2 : 3) * H);
    } else if (after) {
        fr_gru_after_back_weights(w, b, t);
    } else {
        fr_gru_before_back_weights(w, b, t);
    }
}

static void fr_gru_after_back(const fr_panels *w, const fr_back_span *b, int64_t phase, int64_t t, const float *z)
{
    if (w->default_activations)
        fr_gru_back_phase(true, true, w, b, phase, t, z);
    else
        fr_gru_back_phase(true, false, w, b, phase, t, z);
}

static void fr_gru_before_back(const fr_panels *w, const fr_back_span *b, int64_t phase, int64_t t, const float *z)
{
    if (w->default_activations)
        fr_gru_back_phase(false, true, w, b, phase, t, z);
    else
        fr_gru_back_phase(false, false, w, b, phase, t, z);
}

#endif
