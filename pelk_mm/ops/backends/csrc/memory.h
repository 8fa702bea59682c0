// Memory that a call works in.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace pelk {

// Whole cache lines, so that threads share none and vectors are aligned.
constexpr int64_t kLine = 64;

constexpr int64_t whole_lines(int64_t bytes) {
  return (bytes + kLine - 1) / kLine * kLine;
}

struct Free {
  void operator()(char* data) const {
    ::operator delete[](data, std::align_val_t{kLine});
  }
};

using Memory = std::unique_ptr<char[], Free>;

// For tests: whether memory that is read before it is written to is NaN.
inline std::atomic<bool> poison_memory{false};

inline Memory make_memory(int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  Memory memory(new (std::align_val_t{kLine}) char[size]);
  if (poison_memory) std::memset(memory.get(), 0xff, size);
  return memory;
}

}  // namespace pelk
