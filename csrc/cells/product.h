/*
 * The product of rows and panels, a tile at a time: the sums of `rows` rows x `blocks` unit blocks x G gates, each sum
 * one vector of L = VF_LANES units.
 *
 *   sum[row][block][gate] += sum over k of v[row][k] * panel[block][k][gate]          0 <= k < K
 *
 * Layout: a panel holds the weights of a unit block in the order in which they are read, [K][G][L]. The product is one
 * forward stream of memory per block, and the gates of a unit end side by side: the cell is computed from them at once.
 *
 * Fused: the sums are in registers for the whole product, and come from memory and go there once. One function per
 * shape of tile serves all cells: were the cells inlined around the product, their constants would be kept in registers
 * across it, and the product would spill at every k.
 *
 * Narrow weights: the product alone knows the type of a weight. Weights of 16 and 8 bits are widened on their way into
 * the FMA, and all sums are float32. Sums of int8 begin at 0 and are scaled when they are finished, those over x and
 * those over h each on their own: z = from + s_W (W x), then z + s_R (R h), so that a step, a chunk of steps and a
 * stream make the same roundings.
 *
 * Numerics: k ascends and is never split, so a sum has the same bits whatever the tile. To keep the FMA units busy at
 * one row, more unit blocks are taken at once instead (4 sums in a chain would leave half of the units idle: an FMA
 * takes 4 cycles, and 2 may start in each).
 */
#ifndef FR_PRODUCT_H
#define FR_PRODUCT_H

#include <math.h>
#include <string.h>

#define FR_UNROLL _Pragma("GCC unroll 24")

#include "weights/types.h"

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

/*
 * The shapes that a tile may have for G gates: 1 to 8 rows; 1, 2, 4 or 8 unit blocks. The sums, the shorter side of the
 * tile and one vector of the longer side must fit the registers. A tile of one row is bound by the loads of its
 * weights, not by its sums: more than 8 sums gain nothing, and smaller groups of blocks leave more to find in L1 on the
 * way back (fr_downward). Three gates of 8 rows have as many sums, 24, as four gates of 6 rows.
 */
#define FR_MIN(a, b) ((a) < (b) ? (a) : (b))
#define FR_FITS(rows, blocks, gates)                                                                                   \
    ((rows) * (blocks) * (gates) <= ((rows) == 1 ? FR_MAX_ROW_SUMS : FR_MAX_SUMS) &&                                   \
     (rows) * (blocks) * (gates) + FR_MIN(rows, (blocks) * (gates)) + 1 <= VF_REGISTERS)
#define FR_ROWS_OR(rows, gates, lower) (FR_FITS(rows, 1, gates) ? (rows) : (lower))
#define FR_TALLEST(gates)                                                                                              \
    ((gates) == 3 && FR_FITS(FR_MAX_ROWS, 1, 3)                                                                        \
         ? FR_MAX_ROWS                                                                                                 \
         : FR_ROWS_OR(6, gates, FR_ROWS_OR(5, gates, FR_ROWS_OR(4, gates, FR_ROWS_OR(3, gates, 2)))))

/*
 * How rows are cut into tiles of nearly equal height (7 rows are 4 + 3, not 6 + 1: a tile of one row is bound by
 * latency).
 */
typedef struct {
    int64_t tiles;  /* the number of tiles above each other */
    int64_t rows;   /* the height of a tile */
    int64_t higher; /* the number of tiles, the first ones, that have one row more */
    int64_t blocks; /* the largest number of unit blocks in a tile */
} fr_tiling;

FR_INLINE fr_tiling fr_tile_rows(int64_t type, int64_t count, int gates)
{
    const int64_t tallest = fr_is_i8(type) ? FR_MAX_ROWS : FR_TALLEST(gates);
    fr_tiling tiling = {1, count, 0, fr_is_i8(type) ? FR_MAX_BLOCKS : 1};
    if (count > tallest) { /* a small step would notice the divisions */
        tiling.tiles = (count + tallest - 1) / tallest;
        tiling.rows = count / tiling.tiles;
        tiling.higher = count % tiling.tiles;
    }
    while (tiling.blocks < FR_MAX_BLOCKS && FR_FITS(tiling.rows + (tiling.higher > 0), tiling.blocks * 2, gates))
        tiling.blocks *= 2;
    return tiling;
}

