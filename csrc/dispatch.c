/*
 * Finds what this CPU has, and kernels for it. Compiled for the baseline CPU and without link-time optimisation, so
 * that no instruction of a newer one can reach the code that decides what this one has.
 */
#include "kernel_table.h"

#include <string.h>

/* ---- instruction sets ------------------------------------------------------------------------------------------- */

static const fr_kernel_table *const tables[] = {
#define FR_ENTRY(isa, cpu) &fr_kernels_##isa,
    FR_ISAS(FR_ENTRY)
#undef FR_ENTRY
};

#define ISA_COUNT ((int64_t)(sizeof tables / sizeof tables[0]))

const char *fr_isa_name(int64_t isa) { return isa >= 0 && isa < ISA_COUNT ? tables[isa]->isa : NULL; }

int64_t fr_isa_lanes(int64_t isa) { return tables[isa]->lanes; }

bool fr_isa_runs_here(int64_t isa)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
#define FR_CASE(name, cpu)                                                                                             \
    if (strcmp(tables[isa]->isa, #name) == 0)                                                                          \
        return __builtin_cpu_supports(cpu) != 0;
    FR_ISAS(FR_CASE)
#undef FR_CASE
    return false;
#else
    (void)isa;
    return true;
#endif
}

fr_kernel fr_find_kernel(int64_t isa, const char *name)
{
#define FR_CASE(kernel)                                                                                                \
    if (strcmp(name, #kernel) == 0)                                                                                    \
        return tables[isa]->kernel;
    FR_CELLS(FR_CASE)
#undef FR_CASE
    return NULL;
}

fr_back_kernel fr_find_back_kernel(int64_t isa, const char *name)
{
#define FR_CASE(kernel)                                                                                                \
    if (strcmp(name, #kernel) == 0)                                                                                    \
        return tables[isa]->kernel##_back;
    FR_CELLS(FR_CASE)
#undef FR_CASE
    return NULL;
}

void fr_find_tiling(int64_t isa, int64_t type, int64_t gates, int64_t count, int64_t *tiling)
{
    tables[isa]->tiling(type, gates, count, tiling);
}

int fr_activation(int64_t isa, const char *name, const float *x, float *y, int64_t n)
{
#define FR_CASE(activation)                                                                                            \
    if (strcmp(name, #activation) == 0) {                                                                              \
        tables[isa]->activation(x, y, n);                                                                              \
        return 0;                                                                                                      \
    }
    FR_ACTIVATIONS(FR_CASE)
#undef FR_CASE
    return -1;
}

const char *fr_build(void) { return FR_BUILD; }

void fr_nothing(void) {}
