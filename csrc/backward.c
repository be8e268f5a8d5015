/*
 * Runs backward passes over recorded calls. The loop over time is here, chunk by chunk and step by step from the last,
 * for C and Numba kernels alike. A chunk is a segment of the call: what is computed again, where there is no tape. Like
 * run.c this is compiled for the baseline CPU.
 *
 * Threads divide units in the steps, and rows, features and units in what a chunk adds. They wait for each other after
 * each product that another one needs. Both directions of a layer are run one after the other by all threads, because
 * both add to the same dx.
 *
 * The workspace, each part from a cache line on:
 *
 *   dz        [rows + B][dz_row]      of a chunk, and of the step after it
 *   segment   [B + rows] records, [2][B][N * L] intermediates, [B][H] c, if records are computed again
 *   gradients [0, 1 or 2][T][B][D * R]    of outputs of layers below the last, used in turn
 *   threads   each [FR_ROW_ARRAYS + 4][B] pointers to rows, [rows] pointers, gathered values and columns of dz
 */
#include "run.h"
#include "workspace.h"

#include <string.h>

#define ALIGN(floats) (((floats) + FR_LINE_FLOATS - 1) / FR_LINE_FLOATS * FR_LINE_FLOATS)
#define POINTER (int64_t)(sizeof(void *) / sizeof(float))

#define BACK_ARRAYS 5 /* rows of dy, dx, dh, dc, and of c that is computed again */

static int64_t active_rows(const fr_span *s, int64_t t) { return s->active ? s->active[t] : s->batch; }

/* The floats of a row of dz: an odd number of cache lines, so that a column of rows is spread over all cache sets. */
static int64_t dz_floats(const fr_plan *plan)
{
    const fr_panels *w = plan->panels;
    const int64_t sums = w->block_floats / plan->lanes * w->hidden;
    const int64_t behind = w->back_dependent_panels ? (w->outputs < w->hidden ? w->outputs : 0) + w->hidden
                           : w->back_late_panels    ? w->hidden
                                                    : 0;
    return ALIGN(sums + behind) / FR_LINE_FLOATS % 2 ? ALIGN(sums + behind) : ALIGN(sums + behind) + FR_LINE_FLOATS;
}

int64_t fr_bind_backward(const fr_plan *plan, fr_backward *b)
{
    const fr_sequence *q = b->forward;
    const int64_t B = q->batch, below = plan->layers - 1;
    if (q->steps == 0 || B == 0)
        return 0;
    b->rows = q->segment * B;
    b->dz_row = dz_floats(plan);
    b->layer_gradient = ALIGN(q->steps * B * plan->directions * plan->outputs);
    /* A thread that computes alone, where the pool cannot be had, has the columns of all: those of the others, and all
     * that they have, lie behind its own. */
    b->thread_floats = ALIGN((FR_ROW_ARRAYS + BACK_ARRAYS) * B * POINTER) + ALIGN(b->rows * POINTER) +
                       FR_MAX_BLOCKS * b->rows * plan->lanes + ALIGN(b->rows * (b->dz_row / q->schedule.threads + 1));
    b->segment_floats = 0;
    if (!q->tape) {
        const fr_panels *w = plan->panels;
        const int64_t record = w->blocks * w->recorded * plan->lanes;
        b->segment_floats = ALIGN((B + b->rows) * record + 2 * B * w->blocks * plan->lanes + B * plan->hidden);
    }
    return FR_LINE_FLOATS + b->segment_floats + (b->rows + B) * b->dz_row +
           (below < 2 ? below : 2) * b->layer_gradient + q->schedule.threads * b->thread_floats;
}

typedef struct {
    const fr_plan *plan;
    const fr_backward *b;
} fr_pass;

static void wait_for_all(const fr_sequence *q, int64_t thread, int64_t threads)
{
    if (threads > 1)
        fr_barrier(fr_step_counts(q), thread, 0, threads);
}

/* What a thread needs to compute records again: the segment's records, behind room for those of the step before it, and
 * what the forward kernels use. All threads have the same ones, but for the pointers. */
typedef struct {
    float *records; /* NULL if there is a tape */
    float *intermediate;
    float *c;       /* [B][H] */
    float **c_rows; /* [B] */
    int64_t lanes;
} fr_again;

/* Computes the records of a chunk again, from the checkpoint before it, by the kernel that computed them for y. It
 * writes to y what is there. The c before the chunk goes where the record of the step before would have it. */