/* The tiling of one row, the usual batch of a stream: constants, so that a small step does nothing but compute. */
FR_INLINE fr_tiling fr_tile_one(int64_t type, int gates)
{
    fr_tiling tiling = {1, 1, 0, 1};
    if (fr_is_i8(type)) {
        tiling.blocks = FR_MAX_BLOCKS;
        return tiling;
    }
    FR_UNROLL
    for (int blocks = 2; blocks <= FR_MAX_BLOCKS; blocks *= 2)
        if (FR_FITS(1, blocks, gates))
            tiling.blocks = blocks;
    return tiling;
}

/* For a test that these rules are Numba's. */
static void fr_tiling_fields(int64_t type, int64_t gates, int64_t count, int64_t *fields)
{
    const fr_tiling tiling = count ? fr_tile_rows(type, count, (int)gates) : fr_tile_one(type, (int)gates);
    memcpy(fields, &tiling, sizeof tiling);
}

/* Unit blocks first <= block < last. */
typedef struct {
    int64_t first, last;
} fr_range;

/* The unit blocks of this call's share, of `blocks` in all. */
FR_INLINE fr_range fr_share(const fr_span *s, int64_t blocks)
{
    if (s->shares == 1)
        return (fr_range){0, blocks};
    return (fr_range){blocks * s->share / s->shares, blocks * (s->share + 1) / s->shares};
}

/*
 * Whether step t sweeps its unit blocks downward. Every other step does: it begins with the panels that the step before
 * it read last, which are still in the nearer caches. A sum does not depend on the order of the blocks.
 */
FR_INLINE bool fr_downward(const fr_span *s, int64_t t) { return ((t + s->downward) & 1) != 0; }

/* A tile: which unit blocks and which rows. */
typedef struct {
    int64_t block;  /* the first unit block */
    int64_t blocks; /* the number of unit blocks */
    int64_t next;   /* the first unit block of the tiles that come after; `block` if there are none */
    int64_t number; /* how many tiles of the same blocks came before */
    int64_t row;    /* the first row */
    int64_t rows;   /* the number of rows */
} fr_tile;

FR_INLINE bool fr_next_blocks(fr_tile *tile, fr_range *left, int64_t max_blocks, bool downward)
{
    const int64_t count = left->last - left->first;
    if (count <= 0)
        return false;
    tile->blocks = max_blocks;
    while (tile->blocks > count)
        tile->blocks /= 2;
    if (downward) {
        left->last -= tile->blocks;
        tile->block = left->last;
        tile->next = left->last - (tile->blocks < count - tile->blocks ? tile->blocks : count - tile->blocks);
    } else {
        tile->block = left->first;
        left->first += tile->blocks;
        tile->next = tile->blocks < count ? left->first : tile->block;
    }
    return true;
}

/* For each tile of the blocks in `range`. Blocks are the outer loop, so that a panel is read again for each tile of
 * rows while it is near. */
#define FR_FOR_TILES(tile, tiling, range, downward)                                                                    \
    for (fr_range left = (range); fr_next_blocks(&(tile), &left, (tiling).blocks, downward);)                          \
        for ((tile).number = 0, (tile).row = 0;                                                                        \
             (tile).number < (tiling).tiles && ((tile).rows = (tiling).rows + ((tile).number < (tiling).higher)) > 0;  \
             (tile).row += (tile).rows, (tile).number++)

/* ---- the product ------------------------------------------------------------------------------------------------ */

/* A matrix in panels, [N][K][G][L]. */
typedef struct {
    const void *panels;
    const float *scales; /* [N][G][L]; NULL unless the type is one of int8 */
    int64_t type;        /* an fr_weight_type */
} fr_matrix;

