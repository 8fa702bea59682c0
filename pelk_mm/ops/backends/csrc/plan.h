// Works out the geometry of a call: which cells, which boxes, which windows.
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"

namespace pelk {

struct Plan {
  Plan(const std::vector<int64_t>& sizes, int64_t height, int64_t width);
  Plan(const Plan&) = delete;

  Geometry geometry{};

  // Elements of scratch memory that a task needs, the packed weight apart.
  int64_t scratch(int64_t lanes, bool backward) const;

  // Into how many bands of rows to cut the maps of `maps` channel groups, so
  // that all threads have work and little of it is done twice.
  int64_t bands(int64_t maps, int64_t threads) const;

 private:
  std::vector<Level> row_levels_, column_levels_;
  std::vector<Part> row_parts_, column_parts_;
  std::vector<RowCell> rows_;
  std::vector<ColumnCell> columns_;
};

}  // namespace pelk
