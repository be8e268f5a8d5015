/*
 * Clockwork RNN. Module m, of units that share the period p_m, is computed in the rows whose step count t is divisible
 * by p_m, from its own units and those of modules with the same or longer periods:
 *
 *   h'_m = tanh(W_m x + (sum over modules j with p_j >= p_m of R_mj h_j) + b_m)      where p_m divides t
 *   h'_m = h_m                                                                       elsewhere
 *
 * Shapes and layout: x and h are rows of X and H floats, t counts the steps of each row. Modules ascend by period, so
 * what a module reads is one range of h, to its end, and its panels hold no more than that: [X][L] and [H - reads][L]
 * for each of its unit blocks.
 *
 * Fused: h' is computed from the sums of a tile at once. An idle module costs a copy. Each row has a counter of its
 * own: the rows in which a module is due are gathered into tiles by their pointers. The input product is not made
 * ahead: it would compute what idle modules never read.
 *
 * Numerics: those of the product and of the activation, nothing more.
 */
#ifndef FR_CLOCKWORK_H
#define FR_CLOCKWORK_H

/* The record of a row: the slope of each unit's activation, 0 in idle units, and behind them 1 in idle units. */
FR_INLINE float *fr_clockwork_record(const fr_panels *w, float *z, int64_t row)
{
    return z + row * 2 * w->blocks * VF_LANES;
}

/* The units of an idle module, from `begin` to `end`: h' = h. */
static void fr_clockwork_idle(const fr_panels *w, const fr_span *s, int64_t t, float *z, int64_t row, int64_t begin,
                              int64_t end)
{
    memcpy(s->y[row] + t * s->y_step + begin, fr_h_before(s, t, row) + begin, (size_t)(end - begin) * sizeof(float));
    if (s->tape) {
        float *record = fr_clockwork_record(w, z, row);
        for (int64_t unit = begin; unit < end; unit++) {
            record[unit] = 0.0f;
            record[w->blocks * VF_LANES + unit] = 1.0f;
        }
    }
}

/* The number of steps that a row has made before step t. */
FR_INLINE int64_t fr_steps_before(const fr_span *s, int64_t t, int64_t row)
{
    const int64_t since = s->since ? s->since[row][t * s->since_step] : -1;
    return since >= 0 ? since : *s->t[row] + t;
}

/* The panels of a module, which begin `start` weights into those of all. */
FR_INLINE fr_matrix fr_module_matrix(fr_matrix all, const fr_module *m, int64_t start)
{
    all.panels = fr_weights_from(all.type, all.panels, start);
    if (all.scales)
        all.scales += m->block * VF_LANES;
    return all;
}

/* FR_STEP of one tile of a module, for the rows of `due`. */
FR_INLINE void fr_clockwork_tile(const fr_panels *w, const fr_span *s, int64_t t, float *z, const fr_module *m,
                                 const fr_tile *tile, const int64_t *due)
{
    const int64_t depth = w->hidden - m->reads;
    const float *x[FR_MAX_ROWS], *h[FR_MAX_ROWS];
    fr_tile_sums memory;

    for (int64_t k = 0; k < tile->rows; k++) {
        x[k] = s->x[due[k]] + t * s->x_step;
        h[k] = fr_h_before(s, t, due[k]) + m->reads;
    }
    const fr_factor W_x = fr_tile_factor(tile, fr_module_matrix(fr_x_matrix(w), m, m->x_start), 1, w->inputs, x);
    const fr_factor R_h = fr_tile_factor(tile, fr_module_matrix(fr_h_matrix(w), m, m->h_start), 1, depth, h);
    const fr_sums bias = {(float *)w->bias + (m->block + tile->block) * VF_LANES, 0, VF_LANES};
    const fr_sums sums = fr_sums_in(&memory, tile->blocks, 1);
    fr_product(1, tile->rows, tile->blocks, bias, W_x, R_h, sums);
    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const int64_t unit = (tile->block + j) * VF_LANES;
            const vf sum = vf_load(sums.at + (k * tile->blocks + j) * VF_LANES);
            const fr_quotient output = fr_candidate(w, w->default_activations, sum);
            vf_store_n(s->y[due[k]] + t * s->y_step + m->first + unit, fr_divided(output), m->units - unit);
            if (s->tape) {
                const fr_slope active = fr_candidate_slope(w, w->default_activations, sum);
                float *record = fr_clockwork_record(w, z, due[k]) + m->first + unit;
                vf_store_n(record, active.slope, m->units - unit);
                vf_store_n(record + w->blocks * VF_LANES, vf_set1(0.0f), m->units - unit);
            }
        }
}

static void fr_clockwork(const fr_panels *w, const fr_span *s, int64_t phase, int64_t t, float *z)
{
    (void)phase; /* there is only FR_STEP */
    for (const fr_module *m = w->modules; m < w->modules + w->module_count; m++) {
        const fr_range mine = fr_share(s, (m->units + VF_LANES - 1) / VF_LANES);
        const int64_t begin = mine.first * VF_LANES; /* the units of the module that are in this share */
        const int64_t end = mine.last * VF_LANES < m->units ? mine.last * VF_LANES : m->units;
        for (int64_t row = 0; row < fr_active(s, t);) {
            int64_t due[FR_MAX_ROWS], count = 0;
            for (; row < fr_active(s, t) && count < FR_MAX_ROWS; row++) {
                if (fr_steps_before(s, t, row) % m->period == 0)
                    due[count++] = row;
                else if (begin < end)
                    fr_clockwork_idle(w, s, t, z, row, m->first + begin, m->first + end);
            }
            if (count == 0)
                continue;
            const fr_tiling tiling = fr_tile_rows(w->weight_type, count, 1);
            fr_tile tile;
            FR_FOR_TILES (tile, tiling, mine, fr_downward(s, t))
                fr_clockwork_tile(w, s, t, z, m, &tile, due + tile.row);
        }
    }
}

#endif
