/* The C API with its includes and guard: api.h itself is read by cffi, which takes neither. */
#ifndef FUSEDRNN_H
#define FUSEDRNN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"

/* The number of weights that panels of FR_I8 hold for a unit: whole words of four. */
static inline int64_t fr_i8_depth(int64_t depth) { return (depth + 3) / 4 * 4; }

#endif
