/* The kernels for aarch64, where NEON and FMA are part of the architecture. */
#ifndef __ARM_NEON
#error "isa/neon.c must be compiled for aarch64 without -mgeneral-regs-only: see CMakeLists.txt"
#endif

#define FR_ISA neon
#include "simd/neon.h"

#include "cells/table.h"
