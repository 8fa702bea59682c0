/* The kernels as a C library: no torch, no Python, no OpenMP runtime linked.
   One binary serves every torch and Python; whoever calls checks shapes. */
#pragma once
#include <stdint.h>

/* Changes with everything below that an old caller would get wrong. */
#define PELK_MM_ABI 1

#ifdef _WIN32
#define PELK_MM_API __declspec(dllexport)
#else
#define PELK_MM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { PELK_MM_FLOAT32, PELK_MM_FLOAT64, PELK_MM_BFLOAT16 };

/* A map (N, C, H, W) of any strides, which count elements. */
typedef struct {
  void* data;
  int64_t strides[4];
} pelk_mm_map;

/* One call. All tensors have its dtype and all maps its shape, none empty;
   weights (C, 1, k', k') and the bias (C,) are contiguous. */
typedef struct {
  int64_t dtype;
  int64_t threads; /* at most so many work on it */
  int64_t shape[4];
  const int64_t* sizes; /* k' of them, of the cells of one axis */
  int64_t num_sizes;
  pelk_mm_map input, output, grad_input, grad_output;
  const void *weight, *bias;
  void* grad_weight;
} pelk_mm_call;

/* What follows returns NULL, or what went wrong. */

/* Computes output out of input, weight and, unless it is NULL, bias. */
PELK_MM_API const char* pelk_mm_forward(const pelk_mm_call*);

/* Computes grad_weight out of input and grad_output and, if there is data for
   it, grad_input out of weight and grad_output. */
PELK_MM_API const char* pelk_mm_backward(const pelk_mm_call*);

/* Lends the OpenMP runtime that the process has: its functions GOMP_parallel,
   omp_get_thread_num, omp_get_num_threads and omp_in_parallel. Without them,
   or with NULL as the first, every call has one thread. */
PELK_MM_API void pelk_mm_use_openmp(void* parallel, void* thread,
                                    void* threads, void* inside);

PELK_MM_API int64_t pelk_mm_abi(void);

/* The instruction sets of this machine that there are kernels for, the fastest
   first: their names with spaces between them. */
PELK_MM_API const char* pelk_mm_instruction_sets(void);

/* The instruction set in use, after a change to the one named unless that is
   NULL. For tests; NULL if the machine does not have it. */
PELK_MM_API const char* pelk_mm_instruction_set(const char* name);

/* For tests: whether scratch memory is filled with NaN before it is used. */
PELK_MM_API void pelk_mm_poison_scratch(int poison);

#ifdef __cplusplus
}
#endif