FR_INLINE fr_matrix fr_x_matrix(const fr_panels *w) { return (fr_matrix){w->x_panels, w->x_scales, w->weight_type}; }
FR_INLINE fr_matrix fr_h_matrix(const fr_panels *w) { return (fr_matrix){w->h_panels, w->h_scales, w->weight_type}; }
FR_INLINE fr_matrix fr_dependent_matrix(const fr_panels *w)
{
    return (fr_matrix){w->dependent_panels, w->dependent_scales, w->weight_type};
}
FR_INLINE fr_matrix fr_float_matrix(const float *panels) { return (fr_matrix){panels, NULL, FR_F32}; }

/*
 * Rows times panels. While a tile of several rows computes, it fetches one cache line of `ahead` for each k: together
 * the tiles bring the panels of the next blocks near. It costs 1 of 35 instructions, and gains 6 to 15 % where panels
 * come from beyond L2.
 */
typedef struct {
    const void *panel;     /* the panel of the tile's first block, [depth][G][L]; those of the others follow */
    const float *scales;   /* of the tile's first block, [G][L]; NULL unless the type is one of int8 */
    int64_t type;          /* an fr_weight_type */
    const float *const *v; /* a pointer for each row of the tile, to `depth` values */
    int64_t depth;         /* K */
    const char *ahead;     /* the panels of the next blocks, from the lines on that this tile fetches */
    int64_t ahead_step;    /* the stride of `ahead` from k to k, in bytes; 0 where there is nothing to fetch */
} fr_factor;

/* The factor of a tile. */
FR_INLINE fr_factor fr_tile_factor(const fr_tile *tile, fr_matrix matrix, int gates, int64_t depth,
                                   const float *const *v)
{
    const int64_t row_bytes = gates * VF_LANES * fr_weight_bytes(matrix.type);
    const int64_t panel_bytes = fr_panel_depth(matrix.type, depth) * row_bytes;
    const char *panel = (const char *)matrix.panels + tile->block * panel_bytes;
    const bool fetches = tile->next != tile->block && tile->number * FR_LINE_BYTES < tile->blocks * row_bytes;
    const char *next = (const char *)matrix.panels + tile->next * panel_bytes + tile->number * depth * FR_LINE_BYTES;
    return (fr_factor){
        .panel = panel,
        .scales = matrix.scales ? matrix.scales + tile->block * gates * VF_LANES : NULL,
        .type = matrix.type,
        .v = v,
        .depth = depth,
        .ahead = fetches ? next : panel,
        .ahead_step = fetches ? FR_LINE_BYTES : 0,
    };
}

/* Where the sums of a tile come from or go to: [row][block][gate][lane]. */
typedef struct {
    float *at;            /* the first sum */
    int64_t row_stride;   /* floats from row to row */
    int64_t block_stride; /* floats from block to block */
} fr_sums;

/*
 * The shorter side of the tile is held in registers while the longer side passes by: beside 24 sums there is no room to
 * hold 6 values, and fewer instructions wait at a time. vf_keep makes a weight one load for all rows: left to itself,
 * gcc makes the weight a memory operand of each row, and the loads are what bounds a tile of 2 or 3 rows. v_step is the
 * stride of v from k to k + 1, the constant 1 but in gradients of weights. `type` is f.type, a constant here.
 */
