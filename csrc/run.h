/*
 * The loop over time, for whole sequences and for steps of streams.
 */
#ifndef FR_RUN_H
#define FR_RUN_H

#include "schedule.h"
#include "thread_pool.h"

/* Runs one direction of one layer over all steps of a span, and writes the state after them. */
void fr_run_span(const fr_panels *w, const fr_span *s, const fr_role *role, fr_barrier_count *counts);

/* Does a job with the threads of a bound call, or alone where the pool cannot be had. */
void fr_run_job(fr_job job, void *context, const fr_sequence *q);

#endif
