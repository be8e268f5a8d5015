/* The vocabulary (README.md) in AVX-512: 16 lanes, 32 registers. */
#ifndef FR_SIMD_H
#define FR_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef __m512 vf;

#define VF_LANES 16
#define VF_REGISTERS 32

static inline __mmask16 vf_first(int64_t n) { return (__mmask16)((1u << n) - 1u); }

#define vf_keep(v) __asm__("" : "+v"(v))
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline vf vf_load_bf16(const uint16_t *p)
{
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(low, 16));
}
static inline void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
static inline vf vf_load_n(const float *p, int64_t n)
{
    return n >= VF_LANES ? vf_load(p) : _mm512_maskz_loadu_ps(vf_first(n), p);
}
/* A load waits for a masked store that it reads from to be done; from a plain one it takes the value at once. */
static inline void vf_store_n(float *p, vf v, int64_t n)
{
    if (n >= VF_LANES)
        vf_store(p, v);
    else
        _mm512_mask_storeu_ps(p, vf_first(n), v);
}
static inline vf vf_set1(float s) { return _mm512_set1_ps(s); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
/* vminps and vmaxps return their second operand when either is NaN: just the contract. */
static inline vf vf_min(vf limit, vf v) { return _mm512_min_ps(limit, v); }
static inline vf vf_max(vf limit, vf v) { return _mm512_max_ps(limit, v); }
static inline vf vf_less(vf a, vf b, vf v) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), v); }
static inline vf vf_shl23(vf v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23)); }

typedef __m512i vi;

#define vi_keep(v) __asm__("" : "+v"(v))
static inline vi vi_zero(void) { return _mm512_setzero_si512(); }
static inline vi vi_set4(const int16_t *p)
{
    int64_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi64(four);
}
static inline vi vi_widened(const int8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
static inline vi vi_dot(vi sum, vi q, vi weights) { return _mm512_add_epi32(sum, _mm512_madd_epi16(q, weights)); }
static inline vi vi_set1(int32_t s) { return _mm512_set1_epi32(s); }
static inline vi vi_bits(vf v) { return _mm512_castps_si512(v); }
static inline vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
static inline vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
static inline void vi_store(int32_t *p, vi v) { _mm512_storeu_si512(p, v); }
static inline void vi_store_halves(int16_t *p, vi v) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(v)); }

#define VI_DOT __builtin_cpu_supports("avx512vnni")
#define VI_UNSIGNED 1
static inline vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
static inline vi vi_set_word(const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}
static inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi vi_shl7(vi v) { return _mm512_slli_epi32(v, 7); }
static inline vi vi_less(vi a, vi b, int32_t times)
{
    return _mm512_sub_epi32(a, _mm512_mullo_epi32(b, _mm512_set1_epi32(times)));
}
static inline vi vi_shr7(vi v) { return _mm512_srli_epi32(v, 7); }
static inline void vi_store_bytes(uint8_t *p, vi v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v)); }
#define VI_PAIRS
static inline vi vi_dot_pairs(vi sum, vi bytes, vi weights, vi ones)
{
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(bytes, weights), ones));
}
/* In assembly, so that the function around it need not be compiled for CPUs that have the instruction. */
static inline vi vi_dot_bytes(vi sum, vi bytes, vi weights)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "vm"(weights));
    return sum;
}
static inline vf vf_rounded(vi v) { return _mm512_cvtepi32_ps(v); }
static inline vf vf_joined(vi low, vi high)
{
    const vi even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const vi odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_cvtepi32_ps(
        _mm512_add_epi32(_mm512_permutex2var_epi32(low, even, high), _mm512_permutex2var_epi32(low, odd, high)));
}

#endif
