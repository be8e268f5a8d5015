/*
 * Runs plans: the loop over time, chunk by chunk and step by step, is here and nowhere else, for C and Numba kernels
 * alike. Like dispatch.c this is compiled for the baseline CPU.
 *
 * A team divides a call among its members in one of these ways, or the first and one of the next two:
 *
 *   directions   each is a recurrence of its own: side by side, and no meeting before the end of the layer
 *   rows         each member has sequences of its own: likewise
 *   units        each member has units of its own, whose panels stay in its core's L2; after each product that another
 *                one waits for, all members of the direction meet
 *   layers       each member has layers of its own, a few steps behind the layer below: a wave through the stack, that
 *                waits for each other a few steps at a time
 *
 * What a number is computed from, and in which order, is the same in all of them, and alone: so are the bits.
 */
#include "team.h"

#include "float_mode.h"

#include <string.h>
#include <time.h>

/* ---- the workspace ---------------------------------------------------------------------------------------------- */

/* The x-projection of a chunk is made, then read back step by step: half of a 512 KiB L2, the smallest in use, keeps it
 * near, and bounds the scratch for any T. Where W is far larger it comes from far: a quarter of W for z then lets more
 * steps share one reading of it. */
#define SCRATCH_FLOATS (256 * 1024 / (int64_t)sizeof(float))
#define LINE 16 /* floats in a cache line */
#define ALIGN(floats) (((floats) + LINE - 1) / LINE * LINE)
#define POINTER (int64_t)(sizeof(void *) / sizeof(float))
#define MET (int64_t)(sizeof(fr_met) / sizeof(float))

static int64_t z_step_floats(const fr_panels *w, int64_t batch) { return batch * w->blocks * w->block_floats; }

static int64_t chunk_steps(const fr_plan *plan, int64_t steps, int64_t batch)
{
    const fr_panels *w = plan->panels; /* one size of scratch for all layers */
    const int64_t share = w->blocks * w->block_floats * w->inputs / 4;
    const int64_t fit = (share > SCRATCH_FLOATS ? share : SCRATCH_FLOATS) / z_step_floats(w, batch);
    const int64_t chunk = fit < steps ? fit : steps;
    return chunk > 0 ? chunk : 1;
}

/*
 * A wave pays where a step is so short that a meeting in it would cost as much: up to 64 units, one sequence. From 128
 * on it is no faster than divided units, and slower where those fit the L2 of their core and a layer does not. Each
 * member has as many layers, no more than it remembers, of sequences long beside what it is behind.
 */
#define WAVE_STEPS 12
#define WAVE_LAYERS 8
#define WAVE_FLOATS (64 * 1024)
static bool divides_layers(const fr_plan *plan, int64_t steps, int64_t batch, int64_t threads)
{
    const fr_panels *w = plan->panels;
    return threads > 1 && plan->directions == 1 && plan->layers % threads == 0 &&
           plan->layers <= WAVE_LAYERS * threads && steps >= 4 * WAVE_STEPS &&
           batch * w->blocks * w->block_floats * (w->inputs + w->outputs) <= WAVE_FLOATS;
}

/* What the workspace holds, in floats from its first cache line on. */
typedef struct {
    int64_t between;  /* layers but the last write here what the next one reads: so many buffers in turn, */
    int64_t buffers;  /* two, or in a wave, which has all layers at work, one for each */
    int64_t buffer;   /* of so many floats */
    int64_t meetings; /* in the middle of a layer, and at its end: an fr_met for each member */
    int64_t seats;    /* what each has for itself: seat 0 for a thread alone, 1 + m for member m of a team */
    int64_t seat;     /* the size of one, and in it, from its beginning: */
    int64_t rows;     /* for each layer and direction five arrays of batch pointers: rows of x, y, h, c and t */
    int64_t active;   /* as in fr_span, of the rows that a member has */
    int64_t scratch;  /* as in fr_span */
    int64_t scratch_rows;
    int64_t aside;
    int64_t end;
} fr_layout;

static fr_layout layout_of(const fr_plan *plan, int64_t steps, int64_t batch, int64_t threads)
{
    const fr_panels *w = plan->panels; /* of the shape of all */
    const int64_t below = plan->layers - 1;
    const int64_t chunk = chunk_steps(plan, steps, batch);
    fr_layout at = {0};
    at.buffers = below < 2 || divides_layers(plan, steps, batch, threads) ? below : 2;
    at.buffer = ALIGN(steps * batch * plan->directions * plan->outputs);
    at.meetings = at.buffers * at.buffer;
    at.seats = at.meetings + (threads > 1 ? 2 * threads * MET : 0);
    at.active = ALIGN(plan->layers * plan->directions * 5 * batch * POINTER);
    at.scratch = at.active + (threads > 1 ? ALIGN(steps * POINTER) : 0);
    at.scratch_rows = at.scratch + ALIGN(chunk * z_step_floats(w, batch));
    at.aside = at.scratch_rows + ALIGN(chunk * batch * POINTER);
    at.seat = at.aside + (w->dependent_panels ? ALIGN(2 * z_step_floats(w, batch)) : 0);
    at.end = at.seats + (threads > 1 ? 1 + threads : 1) * at.seat;
    return at;
}

