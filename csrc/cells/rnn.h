/*
 * The vanilla RNN. For row b, step t and unit, with W over x and R over h:
 *
 *   h' = tanh(W_h x + R_h h + b_h)
 *
 * Shapes and layout: x and h are rows of X and H floats; panels and sums are those of product.h.
 *
 * Fused: h' is computed from the sums of a tile at once. There is one gate block, so a tile takes up to eight unit
 * blocks: eight sums in flight keep the FMA units busy. The sums begin with the input product of a chunk of steps, or
 * run over x and then h in a single step (lstm.h says why).
 *
 * Numerics: those of the product and of the activation, nothing more.
 */
#ifndef FR_RNN_H
#define FR_RNN_H

/* FR_STEP of one tile. z: the input product of this step, or NULL. */
FR_INLINE void fr_rnn_tile(const fr_panels *w, const fr_span *s, int64_t t, float *z, const fr_tile *tile)
{
    const float *x[FR_MAX_ROWS], *h[FR_MAX_ROWS];
    fr_tile_sums memory;

    for (int64_t k = 0; k < tile->rows; k++) {
        x[k] = s->x[tile->row + k] + t * s->x_step;
        h[k] = fr_h_before(s, t, tile->row + k);
    }
    const fr_factor R_h = fr_tile_factor(tile, fr_h_matrix(w), 1, w->hidden, h);
    const fr_sums sums = fr_finished_sums(w, s, tile, z, &memory, 1);
    if (z) {
        fr_product(1, tile->rows, tile->blocks, fr_input_sums(w, s, tile, z), R_h, fr_no_factor, sums);
    } else {
        const fr_factor W_x = fr_tile_factor(tile, fr_x_matrix(w), 1, w->inputs, x);
        fr_product(1, tile->rows, tile->blocks, fr_biases(w, tile), W_x, R_h, sums);
    }
    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const int64_t unit = (tile->block + j) * VF_LANES;
            const fr_quotient output =
                fr_candidate(w, w->default_activations, vf_load(sums.at + k * sums.row_stride + j * sums.block_stride));
            vf_store_n(s->y[tile->row + k] + t * s->y_step + unit, fr_divided(output), w->hidden - unit);
        }
}

FR_INLINE void fr_rnn_step(const fr_panels *w, const fr_span *s, int64_t t, float *z, fr_tiling tiling)
{
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(s, w->blocks), fr_downward(s, t))
        fr_rnn_tile(w, s, t, z, &tile);
}

static void fr_rnn(const fr_panels *w, const fr_span *s, int64_t phase, int64_t t, float *z)
{
    if (phase == FR_INPUT)
        fr_input_phase(1, w, s, t, z);
    else if (fr_active(s, t) == 1)
        fr_rnn_step(w, s, t, z, fr_tile_one(w->weight_type, 1));
    else
        fr_rnn_step(w, s, t, z, fr_tile_rows(w->weight_type, fr_active(s, t), 1));
}

#endif
