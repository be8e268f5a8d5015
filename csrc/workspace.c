/*
 * The workspace of a call: workspace.h. Its parts follow each other, each from a cache line on:
 *
 *   layer buffers    outputs of all layers but the last
 *   barrier counts
 *   alone            workspace of a thread that computes alone: pointers to rows
 *   threads          workspace of each thread: pointers to its rows, numbers of active rows
 *   scratch          input products and intermediates. A call has threads or one thread alone: both use this memory
 *
 * A stream binds the arguments for both, so only the scratch is shared.
 */
#include "workspace.h"

#include <string.h>

#define ALIGN(floats) (((floats) + FR_LINE_FLOATS - 1) / FR_LINE_FLOATS * FR_LINE_FLOATS)
#define POINTER (int64_t)(sizeof(void *) / sizeof(float))
#define COUNT (int64_t)(sizeof(fr_barrier_count) / sizeof(float))
#define ROWS 5 /* arrays of pointers for each layer and direction: rows of x, y, h, c and t */

static fr_thread_workspace thread_workspace(const fr_plan *plan, int64_t start, int64_t spans, int64_t rows,
                                            int64_t chunk, int64_t active_steps)
{
    const fr_panels *w = plan->panels; /* of the shape of all */
    fr_thread_workspace own = {.start = start, .rows = rows, .chunk = chunk};
    own.active = ALIGN(spans * ROWS * rows * POINTER);
    own.scratch_rows = own.active + ALIGN(active_steps * POINTER);
    own.size = own.scratch_rows + ALIGN(chunk * rows * POINTER);
    own.intermediate = ALIGN(chunk * rows * w->blocks * w->block_floats);
    const int64_t arrays = !w->dependent_panels ? 0 : w->outputs < w->hidden ? 1 : 2; /* a projection has one */
    own.scratch_size = own.intermediate + ALIGN(arrays * rows * w->blocks * plan->lanes);
    return own;
}

static fr_workspace layout_of(const fr_plan *plan, const fr_sequence *q)
{
    const fr_schedule *schedule = &q->schedule;
    const bool pipeline = schedule->division & FR_LAYERS;
    const int64_t threads = schedule->threads, below = plan->layers - 1, all = plan->layers * plan->directions;
    fr_workspace at = {0};
    at.layer_buffers = below < 2 || pipeline ? below : 2;
    at.layer_buffer = ALIGN(q->steps * q->batch * plan->directions * plan->outputs);
    at.barrier_counts = at.layer_buffers * at.layer_buffer;
    const int64_t alone = at.barrier_counts + (threads > 1 ? 2 * threads * COUNT : 0);
    at.alone = thread_workspace(plan, alone, all, q->batch, schedule->chunk_alone, 0);
    at.scratch = alone + at.alone.size;
    int64_t scratch = at.alone.scratch_size;
    if (threads > 1) {
        const int64_t spans = pipeline ? plan->layers / threads : all / schedule->groups;
        const int64_t active_steps = schedule->division & FR_ROWS ? q->steps : 0;
        at.threads = thread_workspace(plan, at.scratch, spans, schedule->rows, schedule->chunk, active_steps);
        at.scratch += threads * at.threads.size;
        const int64_t scratches = schedule->division & FR_UNITS ? schedule->groups : threads;
        if (scratch < scratches * at.threads.scratch_size)
            scratch = scratches * at.threads.scratch_size;
    }
    at.size = at.scratch + scratch + FR_LINE_FLOATS;
    return at;
}

int64_t fr_bind_shape(const fr_plan *plan, fr_sequence *q)
{
    q->schedule = fr_schedule_of(plan, q->steps, q->batch, q->threads);
    q->layout = (fr_workspace){0};
    if (q->steps > 0 && q->batch > 0)
        q->layout = layout_of(plan, q);
    return q->layout.size;
}

static float *start_of(const fr_sequence *q)
{
    const uintptr_t line = FR_LINE_FLOATS * sizeof(float);
    return (float *)(((uintptr_t)q->workspace + line - 1) / line * line);
}

