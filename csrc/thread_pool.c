/*
 * The thread pool: thread_pool.h. Each thread has a mailbox of its own, so that a job wakes no more than it needs.
 */
#define _GNU_SOURCE
#include "thread_pool.h"

#include "float_mode.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>

/* ---- waiting ---------------------------------------------------------------------------------------------------- */

/* A barrier in the middle of a step is over in a tenth of a microsecond, and a pause may take half of that. So a thread
 * first spins, then pauses, then yields: on a machine with more threads than cores, others may be what it waits for. At
 * last it sleeps: a thread of real-time priority yields to nobody else, and what it waits for may need its core. */
#define SPINS 256
#define PAUSES 512
#define YIELDS 2048
#define SLEEP_NS 50000
/* How long a thread spins for the next job before it sleeps: longer than what a program does between two steps of a
 * stream, shorter than anybody notices. */
#define IDLE_NS 100000

static inline void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

static inline void wait_a_little(int64_t spins)
{
    if (spins > SPINS + PAUSES + YIELDS)
        nanosleep(&(struct timespec){.tv_nsec = SLEEP_NS}, NULL);
    else if (spins > SPINS + PAUSES)
        sched_yield();
    else if (spins > SPINS)
        pause_briefly();
}

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void fr_arrive(fr_barrier_count *counts, int64_t thread)
{
    const uint64_t arrivals = counts[thread].arrivals + 1; /* no other thread writes to it */
    __atomic_store_n(&counts[thread].arrivals, arrivals, __ATOMIC_RELEASE);
}

void fr_wait(const fr_barrier_count *counts, int64_t thread, int64_t arrivals)
{
    for (int64_t spins = 0; __atomic_load_n(&counts[thread].arrivals, __ATOMIC_ACQUIRE) < (uint64_t)arrivals; spins++)
        wait_a_little(spins);
}

void fr_barrier(fr_barrier_count *counts, int64_t thread, int64_t first, int64_t number)
{
    fr_arrive(counts, thread);
    const int64_t arrivals = (int64_t)counts[thread].arrivals;
    for (int64_t other = first; other < first + number; other++)
        fr_wait(counts, other, arrivals);
}

/* ---- the threads ------------------------------------------------------------------------------------------------ */

typedef struct {
    _Alignas(128) uint64_t posted; /* number of jobs given to the thread, written by the holder of the pool */
    _Alignas(128) uint64_t done;   /* number of jobs done, written by the thread */
    bool asleep;
    pthread_mutex_t mutex; /* for sleeping only */
    pthread_cond_t woken;
    pthread_t thread;
} fr_worker;

static struct {
    bool taken;         /* set by the holder of the pool, who may write to all that follows but `stopping` */
    bool stopping;      /* set while one thread ends the pool: callers that compute all the time would leave no gap */
    int64_t workers;    /* number of threads that run */
    int64_t refused;    /* time when a job was last too short to wake a thread for, in nanoseconds */
    fr_float_mode mode; /* floating-point mode of the job's caller */
    fr_job job;         /* function of the job; NULL to end */
    void *context;      /* first argument of the job */
    int64_t threads;    /* number of threads of the job */
    fr_worker
        worker[FR_MAX_THREADS]; /* worker[k] is thread k; worker[0] is never used, because the caller is thread 0 */
} pool;

static bool take_pool(void) { return !__atomic_exchange_n(&pool.taken, true, __ATOMIC_ACQUIRE); }

static void release_pool(void) { __atomic_store_n(&pool.taken, false, __ATOMIC_RELEASE); }

/* Sequentially consistent with post: either the poster sees that the thread sleeps, or the thread sees the post. */
static void sleep_until_posted(fr_worker *self, uint64_t done)
{
    pthread_mutex_lock(&self->mutex);
    __atomic_store_n(&self->asleep, true, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&self->posted, __ATOMIC_SEQ_CST) == done)
        pthread_cond_wait(&self->woken, &self->mutex);
    __atomic_store_n(&self->asleep, false, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&self->mutex);
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
    fr_worker *self = argument;
    for (uint64_t done = self->done;;) {
        int64_t until = 0;
        for (int64_t spins = 0; __atomic_load_n(&self->posted, __ATOMIC_ACQUIRE) == done; spins++) {
            if (spins < SPINS)
                continue;
            if (spins < SPINS + PAUSES)
                pause_briefly();
            else
                sched_yield(); /* the caller may be waiting for this very core */
            if (spins % 64 != 0)
                continue;
            if (until == 0)
                until = nanoseconds() + IDLE_NS;
            else if (nanoseconds() > until)
                sleep_until_posted(self, done);
        }
        if (!pool.job)
            return NULL;
        fr_set_float_mode(pool.mode);
        pool.job(pool.context, self - pool.worker, pool.threads);
        __atomic_store_n(&self->done, ++done, __ATOMIC_RELEASE);
    }
}

