/*
 * int8: integers from -128 to 127, with a scale for each row of the matrix. Their product is one of integers, exact and
 * the same on every instruction set: a row of v is made integers, too, and only finished sums are floats.
 *
 *   q[k] = round(v[k] / step), step = max |v| / FR_Q15, or FR_Q7 for FR_W8A7
 *   to   = from + (step * scale) * sum w q
 *
 * Layout: a panel is [ceil(K / 4)][G][L] words of four weights, k to k + 3, with zeros for those that there are not.
 * Behind them is [ceil(K / FR_I8_SLICE)][G][L] of int32, the sum of the weights of each slice.
 *
 * Numerics: `step` depends on the row and the time step alone, so a row never depends on its batch. 15 bits of v are a
 * hundred times as exact as 8 bits of a weight. A row that is 0, or below 2^-100, gives 0; one with a NaN or an
 * infinity gives NaN. Sums of FR_I8_SLICE products fit an int32; those of slices are added up as floats, in order.
 *
 * There are several ways to the same integers. Where bytes of v are unsigned in the CPU's products, a constant is added
 * to q, so that it is not negative. A sum is then too large by that constant times the sum of the weights, which is
 * subtracted at the end.
 *
 *   FR_WIDE   weights are widened to 16 bits, half a vector at a time; a column has a sum for each half
 *   FR_BYTES  bytes of v, q + 64 <= 128: pairs of products stay within 16 bits
 *   FR_DOT    bytes of v, by an instruction that multiplies and adds four of them
 *   FR_DOT_2  two bytes of v, for 15 bits: q = 128 first + second; a column has a sum for each
 */
#ifndef FR_WEIGHTS_I8_H
#define FR_WEIGHTS_I8_H

/* What is added to q. */
#define FR_Q7_OFFSET (VI_UNSIGNED * 64)
#define FR_Q15_OFFSET (VI_UNSIGNED * 16384)

enum fr_i8_way { FR_WIDE, FR_BYTES, FR_DOT, FR_DOT_2, FR_I8_WAYS };

/* A slice of a row as integers. */
typedef union {
    int16_t q[FR_I8_SLICE]; /* FR_WIDE */
    struct {
        uint8_t first[FR_I8_SLICE];
        uint8_t second[FR_I8_SLICE];
    };
} fr_integers __attribute__((aligned(64)));

/* max |v|; NaN if v has one. The bits of magnitudes ascend as the magnitudes do, and those of NaN are above. */
FR_INLINE float fr_largest(const float *v, int64_t depth)
{
    vi found = vi_zero(), magnitude = vi_set1(0x7fffffff);
    vi_keep(magnitude);
    for (int64_t k = 0; k < depth; k += VF_LANES)
        found = vi_max(found, vi_and(vi_bits(vf_load_n(v + k, depth - k)), magnitude));
    int32_t lanes[VF_LANES], largest = 0;
    vi_store(lanes, found);
    for (int64_t lane = 0; lane < VF_LANES; lane++)
        largest = largest > lanes[lane] ? largest : lanes[lane];
    float value;
    memcpy(&value, &largest, sizeof value);
    return value;
}

/* What a row of v is divided by to be integers. */
typedef struct {
    float step;
    float per_step; /* 1 / step; 0 where the row gives 0 or NaN */
} fr_row_step;

FR_INLINE fr_row_step fr_row_step_of(int64_t type, const float *v, int64_t depth)
{
    const float largest = fr_largest(v, depth), q_max = type == FR_I8 ? FR_Q15 : FR_Q7;
    if (largest >= FR_SMALLEST_ROW && largest < INFINITY)
        return (fr_row_step){largest / q_max, q_max / largest};
    return (fr_row_step){largest < FR_SMALLEST_ROW ? 0.0f : NAN, 0.0f};
}

