/*
 * The backward pass: what all cells share. For a row and step, with dz the gradients of the sums of its gates:
 *
 *   dh   = dy + R^T dz of the step after, and what the cell hands on beside the product
 *   dz   = the cell's derivative, from dh and the record of the step        in the cells' own files
 *   dW  += dz x^T     dR += dz h^T     db += dz     dx = W^T dz             h: of the step before
 *
 * Shapes and layout: a row of dz has the order of the rows of canonical weights, whatever L is. A backward step is then
 * a forward step with one gate and depth G * H, of the same product. Gradients of weights are sums over rows of steps:
 * the same tile once more, with columns of dz for its rows, and rows of x or h gathered into a panel.
 *
 * Fused: the cell's derivative is computed from the sums of a tile of dh at once. Products that need no later step are
 * made for a chunk of steps, while its dz is near: they are bound by arithmetic, not by memory.
 *
 * Numerics: each gradient of a weight has one chain of additions over the rows of a chunk, from 0, and is added once
 * for each chunk: (rows + chunks) roundings instead of rows * chunks. Chunks depend on shapes alone, so gradients have
 * the same bits for any number of threads, and on every instruction set with FMA.
 */
#ifndef FR_BACK_H
#define FR_BACK_H

/* ---- products --------------------------------------------------------------------------------------------------- */

/* to = to + the sum over k of v[row][k * v_step] * panel[block][k]: of one chain, added once. */
FR_INLINE void fr_outer_tile(int rows, int blocks, fr_factor f, int64_t v_step, fr_sums to)
{
    vf sum[FR_MAX_SUMS];
    FR_UNROLL
    for (int k = 0; k < rows * blocks; k++)
        sum[k] = vf_set1(0.0f);
    fr_accumulate(FR_F32, sum, rows, blocks, 1, f, v_step);
    FR_UNROLL
    for (int k = 0; k < rows * blocks; k++) {
        float *at = to.at + k / blocks * to.row_stride + k % blocks * VF_LANES;
        vf_store(at, vf_add(vf_load(at), sum[k]));
    }
}

#define FR_OUTER_SHAPE(ROWS, BLOCKS)                                                                                   \
    case ROWS * 16 + BLOCKS:                                                                                           \
        if (FR_FITS(ROWS, BLOCKS, 1)) {                                                                                \
            fr_outer_tile(ROWS, BLOCKS, *f, v_step, *to);                                                              \
            return;                                                                                                    \
        }                                                                                                              \
        break;
#define FR_OUTER_SHAPES(ROWS)                                                                                          \
    FR_OUTER_SHAPE(ROWS, 1) FR_OUTER_SHAPE(ROWS, 2) FR_OUTER_SHAPE(ROWS, 4) FR_OUTER_SHAPE(ROWS, 8)
static FR_ONE_COPY void fr_outer(int64_t rows, int64_t blocks, const fr_factor *f, int64_t v_step, const fr_sums *to)
{
    switch (rows * 16 + blocks) {
        FR_OUTER_SHAPES(1)
        FR_OUTER_SHAPES(2)
        FR_OUTER_SHAPES(3)
        FR_OUTER_SHAPES(4)
        FR_OUTER_SHAPES(5)
        FR_OUTER_SHAPES(6)
    }
    __builtin_unreachable();
}

/* ---- dh --------------------------------------------------------------------------------------------------------- */

/* Of rows of dz, the product with transposed panels, from 0. */
FR_INLINE void fr_back_product(const fr_tile *tile, const float *panels, int64_t depth, const float *v, int64_t v_row,
                               fr_sums sums)
{
    static const float zeros[FR_MAX_BLOCKS * VF_LANES];
    const float *rows[FR_MAX_ROWS];
    for (int64_t k = 0; k < tile->rows; k++)
        rows[k] = v + (tile->row + k) * v_row;
    const fr_factor f = fr_tile_factor(tile, fr_float_matrix(panels), 1, depth, rows);
    fr_product(1, tile->rows, tile->blocks, (fr_sums){(float *)zeros, 0, VF_LANES}, f, fr_no_factor, sums);
}