static float *workspace_of(const fr_sequence *q)
{
    const uintptr_t line = LINE * sizeof(float);
    return (float *)(((uintptr_t)q->workspace + line - 1) / line * line);
}

int64_t fr_workspace_floats(const fr_plan *plan, int64_t steps, int64_t batch, int64_t threads)
{
    return steps > 0 && batch > 0 ? layout_of(plan, steps, batch, threads).end + LINE : 0;
}

/* ---- who computes what ------------------------------------------------------------------------------------------ */

/* A member's place among the others. Alone, there is one member. */
typedef struct {
    int64_t seat;
    int64_t member, members;
    int64_t first, count; /* the members of its direction */
    bool both;            /* computes both directions, if there are two, one after the other */
    bool by_layers;       /* each member has layers of its own: as if it were alone, but for who waits for whom */
    bool by_rows;         /* the members of a direction divide rows among them, not units */
    fr_met *steps, *layers;
} fr_role;

/* Rows need no meetings; units keep a core's panels in its own L2. */
static bool divides_rows(const fr_panels *w, int64_t batch, int64_t count)
{
    const int64_t panel_floats = w->blocks * w->block_floats * (w->inputs + w->outputs);
    const int64_t rows_enough = 4 * count; /* tiles lower than that read each weight for too little */
    return batch >= rows_enough && (w->blocks % count != 0 || panel_floats <= SCRATCH_FLOATS);
}

static fr_role role_of(const fr_plan *plan, const fr_sequence *q, int64_t member, int64_t members)
{
    if (members == 1) /* a small step would notice the divisions */
        return (fr_role){.members = 1, .count = 1, .both = true};
    fr_met *meetings = (fr_met *)(workspace_of(q) + layout_of(plan, q->steps, q->batch, q->threads).meetings);
    if (divides_layers(plan, q->steps, q->batch, members))
        return (fr_role){
            .seat = 1 + member,
            .member = member,
            .members = members,
            .first = member,
            .count = 1,
            .both = true,
            .by_layers = true,
            .steps = meetings,
        };
    const int64_t groups = plan->directions;
    const int64_t count = members / groups, group = member / count;
    return (fr_role){
        .seat = 1 + member,
        .member = member,
        .members = members,
        .first = group * count,
        .count = group < groups ? count : 0, /* of three members with two directions, one has nothing to do */
        .both = groups == 1,
        .by_rows = count > 1 && divides_rows(plan->panels, q->batch, count),
        .steps = meetings,
        .layers = meetings + q->threads,
    };
}

static int64_t first_row(const fr_role *place) { return place->by_rows ? place->member - place->first : 0; }

static int64_t row_step(const fr_role *place) { return place->by_rows ? place->count : 1; }

/* What the kernel of one layer and direction is called with, for one member. Rows are in order of length; the reverse
 * direction begins at each row's own last step. */
