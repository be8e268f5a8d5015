/*
 * The thread pool: threads of this library that compute side by side with the thread that calls it, and the barriers
 * in which they wait for each other. One pool serves the process. It starts with the first call that wants it and
 * stays. A thread of the pool spins for a while for the next job, then sleeps until it is woken: steps of a sequence
 * follow each other in microseconds, calls may be seconds apart. No OpenMP: its threads do not survive a fork, and a
 * forked child that wants them hangs.
 */
#ifndef FR_THREAD_POOL_H
#define FR_THREAD_POOL_H

#include "fusedrnn.h"

/* How often a thread has arrived. It is alone on two cache lines, because a line is fetched with its neighbour. */
typedef struct {
    uint64_t arrivals;
    char padding[128 - sizeof(uint64_t)];
} fr_barrier_count;

/* Counts that `thread` has arrived once more. counts[k] belongs to thread k and begins at 0. */
void fr_arrive(fr_barrier_count *counts, int64_t thread);

/* Waits until `thread` has arrived `arrivals` times. What it wrote before is then visible. */
void fr_wait(const fr_barrier_count *counts, int64_t thread, int64_t arrivals);

/* Arrives, and waits until each of `number` threads, from `first` on, has arrived as often as `thread`, which is one of
 * them. What any of them wrote before is then visible to all. */
void fr_barrier(fr_barrier_count *counts, int64_t thread, int64_t first, int64_t number);

/* What one thread of `threads` does. It returns when its own part is done. */
typedef void (*fr_job)(void *context, int64_t thread, int64_t threads);

/*
 * Does a job with so many threads, the calling thread being thread 0, and returns true when all are done. All compute
 * in the floating-point mode of the caller. Returns false, with nothing done, where the pool is at another job, its
 * threads cannot be had, or one sleeps and the job is too short to wake it for (`wakes` false): the caller then does
 * the job alone.
 */
bool fr_pool_run(fr_job job, void *context, int64_t threads, bool wakes);

#endif
