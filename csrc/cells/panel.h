/*
 * The panel product: sums of a register tile of `rows` rows x `blocks` unit blocks x G gates, each sum one vector of
 * VF_LANES units.
 *
 *   sum[row][block][gate] += sum over k of v[row][k] * panel[block][k][gate]
 *
 * A panel holds a unit block's weights in the order they are read, [K][G][L], so that the product is one forward stream
 * of memory per block, and the gates of a unit end side by side: the cell is computed from them there and then.
 *
 * The sums are in registers for the whole product, and come from and go to memory once. One function per shape of tile
 * serves all cells: were the cells inlined around the product, their constants would be kept in registers across it,
 * and the product would spill at every k.
 *
 * k ascends and is never split: a sum has the same bits whatever the tile. To keep the FMA units busy at one row, more
 * unit blocks are taken at once instead (4 sums in a chain would leave half of them idle: 2 per cycle, 4 cycles each).
 */
#ifndef FR_PANEL_H
#define FR_PANEL_H

#include <string.h>

#define FR_UNROLL _Pragma("GCC unroll 24")

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

/*
 * The shapes a tile may have for G gates: 1 to 6 rows; 1, 2, 4 or 8 unit blocks. The sums, a broadcast for each row and
 * a weight must fit the registers; more than 16 sums over several blocks gain nothing.
 */
#define FR_MOST_ROWS 6
#define FR_MOST_SUMS 24
#define FR_MAX_ROWS(gates)                                                                                             \
    ((VF_REGISTERS - 1) / ((gates) + 1) < FR_MOST_ROWS ? (VF_REGISTERS - 1) / ((gates) + 1) : FR_MOST_ROWS)
#define FR_FITS(rows, blocks, gates)                                                                                   \
    (((blocks) == 1 || (rows) * (blocks) * (gates) <= 16) && (rows) * ((blocks) * (gates) + 1) + 1 <= VF_REGISTERS)

/*
 * `count` rows cut into tiles of nearly equal height (7 rows are 4 + 3, not 6 + 1: a tile of one row is bound by
 * latency), and the most unit blocks taken at once.
 */
typedef struct {
    int64_t tiles, rows, higher; /* the first `higher` tiles have one row more */
    int64_t blocks;
} fr_tiling;

FR_INLINE fr_tiling fr_tile_rows(int64_t count, int gates)
{
    fr_tiling tiling = {1, count, 0, 1};
    if (count > FR_MAX_ROWS(gates)) { /* a small step would notice the divisions */
        tiling.tiles = (count + FR_MAX_ROWS(gates) - 1) / FR_MAX_ROWS(gates);
        tiling.rows = count / tiling.tiles;
        tiling.higher = count % tiling.tiles;
    }
    while (tiling.blocks < 8 && FR_FITS(tiling.rows + (tiling.higher > 0), tiling.blocks * 2, gates))
        tiling.blocks *= 2;
    return tiling;
}

FR_INLINE int64_t fr_some_blocks(int64_t most, int64_t left)
{
    while (most > left)
        most /= 2;
    return most;
}

/* for each group of unit blocks: statements with block, blocks */
#define FR_FOR_BLOCKS(tiling, all)                                                                                     \
    for (int64_t block = 0, blocks; block < (all) && (blocks = fr_some_blocks((tiling).blocks, (all) - block)) > 0;    \
         block += blocks)
/* for each tile of rows: statements with row, rows */
#define FR_FOR_ROWS(tiling)                                                                                            \
    for (int64_t tile = 0, row = 0, rows;                                                                              \
         tile < (tiling).tiles && (rows = (tiling).rows + (tile < (tiling).higher)) > 0; tile++, row += rows)

/* ---- the product ------------------------------------------------------------------------------------------------ */

/* Rows times panels: v[row] points to `depth` values, wherever they lie. */
typedef struct {
    const float *panel; /* of the tile's first block */
    const float *const *v;
    int64_t depth;
} fr_factor;

/* Where sums come from or go to: [row][block][gate][lane]. */
typedef struct {
    float *at;
    int64_t row_stride;
    int64_t block_stride;
} fr_sums;