static fr_span span_of(const fr_plan *plan, const fr_sequence *q, const fr_role *place, int64_t layer,
                       int64_t direction)
{
    const int64_t index = layer * plan->directions + direction, B = q->batch;
    const int64_t R = plan->outputs, width = plan->directions * R;
    const fr_layout at = layout_of(plan, q->steps, B, q->threads);
    float *workspace = workspace_of(q);
    float *seat = workspace + at.seats + place->seat * at.seat;
    float *first_seat = seat - (place->member - place->first) * at.seat; /* of those who share units */

    const bool first = layer == 0, last = layer == plan->layers - 1;
    const float *x = first ? q->x : workspace + at.between + (layer - 1) % at.buffers * at.buffer;
    const int64_t x_step = first ? q->x_step : B * width;
    const int64_t x_row = first ? q->x_row : width;
    float *y = (last ? q->y : workspace + at.between + layer % at.buffers * at.buffer) + direction * R;
    const int64_t y_step = last ? q->y_step : B * width;
    const int64_t y_row = last ? q->y_row : width;

    void **rows = (void **)seat + index * 5 * B;
    const float **x_rows = (const float **)rows;
    float **y_rows = (float **)(rows + B), **h_rows = (float **)(rows + 2 * B), **c_rows = (float **)(rows + 3 * B);
    int64_t **t_rows = (int64_t **)(rows + 4 * B);
    const int64_t from_row = first_row(place), next_row = row_step(place);
    int64_t batch = 0;
    for (int64_t k = from_row; k < B; k += next_row, batch++) { /* long and short ones for each */
        const int64_t row = q->order ? q->order[k] : k;
        const int64_t length = q->lengths ? q->lengths[k] : q->steps;
        const int64_t from = direction == 0 || length == 0 ? 0 : length - 1;
        x_rows[batch] = x + row * x_row + from * x_step;
        y_rows[batch] = y + row * y_row + from * y_step;
        h_rows[batch] = q->h ? q->h + (index * B + row) * R : NULL;
        c_rows[batch] = q->c ? q->c + (index * B + row) * plan->hidden : NULL;
        t_rows[batch] = q->t ? q->t + index * B + row : NULL;
    }
    const int64_t *active = q->active;
    if (active && place->by_rows) {
        int64_t *mine = (int64_t *)(seat + at.active);
        for (int64_t t = 0; t < q->steps; t++)
            mine[t] = (q->active[t] - from_row + next_row - 1) / next_row;
        active = mine;
    }
    const int64_t sign = direction == 0 ? 1 : -1;
    const int64_t chunk = chunk_steps(plan, q->steps, B);
    return (fr_span){
        .steps = q->steps,
        .batch = batch,
        .share = place->by_rows ? 0 : place->member - place->first,
        .shares = place->by_rows ? 1 : place->count,
        .active = active,
        .x = x_rows,
        .x_step = sign * x_step,
        .y = y_rows,
        .y_step = sign * y_step,
        .h = h_rows,
        .c = c_rows,
        .t = t_rows,
        .scratch = seat + at.scratch,
        .scratch_rows = (const float **)(seat + at.scratch_rows),
        .intermediate = (place->by_rows ? seat : first_seat) + at.aside,
        .chunk = place->by_layers && chunk > WAVE_STEPS ? WAVE_STEPS : chunk,
    };
}

/* ---- over time -------------------------------------------------------------------------------------------------- */

static inline int64_t active_rows(const fr_span *s, int64_t t) { return s->active ? s->active[t] : s->batch; }

/* The members that divide the units of a direction wait for each other. */
static inline void meet(const fr_span *s, const fr_role *place)
{
    if (s->shares > 1)
        fr_meet(place->steps, place->member, place->first, place->count);
}

/* The state after each row's own last step, from its last output: outputs are where h lives while a sequence runs. */
static void keep_state(const fr_panels *w, const fr_span *s)
{
    for (int64_t t = s->steps - 1, ended = 0; t >= 0; t--)
        for (; ended < active_rows(s, t); ended++) {
            memcpy(s->h[ended], s->y[ended] + t * s->y_step, (size_t)w->outputs * sizeof(float));
            if (s->t[ended])
                *s->t[ended] += t + 1;
        }
}

/* The steps of a chunk, from `first` on. */
static void run_chunk(const fr_panels *w, const fr_span *s, const fr_role *place, int64_t first)
{
    const bool ahead = w->input_product == FR_ALWAYS || (w->input_product == FR_AHEAD && s->chunk > 1);
    const int64_t end = first + s->chunk < s->steps ? first + s->chunk : s->steps;
    float *z = ahead ? s->scratch : NULL;
    if (z) /* each member for its own units: nobody waits */
        w->kernel(w, s, FR_INPUT, first, z);
    for (int64_t t = first; t < end && active_rows(s, t) > 0; t++) {
        w->kernel(w, s, FR_STEP, t, z);
        if (w->dependent_panels) {
            meet(s, place);
            w->kernel(w, s, FR_FINISH, t, z);
        }
        meet(s, place);
        if (z)
            z += z_step_floats(w, active_rows(s, t));
    }
}

static void run_span(const fr_panels *w, const fr_span *s, const fr_role *place)
{
    for (int64_t first = 0; first < s->steps; first += s->chunk)
        run_chunk(w, s, place, first);
    if (s->share == 0)
        keep_state(w, s);
}

/* A member's layers in a wave, chunk by chunk: each chunk when the member below has done it. */
static void run_wave(const fr_plan *plan, const fr_sequence *q, const fr_role *place)
{
    const int64_t layers = plan->layers / place->members, lowest = place->member * layers;
    fr_span spans[WAVE_LAYERS];
    spans[0] = span_of(plan, q, place, lowest, 0);
    for (int64_t layer = 1; layer < layers; layer++)
        spans[layer] = span_of(plan, q, place, lowest + layer, 0);
    const int64_t chunk = spans[0].chunk;
    for (int64_t first = 0; first < q->steps; first += chunk) {
        if (place->member > 0)
            fr_await(place->steps, place->member - 1, first / chunk + 1);
        for (int64_t layer = 0; layer < layers; layer++)
            run_chunk(&plan->panels[lowest + layer], &spans[layer], place, first);
        fr_come(place->steps, place->member);
    }
    for (int64_t layer = 0; layer < layers; layer++)
        keep_state(&plan->panels[lowest + layer], &spans[layer]);
}

