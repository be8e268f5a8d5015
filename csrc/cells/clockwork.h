/*
 * Clockwork RNN. Module m, of units that share the period p_m, is computed in the rows whose step count t is divisible
 * by p_m, from its own units and those of modules with the same or longer periods:
 *
 *   h'_m = tanh(W_m x + (sum over modules j with p_j >= p_m of R_mj h_j) + b_m)      where p_m divides t
 *   h'_m = h_m                                                                       elsewhere
 *
 * Modules ascend by period, so what a module reads is one range of h, to its end, and its panels hold no more than
 * that. An idle module costs a copy. Rows count for themselves: those of a step that are due are gathered into tiles by
 * their pointers. There is no x-projection ahead: it would compute what idle modules never read.
 */
#ifndef FR_CLOCKWORK_H
#define FR_CLOCKWORK_H

/* The rows of `due`, in one module's unit blocks. */
FR_INLINE void fr_clockwork_tile(const fr_panels *w, const fr_span *s, int64_t t, const fr_module *m,
                                 const fr_place *at, const int64_t *due)
{
    const int64_t depth = w->hidden - m->reads;
    const float *x[FR_MOST_ROWS], *h[FR_MOST_ROWS];
    fr_tile tile;

    for (int64_t k = 0; k < at->rows; k++) {
        x[k] = s->x[due[k]] + t * s->x_step;
        h[k] = fr_h_before(s, t, due[k]) + m->reads;
    }
    const fr_factor W_x = fr_factor_at(at, w->x_panels + m->x_start, 1, w->inputs, x);
    const fr_factor R_h = fr_factor_at(at, w->h_panels + m->h_start, 1, depth, h);
    const fr_sums bias = {(float *)w->bias + (m->block + at->block) * VF_LANES, 0, VF_LANES};
    const fr_sums sums = fr_tile_sums(&tile, at->blocks, 1);
    fr_product(1, at->rows, at->blocks, bias, W_x, R_h, sums);
    for (int64_t k = 0; k < at->rows; k++)
        for (int64_t j = 0; j < at->blocks; j++) {
            const int64_t unit = (at->block + j) * VF_LANES;
            const fr_quotient shown = fr_written(w, w->plain, vf_load(sums.at + (k * at->blocks + j) * VF_LANES));
            vf_store_n(s->y[due[k]] + t * s->y_step + m->first + unit, fr_divided(shown), m->units - unit);
        }
}

static void fr_clockwork(const fr_panels *w, const fr_span *s, int64_t phase, int64_t t, float *z)
{
    (void)phase, (void)z; /* there is only FR_STEP */
    for (const fr_module *m = w->modules; m < w->modules + w->module_count; m++) {
        const fr_range mine = fr_share(s, (m->units + VF_LANES - 1) / VF_LANES);
        const int64_t held = mine.first * VF_LANES; /* where this part's units of the module begin, and their number */
        const int64_t held_end = mine.last * VF_LANES < m->units ? mine.last * VF_LANES : m->units;
        for (int64_t row = 0; row < fr_active(s, t);) {
            int64_t due[FR_MOST_ROWS], count = 0;
            for (; row < fr_active(s, t) && count < FR_MOST_ROWS; row++) {
                if ((*s->t[row] + t) % m->period == 0)
                    due[count++] = row;
                else if (held < held_end)
                    memcpy(s->y[row] + t * s->y_step + m->first + held, fr_h_before(s, t, row) + m->first + held,
                           (size_t)(held_end - held) * sizeof(float));
            }
            if (count == 0)
                continue;
            const fr_tiling tiling = fr_tile_rows(count, 1);
            fr_place at;
            FR_FOR_TILES (at, tiling, mine, fr_downward(s, t))
                fr_clockwork_tile(w, s, t, m, &at, due + at.row);
        }
    }
}

#endif
