/*
 * The table type, the list of cells and the list of instruction sets: everything else in C follows from these.
 * A new cell is a body in cells/ and a name in FR_CELLS, one for each row of the table in python/fusedrnn/cells.py; a
 * new instruction set is a vocabulary in simd/, a thin file in isa/ and a name in FR_ISAS.
 */
#ifndef FR_KERNEL_TABLE_H
#define FR_KERNEL_TABLE_H

#include "fusedrnn.h"

#define FR_CELLS(DO) DO(rnn) DO(lstm) DO(lstm_coupled) DO(gru_after) DO(gru_before) DO(clockwork)

#define FR_ACTIVATIONS(DO) DO(sigmoid) DO(full_sigmoid) DO(tanh)

/* Best first. The second argument is what __builtin_cpu_supports and -march call it, so that the compiler's flags and
 * the run-time test cannot differ. Every aarch64 has NEON: there is nothing to ask there, and any other CPU has the
 * baseline alone. */
#if defined(__x86_64__) && defined(FR_NO_AVX512)
#define FR_ISAS(DO) DO(avx2, "x86-64-v3") DO(baseline, "x86-64")
#elif defined(__x86_64__)
#define FR_ISAS(DO) DO(avx512, "x86-64-v4") DO(avx2, "x86-64-v3") DO(baseline, "x86-64")
#elif defined(__aarch64__)
#define FR_ISAS(DO) DO(neon, "armv8-a") DO(baseline, "armv8-a")
#else
#define FR_ISAS(DO) DO(baseline, "any")
#endif

typedef void (*fr_activation_kernel)(const float *x, float *y, int64_t n);

/* What probe.c times. */
#define FR_PROBES(DO) DO(fma) DO(read_1) DO(read_2) DO(read_4) DO(exchange) DO(sigmoid) DO(tanh) DO(tile)
#define FR_PROBE_FLOATS 64
typedef int64_t (*fr_probe_loop)(int64_t repeats, const float *from, int64_t floats, float *io);

typedef struct {
    const char *isa;
    int64_t lanes;
    void (*tiling)(int64_t type, int64_t gates, int64_t count, int64_t *tiling);
#define FR_MEMBER(cell)                                                                                                \
    fr_kernel cell;                                                                                                    \
    fr_back_kernel cell##_back;
    FR_CELLS(FR_MEMBER)
#undef FR_MEMBER
#define FR_MEMBER(activation) fr_activation_kernel activation;
    FR_ACTIVATIONS(FR_MEMBER)
#undef FR_MEMBER
#define FR_MEMBER(probe) fr_probe_loop probe_##probe;
    FR_PROBES(FR_MEMBER)
#undef FR_MEMBER
} fr_kernel_table;

#define FR_DECLARE(isa, cpu) extern const fr_kernel_table fr_kernels_##isa;
FR_ISAS(FR_DECLARE)
#undef FR_DECLARE

#endif
