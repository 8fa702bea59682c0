// Random numbers, and tensors of any strides that show what was written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "pelk_mm.h"

namespace selfcheck {

using Values = std::vector<double>;

template <class Entry>
Entry& entry(std::vector<Entry>& entries, int64_t i) {
  return entries[static_cast<size_t>(i)];
}

template <class Entry>
const Entry& entry(const std::vector<Entry>& entries, int64_t i) {
  return entries[static_cast<size_t>(i)];
}

// The same numbers with every standard library.
class Random {
 public:
  Random(int64_t seed, int64_t number) {
    std::seed_seq both{seed, number};
    bits_.seed(both);
  }

  int64_t below(int64_t end) { return static_cast<int64_t>(bits_()) % end; }
  int64_t between(int64_t least, int64_t most) {
    return least + below(most - least + 1);
  }
  bool one_in(int64_t count) { return below(count) == 0; }

 private:
  std::mt19937 bits_;
};

// Of dimensions N, C, H, W.
struct Extents {
  int64_t of[4];
};

// A map in memory: its dimensions in any order, with gaps, some of them
// backwards and, where it is only read, some expanded.
inline Extents draw_strides(Random& random, Extents shape, bool written) {
  std::vector<int> order{0, 1, 2, 3};
  if (random.one_in(3)) {
    order = {0, 2, 3, 1};  // channels last
  } else if (random.one_in(2)) {
    for (int64_t i = 3; i > 0; --i)
      std::swap(entry(order, i), entry(order, random.below(i + 1)));
  }
  Extents strides;
  int64_t next = random.one_in(6) ? random.between(2, 4) : 1;
  for (int64_t i = 3; i >= 0; --i) {
    const int d = entry(order, i);
    strides.of[d] = random.one_in(10) ? -next : next;
    if (!written && random.one_in(12)) strides.of[d] = 0;
    next *= shape.of[d];
    if (random.one_in(3)) next += random.between(1, 5);
  }
  return strides;
}

// A block of just the memory that a tensor spans, and `before` elements. All
// of it is NaN at first.
class Tensor {
 public:
  Tensor(int64_t dtype, Extents shape, Extents strides, int64_t before = 0)
      : dtype_(dtype), shape_(shape), strides_(strides), first_(before) {
    int64_t count = before + 1;
    for (int d = 0; d < 4; ++d) {
      const int64_t reach = (shape.of[d] - 1) * strides.of[d];
      count += std::abs(reach);
      first_ += std::max<int64_t>(-reach, 0);
    }
    bytes_ = dtype == PELK_MM_FLOAT64 ? 8 : dtype == PELK_MM_FLOAT32 ? 4 : 2;
    size_ = static_cast<size_t>(count * bytes_);
    block_.reset(new char[size_]);
    std::memset(block_.get(), 0xff, size_);
  }

  void* data() const { return block_.get() + first_ * bytes_; }

  pelk_mm_map map() const {
    const int64_t* s = strides_.of;
    return {data(), {s[0], s[1], s[2], s[3]}};
  }

  std::string bytes() const { return {block_.get(), size_}; }

  // Leaves the last byte out, which the tensor still has for its reader.
  void cut_short() {
    std::unique_ptr<char[]> shorter(new char[size_ - 1]);
    std::memcpy(shorter.get(), block_.get(), size_ - 1);
    block_ = std::move(shorter);
    --size_;
  }

  // The numbers are small: see selfcheck.cpp.
  void fill(Random& random) const {
    each([&](char* to) { put(to, static_cast<double>(random.below(9) - 4)); });
  }

  Values values() const {
    Values values;
    each([&](const char* from) { values.push_back(get(from)); });
    return values;
  }

  // What a value is once it has been stored.
  double rounded(double value) const {
    if (dtype_ == PELK_MM_FLOAT64) return value;
    const float narrow = static_cast<float>(value);
    if (dtype_ == PELK_MM_FLOAT32) return static_cast<double>(narrow);
    uint32_t bits;
    std::memcpy(&bits, &narrow, 4);
    const uint32_t even = bits >> 16 & 1;
    return from_bits((bits + 0x7fff + even) & 0xffff0000);
  }

  // Whether anything but NaN lies between the elements, which are erased.
  bool gaps_written() const {
    each(
        [&](char* to) { std::memset(to, 0xff, static_cast<size_t>(bytes_)); });
    return bytes() != std::string(size_, '\xff');
  }

 private:
  // Calls visit(where it lies) for every element, in order.
  template <class Visit>
  void each(const Visit& visit) const {
    const int64_t *n = shape_.of, *s = strides_.of;
    char* first = static_cast<char*>(data());
    for (int64_t i = 0; i < n[0]; ++i)
      for (int64_t c = 0; c < n[1]; ++c)
        for (int64_t y = 0; y < n[2]; ++y)
          for (int64_t x = 0; x < n[3]; ++x) {
            const int64_t at = i * s[0] + c * s[1] + y * s[2] + x * s[3];
            visit(first + at * bytes_);
          }
  }

  static double from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return static_cast<double>(value);
  }

  void put(char* to, double value) const {
    if (dtype_ == PELK_MM_FLOAT64) {
      std::memcpy(to, &value, 8);
      return;
    }
    const float narrow = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &narrow, 4);
    const auto half = static_cast<uint16_t>(bits >> 16);
    if (dtype_ == PELK_MM_FLOAT32)
      std::memcpy(to, &bits, 4);
    else
      std::memcpy(to, &half, 2);
  }

  double get(const char* from) const {
    if (dtype_ == PELK_MM_FLOAT64) {
      double value;
      std::memcpy(&value, from, 8);
      return value;
    }
    uint32_t bits;
    uint16_t half;
    if (dtype_ == PELK_MM_FLOAT32) {
      std::memcpy(&bits, from, 4);
    } else {
      std::memcpy(&half, from, 2);
      bits = static_cast<uint32_t>(half) << 16;
    }
    return from_bits(bits);
  }

  int64_t dtype_, bytes_;
  Extents shape_, strides_;
  int64_t first_;  // where the first element lies
  size_t size_;
  std::unique_ptr<char[]> block_;
};

}  // namespace selfcheck
