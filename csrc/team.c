/*
 * The team of threads: team.h. Each thread has a mailbox of its own, so that a job wakes no more than it needs.
 */
#define _GNU_SOURCE
#include "team.h"

#include "float_mode.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>

/* ---- waiting ---------------------------------------------------------------------------------------------------- */

/* A meeting in the middle of a step is over in a tenth of a microsecond, and a pause may take half of that: look often
 * first, then pause, then let others run: they may be what is waited for, on a machine with more threads than cores.
 * At last sleep: a caller of real-time priority yields to nobody else, and what it waits for may need its core. */
#define LOOKS 256
#define PAUSES 512
#define YIELDS 2048
#define NAP_NS 50000
/* How long a thread looks for the next job before it sleeps, in nanoseconds: longer than what a program does between
 * two steps of a stream, shorter than anybody notices. */
#define SPIN_NS 100000

static inline void pause_a_moment(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

static inline void wait_a_little(int64_t looked)
{
    if (looked > LOOKS + PAUSES + YIELDS)
        nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    else if (looked > LOOKS + PAUSES)
        sched_yield();
    else if (looked > LOOKS)
        pause_a_moment();
}

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void fr_come(fr_met *met, int64_t member)
{
    const uint64_t times = met[member].times + 1; /* nobody else writes to it */
    __atomic_store_n(&met[member].times, times, __ATOMIC_RELEASE);
}

void fr_await(const fr_met *met, int64_t member, int64_t times)
{
    for (int64_t looked = 0; __atomic_load_n(&met[member].times, __ATOMIC_ACQUIRE) < (uint64_t)times; looked++)
        wait_a_little(looked);
}

void fr_meet(fr_met *met, int64_t member, int64_t first, int64_t count)
{
    fr_come(met, member);
    const int64_t times = (int64_t)met[member].times;
    for (int64_t other = first; other < first + count; other++)
        fr_await(met, other, times);
}

/* ---- the threads ------------------------------------------------------------------------------------------------ */

typedef struct {
    _Alignas(128) uint64_t posted; /* jobs, by the one who has the team */
    _Alignas(128) uint64_t done;   /* jobs, by the thread */
    bool asleep;
    pthread_mutex_t mutex; /* for sleeping only */
    pthread_cond_t woken;
    pthread_t thread;
} fr_worker;

static struct {
    bool taken;    /* whoever has it may write to all that follows but `stopping` */
    bool stopping; /* nobody else takes it: threads that compute all the time would leave no gap */
    int64_t workers;
    int64_t refused; /* when a job was last too short to wake anybody for, in nanoseconds */
    fr_job job;      /* NULL: to end */
    void *about;
    int64_t members;
    fr_worker worker[FR_MAX_THREADS]; /* worker[m] is member m; 0 is never used: it is the caller */
} team;

static bool take_team(void) { return !__atomic_exchange_n(&team.taken, true, __ATOMIC_ACQUIRE); }

static void release_team(void) { __atomic_store_n(&team.taken, false, __ATOMIC_RELEASE); }

/* Sequentially consistent with post: either the poster sees that the thread sleeps, or the thread sees the post. */
static void sleep_until_posted(fr_worker *me, uint64_t done)
{
    pthread_mutex_lock(&me->mutex);
    __atomic_store_n(&me->asleep, true, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&me->posted, __ATOMIC_SEQ_CST) == done)
        pthread_cond_wait(&me->woken, &me->mutex);
    __atomic_store_n(&me->asleep, false, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&me->mutex);
}

static void post(fr_worker *worker)
{
    __atomic_store_n(&worker->posted, worker->posted + 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&worker->asleep, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&worker->mutex);
        pthread_cond_signal(&worker->woken);
        pthread_mutex_unlock(&worker->mutex);
    }
}

static void *work(void *argument)
{
    fr_worker *me = argument;
    fr_flush_denormals(); /* for good: the thread is ours */
    for (uint64_t done = me->done;;) {
        int64_t until = 0;
        for (int64_t looked = 0; __atomic_load_n(&me->posted, __ATOMIC_ACQUIRE) == done; looked++) {
            if (looked < LOOKS)
                continue;
            if (looked < LOOKS + PAUSES)
                pause_a_moment();
            else
                sched_yield(); /* the caller may be waiting for this very core */
            if (looked % 64 != 0)
                continue;
            if (until == 0)
                until = nanoseconds() + SPIN_NS;
            else if (nanoseconds() > until)
                sleep_until_posted(me, done);
        }
        if (!team.job)
            return NULL;
        team.job(team.about, me - team.worker, team.members);
        __atomic_store_n(&me->done, ++done, __ATOMIC_RELEASE);
    }
}