/* A forked child has no threads but the one that forked, and the holder of the pool is not among them. */
static void forget_threads(void)
{
    pool.workers = 0;
    pool.taken = false;
    pool.stopping = false;
}

static void free_worker(fr_worker *worker)
{
    pthread_cond_destroy(&worker->woken);
    pthread_mutex_destroy(&worker->mutex);
}

static bool start_worker(int64_t thread)
{
    static bool prepared;
    if (!prepared && pthread_atfork(NULL, NULL, forget_threads) != 0)
        return false;
    prepared = true;
    fr_worker *worker = &pool.worker[thread];
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
        free_worker(worker);
    return started;
}

static bool enough_workers(int64_t threads)
{
    while (pool.workers < threads - 1 && start_worker(pool.workers + 1))
        pool.workers++;
    return pool.workers >= threads - 1;
}

/* Ends all threads but the first `workers`. */
static void end_workers(int64_t workers)
{
    pool.job = NULL;
    for (; pool.workers > workers; pool.workers--) {
        fr_worker *worker = &pool.worker[pool.workers];
        post(worker);
        pthread_join(worker->thread, NULL);
        free_worker(worker);
    }
}

/* Waking takes longer than a short job. But a job that follows another closely may be the second of many: then all but
 * the first two find the pool awake. */
static bool awake_or_soon(int64_t threads)
{
    for (int64_t k = 1; k < threads; k++)
        if (__atomic_load_n(&pool.worker[k].asleep, __ATOMIC_RELAXED)) {
            const int64_t before = pool.refused;
            pool.refused = nanoseconds();
            return pool.refused - before < IDLE_NS;
        }
    return true;
}

/* A job of the holder of the pool. */
static void run_taken(fr_job job, void *context, int64_t threads)
{
    pool.job = job;
    pool.context = context;
    pool.threads = threads;
    pool.mode = fr_get_float_mode();
    for (int64_t k = 1; k < threads; k++)
        post(&pool.worker[k]);
    job(context, 0, threads);
    for (int64_t k = 1; k < threads; k++)
        for (int64_t spins = 0; __atomic_load_n(&pool.worker[k].done, __ATOMIC_ACQUIRE) < pool.worker[k].posted;
             spins++)
            wait_a_little(spins);
}

bool fr_pool_run(fr_job job, void *context, int64_t threads, bool wakes)
{
    if (__atomic_load_n(&pool.stopping, __ATOMIC_RELAXED) || !take_pool())
        return false;
    const bool can = enough_workers(threads) && (wakes || awake_or_soon(threads));
    if (can)
        run_taken(job, context, threads);
    release_pool();
    return can;
}

bool fr_pool_stop(double seconds)
{
    const int64_t until = nanoseconds() + (int64_t)(1e9 * seconds);
    __atomic_store_n(&pool.stopping, true, __ATOMIC_RELAXED);
    bool taken = take_pool();
    for (int64_t spins = 0; !taken && nanoseconds() < until; spins++) {
        wait_a_little(spins);
        taken = take_pool();
    }
    if (taken)
        end_workers(0);
    __atomic_store_n(&pool.stopping, false, __ATOMIC_RELAXED);
    if (taken)
        release_pool();
    return taken;
}

/* ---- what a barrier costs --------------------------------------------------------------------------------------- */

typedef struct {
    fr_barrier_count counts[FR_MAX_THREADS];
    int64_t repeats;
    int64_t rounds;
    double *seconds;
} fr_barrier_timing;

static void time_rounds(void *context, int64_t thread, int64_t threads)
{
    fr_barrier_timing *timing = context;
    for (int64_t round = 0; round < timing->rounds; round++) {
        const int64_t begin = nanoseconds();
        for (int64_t k = 0; k < timing->repeats; k++)
            fr_barrier(timing->counts, thread, 0, threads);
        if (thread == 0)
            timing->seconds[round] = 1e-9 * (double)(nanoseconds() - begin) / (double)timing->repeats;
    }
}

bool fr_time_barriers(int64_t threads, int64_t repeats, int64_t rounds, double *seconds)
{
    fr_barrier_timing timing = {.repeats = repeats, .rounds = rounds, .seconds = seconds};
    if (__atomic_load_n(&pool.stopping, __ATOMIC_RELAXED) || !take_pool())
        return false;
    const int64_t workers = pool.workers;
    const bool can = enough_workers(threads);
    if (can)
        run_taken(time_rounds, &timing, threads);
    if (pool.workers > workers)
        end_workers(workers);
    release_pool();
    return can;
}
