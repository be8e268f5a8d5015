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
 * The shapes a tile may have for G gates: 1 to 8 rows; 1, 2, 4 or 8 unit blocks. The sums, the shorter side of the tile
 * and one of the longer must fit the registers. A tile of one row is bound by the loads of its weights, not by its
 * sums: more than 8 of them gain nothing, and smaller groups of blocks leave more to find in L1 on the way back
 * (fr_downward). Of three gates 8 rows make the 24 sums that 6 rows make of four, and of one or two with more blocks.
 */
#define FR_MOST_ROWS 8
#define FR_MOST_SUMS 24
#define FR_LESS(a, b) ((a) < (b) ? (a) : (b))
#define FR_FITS(rows, blocks, gates)                                                                                   \
    ((rows) * (blocks) * (gates) <= ((rows) == 1 ? 8 : FR_MOST_SUMS) &&                                                \
     (rows) * (blocks) * (gates) + FR_LESS(rows, (blocks) * (gates)) + 1 <= VF_REGISTERS)
#define FR_TALLEST(rows, gates, less) (FR_FITS(rows, 1, gates) ? (rows) : (less))
#define FR_MAX_ROWS(gates)                                                                                             \
    ((gates) == 3 && FR_FITS(8, 1, 3)                                                                                  \
         ? 8                                                                                                           \
         : FR_TALLEST(6, gates, FR_TALLEST(5, gates, FR_TALLEST(4, gates, FR_TALLEST(3, gates, 2)))))

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

/* One row, the usual batch of a stream: all of it constants, so that what a small step does besides computing vanishes.
 */
FR_INLINE fr_tiling fr_tile_one(int gates)
{
    fr_tiling tiling = {1, 1, 0, 1};
    FR_UNROLL
    for (int blocks = 2; blocks <= 8; blocks *= 2)
        if (FR_FITS(1, blocks, gates))
            tiling.blocks = blocks;
    return tiling;
}

/* Unit blocks first <= block < last. */
typedef struct {
    int64_t first, last;
} fr_range;

/* Of `blocks` unit blocks those of this part of a team: which ones depends on the two numbers alone. */
FR_INLINE fr_range fr_share(const fr_span *s, int64_t blocks)
{
    if (s->parts == 1)
        return (fr_range){0, blocks};
    return (fr_range){blocks * s->part / s->parts, blocks * (s->part + 1) / s->parts};
}

/*
 * Whether step t sweeps its unit blocks downward. Every other step does: it begins with the panels that the step before
 * read last, which are still in the nearer caches. A sum does not depend on the order of the blocks.
 */
FR_INLINE bool fr_downward(const fr_span *s, int64_t t) { return ((t + s->turn) & 1) != 0; }

/* A tile's place in a sweep: its unit blocks, the group of blocks that comes after, and its rows. */
typedef struct {
    int64_t block, blocks, next;
    int64_t tile, row, rows;
} fr_place;

FR_INLINE bool fr_next_blocks(fr_place *at, fr_range *left, int64_t most, bool downward)
{
    const int64_t count = left->last - left->first;
    if (count <= 0)
        return false;
    at->blocks = most;
    while (at->blocks > count)
        at->blocks /= 2;
    if (downward) {
        left->last -= at->blocks;
        at->block = left->last;
        at->next = left->last - (at->blocks < count - at->blocks ? at->blocks : count - at->blocks);
    } else {
        at->block = left->first;
        left->first += at->blocks;
        at->next = at->blocks < count ? left->first : at->block;
    }
    return true;
}

/* for each tile of the blocks in `range`: blocks are the outer loop, so that a panel is read again for every tile of
 * rows while it is near */
#define FR_FOR_TILES(at, tiling, range, downward)                                                                      \
    for (fr_range left = (range); fr_next_blocks(&(at), &left, (tiling).blocks, downward);)                            \
        for ((at).tile = 0, (at).row = 0;                                                                              \
             (at).tile < (tiling).tiles && ((at).rows = (tiling).rows + ((at).tile < (tiling).higher)) > 0;            \
             (at).row += (at).rows, (at).tile++)

/* ---- the product ------------------------------------------------------------------------------------------------ */

/*
 * Rows times panels: v[row] points to `depth` values, wherever they lie. While a tile of several rows computes, it
 * fetches one cache line of `ahead` for each k: together the tiles bring the panels of the next blocks near. It costs
 * 1 of 35 instructions, and gains 6 to 15 % where panels come from beyond L2.
 */
typedef struct {
    const float *panel; /* of the tile's first block */
    const float *const *v;
    int64_t depth;
    const float *ahead;
    int64_t ahead_step; /* floats from k to k; 0 where there is nothing to fetch */
} fr_factor;

