#include "geometry.h"

#ifdef PELK_X86_VARIANTS
#define PELK_ISA avx512
#define PELK_VECTOR_BYTES 64
#define PELK_REGISTERS 32
#include "kernel.inc"
#endif