/* The number of rows that are running after step t: theirs is the product with dz of the step after. */
FR_INLINE int64_t fr_active_after(const fr_span *s, int64_t t) { return t + 1 < s->steps ? fr_active(s, t + 1) : 0; }

/* Rows of a step that are alike: those that run on, whose dh has a product, or those that end with the step. */
typedef struct {
    int64_t first, count;
    bool product;
} fr_back_rows;

FR_INLINE fr_back_rows fr_back_group(const fr_span *s, int64_t t, bool run_on)
{
    const int64_t after = fr_active_after(s, t);
    return run_on ? (fr_back_rows){0, after, true} : (fr_back_rows){after, fr_active(s, t) - after, false};
}

/* Fetches a tile's records, and dy, of the step before t while the product of step t computes: c is read there at once,
 * the sums one step later. The tape is far larger than a cache, and its rows are read in short pieces, from the last to
 * the first: left to the hardware, these reads take as long as the derivative. */
FR_INLINE void fr_fetch_records(const fr_panels *w, const fr_back_span *b, int64_t t, const float *z, int64_t first_row,
                                const fr_tile *tile)
{
    const fr_span *s = b->s;
    const int64_t z_row = w->blocks * s->z_block, floats = tile->blocks * s->z_block;
    z -= fr_active(s, t - 1) * z_row;
    for (int64_t k = 0; k < tile->rows; k++) {
        const float *record = z + (first_row + tile->row + k) * z_row + tile->block * s->z_block;
        for (int64_t at = 0; at < floats; at += FR_LINE_FLOATS)
            __builtin_prefetch(record + at, 0, 3);
        __builtin_prefetch(b->dy[first_row + tile->row + k] + (t - 1) * b->dy_step + tile->block * VF_LANES, 0, 3);
    }
}

/* The gradients of h' of a tile's units at step t, or of the h before step 0 if t is -1. `depth` gradients of sums of
 * the step after are multiplied with R. */
FR_INLINE void fr_back_h(const fr_panels *w, const fr_back_span *b, int64_t t, int64_t depth, const float *z,
                         fr_back_rows group, const fr_tile *tile, fr_sums sums)
{
    const fr_span *s = b->s;
    if (t > 0)
        fr_fetch_records(w, b, t, z, group.first, tile);
    if (group.product) /* rows that run on are the first ones */
        fr_back_product(tile, w->back_h_panels, depth, b->dz_after, b->dz_row, sums);
    for (int64_t k = 0; k < tile->rows; k++) {
        const int64_t row = group.first + tile->row + k;
        const bool ends = !group.product || fr_resets(s, t + 1, row); /* nothing of the step after reaches this one */
        for (int64_t j = 0; j < tile->blocks; j++) {
            const int64_t unit = (tile->block + j) * VF_LANES, rest = w->outputs - unit;
            float *at = sums.at + k * sums.row_stride + j * sums.block_stride;
            vf dh = vf_load_n(b->dh[row] + unit, rest);
            if (!ends)
                dh = vf_add(vf_load(at), dh);
            if (t >= 0)
                dh = vf_add(vf_load_n(b->dy[row] + t * b->dy_step + unit, rest), dh);
            vf_store(at, dh);
        }
    }
}

/* The gradients of the h before step 0, of one tile. */
FR_INLINE void fr_back_state_tile(const fr_panels *w, const fr_back_span *b, int64_t depth, const fr_tile *tile)
{
    fr_tile_sums memory;
    const fr_sums sums = fr_sums_in(&memory, tile->blocks, 1);
    fr_back_h(w, b, -1, depth, NULL, fr_back_group(b->s, -1, true), tile, sums);
    for (int64_t k = 0; k < tile->rows; k++)
        for (int64_t j = 0; j < tile->blocks; j++) {
            const int64_t unit = (tile->block + j) * VF_LANES;
            vf_store_n(b->dh[tile->row + k] + unit, vf_load(sums.at + k * sums.row_stride + j * sums.block_stride),
                       w->outputs - unit);
        }
}

