/*
 * LSTM. For row b, step t and unit, with W over x and R over h:
 *
 *   i = sigmoid(W_i x + R_i h + b_i)      how much of g is added to c; 1 - f if coupled
 *   f = sigmoid(W_f x + R_f h + b_f)      how much of c is retained
 *   g = tanh   (W_g x + R_g h + b_g)      the candidate
 *   o = sigmoid(W_o x + R_o h + b_o)      how much of tanh(c') becomes the output
 *   c' = f * c + i * g
 *   h' = o * tanh(c')                     or a projection of it, P (o * tanh(c'))
 *
 * A peephole adds p_i * c, p_f * c or p_o * c' to a gate's sum. Coupled gates have three gate blocks: f, g, o.
 *
 * Shapes and layout: x and h are rows of X and R floats, c of H; panels and sums are those of product.h, with the gates
 * in the order above.
 *
 * Fused: the sums of a tile (rows x unit blocks x gates) are in registers from the bias to the last product, and the
 * cell is computed from them at once; no gate of the layer is ever an array. The input product of a chunk of steps is
 * made first: it does not depend on h, so it can use tall tiles and read W once per chunk instead of once per step. A
 * single step skips it and lets the same sums run over x, then h: the same additions in the same order, so the same
 * bits.
 *
 * Numerics: gates are quotients (activations.h); c' takes one division, h' another.
 */
#ifndef FR_LSTM_H
#define FR_LSTM_H

/* h' of one row and unit block, before any projection, from the sums of its gates; c is updated. */
FR_INLINE vf fr_lstm_unit(const fr_panels *w, bool defaults, bool coupled, const float *sum, int64_t block, vf *c)
{
    const int64_t peeps = defaults ? 0 : w->peephole;
    const float *peephole = peeps ? w->peepholes + block * 3 * VF_LANES : NULL;
    vf i_sum = vf_load(sum);
    vf f_sum = vf_load(sum + (coupled ? 0 : 1) * VF_LANES);
    const vf g_sum = vf_load(sum + (coupled ? 1 : 2) * VF_LANES);
    vf o_sum = vf_load(sum + (coupled ? 2 : 3) * VF_LANES);
    const vf one = vf_set1(1.0f);

    if (peeps & FR_PEEP_I)
        i_sum = vf_fma(vf_load(peephole), *c, i_sum);
    if (peeps & FR_PEEP_F)
        f_sum = vf_fma(vf_load(peephole + VF_LANES), *c, f_sum);
    const fr_quotient f = fr_gate(w, defaults, f_sum);
    const fr_quotient g = fr_candidate(w, defaults, g_sum);
    vf retained, added; /* f and i * g, over one common denominator */
    if (coupled) {
        const vf common = vf_div(one, vf_mul(f.d, g.d));
        retained = vf_mul(f.n, vf_mul(g.d, common));
        added = vf_mul(vf_mul(vf_sub(f.d, f.n), common), g.n);
    } else {
        const fr_quotient i = fr_gate(w, defaults, i_sum);
        const vf common = vf_div(one, vf_mul(f.d, vf_mul(i.d, g.d)));
        retained = vf_mul(f.n, vf_mul(vf_mul(i.d, g.d), common));
        added = vf_mul(vf_mul(i.n, vf_mul(f.d, common)), g.n);
    }
    *c = vf_fma(retained, *c, added);
    if (!defaults)
        *c = fr_limited(*c, w->cell_clip);
    if (peeps & FR_PEEP_O)
        o_sum = vf_fma(vf_load(peephole + 2 * VF_LANES), *c, o_sum);
    const fr_quotient o = fr_gate(w, defaults, o_sum);
    const fr_quotient output = defaults ? fr_tanh(*c) : fr_state_function(w->output_activation, *c);
    return vf_div(vf_mul(o.n, output.n), vf_mul(o.d, output.d));
}

/* FR_STEP of one tile. z: the input product of this step, or NULL. */
FR_INLINE void fr_lstm_tile(int gates, bool defaults, const fr_panels *w, const fr_span *s, int64_t t, float *z,
                            const fr_tile *tile)
{
    const int64_t H = w->hidden;
    const float *x[FR_MAX_ROWS], *h[FR_MAX_ROWS];
    fr_tile_sums memory;

    for (int64_t k = 0; k < tile->rows; k++) {
        x[k] = s->x[tile->row + k] + t * s->x_step;
        h[k] = fr_h_before(s, t, tile->row + k);
    }
    const fr_factor R_h = fr_tile_factor(tile, fr_h_matrix(w), gates, w->outputs, h);
    const fr_sums sums = fr_finished_sums(w, s, tile, z, &memory, gates);
    if (z) {
        fr_product(gates, tile->rows, tile->blocks, fr_input_sums(w, s, tile, z), R_h, fr_no_factor, sums);
    } else {
        const fr_factor W_x = fr_tile_factor(tile, fr_x_matrix(w), gates, w->inputs, x);
        fr_product(gates, tile->rows, tile->blocks, fr_biases(w, tile), W_x, R_h, sums);
    }
    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const int64_t row = tile->row + k, unit = (tile->block + j) * VF_LANES;
            float *sum = sums.at + k * sums.row_stride + j * sums.block_stride;
            const float *c_before = fr_resets(s, t, row) ? s->zeros : s->c[row];
            vf c = vf_load_n(c_before + unit, H - unit);
            const vf m = fr_lstm_unit(w, defaults, gates == 3, sum, tile->block + j, &c);
            vf_store_n(s->c[row] + unit, c, H - unit);
            if (s->tape)
                vf_store(sum + gates * VF_LANES, c);
            if (!defaults && w->dependent_panels)
                vf_store(s->intermediate + row * w->blocks * VF_LANES + unit, m);
            else
                vf_store_n(s->y[row] + t * s->y_step + unit, m, H - unit);
        }
}

