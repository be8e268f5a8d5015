/*
 * float32: as they are computed with.
 */
#ifndef FR_WEIGHTS_F32_H
#define FR_WEIGHTS_F32_H

FR_INLINE vf fr_weight_f32(const void *weights, int64_t index) { return vf_load((const float *)weights + index); }

#endif
