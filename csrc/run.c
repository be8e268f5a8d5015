/*
 * Runs plans. The loop over time, chunk by chunk and step by step, is here and nowhere else, for C and Numba kernels
 * alike. Like dispatch.c this is compiled for the baseline CPU.
 */
#include "run.h"

#include "float_mode.h"
#include "workspace.h"

#include <string.h>

static inline int64_t active_rows(const fr_span *s, int64_t t) { return s->active ? s->active[t] : s->batch; }

/* The threads that divide the units of a direction wait for each other. */
static inline void wait_for_units(const fr_span *s, const fr_role *role, fr_barrier_count *counts)
{
    if (s->shares > 1)
        fr_barrier(counts, role->thread, role->first, role->count);
}

/* The state after each row's own last step, from its last output: outputs are where h lives while a sequence runs. */
static void keep_state(const fr_panels *w, const fr_span *s)
{
    for (int64_t t = s->steps - 1, ended = 0; t >= 0; t--)
        for (; ended < active_rows(s, t); ended++) {
            memcpy(s->h[ended], s->y[ended] + t * s->y_step, (size_t)w->outputs * sizeof(float));
            if (s->t[ended]) {
                const int64_t since = s->since ? s->since[ended][t * s->since_step] : -1;
                *s->t[ended] = since >= 0 ? since + 1 : *s->t[ended] + t + 1;
            }
        }
}

/* c before step t, which one thread keeps while the others wait. */
static void keep_checkpoint(const fr_panels *w, const fr_span *s, int64_t t)
{
    float *to = s->checkpoints + t / s->segment * s->checkpoint_step;
    for (int64_t row = 0; s->share == 0 && row < active_rows(s, t); row++)
        memcpy(to + row * w->hidden, s->c[row], (size_t)w->hidden * sizeof(float));
}

/* The steps of a chunk, from `first` on, whose records begin at `record`. Returns where those of the next one do. */
static float *run_chunk(const fr_panels *w, const fr_span *s, const fr_role *role, fr_barrier_count *counts,
                        int64_t first, float *record)
{
    const bool ahead = w->input_product == FR_ALWAYS || (w->input_product == FR_AHEAD && (s->chunk > 1 || s->tape));
    const int64_t end = first + s->chunk < s->steps ? first + s->chunk : s->steps;
    float *z = s->tape ? record : ahead ? s->scratch : NULL;
    if (ahead) /* each thread for its own units: no barrier */
        w->kernel(w, s, FR_INPUT, first, z);
    for (int64_t t = first; t < end && active_rows(s, t) > 0; t++) {
        if (s->checkpoints && t % s->segment == 0) {
            keep_checkpoint(w, s, t);
            wait_for_units(s, role, counts);
        }
        w->kernel(w, s, FR_STEP, t, z);
        if (w->dependent_panels) {
            wait_for_units(s, role, counts);
            w->kernel(w, s, FR_FINISH, t, z);
        }
        wait_for_units(s, role, counts);
        if (z)
            z += active_rows(s, t) * w->blocks * s->z_block;
    }
    return z;
}

void fr_run_span(const fr_panels *w, const fr_span *s, const fr_role *role, fr_barrier_count *counts)
{
    float *record = s->tape;
    for (int64_t first = 0; first < s->steps; first += s->chunk)
        record = run_chunk(w, s, role, counts, first, record);
    if (s->share == 0)
        keep_state(w, s);
}

void fr_run_job(fr_job job, void *context, const fr_sequence *q)
{
    const fr_float_mode mode = fr_flush_denormals();
    const int64_t threads = q->schedule.threads;
    if (threads > 1)
        fr_clear_counts(q);
    if (threads == 1 || !fr_pool_run(job, context, threads, q->wakes != 0))
        job(context, 0, 1);
    fr_set_float_mode(mode);
}

/* ---- whole sequences -------------------------------------------------------------------------------------------- */

typedef struct {
    const fr_plan *plan;
    const fr_sequence *q;
} fr_call;

/* The layers of one thread of a layer pipeline, chunk by chunk: each chunk when the thread below has done it. */
static void run_pipeline(const fr_call *call, const fr_role *role)
{
    const fr_plan *plan = call->plan;
    const fr_sequence *q = call->q;
    fr_barrier_count *counts = fr_step_counts(q);
    const int64_t layers = plan->layers / role->threads, lowest = role->thread * layers;
    fr_span spans[FR_PIPELINE_LAYERS];
    spans[0] = fr_span_of(plan, q, role, lowest, 0);
    for (int64_t layer = 1; layer < layers; layer++)
        spans[layer] = fr_span_of(plan, q, role, lowest + layer, 0);
    const int64_t chunk = spans[0].chunk;
    for (int64_t first = 0; first < q->steps; first += chunk) {
        if (role->thread > 0)
            fr_wait(counts, role->thread - 1, first / chunk + 1);
        for (int64_t layer = 0; layer < layers; layer++)
            run_chunk(&plan->panels[lowest + layer], &spans[layer], role, counts, first, NULL);
        fr_arrive(counts, role->thread);
    }
    for (int64_t layer = 0; layer < layers; layer++)
        keep_state(&plan->panels[lowest + layer], &spans[layer]);
}

static void run_thread(void *context, int64_t thread, int64_t threads)
{
    const fr_call *call = context;
    const fr_plan *plan = call->plan;
    const fr_sequence *q = call->q;
    const fr_role role = fr_role_of(&q->schedule, thread, threads);
    if (role.division & FR_LAYERS) {
        run_pipeline(call, &role);
        return;
    }
    const bool both = !(role.division & FR_DIRECTIONS); /* one after the other, if there are two */
    for (int64_t layer = 0; layer < plan->layers; layer++) {
        for (int64_t direction = 0; direction < plan->directions; direction++)
            if (both || direction == role.group) {
                const fr_span span = fr_span_of(plan, q, &role, layer, direction);
                fr_run_span(&plan->panels[layer * plan->directions + direction], &span, &role, fr_step_counts(q));
            }
        /* A layer reads what both directions of the one before wrote. Of a single direction, the threads that divide
         * units have waited for each other after its last step, and those that divide rows read their own. */
        if (!both && layer < plan->layers - 1)
            fr_barrier(fr_layer_counts(q), thread, 0, threads);
    }
}

void fr_run(const fr_plan *plan, const fr_sequence *q)
{
    fr_call call = {plan, q};
    if (q->steps > 0 && q->batch > 0)
        fr_run_job(run_thread, &call, q);
}
