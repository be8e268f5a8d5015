/*
 * LSTM. For row b, step t and unit, with W over x and R over h:
 *
 *   i = sigmoid(W_i x + R_i h + b_i)      how much of g is written
 *   f = sigmoid(W_f x + R_f h + b_f)      how much of c is kept
 *   g = tanh   (W_g x + R_g h + b_g)      what is written
 *   o = sigmoid(W_o x + R_o h + b_o)      how much of the cell is shown
 *   c' = f * c + i * g
 *   h' = o * tanh(c')
 *
 * Fused: the sums of a tile (rows x unit blocks x 4 gates) are in registers from the bias to the last product, and the
 * cell is computed from them there and then; no gate of the layer is ever an array. The x-projection of a chunk of
 * steps is made first: it does not depend on h, so it can use tall tiles and read W once per chunk instead of once per
 * step. A single step skips it and lets the same sums run over x, then h: the same additions in the same order, so the
 * same bits.
 */
#ifndef FR_LSTM_H
#define FR_LSTM_H

#define FR_LSTM_GATES 4

FR_INLINE void fr_lstm_tile(int rows, int blocks, const fr_panels *w, const fr_span *s, int64_t t, const float *z,
                            int64_t block, int64_t row)
{
    const int64_t H = w->hidden;
    const int64_t x_floats = w->inputs * w->block_floats;
    const int64_t h_floats = H * w->block_floats;
    const int64_t z_row = w->blocks * w->block_floats;
    const float *x[VF_ACCUMULATORS], *h[VF_ACCUMULATORS];
    vf sum[VF_ACCUMULATORS];

    FR_UNROLL
    for (int k = 0; k < rows; k++) {
        x[k] = s->x + t * s->x_step + (row + k) * s->x_row;
        h[k] = t > 0 ? s->y + (t - 1) * s->y_step + (row + k) * s->y_row : s->h + (row + k) * H;
    }
    if (z) {
        fr_panel_start(sum, rows, blocks, FR_LSTM_GATES, z + row * z_row + block * w->block_floats, z_row);
    } else {
        fr_panel_start(sum, rows, blocks, FR_LSTM_GATES, w->bias + block * w->block_floats, 0);
        fr_panel_product(sum, rows, blocks, FR_LSTM_GATES, w->x_panels + block * x_floats, x_floats, x, w->inputs);
    }
    fr_panel_product(sum, rows, blocks, FR_LSTM_GATES, w->h_panels + block * h_floats, h_floats, h, H);

    /* A tile of several rows leaves the registers here, once: were the cell unrolled for every row, its constants would
     * be kept in registers across the products, which then spill at every k. */
    vf gates[VF_ACCUMULATORS];
    FR_UNROLL
    for (int k = 0; k < rows * blocks * FR_LSTM_GATES; k++)
        gates[k] = sum[k];
    FR_ROLLED
    for (int k = 0; k < rows; k++) {
        FR_ROLLED
        for (int j = 0; j < blocks; j++) {
            const vf *gate = &gates[(k * blocks + j) * FR_LSTM_GATES];
            const int64_t unit = (block + j) * VF_LANES;
            float *c_at = s->c + (row + k) * H + unit;
            float *y_at = s->y + t * s->y_step + (row + k) * s->y_row + unit;

            const vf i = fr_sigmoid(gate[0]);
            const vf f = fr_sigmoid(gate[1]);
            const vf g = fr_tanh(gate[2]);
            const vf o = fr_sigmoid(gate[3]);
            const vf c = vf_fma(f, vf_load_n(c_at, H - unit), vf_mul(i, g));
            vf_store_n(c_at, c, H - unit);
            vf_store_n(y_at, vf_mul(o, fr_tanh(c)), H - unit);
        }
    }
}

static void fr_lstm(const fr_panels *w, const fr_span *s)
{
    const fr_tiling tiling = fr_tile_rows(s->batch, FR_LSTM_GATES);
    const int64_t z_step = s->batch * w->blocks * w->block_floats;

    for (int64_t first = 0; first < s->steps; first += s->chunk) {
        const int64_t steps = s->steps - first < s->chunk ? s->steps - first : s->chunk;
        if (s->chunk > 1)
            fr_project(FR_LSTM_GATES, w, s, first, steps);
        for (int64_t step = 0; step < steps; step++) {
            const float *z = s->chunk > 1 ? s->scratch + step * z_step : NULL;
            FR_FOR_TILES (tiling, w->blocks) {
                FR_WITH_TILE(rows, blocks, FR_LSTM_GATES, fr_lstm_tile, w, s, first + step, z, block, row)
            }
        }
    }
    fr_keep_state(w, s);
}

#endif
