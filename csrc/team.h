/*
 * The team: threads of this library that compute side by side with the one that calls it, and the meetings in which
 * they wait for each other. One team serves the process; it starts with the first call that wants it and stays. A
 * member spins for a while for the next job, then sleeps until it is woken: steps of a sequence follow each other in
 * microseconds, calls may be seconds apart. No OpenMP: its threads do not survive a fork, and a forked child that wants
 * them hangs.
 */
#ifndef FR_TEAM_H
#define FR_TEAM_H

#include "fusedrnn.h"

/* How often a member has come to a meeting; alone on its cache lines, for the neighbouring line is fetched along with
 * one. */
typedef struct {
    uint64_t times;
    char apart[128 - sizeof(uint64_t)];
} fr_met;

/* Counts that `member` has come, or come so far, once more. met[m] counts for member m, from 0. */
void fr_come(fr_met *met, int64_t member);

/* Waits until `member` has come so often. What it wrote before is then visible. */
void fr_await(const fr_met *met, int64_t member, int64_t times);

/* Waits until the members first <= m < first + count have come as often as `member`, which is one of them. What any
 * of them wrote before is then visible to all. */
void fr_meet(fr_met *met, int64_t member, int64_t first, int64_t count);

/* What a member does; it returns when its own part is done. */
typedef void (*fr_job)(void *about, int64_t member, int64_t members);

/*
 * Does a job with so many members, the calling thread being member 0, and returns when all are done: true. False, and
 * nothing done, where the team is at another job, its threads cannot be had, or one sleeps and the job is too short to
 * wake it for (`wakes` false): the caller then does the job alone.
 */
bool fr_team_do(fr_job job, void *about, int64_t members, bool wakes);

#endif