FR_INLINE void fr_accumulate(int type, vf *sum, int rows, int blocks, int gates, fr_factor f, int64_t v_step)
{
    const int64_t block_stride = f.depth * gates * VF_LANES;
    const int columns = blocks * gates;
    const float *v[FR_MAX_ROWS]; /* in registers: from f.v they would be read anew at every k */
    FR_UNROLL
    for (int row = 0; row < rows; row++)
        v[row] = f.v[row];
    for (int64_t k = 0; k < f.depth; k++) {
        const void *weights = fr_weights_from(type, f.panel, k * gates * VF_LANES);
        vf held[FR_MAX_SUMS];
        if (rows > 1)
            __builtin_prefetch(f.ahead + k * f.ahead_step, 0, 2);
        if (rows < columns) {
            FR_UNROLL
            for (int row = 0; row < rows; row++)
                held[row] = vf_set1(v[row][k * v_step]);
            FR_UNROLL
            for (int column = 0; column < columns; column++) {
                vf weight = fr_weight(type, weights, column / gates * block_stride + column % gates * VF_LANES);
                if (rows > 1)
                    vf_keep(weight);
                FR_UNROLL
                for (int row = 0; row < rows; row++)
                    sum[row * columns + column] = vf_fma(held[row], weight, sum[row * columns + column]);
            }
        } else {
            FR_UNROLL
            for (int column = 0; column < columns; column++) {
                held[column] = fr_weight(type, weights, column / gates * block_stride + column % gates * VF_LANES);
                if (rows > 1)
                    vf_keep(held[column]);
            }
            FR_UNROLL
            for (int row = 0; row < rows; row++) {
                const vf value = vf_set1(v[row][k * v_step]);
                FR_UNROLL
                for (int column = 0; column < columns; column++)
                    sum[row * columns + column] = vf_fma(value, held[column], sum[row * columns + column]);
            }
        }
    }
}

/* to = from + first + second, for a tile of weights of a type, a constant: all but int8. */
FR_INLINE void fr_product_tile(int type, int rows, int blocks, int gates, fr_sums from, fr_factor first,
                               fr_factor second, fr_sums to)
{
    vf sum[FR_MAX_SUMS];
    FR_UNROLL
    for (int k = 0; k < rows * blocks * gates; k++)
        sum[k] = vf_load(from.at + k / gates / blocks * from.row_stride + k / gates % blocks * from.block_stride +
                         k % gates * VF_LANES);
    fr_accumulate(type, sum, rows, blocks, gates, first, 1);
    if (second.depth > 0)
        fr_accumulate(type, sum, rows, blocks, gates, second, 1);
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
            FR_TILE(ROWS, BLOCKS);                                                                                     \
            return;                                                                                                    \
        }                                                                                                              \
        break;
#define FR_SHAPES(ROWS) FR_SHAPE(ROWS, 1) FR_SHAPE(ROWS, 2) FR_SHAPE(ROWS, 4) FR_SHAPE(ROWS, 8)
#define FR_ALL_SHAPES                                                                                                  \
    FR_SHAPES(1) FR_SHAPES(2) FR_SHAPES(3) FR_SHAPES(4) FR_SHAPES(5) FR_SHAPES(6) FR_SHAPES(7) FR_SHAPES(8)

#define FR_TILE(ROWS, BLOCKS) fr_product_tile(FR_F32, ROWS, BLOCKS, gates, *from, *first, *second, *to)
#define FR_PRODUCT(GATES)                                                                                              \
    static FR_ONE_COPY void fr_product_##GATES(int64_t rows, int64_t blocks, const fr_sums *from,                      \
                                               const fr_factor *first, const fr_factor *second, const fr_sums *to)     \
    {                                                                                                                  \
        const int gates = GATES;                                                                                       \
        switch (rows * 16 + blocks) {                                                                                  \
            FR_ALL_SHAPES                                                                                              \
        }                                                                                                              \
        __builtin_unreachable();                                                                                       \
    }
FR_PRODUCT(1)
FR_PRODUCT(2)
FR_PRODUCT(3)
FR_PRODUCT(4)
#undef FR_TILE

/* Narrow products take one factor at a time: half the code, and sums that pass through memory in between keep their
 * bits. */
#define FR_TILE(ROWS, BLOCKS) fr_product_tile(type, ROWS, BLOCKS, gates, *from, *f, (fr_factor){0}, *to)
#define FR_WIDENED_PRODUCT(NAME, TYPE, GATES)                                                                          \
    static FR_ONE_COPY void fr_product_##NAME##_##GATES(int64_t rows, int64_t blocks, const fr_sums *from,             \
                                                        const fr_factor *f, const fr_sums *to)                         \
    {                                                                                                                  \
        const int type = TYPE, gates = GATES;                                                                          \
        switch (rows * 16 + blocks) {                                                                                  \
            FR_ALL_SHAPES                                                                                              \
        }                                                                                                              \
        __builtin_unreachable();                                                                                       \
    }
