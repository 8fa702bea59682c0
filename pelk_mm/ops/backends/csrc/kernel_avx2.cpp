#include "geometry.h"

#ifdef PELK_X86_VARIANTS
#pragma GCC target("avx2,fma")
#define PELK_ISA avx2
#define PELK_VECTOR_BYTES 32
#define PELK_REGISTERS 16
#include "kernel.inc"
#endif
