/*
 * The backward pass of the LSTM. For row b, step t and unit, with the values of lstm.h:
 *
 *   dm  = dh                                             or P^T dh of a projection
 *   do  = dm * tanh(c') * o'
 *   dc += dm * o * tanh'(c') + p_o * do                  times 0 where c' is at its limit
 *   di  = dc * g * i'       df = dc * c * f'       dg = dc * i * g'
 *   dc_before = dc * f + p_i * di + p_f * df
 *
 * Coupled, i = 1 - f: there is no di, and df = dc * (c - g) * f'. A record has the sums of the gates and c'.
 *
 * Layout, fusion and numerics: back.h. A projection needs dh of all units before dm: FR_BACK_FINISH is the rest of the
 * step. It leaves m in the row of dz: what P's gradient is a product with.
 */
#ifndef FR_LSTM_BACK_H
#define FR_LSTM_BACK_H

/* Where c before step t is, of a row and unit block: H - unit floats at least. */
FR_INLINE const float *fr_c_before(const fr_panels *w, const fr_span *s, int64_t t, const float *z, int64_t row,
                                   int64_t block)
{
    if (fr_resets(s, t, row))
        return s->zeros + block * VF_LANES;
    if (t == 0)
        return s->c[row] + block * VF_LANES;
    return z + (row - fr_active(s, t - 1)) * w->blocks * s->z_block + block * s->z_block + w->block_floats;
}

/* The derivative of one row and unit block: dz at `dz` and m at `m`, if any, from dm, the record and c before; dc is
 * updated. */
FR_INLINE void fr_lstm_back_unit(const fr_panels *w, bool defaults, bool coupled, const float *record, int64_t block,
                                 vf dm, vf c_before, float *dz, float *m_to, float *dc_at)
{
    const int64_t H = w->hidden, rest = H - block * VF_LANES;
    const int64_t peeps = defaults ? 0 : w->peephole;
    const float *peephole = peeps ? w->peepholes + block * 3 * VF_LANES : NULL;
    vf i_sum = vf_load(record);
    vf f_sum = vf_load(record + (coupled ? 0 : 1) * VF_LANES);
    const vf g_sum = vf_load(record + (coupled ? 1 : 2) * VF_LANES);
    vf o_sum = vf_load(record + (coupled ? 2 : 3) * VF_LANES);
    const vf c = vf_load(record + (coupled ? 3 : 4) * VF_LANES);

    if (peeps & FR_PEEP_I)
        i_sum = vf_fma(vf_load(peephole), c_before, i_sum);
    if (peeps & FR_PEEP_F)
        f_sum = vf_fma(vf_load(peephole + VF_LANES), c_before, f_sum);
    if (peeps & FR_PEEP_O)
        o_sum = vf_fma(vf_load(peephole + 2 * VF_LANES), c, o_sum);
    const fr_slope f = fr_gate_slope(w, defaults, f_sum);
    const fr_slope g = fr_candidate_slope(w, defaults, g_sum);
    const fr_slope o = fr_gate_slope(w, defaults, o_sum);
    const fr_slope output = defaults ? fr_tanh_slope(c) : fr_state_slope(w->output_activation, c);

    const vf do_sum = vf_mul(vf_mul(dm, output.value), o.slope);
    vf dc = vf_fma(vf_mul(dm, o.value), output.slope, vf_load_n(dc_at, rest));
    if (peeps & FR_PEEP_O)
        dc = vf_fma(vf_load(peephole + 2 * VF_LANES), do_sum, dc);
    if (!defaults)
        dc = fr_inside(c, w->cell_clip, dc);
    vf di_sum, df_sum, dg_sum;
    if (coupled) {
        df_sum = vf_mul(vf_mul(dc, vf_sub(c_before, g.value)), f.slope);
        dg_sum = vf_mul(vf_mul(dc, vf_sub(vf_set1(1.0f), f.value)), g.slope);
    } else {
        const fr_slope i = fr_gate_slope(w, defaults, i_sum);
        di_sum = vf_mul(vf_mul(dc, g.value), i.slope);
        df_sum = vf_mul(vf_mul(dc, c_before), f.slope);
        dg_sum = vf_mul(vf_mul(dc, i.value), g.slope);
        vf_store_n(dz, di_sum, rest);
        dz += H;
    }
    vf_store_n(dz, df_sum, rest);
    vf_store_n(dz + H, dg_sum, rest);
    vf_store_n(dz + 2 * H, do_sum, rest);

    vf dc_before = vf_mul(dc, f.value);
    if (peeps & FR_PEEP_I)
        dc_before = vf_fma(vf_load(peephole), di_sum, dc_before);
    if (peeps & FR_PEEP_F)
        dc_before = vf_fma(vf_load(peephole + VF_LANES), df_sum, dc_before);
    vf_store_n(dc_at, dc_before, rest);
    if (m_to)
        vf_store_n(m_to, vf_mul(o.value, output.value), rest);
}

