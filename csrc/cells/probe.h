/*
 * The loops that probe.c times: what an instruction set can do at most, and what a dependent step takes at least. Each
 * returns how much it did, and leaves its result in io, so that no work is idle; io holds FR_PROBE_FLOATS floats.
 *
 * - fma: independent sums in registers; FLOPs.
 * - read_1, read_2, read_4: a load and an FMA for each vector of `from`, in as many streams side by side; bytes. Which
 *   one is the fastest depends on the prefetchers of each cache level.
 * - tile: the product of the tallest tile of four gates, with panels from `from`; FLOPs.
 * - exchange: h stored, read back in all lanes, and summed: how the units of one step reach all of the next.
 * - sigmoid, tanh: each on the result of the one before.
 */
#ifndef FR_PROBE_H
#define FR_PROBE_H

/* Enough that none waits for itself, even where an FMA is a product and a sum; divisible by 4, for the streams. */
#define FR_PROBE_SUMS (VF_REGISTERS < 32 ? 12 : 24)

static int64_t fr_probe_fma(int64_t repeats, const float *from, int64_t floats, float *io)
{
    (void)from, (void)floats;
    const vf a = vf_set1(io[0]), b = vf_set1(io[1]);
    vf sum[FR_PROBE_SUMS];
    FR_UNROLL
    for (int k = 0; k < FR_PROBE_SUMS; k++)
        sum[k] = vf_set1(io[2 + k]); /* as far as a compiler knows, all different: none is computed for another */
    for (int64_t k = 0; k < repeats; k++) {
        FR_UNROLL
        for (int j = 0; j < FR_PROBE_SUMS; j++)
            sum[j] = vf_fma(sum[j], a, b);
    }
    FR_UNROLL
    for (int k = 1; k < FR_PROBE_SUMS; k++)
        sum[0] = vf_add(sum[0], sum[k]);
    vf_store(io, sum[0]);
    return 2 * VF_LANES * FR_PROBE_SUMS * repeats;
}

FR_INLINE int64_t fr_probe_read(int streams, int64_t repeats, const float *from, int64_t floats, float *io)
{
    const int vectors = FR_PROBE_SUMS / streams;
    const int64_t stream = floats / streams / (vectors * VF_LANES) * (vectors * VF_LANES);
    const vf scale = vf_set1(io[0]);
    vf sum[FR_PROBE_SUMS];
    FR_UNROLL
    for (int k = 0; k < FR_PROBE_SUMS; k++)
        sum[k] = vf_set1(io[1]);
    for (int64_t repeat = 0; repeat < repeats; repeat++)
        for (int64_t at = 0; at < stream; at += vectors * VF_LANES) {
            FR_UNROLL
            for (int k = 0; k < streams * vectors; k++) {
                const vf value = vf_load(from + k / vectors * stream + at + k % vectors * VF_LANES);
                sum[k] = vf_fma(value, scale, sum[k]);
            }
        }
    FR_UNROLL
    for (int k = 1; k < FR_PROBE_SUMS; k++)
        sum[0] = vf_add(sum[0], sum[k]);
    vf_store(io, sum[0]);
    return (int64_t)sizeof(float) * streams * stream * repeats;
}

#define FR_DEFINE(streams)                                                                                             \
    static int64_t fr_probe_read_##streams(int64_t repeats, const float *from, int64_t floats, float *io)              \
    {                                                                                                                  \
        return fr_probe_read(streams, repeats, from, floats, io);                                                      \
    }
FR_DEFINE(1)
FR_DEFINE(2)
FR_DEFINE(4)
#undef FR_DEFINE

static int64_t fr_probe_exchange(int64_t repeats, const float *from, int64_t floats, float *io)
{
    (void)from, (void)floats;
    const vf a = vf_set1(io[0]), b = vf_set1(io[1]);
    for (int64_t k = 0; k < repeats; k++) {
        vf_store(io, vf_fma(vf_set1(io[0]), a, b));
        __asm__ volatile("" ::: "memory"); /* through memory, as in a layer: not from register to register */
    }
    return repeats;
}

/* What of the FMA rate is left where its operands are loaded. */
static int64_t fr_probe_tile(int64_t repeats, const float *from, int64_t floats, float *io)
{
    enum { GATES = 4, DEPTH = 64, PANEL = DEPTH * GATES * VF_LANES };
    const int64_t rows = FR_TALLEST(GATES), panels = floats / PANEL;
    const float *v[FR_MAX_ROWS];
    fr_tile_sums memory;
    for (int64_t row = 0; row < FR_MAX_ROWS; row++)
        v[row] = io;
    for (int64_t k = 0; k < FR_MAX_SUMS * VF_LANES; k++)
        memory.sum[k] = io[0];
    const fr_sums start = {io, 0, 0}, to = fr_sums_in(&memory, 1, GATES);
    for (int64_t repeat = 0; repeat < repeats; repeat++)
        for (int64_t panel = 0; panel < panels; panel++) {
            const float *at = from + panel * PANEL;
            const fr_factor factor = {.panel = at, .v = v, .depth = DEPTH, .ahead = (const char *)at};
            fr_product(GATES, rows, 1, start, factor, fr_no_factor, to);
        }
    vf_store(io, vf_load(memory.sum));
    return 2 * VF_LANES * GATES * rows * DEPTH * panels * repeats;
}

#define FR_DEFINE(activation)                                                                                          \
    static int64_t fr_probe_##activation(int64_t repeats, const float *from, int64_t floats, float *io)                \
    {                                                                                                                  \
        (void)from, (void)floats;                                                                                      \
        vf v = vf_load(io);                                                                                            \
        for (int64_t k = 0; k < repeats; k++)                                                                          \
            v = fr_divided(fr_##activation(v));                                                                        \
        vf_store(io, v);                                                                                               \
        return repeats;                                                                                                \
    }
FR_DEFINE(sigmoid)
FR_DEFINE(tanh)
#undef FR_DEFINE

#endif