#define FR_WIDENED_PRODUCTS(NAME, TYPE)                                                                                \
    FR_WIDENED_PRODUCT(NAME, TYPE, 1)                                                                                  \
    FR_WIDENED_PRODUCT(NAME, TYPE, 2)                                                                                  \
    FR_WIDENED_PRODUCT(NAME, TYPE, 3)                                                                                  \
    FR_WIDENED_PRODUCT(NAME, TYPE, 4)
FR_WIDENED_TYPES(FR_WIDENED_PRODUCTS)
#undef FR_TILE

#include "cells/integer_product.h"

static FR_ONE_COPY void fr_product_narrow(int gates, int64_t rows, int64_t blocks, const fr_sums *from,
                                          const fr_factor *f, const fr_sums *to)
{
    if (fr_is_i8(f->type)) {
        fr_product_i8(gates, rows, blocks, from, f, to);
        return;
    }
    switch (f->type * 8 + gates) {
#define FR_CASE(NAME, TYPE, GATES)                                                                                     \
    case TYPE * 8 + GATES:                                                                                             \
        fr_product_##NAME##_##GATES(rows, blocks, from, f, to);                                                        \
        return;
#define FR_CASES(NAME, TYPE) FR_CASE(NAME, TYPE, 1) FR_CASE(NAME, TYPE, 2) FR_CASE(NAME, TYPE, 3) FR_CASE(NAME, TYPE, 4)
        FR_WIDENED_TYPES(FR_CASES)
#undef FR_CASES
#undef FR_CASE
    }
    __builtin_unreachable();
}

/* fr_product for narrow weights. A function of its own, so that the structs of fr_product have no address in its way
 * for one row, and stay in registers. */
FR_INLINE void fr_product_by_type(int gates, int64_t rows, int64_t blocks, fr_sums from, fr_factor first,
                                  fr_factor second, fr_sums to)
{
    fr_product_narrow(gates, rows, blocks, &from, &first, &to);
    if (second.depth > 0)
        fr_product_narrow(gates, rows, blocks, &to, &second, &to);
}

