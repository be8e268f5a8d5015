/* The kernels for any CPU of the architecture: compiled without instruction-set flags. */
#define FR_ISA baseline
#include "simd/baseline.h"

#include "cells/table.h"
