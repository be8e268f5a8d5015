/*
 * Measures the limits of the machine it runs on, on one core. The loops are in cells/probe.h, once for each instruction
 * set; here is the clock. Like dispatch.c this is compiled for the baseline CPU.
 */
#include "kernel_table.h"

#include <string.h>
#include <time.h>

static const fr_kernel_table *const tables[] = {
#define FR_ENTRY(isa, cpu) &fr_kernels_##isa,
    FR_ISAS(FR_ENTRY)
#undef FR_ENTRY
};

static fr_probe_loop find_loop(int64_t isa, const char *probe)
{
#define FR_CASE(name)                                                                                                  \
    if (strcmp(probe, #name) == 0)                                                                                     \
        return tables[isa]->probe_##name;
    FR_PROBES(FR_CASE)
#undef FR_CASE
    return NULL;
}

/* Processor time of this thread: on a busy machine, time for which another program had the core is not in it. */
static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double fr_probe(int64_t isa, const char *probe, const float *buffer, int64_t floats, double seconds)
{
    const double shortest = 5e-4; /* a round: long beside the clock, short beside what disturbs it */
    const int64_t most = INT64_C(1) << 32;
    const fr_probe_loop loop = find_loop(isa, probe);
    if (!loop)
        return -1.0;

    double best = 0.0;
    int64_t repeats = 1;
    const double begin = seconds_now();
    for (int rounds = 0;;) {
        /* Values that stay where they are: neither denormal nor infinite after any number of repeats. */
        _Alignas(64) float io[FR_PROBE_FLOATS];
        for (int k = 0; k < FR_PROBE_FLOATS; k++)
            io[k] = 0.5f;
        const double start = seconds_now();
        const int64_t done = loop(repeats, buffer, floats, io);
        const double end = seconds_now();
        if (done == 0) /* a buffer too small for one round */
            return 0.0;
        if (end - start < shortest && repeats < most) {
            repeats *= 2;
            continue;
        }
        if ((double)done > best * (end - start))
            best = (double)done / (end - start);
        if (++rounds >= 3 && end - begin >= seconds)
            return best;
    }
}
