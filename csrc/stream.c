/*
 * Streams and groups of streams: a call of one step, bound once and run often.
 */
#include "run.h"
#include "workspace.h"

#include <time.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

/* ---- one thread at a time --------------------------------------------------------------------------------------- */

static bool take(int64_t *busy) { return __atomic_exchange_n(busy, 1, __ATOMIC_ACQUIRE) == 0; }

static void release(int64_t *busy) { __atomic_store_n(busy, 0, __ATOMIC_RELEASE); }

/* Releases a group and the first `streams` of its streams. */
static void release_with(fr_stream *stream, int64_t streams)
{
    for (int64_t k = 0; k < streams; k++)
        release(&stream->streams[k]->busy);
    release(&stream->busy);
}

int fr_stream_take(fr_stream *stream)
{
    if (!take(&stream->busy))
        return FR_BUSY;
    for (int64_t k = 0; k < stream->stream_count; k++)
        if (!take(&stream->streams[k]->busy)) {
            release_with(stream, k);
            return FR_BUSY;
        }
    return FR_OK;
}

void fr_stream_release(fr_stream *stream) { release_with(stream, stream->stream_count); }

/* ---- binding ---------------------------------------------------------------------------------------------------- */

/* The arguments of a thread's kernels, [layers]. */
static inline fr_span *spans_of(const fr_stream *stream, const fr_role *role)
{
    return role->threads == 1 ? stream->spans : stream->spans + (1 + role->thread) * stream->plan->layers;
}

/* Points the rows of a group's span to the states of its streams. */
static void bind_states(const fr_stream *group, const fr_span *span, const fr_role *role, int64_t layer)
{
    float **h = (float **)span->h, **c = (float **)span->c;
    int64_t **t = (int64_t **)span->t;
    fr_stream *const *stream = group->streams;
    for (int64_t k = 0, row = fr_first_row(role); k < span->batch; k++, row += fr_row_step(role)) {
        for (; row >= (*stream)->io.batch; stream++)
            row -= (*stream)->io.batch;
        const fr_span *own = &(*stream)->spans[layer];
        h[k] = own->h[row];
        c[k] = own->c[row];
        t[k] = own->t[row];
    }
}

static void bind_thread(fr_stream *stream, int64_t thread, int64_t threads)
{
    const fr_plan *plan = stream->plan;
    const fr_role role = fr_role_of(&stream->io.schedule, thread, threads);
    fr_span *spans = spans_of(stream, &role);
    for (int64_t layer = 0; layer < plan->layers; layer++) {
        spans[layer] = fr_span_of(plan, &stream->io, &role, layer, 0);
        if (stream->streams)
            bind_states(stream, &spans[layer], &role, layer);
    }
}

void fr_stream_bind(fr_stream *stream)
{
    const int64_t threads = stream->io.schedule.threads;
    bind_thread(stream, 0, 1);
    for (int64_t thread = 0; threads > 1 && thread < threads; thread++)
        bind_thread(stream, thread, threads);
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

typedef struct {
    fr_stream *stream;
    const float *x;
} fr_step_call;

static void step_thread(void *context, int64_t thread, int64_t threads)
{
    const fr_step_call *call = context;
    const fr_stream *stream = call->stream;
    const fr_plan *plan = stream->plan;
    const fr_role role = fr_role_of(&stream->io.schedule, thread, threads);
    fr_barrier_count *counts = threads > 1 ? fr_step_counts(&stream->io) : NULL;
    fr_span *spans = spans_of(stream, &role);
    const float **rows = (const float **)spans->x;
    for (int64_t k = 0, row = fr_first_row(&role); k < spans->batch; k++, row += fr_row_step(&role))
        rows[k] = call->x + row * stream->inputs;
    for (int64_t layer = 0; layer < plan->layers; layer++) {
        fr_run_span(&plan->panels[layer], &spans[layer], &role, counts);
        spans[layer].downward ^= 1;
    }
}

static void step_from(fr_stream *stream, const float *x)
{
    fr_step_call call = {stream, x};
    fr_run_job(step_thread, &call, &stream->io);
}

int fr_step_from(fr_stream *stream, const float *x)
{
    const int status = fr_stream_take(stream);
    if (status == FR_OK) {
        step_from(stream, x);
        fr_stream_release(stream);
    }
    return status;
}

int fr_step(fr_stream *stream) { return fr_step_from(stream, stream->io.x); }

/* Waits until every instruction before has finished. */
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
    if (fr_stream_take(stream) != FR_OK)
        return -1.0;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int64_t k = 0; k < repeats; k++) {
        step_from(stream, stream->io.x);
        wait_for_results();
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    fr_stream_release(stream);
    return (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}