fr_barrier_count *fr_step_counts(const fr_sequence *q)
{
    return (fr_barrier_count *)(start_of(q) + q->layout.barrier_counts);
}

fr_barrier_count *fr_layer_counts(const fr_sequence *q) { return fr_step_counts(q) + q->schedule.threads; }

void fr_clear_counts(const fr_sequence *q)
{
    memset(fr_step_counts(q), 0, (size_t)(2 * q->schedule.threads) * sizeof(fr_barrier_count));
}

fr_span fr_span_of(const fr_plan *plan, const fr_sequence *q, const fr_role *role, int64_t layer, int64_t direction)
{
    const int64_t index = layer * plan->directions + direction, B = q->batch;
    const int64_t R = plan->outputs, width = plan->directions * R;
    const fr_workspace *at = &q->layout;
    const bool alone = role->division == FR_ALONE, by_units = role->division & FR_UNITS;
    const fr_thread_workspace *own = alone ? &at->alone : &at->threads;
    float *start = start_of(q);
    float *thread = start + own->start + role->thread * own->size;
    float *scratch = start + at->scratch + (by_units ? role->group : role->thread) * own->scratch_size;
    /* The layers and directions that a thread computes, one after the other, are numbered from 0. */
    int64_t span = alone ? index : layer;
    if (role->division & FR_LAYERS)
        span %= plan->layers / role->threads;

    const bool first = layer == 0, last = layer == plan->layers - 1;
    const float *x = first ? q->x : start + (layer - 1) % at->layer_buffers * at->layer_buffer;
    const int64_t x_step = first ? q->x_step : B * width;
    const int64_t x_row = first ? q->x_row : width;
    float *y = (last ? q->y : start + layer % at->layer_buffers * at->layer_buffer) + direction * R;
    const int64_t y_step = last ? q->y_step : B * width;
    const int64_t y_row = last ? q->y_row : width;

    const int64_t first_row = fr_first_row(role), row_step = fr_row_step(role);
    void **rows = (void **)thread + span * ROWS * own->rows;
    const float **x_rows = (const float **)rows;
    float **y_rows = (float **)(rows + own->rows), **h_rows = (float **)(rows + 2 * own->rows);
    float **c_rows = (float **)(rows + 3 * own->rows);
    int64_t **t_rows = (int64_t **)(rows + 4 * own->rows);
    const bool reverse = direction == 1 || plan->reverse;
    int64_t batch = 0;
    for (int64_t k = first_row; k < B; k += row_step, batch++) {
        const int64_t row = q->order ? q->order[k] : k;
        const int64_t length = q->lengths ? q->lengths[k] : q->steps;
        const int64_t from = !reverse || length == 0 ? 0 : length - 1;
        x_rows[batch] = x + row * x_row + from * x_step;
        y_rows[batch] = y + row * y_row + from * y_step;
        h_rows[batch] = q->h ? q->h + (index * B + row) * R : NULL;
        c_rows[batch] = q->c ? q->c + (index * B + row) * plan->hidden : NULL;
        t_rows[batch] = q->t ? q->t + index * B + row : NULL;
    }
    const int64_t *active = q->active;
    if (active && role->division & FR_ROWS) {
        int64_t *own_active = (int64_t *)(thread + own->active);
        for (int64_t t = 0; t < q->steps; t++)
            own_active[t] = (q->active[t] - first_row + row_step - 1) / row_step;
        active = own_active;
    }
    const int64_t sign = reverse ? -1 : 1;
    return (fr_span){
        .steps = q->steps,
        .batch = batch,
        .share = by_units ? role->thread - role->first : 0,
        .shares = by_units ? role->count : 1,
        .active = active,
        .x = x_rows,
        .x_step = sign * x_step,
        .y = y_rows,
        .y_step = sign * y_step,
        .h = h_rows,
        .c = c_rows,
        .t = t_rows,
        .scratch = scratch,
        .scratch_rows = (const float **)(thread + own->scratch_rows),
        .intermediate = scratch + own->intermediate,
        .chunk = own->chunk,
    };
}
