#include "geometry.h"

#ifdef PELK_X86_VARIANTS
#define PELK_ISA avx2
#define PELK_VECTOR_BYTES 32
#define PELK_REGISTERS 16
#include "kernel.inc"
#endif