#define FR_LINE 16 /* floats in a cache line */

/* The factor of a tile: `panels` [N][depth][gates][L]. */
FR_INLINE fr_factor fr_factor_at(const fr_place *at, const float *panels, int gates, int64_t depth,
                                 const float *const *v)
{
    const int64_t panel_floats = depth * gates * VF_LANES;
    const float *panel = panels + at->block * panel_floats;
    const bool fetches = at->next != at->block && at->tile * FR_LINE < at->blocks * gates * VF_LANES;
    return (fr_factor){
        .panel = panel,
        .v = v,
        .depth = depth,
        .ahead = fetches ? panels + at->next * panel_floats + at->tile * depth * FR_LINE : panel,
        .ahead_step = fetches ? FR_LINE : 0,
    };
}

/* Where sums come from or go to: [row][block][gate][lane]. */
typedef struct {
    float *at;
    int64_t row_stride;
    int64_t block_stride;
} fr_sums;

/*
 * The shorter side of the tile is held in registers while the longer one passes by: beside 24 sums there is no room to
 * hold 6 values, and fewer instructions wait at a time. vf_keep makes a weight one load for all rows: left to itself,
 * gcc makes it a memory operand of each, and the loads are what bounds a tile of 2 or 3 rows.
 */
FR_INLINE void fr_accumulate(vf *sum, int rows, int blocks, int gates, fr_factor f)
{
    const int64_t block_stride = f.depth * gates * VF_LANES;
    const int places = blocks * gates;
    const float *v[FR_MOST_ROWS]; /* in registers: from f.v they would be read anew at every k */
    FR_UNROLL
    for (int row = 0; row < rows; row++)
        v[row] = f.v[row];
    for (int64_t k = 0; k < f.depth; k++) {
        const float *weights = f.panel + k * gates * VF_LANES;
        vf held[FR_MOST_SUMS];
        if (rows > 1)
            __builtin_prefetch(f.ahead + k * f.ahead_step, 0, 2);
        if (rows < places) {
            FR_UNROLL
            for (int row = 0; row < rows; row++)
                held[row] = vf_set1(v[row][k]);
            FR_UNROLL
            for (int place = 0; place < places; place++) {
                vf weight = vf_load(weights + place / gates * block_stride + place % gates * VF_LANES);
                if (rows > 1)
                    vf_keep(weight);
                FR_UNROLL
                for (int row = 0; row < rows; row++)
                    sum[row * places + place] = vf_fma(held[row], weight, sum[row * places + place]);
            }
        } else {
            FR_UNROLL
            for (int place = 0; place < places; place++) {
                held[place] = vf_load(weights + place / gates * block_stride + place % gates * VF_LANES);
                if (rows > 1)
                    vf_keep(held[place]);
            }
            FR_UNROLL
            for (int row = 0; row < rows; row++) {
                const vf value = vf_set1(v[row][k]);
                FR_UNROLL
                for (int place = 0; place < places; place++)
                    sum[row * places + place] = vf_fma(value, held[place], sum[row * places + place]);
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

/*
 * Sums are registers only if every loop over a tile is unrolled: rows and blocks become constants here. The structs go
 * by address: by value they would be copied in vectors right after they were stored in words, and a load of a vector
 * waits for such stores to be done, at every call.
 */
#define FR_SHAPE(ROWS, BLOCKS)                                                                                         \
    case ROWS * 16 + BLOCKS:                                                                                           \
        if (FR_FITS(ROWS, BLOCKS, gates)) {                                                                            \
            fr_product_tile(ROWS, BLOCKS, gates, *from, *first, *second, *to);                                         \
            return;                                                                                                    \
        }                                                                                                              \
        break;
#define FR_SHAPES(ROWS) FR_SHAPE(ROWS, 1) FR_SHAPE(ROWS, 2) FR_SHAPE(ROWS, 4) FR_SHAPE(ROWS, 8)
#define FR_PRODUCT(GATES)                                                                                              \
    static FR_ONE_COPY void fr_product_##GATES(int64_t rows, int64_t blocks, const fr_sums *from,                      \
                                               const fr_factor *first, const fr_factor *second, const fr_sums *to)     \
    {                                                                                                                  \
        const int gates = GATES;                                                                                       \
        switch (rows * 16 + blocks) {                                                                                  \
            FR_SHAPES(1) FR_SHAPES(2) FR_SHAPES(3) FR_SHAPES(4) FR_SHAPES(5) FR_SHAPES(6) FR_SHAPES(7) FR_SHAPES(8)    \
        }                                                                                                              \
        __builtin_unreachable();                                                                                       \
    }
FR_PRODUCT(1)
FR_PRODUCT(2)
FR_PRODUCT(3)
FR_PRODUCT(4)

/* to = from + first + second, for a tile; `second` may have depth 0. `gates` is a constant where this is called. */
FR_INLINE void fr_product(int gates, int64_t rows, int64_t blocks, fr_sums from, fr_factor first, fr_factor second,
                          fr_sums to)
{
    /* A small step notices a call: the tiles of one row are copied to those who know that they have one. */
    if (__builtin_constant_p(rows) && rows == 1) {
        if (blocks == 1)
            fr_product_tile(1, 1, gates, from, first, second, to);
        else if (blocks == 2)
            fr_product_tile(1, 2, gates, from, first, second, to);
        else if (blocks == 4 && FR_FITS(1, 4, gates))
            fr_product_tile(1, 4, gates, from, first, second, to);
        else if (FR_FITS(1, 8, gates))
            fr_product_tile(1, 8, gates, from, first, second, to);
        return;
    }
    if (gates == 1)
        fr_product_1(rows, blocks, &from, &first, &second, &to);
    else if (gates == 2)
        fr_product_2(rows, blocks, &from, &first, &second, &to);
    else if (gates == 3)
        fr_product_3(rows, blocks, &from, &first, &second, &to);
    else
        fr_product_4(rows, blocks, &from, &first, &second, &to);
}

/* A product over h alone. */
static const fr_factor fr_nothing_more = {0};

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

/* Where the tile's part of the x-projection z [row][block][gate][lane] of a step, or of many, begins. */
FR_INLINE fr_sums fr_projected(const fr_panels *w, const fr_place *at, float *z)
{
    const int64_t z_row = w->blocks * w->block_floats;
    return (fr_sums){z + at->row * z_row + at->block * w->block_floats, z_row, w->block_floats};
}

/* The tile's biases, the same for every row. */
FR_INLINE fr_sums fr_biases(const fr_panels *w, const fr_place *at)
{
    return (fr_sums){(float *)w->bias + at->block * w->block_floats, 0, w->block_floats};
}

/*
 * FR_PROJECT: a row z[block][gate][lane] = bias + x . weights for each running row of each step of the chunk, in order.
 * It does not depend on h, so it is made ahead, with tall tiles. Blocks are the outer loop: a panel comes from memory
 * once and from cache for every further tile.
 */
FR_INLINE void fr_project(int gates, const fr_panels *w, const fr_span *s, int64_t first, float *z)
{
    const int64_t end = first + s->chunk < s->steps ? first + s->chunk : s->steps;
    int64_t count = 0;
    for (int64_t t = first; t < end; t++)
        for (int64_t row = 0; row < fr_active(s, t); row++)
            s->scratch_rows[count++] = s->x[row] + t * s->x_step;
    if (count == 0)
        return;
    const fr_tiling tiling = fr_tile_rows(count, gates);
    fr_place at;
    FR_FOR_TILES (at, tiling, fr_share(s, w->blocks), false) {
        const fr_factor W_x = fr_factor_at(&at, w->x_panels, gates, w->inputs, s->scratch_rows + at.row);
        fr_product(gates, at.rows, at.blocks, fr_biases(w, &at), W_x, fr_nothing_more, fr_projected(w, &at, z));
    }
}

/* ---- what a cell's options choose ------------------------------------------------------------------------------- */

FR_INLINE vf fr_limited(vf v, double limit) { return vf_max(vf_set1((float)-limit), vf_min(vf_set1((float)limit), v)); }

FR_INLINE fr_quotient fr_state_function(int64_t activation, vf v)
{
    if (activation == FR_RELU)
        return fr_whole(vf_max(vf_set1(0.0f), v));
    return activation == FR_IDENTITY ? fr_whole(v) : fr_tanh(v);
}

/* A gate's sum through its activation. `plain` is a constant: the usual cell pays nothing for the options. */
FR_INLINE fr_quotient fr_gate(const fr_panels *w, bool plain, vf sum)
{
    if (plain)
        return fr_sigmoid(sum);
    sum = fr_limited(sum, w->clip);
    if (w->gate_activation == FR_SIGMOID)
        return fr_sigmoid(sum);
    const vf line = vf_fma(vf_set1((float)w->alpha), sum, vf_set1((float)w->beta));
    return fr_whole(vf_max(vf_set1(0.0f), vf_min(vf_set1(1.0f), line)));
}

/* The sum of what is written through its activation. */
FR_INLINE fr_quotient fr_written(const fr_panels *w, bool plain, vf sum)
{
    return plain ? fr_tanh(sum) : fr_state_function(w->state_activation, fr_limited(sum, w->clip));
}

#endif
