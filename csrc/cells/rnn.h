/*
 * The vanilla RNN. For row b, step t and unit, with W over x and R over h:
 *
 *   h' = tanh(W_h x + R_h h + b_h)
 *
 * One gate block, so a tile takes up to eight unit blocks at once: eight sums in flight keep the FMA units busy. The
 * sums begin with the x-projection of a chunk of steps (lstm.h says why) and stay in registers until h' is stored.
 */
#ifndef FR_RNN_H
#define FR_RNN_H

FR_INLINE void fr_rnn_tile(const fr_panels *w, const fr_span *s, int64_t t, const float *z, int64_t block,
                           int64_t blocks, int64_t row, int64_t rows)
{
    const int64_t z_row = w->blocks * VF_LANES;
    const float *h[FR_MOST_ROWS];
    fr_tile tile;

    for (int64_t k = 0; k < rows; k++)
        h[k] = fr_h_before(s, t, row + k);
    const fr_factor R_h = {w->h_panels + block * w->hidden * VF_LANES, h, w->hidden};
    const fr_sums projected = {(float *)z + row * z_row + block * VF_LANES, z_row, VF_LANES};
    const fr_sums sums = fr_tile_sums(&tile, blocks, 1);
    fr_product(1, rows, blocks, projected, R_h, fr_nothing_more, sums);
    for (int64_t k = 0; k < rows; k++)
        for (int64_t j = 0; j < blocks; j++) {
            const int64_t unit = (block + j) * VF_LANES;
            const vf sum = vf_load(sums.at + (k * blocks + j) * VF_LANES);
            vf_store_n(s->y[row + k] + t * s->y_step + unit, fr_written(w, w->plain, sum), w->hidden - unit);
        }
}

static void fr_rnn(const fr_panels *w, const fr_span *s)
{
    for (int64_t first = 0; first < s->steps; first += s->chunk) {
        const int64_t steps = s->steps - first < s->chunk ? s->steps - first : s->chunk;
        const float *z = s->scratch;
        fr_project(1, w, s, first, steps);
        for (int64_t t = first; t < first + steps && fr_active(s, t) > 0; t++) {
            const fr_tiling tiling = fr_tile_rows(fr_active(s, t), 1);
            FR_FOR_BLOCKS (tiling, w->blocks) {
                FR_FOR_ROWS (tiling)
                    fr_rnn_tile(w, s, t, z, block, blocks, row, rows);
            }
            z += fr_active(s, t) * w->blocks * w->block_floats;
        }
    }
    fr_keep_state(w, s);
}

#endif
