/* The C API with its includes and guard: api.h itself is read by cffi, which takes neither. */
#ifndef FUSEDRNN_H
#define FUSEDRNN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"

/* Whether the elements of panels are int8. */
static inline bool fr_is_i8(int64_t type) { return type == FR_I8 || type == FR_W8A7; }

/* The bytes that panels of int8 hold for a unit: whole words of four weights, and an int32 for each slice. */
static inline int64_t fr_i8_depth(int64_t depth)
{
    return (depth + 3) / 4 * 4 + (depth + FR_I8_SLICE - 1) / FR_I8_SLICE * 4;
}

#endif