FR_INLINE void fr_back_state(const fr_panels *w, const fr_back_span *b, int64_t depth)
{
    const fr_tiling tiling = fr_tile_rows(FR_F32, fr_active(b->s, 0), 1);
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(b->s, (w->outputs + VF_LANES - 1) / VF_LANES), false)
        fr_back_state_tile(w, b, depth, &tile);
}

/* ---- a chunk: gradients of x and of weights ---------------------------------------------------------------------- */

/* dx of the chunk's rows, divided by rows. `late`: the part of dz behind the sums whose weights are back_late_panels.
 */
FR_INLINE void fr_back_input(const fr_panels *w, const fr_back_span *b, int64_t first, int64_t sums_count)
{
    const fr_span *s = b->s;
    const int64_t X = w->inputs, H = w->hidden, gates_rows = w->block_floats / VF_LANES * H;
    static const float zeros[FR_MAX_BLOCKS * VF_LANES];
    float **rows = (float **)b->rows;
    int64_t count = 0;
    for (int64_t t = first; t < b->end; t++)
        for (int64_t row = 0; row < fr_active(s, t); row++)
            rows[count++] = b->dx[row] + t * b->dx_step;
    const int64_t begin = count * s->share / s->shares, end = count * (s->share + 1) / s->shares;
    if (begin == end)
        return;
    const fr_tiling tiling = fr_tile_rows(FR_F32, end - begin, 1);
    const fr_range all = {0, (X + VF_LANES - 1) / VF_LANES};
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, all, false) {
        const float *v[FR_MAX_ROWS], *late[FR_MAX_ROWS];
        fr_tile_sums memory;
        const fr_sums sums = fr_sums_in(&memory, tile.blocks, 1);
        for (int64_t k = 0; k < tile.rows; k++) {
            v[k] = b->dz + (begin + tile.row + k) * b->dz_row;
            late[k] = v[k] + gates_rows;
        }
        const fr_factor W_dz = fr_tile_factor(&tile, fr_float_matrix(w->back_x_panels), 1, sums_count, v);
        const fr_factor W_late = w->back_late_panels
                                     ? fr_tile_factor(&tile, fr_float_matrix(w->back_late_panels), 1, H, late)
                                     : fr_no_factor;
        fr_product(1, tile.rows, tile.blocks, (fr_sums){(float *)zeros, 0, VF_LANES}, W_dz, W_late, sums);
        for (int64_t k = 0; k < tile.rows; k++)
            for (int64_t j = 0; j < tile.blocks; j++) {
                const int64_t input = (tile.block + j) * VF_LANES;
                float *dx = rows[begin + tile.row + k] + input;
                vf sum = vf_load(sums.at + k * sums.row_stride + j * sums.block_stride);
                if (b->adds_dx)
                    sum = vf_add(vf_load_n(dx, X - input), sum);
                vf_store_n(dx, sum, X - input);
            }
    }
}

/* Copies the columns of a tile of `rows` of them: to[k][row] = values[k * stride + row]. */
FR_INLINE void fr_copy_columns(int64_t rows, const float *values, int64_t stride, int64_t K, float *to)
{
#define FR_COPY(ROWS)                                                                                                  \
    case ROWS:                                                                                                         \
        for (int64_t k = 0; k < K; k++)                                                                                \
            memcpy(to + k * ROWS, values + k * stride, ROWS * sizeof(float));                                          \
        return;
    switch (rows) { /* a copy of constant size is a move or two */
        FR_COPY(1)
        FR_COPY(2)
        FR_COPY(3)
        FR_COPY(4)
        FR_COPY(5)
        FR_COPY(6)
    }
#undef FR_COPY
    __builtin_unreachable();
}

/*
 * to[i][feature] += the sum over the chunk's rows of values[row][i] * right[row][feature]; divided by i. A tile's
 * columns of values are copied side by side first: in dz each k is on a page of its own, and the tile would wait for
 * the TLB at each k, for each tile of features.
 */
