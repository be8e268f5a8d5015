/*
 * float16: 11 bits of precision, magnitudes from 6.1e-5 to 65504. None is subnormal, Inf or NaN: narrowing.py sees to
 * it, because VCVTPH2PS keeps subnormals whatever the floating-point mode is, and other ways of widening flush them.
 */
#ifndef FR_WEIGHTS_F16_H
#define FR_WEIGHTS_F16_H

FR_INLINE vf fr_weight_f16(const void *weights, int64_t index)
{
    return vf_load_f16((const uint16_t *)weights + index);
}

#endif
