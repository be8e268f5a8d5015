/* The C API with its includes and guard: api.h itself is read by cffi, which takes neither. */
#ifndef FUSEDRNN_H
#define FUSEDRNN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"

#endif
