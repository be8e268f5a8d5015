/*
 * The product of a tile with weights of int8 (weights/i8.h). Rows of v are made integers once for all columns of the
 * tile. Its size is limited by its arrays, not by registers: to make the integers of a row is one of thirty
 * instructions.
 */
#ifndef FR_INTEGER_PRODUCT_H
#define FR_INTEGER_PRODUCT_H

/* The sums have functions of their own: beside what surrounds them, not all would have a register. */
typedef void (*fr_i8_dot)(vf *total, const int8_t *weights, int64_t block_bytes, int64_t words, const fr_integers *row,
                          const int8_t *weight_sums);

#define FR_I8_DOT(WAY, NAME, GATES, BLOCKS)                                                                            \
    static FR_ONE_COPY void fr_i8_##WAY##_##NAME##_##GATES(vf *total, const int8_t *weights, int64_t block_bytes,      \
                                                           int64_t words, const fr_integers *row,                      \
                                                           const int8_t *weight_sums)                                  \
    {                                                                                                                  \
        fr_i8_accumulate(WAY, (BLOCKS) * GATES, GATES, total, weights, block_bytes, words, row, weight_sums);          \
    }
#define FR_I8_DOTS(WAY, GATES)                                                                                         \
    FR_I8_DOT(WAY, block, GATES, 1)                                                                                    \
    FR_I8_DOT(WAY, blocks, GATES, fr_i8_columns(WAY) / GATES)
#define FR_I8_WAY(WAY)                                                                                                 \
    FR_I8_DOTS(WAY, 1)                                                                                                 \
    FR_I8_DOTS(WAY, 2)                                                                                                 \
    FR_I8_DOTS(WAY, 3)                                                                                                 \
    FR_I8_DOTS(WAY, 4)
FR_I8_WAY(FR_WIDE)
#ifdef VI_DOT
FR_I8_WAY(FR_DOT)
FR_I8_WAY(FR_DOT_2)
#endif
#ifdef VI_PAIRS
FR_I8_WAY(FR_BYTES)
#endif

/* Of a way: for one block, and for as many as there are registers for. */
static const fr_i8_dot fr_i8_dots[FR_I8_WAYS][4][2] = {
#define FR_PAIR(WAY, GATES) {fr_i8_##WAY##_block_##GATES, fr_i8_##WAY##_blocks_##GATES}
#define FR_WAY(WAY) [WAY] = {FR_PAIR(WAY, 1), FR_PAIR(WAY, 2), FR_PAIR(WAY, 3), FR_PAIR(WAY, 4)}
    FR_WAY(FR_WIDE),
#ifdef VI_DOT
    FR_WAY(FR_DOT),
    FR_WAY(FR_DOT_2),
#endif
#ifdef VI_PAIRS
    FR_WAY(FR_BYTES),
#endif
#undef FR_WAY
#undef FR_PAIR
};

/* The fastest way of this CPU. */
FR_INLINE int fr_i8_way_of(int64_t type)
{
#ifdef VI_DOT
    if (VI_DOT)
        return type == FR_I8 ? FR_DOT_2 : FR_DOT;
#endif
#ifdef VI_PAIRS
    if (type == FR_W8A7)
        return FR_BYTES;
#endif
    (void)type;
    return FR_WIDE;
}

FR_INLINE void fr_i8_rows(int way, const fr_row_step *steps, int64_t rows, const float *const *v, int64_t k,
                          int64_t depth, fr_integers *q)
{
    for (int64_t row = 0; row < rows; row++)
        fr_make_integers(way, v[row] + k, depth, steps[row].per_step, q + row);
}

/* to = from + f, for a tile. */
static FR_ONE_COPY void fr_product_i8(int gates, int64_t rows, int64_t blocks, const fr_sums *from, const fr_factor *f,
                                      const fr_sums *to)
{
    const int way = fr_i8_way_of(f->type);
    const int64_t row_bytes = gates * 4 * VF_LANES, block_bytes = fr_i8_depth(f->depth) / 4 * row_bytes;
    const int64_t columns = blocks * gates, many = fr_i8_columns(way) / gates;
    const int8_t *weights = f->panel, *weight_sums = weights + (f->depth + 3) / 4 * row_bytes;
    fr_row_step steps[FR_MAX_ROWS];
    vf total[FR_MAX_TILE_SUMS];
    for (int64_t row = 0; row < rows; row++)
        steps[row] = fr_row_step_of(f->type, f->v[row], f->depth);
    for (int64_t sum = 0; sum < rows * columns; sum++)
        total[sum] = vf_set1(0.0f);
    for (int64_t k = 0; k < f->depth; k += FR_I8_SLICE) {
        const int64_t depth = FR_MIN(f->depth - k, FR_I8_SLICE), words = (depth + 3) / 4;
        fr_integers q[FR_MAX_ROWS];
        if (way == FR_WIDE)
            fr_i8_rows(FR_WIDE, steps, rows, f->v, k, depth, q);
        else if (way == FR_DOT_2)
            fr_i8_rows(FR_DOT_2, steps, rows, f->v, k, depth, q);
        else /* FR_BYTES has the same rows as FR_DOT */
            fr_i8_rows(FR_DOT, steps, rows, f->v, k, depth, q);
        for (int64_t block = 0, more; block < blocks; block += more) {
            more = blocks - block < many ? 1 : many;
            const fr_i8_dot dot = fr_i8_dots[way][gates - 1][more > 1 || many == 1];
            for (int64_t row = 0; row < rows; row++) /* the weights are near from the second row on */
                dot(total + row * columns + block * gates, weights + block * block_bytes, block_bytes, words, q + row,
                    weight_sums + block * block_bytes);
        }
        weights += words * row_bytes;
        weight_sums += row_bytes;
    }
    for (int64_t row = 0; row < rows; row++) {
        vf step = vf_set1(steps[row].step);
        vf_keep(step);
        for (int64_t block = 0; block < blocks; block++) {
            const float *start = from->at + row * from->row_stride + block * from->block_stride;
            const float *scales = f->scales + block * gates * VF_LANES;
            const vf *sums = total + row * columns + block * gates;
            float *end = to->at + row * to->row_stride + block * to->block_stride;
            for (int64_t gate = 0; gate < gates; gate++) {
                const vf scale = vf_mul(step, vf_load(scales + gate * VF_LANES));
                vf_store(end + gate * VF_LANES, vf_fma(scale, sums[gate], vf_load(start + gate * VF_LANES)));
            }
        }
    }
}

#endif