static void compute_again(const fr_panels *w, const fr_back_span *b, int64_t first, const fr_again *again,
                          const fr_sequence *q, int64_t threads)
{
    const int64_t H = w->hidden, L = again->lanes, z_row = w->blocks * b->s->z_block;
    fr_span s = *b->s;
    float *z = again->records;
    const int64_t active = active_rows(&s, first), before = first > 0 ? active_rows(&s, first - 1) : 0;
    if (s.checkpoints) {
        const float *kept = s.checkpoints + first / s.segment * s.checkpoint_step;
        for (int64_t row = 0; row < active; row++)
            again->c_rows[row] = again->c + row * H;
        if (s.share == 0) {
            memcpy(again->c, kept, (size_t)(active * H) * sizeof(float));
            for (int64_t row = 0; first > 0 && row < active; row++)
                for (int64_t unit = 0; unit < H; unit += L)
                    memcpy(z + (row - before) * z_row + unit / L * s.z_block + w->block_floats, kept + row * H + unit,
                           (size_t)(H - unit < L ? H - unit : L) * sizeof(float));
        }
        s.c = again->c_rows;
        s.checkpoints = NULL;
    }
    s.tape = z;
    s.chunk = b->end - first;
    s.scratch_rows = b->rows;
    s.intermediate = again->intermediate;
    wait_for_all(q, s.share, threads);
    if (w->input_product != FR_NEVER)
        w->kernel(w, &s, FR_INPUT, first, z);
    for (int64_t t = first; t < b->end && active_rows(&s, t) > 0; t++) {
        w->kernel(w, &s, FR_STEP, t, z);
        if (w->dependent_panels) {
            wait_for_all(q, s.share, threads);
            w->kernel(w, &s, FR_FINISH, t, z);
        }
        wait_for_all(q, s.share, threads);
        z += active_rows(&s, t) * z_row;
    }
}

/* A chunk's steps, from the last, then what it adds to dx and to the gradients of weights. z: the records of its first
 * step. */
static void run_chunk(const fr_panels *w, fr_back_span *b, int64_t first, const float *z, const fr_sequence *q,
                      int64_t threads)
{
    const fr_span *s = b->s;
    const int64_t z_row = w->blocks * s->z_block;
    float *const dz = b->dz; /* of the chunk's first step */
    int64_t rows = b->chunk_rows;
    for (int64_t t = b->end - 1; t >= first; t--) {
        const int64_t active = active_rows(s, t);
        b->dz_after = dz + rows * b->dz_row;
        rows -= active;
        if (active == 0)
            continue;
        b->dz = dz + rows * b->dz_row;
        w->back_kernel(w, b, FR_BACK_STEP, t, z + rows * z_row);
        wait_for_all(q, s->share, threads);
        if (w->back_dependent_panels) {
            w->back_kernel(w, b, FR_BACK_FINISH, t, z + rows * z_row);
            wait_for_all(q, s->share, threads);
        }
    }
    b->dz = dz;
    if (b->chunk_rows == 0)
        return;
    w->back_kernel(w, b, FR_BACK_WEIGHTS, first, z);
    if (b->dx)
        w->back_kernel(w, b, FR_BACK_INPUT, first, z);
}

static int64_t rows_of_chunk(const fr_span *s, int64_t first, int64_t end)
{
    int64_t rows = 0;
    for (int64_t t = first; t < end; t++)
        rows += active_rows(s, t);
    return rows;
}

static void run_direction(const fr_panels *w, fr_back_span *b, const fr_again *again, const fr_sequence *q,
                          int64_t threads)
{
    const fr_span *s = b->s;
    const int64_t chunk = q->segment;
    int64_t position = rows_of_chunk(s, 0, s->steps);
    for (int64_t first = (s->steps - 1) / chunk * chunk; first >= 0; first -= chunk) {
        const int64_t end = first + chunk < s->steps ? first + chunk : s->steps;
        const int64_t rows = rows_of_chunk(s, first, end);
        if (end < s->steps && active_rows(s, end) > 0) { /* what the step after left is at the start of dz */
            wait_for_all(q, s->share, threads);
            if (s->share == 0)
                memmove(b->dz + rows * b->dz_row, b->dz, (size_t)(active_rows(s, end) * b->dz_row) * sizeof(float));
            wait_for_all(q, s->share, threads);
        }
        position -= rows;
        b->end = end;
        b->chunk_rows = rows;
        if (again->records && rows > 0)
            compute_again(w, b, first, again, q, threads);
        run_chunk(w, b, first, again->records ? again->records : s->tape + position * w->blocks * s->z_block, q,
                  threads);
    }
    b->dz_after = b->dz;
    w->back_kernel(w, b, FR_BACK_STATE, -1, NULL);
    wait_for_all(q, s->share, threads);
}

