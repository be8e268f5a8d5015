/*
 * The panel product: sums of a register tile of `rows` rows x `blocks` unit blocks x G gates, each sum one vector of
 * VF_LANES units.
 *
 *   sum[row][block][gate] += sum over k of v[row][k] * panel[block][k][gate]
 *
 * A panel holds a unit block's weights in the order they are read, [K][G][L], so that the product is one forward stream
 * of memory per block, and the gates of a unit end in registers side by side: the cell is computed there, without a
 * store in between.
 *
 * k ascends and is never split: a sum has the same bits whatever the tile. To keep the FMA units busy at one row, more
 * unit blocks are taken at once instead (4 sums in a chain would leave half of them idle: 2 per cycle, 4 cycles each).
 */
#ifndef FR_PANEL_H
#define FR_PANEL_H

#include <string.h>

#define FR_UNROLL _Pragma("GCC unroll 24")
#define FR_ROLLED _Pragma("GCC unroll 1")

/* The shapes a tile may have for G gates. Sums are registers only if every loop over a tile is unrolled, so `rows` and
 * `blocks` are constants wherever a tile function is called: FR_WITH_TILE sees to that. */
#define FR_MAX_BLOCKS 2
#define FR_MAX_ROWS(gates) (VF_ACCUMULATORS / (gates) < 6 ? VF_ACCUMULATORS / (gates) : 6)
#define FR_BLOCKS(rows, gates) ((rows) * (gates) * FR_MAX_BLOCKS <= VF_ACCUMULATORS ? FR_MAX_BLOCKS : 1)

#define FR_TILE_CASE(ROWS, blocks, gates, tile, ...)                                                                   \
    case ROWS:                                                                                                         \
        if (ROWS <= FR_MAX_ROWS(gates)) {                                                                              \
            if ((blocks) == FR_MAX_BLOCKS)                                                                             \
                tile(ROWS, FR_BLOCKS(ROWS, gates), __VA_ARGS__);                                                       \
            else                                                                                                       \
                tile(ROWS, 1, __VA_ARGS__);                                                                            \
        }                                                                                                              \
        break;
#define FR_WITH_TILE(rows, blocks, ...)                                                                                \
    switch (rows) {                                                                                                    \
        FR_TILE_CASE(1, blocks, __VA_ARGS__)                                                                           \
        FR_TILE_CASE(2, blocks, __VA_ARGS__)                                                                           \
        FR_TILE_CASE(3, blocks, __VA_ARGS__)                                                                           \
        FR_TILE_CASE(4, blocks, __VA_ARGS__)                                                                           \
        FR_TILE_CASE(5, blocks, __VA_ARGS__)                                                                           \
        FR_TILE_CASE(6, blocks, __VA_ARGS__)                                                                           \
    }

/*
 * `count` rows cut into tiles of nearly equal height (7 rows are 4 + 3, not 6 + 1: a tile of one row is bound by
 * latency), and the unit blocks taken at once.
 */
typedef struct {
    int64_t tiles, rows, higher; /* the first `higher` tiles have one row more */
    int blocks;
} fr_tiling;

FR_INLINE fr_tiling fr_tile_rows(int64_t count, int gates)
{
    if (count <= FR_MAX_ROWS(gates)) /* a small step would notice the divisions */
        return (fr_tiling){1, count, 0, FR_BLOCKS(count, gates)};
    const int64_t tiles = (count + FR_MAX_ROWS(gates) - 1) / FR_MAX_ROWS(gates);
    const int64_t rows = count / tiles;
    const int64_t higher = count % tiles;
    return (fr_tiling){tiles, rows, higher, FR_BLOCKS(rows + (higher > 0), gates)};
}

/* for each group of unit blocks, for each tile of rows: statements with block, blocks, row, rows */
#define FR_FOR_TILES(tiling, all_blocks)                                                                               \
    for (int64_t block = 0, blocks; block < (all_blocks); block += blocks)                                             \
        for (int64_t tile = (blocks = (all_blocks) - block < (tiling).blocks ? 1 : (tiling).blocks, 0), row = 0, rows; \
             tile < (tiling).tiles && (rows = (tiling).rows + (tile < (tiling).higher), 1); tile++, row += rows)

/* v[row] points to the K values of a row: rows may lie anywhere. */
FR_INLINE void fr_panel_product(vf *sum, int rows, int blocks, int gates, const float *panel, int64_t block_stride,
                                const float *const *v, int64_t depth)
{
    for (int64_t k = 0; k < depth; k++) {
        vf value[VF_ACCUMULATORS];
        FR_UNROLL
        for (int row = 0; row < rows; row++)
            value[row] = vf_set1(v[row][k]);
        FR_UNROLL
        for (int block = 0; block < blocks; block++) {
            const float *weights = panel + block * block_stride + k * gates * VF_LANES;
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

/* Sums start from memory: the bias (row_stride 0) or the x-projection. */
FR_INLINE void fr_panel_start(vf *sum, int rows, int blocks, int gates, const float *from, int64_t row_stride)
{
    FR_UNROLL
    for (int row = 0; row < rows; row++) {
        FR_UNROLL
        for (int k = 0; k < blocks * gates; k++)
            sum[row * blocks * gates + k] = vf_load(from + row * row_stride + k * VF_LANES);
    }
}

/*
 * The x-projection of `steps` steps from `first` on:
 *   z[step * B + sequence][block][gate][lane] = bias + x[first + step][sequence] . weights
 * Blocks are the outer loop: a panel comes from memory once and from cache for every further tile.
 */
FR_INLINE void fr_project_tile(int rows, int blocks, int gates, const fr_panels *w, const fr_span *s, int64_t first,
                               int64_t block, int64_t row)
{
    const int64_t panel_floats = w->inputs * w->block_floats;
    const int64_t z_row = w->blocks * w->block_floats;
    float *z = s->scratch + row * z_row + block * w->block_floats;
    const float *x[VF_ACCUMULATORS];
    vf sum[VF_ACCUMULATORS];

    FR_UNROLL
    for (int k = 0; k < rows; k++)
        x[k] = s->x + (first + (row + k) / s->batch) * s->x_step + (row + k) % s->batch * s->x_row;
    fr_panel_start(sum, rows, blocks, gates, w->bias + block * w->block_floats, 0);
    fr_panel_product(sum, rows, blocks, gates, w->x_panels + block * panel_floats, panel_floats, x, w->inputs);
    FR_UNROLL
    for (int k = 0; k < rows; k++) {
        FR_UNROLL
        for (int j = 0; j < blocks * gates; j++)
            vf_store(z + k * z_row + j * VF_LANES, sum[k * blocks * gates + j]);
    }
}

FR_INLINE void fr_project(int gates, const fr_panels *w, const fr_span *s, int64_t first, int64_t steps)
{
    const fr_tiling tiling = fr_tile_rows(steps * s->batch, gates);
    FR_FOR_TILES (tiling, w->blocks) {
        FR_WITH_TILE(rows, blocks, gates, fr_project_tile, gates, w, s, first, block, row)
    }
}

/* The state after the last step, from the last output: outputs are where h lives while a sequence runs. */
FR_INLINE void fr_keep_state(const fr_panels *w, const fr_span *s)
{
    for (int64_t row = 0; row < s->batch; row++)
        memcpy(s->h + row * w->hidden, s->y + (s->steps - 1) * s->y_step + row * s->y_row,
               (size_t)w->hidden * sizeof(float));
}

#endif
