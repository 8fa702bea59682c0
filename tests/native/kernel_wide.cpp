// Vectors of 64 bytes for whatever the compiler targets: the form that
// kernel_avx512.cpp has, run where no machine has AVX-512.
#include "geometry.h"

namespace pelk {
extern const Kernels kernels_wide;
}

#define PELK_ISA wide
#define PELK_VECTOR_BYTES 64
#define PELK_REGISTERS 32
#include "kernel.inc"
