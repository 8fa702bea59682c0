// The C interface: picks the kernels for the machine it finds itself on, and
// turns what goes wrong into text.
#include "pelk_mm.h"

#include <atomic>
#include <new>
#include <string>
#include <vector>

#include "call.h"
#include "memory.h"
#include "threads.h"

namespace {

using pelk::Kernels;

const std::vector<const Kernels*>& runnable_kernels() {
  static const std::vector<const Kernels*> kernels = [] {
    std::vector<const Kernels*> found;  // the fastest first
#ifdef PELK_X86_VARIANTS
    __builtin_cpu_init();
    const bool fma = __builtin_cpu_supports("fma");
    if (fma && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      found.push_back(&pelk::kernels_avx512);
    if (fma && __builtin_cpu_supports("avx2"))
      found.push_back(&pelk::kernels_avx2);
#endif
    found.push_back(&pelk::kernels_baseline);
    return found;
  }();
  return kernels;
}

std::atomic<const Kernels*>& current_kernels() {
  static std::atomic<const Kernels*> kernels{runnable_kernels().front()};
  return kernels;
}

using Run = void (*)(const pelk_mm_call&, const Kernels&);

// No exception may reach a C caller.
const char* guarded(const pelk_mm_call* call, Run run) {
  if (call->dtype < PELK_MM_FLOAT32 || call->dtype > PELK_MM_BFLOAT16)
    return "there is no such dtype";
  if (call->threads < 1 || call->num_sizes < 1)
    return "expected at least one thread and one cell";
  for (int64_t extent : call->shape)
    if (extent < 1) return "expected maps that are not empty";
  try {
    run(*call, *current_kernels());
    return nullptr;
  } catch (const std::bad_alloc&) {
    return "there is not enough memory";
  } catch (...) {
    return "unknown error";
  }
}

}  // namespace

const char* pelk_mm_forward(const pelk_mm_call* call) {
  return guarded(call, pelk::forward);
}

const char* pelk_mm_backward(const pelk_mm_call* call) {
  return guarded(call, pelk::backward);
}

void pelk_mm_use_openmp(void* parallel, void* thread, void* threads,
                        void* inside) {
  pelk::use_openmp(parallel, thread, threads, inside);
}

int64_t pelk_mm_abi(void) { return PELK_MM_ABI; }

const char* pelk_mm_instruction_sets(void) {
  static const std::string names = [] {
    std::string joined;
    for (const Kernels* kernels : runnable_kernels())
      joined += (joined.empty() ? "" : " ") + std::string(kernels->isa);
    return joined;
  }();
  return names.c_str();
}

const char* pelk_mm_instruction_set(const char* name) {
  if (name == nullptr) return current_kernels().load()->isa;
  for (const Kernels* kernels : runnable_kernels())
    if (std::string(name) == kernels->isa) {
      current_kernels() = kernels;
      return kernels->isa;
    }
  return nullptr;
}

void pelk_mm_poison_scratch(int poison) { pelk::poison_memory = poison != 0; }
