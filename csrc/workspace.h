/*
 * The workspace of a call: where each thread finds its rows, its scratch and its barrier counts, and what the kernel of
 * a layer is called with.
 */
#ifndef FR_WORKSPACE_H
#define FR_WORKSPACE_H

#include "schedule.h"
#include "thread_pool.h"

/* The barrier counts of a call, [threads]: for barriers within a layer, and at the end of a layer. */
fr_barrier_count *fr_step_counts(const fr_sequence *q);
fr_barrier_count *fr_layer_counts(const fr_sequence *q);

/* Sets the barrier counts of a call to 0. */
void fr_clear_counts(const fr_sequence *q);

/* The number of arrays of pointers of a layer and direction: to rows of x, y, h, c, t and since. */
#define FR_ROW_ARRAYS 6

/* Whether a direction runs from the last step to the first. */
static inline bool fr_is_reverse(const fr_plan *plan, int64_t direction) { return direction == 1 || plan->reverse; }

/* The k-th row of a call in the order of lengths: which sequence it is, and the step that it begins with. */
typedef struct {
    int64_t row, from;
} fr_row;

static inline fr_row fr_row_of(const fr_sequence *q, int64_t k, bool reverse)
{
    const int64_t length = q->lengths ? q->lengths[k] : q->steps;
    return (fr_row){q->order ? q->order[k] : k, !reverse || length == 0 ? 0 : length - 1};
}

/* The sequences and states of one layer and direction, as far as a thread has its rows, in the order of lengths; the
 * reverse direction begins at each row's own last step. Fills `rows`, [FR_ROW_ARRAYS][max_rows]. */
fr_span fr_sequences_of(const fr_plan *plan, const fr_sequence *q, const fr_role *role, int64_t layer,
                        int64_t direction, void **rows, int64_t max_rows);

/* The arguments of the kernel of one layer and direction, for one thread. */
fr_span fr_span_of(const fr_plan *plan, const fr_sequence *q, const fr_role *role, int64_t layer, int64_t direction);

#endif
