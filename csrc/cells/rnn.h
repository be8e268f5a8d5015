/*
 * The vanilla RNN. For row b, step t and unit, with W over x and R over h:
 *
 *   h' = tanh(W_h x + R_h h + b_h)
 *
 * One gate block, so a tile takes up to eight unit blocks at once: eight sums in flight keep the FMA units busy. The
 * sums begin with the x-projection of a chunk of steps, or run over x and then h in a single step (lstm.h says why).
 */
#ifndef FR_RNN_H
#define FR_RNN_H

/* FR_STEP, of a tile. z: the x-projection of this step's rows, or NULL. */
FR_INLINE void fr_rnn_tile(const fr_panels *w, const fr_span *s, int64_t t, float *z, const fr_place *at)
{
    const float *x[FR_MOST_ROWS], *h[FR_MOST_ROWS];
    fr_tile tile;

    for (int64_t k = 0; k < at->rows; k++) {
        x[k] = s->x[at->row + k] + t * s->x_step;
        h[k] = fr_h_before(s, t, at->row + k);
    }
    const fr_factor R_h = fr_factor_at(at, w->h_panels, 1, w->hidden, h);
    const fr_sums sums = fr_tile_sums(&tile, at->blocks, 1);
    if (z) {
        fr_product(1, at->rows, at->blocks, fr_projected(w, at, z), R_h, fr_nothing_more, sums);
    } else {
        const fr_factor W_x = fr_factor_at(at, w->x_panels, 1, w->inputs, x);
        fr_product(1, at->rows, at->blocks, fr_biases(w, at), W_x, R_h, sums);
    }
    for (int64_t k = 0; k < at->rows; k++)
        for (int64_t j = 0; j < at->blocks; j++) {
            const int64_t unit = (at->block + j) * VF_LANES;
            const fr_quotient shown = fr_written(w, w->plain, vf_load(sums.at + (k * at->blocks + j) * VF_LANES));
            vf_store_n(s->y[at->row + k] + t * s->y_step + unit, fr_divided(shown), w->hidden - unit);
        }
}

FR_INLINE void fr_rnn_step(const fr_panels *w, const fr_span *s, int64_t t, float *z, fr_tiling tiling)
{
    fr_place at;
    FR_FOR_TILES (at, tiling, fr_share(s, w->blocks), fr_downward(s, t))
        fr_rnn_tile(w, s, t, z, &at);
}

static void fr_rnn(const fr_panels *w, const fr_span *s, int64_t phase, int64_t t, float *z)
{
    if (phase == FR_PROJECT)
        fr_project(1, w, s, t, z);
    else if (fr_active(s, t) == 1)
        fr_rnn_step(w, s, t, z, fr_tile_one(1));
    else
        fr_rnn_step(w, s, t, z, fr_tile_rows(fr_active(s, t), 1));
}

#endif
