// What the kernels have to know of a convolution, as plain data.
//
// This header is compiled once per instruction set, so it must define no
// function: an inline one could be emitted with instructions that the machine
// lacks and then be shared by the linker with code that runs everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pelk {

// A box of `size` neighbours is a sum of smaller boxes, one of them per part.
struct Part {
  int level;   // index of the smaller box
  int offset;  // where it starts, counted from the start of the whole
};

// All boxes of one size along one axis. Level k is 2^k for the first levels;
// sizes that are no power of two follow. Level 0 is the map itself.
struct Level {
  int size;
  int parts_begin, parts_end;
  // The rolling window of rows (see Boxes in kernel.inc), relative to the
  // output row: the newest row built and the oldest row still read; and,
  // relative to the first output row of a band, the first row ever read.
  int lead, trail, first;
  std::ptrdiff_t slot;  // first row of the window in the scratch memory
};

// A row of cells: it covers input rows y + offset ... + size of its level.
struct RowCell {
  int level;
  int offset;
};

// A column of cells, likewise.
struct ColumnCell {
  int level;
  int offset;
  int size;
};

// The kernel's cells, cropped to those that can meet the map.
struct Geometry {
  int height, width;
  int num_row_levels, num_row_parts, num_rows;
  const Level* row_levels;
  const Part* row_parts;
  const RowCell* rows;
  int num_powers;  // column levels that are powers of two
  int num_column_levels, num_columns;
  const Level* column_levels;
  const Part* column_parts;
  const ColumnCell* columns;
  std::ptrdiff_t window_rows;    // rows of all windows together
  std::ptrdiff_t row_stride;     // pixels from one of them to the next
  int margin;                    // pixels left and right of an output row
  std::ptrdiff_t margin_stride;  // pixels from one such row to the next
};

// A map of one image and one group of channels; strides in elements.
struct Map {
  void* data;
  std::ptrdiff_t channel, row, column;
};

enum class Storage { float32, float64, bfloat16 };

struct ForwardTask {
  const Geometry* geometry;
  Map input, output;
  const void* weight;  // [row cell][column cell][lane]
  const void* bias;    // [lane]
  int lanes;           // channels in the group, at most a vector's
  int begin, end;      // output rows
  void* scratch;
};

struct WeightGradTask {
  const Geometry* geometry;
  Map input, grad_output;
  void* grad_weight;  // [row cell][column cell][lane], added to
  int lanes;
  int begin, end;
  void* scratch;
};

// The kernels of one instruction set. float64 storage computes in float64,
// everything else in float32; `vector_bytes` is the width of both.
struct Kernels {
  const char* isa;
  int vector_bytes;
  void (*forward)(Storage, const ForwardTask&);
  void (*weight_grad)(Storage, const WeightGradTask&);
};

// Zeros that a row needs on both sides: a tile of at most 14 columns may overrun
// its range by 13, and a convolution of at most 7 cells reaches 6 further.
constexpr int kRowMargin = 20;

extern const Kernels kernels_baseline;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PELK_X86_VARIANTS 1
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace pelk
