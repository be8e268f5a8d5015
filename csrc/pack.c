/*
 * Canonical weights to panels. Compiled for the baseline CPU alone: copying takes most of the time, 0.15 ns a float out
 * of L2 where memcpy takes 0.09, and wider registers copy no faster.
 */
#include "fusedrnn.h"

#include "simd/baseline.h"

/* The depth that is packed at once: what it reads and writes, for 4 gates of 16 lanes, is in L1 until its lines are
 * full. */
#define DEPTH_FLOATS 64

static const float zero_row[DEPTH_FLOATS];

/* The four columns of four rows. */
static inline void transpose(vf *a, vf *b, vf *c, vf *d)
{
    const vf ab_low = __builtin_shufflevector(*a, *b, 0, 4, 1, 5);
    const vf ab_high = __builtin_shufflevector(*a, *b, 2, 6, 3, 7);
    const vf cd_low = __builtin_shufflevector(*c, *d, 0, 4, 1, 5);
    const vf cd_high = __builtin_shufflevector(*c, *d, 2, 6, 3, 7);
    *a = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
    *b = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
    *c = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
    *d = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

/* Four lanes of a gate, DEPTH_FLOATS deep at most: the columns of `count` rows, and zeros for those that there are not.
 */
static void pack_lanes(const float *rows, int64_t stride, int64_t count, int64_t depth, float *to, int64_t step)
{
    const float *a = count > 0 ? rows : zero_row;
    const float *b = count > 1 ? rows + stride : zero_row;
    const float *c = count > 2 ? rows + 2 * stride : zero_row;
    const float *d = count > 3 ? rows + 3 * stride : zero_row;
    int64_t k = 0;
    for (; k + VF_LANES <= depth; k += VF_LANES, to += VF_LANES * step) {
        vf column[VF_LANES] = {vf_load(a + k), vf_load(b + k), vf_load(c + k), vf_load(d + k)};
        transpose(&column[0], &column[1], &column[2], &column[3]);
        vf_store(to, column[0]);
        vf_store(to + step, column[1]);
        vf_store(to + 2 * step, column[2]);
        vf_store(to + 3 * step, column[3]);
    }
    for (; k < depth; k++, to += step)
        vf_store(to, (vf){a[k], b[k], c[k], d[k]});
}

void fr_pack(const float *rows, int64_t stride, int64_t units, int64_t depth, int64_t gates, int64_t lanes,
             float *panels)
{
    const int64_t step = gates * lanes;
    for (int64_t first = 0; first < units; first += lanes)
        for (int64_t k = 0; k < depth; k += DEPTH_FLOATS)
            for (int64_t gate = 0; gate < gates; gate++)
                for (int64_t lane = 0; lane < lanes; lane += VF_LANES) {
                    const int64_t unit = first + lane;
                    const int64_t count = unit < units ? units - unit : 0;
                    const float *from = count ? rows + (gate * units + unit) * stride + k : rows;
                    pack_lanes(from, stride, count, depth - k < DEPTH_FLOATS ? depth - k : DEPTH_FLOATS,
                               panels + first * depth * gates + k * step + gate * lanes + lane, step);
                }
}

/* Each weight on its own: a narrow layer is packed once. */
void fr_pack_16(const uint16_t *rows, int64_t stride, int64_t units, int64_t depth, int64_t gates, int64_t lanes,
                uint16_t *panels)
{
    for (int64_t first = 0; first < units; first += lanes)
        for (int64_t k = 0; k < depth; k++)
            for (int64_t gate = 0; gate < gates; gate++)
                for (int64_t unit = first; unit < first + lanes; unit++)
                    *panels++ = unit < units ? rows[(gate * units + unit) * stride + k] : 0;
}

void fr_pack_8(const int8_t *rows, int64_t stride, int64_t units, int64_t depth, int64_t gates, int64_t lanes,
               int8_t *panels)
{
    for (int64_t first = 0; first < units; first += lanes) {
        for (int64_t k = 0; k < depth; k += 4)
            for (int64_t gate = 0; gate < gates; gate++)
                for (int64_t unit = first; unit < first + lanes; unit++)
                    for (int64_t j = k; j < k + 4; j++)
                        *panels++ = unit < units && j < depth ? rows[(gate * units + unit) * stride + j] : 0;
        for (int64_t k = 0; k < depth; k += FR_I8_SLICE)
            for (int64_t gate = 0; gate < gates; gate++)
                for (int64_t unit = first; unit < first + lanes; unit++) {
                    int32_t sum = 0;
                    if (unit < units)
                        for (int64_t j = k; j < depth && j < k + FR_I8_SLICE; j++)
                            sum += rows[(gate * units + unit) * stride + j];
                    memcpy(panels, &sum, sizeof sum);
                    panels += sizeof sum;
                }
    }
}

int64_t fr_panel_weights(int64_t weight_type, int64_t depth)
{
    return fr_is_i8(weight_type) ? fr_i8_depth(depth) : depth;
}

/* Where a column begins in panels of one gate. */
static inline float *column_of(float *panels, int64_t depth, int64_t lanes, int64_t column)
{
    return panels + column / lanes * lanes * depth + column % lanes;
}

void fr_pack_transposed(const float *rows, int64_t stride, int64_t depth, int64_t columns, int64_t lanes, float *panels)
{
    int64_t column = 0;
    /* A whole cache line of each row: read block by block of fewer lanes, it would leave L1 before its other half is.
     */
    for (; column + FR_LINE_FLOATS <= columns; column += FR_LINE_FLOATS) {
        const float *from = rows + column;
        float *a = column_of(panels, depth, lanes, column);
        float *b = column_of(panels, depth, lanes, column + VF_LANES);
        float *c = column_of(panels, depth, lanes, column + 2 * VF_LANES);
        float *d = column_of(panels, depth, lanes, column + 3 * VF_LANES);
        for (int64_t k = 0; k < depth; k++, from += stride) {
            vf_store(a + k * lanes, vf_load(from));
            vf_store(b + k * lanes, vf_load(from + VF_LANES));
            vf_store(c + k * lanes, vf_load(from + 2 * VF_LANES));
            vf_store(d + k * lanes, vf_load(from + 3 * VF_LANES));
        }
    }
    for (; column < columns || column % lanes; column += VF_LANES) {
        float *to = column_of(panels, depth, lanes, column);
        for (int64_t k = 0; k < depth; k++)
            vf_store(to + k * lanes,
                     column < columns ? vf_load_n(rows + k * stride + column, columns - column) : (vf){0});
    }
}