/* In a forked child there are no threads but the one that forked, and whoever had the team is not among them. */
static void forget(void)
{
    team.workers = 0;
    team.taken = false;
    team.stopping = false;
}

static void end_of(fr_worker *worker)
{
    pthread_cond_destroy(&worker->woken);
    pthread_mutex_destroy(&worker->mutex);
}

static bool start_worker(int64_t member)
{
    static bool prepared;
    if (!prepared && pthread_atfork(NULL, NULL, forget) != 0)
        return false;
    prepared = true;
    fr_worker *worker = &team.worker[member];
    memset(worker, 0, sizeof *worker);
    pthread_mutex_init(&worker->mutex, NULL);
    pthread_cond_init(&worker->woken, NULL);
    /* Signals are for the program's own threads, but for those that say what this very thread did: blocked, they would
     * end the process without a word. */
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigset_t others, before;
    sigfillset(&others);
    for (size_t k = 0; k < sizeof own / sizeof own[0]; k++)
        sigdelset(&others, own[k]);
    pthread_sigmask(SIG_SETMASK, &others, &before);
    const bool started = pthread_create(&worker->thread, NULL, work, worker) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!started)
        end_of(worker);
    return started;
}

static bool enough_workers(int64_t members)
{
    while (team.workers < members - 1 && start_worker(team.workers + 1))
        team.workers++;
    return team.workers >= members - 1;
}

/* Waking takes longer than a short job. But one that follows another closely may be the second of many: then all but
 * the first two find the team awake. */
static bool awake_or_soon(int64_t members)
{
    for (int64_t m = 1; m < members; m++)
        if (__atomic_load_n(&team.worker[m].asleep, __ATOMIC_RELAXED)) {
            const int64_t before = team.refused;
            team.refused = nanoseconds();
            return team.refused - before < SPIN_NS;
        }
    return true;
}

bool fr_team_do(fr_job job, void *about, int64_t members, bool wakes)
{
    if (__atomic_load_n(&team.stopping, __ATOMIC_RELAXED) || !take_team())
        return false;
    const bool can = enough_workers(members) && (wakes || awake_or_soon(members));
    if (can) {
        team.job = job;
        team.about = about;
        team.members = members;
        for (int64_t m = 1; m < members; m++)
            post(&team.worker[m]);
        job(about, 0, members);
        for (int64_t m = 1; m < members; m++)
            for (int64_t looked = 0; __atomic_load_n(&team.worker[m].done, __ATOMIC_ACQUIRE) < team.worker[m].posted;
                 looked++)
                wait_a_little(looked);
    }
    release_team();
    return can;
}

void fr_team_stop(void)
{
    __atomic_store_n(&team.stopping, true, __ATOMIC_RELAXED);
    for (int64_t looked = 0; !take_team(); looked++)
        wait_a_little(looked);
    team.job = NULL;
    for (int64_t m = 1; m <= team.workers; m++) {
        post(&team.worker[m]);
        pthread_join(team.worker[m].thread, NULL);
        end_of(&team.worker[m]);
    }
    team.workers = 0;
    __atomic_store_n(&team.stopping, false, __ATOMIC_RELAXED);
    release_team();
}

/* ---- what a meeting costs --------------------------------------------------------------------------------------- */

typedef struct {
    fr_met met[FR_MAX_THREADS];
    int64_t repeats;
} fr_meetings;

static void meet_often(void *about, int64_t member, int64_t members)
{
    fr_meetings *meetings = about;
    for (int64_t k = 0; k < meetings->repeats; k++)
        fr_meet(meetings->met, member, 0, members);
}

double fr_time_meetings(int64_t threads, int64_t repeats)
{
    fr_meetings meetings = {.repeats = repeats};
    const int64_t begin = nanoseconds();
    if (!fr_team_do(meet_often, &meetings, threads, true))
        return -1.0;
    return 1e-9 * (double)(nanoseconds() - begin) / (double)repeats;
}