/* to = from + first + second, for a tile; `second` may have depth 0. `gates` is a constant where this is called. */
FR_INLINE void fr_product(int gates, int64_t rows, int64_t blocks, fr_sums from, fr_factor first, fr_factor second,
                          fr_sums to)
{
    if (first.type != FR_F32) {
        fr_product_by_type(gates, rows, blocks, from, first, second, to);
        return;
    }
    /* A small step notices a call: the tiles of one row are copied to those who know that they have one. */
    if (__builtin_constant_p(rows) && rows == 1) {
        if (blocks == 1)
            fr_product_tile(FR_F32, 1, 1, gates, from, first, second, to);
        else if (blocks == 2)
            fr_product_tile(FR_F32, 1, 2, gates, from, first, second, to);
        else if (blocks == 4 && FR_FITS(1, 4, gates))
            fr_product_tile(FR_F32, 1, 4, gates, from, first, second, to);
        else if (FR_FITS(1, 8, gates))
            fr_product_tile(FR_F32, 1, 8, gates, from, first, second, to);
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

/* The second factor of a product that has one: of depth 0. */
static const fr_factor fr_no_factor = {0};

/* Memory for the sums of a tile, between its product and its cell. */
typedef struct {
    float sum[FR_MAX_TILE_SUMS * VF_LANES] __attribute__((aligned(64)));
} fr_tile_sums;

FR_INLINE fr_sums fr_sums_in(fr_tile_sums *tile, int64_t blocks, int gates)
{
    return (fr_sums){tile->sum, blocks * gates * VF_LANES, gates * VF_LANES};
}

/* ---- rows and steps --------------------------------------------------------------------------------------------- */

FR_INLINE int64_t fr_active(const fr_span *s, int64_t t) { return s->active ? s->active[t] : s->batch; }

/* Whether row's state is zeroed before step t. */
FR_INLINE bool fr_resets(const fr_span *s, int64_t t, int64_t row)
{
    return s->since && s->since[row][t * s->since_step] == 0;
}

/* Where row's h is before step t. */
FR_INLINE const float *fr_h_before(const fr_span *s, int64_t t, int64_t row)
{
    if (fr_resets(s, t, row))
        return s->zeros;
    return t > 0 ? s->y[row] + (t - 1) * s->y_step : s->h[row];
}

/* The sums of a tile in the input product z, [row][block][gate][lane], of a step or of a chunk. */
FR_INLINE fr_sums fr_input_sums(const fr_panels *w, const fr_span *s, const fr_tile *tile, float *z)
{
    const int64_t z_row = w->blocks * s->z_block;
    return (fr_sums){z + tile->row * z_row + tile->block * s->z_block, z_row, s->z_block};
}

/* Where the finished sums of a tile go: into the tape, in the place of the input product, or to the stack. */
FR_INLINE fr_sums fr_finished_sums(const fr_panels *w, const fr_span *s, const fr_tile *tile, float *z,
                                   fr_tile_sums *memory, int gates)
{
    return s->tape ? fr_input_sums(w, s, tile, z) : fr_sums_in(memory, tile->blocks, gates);
}

/* The biases of a tile, the same for each row. */
FR_INLINE fr_sums fr_biases(const fr_panels *w, const fr_tile *tile)
{
    return (fr_sums){(float *)w->bias + tile->block * w->block_floats, 0, w->block_floats};
}

/*
 * FR_INPUT, the input product: a row z[block][gate][lane] = bias + W x for each running row of each step of the chunk,
 * in order. It does not depend on h, so it is made ahead, with tall tiles. Blocks are the outer loop: a panel comes
 * from memory once, and from a cache for each further tile.
 */
FR_INLINE void fr_input_phase(int gates, const fr_panels *w, const fr_span *s, int64_t first, float *z)
{
    const int64_t end = first + s->chunk < s->steps ? first + s->chunk : s->steps;
    int64_t count = 0;
    for (int64_t t = first; t < end; t++)
        for (int64_t row = 0; row < fr_active(s, t); row++)
            s->scratch_rows[count++] = s->x[row] + t * s->x_step;
    if (count == 0)
        return;
    const fr_tiling tiling = fr_tile_rows(w->weight_type, count, gates);
    fr_tile tile;
    FR_FOR_TILES (tile, tiling, fr_share(s, w->blocks), false) {
        const fr_factor W_x = fr_tile_factor(&tile, fr_x_matrix(w), gates, w->inputs, s->scratch_rows + tile.row);
        fr_product(gates, tile.rows, tile.blocks, fr_biases(w, &tile), W_x, fr_no_factor,
                   fr_input_sums(w, s, &tile, z));
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

/* Whether what a gate is multiplied with may be any number: a gate that is shut must then be 0. */
FR_INLINE bool fr_unbounded(const fr_panels *w)
{
    return w->state_activation != FR_TANH || w->output_activation != FR_TANH;
}

/* The activation of a gate. `defaults` is a constant, so that the default cell pays nothing for the options. */
FR_INLINE fr_quotient fr_gate(const fr_panels *w, bool defaults, vf sum)
{
    if (defaults)
        return fr_sigmoid(sum);
    sum = fr_limited(sum, w->clip);
    if (w->gate_activation == FR_SIGMOID)
        return fr_unbounded(w) ? fr_whole(fr_divided(fr_full_sigmoid(sum))) : fr_sigmoid(sum);
    const vf line = vf_fma(vf_set1((float)w->alpha), sum, vf_set1((float)w->beta));
    return fr_whole(vf_max(vf_set1(0.0f), vf_min(vf_set1(1.0f), line)));
}

/* The activation of the candidate. */
FR_INLINE fr_quotient fr_candidate(const fr_panels *w, bool defaults, vf sum)
{
    return defaults ? fr_tanh(sum) : fr_state_function(w->state_activation, fr_limited(sum, w->clip));
}

#endif
