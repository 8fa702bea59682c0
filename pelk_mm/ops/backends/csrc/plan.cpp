#include "plan.h"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include <algorithm>
#include <map>
#include <utility>

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
      cells.push_back(
          {static_cast<int>(start), static_cast<int>(end - start)});
    else if (cells.empty())
      ++*first;
    begin += size;
  }
  return cells;
}

// Binary digits of `size`, the largest first, as boxes side by side; `base` is
// the level of a single position.
std::vector<Part> split(int size, int base) {
  std::vector<Part> parts;
  int offset = 0;
  for (int power = 30; power >= 0; --power)
    if (size >> power & 1) {
      parts.push_back({base + power, offset});
      offset += 1 << power;
    }
  return parts;
}

// Appends every power of two up to the largest one needed, then the other
// sizes. Doubling, not running sums: those carry rounding across the map.
std::map<int, int> make_levels(const std::vector<Cell>& cells,
                               std::vector<Level>* levels,
                               std::vector<Part>* parts, int* num_powers) {
  const int base = static_cast<int>(levels->size());
  int largest = 1;
  for (const Cell& cell : cells) largest = std::max(largest, cell.size);
  std::map<int, int> level_of;
  auto add = [&](int size, const std::vector<Part>& of) {
    level_of[size] = static_cast<int>(levels->size());
    const int begin = static_cast<int>(parts->size());
    parts->insert(parts->end(), of.begin(), of.end());
    const int end = static_cast<int>(parts->size());
    levels->push_back({size, begin, end, 0, 0, 0, 0, 0});
  };
  add(1, {});
  for (int power = 1; 1 << power <= largest; ++power) {
    const int half = base + power - 1;
    add(1 << power, {{half, 0}, {half, 1 << (power - 1)}});
  }
  *num_powers = static_cast<int>(levels->size()) - base;
  for (const Cell& cell : cells)
    if (!level_of.count(cell.size)) add(cell.size, split(cell.size, base));
  return level_of;
}

// The boxes of the rows of cells, and the windows that hold them. The boxes of
// the first `apart` cells and of the others are built independently.
RowBoxes make_row_boxes(const std::vector<Cell>& cells, size_t apart) {
  RowBoxes boxes;
  constexpr int kUnused = 1 << 30;
  auto read = [&](int level, int offset) {
    Level& read = boxes.levels[index(level)];
    read.lead = std::max(read.lead, offset);
    read.trail = std::min(read.trail, offset);
  };
  auto append = [&](const std::vector<Cell>& cells) {
    const size_t base = boxes.levels.size();
    int powers;
    auto level_of = make_levels(cells, &boxes.levels, &boxes.parts, &powers);
    for (size_t i = base; i < boxes.levels.size(); ++i) {
      boxes.levels[i].lead = -kUnused;
      boxes.levels[i].trail = kUnused;
    }
    for (const Cell& cell : cells) {
      boxes.rows.push_back({level_of[cell.size], cell.offset});
      read(level_of[cell.size], cell.offset);
    }
  };
  const auto middle = cells.begin() + static_cast<std::ptrdiff_t>(apart);
  if (apart > 0) append({cells.begin(), middle});
  append({middle, cells.end()});
  // A box is built once, when its newest row is first read, out of boxes
  // that come before it in the list.
  for (Level& level : boxes.levels) level.first = level.trail;
  for (size_t i = boxes.levels.size(); i-- > 0;) {
    Level& whole = boxes.levels[i];
    whole.first = std::min(whole.first, whole.trail);
    for (int p = whole.parts_begin; p < whole.parts_end; ++p) {
      const Part& part = boxes.parts[index(p)];
      read(part.level, whole.lead + part.offset);
      Level& level = boxes.levels[index(part.level)];
      level.first = std::min(level.first, whole.first + part.offset);
    }
  }
  boxes.window_rows = 0;
  for (Level& level : boxes.levels) {
    level.slot = boxes.window_rows;
    level.capacity = level.lead - level.trail + 1;
    boxes.window_rows += level.capacity;
  }
  return boxes;
}

// Boxes that wait long from their first use to their last need long windows.
// Where those exceed a core's cache, and with some of the boxes built twice
// they do not, building twice is the faster. Sums are the same either way.
RowBoxes choose_row_boxes(const std::vector<Cell>& cells,
                          std::ptrdiff_t rows_in_cache) {
  RowBoxes once = make_row_boxes(cells, 0);
  if (once.window_rows <= rows_in_cache) return once;
  RowBoxes best = once;
  for (size_t apart = 1; apart < cells.size(); ++apart) {
    RowBoxes twice = make_row_boxes(cells, apart);
    if (twice.window_rows < best.window_rows) best = std::move(twice);
  }
  return best.window_rows <= rows_in_cache ? best : once;
}

// Of a core's own cache, asked for once.
std::ptrdiff_t cache_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return 1 << 20;
}

// Rows a multiple of 4 KiB apart would share a few sets of the caches.
int64_t spread(int64_t pixels) {
  pixels |= 1;
  int64_t rest = pixels % 64;
  return pixels < 56 ? pixels
         : rest < 9  ? pixels + 10 - rest / 2 * 2
         : rest > 55 ? pixels + 73 - rest
                     : pixels;
}

