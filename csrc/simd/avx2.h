/* The vocabulary (README.md) in AVX2 with FMA: 8 lanes, 16 registers. */
#ifndef FR_SIMD_H
#define FR_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef __m256 vf;

#define VF_LANES 8
#define VF_REGISTERS 16

static inline __m256i vf_first(int64_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
}

#define vf_keep(v) __asm__("" : "+x"(v))
static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static inline vf vf_load_bf16(const uint16_t *p)
{
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(low, 16));
}
static inline void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
static inline vf vf_load_n(const float *p, int64_t n)
{
    return n >= VF_LANES ? vf_load(p) : _mm256_maskload_ps(p, vf_first(n));
}
static inline void vf_store_n(float *p, vf v, int64_t n)
{
    if (n >= VF_LANES)
        vf_store(p, v);
    else
        _mm256_maskstore_ps(p, vf_first(n), v);
}
static inline vf vf_set1(float s) { return _mm256_set1_ps(s); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
/* vminps and vmaxps return their second operand when either is NaN: just the contract. */
static inline vf vf_min(vf limit, vf v) { return _mm256_min_ps(limit, v); }
static inline vf vf_max(vf limit, vf v) { return _mm256_max_ps(limit, v); }
static inline vf vf_less(vf a, vf b, vf v) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), v); }
static inline vf vf_shl23(vf v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23)); }

typedef __m256i vi;

#define vi_keep(v) __asm__("" : "+x"(v))
static inline vi vi_zero(void) { return _mm256_setzero_si256(); }
static inline vi vi_set4(const int16_t *p)
{
    int64_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi64x(four);
}
static inline vi vi_widened(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }
static inline vi vi_dot(vi sum, vi q, vi weights) { return _mm256_add_epi32(sum, _mm256_madd_epi16(q, weights)); }
static inline vi vi_set1(int32_t s) { return _mm256_set1_epi32(s); }
static inline vi vi_bits(vf v) { return _mm256_castps_si256(v); }
static inline vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
static inline vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
static inline void vi_store(int32_t *p, vi v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline void vi_store_halves(int16_t *p, vi v)
{
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1, /* low */
                                           0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, order), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(halves));
}

#define VI_DOT __builtin_cpu_supports("avxvnni")
#define VI_UNSIGNED 1
static inline vi vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline vi vi_set_word(const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}
static inline vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi vi_shl7(vi v) { return _mm256_slli_epi32(v, 7); }
static inline vi vi_less(vi a, vi b, int32_t times)
{
    return _mm256_sub_epi32(a, _mm256_mullo_epi32(b, _mm256_set1_epi32(times)));
}
static inline vi vi_shr7(vi v) { return _mm256_srli_epi32(v, 7); }
static inline void vi_store_bytes(uint8_t *p, vi v)
{
    const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, /* low */
                                           0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8(v, order);
    _mm_storel_epi64((__m128i *)p,
                     _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}
#define VI_PAIRS
static inline vi vi_dot_pairs(vi sum, vi bytes, vi weights, vi ones)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, weights), ones));
}
/* In assembly, so that the function around it need not be compiled for CPUs that have the instruction. */
static inline vi vi_dot_bytes(vi sum, vi bytes, vi weights)
{
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(bytes), "xm"(weights));
    return sum;
}
static inline vf vf_rounded(vi v) { return _mm256_cvtepi32_ps(v); }
static inline vf vf_joined(vi low, vi high)
{
    return _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8));
}

#endif
