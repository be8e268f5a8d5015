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
 * between the two. The x-projection of a chunk of steps is made first (lstm.h says why). Gates are quotients
 * (activations.h): reset after, r takes one division, and h' one for z and n together.
 */
#ifndef FR_GRU_H
#define FR_GRU_H

/*
 * h' of one row and unit block. Not n + z * (h - n), which is an operation less: where n is far larger than h, or
 * infinite, h would be lost in it.
 */
FR_INLINE vf fr_gru_shown(fr_quotient n, fr_quotient z, vf h)
{
    const vf common = vf_div(vf_set1(1.0f), vf_mul(z.d, n.d));
    const vf written = vf_mul(vf_mul(vf_sub(z.d, z.n), common), n.n);
    return vf_fma(vf_mul(z.n, vf_mul(n.d, common)), h, written);
}

/* FR_STEP of a GRU that resets after, of a tile. z: the x-projection of this step's rows, or NULL. */
FR_INLINE void fr_gru_after_tile(bool plain, const fr_panels *w, const fr_span *s, int64_t t, float *z,
                                 const fr_place *at)
{
    const int64_t H = w->hidden;
    const float *x[FR_MOST_ROWS], *h[FR_MOST_ROWS];
    fr_tile x_tile, tile;

    for (int64_t k = 0; k < at->rows; k++) {
        x[k] = s->x[at->row + k] + t * s->x_step;
        h[k] = fr_h_before(s, t, at->row + k);
    }
    fr_sums x_sums = fr_projected(w, at, z);
    if (!z) {
        const fr_factor W_x = fr_factor_at(at, w->x_panels, 3, w->inputs, x);
        x_sums = fr_tile_sums(&x_tile, at->blocks, 3);
        fr_product(3, at->rows, at->blocks, fr_biases(w, at), W_x, fr_nothing_more, x_sums);
    }
    const fr_sums sums = fr_tile_sums(&tile, at->blocks, 3);
    for (int64_t k = 0; k < at->rows; k++)
        for (int64_t j = 0; j < at->blocks; j++) { /* the x-part of n waits outside the reset */
            float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            const float *x_sum = x_sums.at + k * x_sums.row_stride + j * x_sums.block_stride;
            vf_store(sum, vf_load(x_sum));
            vf_store(sum + VF_LANES, vf_load(x_sum + VF_LANES));
            vf_store(sum + 2 * VF_LANES, vf_load(w->own_bias + (at->block + j) * VF_LANES));
        }
    const fr_factor R_h = fr_factor_at(at, w->h_panels, 3, H, h);
    fr_product(3, at->rows, at->blocks, sums, R_h, fr_nothing_more, sums);

    for (int64_t k = 0; k < at->rows; k++)
        for (int64_t j = 0; j < at->blocks; j++) {
            const float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            const float *x_sum = x_sums.at + k * x_sums.row_stride + j * x_sums.block_stride;
            const int64_t unit = (at->block + j) * VF_LANES;
            const vf before = vf_load_n(h[k] + unit, H - unit);

            const vf r = fr_divided(fr_gate(w, plain, vf_load(sum)));
            const fr_quotient update = fr_gate(w, plain, vf_load(sum + VF_LANES));
            const vf n_sum = vf_fma(r, vf_load(sum + 2 * VF_LANES), vf_load(x_sum + 2 * VF_LANES));
            const fr_quotient n = fr_written(w, plain, n_sum);
            vf_store_n(s->y[at->row + k] + t * s->y_step + unit, fr_gru_shown(n, update, before), H - unit);
        }
}

/* What a GRU that resets before puts aside, [row][unit]: r * h, and behind it z's sum through its activation. */
typedef struct {
    float *reset, *update;
    int64_t row;
} fr_gru_aside;

FR_INLINE fr_gru_aside fr_gru_put_aside(const fr_panels *w, const fr_span *s)
{
    const int64_t row = w->blocks * VF_LANES;
    return (fr_gru_aside){s->aside, s->aside + s->batch * row, row};
}

