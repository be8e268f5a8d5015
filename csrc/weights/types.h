/*
 * How panels are read: the one place in C that knows what a weight is. `type`, an fr_weight_type, is a constant
 * wherever a weight is loaded.
 */
#ifndef FR_WEIGHTS_TYPES_H
#define FR_WEIGHTS_TYPES_H

#include "weights/bf16.h"
#include "weights/f16.h"
#include "weights/f32.h"
#include "weights/i8.h"

/* The types that are widened to floats, as they are called in the names of functions. */
#define FR_WIDENED_TYPES(DO) DO(f16, FR_F16) DO(bf16, FR_BF16)

FR_INLINE int64_t fr_weight_bytes(int64_t type) { return type == FR_F32 ? 4 : fr_is_i8(type) ? 1 : 2; }

/* The address of the weight that is `index` weights further on. */
FR_INLINE const void *fr_weights_from(int64_t type, const void *weights, int64_t index)
{
    return (const char *)weights + index * fr_weight_bytes(type);
}

/* How many weights of a unit a panel holds. */
FR_INLINE int64_t fr_panel_depth(int64_t type, int64_t depth) { return fr_is_i8(type) ? fr_i8_depth(depth) : depth; }

/* A vector of weights, widened. */
FR_INLINE vf fr_weight(int type, const void *weights, int64_t index)
{
    if (type == FR_F16)
        return fr_weight_f16(weights, index);
    if (type == FR_BF16)
        return fr_weight_bf16(weights, index);
    return fr_weight_f32(weights, index);
}

#endif
