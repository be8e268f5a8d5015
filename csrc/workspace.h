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

/* The arguments of the kernel of one layer and direction, for one thread. Fills the thread's rows: in order of length;
 * the reverse direction begins at each row's own last step. */
fr_span fr_span_of(const fr_plan *plan, const fr_sequence *q, const fr_role *role, int64_t layer, int64_t direction);

#endif