/* The derivatives of a tile of dm. */
FR_INLINE void fr_lstm_back_units(int gates, bool defaults, const fr_panels *w, const fr_back_span *b, int64_t t,
                                  const float *z, int64_t first_row, const fr_tile *tile, fr_sums dm)
{
    const int64_t H = w->hidden, z_row = w->blocks * b->s->z_block;
    const bool projects = !defaults && w->back_dependent_panels;
    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const int64_t row = first_row + tile->row + k, block = tile->block + j, unit = block * VF_LANES;
            float *dz = b->dz + row * b->dz_row + unit;
            const vf c_before = vf_load_n(fr_c_before(w, b->s, t, z, row, block), H - unit);
            fr_lstm_back_unit(w, defaults, gates == 3, z + row * z_row + block * b->s->z_block, block,
                              vf_load(dm.at + k * dm.row_stride + j * dm.block_stride), c_before, dz,
                              projects ? dz + gates * H + w->outputs : NULL, b->dc[row] + unit);
            if (fr_resets(b->s, t, row)) /* c before the step is not of the step before */
                vf_store_n(b->dc[row] + unit, vf_set1(0.0f), H - unit);
        }
}

/* FR_BACK_STEP of one tile: dh, and without a projection all that follows. */
FR_INLINE void fr_lstm_back_tile(int gates, bool defaults, const fr_panels *w, const fr_back_span *b, int64_t t,
                                 const float *z, const fr_tile *tile, fr_back_rows group)
{
    const int64_t H = w->hidden;
    fr_tile_sums memory;
    const fr_sums sums = fr_sums_in(&memory, tile->blocks, 1);
    fr_back_h(w, b, t, gates * H, z, group, tile, sums);
    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const int64_t row = group.first + tile->row + k, unit = (tile->block + j) * VF_LANES;
            vf_store_n(b->dh[row] + unit, vf_set1(0.0f), w->outputs - unit); /* the product alone reaches h before */
            if (!defaults && w->back_dependent_panels)
                vf_store_n(b->dz + row * b->dz_row + gates * H + unit,
                           vf_load(sums.at + k * sums.row_stride + j * sums.block_stride), w->outputs - unit);
        }
    if (defaults || !w->back_dependent_panels)
        fr_lstm_back_units(gates, defaults, w, b, t, z, group.first, tile, sums);
}

FR_INLINE void fr_lstm_back_step(int gates, bool defaults, const fr_panels *w, const fr_back_span *b, int64_t t,
                                 const float *z, fr_back_rows group)
{
    const fr_tiling tiling = fr_tile_rows(FR_F32, group.count, 1);
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(b->s, (w->outputs + VF_LANES - 1) / VF_LANES), fr_downward(b->s, t))
        fr_lstm_back_tile(gates, defaults, w, b, t, z, &tile, group);
}