/* FR_STEP of a GRU that resets before, of a tile: r * h and z, put aside. */
FR_INLINE void fr_gru_reset_tile(bool plain, const fr_panels *w, const fr_span *s, int64_t t, float *z,
                                 const fr_place *at)
{
    const int64_t H = w->hidden;
    const fr_gru_aside aside = fr_gru_put_aside(w, s);
    const float *h[FR_MOST_ROWS];
    fr_tile tile;

    for (int64_t k = 0; k < at->rows; k++)
        h[k] = fr_h_before(s, t, at->row + k);
    const fr_factor R_h = fr_factor_at(at, w->h_panels, 2, H, h);
    const fr_sums sums = fr_tile_sums(&tile, at->blocks, 2);
    fr_product(2, at->rows, at->blocks, fr_projected(w, at, z), R_h, fr_nothing_more, sums);

    for (int64_t k = 0; k < at->rows; k++)
        for (int64_t j = 0; j < at->blocks; j++) {
            const float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            const int64_t unit = (at->block + j) * VF_LANES, to = (at->row + k) * aside.row + unit;
            const fr_quotient r = fr_gate(w, plain, vf_load(sum));
            const fr_quotient update = fr_gate(w, plain, vf_load(sum + VF_LANES));
            const vf before = vf_load_n(h[k] + unit, H - unit);
            vf_store(aside.reset + to, vf_mul(fr_divided(r), before));
            vf_store(aside.update + to, fr_divided(update));
        }
}

/* FR_FINISH of a GRU that resets before, of a tile: n and h', from what was put aside. */
FR_INLINE void fr_gru_before_tile(bool plain, const fr_panels *w, const fr_span *s, int64_t t, float *z,
                                  const fr_place *at)
{
    const int64_t H = w->hidden;
    const fr_gru_aside aside = fr_gru_put_aside(w, s);
    const float *rh[FR_MOST_ROWS];
    fr_tile tile;

    for (int64_t k = 0; k < at->rows; k++)
        rh[k] = aside.reset + (at->row + k) * aside.row;
    const fr_factor R_n = fr_factor_at(at, w->second_panels, 1, H, rh);
    fr_sums n_part = fr_projected(w, at, z);
    n_part.at += 2 * VF_LANES;
    const fr_sums sums = fr_tile_sums(&tile, at->blocks, 1);
    fr_product(1, at->rows, at->blocks, n_part, R_n, fr_nothing_more, sums);

    for (int64_t k = 0; k < at->rows; k++)
        for (int64_t j = 0; j < at->blocks; j++) {
            const int64_t row = at->row + k, unit = (at->block + j) * VF_LANES;
            const vf before = vf_load_n(fr_h_before(s, t, row) + unit, H - unit);
            const fr_quotient update = fr_whole(vf_load(aside.update + row * aside.row + unit));
            const fr_quotient n = fr_written(w, plain, vf_load(sums.at + (k * at->blocks + j) * VF_LANES));
            vf_store_n(s->y[row] + t * s->y_step + unit, fr_gru_shown(n, update, before), H - unit);
        }
}

enum fr_gru_part { FR_GRU_AFTER, FR_GRU_RESET, FR_GRU_BEFORE };

FR_INLINE void fr_gru_step(int part, bool plain, const fr_panels *w, const fr_span *s, int64_t t, float *z,
                           fr_tiling tiling)
{
    fr_place at;
    FR_FOR_TILES (at, tiling, fr_share(s, w->blocks), fr_downward(s, t)) {
        if (part == FR_GRU_AFTER)
            fr_gru_after_tile(plain, w, s, t, z, &at);
        else if (part == FR_GRU_RESET)
            fr_gru_reset_tile(plain, w, s, t, z, &at);
        else
            fr_gru_before_tile(plain, w, s, t, z, &at);
    }
}

FR_INLINE void fr_gru_rows(int part, bool plain, const fr_panels *w, const fr_span *s, int64_t t, float *z)
{
    const int gates = part == FR_GRU_AFTER ? 3 : part == FR_GRU_RESET ? 2 : 1;
    if (fr_active(s, t) == 1)
        fr_gru_step(part, plain, w, s, t, z, fr_tile_one(gates));
    else
        fr_gru_step(part, plain, w, s, t, z, fr_tile_rows(fr_active(s, t), gates));
}

static void fr_gru_after(const fr_panels *w, const fr_span *s, int64_t phase, int64_t t, float *z)
{
    if (phase == FR_PROJECT)
        fr_project(3, w, s, t, z);
    else if (w->plain)
        fr_gru_rows(FR_GRU_AFTER, true, w, s, t, z);
    else
        fr_gru_rows(FR_GRU_AFTER, false, w, s, t, z);
}

static void fr_gru_before(const fr_panels *w, const fr_span *s, int64_t phase, int64_t t, float *z)
{
    if (phase == FR_PROJECT)
        fr_project(3, w, s, t, z);
    else if (phase == FR_STEP)
        fr_gru_rows(FR_GRU_RESET, false, w, s, t, z);
    else
        fr_gru_rows(FR_GRU_BEFORE, false, w, s, t, z);
}

#endif
