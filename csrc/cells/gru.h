/*
 * GRU, in both forms. For row b, step t and unit, with W over x and R over h:
 *
 *   r = sigmoid(W_r x + R_r h + b_r)                how much of h the candidate sees
 *   z = sigmoid(W_z x + R_z h + b_z)                how much of h is retained
 *   n = tanh(W_n x + b_n + r * (R_n h + d_n))       the candidate, reset after the product
 *   n = tanh(W_n x + R_n (r * h) + b_n)             the candidate, reset before the product
 *   h' = (1 - z) * n + z * h
 *
 * Shapes and layout: x and h are rows of X and H floats; panels and sums are those of product.h, with the gates in the
 * order above.
 *
 * Fused: the cell is computed from the sums of a tile at once. Reset after, the recurrent product of n is a third gate
 * block whose sum begins with d_n, and one product per step is enough. Reset before, R_n needs r * h of all units: a
 * second product depends on the first, and r * h and z are intermediate results between the two. The input product of a
 * chunk of steps is made first (lstm.h says why).
 *
 * Numerics: gates are quotients (activations.h). Reset after, r takes one division, and h' one for z and n together.
 */
#ifndef FR_GRU_H
#define FR_GRU_H

/*
 * h' of one row and unit block. Not n + z * (h - n), which is one operation less: where n is far larger than h, or
 * infinite, h would be lost in the difference.
 */
FR_INLINE vf fr_gru_output(fr_quotient n, fr_quotient z, vf h)
{
    const vf common = vf_div(vf_set1(1.0f), vf_mul(z.d, n.d));
    const vf added = vf_mul(vf_mul(vf_sub(z.d, z.n), common), n.n);
    return vf_fma(vf_mul(z.n, vf_mul(n.d, common)), h, added);
}

/* FR_STEP of a GRU that resets after, of one tile. z: the input product of this step, or NULL. */
FR_INLINE void fr_gru_after_tile(bool defaults, const fr_panels *w, const fr_span *s, int64_t t, float *z,
                                 const fr_tile *tile)
{
    const int64_t H = w->hidden;
    const float *x[FR_MAX_ROWS], *h[FR_MAX_ROWS];
    fr_tile_sums x_memory, memory;

    for (int64_t k = 0; k < tile->rows; k++) {
        x[k] = s->x[tile->row + k] + t * s->x_step;
        h[k] = fr_h_before(s, t, tile->row + k);
    }
    fr_sums x_sums = fr_input_sums(w, s, tile, z);
    if (!z) {
        const fr_factor W_x = fr_tile_factor(tile, fr_x_matrix(w), 3, w->inputs, x);
        x_sums = fr_sums_in(&x_memory, tile->blocks, 3);
        fr_product(3, tile->rows, tile->blocks, fr_biases(w, tile), W_x, fr_no_factor, x_sums);
    }
    const fr_sums sums = fr_sums_in(&memory, tile->blocks, 3);
    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) { /* W_n x + b_n is added after the reset */
            float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            const float *x_sum = x_sums.at + k * x_sums.row_stride + j * x_sums.block_stride;
            vf_store(sum, vf_load(x_sum));
            vf_store(sum + VF_LANES, vf_load(x_sum + VF_LANES));
            vf_store(sum + 2 * VF_LANES, vf_load(w->recurrent_bias + (tile->block + j) * VF_LANES));
        }
    const fr_factor R_h = fr_tile_factor(tile, fr_h_matrix(w), 3, H, h);
    fr_product(3, tile->rows, tile->blocks, sums, R_h, fr_no_factor, sums);

    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            const float *x_sum = x_sums.at + k * x_sums.row_stride + j * x_sums.block_stride;
            const int64_t unit = (tile->block + j) * VF_LANES;
            const vf before = vf_load_n(h[k] + unit, H - unit);

            const vf r = fr_divided(fr_gate(w, defaults, vf_load(sum)));
            const fr_quotient update = fr_gate(w, defaults, vf_load(sum + VF_LANES));
            const vf n_sum = vf_fma(r, vf_load(sum + 2 * VF_LANES), vf_load(x_sum + 2 * VF_LANES));
            const fr_quotient n = fr_candidate(w, defaults, n_sum);
            vf_store_n(s->y[tile->row + k] + t * s->y_step + unit, fr_gru_output(n, update, before), H - unit);
            if (s->tape) { /* the record is r, z and n, and R_n h + d_n */
                float *kept = x_sums.at + k * x_sums.row_stride + j * x_sums.block_stride;
                vf_store(kept, vf_load(sum));
                vf_store(kept + VF_LANES, vf_load(sum + VF_LANES));
                vf_store(kept + 2 * VF_LANES, n_sum);
                vf_store(kept + 3 * VF_LANES, vf_load(sum + 2 * VF_LANES));
            }
        }
}

/* What a GRU that resets before computes in FR_STEP and reads in FR_FINISH. */
typedef struct {
    float *reset;  /* r * h, [B][N * L] */
    float *update; /* z, [B][N * L] */
    int64_t row_stride;
} fr_gru_intermediate;

FR_INLINE fr_gru_intermediate fr_gru_intermediates(const fr_panels *w, const fr_span *s)
{
    const int64_t row_stride = w->blocks * VF_LANES;
    return (fr_gru_intermediate){s->intermediate, s->intermediate + s->batch * row_stride, row_stride};
}