/* v[0] to v[depth - 1] as integers. Zeros fill up the last vector. */
FR_INLINE void fr_make_integers(int way, const float *v, int64_t depth, float per_step, fr_integers *row)
{
    vf scale = vf_set1(per_step);
    vf rounding = vf_set1(FR_Q_ROUNDING + (float)(way == FR_WIDE ? 0 : way == FR_DOT_2 ? FR_Q15_OFFSET : FR_Q7_OFFSET));
    vi low_7 = vi_set1(127);
    vf_keep(scale); /* constants in registers: else they are made anew for each vector */
    vf_keep(rounding);
    vi_keep(low_7);
    for (int64_t k = 0; k < depth; k += VF_LANES) {
        const vi bits = vi_bits(vf_add(vf_mul(vf_load_n(v + k, depth - k), scale), rounding));
        if (way == FR_WIDE)
            vi_store_halves(row->q + k, bits);
#ifdef VI_DOT
        else if (way == FR_DOT_2) {
            vi_store_bytes(row->first + k, vi_shr7(bits));
            vi_store_bytes(row->second + k, vi_and(bits, low_7));
        } else
            vi_store_bytes(row->first + k, bits);
#endif
    }
}

FR_INLINE int fr_i8_sums_of(int way) { return way == FR_WIDE || way == FR_DOT_2 ? 2 : 1; }

/* The number of columns whose sums fill half of the registers, or at most eight. */
FR_INLINE int fr_i8_columns(int way) { return VF_REGISTERS < 32 && fr_i8_sums_of(way) == 2 ? 4 : 8; }

/* Adds the products of one word of four weights, word k of a row, to the sums of a column. `ones` are int16. */
FR_INLINE void fr_i8_add(int way, vi *sum, const fr_integers *row, int64_t k, const int8_t *word, vi ones)
{
    if (way == FR_WIDE) {
        const vi q = vi_set4(row->q + 4 * k);
        sum[0] = vi_dot(sum[0], q, vi_widened(word));
        sum[1] = vi_dot(sum[1], q, vi_widened(word + 2 * VF_LANES));
    }
#ifdef VI_DOT
    const vi first = vi_set_word(row->first + 4 * k);
#ifdef VI_PAIRS
    if (way == FR_BYTES)
        sum[0] = vi_dot_pairs(sum[0], first, vi_load(word), ones);
#endif
    if (way == FR_DOT)
        sum[0] = vi_dot_bytes(sum[0], first, vi_load(word));
    if (way == FR_DOT_2) {
        vi weights = vi_load(word);
        vi_keep(weights); /* one load */
        sum[0] = vi_dot_bytes(sum[0], first, weights);
        sum[1] = vi_dot_bytes(sum[1], vi_set_word(row->second + 4 * k), weights);
    }
#endif
    (void)ones;
    vi_keep(sum[0]); /* or gcc copies sums around, one of them through memory */
    if (fr_i8_sums_of(way) == 2)
        vi_keep(sum[1]);
}

/* The sum of a column, rounded to float. */
FR_INLINE vf fr_i8_sum(int way, const vi *sum, const int8_t *weight_sums)
{
#ifdef VI_DOT
    if (way == FR_BYTES || way == FR_DOT)
        return vf_rounded(vi_less(sum[0], vi_load(weight_sums), FR_Q7_OFFSET));
    if (way == FR_DOT_2)
        return vf_rounded(vi_less(vi_add(vi_shl7(sum[0]), sum[1]), vi_load(weight_sums), FR_Q15_OFFSET));
#endif
    (void)way, (void)weight_sums;
    return vf_joined(sum[0], sum[1]);
}

/* Adds to `total` the sums over `words` words of `columns` columns, gate by gate and block by block. `weight_sums` is
 * where those of the slice are in the panel of the first block. */
FR_INLINE void fr_i8_accumulate(int way, int columns, int gates, vf *total, const int8_t *weights, int64_t block_bytes,
                                int64_t words, const fr_integers *row, const int8_t *weight_sums)
{
    const int each = fr_i8_sums_of(way);
    vi sum[2 * 8], ones = vi_set1(0x00010001);
    vi_keep(ones);
    FR_UNROLL
    for (int k = 0; k < each * columns; k++)
        sum[k] = vi_zero();
    for (int64_t k = 0; k < words; k++, weights += gates * 4 * VF_LANES) {
        FR_UNROLL
        for (int column = 0; column < columns; column++)
            fr_i8_add(way, sum + each * column, row, k,
                      weights + column / gates * block_bytes + column % gates * 4 * VF_LANES, ones);
    }
    FR_UNROLL
    for (int column = 0; column < columns; column++) {
        const int8_t *of = weight_sums + column / gates * block_bytes + column % gates * 4 * VF_LANES;
        total[column] = vf_add(total[column], fr_i8_sum(way, sum + each * column, of));
    }
}

#endif
