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
typedef int8_t vf_bytes __attribute__((vector_size(16)));

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
static inline vf vf_load_i8(const int8_t *p)
{
    int32_t elements;
    memcpy(&elements, p, sizeof elements);
    const vf_bytes bytes = (vf_bytes)(vf_bits){elements, 0, 0, 0};
    const vf_pair twice =
        (vf_pair)__builtin_shufflevector(bytes, bytes, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return __builtin_convertvector(vf_upper(twice[0]) >> 24, vf);
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

#endif
