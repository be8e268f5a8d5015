/*
 * The vocabulary (README.md) in the compiler's own vectors: 4 lanes, whatever the CPU (SSE2 on x86-64, NEON on
 * aarch64). No FMA is assumed: without the instruction it would be a library call, so vf_fma multiplies, then adds.
 */
#ifndef FR_SIMD_H
#define FR_SIMD_H

#include <stdint.h>
#include <string.h>

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vf_bits __attribute__((vector_size(16)));
typedef int64_t vf_pair __attribute__((vector_size(16)));
typedef int16_t vf_halves __attribute__((vector_size(16)));
typedef int8_t vf_bytes __attribute__((vector_size(8)));
typedef int16_t vf_narrow __attribute__((vector_size(8)));

#define VF_LANES 4
/* One of 16 is left for the product that vf_fma adds. */
#define VF_REGISTERS 15

#define vf_keep(v) (void)(v)
static inline vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
/* Four elements of 16 bits in the upper halves of words of 32: two instructions with SSE2, where to convert them takes
 * three times as long. */
static inline vf_bits vf_upper(int64_t elements)
{
    const vf_halves halves = (vf_halves)(vf_pair){elements, 0}, zero = {0};
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return (vf_bits)__builtin_shufflevector(zero, halves, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return (vf_bits)__builtin_shufflevector(halves, zero, 0, 8, 1, 9, 2, 10, 3, 11);
#endif
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    int64_t elements;
    memcpy(&elements, p, sizeof elements);
    return (vf)vf_upper(elements);
}
/* The exponent of a float16, moved to where a float's is, is 112 too small. The copies of the sign that the shift
 * leaves behind the sign are no bits of the float. */
static inline vf vf_load_f16(const uint16_t *p)
{
    return (vf)((vf_bits)vf_load_bf16(p) >> 3 & (int32_t)0x8fffe000) * 0x1p112f;
}
static inline void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
static inline vf vf_load_n(const float *p, int64_t n)
{
    if (n >= VF_LANES)
        return vf_load(p);
    vf v = {0};
    for (int64_t k = 0; k < n; k++)
        v[k] = p[k];
    return v;
}
static inline void vf_store_n(float *p, vf v, int64_t n)
{
    if (n >= VF_LANES) {
        vf_store(p, v);
        return;
    }
    for (int64_t k = 0; k < n; k++)
        p[k] = v[k];
}
static inline vf vf_set1(float s) { return (vf){s, s, s, s}; }
static inline vf vf_add(vf a, vf b) { return a + b; }
static inline vf vf_sub(vf a, vf b) { return a - b; }
static inline vf vf_mul(vf a, vf b) { return a * b; }
static inline vf vf_div(vf a, vf b) { return a / b; }
static inline vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
static inline vf vf_where(vf_bits mask, vf a, vf b) { return (vf)((mask & (vf_bits)a) | (~mask & (vf_bits)b)); }
static inline vf vf_min(vf limit, vf v) { return vf_where(limit < v, limit, v); }
static inline vf vf_max(vf limit, vf v) { return vf_where(limit > v, limit, v); }
static inline vf vf_less(vf a, vf b, vf v) { return (vf)((a < b) & (vf_bits)v); }
static inline vf vf_shl23(vf v) { return (vf)((vf_bits)v << 23); }

typedef vf_bits vi;

#define vi_keep(v) (void)(v)
static inline vi vi_zero(void) { return (vi){0}; }
static inline vi vi_set4(const int16_t *p)
{
    int64_t four;
    memcpy(&four, p, sizeof four);
    return (vi)(vf_pair){four, four};
}
static inline vi vi_widened(const int8_t *p)
{
    vf_bytes bytes;
    memcpy(&bytes, p, sizeof bytes);
    return (vi) __builtin_convertvector(bytes, vf_halves);
}
static inline vi vi_dot(vi sum, vi q, vi weights)
{
    return sum + (q << 16 >> 16) * (weights << 16 >> 16) + (q >> 16) * (weights >> 16);
}
#define VI_UNSIGNED 0
static inline vi vi_set1(int32_t s) { return (vi){s, s, s, s}; }
static inline vi vi_bits(vf v) { return (vi)v; }
static inline vi vi_and(vi a, vi b) { return a & b; }
static inline vi vi_max(vi a, vi b) { return (a & (a > b)) | (b & ~(a > b)); }
static inline void vi_store(int32_t *p, vi v) { memcpy(p, &v, sizeof v); }
static inline void vi_store_halves(int16_t *p, vi v)
{
    const vf_narrow halves = __builtin_convertvector(v, vf_narrow);
    memcpy(p, &halves, sizeof halves);
}
static inline vf vf_joined(vi low, vi high)
{
    const vi sums = {low[0] + low[1], low[2] + low[3], high[0] + high[1], high[2] + high[3]};
    return __builtin_convertvector(sums, vf);
}

#endif
