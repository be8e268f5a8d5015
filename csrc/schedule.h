/*
 * How one call is divided among threads: enum fr_division of api.h. This decides, and nothing else does: fr_run and the
 * streams follow it, and fr_predict says from the same rules what a division takes.
 */
#ifndef FR_SCHEDULE_H
#define FR_SCHEDULE_H

#include "fusedrnn.h"

/* The largest number of layers that a thread of a layer pipeline has: it keeps the arguments of them all. */
#define FR_PIPELINE_LAYERS 8

/* The division of a call of that shape. A call that records is divided by directions and units alone, so that the
 * records of all rows lie side by side, in one order for any number of threads. */
fr_schedule fr_schedule_of(const fr_plan *plan, int64_t steps, int64_t batch, int64_t threads, bool records);

/* What one thread of a call does. */
typedef struct {
    int64_t division; /* bits of fr_division; FR_ALONE for a thread alone, whatever the schedule says */
    int64_t threads;  /* number of threads that compute the call */
    int64_t thread;   /* number of the thread among them */
    int64_t group;    /* number of its group; under FR_DIRECTIONS its direction */
    int64_t first;    /* first thread of its group */
    int64_t count;    /* number of threads of its group */
} fr_role;

static inline fr_role fr_role_of(const fr_schedule *schedule, int64_t thread, int64_t threads)
{
    if (threads == 1)
        return (fr_role){.threads = 1, .count = 1};
    const int64_t count = schedule->group_threads, group = thread >= count;
    return (fr_role){
        .division = schedule->division,
        .threads = threads,
        .thread = thread,
        .group = group,
        .first = group * count,
        .count = count,
    };
}

/* Rows are dealt out in turn, so that each thread has long and short ones. */
static inline int64_t fr_first_row(const fr_role *role)
{
    return role->division & FR_ROWS ? role->thread - role->first : 0;
}

static inline int64_t fr_row_step(const fr_role *role) { return role->division & FR_ROWS ? role->count : 1; }

#endif
