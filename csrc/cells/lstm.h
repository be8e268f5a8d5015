/*
 * LSTM. For row b, step t and unit, with W over x and R over h:
 *
 *   i = sigmoid(W_i x + R_i h + b_i)      how much of g is written; 1 - f if coupled
 *   f = sigmoid(W_f x + R_f h + b_f)      how much of c is kept
 *   g = tanh   (W_g x + R_g h + b_g)      what is written
 *   o = sigmoid(W_o x + R_o h + b_o)      how much of the cell is shown
 *   c' = f * c + i * g
 *   h' = o * tanh(c')                     or a projection of it, P (o * tanh(c'))
 *
 * A peephole adds p_i * c, p_f * c or p_o * c' to a gate's sum. Coupled gates have three gate blocks: f, g, o.
 *
 * Fused: the sums of a tile (rows x unit blocks x gates) are in registers from the bias to the last product, and the
 * cell is computed from them there and then; no gate of the layer is ever an array. The x-projection of a chunk of
 * steps is made first: it does not depend on h, so it can use tall tiles and read W once per chunk instead of once per
 * step. A single step skips it and lets the same sums run over x, then h: the same additions in the same order, so the
 * same bits.
 */
#ifndef FR_LSTM_H
#define FR_LSTM_H

/* h' of one row and unit block, before any projection, from the sums of its gates; c is updated. */
FR_INLINE vf fr_lstm_unit(const fr_panels *w, bool plain, bool coupled, const float *sum, int64_t block, vf *c)
{
    const int64_t peeps = plain ? 0 : w->peephole;
    const float *peephole = peeps ? w->peepholes + block * 3 * VF_LANES : NULL;
    vf i = vf_load(sum);
    vf f = vf_load(sum + (coupled ? 0 : 1) * VF_LANES);
    vf g = vf_load(sum + (coupled ? 1 : 2) * VF_LANES);
    vf o = vf_load(sum + (coupled ? 2 : 3) * VF_LANES);

    if (peeps & FR_PEEP_F)
        f = vf_fma(vf_load(peephole + VF_LANES), *c, f);
    f = fr_gate(w, plain, f);
    if (coupled) {
        i = vf_sub(vf_set1(1.0f), f);
    } else {
        if (peeps & FR_PEEP_I)
            i = vf_fma(vf_load(peephole), *c, i);
        i = fr_gate(w, plain, i);
    }
    g = fr_written(w, plain, g);
    *c = vf_fma(f, *c, vf_mul(i, g));
    if (!plain)
        *c = fr_limited(*c, w->cell_clip);
    if (peeps & FR_PEEP_O)
        o = vf_fma(vf_load(peephole + 2 * VF_LANES), *c, o);
    o = fr_gate(w, plain, o);
    return vf_mul(o, plain ? fr_tanh(*c) : fr_state_function(w->output_activation, *c));
}

/* z: the x-projection of this step's rows, or NULL. */
FR_INLINE void fr_lstm_tile(int gates, bool plain, const fr_panels *w, const fr_span *s, int64_t t, const float *z,
                            int64_t block, int64_t blocks, int64_t row, int64_t rows)
{
    const int64_t H = w->hidden;
    const int64_t z_row = w->blocks * w->block_floats;
    const float *x[FR_MOST_ROWS], *h[FR_MOST_ROWS];
    fr_tile tile;

    for (int64_t k = 0; k < rows; k++) {
        x[k] = s->x[row + k] + t * s->x_step;
        h[k] = fr_h_before(s, t, row + k);
    }
    const fr_factor W_x = {w->x_panels + block * w->inputs * w->block_floats, x, w->inputs};
    const fr_factor R_h = {w->h_panels + block * w->outputs * w->block_floats, h, w->outputs};
    const fr_sums sums = fr_tile_sums(&tile, blocks, gates);
    if (z) {
        const fr_sums projected = {(float *)z + row * z_row + block * w->block_floats, z_row, w->block_floats};
        fr_product(gates, rows, blocks, projected, R_h, fr_nothing_more, sums);
    } else {
        const fr_sums bias = {(float *)w->bias + block * w->block_floats, 0, w->block_floats};
        fr_product(gates, rows, blocks, bias, W_x, R_h, sums);
    }
    for (int64_t k = 0; k < rows; k++)
        for (int64_t j = 0; j < blocks; j++) {
            const int64_t unit = (block + j) * VF_LANES;
            const float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            float *c_at = s->c[row + k] + unit;
            vf c = vf_load_n(c_at, H - unit);
            const vf m = fr_lstm_unit(w, plain, gates == 3, sum, block + j, &c);
            vf_store_n(c_at, c, H - unit);
            if (!plain && w->second_panels)
                vf_store(s->aside + (row + k) * w->blocks * VF_LANES + unit, m);
            else
                vf_store_n(s->y[row + k] + t * s->y_step + unit, m, H - unit);
        }
}

/* h' = P m, after all of m */
FR_INLINE void fr_lstm_project(const fr_panels *w, const fr_span *s, int64_t t)
{
    static const float zeros[8 * VF_LANES];
    const int64_t R_blocks = (w->outputs + VF_LANES - 1) / VF_LANES;
    const fr_tiling tiling = fr_tile_rows(fr_active(s, t), 1);
    FR_FOR_BLOCKS (tiling, R_blocks) {
        FR_FOR_ROWS (tiling) {
            const float *m[FR_MOST_ROWS];
            fr_tile tile;

            for (int64_t k = 0; k < rows; k++)
                m[k] = s->aside + (row + k) * w->blocks * VF_LANES;
            const fr_factor P_m = {w->second_panels + block * w->hidden * VF_LANES, m, w->hidden};
            const fr_sums sums = fr_tile_sums(&tile, blocks, 1);
            fr_product(1, rows, blocks, (fr_sums){(float *)zeros, 0, VF_LANES}, P_m, fr_nothing_more, sums);
            for (int64_t k = 0; k < rows; k++)
                for (int64_t j = 0; j < blocks; j++) {
                    const int64_t unit = (block + j) * VF_LANES;
                    vf_store_n(s->y[row + k] + t * s->y_step + unit, vf_load(sums.at + (k * blocks + j) * VF_LANES),
                               w->outputs - unit);
                }
        }
    }
}

FR_INLINE void fr_lstm_run(int gates, bool plain, const fr_panels *w, const fr_span *s)
{
    for (int64_t first = 0; first < s->steps; first += s->chunk) {
        const int64_t steps = s->steps - first < s->chunk ? s->steps - first : s->chunk;
        const float *z = s->chunk > 1 ? s->scratch : NULL;
        if (z)
            fr_project(gates, w, s, first, steps);
        for (int64_t t = first; t < first + steps && fr_active(s, t) > 0; t++) {
            const fr_tiling tiling = fr_tile_rows(fr_active(s, t), gates);
            FR_FOR_BLOCKS (tiling, w->blocks) {
                FR_FOR_ROWS (tiling)
                    fr_lstm_tile(gates, plain, w, s, t, z, block, blocks, row, rows);
            }
            if (!plain && w->second_panels)
                fr_lstm_project(w, s, t);
            if (z)
                z += fr_active(s, t) * w->blocks * w->block_floats;
        }
    }
    fr_keep_state(w, s);
}

static void fr_lstm(const fr_panels *w, const fr_span *s)
{
    if (w->form)
        fr_lstm_run(3, false, w, s);
    else if (w->plain)
        fr_lstm_run(4, true, w, s);
    else
        fr_lstm_run(4, false, w, s);
}

#endif
