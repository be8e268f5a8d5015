/*
 * int8: integers from -128 to 127, with a scale for each row of the matrix. Their product is one of integers, exact and
 * the same on every instruction set: a row of v is made integers, too, and only finished sums are floats.
 *
 *   q[k] = round(v[k] / step), step = max |v| / 16382
 *   to   = from + (step * scale) * sum w q
 *
 * Layout: a panel is [ceil(K / 4)][G][L] words of four weights, k to k + 3, with zeros for those that there are not. A
 * vector of words is widened to 16 bits half by half; a column has a sum for each half, in which a unit has two lanes.
 *
 * Numerics: `step` depends on the row and the time step alone, so a row never depends on its batch. 15 bits of v are a
 * hundred times as exact as 8 bits of a weight. A row that is 0, or below 2^-100, gives 0; one with a NaN or an
 * infinity gives NaN. Sums of FR_I8_SLICE products fit an int32; those of slices are added up as floats, in order.
 */
#ifndef FR_WEIGHTS_I8_H
#define FR_WEIGHTS_I8_H

#define FR_I8_SLICE 1024        /* 1024 * 128 * 16383 < 2^31 */
#define FR_Q_MAX 16382.0f       /* 16383 may be rounded to, in any rounding mode */
#define FR_Q_ROUNDING 0x1.8p23f /* the lower half of the bits of v / step + this is q */
#define FR_SMALLEST_ROW 0x1p-100f

/* max |v|; NaN if v has one. The bits of magnitudes ascend as the magnitudes do, and those of NaN are above. */
FR_INLINE float fr_largest(const float *v, int64_t depth)
{
    int32_t largest = 0;
    for (int64_t k = 0; k < depth; k++) {
        int32_t bits;
        memcpy(&bits, v + k, sizeof bits);
        bits &= 0x7fffffff;
        largest = largest > bits ? largest : bits;
    }
    float value;
    memcpy(&value, &largest, sizeof value);
    return value;
}

/* q of v[0] to v[depth - 1], and zeros up to a multiple of 4. */
FR_INLINE void fr_quantise(const float *v, int64_t depth, float per_step, int16_t *q)
{
    for (int64_t k = 0; k < depth; k++) {
        const float rounded = v[k] * per_step + FR_Q_ROUNDING;
        int32_t bits;
        memcpy(&bits, &rounded, sizeof bits);
        q[k] = (int16_t)bits;
    }
    for (int64_t k = depth; k % 4; k++)
        q[k] = 0;
}

/* The sums over `words` words of `columns` columns, gate by gate and block by block: [columns][2]. */
FR_INLINE void fr_i8_accumulate(vi *sums, int columns, int gates, const int8_t *weights, int64_t block_bytes,
                                int64_t words, const int16_t *q)
{
    vi sum[2 * FR_I8_COLUMNS]; /* in registers */
    FR_UNROLL
    for (int k = 0; k < 2 * columns; k++)
        sum[k] = vi_zero();
    for (int64_t k = 0; k < words; k++, weights += gates * 4 * VF_LANES) {
        const vi four = vi_set4(q + 4 * k);
        FR_UNROLL
        for (int column = 0; column < columns; column++) {
            const int8_t *word = weights + column / gates * block_bytes + column % gates * 4 * VF_LANES;
            sum[2 * column] = vi_dot(sum[2 * column], four, vi_widened(word));
            sum[2 * column + 1] = vi_dot(sum[2 * column + 1], four, vi_widened(word + 2 * VF_LANES));
            vi_keep(sum[2 * column]); /* or gcc copies them around, one of them through memory */
            vi_keep(sum[2 * column + 1]);
        }
    }
    FR_UNROLL
    for (int k = 0; k < 2 * columns; k++)
        sums[k] = sum[k];
}

#endif
