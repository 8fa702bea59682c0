// Works out the geometry of a call: which cells, which boxes, which windows.
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"
#include "pelk_mm.h"

namespace pelk {

// Rows begin ... end - 1 of a map.
struct Piece {
  int64_t map;
  int begin, end;
};

// Pieces in the order of their maps and rows; thread i has those from
// first[i] to first[i + 1], which is a stretch without gaps.
struct Share {
  std::vector<Piece> pieces;
  std::vector<int64_t> first;
};

// The vertical boxes of a kernel, each built from those before it.
struct RowBoxes {
  std::vector<Level> levels;
  std::vector<Part> parts;
  std::vector<RowCell> rows;
  std::ptrdiff_t window_rows;
};

struct Plan {
  // `vector_bytes` is the width of the kernels' vectors.
  Plan(const pelk_mm_call& call, int64_t vector_bytes);
  Plan(const Plan&) = delete;

  Geometry geometry{};

  // Scratch memory that a worker needs.
  int64_t scratch_bytes(bool backward) const;

  // Shares the rows of `maps` maps among threads.
  Share share(int64_t maps, int64_t threads) const;

 private:
  int64_t vector_bytes_;
  RowBoxes row_boxes_;
  std::vector<Level> column_levels_;
  std::vector<Part> column_parts_;
  std::vector<ColumnCell> columns_;
};

}  // namespace pelk
