// Threads of the OpenMP runtime that the process has: those that torch
// computes with, so that its settings hold here too.
#pragma once

#include <cstdint>

namespace pelk {

void use_openmp(void* parallel, void* thread, void* threads, void* inside);

// Calls work(data, i) for every i from 0 to count - 1, at the same time as far
// as there are threads; in a thread of another team there is one.
void run_team(int64_t count, int64_t threads, void (*work)(void*, int64_t),
              void* data);

template <class Work>
void run_team(int64_t count, int64_t threads, Work&& work) {
  auto call = [](void* data, int64_t i) {
    (*static_cast<decltype(&work)>(data))(i);
  };
  run_team(count, threads, call, &work);
}

}  // namespace pelk
