/*
 * GRU, in both forms. For row b, step t and unit, with W over x and R over h:
 *
 *   r = sigmoid(W_r x + R_r h + b_r)                how much of h the candidate sees
 *   z = sigmoid(W_z x + R_z h + b_z)                how much of h is kept
 *   n = tanh(W_n x + b_n + r * (R_n h + d_n))       what is written, reset after the product
 *   n = tanh(W_n x + R_n (r * h) + b_n)             or before it
 *   h' = (1 - z) * n + z * h
 *
 * Reset after, the recurrent part of n is a third gate block whose sum begins with d_n, and one product per step is
 * enough. Reset before, R_n needs all of r * h: a second product waits for the first, and r * h and z are put aside
 * between the two. The x-projection of a chunk of steps is made first (lstm.h says why).
 */
#ifndef FR_GRU_H
#define FR_GRU_H

/* Not n + z * (h - n), which is an operation less: where n is far larger than h, or infinite, h would be lost in it. */
FR_INLINE vf fr_gru_shown(vf n, vf z, vf h) { return vf_fma(z, h, vf_mul(vf_sub(vf_set1(1.0f), z), n)); }

/* x_part: the x-projection of this step's rows. */
FR_INLINE void fr_gru_after_tile(bool plain, const fr_panels *w, const fr_span *s, int64_t t, const float *x_part,
                                 int64_t block, int64_t blocks, int64_t row, int64_t rows)
{
    const int64_t H = w->hidden;
    const int64_t x_row = w->blocks * w->block_floats;
    const float *h[FR_MOST_ROWS];
    fr_tile tile;

    x_part += row * x_row + block * w->block_floats;
    const fr_sums sums = fr_tile_sums(&tile, blocks, 3);
    for (int64_t k = 0; k < rows; k++) {
        h[k] = fr_h_before(s, t, row + k);
        for (int64_t j = 0; j < blocks; j++) { /* the x-part of n waits outside the reset */
            float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            memcpy(sum, x_part + k * x_row + j * w->block_floats, 2 * VF_LANES * sizeof(float));
            vf_store(sum + 2 * VF_LANES, vf_load(w->own_bias + (block + j) * VF_LANES));
        }
    }
    const fr_factor R_h = {w->h_panels + block * H * w->block_floats, h, H};
    fr_product(3, rows, blocks, sums, R_h, fr_nothing_more, sums);

    for (int64_t k = 0; k < rows; k++)
        for (int64_t j = 0; j < blocks; j++) {
            const float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            const int64_t unit = (block + j) * VF_LANES;
            const vf before = vf_load_n(h[k] + unit, H - unit);
            const vf n_x = vf_load(x_part + k * x_row + j * w->block_floats + 2 * VF_LANES);

            const vf r = fr_gate(w, plain, vf_load(sum));
            const vf z = fr_gate(w, plain, vf_load(sum + VF_LANES));
            const vf n = fr_written(w, plain, vf_fma(r, vf_load(sum + 2 * VF_LANES), n_x));
            vf_store_n(s->y[row + k] + t * s->y_step + unit, fr_gru_shown(n, z, before), H - unit);
        }
}

/* r * h and z, put aside. */
FR_INLINE void fr_gru_reset_tile(bool plain, const fr_panels *w, const fr_span *s, int64_t t, const float *x_part,
                                 int64_t block, int64_t blocks, int64_t row, int64_t rows)
{
    const int64_t H = w->hidden;
    const int64_t x_row = w->blocks * w->block_floats;
    const int64_t aside_row = w->blocks * VF_LANES;
    float *reset = s->aside + row * aside_row, *update = reset + s->batch * aside_row;
    const float *h[FR_MOST_ROWS];
    fr_tile tile;

    for (int64_t k = 0; k < rows; k++)
        h[k] = fr_h_before(s, t, row + k);
    const fr_factor R_h = {w->h_panels + block * H * 2 * VF_LANES, h, H};
    const fr_sums projected = {(float *)x_part + row * x_row + block * w->block_floats, x_row, w->block_floats};
    const fr_sums sums = fr_tile_sums(&tile, blocks, 2);
    fr_product(2, rows, blocks, projected, R_h, fr_nothing_more, sums);

    for (int64_t k = 0; k < rows; k++)
        for (int64_t j = 0; j < blocks; j++) {
            const float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            const int64_t unit = (block + j) * VF_LANES;
            const vf before = vf_load_n(h[k] + unit, H - unit);
            vf_store(reset + k * aside_row + unit, vf_mul(fr_gate(w, plain, vf_load(sum)), before));
            vf_store(update + k * aside_row + unit, fr_gate(w, plain, vf_load(sum + VF_LANES)));
        }
}