FR_INLINE void fr_back_outer(const fr_back_span *b, const float *values, int64_t count, const float *const *right,
                             int64_t features, float *to, int64_t to_row)
{
    const int64_t K = b->chunk_rows, share = b->s->share, shares = b->s->shares;
    const int64_t begin = count * share / shares, end = count * (share + 1) / shares;
    if (begin == end)
        return;
    const fr_tiling tiling = fr_tile_rows(FR_F32, end - begin, 1);
    const fr_range all = {0, (features + VF_LANES - 1) / VF_LANES};
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, all, false) {
        float *columns = b->columns + tile.row * K;
        if (tile.number == 0) /* these features are new */
            for (int64_t k = 0; k < K; k++)
                for (int64_t j = 0; j < tile.blocks; j++) {
                    const int64_t feature = (tile.block + j) * VF_LANES;
                    vf_store(b->gathered + (j * K + k) * VF_LANES, vf_load_n(right[k] + feature, features - feature));
                }
        if (tile.block == 0)
            fr_copy_columns(tile.rows, values + begin + tile.row, b->dz_row, K, columns);
        const float *v[FR_MAX_ROWS];
        for (int64_t k = 0; k < tile.rows; k++)
            v[k] = columns + k;
        const fr_factor f = {.panel = b->gathered, .v = v, .depth = K, .ahead = (const char *)b->gathered};
        const fr_sums sums = {to + (begin + tile.row) * to_row + tile.block * VF_LANES, to_row, VF_LANES};
        fr_outer(tile.rows, tile.blocks, &f, tile.rows, &sums);
    }
}

/* to[i] += the sum over the chunk's rows of values[row][i]; divided by i. */
FR_INLINE void fr_back_sum(const fr_back_span *b, const float *values, int64_t count, float *to)
{
    const fr_range mine = fr_share(b->s, (count + VF_LANES - 1) / VF_LANES);
    for (int64_t block = mine.first; block < mine.last; block++) {
        const int64_t i = block * VF_LANES;
        vf sum = vf_set1(0.0f);
        for (int64_t k = 0; k < b->chunk_rows; k++)
            sum = vf_add(sum, vf_load_n(values + k * b->dz_row + i, count - i));
        vf_store_n(to + i, vf_add(vf_load_n(to + i, count - i), sum), count - i);
    }
}

/* The rows of x of a chunk, the rows of h before each of its steps, or the parts of its rows of dz from `at` on. */
FR_INLINE const float *const *fr_back_x_rows(const fr_back_span *b, int64_t first)
{
    int64_t count = 0;
    for (int64_t t = first; t < b->end; t++)
        for (int64_t row = 0; row < fr_active(b->s, t); row++)
            b->rows[count++] = b->s->x[row] + t * b->s->x_step;
    return b->rows;
}

FR_INLINE const float *const *fr_back_h_rows(const fr_back_span *b, int64_t first)
{
    int64_t count = 0;
    for (int64_t t = first; t < b->end; t++)
        for (int64_t row = 0; row < fr_active(b->s, t); row++)
            b->rows[count++] = fr_h_before(b->s, t, row);
    return b->rows;
}

FR_INLINE const float *const *fr_back_dz_rows(const fr_back_span *b, int64_t at)
{
    for (int64_t k = 0; k < b->chunk_rows; k++)
        b->rows[k] = b->dz + k * b->dz_row + at;
    return b->rows;
}

/* What most cells add: dW, dR and db, all from the gradients of the sums. */
static void fr_back_weights(const fr_panels *w, const fr_back_span *b, int64_t first)
{
    const int64_t rows = w->block_floats / VF_LANES * w->hidden;
    const fr_weight_gradients *g = &b->gradients;
    fr_back_outer(b, b->dz, rows, fr_back_x_rows(b, first), w->inputs, g->dW, g->dW_row);
    fr_back_outer(b, b->dz, rows, fr_back_h_rows(b, first), w->outputs, g->dR, g->dR_row);
    fr_back_sum(b, b->dz, rows, g->db);
}

#endif
