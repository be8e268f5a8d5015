/*
 * How one call is divided among threads: schedule.h. First the decision, then what it takes.
 */
#include "schedule.h"

/* ---- the decision ----------------------------------------------------------------------------------------------- */

/* Half of a 512 KiB L2, the smallest in use. */
#define NEAR_BYTES (256 * 1024)

/*
 * A layer pipeline pays where a step is so short that a barrier in it would cost as much: up to 64 units, one sequence.
 * How short it is depends on its multiply-adds: so small a layer is no faster with narrow weights. From 128 units on it
 * is no faster than divided units, and slower where those fit the L2 of their core and a layer does not. A thread waits
 * for the layer below every PIPELINE_STEPS; sequences are long beside what it is behind.
 */
#define PIPELINE_STEPS 12
#define PIPELINE_MACS (64 * 1024)

/* Tiles of fewer rows read each weight for too little. */
#define MIN_THREAD_ROWS 4

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t at_least_one(int64_t a) { return a > 1 ? a : 1; }

static int64_t share_of(int64_t whole, int64_t parts) { return (whole + parts - 1) / parts; }

/* The multiply-adds of a step of a row, over all padded units. */
static int64_t step_macs(const fr_panels *w) { return w->blocks * w->block_floats * (w->inputs + w->outputs); }

/* The number of unit blocks that are divided: a Clockwork RNN divides each of its modules, which are of one size. */
static int64_t divided_blocks(const fr_panels *w) { return w->modules ? w->blocks / w->module_count : w->blocks; }

/*
 * The input product of a chunk is made, then read back step by step: NEAR_BYTES keep it near, and bound the scratch for
 * any T. Where W is far larger it comes from far: a quarter of W for z then lets more steps share one reading of it.
 */
static int64_t chunk_steps(const fr_panels *w, int64_t steps, int64_t rows)
{
    const int64_t input_share = fr_panel_bytes(w, w->inputs) / 4;
    const int64_t bytes = input_share > NEAR_BYTES ? input_share : NEAR_BYTES;
    return at_least_one(min(steps, bytes / (rows * w->blocks * w->block_floats * (int64_t)sizeof(float))));
}

static bool divides_layers(const fr_plan *plan, int64_t steps, int64_t batch, int64_t threads)
{
    return threads > 1 && plan->directions == 1 && plan->layers % threads == 0 &&
           plan->layers <= FR_PIPELINE_LAYERS * threads && steps >= 4 * PIPELINE_STEPS &&
           batch * step_macs(plan->panels) <= PIPELINE_MACS;
}

static void divide_units(fr_schedule *schedule, const fr_panels *w, int64_t threads)
{
    const int64_t by_units = min(threads, divided_blocks(w));
    if (by_units > 1) {
        schedule->division |= FR_UNITS;
        schedule->group_threads = by_units;
    }
}

/* Divides a direction by rows or by units. Rows need no barrier; units keep a core's panels in its own L2. */
static void divide_direction(fr_schedule *schedule, const fr_panels *w, int64_t batch, int64_t threads)
{
    const int64_t by_rows = min(threads, batch / MIN_THREAD_ROWS), by_units = min(threads, divided_blocks(w));
    const int64_t bytes = fr_panel_bytes(w, w->inputs) + fr_panel_bytes(w, w->outputs);
    const bool uneven = w->blocks % threads != 0, small = bytes <= NEAR_BYTES;
    if (by_rows > by_units || (by_rows == threads && threads > 1 && (uneven || small))) {
        schedule->division |= FR_ROWS;
        schedule->group_threads = by_rows;
        schedule->rows = share_of(batch, by_rows);
    } else {
        divide_units(schedule, w, threads);
    }
}

fr_schedule fr_schedule_of(const fr_plan *plan, int64_t steps, int64_t batch, int64_t threads, bool records)
{
    const fr_panels *w = plan->panels; /* of the shape of all */
    fr_schedule schedule = {.division = FR_ALONE, .groups = 1, .group_threads = 1, .rows = batch};
    if (steps > 0 && batch > 0 && threads > 1) {
        if (!records && divides_layers(plan, steps, batch, threads)) {
            schedule.division = FR_LAYERS;
            schedule.group_threads = threads;
        } else {
            if (plan->directions == 2) {
                schedule.division = FR_DIRECTIONS;
                schedule.groups = 2;
            }
            if (records)
                divide_units(&schedule, w, threads / schedule.groups);
            else
                divide_direction(&schedule, w, batch, threads / schedule.groups);
        }
    }
    schedule.threads = schedule.groups * schedule.group_threads;
    schedule.chunk_alone = chunk_steps(w, at_least_one(steps), at_least_one(batch));
    schedule.chunk = schedule.chunk_alone;
    if (schedule.division & FR_LAYERS)
        schedule.chunk = min(schedule.chunk, PIPELINE_STEPS);
    return schedule;
}

/*
 * A segment is what one chain of additions to a gradient of weights goes over: it depends on the shape alone, and so do
 * the gradients' bits. More rows share more loads and stores of these gradients, and round more; what they pass on
 * should stay in L2. Long sequences have eight segments or more, which bounds what is computed again from checkpoints.
 */
