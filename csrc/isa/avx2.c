/* The kernels for x86-64-v3. */
#ifndef __AVX2__
#error "isa/avx2.c must be compiled with -march=x86-64-v3: see CMakeLists.txt"
#endif

#define FR_ISA avx2
#include "simd/avx2.h"

#include "cells/table.h"