static fr_weight_gradients gradients_of(const fr_plan *plan, const fr_backward *b, int64_t index)
{
    const fr_gradient_layout *at = &b->layouts[index];
    float *all = b->gradients;
    return (fr_weight_gradients){
        .dW = all + at->dW,
        .dR = all + at->dR,
        .dP = all + at->dP,
        .db = all + at->db,
        .dd = all + at->dd,
        .dp = all + at->dp,
        .dW_row = ALIGN(plan->panels[index].inputs),
        .dR_row = ALIGN(plan->outputs),
        .dP_row = ALIGN(plan->hidden),
    };
}

static void run_thread(void *context, int64_t thread, int64_t threads)
{
    const fr_pass *pass = context;
    const fr_plan *plan = pass->plan;
    const fr_backward *b = pass->b;
    const int64_t B = b->forward->batch, D = plan->directions, R = plan->outputs;
    fr_sequence q = *b->forward;
    q.h = (float *)b->h;
    q.c = (float *)b->c;
    q.t = (int64_t *)b->t;

    const uintptr_t line = FR_LINE_FLOATS * sizeof(float);
    float *dz = (float *)(((uintptr_t)b->workspace + line - 1) / line * line);
    float *segment = dz + (b->rows + B) * b->dz_row;
    float *layer_gradients = segment + b->segment_floats;
    float *own = layer_gradients + (plan->layers < 3 ? plan->layers - 1 : 2) * b->layer_gradient;
    own += thread * b->thread_floats;
    void **rows = (void **)own;
    own += ALIGN((FR_ROW_ARRAYS + BACK_ARRAYS) * B * POINTER);
    const float **chunk_rows = (const float **)own;
    own += ALIGN(b->rows * POINTER);

    const fr_panels *shape = plan->panels;
    const int64_t record = shape->blocks * shape->recorded * plan->lanes, units = shape->blocks * plan->lanes;
    fr_again again = {.c_rows = (float **)(rows + (FR_ROW_ARRAYS + BACK_ARRAYS - 1) * B), .lanes = plan->lanes};
    if (!q.tape) {
        again.records = segment + B * record;
        again.intermediate = again.records + b->rows * record;
        again.c = again.intermediate + 2 * B * units;
    }
    const fr_role alone = {.threads = 1, .count = 1};
    for (int64_t layer = plan->layers - 1; layer >= 0; layer--)
        for (int64_t direction = 0; direction < D; direction++) {
            const int64_t index = layer * D + direction;
            const bool last = layer == plan->layers - 1, reverse = fr_is_reverse(plan, direction);
            const int64_t sign = reverse ? -1 : 1;
            fr_span s = fr_sequences_of(plan, &q, &alone, layer, direction, rows, B);
            s.share = thread;
            s.shares = threads;
            s.z_block = shape->recorded * plan->lanes;

            const float *dy = (last ? b->dy : layer_gradients + layer % 2 * b->layer_gradient) + direction * R;
            const int64_t dy_step = last ? b->dy_step : B * D * R, dy_row = last ? b->dy_row : D * R;
            float *dx = layer == 0 ? b->dx : layer_gradients + (layer - 1) % 2 * b->layer_gradient;
            const int64_t dx_step = layer == 0 ? b->dx_step : B * D * R, dx_row = layer == 0 ? b->dx_row : D * R;
            void **back_rows = rows + FR_ROW_ARRAYS * B;
            const float **dy_rows = (const float **)back_rows;
            float **dx_rows = (float **)(back_rows + B), **dh_rows = (float **)(back_rows + 2 * B);
            float **dc_rows = (float **)(back_rows + 3 * B);
            for (int64_t k = 0; k < B; k++) {
                const fr_row at = fr_row_of(&q, k, reverse);
                dy_rows[k] = dy + at.row * dy_row + at.from * dy_step;
                dx_rows[k] = dx ? dx + at.row * dx_row + at.from * dx_step : NULL;
                dh_rows[k] = b->dh + (index * B + at.row) * R;
                dc_rows[k] = b->dc ? b->dc + (index * B + at.row) * plan->hidden : NULL;
            }
            fr_back_span span = {
                .s = &s,
                .dy = dy_rows,
                .dy_step = sign * dy_step,
                .dx = dx ? dx_rows : NULL,
                .dx_step = sign * dx_step,
                .adds_dx = direction == 1,
                .dh = dh_rows,
                .dc = dc_rows,
                .dz = dz,
                .dz_row = b->dz_row,
                .rows = chunk_rows,
                .gathered = own,
                .columns = own + FR_MAX_BLOCKS * b->rows * plan->lanes,
                .gradients = gradients_of(plan, b, index),
            };
            run_direction(&plan->panels[index], &span, &again, &q, threads);
        }
}

void fr_run_backward(const fr_plan *plan, const fr_backward *b)
{
    fr_pass pass = {plan, b};
    if (b->forward->steps > 0 && b->forward->batch > 0)
        fr_run_job(run_thread, &pass, b->forward);
}
