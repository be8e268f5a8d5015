/*
 * bfloat16: the upper half of a float32, 8 bits of precision.
 */
#ifndef FR_WEIGHTS_BF16_H
#define FR_WEIGHTS_BF16_H

FR_INLINE vf fr_weight_bf16(const void *weights, int64_t index)
{
    return vf_load_bf16((const uint16_t *)weights + index);
}

#endif
