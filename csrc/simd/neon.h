/* The vocabulary (README.md) in NEON with FMA, which every aarch64 has: 4 lanes, 32 registers. */
#ifndef FR_SIMD_H
#define FR_SIMD_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

typedef float32x4_t vf;

#define VF_LANES 4
#define VF_REGISTERS 32

#define vf_keep(v) __asm__("" : "+w"(v))
static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline vf vf_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline vf vf_load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline void vf_store(float *p, vf v) { vst1q_f32(p, v); }
/* NEON has no masks: one lane, a pair, or a pair and one. */
static inline vf vf_load_n(const float *p, int64_t n)
{
    const vf zero = vdupq_n_f32(0.0f);
    if (n >= VF_LANES)
        return vf_load(p);
    if (n == 1)
        return vld1q_lane_f32(p, zero, 0);
    const vf pair = vcombine_f32(vld1_f32(p), vget_low_f32(zero));
    return n == 2 ? pair : vld1q_lane_f32(p + 2, pair, 2);
}
static inline void vf_store_n(float *p, vf v, int64_t n)
{
    if (n >= VF_LANES) {
        vf_store(p, v);
        return;
    }
    if (n == 1) {
        vst1q_lane_f32(p, v, 0);
        return;
    }
    vst1_f32(p, vget_low_f32(v));
    if (n == 3)
        vst1q_lane_f32(p + 2, v, 2);
}
static inline vf vf_set1(float s) { return vdupq_n_f32(s); }
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
/* Not vminq and vmaxq, which return a NaN if the limit is one, nor their nm forms, which swallow the NaN of v. */
static inline vf vf_min(vf limit, vf v) { return vbslq_f32(vcltq_f32(limit, v), limit, v); }
static inline vf vf_max(vf limit, vf v) { return vbslq_f32(vcgtq_f32(limit, v), limit, v); }
static inline vf vf_less(vf a, vf b, vf v) { return vbslq_f32(vcltq_f32(a, b), v, vdupq_n_f32(0.0f)); }
static inline vf vf_shl23(vf v) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(v), 23)); }

typedef int32x4_t vi;

#define vi_keep(v) __asm__("" : "+w"(v))
static inline vi vi_zero(void) { return vdupq_n_s32(0); }
static inline vi vi_set4(const int16_t *p)
{
    int64_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpretq_s32_s64(vdupq_n_s64(four));
}
static inline vi vi_widened(const int8_t *p) { return vreinterpretq_s32_s16(vmovl_s8(vld1_s8(p))); }
static inline vi vi_dot(vi sum, vi q, vi weights)
{
    const int16x8_t a = vreinterpretq_s16_s32(q), b = vreinterpretq_s16_s32(weights);
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)));
}
static inline vi vi_set1(int32_t s) { return vdupq_n_s32(s); }
static inline vi vi_bits(vf v) { return vreinterpretq_s32_f32(v); }
static inline vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
static inline vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
static inline void vi_store(int32_t *p, vi v) { vst1q_s32(p, v); }
static inline void vi_store_halves(int16_t *p, vi v) { vst1_s16(p, vmovn_s32(v)); }

#if defined(__linux__)
#include <sys/auxv.h>
#define VI_DOT ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0)
#elif defined(__APPLE__)
#define VI_DOT 1
#else
#define VI_DOT 0
#endif
#define VI_UNSIGNED 0
static inline vi vi_load(const void *p) { return vreinterpretq_s32_s8(vld1q_s8((const int8_t *)p)); }
static inline vi vi_set_word(const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return vdupq_n_s32(four);
}
static inline vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
static inline vi vi_less(vi a, vi b, int32_t times) { return vmlsq_s32(a, b, vdupq_n_s32(times)); }
static inline vi vi_shl7(vi v) { return vshlq_n_s32(v, 7); }
static inline vi vi_shr7(vi v) { return vshrq_n_s32(v, 7); }
static inline void vi_store_bytes(uint8_t *p, vi v)
{
    const uint16x4_t halves = vmovn_u32(vreinterpretq_u32_s32(v));
    const uint32x2_t bytes = vreinterpret_u32_u8(vmovn_u16(vcombine_u16(halves, halves)));
    const uint32_t four = vget_lane_u32(bytes, 0);
    memcpy(p, &four, sizeof four);
}
/* In assembly, so that the function around it need not be compiled for CPUs that have the instruction. */
static inline vi vi_dot_bytes(vi sum, vi bytes, vi weights)
{
    __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(bytes), "w"(weights));
    return sum;
}
static inline vf vf_rounded(vi v) { return vcvtq_f32_s32(v); }
static inline vf vf_joined(vi low, vi high) { return vcvtq_f32_s32(vpaddq_s32(low, high)); }

#endif