FR_INLINE void fr_lstm_finish_tiles(const fr_panels *w, const fr_span *s, int64_t t, fr_tiling tiling)
{
    static const float zeros[FR_MAX_BLOCKS * VF_LANES];
    const int64_t R_blocks = (w->outputs + VF_LANES - 1) / VF_LANES;
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(s, R_blocks), fr_downward(s, t)) {
        const float *m[FR_MAX_ROWS];
        fr_tile_sums memory;

        for (int64_t k = 0; k < tile.rows; k++)
            m[k] = s->intermediate + (tile.row + k) * w->blocks * VF_LANES;
        const fr_factor P_m = fr_tile_factor(&tile, fr_dependent_matrix(w), 1, w->hidden, m);
        const fr_sums sums = fr_sums_in(&memory, tile.blocks, 1);
        fr_product(1, tile.rows, tile.blocks, (fr_sums){(float *)zeros, 0, VF_LANES}, P_m, fr_no_factor, sums);
        for (int64_t k = 0; k < tile.rows; k++)
            for (int64_t j = 0; j < tile.blocks; j++) {
                const int64_t unit = (tile.block + j) * VF_LANES;
                vf_store_n(s->y[tile.row + k] + t * s->y_step + unit,
                           vf_load(sums.at + (k * tile.blocks + j) * VF_LANES), w->outputs - unit);
            }
    }
}

/* FR_FINISH: h' = P m, after all of m. */
static void fr_lstm_finish(const fr_panels *w, const fr_span *s, int64_t t)
{
    if (fr_active(s, t) == 1)
        fr_lstm_finish_tiles(w, s, t, fr_tile_one(w->weight_type, 1));
    else
        fr_lstm_finish_tiles(w, s, t, fr_tile_rows(w->weight_type, fr_active(s, t), 1));
}

FR_INLINE void fr_lstm_step(int gates, bool defaults, const fr_panels *w, const fr_span *s, int64_t t, float *z,
                            fr_tiling tiling)
{
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(s, w->blocks), fr_downward(s, t))
        fr_lstm_tile(gates, defaults, w, s, t, z, &tile);
}

/*
 * The tiling of one row. Four sums of 16 lanes read 64 bytes a cycle: enough where panels come from L2 or beyond, and
 * one stream of memory is then 4 to 9 % faster than two.
 */
FR_INLINE fr_tiling fr_lstm_tile_one(int gates, const fr_panels *w, const fr_span *s, const float *z)
{
    fr_tiling tiling = fr_tile_one(w->weight_type, gates);
    if (gates != 4 || VF_LANES < 16 || fr_is_i8(w->weight_type))
        return tiling;
    const int64_t depth = z ? w->outputs : w->inputs + w->outputs;
    const int64_t bytes = w->blocks * w->block_floats * depth * fr_weight_bytes(w->weight_type);
    if (bytes > FR_FAR_FLOATS * (int64_t)sizeof(float) * s->shares)
        tiling.blocks = 1;
    return tiling;
}

FR_INLINE void fr_lstm_phase(int gates, bool defaults, const fr_panels *w, const fr_span *s, int64_t phase, int64_t t,
                             float *z)
{
    if (phase == FR_INPUT)
        fr_input_phase(gates, w, s, t, z);
    else if (fr_active(s, t) == 1)
        fr_lstm_step(gates, defaults, w, s, t, z, fr_lstm_tile_one(gates, w, s, z));
    else
        fr_lstm_step(gates, defaults, w, s, t, z, fr_tile_rows(w->weight_type, fr_active(s, t), gates));
}

static void fr_lstm(const fr_panels *w, const fr_span *s, int64_t phase, int64_t t, float *z)
{
    if (phase == FR_FINISH)
        fr_lstm_finish(w, s, t);
    else if (w->default_activations)
        fr_lstm_phase(4, true, w, s, phase, t, z);
    else
        fr_lstm_phase(4, false, w, s, phase, t, z);
}

static void fr_lstm_coupled(const fr_panels *w, const fr_span *s, int64_t phase, int64_t t, float *z)
{
    if (phase == FR_FINISH)
        fr_lstm_finish(w, s, t);
    else
        fr_lstm_phase(3, false, w, s, phase, t, z);
}

#endif
