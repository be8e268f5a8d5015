/*
 * What Python calls: finds kernels, and runs plans through them. Compiled for the baseline CPU and without link-time
 * optimisation, so that no instruction of a newer one can reach the code that decides what this one has.
 */
#include "kernel_table.h"

#include <string.h>
#include <time.h>

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

fr_kernel fr_find_kernel(int64_t isa, const char *cell)
{
#define FR_CASE(name)                                                                                                  \
    if (strcmp(cell, #name) == 0)                                                                                      \
        return tables[isa]->name;
    FR_CELLS(FR_CASE)
#undef FR_CASE
    return NULL;
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

/* ---- denormals -------------------------------------------------------------------------------------------------- */

/* Gates that decay to nothing leave denormals in the state, and each costs a hundred cycles: they are flushed to zero,
 * inside only. The mode belongs to the thread, so the caller's is put back. */
#if defined(__x86_64__)
#include <emmintrin.h>
typedef unsigned int fr_float_mode;
static fr_float_mode flush_denormals(void)
{
    const fr_float_mode mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040u); /* FTZ | DAZ */
    return mode;
}
static void restore(fr_float_mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
typedef uint64_t fr_float_mode;
static fr_float_mode flush_denormals(void)
{
    fr_float_mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | (1ull << 24))); /* FZ */
    return mode;
}
static void restore(fr_float_mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
typedef int fr_float_mode;
static fr_float_mode flush_denormals(void) { return 0; }
static void restore(fr_float_mode mode) { (void)mode; }
#endif

/* ---- running a plan --------------------------------------------------------------------------------------------- */

/* The x-projection of a chunk is made, then read back step by step: half of a 512 KiB L2, the smallest in use, keeps it
 * near, and bounds the scratch for any T. */
#define SCRATCH_FLOATS (256 * 1024 / (int64_t)sizeof(float))
#define LINE 16 /* floats in a cache line */
#define ALIGN(floats) (((floats) + LINE - 1) / LINE * LINE)

static int64_t z_step_floats(const fr_panels *w, int64_t batch) { return batch * w->blocks * w->block_floats; }

static int64_t chunk_steps(const fr_panels *w, int64_t steps, int64_t batch)
{
    const int64_t fit = SCRATCH_FLOATS / z_step_floats(w, batch);
    const int64_t chunk = fit < steps ? fit : steps;
    return chunk > 0 ? chunk : 1;
}

/* Layers but the last write here what the next one reads: two buffers in turn, as no kernel may overwrite its input. */
static int64_t between_floats(const fr_plan *plan, int64_t steps, int64_t batch)
{
    return plan->layers > 1 ? ALIGN(steps * batch * plan->directions * plan->hidden) : 0;
}

int64_t fr_workspace_floats(const fr_plan *plan, int64_t steps, int64_t batch)
{
    int64_t scratch = 0;
    if (steps > 0 && batch > 0) {
        const int64_t chunk = chunk_steps(plan->panels, steps, batch);
        scratch = chunk > 1 ? ALIGN(chunk * z_step_floats(plan->panels, batch)) : 0;
    }
    const int64_t floats = scratch + (plan->layers > 2 ? 2 : 1) * between_floats(plan, steps, batch);
    return floats ? floats + LINE : 0; /* room to begin on a cache line */
}

/* What the kernel of one layer and direction is called with. */
static fr_span span_of(const fr_plan *plan, const fr_sequence *q, int64_t layer, int64_t direction)
{
    const int64_t H = plan->hidden, width = plan->directions * H;
    const int64_t index = layer * plan->directions + direction;
    const int64_t between = between_floats(plan, q->steps, q->batch);
    float *workspace = (float *)(((uintptr_t)q->workspace + 4 * LINE - 1) / (4 * LINE) * (4 * LINE));
    float *buffers[2] = {workspace, workspace + (plan->layers > 2 ? between : 0)};
    float *scratch = workspace + (plan->layers > 2 ? 2 : 1) * between;

    const bool first = layer == 0, last = layer == plan->layers - 1;
    const float *x = first ? q->x : buffers[(layer - 1) % 2];
    const int64_t x_step = first ? q->x_step : q->batch * width;
    const int64_t x_row = first ? q->x_row : width;
    float *y = last ? q->y : buffers[layer % 2];
    const int64_t y_step = last ? q->y_step : q->batch * width;
    const int64_t y_row = last ? q->y_row : width;

    const int64_t from = direction == 0 ? 0 : q->steps - 1;
    const int64_t sign = direction == 0 ? 1 : -1;
    return (fr_span){
        .steps = q->steps,
        .batch = q->batch,
        .x = x + from * x_step,
        .x_step = sign * x_step,
        .x_row = x_row,
        .y = y + from * y_step + direction * H,
        .y_step = sign * y_step,
        .y_row = y_row,
        .h = q->h + index * q->batch * H,
        .c = q->c ? q->c + index * q->batch * H : NULL,
        .scratch = scratch,
        .chunk = chunk_steps(&plan->panels[index], q->steps, q->batch),
    };
}

void fr_run(const fr_plan *plan, const fr_sequence *q)
{
    if (q->steps <= 0 || q->batch <= 0)
        return;
    const fr_float_mode mode = flush_denormals();
    for (int64_t layer = 0; layer < plan->layers; layer++)
        for (int64_t direction = 0; direction < plan->directions; direction++) {
            const fr_panels *w = &plan->panels[layer * plan->directions + direction];
            const fr_span span = span_of(plan, q, layer, direction);
            w->kernel(w, &span);
        }
    restore(mode);
}

/* ---- streams ---------------------------------------------------------------------------------------------------- */

bool fr_stream_take(fr_stream *stream) { return __atomic_exchange_n(&stream->busy, 1, __ATOMIC_ACQUIRE) != 0; }

void fr_stream_release(fr_stream *stream) { __atomic_store_n(&stream->busy, 0, __ATOMIC_RELEASE); }

void fr_stream_bind(fr_stream *stream)
{
    for (int64_t layer = 0; layer < stream->plan->layers; layer++)
        stream->spans[layer] = span_of(stream->plan, &stream->io, layer, 0);
}

static void step_from(fr_stream *stream, const float *x)
{
    const fr_float_mode mode = flush_denormals();
    stream->spans[0].x = x;
    for (int64_t layer = 0; layer < stream->plan->layers; layer++) {
        const fr_panels *w = &stream->plan->panels[layer];
        w->kernel(w, &stream->spans[layer]);
    }
    restore(mode);
}

bool fr_step_from(fr_stream *stream, const float *x)
{
    if (fr_stream_take(stream))
        return true;
    step_from(stream, x);
    fr_stream_release(stream);
    return false;
}

bool fr_step(fr_stream *stream) { return fr_step_from(stream, stream->io.x); }

/* Until every instruction before has finished. */
static void wait_for_results(void)
{
#if defined(__x86_64__)
    _mm_lfence();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

double fr_time_steps(fr_stream *stream, int64_t repeats)
{
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int64_t k = 0; k < repeats; k++) {
        step_from(stream, stream->io.x);
        wait_for_results();
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}