/* n and h', from what was put aside. */
FR_INLINE void fr_gru_before_tile(bool plain, const fr_panels *w, const fr_span *s, int64_t t, const float *x_part,
                                  int64_t block, int64_t blocks, int64_t row, int64_t rows)
{
    const int64_t H = w->hidden;
    const int64_t x_row = w->blocks * w->block_floats;
    const int64_t aside_row = w->blocks * VF_LANES;
    const float *reset = s->aside + row * aside_row, *update = reset + s->batch * aside_row;
    const float *rh[FR_MOST_ROWS];
    fr_tile tile;

    for (int64_t k = 0; k < rows; k++)
        rh[k] = reset + k * aside_row;
    const fr_factor R_n = {w->second_panels + block * H * VF_LANES, rh, H};
    x_part += row * x_row + block * w->block_floats + 2 * VF_LANES;
    const fr_sums projected = {(float *)x_part, x_row, w->block_floats};
    const fr_sums sums = fr_tile_sums(&tile, blocks, 1);
    fr_product(1, rows, blocks, projected, R_n, fr_nothing_more, sums);

    for (int64_t k = 0; k < rows; k++)
        for (int64_t j = 0; j < blocks; j++) {
            const int64_t unit = (block + j) * VF_LANES;
            const vf before = vf_load_n(fr_h_before(s, t, row + k) + unit, H - unit);
            const vf z = vf_load(update + k * aside_row + unit);
            const vf n = fr_written(w, plain, vf_load(sums.at + (k * blocks + j) * VF_LANES));
            vf_store_n(s->y[row + k] + t * s->y_step + unit, fr_gru_shown(n, z, before), H - unit);
        }
}

FR_INLINE void fr_gru_run(bool before, bool plain, const fr_panels *w, const fr_span *s)
{
    for (int64_t first = 0; first < s->steps; first += s->chunk) {
        const int64_t steps = s->steps - first < s->chunk ? s->steps - first : s->chunk;
        const float *x_part = s->scratch;
        fr_project(3, w, s, first, steps);
        for (int64_t t = first; t < first + steps && fr_active(s, t) > 0; t++) {
            const fr_tiling tiling = fr_tile_rows(fr_active(s, t), before ? 2 : 3);
            FR_FOR_BLOCKS (tiling, w->blocks) {
                FR_FOR_ROWS (tiling) {
                    if (before)
                        fr_gru_reset_tile(plain, w, s, t, x_part, block, blocks, row, rows);
                    else
                        fr_gru_after_tile(plain, w, s, t, x_part, block, blocks, row, rows);
                }
            }
            const fr_tiling second = fr_tile_rows(fr_active(s, t), 1);
            FR_FOR_BLOCKS (second, before ? w->blocks : 0) {
                FR_FOR_ROWS (second)
                    fr_gru_before_tile(plain, w, s, t, x_part, block, blocks, row, rows);
            }
            x_part += fr_active(s, t) * w->blocks * w->block_floats;
        }
    }
    fr_keep_state(w, s);
}

static void fr_gru(const fr_panels *w, const fr_span *s)
{
    if (w->form)
        fr_gru_run(true, false, w, s);
    else if (w->plain)
        fr_gru_run(false, true, w, s);
    else
        fr_gru_run(false, false, w, s);
}

#endif
