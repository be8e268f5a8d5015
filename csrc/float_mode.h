/*
 * Gates that decay to nothing leave denormals in the state, and each costs a hundred cycles: they are flushed to zero,
 * inside only. The mode belongs to the thread, so the caller's is put back.
 */
#ifndef FR_FLOAT_MODE_H
#define FR_FLOAT_MODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <emmintrin.h>
typedef unsigned int fr_float_mode;
static inline fr_float_mode fr_flush_denormals(void)
{
    const fr_float_mode mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040u); /* FTZ | DAZ */
    return mode;
}
static inline void fr_restore(fr_float_mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
typedef uint64_t fr_float_mode;
static inline fr_float_mode fr_flush_denormals(void)
{
    fr_float_mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | (1ull << 24))); /* FZ */
    return mode;
}
static inline void fr_restore(fr_float_mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
typedef int fr_float_mode;
static inline fr_float_mode fr_flush_denormals(void) { return 0; }
static inline void fr_restore(fr_float_mode mode) { (void)mode; }
#endif

#endif
