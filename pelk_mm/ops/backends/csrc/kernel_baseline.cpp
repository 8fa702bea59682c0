// For whatever the compiler targets by default: SSE2 on x86-64, NEON on Arm.
#include "geometry.h"

#define PELK_ISA baseline
#define PELK_VECTOR_BYTES 16
#if defined(__aarch64__)
#define PELK_REGISTERS 32
#else
#define PELK_REGISTERS 16
#endif
#include "kernel.inc"
