// Works out the geometry of a call: which cells, which boxes, which windows.
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"
#include "pelk_mm.h"

namespace pelk {

// What the standard library counts with.
constexpr size_t index(int64_t number) { return static_cast<size_t>(number); }

// Rows begin ... end - 1 of some images and one group of channels.
struct Piece {
  int64_t image, group;  // the first image
  int images, begin, end;
};

// Pieces in the order of their images, groups and rows; thread i has those
// from first[i] to first[i + 1], which is a stretch without gaps.
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
  // `vector_bytes` is the width of the kernels' vectors, of which `groups`
  // hold all channels.
  Plan(const pelk_mm_call& call, int64_t vector_bytes, int64_t groups);
  Plan(const Plan&) = delete;

  Geometry geometry{};
  int64_t workers;  // threads that are worth their waking

  // Scratch memory that a worker needs.
  int64_t scratch_bytes(bool backward) const;

  // Pieces with all rows.
  int64_t maps() const { return batches_ * groups_; }

  // Shares the rows of all maps among threads.
  Share share(int64_t threads) const;

 private:
  int64_t images_at_once() const;

  int64_t vector_bytes_, groups_, images_, batches_;
  RowBoxes row_boxes_;
  std::vector<Level> column_levels_;
  std::vector<Part> column_parts_;
  std::vector<ColumnCell> columns_;
};

}  // namespace pelk