/* FR_STEP of a GRU that resets before, of one tile: r * h and z. z: the input product of this step. */
FR_INLINE void fr_gru_reset_tile(bool defaults, const fr_panels *w, const fr_span *s, int64_t t, float *z,
                                 const fr_tile *tile)
{
    const int64_t H = w->hidden;
    const fr_gru_intermediate between = fr_gru_intermediates(w, s);
    const float *h[FR_MAX_ROWS];
    fr_tile_sums memory;

    for (int64_t k = 0; k < tile->rows; k++)
        h[k] = fr_h_before(s, t, tile->row + k);
    const fr_factor R_h = fr_tile_factor(tile, fr_h_matrix(w), 2, H, h);
    const fr_sums sums = fr_finished_sums(w, s, tile, z, &memory, 2);
    fr_product(2, tile->rows, tile->blocks, fr_input_sums(w, s, tile, z), R_h, fr_no_factor, sums);

    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            const int64_t unit = (tile->block + j) * VF_LANES, to = (tile->row + k) * between.row_stride + unit;
            const fr_quotient r = fr_gate(w, defaults, vf_load(sum));
            const fr_quotient update = fr_gate(w, defaults, vf_load(sum + VF_LANES));
            const vf before = vf_load_n(h[k] + unit, H - unit);
            vf_store(between.reset + to, vf_mul(fr_divided(r), before));
            vf_store(between.update + to, fr_divided(update));
        }
}

/* FR_FINISH of a GRU that resets before, of one tile: n and h'. z: the input product of this step. */
FR_INLINE void fr_gru_before_tile(bool defaults, const fr_panels *w, const fr_span *s, int64_t t, float *z,
                                  const fr_tile *tile)
{
    const int64_t H = w->hidden;
    const fr_gru_intermediate between = fr_gru_intermediates(w, s);
    const float *rh[FR_MAX_ROWS];
    fr_tile_sums memory;

    for (int64_t k = 0; k < tile->rows; k++)
        rh[k] = between.reset + (tile->row + k) * between.row_stride;
    const fr_factor R_n = fr_tile_factor(tile, fr_dependent_matrix(w), 1, H, rh);
    fr_sums n_sums = fr_input_sums(w, s, tile, z);
    n_sums.at += 2 * VF_LANES;
    const fr_sums sums = s->tape ? n_sums : fr_sums_in(&memory, tile->blocks, 1);
    fr_product(1, tile->rows, tile->blocks, n_sums, R_n, fr_no_factor, sums);

    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const int64_t row = tile->row + k, unit = (tile->block + j) * VF_LANES;
            const vf before = vf_load_n(fr_h_before(s, t, row) + unit, H - unit);
            const fr_quotient update = fr_whole(vf_load(between.update + row * between.row_stride + unit));
            const fr_quotient n =
                fr_candidate(w, defaults, vf_load(sums.at + k * sums.row_stride + j * sums.block_stride));
            vf_store_n(s->y[row] + t * s->y_step + unit, fr_gru_output(n, update, before), H - unit);
        }
}

/* The three kinds of tiles. */
enum fr_gru_tiles { FR_GRU_AFTER, FR_GRU_RESET, FR_GRU_BEFORE };

FR_INLINE void fr_gru_step(int kind, bool defaults, const fr_panels *w, const fr_span *s, int64_t t, float *z,
                           fr_tiling tiling)
{
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(s, w->blocks), fr_downward(s, t)) {
        if (kind == FR_GRU_AFTER)
            fr_gru_after_tile(defaults, w, s, t, z, &tile);
        else if (kind == FR_GRU_RESET)
            fr_gru_reset_tile(defaults, w, s, t, z, &tile);
        else
            fr_gru_before_tile(defaults, w, s, t, z, &tile);
    }
}

FR_INLINE void fr_gru_rows(int kind, bool defaults, const fr_panels *w, const fr_span *s, int64_t t, float *z)
{
    const int gates = kind == FR_GRU_AFTER ? 3 : kind == FR_GRU_RESET ? 2 : 1;
    if (fr_active(s, t) == 1)
        fr_gru_step(kind, defaults, w, s, t, z, fr_tile_one(w->weight_type, gates));
    else
        fr_gru_step(kind, defaults, w, s, t, z, fr_tile_rows(w->weight_type, fr_active(s, t), gates));
}

static void fr_gru_after(const fr_panels *w, const fr_span *s, int64_t phase, int64_t t, float *z)
{
    if (phase == FR_INPUT)
        fr_input_phase(3, w, s, t, z);
    else if (w->default_activations)
        fr_gru_rows(FR_GRU_AFTER, true, w, s, t, z);
    else
        fr_gru_rows(FR_GRU_AFTER, false, w, s, t, z);
}

static void fr_gru_before(const fr_panels *w, const fr_span *s, int64_t phase, int64_t t, float *z)
{
    if (phase == FR_INPUT)
        fr_input_phase(3, w, s, t, z);
    else if (phase == FR_STEP && w->default_activations)
        fr_gru_rows(FR_GRU_RESET, true, w, s, t, z);
    else if (phase == FR_STEP)
        fr_gru_rows(FR_GRU_RESET, false, w, s, t, z);
    else if (w->default_activations)
        fr_gru_rows(FR_GRU_BEFORE, true, w, s, t, z);
    else
        fr_gru_rows(FR_GRU_BEFORE, false, w, s, t, z);
}

#endif
