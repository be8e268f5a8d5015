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

static fr_thread_workspace thread_workspace(const fr_plan *plan, int64_t start, int64_t spans, int64_t rows,
                                            int64_t chunk, int64_t active_steps, bool records)
{
    const fr_panels *w = plan->panels; /* of the shape of all */
    fr_thread_workspace own = {.start = start, .rows = rows, .chunk = chunk};
    own.active = ALIGN(spans * FR_ROW_ARRAYS * rows * POINTER);
    own.scratch_rows = own.active + ALIGN(active_steps * POINTER);
    own.size = own.scratch_rows + ALIGN(chunk * rows * POINTER);
    own.intermediate = records ? 0 : ALIGN(chunk * rows * w->blocks * w->block_floats);
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
    at.layer_buffers = below < 2 || pipeline || q->records ? below : 2; /* a backward pass reads them again */
    at.layer_buffer = ALIGN(q->steps * q->batch * plan->directions * plan->outputs);
    at.barrier_counts = at.layer_buffers * at.layer_buffer;
    const int64_t alone = at.barrier_counts + (threads > 1 ? 2 * threads * COUNT : 0);
    at.alone = thread_workspace(plan, alone, all, q->batch, schedule->chunk_alone, 0, q->tape != NULL);
    at.scratch = alone + at.alone.size;
    int64_t scratch = at.alone.scratch_size;
    if (threads > 1) {
        const int64_t spans = pipeline ? plan->layers / threads : all / schedule->groups;
        const int64_t active_steps = schedule->division & FR_ROWS ? q->steps : 0;
        at.threads =
            thread_workspace(plan, at.scratch, spans, schedule->rows, schedule->chunk, active_steps, q->tape != NULL);
        at.scratch += threads * at.threads.size;
        const int64_t scratches = schedule->division & FR_UNITS ? schedule->groups : threads;
        if (scratch < scratches * at.threads.scratch_size)
            scratch = scratches * at.threads.scratch_size;
    }
    at.size = at.scratch + scratch + FR_LINE_FLOATS;
    return at;
}

int64_t fr_tape_floats(const fr_plan *plan, int64_t rows)
{
    const fr_panels *w = plan->panels;
    return ALIGN(rows * w->blocks * w->recorded * plan->lanes);
}

int64_t fr_bind_shape(const fr_plan *plan, fr_sequence *q)
{
    q->schedule = fr_schedule_of(plan, q->steps, q->batch, q->threads, q->records);
    q->layout = (fr_workspace){0};
    q->segment = q->records ? fr_segment_steps(q->steps, q->batch) : 0;
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

fr_span fr_sequences_of(const fr_plan *plan, const fr_sequence *q, const fr_role *role, int64_t layer,
                        int64_t direction, void **rows, int64_t max_rows)
{
    const int64_t index = layer * plan->directions + direction, B = q->batch;
    const int64_t R = plan->outputs, width = plan->directions * R;
    const fr_workspace *at = &q->layout;
    float *start = start_of(q);

    const bool first = layer == 0, last = layer == plan->layers - 1;
    const float *x = first ? q->x : start + (layer - 1) % at->layer_buffers * at->layer_buffer;
    const int64_t x_step = first ? q->x_step : B * width;
    const int64_t x_row = first ? q->x_row : width;
    float *y = (last ? q->y : start + layer % at->layer_buffers * at->layer_buffer) + direction * R;
    const int64_t y_step = last ? q->y_step : B * width;
    const int64_t y_row = last ? q->y_row : width;

    const int64_t first_row = fr_first_row(role), row_step = fr_row_step(role);
    const float **x_rows = (const float **)rows;
    float **y_rows = (float **)(rows + max_rows), **h_rows = (float **)(rows + 2 * max_rows);
    float **c_rows = (float **)(rows + 3 * max_rows);
    int64_t **t_rows = (int64_t **)(rows + 4 * max_rows);
    const int64_t **since_rows = (const int64_t **)(rows + 5 * max_rows);
    const bool reverse = fr_is_reverse(plan, direction);
    int64_t batch = 0;
    for (int64_t k = first_row; k < B; k += row_step, batch++) {
        const fr_row at_k = fr_row_of(q, k, reverse);
        x_rows[batch] = x + at_k.row * x_row + at_k.from * x_step;
        y_rows[batch] = y + at_k.row * y_row + at_k.from * y_step;
        h_rows[batch] = q->h ? q->h + (index * B + at_k.row) * R : NULL;
        c_rows[batch] = q->c ? q->c + (index * B + at_k.row) * plan->hidden : NULL;
        t_rows[batch] = q->t ? q->t + index * B + at_k.row : NULL;
        since_rows[batch] = q->since ? q->since + at_k.row + at_k.from * B : NULL;
    }
    const int64_t sign = reverse ? -1 : 1;
    return (fr_span){
        .steps = q->steps,
        .batch = batch,
        .shares = 1,
        .active = q->active,
        .x = x_rows,
        .x_step = sign * x_step,
        .y = y_rows,
        .y_step = sign * y_step,
        .h = h_rows,
        .c = c_rows,
        .t = t_rows,
        .since = q->since ? since_rows : NULL,
        .since_step = sign * B,
        .zeros = q->zeros,
        .checkpoints = q->checkpoints ? q->checkpoints + index * B * plan->hidden : NULL,
        .checkpoint_step = plan->layers * plan->directions * B * plan->hidden,
        .segment = q->segment,
        .tape = q->tape ? q->tape + index * q->tape_floats : NULL,
        .z_block = q->tape ? plan->panels->recorded * plan->lanes : plan->panels->block_floats,
    };
}

fr_span fr_span_of(const fr_plan *plan, const fr_sequence *q, const fr_role *role, int64_t layer, int64_t direction)
{
    const fr_workspace *at = &q->layout;
    const bool alone = role->division == FR_ALONE, by_units = role->division & FR_UNITS;
    const fr_thread_workspace *own = alone ? &at->alone : &at->threads;
    float *start = start_of(q);
    float *thread = start + own->start + role->thread * own->size;
    float *scratch = start + at->scratch + (by_units ? role->group : role->thread) * own->scratch_size;
    /* The layers and directions that a thread computes, one after the other, are numbered from 0. */
    int64_t number = alone ? layer * plan->directions + direction : layer;
    if (role->division & FR_LAYERS)
        number %= plan->layers / role->threads;

    void **rows = (void **)thread + number * FR_ROW_ARRAYS * own->rows;
    fr_span span = fr_sequences_of(plan, q, role, layer, direction, rows, own->rows);
    if (span.active && role->division & FR_ROWS) {
        const int64_t first_row = fr_first_row(role), row_step = fr_row_step(role);
        int64_t *own_active = (int64_t *)(thread + own->active);
        for (int64_t t = 0; t < q->steps; t++)
            own_active[t] = (q->active[t] - first_row + row_step - 1) / row_step;
        span.active = own_active;
    }
    if (by_units) {
        span.share = role->thread - role->first;
        span.shares = role->count;
    }
    span.scratch = scratch;
    span.scratch_rows = (const float **)(thread + own->scratch_rows);
    span.intermediate = scratch + own->intermediate;
    span.chunk = own->chunk;
    return span;
}
