/*
 * The floating-point mode of a thread. Gates that decay to nothing leave denormals in the state, and each costs a
 * hundred cycles: they are flushed to zero, inside only. The mode belongs to the thread, so the caller's is put back,
 * and the threads of the pool take the caller's for each job: its rounding is part of the result.
 */
#ifndef FR_FLOAT_MODE_H
#define FR_FLOAT_MODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <emmintrin.h>
typedef unsigned int fr_float_mode;
#define FR_FLUSH 0x8040u /* FTZ | DAZ */
static inline fr_float_mode fr_get_float_mode(void) { return _mm_getcsr(); }
static inline void fr_set_float_mode(fr_float_mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
typedef uint64_t fr_float_mode;
#define FR_FLUSH (1ull << 24) /* FZ */
static inline fr_float_mode fr_get_float_mode(void)
{
    fr_float_mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static inline void fr_set_float_mode(fr_float_mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
typedef int fr_float_mode;
#define FR_FLUSH 0
static inline fr_float_mode fr_get_float_mode(void) { return 0; }
static inline void fr_set_float_mode(fr_float_mode mode) { (void)mode; }
#endif

/* Flushes denormals from here on. Returns the mode before. */
static inline fr_float_mode fr_flush_denormals(void)
{
    const fr_float_mode mode = fr_get_float_mode();
    fr_set_float_mode(mode | FR_FLUSH);
    return mode;
}

#endif
