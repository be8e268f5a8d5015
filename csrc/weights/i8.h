/*
 * int8: integers from -127 to 127, exact as floats; the scale of their row is for the finished sum.
 */
#ifndef FR_WEIGHTS_I8_H
#define FR_WEIGHTS_I8_H

FR_INLINE vf fr_weight_i8(const void *weights, int64_t index) { return vf_load_i8((const int8_t *)weights + index); }

#endif
