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
  // The rolling window of rows (see kernel_boxes.inc), relative to the
  // output row: the newest row built and the oldest row still read; and,
  // relative to the first output row of a band, the first row ever read.
  int lead, trail, first;
  int capacity;         // rows in the window
  std::ptrdiff_t slot;  // the first of them in the scratch memory
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
  int num_row_levels, num_rows;
  const Level* row_levels;
  const Part* row_parts;
  const RowCell* rows;
  int num_powers;  // column levels that are powers of two
  int num_column_levels, num_columns;
  int num_cells;  // k', of the whole kernel, and which of its taps is
  int first_tap;  // the first of those that can meet the map
  const Level* column_levels;
  const Part* column_parts;
  const ColumnCell* columns;
  // Tasks work on the same row of several images at once, because small maps
  // have short rows: at most on this many.
  int images;
  std::ptrdiff_t window_rows;    // rows of all windows together
  std::ptrdiff_t row_stride;     // pixels from one image's to the next's
  std::ptrdiff_t window_stride;  // pixels from one row of a window to the next
  int margin;                    // pixels left and right of an output row
  std::ptrdiff_t margin_stride;  // pixels from one such row to the next
};

// Maps of some images and one group of channels; strides in elements.
struct Map {
  void* data;
  std::ptrdiff_t image, channel, row, column;
  std::ptrdiff_t before;  // channels of the tensor that precede the group
};

enum class Storage { float32, float64, bfloat16 };

// Scratch memory belongs to one worker for all tasks of a call. Its first task
// finds it filled with anything and makes it a Workspace (see there).
struct Scratch {
  void* data;
  bool used;
};

// Some rows of some images and one group of channels.
struct Task {
  const Geometry* geometry;
  int images;
  int lanes;       // channels in the group, at most a vector's
  int begin, end;  // output rows
  Scratch scratch;
};

struct ForwardTask : Task {
  Map input, output;
  const void* weight;  // [k'][k'][lane]
  const void* bias;    // [lane]
};

// The weight, and the gradient to it, with cells in reverse order.
struct BackwardTask : Task {
  Map grad_output, input;
  Map grad_input;      // no data: only the weight's gradient is wanted
  const void* weight;  // [k'][k'][lane]
  void* grad_weight;   // likewise, added to
};

// A group of channels of the compact weight, as it lies in memory and as the
// kernels want it.
struct WeightTask {
  Map weight;    // k'^2 columns in one row
  void* packed;  // [tap][lane]
  int taps, lanes;
  bool reverse;  // whether to put the last cell first
  // Unpacking: other packed weights, to be added to the one above.
  void* const* others;
  int num_others;
};

// The kernels of one instruction set. float64 storage computes in float64,
// everything else in float32; `vector_bytes` is the width of both.
struct Kernels {
  const char* isa;
  int vector_bytes;
  void (*forward)(Storage, const ForwardTask&);
  void (*backward)(Storage, const BackwardTask&);
  void (*pack)(Storage, const WeightTask&);
  void (*unpack)(Storage, const WeightTask&);
};

// Bytes that a Workspace needs beside its rows: itself, and for every column
// of cells, row of cells and level of row boxes.
constexpr std::ptrdiff_t kWorkspaceBytes = 128;
constexpr std::ptrdiff_t kWorkspaceBytesPerColumn = 48;
constexpr std::ptrdiff_t kWorkspaceBytesPerRow = 8;
constexpr std::ptrdiff_t kWorkspaceBytesPerLevel = 4;

// Zeros that a row needs on both sides: a tile of at most 14 columns may
// overrun its range by 13, a convolution of at most 7 cells reach 6 further.
constexpr int kRowMargin = 20;

extern const Kernels kernels_baseline;
// GCC for Windows does not align AVX vectors on the stack.
#if defined(__x86_64__) && (!defined(_WIN32) || defined(__clang__))
#define PELK_X86_VARIANTS 1
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace pelk