/* A layer reads what both directions of the one before wrote. Of a single one, those who divide units have met after
 * its last step, and those who divide rows read their own. */
static void layer_done(const fr_plan *plan, const fr_role *place, int64_t layer)
{
    if (!place->both && layer < plan->layers - 1)
        fr_meet(place->layers, place->member, 0, place->members);
}

static bool computes(const fr_role *place, int64_t direction)
{
    return place->both || (place->count > 0 && place->first == direction * place->count);
}

/* Does a job with as many threads as the call may have, or alone. */
static void run_job(fr_job job, void *about, const fr_plan *plan, const fr_sequence *q)
{
    const fr_float_mode mode = fr_flush_denormals();
    if (q->threads > 1) {
        const fr_role place = role_of(plan, q, 0, q->threads);
        memset(place.steps, 0, (size_t)(2 * q->threads) * sizeof(fr_met));
    }
    if (q->threads == 1 || !fr_team_do(job, about, q->threads, q->wakes != 0))
        job(about, 0, 1);
    fr_restore(mode);
}

typedef struct {
    const fr_plan *plan;
    const fr_sequence *q;
} fr_call;

static void run_member(void *about, int64_t member, int64_t members)
{
    const fr_call *call = about;
    const fr_plan *plan = call->plan;
    const fr_role place = role_of(plan, call->q, member, members);
    if (place.by_layers) {
        run_wave(plan, call->q, &place);
        return;
    }
    for (int64_t layer = 0; layer < plan->layers; layer++) {
        for (int64_t direction = 0; direction < plan->directions; direction++)
            if (computes(&place, direction)) {
                const fr_span span = span_of(plan, call->q, &place, layer, direction);
                run_span(&plan->panels[layer * plan->directions + direction], &span, &place);
            }
        layer_done(plan, &place, layer);
    }
}

void fr_run(const fr_plan *plan, const fr_sequence *q)
{
    fr_call call = {plan, q};
    if (q->steps > 0 && q->batch > 0)
        run_job(run_member, &call, plan, q);
}

/* ---- streams ---------------------------------------------------------------------------------------------------- */

static bool take(int64_t *busy) { return __atomic_exchange_n(busy, 1, __ATOMIC_ACQUIRE) == 0; }

static void release(int64_t *busy) { __atomic_store_n(busy, 0, __ATOMIC_RELEASE); }

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

/* Points the rows of a group's span to the states of its streams. */
static void bind_states(const fr_stream *group, const fr_span *span, const fr_role *place, int64_t layer)
{
    float **h = (float **)span->h, **c = (float **)span->c;
    int64_t **t = (int64_t **)span->t;
    fr_stream *const *stream = group->streams;
    for (int64_t k = 0, row = first_row(place); k < span->batch; k++, row += row_step(place)) {
        for (; row >= (*stream)->io.batch; stream++)
            row -= (*stream)->io.batch;
        const fr_span *own = &(*stream)->spans[layer];
        h[k] = own->h[row];
        c[k] = own->c[row];
        t[k] = own->t[row];
    }
}

void fr_stream_bind(fr_stream *stream)
{
    const fr_plan *plan = stream->plan;
    const int64_t threads = stream->io.threads;
    for (int64_t seat = 0; seat < (threads > 1 ? 1 + threads : 1); seat++) {
        const fr_role place = role_of(plan, &stream->io, seat > 0 ? seat - 1 : 0, seat > 0 ? threads : 1);
        for (int64_t layer = 0; layer < plan->layers; layer++) {
            fr_span *span = &stream->spans[seat * plan->layers + layer];
            *span = span_of(plan, &stream->io, &place, layer, 0);
            if (stream->streams)
                bind_states(stream, span, &place, layer);
        }
    }
}

typedef struct {
    fr_stream *stream;
    const float *x;
} fr_step_call;

static void step_member(void *about, int64_t member, int64_t members)
{
    const fr_step_call *call = about;
    const fr_stream *stream = call->stream;
    const fr_plan *plan = stream->plan;
    const fr_role place = role_of(plan, &stream->io, member, members);
    fr_span *spans = stream->spans + place.seat * plan->layers;
    const float **rows = (const float **)spans->x;
    for (int64_t k = 0, row = first_row(&place); k < spans->batch; k++, row += row_step(&place))
        rows[k] = call->x + row * stream->inputs;
    for (int64_t layer = 0; layer < plan->layers; layer++) {
        run_span(&plan->panels[layer], &spans[layer], &place);
        spans[layer].downward ^= 1;
        layer_done(plan, &place, layer);
    }
}

static void step_from(fr_stream *stream, const float *x)
{
    fr_step_call call = {stream, x};
    run_job(step_member, &call, stream->plan, &stream->io);
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
