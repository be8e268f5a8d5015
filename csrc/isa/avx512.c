/* The kernels for x86-64-v4. */
#ifndef __AVX512F__
#error "isa/avx512.c must be compiled with -march=x86-64-v4: see CMakeLists.txt"
#endif

#define FR_ISA avx512
#include "simd/avx512.h"

#include "cells/table.h"