#define SEGMENT_ROWS 256
#define LONG_STEPS 512
#define MIN_SEGMENTS 8

int64_t fr_segment_steps(int64_t steps, int64_t batch)
{
    const int64_t most = steps > LONG_STEPS ? steps / MIN_SEGMENTS : steps;
    return at_least_one(min(most, SEGMENT_ROWS / at_least_one(batch)));
}

/* ---- what it takes ---------------------------------------------------------------------------------------------- */

/* More than one thread must be so much faster. */
#define SHARED_GAIN 1.25

/* The multiply-adds of a step of a row, on average over the steps of a Clockwork RNN. */
typedef struct {
    double first;     /* of the products that need only x and h */
    double dependent; /* of the product that needs the first one's results */
} fr_work;

static fr_work work_of(const fr_panels *w, int64_t lanes)
{
    fr_work work = {0};
    if (w->modules)
        for (int64_t k = 0; k < w->module_count; k++) {
            const fr_module *module = &w->modules[k];
            const int64_t read = w->inputs + w->hidden - module->reads;
            work.first += (double)(read * module->units) / (double)module->period;
        }
    else if (!w->dependent_panels)
        work.first = (double)step_macs(w);
    else if (w->outputs == w->hidden) { /* a GRU that resets before: one gate of h waits */
        work.dependent = (double)(w->blocks * lanes * w->hidden);
        work.first = (double)step_macs(w) - work.dependent;
    } else { /* a projection */
        work.first = (double)step_macs(w);
        work.dependent = (double)(share_of(w->outputs, lanes) * lanes * w->hidden);
    }
    return work;
}

/* The largest part of `blocks` unit blocks that one of `threads` has. */
static double largest_part(int64_t blocks, int64_t threads)
{
    return (double)share_of(blocks, threads) / (double)blocks;
}

fr_prediction fr_predict(const fr_plan *plan, int64_t steps, int64_t batch, int64_t threads, double step_seconds,
                         const double *barrier_seconds)
{
    const fr_schedule schedule = fr_schedule_of(plan, steps, batch, threads, false);
    const int64_t count = schedule.group_threads, last = plan->layers - 1;
    const double T = (double)steps;
    fr_prediction predicted = {.threads = threads, .division = schedule.division, .seconds = T * step_seconds};
    if (schedule.threads == 1)
        return predicted;

    double whole = 0; /* of a step, in multiply-adds */
    for (int64_t layer = 0; layer <= last; layer++) {
        const fr_work work = work_of(&plan->panels[layer * plan->directions], plan->lanes);
        whole += work.first + work.dependent;
    }
    double part = 1; /* of a step's time, that the thread with the most of it takes */
    double waiting = 0;
    if (schedule.division & FR_ROWS)
        part = largest_part(batch, count);
    if (schedule.division & FR_UNITS) {
        part = 0;
        for (int64_t layer = 0; layer <= last; layer++) {
            const fr_panels *w = &plan->panels[layer * plan->directions];
            const fr_work work = work_of(w, plan->lanes);
            const int64_t blocks = w->outputs == w->hidden ? w->blocks : share_of(w->outputs, plan->lanes);
            part += work.first / whole * largest_part(divided_blocks(w), count);
            if (w->dependent_panels)
                part += work.dependent / whole * largest_part(blocks, count);
            waiting += T * (w->dependent_panels ? 2 : 1) * barrier_seconds[count];
        }
        predicted.barrier_threads = count;
    }
    if (schedule.division & FR_DIRECTIONS) {
        part /= 2;
        waiting += (double)last * barrier_seconds[schedule.threads];
        if (last > 0)
            predicted.barrier_threads = schedule.threads;
    }
    predicted.seconds = T * part * step_seconds + waiting;
    if (schedule.division & FR_LAYERS) {
        const int64_t layers = plan->layers / count;
        part = 0;
        for (int64_t lowest = 0; lowest <= last; lowest += layers) {
            double of_thread = 0;
            for (int64_t layer = lowest; layer < lowest + layers; layer++) {
                const fr_work work = work_of(&plan->panels[layer], plan->lanes);
                of_thread += work.first + work.dependent;
            }
            if (of_thread / whole > part)
                part = of_thread / whole;
        }
        /* The first chunk passes through all threads; the slowest one takes the time of the rest. */
        const double chunk = (double)schedule.chunk;
        predicted.seconds =
            (chunk + (T - chunk) * part) * step_seconds + (double)share_of(steps, schedule.chunk) * barrier_seconds[2];
        predicted.barrier_threads = 2;
    }
    return predicted;
}

fr_prediction fr_choose_threads(const fr_plan *plan, int64_t steps, int64_t batch, int64_t cores, double step_seconds,
                                const double *barrier_seconds)
{
    fr_prediction best = fr_predict(plan, steps, batch, 1, step_seconds, barrier_seconds);
    double least = best.seconds / SHARED_GAIN;
    for (int64_t threads = 2; threads <= cores && threads <= FR_MAX_THREADS; threads++) {
        const fr_prediction other = fr_predict(plan, steps, batch, threads, step_seconds, barrier_seconds);
        if (other.seconds < least) {
            best = other;
            least = other.seconds;
        }
    }
    return best;
}
