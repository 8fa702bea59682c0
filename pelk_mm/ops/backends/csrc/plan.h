// Works out the geometry of a call: which cells, which boxes, which windows.
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"

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
  Plan(const std::vector<int64_t>& sizes, int64_t height, int64_t width,
       int64_t vector_bytes);
  Plan(const Plan&) = delete;

  Geometry geometry{};

  // Elements of scratch memory that a task needs, the packed weight apart.
  int64_t scratch(int64_t lanes, bool backward) const;

  // Shares the rows of `maps` maps among threads.
  Share share(int64_t maps, int64_t threads) const;

 private:
  RowBoxes row_boxes_;
  std::vector<Level> column_levels_;
  std::vector<Part> column_parts_;
  std::vector<ColumnCell> columns_;
};

}  // namespace pelk