FR_INLINE void fr_accumulate(vf *sum, int rows, int blocks, int gates, fr_factor f)
{
    const int64_t block_stride = f.depth * gates * VF_LANES;
    const float *v[FR_MOST_ROWS]; /* in registers: from f.v they would be read anew at every k */
    FR_UNROLL
    for (int row = 0; row < rows; row++)
        v[row] = f.v[row];
    for (int64_t k = 0; k < f.depth; k++) {
        vf value[FR_MOST_ROWS];
        FR_UNROLL
        for (int row = 0; row < rows; row++)
            value[row] = vf_set1(v[row][k]);
        FR_UNROLL
        for (int block = 0; block < blocks; block++) {
            const float *weights = f.panel + block * block_stride + k * gates * VF_LANES;
            FR_UNROLL
            for (int gate = 0; gate < gates; gate++) {
                const vf weight = vf_load(weights + gate * VF_LANES);
                FR_UNROLL
                for (int row = 0; row < rows; row++) {
                    vf *s = &sum[(row * blocks + block) * gates + gate];
                    *s = vf_fma(value[row], weight, *s);
                }
            }
        }
    }
}

FR_INLINE void fr_product_tile(int rows, int blocks, int gates, fr_sums from, fr_factor first, fr_factor second,
                               fr_sums to)
{
    vf sum[FR_MOST_SUMS];
    FR_UNROLL
    for (int k = 0; k < rows * blocks * gates; k++)
        sum[k] = vf_load(from.at + k / gates / blocks * from.row_stride + k / gates % blocks * from.block_stride +
                         k % gates * VF_LANES);
    fr_accumulate(sum, rows, blocks, gates, first);
    if (second.depth > 0)
        fr_accumulate(sum, rows, blocks, gates, second);
    FR_UNROLL
    for (int k = 0; k < rows * blocks * gates; k++)
        vf_store(to.at + k / gates / blocks * to.row_stride + k / gates % blocks * to.block_stride +
                     k % gates * VF_LANES,
                 sum[k]);
}

/* gcc would copy the products for every caller, clang does not know the attribute that forbids it. */
#if defined(__clang__)
#define FR_ONE_COPY __attribute__((noinline))
#else
#define FR_ONE_COPY __attribute__((noinline, noclone))
#endif

/* Sums are registers only if every loop over a tile is unrolled: rows and blocks become constants here. */
#define FR_SHAPE(ROWS, BLOCKS)                                                                                         \
    if (rows == ROWS && blocks == BLOCKS && FR_FITS(ROWS, BLOCKS, gates))                                              \
        fr_product_tile(ROWS, BLOCKS, gates, from, first, second, to);                                                 \
    else
#define FR_SHAPES(ROWS) FR_SHAPE(ROWS, 1) FR_SHAPE(ROWS, 2) FR_SHAPE(ROWS, 4) FR_SHAPE(ROWS, 8)
#define FR_PRODUCT(GATES)                                                                                              \
    static FR_ONE_COPY void fr_product_##GATES(int64_t rows, int64_t blocks, fr_sums from, fr_factor first,            \
                                               fr_factor second, fr_sums to)                                           \
    {                                                                                                                  \
        const int gates = GATES;                                                                                       \
        FR_SHAPES(1) FR_SHAPES(2) FR_SHAPES(3) FR_SHAPES(4) FR_SHAPES(5) FR_SHAPES(6) __builtin_unreachable();         \
    }
FR_PRODUCT(1)
FR_PRODUCT(2)
FR_PRODUCT(3)
FR_PRODUCT(4)

#define FR_INLINED_BLOCKS(gates) ((gates) == 1 ? 4 : 2)

/* to = from + first + second, for a tile; `second` may have depth 0. `gates` is a constant where this is called. */
FR_INLINE void fr_product(int gates, int64_t rows, int64_t blocks, fr_sums from, fr_factor first, fr_factor second,
                          fr_sums to)
{
    /* The batch of one of a small layer notices a call: its tile is the one that is copied to its callers. */
    if (rows == 1 && blocks == FR_INLINED_BLOCKS(gates)) {
        fr_product_tile(1, FR_INLINED_BLOCKS(gates), gates, from, first, second, to);
        return;
    }
    if (gates == 1)
        fr_product_1(rows, blocks, from, first, second, to);
    else if (gates == 2)
        fr_product_2(rows, blocks, from, first, second, to);
    else if (gates == 3)
        fr_product_3(rows, blocks, from, first, second, to);
    else
        fr_product_4(rows, blocks, from, first, second, to);
}