/* FR_BACK_FINISH, of a projection: dm = P^T dh, after all of dh. */
static void fr_lstm_back_finish(int gates, const fr_panels *w, const fr_back_span *b, int64_t t, const float *z)
{
    const fr_tiling tiling = fr_tile_rows(FR_F32, fr_active(b->s, t), 1);
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(b->s, w->blocks), fr_downward(b->s, t)) {
        fr_tile_sums memory;
        const fr_sums dm = fr_sums_in(&memory, tile.blocks, 1);
        fr_back_product(&tile, w->back_dependent_panels, w->outputs, b->dz + gates * w->hidden, b->dz_row, dm);
        fr_lstm_back_units(gates, false, w, b, t, z, 0, &tile, dm);
    }
}

/* dp[gate][unit] += the sum over the chunk's rows of the gate's dz times the c that its peephole sees. */
FR_INLINE void fr_lstm_back_peepholes(int gates, const fr_panels *w, const fr_back_span *b, int64_t first,
                                      const float *z)
{
    static const int64_t bits[] = {FR_PEEP_I, FR_PEEP_F, FR_PEEP_O};
    const fr_span *s = b->s;
    const int64_t H = w->hidden, z_row = w->blocks * s->z_block;
    const fr_range mine = fr_share(s, w->blocks);
    for (int64_t gate = 0; gate < 3; gate++) {
        if (!(w->peephole & bits[gate]))
            continue;
        const int64_t at = gate == 2 ? gates - 1 : gate - (gates == 3); /* its rows among the sums */
        for (int64_t block = mine.first; block < mine.last; block++) {
            const int64_t unit = block * VF_LANES;
            vf sum = vf_set1(0.0f);
            const float *dz = b->dz + at * H + unit, *record = z;
            for (int64_t t = first; t < b->end; record += fr_active(s, t) * z_row, t++)
                for (int64_t row = 0; row < fr_active(s, t); row++, dz += b->dz_row) {
                    const float *c = gate == 2 ? record + row * z_row + block * s->z_block + w->block_floats
                                               : fr_c_before(w, s, t, record, row, block);
                    sum = vf_fma(vf_load_n(dz, H - unit), vf_load_n(c, H - unit), sum);
                }
            float *to = b->gradients.dp + gate * H + unit;
            vf_store_n(to, vf_add(vf_load_n(to, H - unit), sum), H - unit);
        }
    }
}

FR_INLINE void fr_lstm_back_phase(int gates, bool defaults, const fr_panels *w, const fr_back_span *b, int64_t phase,
                                  int64_t t, const float *z)
{
    const int64_t sums_count = gates * w->hidden;
    if (phase == FR_BACK_STEP) {
        fr_lstm_back_step(gates, defaults, w, b, t, z, fr_back_group(b->s, t, true));
        fr_lstm_back_step(gates, defaults, w, b, t, z, fr_back_group(b->s, t, false));
    } else if (phase == FR_BACK_FINISH) {
        fr_lstm_back_finish(gates, w, b, t, z);
    } else if (phase == FR_BACK_STATE) {
        fr_back_state(w, b, sums_count);
    } else if (phase == FR_BACK_INPUT) {
        fr_back_input(w, b, t, sums_count);
    } else {
        fr_back_weights(w, b, t);
        if (!defaults && w->back_dependent_panels)
            fr_back_outer(b, b->dz + sums_count, w->outputs, fr_back_dz_rows(b, sums_count + w->outputs), w->hidden,
                          b->gradients.dP, b->gradients.dP_row);
        if (!defaults && w->peephole)
            fr_lstm_back_peepholes(gates, w, b, t, z);
    }
}

static void fr_lstm_back(const fr_panels *w, const fr_back_span *b, int64_t phase, int64_t t, const float *z)
{
    if (w->default_activations)
        fr_lstm_back_phase(4, true, w, b, phase, t, z);
    else
        fr_lstm_back_phase(4, false, w, b, phase, t, z);
}

static void fr_lstm_coupled_back(const fr_panels *w, const fr_back_span *b, int64_t phase, int64_t t, const float *z)
{
    fr_lstm_back_phase(3, false, w, b, phase, t, z);
}

#endif
