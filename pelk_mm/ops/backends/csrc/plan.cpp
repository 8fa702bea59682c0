#include "plan.h"

#include <algorithm>
#include <map>

namespace pelk {
namespace {

struct Cell {
  int offset, size;
};

// The cells of one axis as far as they can meet a map of `extent` positions:
// what lies `extent` or farther from the centre only ever meets padding.
std::vector<Cell> crop(const std::vector<int64_t>& sizes, int64_t extent,
                       int* first) {
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  std::vector<Cell> cells;
  int64_t begin = -(total / 2);
  *first = 0;
  for (int64_t size : sizes) {
    int64_t end = std::min(begin + size, extent);
    int64_t start = std::max(begin, 1 - extent);
    if (start < end)
      cells.push_back({static_cast<int>(start), static_cast<int>(end - start)});
    else if (cells.empty())
      ++*first;
    begin += size;
  }
  return cells;
}

// Binary digits of `size`, the largest first, as boxes side by side.
void split(int size, std::vector<Part>* parts) {
  int offset = 0;
  for (int power = 30; power >= 0; --power)
    if (size >> power & 1) {
      parts->push_back({power, offset});
      offset += 1 << power;
    }
}

// Every power of two up to the largest one needed, then the other sizes.
// Doubling, not running sums: those would carry rounding across the map.
std::map<int, int> make_levels(const std::vector<Cell>& cells,
                               std::vector<Level>* levels,
                               std::vector<Part>* parts, int* num_powers) {
  int largest = 1;
  for (const Cell& cell : cells) largest = std::max(largest, cell.size);
  std::map<int, int> level_of;
  auto add = [&](int size) {
    level_of[size] = static_cast<int>(levels->size());
    levels->push_back({size, 0, 0, 0, 0, 0, 0, 0});
    return levels->size() - 1;
  };
  for (int power = 0; 1 << power <= largest; ++power) {
    size_t level = add(1 << power);
    (*levels)[level].parts_begin = static_cast<int>(parts->size());
    if (power > 0) {
      parts->push_back({power - 1, 0});
      parts->push_back({power - 1, 1 << (power - 1)});
    }
    (*levels)[level].parts_end = static_cast<int>(parts->size());
  }
  *num_powers = static_cast<int>(levels->size());
  for (const Cell& cell : cells) {
    if (level_of.count(cell.size)) continue;
    size_t level = add(cell.size);
    (*levels)[level].parts_begin = static_cast<int>(parts->size());
    split(cell.size, parts);
    (*levels)[level].parts_end = static_cast<int>(parts->size());
  }
  return level_of;
}

}  // namespace

Plan::Plan(const std::vector<int64_t>& sizes, int64_t height, int64_t width) {
  Geometry& g = geometry;
  g.height = static_cast<int>(height);
  g.width = static_cast<int>(width);

  int powers, first_row, first_column;
  std::vector<Cell> cells = crop(sizes, height, &first_row);
  auto level_of = make_levels(cells, &row_levels_, &row_parts_, &powers);
  constexpr int kUnused = 1 << 30;
  for (Level& level : row_levels_) {
    level.lead = -kUnused;
    level.trail = kUnused;
  }
  auto read = [&](int level, int offset) {
    row_levels_[level].lead = std::max(row_levels_[level].lead, offset);
    row_levels_[level].trail = std::min(row_levels_[level].trail, offset);
  };
  for (const Cell& cell : cells) {
    rows_.push_back({level_of[cell.size], cell.offset});
    read(level_of[cell.size], cell.offset);
  }
  // A box is built once, when its newest row is first read, out of boxes
  // that come before it in the list.
  for (Level& level : row_levels_) level.first = level.trail;
  for (size_t i = row_levels_.size(); i-- > 0;) {
    Level& whole = row_levels_[i];
    whole.first = std::min(whole.first, whole.trail);
    for (int p = whole.parts_begin; p < whole.parts_end; ++p) {
      const Part& part = row_parts_[p];
      read(part.level, whole.lead + part.offset);
      Level& level = row_levels_[part.level];
      level.first = std::min(level.first, whole.first + part.offset);
    }
  }
  g.window_rows = 0;
  for (Level& level : row_levels_) {
    level.slot = g.window_rows;
    level.capacity = level.lead - level.trail + 1;
    g.window_rows += level.capacity;
  }

  cells = crop(sizes, width, &first_column);
  g.num_cells = static_cast<int>(sizes.size());
  g.first_tap = first_row * g.num_cells + first_column;
  level_of =
      make_levels(cells, &column_levels_, &column_parts_, &g.num_powers);
  int largest = 1, reach = 0;
  for (const Cell& cell : cells) {
    columns_.push_back({level_of[cell.size], cell.offset, cell.size});
    largest = std::max(largest, cell.size);
    reach = std::max({reach, -cell.offset, cell.offset + cell.size});
  }
  g.margin = reach + largest + kRowMargin;
  // Rows a multiple of 4 KiB apart would share a few sets of the caches.
  auto spread = [](int64_t pixels) {
    pixels |= 1;
    int64_t rest = pixels % 64;
    return pixels < 56 ? pixels : rest < 9 ? pixels + 10 - rest / 2 * 2
                       : rest > 55 ? pixels + 73 - rest : pixels;
  };
  g.row_stride = spread(width + 2 * kRowMargin);
  g.margin_stride = spread(width + 2 * g.margin);

  g.num_row_levels = static_cast<int>(row_levels_.size());
  g.num_row_parts = static_cast<int>(row_parts_.size());
  g.num_rows = static_cast<int>(rows_.size());
  g.num_column_levels = static_cast<int>(column_levels_.size());
  g.num_columns = static_cast<int>(columns_.size());
  g.row_levels = row_levels_.data();
  g.row_parts = row_parts_.data();
  g.rows = rows_.data();
  g.column_levels = column_levels_.data();
  g.column_parts = column_parts_.data();
  g.columns = columns_.data();
}

int64_t Plan::scratch(int64_t lanes, bool backward) const {
  const Geometry& g = geometry;
  return lanes * (g.window_rows * g.row_stride +
                  (backward ? 2 : 1) * g.num_column_levels * g.margin_stride);
}

int64_t Plan::bands(int64_t maps, int64_t threads) const {
  // Rows that a band builds before its first output, as output rows: a box
  // row costs about a twentieth of an output row per level.
  double warm_up = 0.05 * static_cast<double>(geometry.window_rows);
  int64_t best = 1;
  double least = 0;
  for (int64_t bands = 1; bands <= std::min<int64_t>(geometry.height, 64);
       ++bands) {
    int64_t rounds = (maps * bands + threads - 1) / threads;
    int64_t rows = (geometry.height + bands - 1) / bands;
    double cost = static_cast<double>(rounds) *
                  (static_cast<double>(rows) + (bands > 1 ? warm_up : 0));
    if (bands == 1 || cost < 0.97 * least) {
      best = bands;
      least = cost;
    }
  }
  return best;
}

}  // namespace pelk