/* A product over h alone. */
static const fr_factor fr_nothing_more = {NULL, NULL, 0};

/* The sums of a tile, between its product and its cell. */
typedef struct {
    float sum[FR_MOST_SUMS * VF_LANES] __attribute__((aligned(64)));
} fr_tile;

FR_INLINE fr_sums fr_tile_sums(fr_tile *tile, int64_t blocks, int gates)
{
    return (fr_sums){tile->sum, blocks * gates * VF_LANES, gates * VF_LANES};
}

/* ---- rows and steps --------------------------------------------------------------------------------------------- */

FR_INLINE int64_t fr_active(const fr_span *s, int64_t t) { return s->active ? s->active[t] : s->batch; }

/* Where row's h is before step t. */
FR_INLINE const float *fr_h_before(const fr_span *s, int64_t t, int64_t row)
{
    return t > 0 ? s->y[row] + (t - 1) * s->y_step : s->h[row];
}

/*
 * The x-projection of `steps` steps from `first` on: a row z[block][gate][lane] = bias + x . weights for each running
 * row of each step, in order. It does not depend on h, so it is made ahead, with tall tiles. Blocks are the outer loop:
 * a panel comes from memory once and from cache for every further tile.
 */
FR_INLINE void fr_project(int gates, const fr_panels *w, const fr_span *s, int64_t first, int64_t steps)
{
    const int64_t z_row = w->blocks * w->block_floats;
    int64_t count = 0;
    for (int64_t t = first; t < first + steps; t++)
        for (int64_t row = 0; row < fr_active(s, t); row++)
            s->scratch_rows[count++] = s->x[row] + t * s->x_step;
    if (count == 0)
        return;
    const fr_tiling tiling = fr_tile_rows(count, gates);
    FR_FOR_BLOCKS (tiling, w->blocks) {
        const fr_sums bias = {(float *)w->bias + block * w->block_floats, 0, w->block_floats};
        const float *panel = w->x_panels + block * w->inputs * w->block_floats;
        FR_FOR_ROWS (tiling) {
            const fr_sums z = {s->scratch + row * z_row + block * w->block_floats, z_row, w->block_floats};
            const fr_factor x = {panel, s->scratch_rows + row, w->inputs};
            fr_product(gates, rows, blocks, bias, x, fr_nothing_more, z);
        }
    }
}

/* The state after each row's own last step, from its last output: outputs are where h lives while a sequence runs. */
FR_INLINE void fr_keep_state(const fr_panels *w, const fr_span *s)
{
    for (int64_t t = s->steps - 1, ended = 0; t >= 0; t--)
        for (; ended < fr_active(s, t); ended++)
            memcpy(s->h[ended], s->y[ended] + t * s->y_step, (size_t)w->outputs * sizeof(float));
}

/* ---- what a cell's options choose ------------------------------------------------------------------------------- */

FR_INLINE vf fr_limited(vf v, double limit) { return vf_max(vf_set1((float)-limit), vf_min(vf_set1((float)limit), v)); }

FR_INLINE vf fr_state_function(int64_t activation, vf v)
{
    if (activation == FR_RELU)
        return vf_max(vf_set1(0.0f), v);
    return activation == FR_IDENTITY ? v : fr_tanh(v);
}

/* A gate's sum through its activation. `plain` is a constant: the usual cell pays nothing for the options. */
FR_INLINE vf fr_gate(const fr_panels *w, bool plain, vf sum)
{
    if (plain)
        return fr_sigmoid(sum);
    sum = fr_limited(sum, w->clip);
    if (w->gate_activation == FR_SIGMOID)
        return fr_sigmoid(sum);
    const vf line = vf_fma(vf_set1((float)w->alpha), sum, vf_set1((float)w->beta));
    return vf_max(vf_set1(0.0f), vf_min(vf_set1(1.0f), line));
}

/* The sum of what is written through its activation. */
FR_INLINE vf fr_written(const fr_panels *w, bool plain, vf sum)
{
    return plain ? fr_tanh(sum) : fr_state_function(w->state_activation, fr_limited(sum, w->clip));
}

#endif
