#include "geometry.h"

#ifdef PELK_X86_VARIANTS
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define PELK_ISA avx512
#define PELK_VECTOR_BYTES 64
#define PELK_REGISTERS 32
#include "kernel.inc"
#endif
