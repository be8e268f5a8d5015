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

/* What the workspace holds, in floats from its first cache line on. */
typedef struct {
    int64_t between[2]; /* layers but the last write here what the next one reads: two buffers in turn */
    int64_t rows;       /* for each layer and direction five arrays of batch pointers: rows of x, y, h, c and t */
    int64_t scratch;    /* as in fr_span */
    int64_t scratch_rows;
    int64_t aside;
    int64_t end;
} fr_layout;

static fr_layout layout_of(const fr_plan *plan, int64_t steps, int64_t batch)
{
    const fr_panels *w = plan->panels; /* of the shape of all */
    const int64_t pointer = (int64_t)(sizeof(void *) / sizeof(float));
    const int64_t between = ALIGN(steps * batch * plan->directions * plan->outputs);
    const int64_t chunk = chunk_steps(w, steps, batch);
    fr_layout at = {0};
    at.between[1] = at.between[0] + (plan->layers > 2 ? between : 0);
    at.rows = at.between[1] + (plan->layers > 1 ? between : 0);
    at.scratch = at.rows + ALIGN(plan->layers * plan->directions * 5 * batch * pointer);
    at.scratch_rows = at.scratch + ALIGN(chunk * z_step_floats(w, batch));
    at.aside = at.scratch_rows + ALIGN(chunk * batch * pointer);
    at.end = at.aside + (w->second_panels ? ALIGN(2 * z_step_floats(w, batch)) : 0);
    return at;
}

int64_t fr_workspace_floats(const fr_plan *plan, int64_t steps, int64_t batch)
{
    return steps > 0 && batch > 0 ? layout_of(plan, steps, batch).end + LINE : 0;
}

/* What the kernel of one layer and direction is called with. Rows are in order of length; the reverse direction begins
 * at each row's own last step. */
static fr_span span_of(const fr_plan *plan, const fr_sequence *q, int64_t layer, int64_t direction)
{
    const fr_panels *w = &plan->panels[layer * plan->directions + direction];
    const int64_t index = layer * plan->directions + direction, B = q->batch;
    const int64_t R = plan->outputs, width = plan->directions * R;
    const fr_layout at = layout_of(plan, q->steps, B);
    float *workspace = (float *)(((uintptr_t)q->workspace + 4 * LINE - 1) / (4 * LINE) * (4 * LINE));

    const bool first = layer == 0, last = layer == plan->layers - 1;
    const float *x = first ? q->x : workspace + at.between[(layer - 1) % 2];
    const int64_t x_step = first ? q->x_step : B * width;
    const int64_t x_row = first ? q->x_row : width;
    float *y = (last ? q->y : workspace + at.between[layer % 2]) + direction * R;
    const int64_t y_step = last ? q->y_step : B * width;
    const int64_t y_row = last ? q->y_row : width;

    void **rows = (void **)(workspace + at.rows) + index * 5 * B;
    const float **x_rows = (const float **)rows;
    float **y_rows = (float **)(rows + B), **h_rows = (float **)(rows + 2 * B), **c_rows = (float **)(rows + 3 * B);
    int64_t **t_rows = (int64_t **)(rows + 4 * B);
    for (int64_t k = 0; k < B; k++) {
        const int64_t row = q->order ? q->order[k] : k;
        const int64_t length = q->lengths ? q->lengths[k] : q->steps;
        const int64_t from = direction == 0 || length == 0 ? 0 : length - 1;
        x_rows[k] = x + row * x_row + from * x_step;
        y_rows[k] = y + row * y_row + from * y_step;
        h_rows[k] = q->h + (index * B + row) * R;
        c_rows[k] = q->c ? q->c + (index * B + row) * plan->hidden : NULL;
        t_rows[k] = q->t ? q->t + index * B + row : NULL;
    }
    const int64_t sign = direction == 0 ? 1 : -1;
    return (fr_span){
        .steps = q->steps,
        .batch = B,
        .active = q->active,
        .x = x_rows,
        .x_step = sign * x_step,
        .y = y_rows,
        .y_step = sign * y_step,
        .h = h_rows,
        .c = c_rows,
        .t = t_rows,
        .scratch = workspace + at.scratch,
        .scratch_rows = (const float **)(workspace + at.scratch_rows),
        .aside = workspace + at.aside,
        .chunk = chunk_steps(w, q->steps, B),
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
    const float **rows = (const float **)stream->spans[0].x;
    for (int64_t row = 0; row < stream->io.batch; row++)
        rows[row] = x + row * stream->inputs;
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