// Of the threads that a call may have, those that gain more than they cost.
int64_t worth_waking(const pelk_mm_call& call, const Geometry& g) {
  constexpr int64_t kLeast = 1 << 20;  // multiply-adds of one
  const int64_t* shape = call.shape;
  const int64_t outputs = shape[0] * shape[1] * shape[2] * shape[3];
  return std::clamp<int64_t>(outputs * g.num_rows * g.num_columns / kLeast, 1,
                             call.threads);
}

}  // namespace

Plan::Plan(const pelk_mm_call& call, int64_t vector_bytes, int64_t groups)
    : vector_bytes_(vector_bytes), groups_(groups), images_(call.shape[0]) {
  const std::vector<int64_t> sizes(call.sizes, call.sizes + call.num_sizes);
  const int64_t height = call.shape[2], width = call.shape[3];
  Geometry& g = geometry;
  g.height = static_cast<int>(height);
  g.width = static_cast<int>(width);
  g.row_stride = spread(width + 2 * kRowMargin);

  int first_row, first_column;
  std::vector<Cell> cells = crop(sizes, height, &first_row);
  row_boxes_ =
      choose_row_boxes(cells, cache_bytes() / (g.row_stride * vector_bytes));
  g.window_rows = row_boxes_.window_rows;

  cells = crop(sizes, width, &first_column);
  g.num_cells = static_cast<int>(sizes.size());
  g.first_tap = first_row * g.num_cells + first_column;
  auto level_of =
      make_levels(cells, &column_levels_, &column_parts_, &g.num_powers);
  int largest = 1, reach = 0;
  for (const Cell& cell : cells) {
    columns_.push_back({level_of[cell.size], cell.offset, cell.size});
    largest = std::max(largest, cell.size);
    reach = std::max({reach, -cell.offset, cell.offset + cell.size});
  }
  g.margin = reach + largest + kRowMargin;
  g.margin_stride = spread(width + 2 * g.margin);

  g.num_row_levels = static_cast<int>(row_boxes_.levels.size());
  g.num_rows = static_cast<int>(row_boxes_.rows.size());
  g.num_column_levels = static_cast<int>(column_levels_.size());
  g.num_columns = static_cast<int>(columns_.size());
  g.row_levels = row_boxes_.levels.data();
  g.row_parts = row_boxes_.parts.data();
  g.rows = row_boxes_.rows.data();
  g.column_levels = column_levels_.data();
  g.column_parts = column_parts_.data();
  g.columns = columns_.data();

  workers = worth_waking(call, g);
  const int64_t images = images_at_once();
  batches_ = (images_ + images - 1) / images;
  g.images = static_cast<int>((images_ + batches_ - 1) / batches_);
  g.window_stride = spread(g.images * g.row_stride);
}

// As many as make rows long, fit the cache, and leave maps for all workers.
int64_t Plan::images_at_once() const {
  constexpr int64_t kColumns = 32;
  const int64_t bytes =
      geometry.window_rows * geometry.row_stride * vector_bytes_;
  int64_t most =
      std::min<int64_t>(kColumns / geometry.width, cache_bytes() / 2 / bytes);
  if (workers > 1) most = std::min(most, images_ * groups_ / (4 * workers));
  return std::clamp<int64_t>(most, 1, images_);
}

int64_t Plan::scratch_bytes(bool backward) const {
  const Geometry& g = geometry;
  const int64_t vectors =
      g.window_rows * g.window_stride +
      (backward ? 1 + g.images : 1) * g.num_column_levels * g.margin_stride;
  return vectors * vector_bytes_ + kWorkspaceBytes +
         g.num_columns * kWorkspaceBytesPerColumn +
         g.num_rows * kWorkspaceBytesPerRow +
         g.num_row_levels * kWorkspaceBytesPerLevel;
}

Share Plan::share(int64_t threads) const {
  const int64_t height = geometry.height;
  // Where a map is cut, box rows are built twice: each costs about a
  // twentieth of an output row. Rather than that, one thread gets a few more.
  const int64_t cut = geometry.window_rows / 20;
  auto boundary = [&](int64_t thread) {
    int64_t row = maps() * height * thread / threads;
    int64_t rest = row % height;
    if (rest <= cut) return row - rest;
    return height - rest <= cut ? row + height - rest : row;
  };
  Share share;
  share.first.push_back(0);
  for (int64_t thread = 0; thread < threads; ++thread) {
    const int64_t end = boundary(thread + 1);
    for (int64_t row = boundary(thread); row < end;) {
      const int64_t map = row / height;
      const int64_t next = std::min(end, (map + 1) * height);
      const int64_t batch = map / groups_;
      const int64_t image = images_ * batch / batches_;
      const int64_t images = images_ * (batch + 1) / batches_ - image;
      share.pieces.push_back({image, map % groups_, static_cast<int>(images),
                              static_cast<int>(row - map * height),
                              static_cast<int>(next - map * height)});
      row = next;
    }
    share.first.push_back(static_cast<int64_t>(share.pieces.size()));
  }
  return share;
}

}  // namespace pelk
